"""What is done to overfitted weights, arm by arm.

An arm takes the weights of every seed as a register holds them, changes them once, and says in which register training goes on.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from precisionlab.numerics.formats import FLOAT32, FORMATS, Format, fixed_point
from precisionlab.training.shrinking import shrink

__all__ = ["ARMS", "REGISTERS", "Arm", "Register", "Slung", "finer", "kind_of", "sling"]


class Register(NamedTuple):
    """Where weights are stored: a simulated format, or also a native dtype, which rounds to nearest even by itself."""

    fmt: Format
    dtype: Any = None

    @property
    def floating(self) -> bool:
        """Whether the spacing grows with the value; a fixed-point grid lies below its own 2^emin."""
        return float(self.fmt.largest) >= 2.0**self.fmt.emin


REGISTERS: dict[str, Register] = {
    **{name: Register(FORMATS[name]) for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")},
    **{"fixed8": Register(fixed_point(2, 5)), "fixed12": Register(fixed_point(3, 8)), "fixed16": Register(fixed_point(3, 12))},
    **{f"native {name}": Register(FORMATS[name], jnp.dtype(name)) for name in ("float32", "bfloat16", "float16")},
}
"""What weights can be stored in, by name; fixedN has N bits with its sign."""


def kind_of(name: str) -> str:
    """What a register is, as far as a shrinking goes: registers of one kind are averaged.

    A quarter of a weight of eight bits underflows as often as not where it is small: it is no floating point of the kind in
    which nothing falls off.

    Example:
        >>> [kind_of(name) for name in ("bfloat16", "float8_e4m3fn", "fixed8")]
        ['floating point', 'floating point of 8 bits', 'fixed point']
    """
    register = REGISTERS[name]
    if not register.floating:
        return "fixed point"
    return "floating point of 8 bits" if name.startswith("float8") else "floating point"


class Arm(NamedTuple):
    """One thing to do to the weights.

    Attributes:
        kind: scale (by the factor as the register holds it), exactly (by the factor itself, in float64, then rounded once),
            finer (into a register of two bits more, which is kept), coarser (no factor: two bits fewer), permuted or fresh
            (first scaled, then put in another order, or replaced by normal draws, at the same norm of every leaf), decay
            (unchanged; weight decay that alone would scale by the factor).
        factor: 1 for none.
        part: which leaves: all, weights (no biases), first or last (layer).
        moments: whether the optimizer's moments and step count are kept, as Keras does when `fit` is called again; else Adam
            begins anew.
        reach: how long it is trained on, as a share of the steps before, if the run goes so far.
    """

    kind: str = "scale"
    factor: float = 1.0
    part: str = "all"
    moments: bool = False
    reach: float = 0.1


ARMS: dict[str, Arm] = {
    "none": Arm(reach=0.5),
    "none, moments kept": Arm(moments=True),
    "0.5": Arm("scale", 0.5),
    "0.25": Arm("scale", 0.25),
    "0.2": Arm("scale", 0.2, reach=math.inf),
    "0.2, moments kept": Arm("scale", 0.2, moments=True, reach=math.inf),
    "0.2 in float64, cast": Arm("exactly", 0.2),
    "0.25, two bits more": Arm("finer", 0.25),
    "two bits fewer": Arm("coarser"),
    "0.2, permuted": Arm("permuted", 0.2),
    "0.2, fresh": Arm("fresh", 0.2, reach=0.5),
    "weight decay": Arm("decay", 0.2),
    "0.2, no biases": Arm("scale", 0.2, "weights"),
    "0.2, first layer": Arm("scale", 0.2, "first"),
    "0.2, last layer": Arm("scale", 0.2, "last"),
}
"""The arms, by name."""


class Slung(NamedTuple):
    """What an arm made of flat weights, shape (seeds, n).

    Attributes:
        weights: on the grid of `fmt`, float32.
        exact: float64; the weights before, scaled as the arm scales them (for permuted and fresh ones too), and never rounded.
        undone: float64; the weights with the factor divided out again.
        fmt: the register in which training goes on.
    """

    weights: np.ndarray
    exact: np.ndarray
    undone: np.ndarray
    fmt: Format


def finer(fmt: Format, bits: int) -> Format:
    """A format with more bits at the small end, or fewer, of the same range.

    Example:
        >>> finer(fixed_point(2, 5), -2) == fixed_point(2, 3), finer(FLOAT32, 2) == FLOAT32
        (True, True)
    """
    precision = min(fmt.precision + bits, FLOAT32.precision)
    top = max(math.frexp(fmt.largest)[1] - 1, fmt.emin)
    spacing = 2.0 ** (top - precision + 1)
    largest = math.floor(fmt.largest / spacing) * spacing
    return fmt._replace(precision=precision, largest=largest, overflow=largest if fmt.overflow == fmt.largest else fmt.overflow)


def sling(arm: Arm, weights: np.ndarray, fmt: Format, leaves: np.ndarray, chosen: np.ndarray, seed: int = 0) -> Slung:
    """Do to weights what an arm says.

    Args:
        arm: what to do.
        weights: values of `fmt`, float32, shape (seeds, n).
        fmt: the register they are in.
        leaves: the number of the leaf that each entry belongs to, shape (n,).
        chosen: which entries the arm's part takes in, shape (n,).
        seed: of the permutations and draws.

    Returns:
        The weights with which training goes on.
    """
    wide = weights.astype(np.float64)
    if arm.kind == "decay" or (arm.kind == "scale" and arm.factor == 1):
        return Slung(weights, wide, wide, fmt)
    if arm.kind == "coarser":
        coarse = shrink(weights, 1.0, fmt=finer(fmt, -2))
        return Slung(coarse, wide, coarse.astype(np.float64), fmt)
    after = finer(fmt, 2) if arm.kind == "finer" else fmt
    factor = arm.factor
    if arm.kind not in ("exactly", "finer"):
        factor = float(shrink(np.ones(1, np.float32), factor, fmt=fmt)[0])
    shrunk = shrink(weights, factor, fmt=after) if factor > 0 else np.zeros_like(weights)
    if arm.kind in ("permuted", "fresh"):
        for row, number in np.ndindex(len(weights), leaves.max() + 1):
            place, rng = leaves == number, np.random.default_rng((seed, row, number))
            entries = shrunk[row, place]
            if arm.kind == "permuted":
                shrunk[row, place] = rng.permutation(entries)
            else:
                draws = rng.standard_normal(entries.size)
                norm = np.linalg.norm(entries.astype(np.float64)) / np.linalg.norm(draws)
                shrunk[row, place] = (draws * norm).astype(np.float32)
        shrunk = shrink(shrunk, 1.0, fmt=fmt)
    slung = np.where(chosen, shrunk, weights)
    undone = np.where(chosen, slung.astype(np.float64) / (factor or 1.0), wide)
    return Slung(slung, np.where(chosen, wide * factor, wide), undone, after)
