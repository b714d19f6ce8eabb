"""What the transformations that round have in common: their checks, their random bits, and how to ask what was meant.

What leaves a transformation that rounds is rounded already. To learn what it was before, give it its own state inside a
`Revealed`: its `update` then returns the updates as they were meant, and the state as it would be unrounded, again inside a
`Revealed`. The question travels in the type of the state, so it reaches the rounding wherever wrappers have put it.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from precisionlab._typing import Array, Int, PRNGKeyArray
from precisionlab.numerics.checks import check_numbers
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode, Stochastic, check_mode

__all__ = [
    "Grid",
    "Placed",
    "Revealed",
    "check_optimizer",
    "check_rounding",
    "concealed",
    "hash_of",
    "leaf_key",
    "numbers_of",
    "reveal",
    "rounding_states",
    "rounds_state",
    "rounds_weights",
    "step_key",
    "unwrap",
]

_State = TypeVar("_State")


class Grid(NamedTuple):
    """Where the values of the leaves lie that a transformation rounds.

    One array, whatever the tree, so that what maps over the parameters in a state (`optax.tree.map_params`) leaves it alone.

    Attributes:
        rows: for each of them significand bits (0 for those of its own dtype), the exponent of the smallest normal number,
            whether rounding is stochastic, so that what single updates lose is not lost on average, and a hash of its path.
    """

    rows: Int[Array, "leaves 4"]


class Placed(NamedTuple):
    """A leaf and the grid that may hold its row."""

    grid: Grid
    path: str


class Revealed(NamedTuple):
    """A state that asks its transformation for what it means, not for what it stores."""

    state: Any


def hash_of(path: str) -> int:
    """An int32 that stands for a path."""
    return zlib.crc32(path.encode()) - 2**31


def numbers_of(placed: Placed) -> Int[Array, "3"]:
    """Precision, smallest exponent and whether rounding is stochastic; zeros for what is rounded to nothing but its dtype."""
    rows = placed.grid.rows
    # A transformation that was given all parameters as one array had no path.
    mine = (rows[..., 3] == hash_of(placed.path)) | (rows[..., 3] == hash_of(""))
    return (rows[..., :3] * mine[..., None].astype(np.int32)).sum(-2, dtype=np.int32)


def rounds_weights(node: Any) -> bool:
    """Whether this is the state of a transformation whose updates lead onto a grid; it tells what keeps the `residual`."""
    return isinstance(node, tuple) and hasattr(node, "grid") and hasattr(node, "residual")


def rounds_state(node: Any) -> bool:
    """Whether this is the state of a transformation that rounds what it remembers."""
    return isinstance(node, tuple) and hasattr(node, "grid") and not hasattr(node, "residual")


def _rounds(node: Any) -> bool:
    return rounds_weights(node) or rounds_state(node)


def rounding_states(state: Any) -> list[Any]:
    """Every state of a transformation that rounds, outermost first, wherever it is."""
    found = []
    for node in jax.tree.leaves(state, is_leaf=_rounds):
        if _rounds(node):
            found += [node, *rounding_states(getattr(node, "inner", None))]
    return found


def reveal(state: Any) -> Any:
    """The same state, with each rounding in it asked for what it means."""

    def asked(node: Any) -> Any:
        if not _rounds(node):
            return node
        return Revealed(node._replace(inner=reveal(node.inner)) if hasattr(node, "inner") else node)

    return jax.tree.map(asked, state, is_leaf=_rounds)


def concealed(state: Any) -> Any:
    """A state without its `Revealed`."""

    def plain(node: Any) -> Any:
        if not isinstance(node, Revealed):
            return node
        held = node.state
        return held._replace(inner=concealed(held.inner)) if hasattr(held, "inner") else held

    return jax.tree.map(plain, state, is_leaf=lambda node: isinstance(node, Revealed))


def unwrap(state: Any) -> tuple[Any, bool]:
    """The state of a transformation, and whether it was asked for what it means."""
    return (state.state, True) if isinstance(state, Revealed) else (state, False)


def check_rounding(given: Any, mode: Mode, where: str) -> None:
    """Refuse what is no format or no mode.

    Args:
        given: a format, formats by path, or None.
        mode: how to round.
        where: the name of the cure.

    Raises:
        TypeError: if there is something else than formats, or mode is not a function.
        ValueError: if the numbers of a format are wrong.
    """
    named = isinstance(given, Mapping)
    for name, fmt in given.items() if named else [("fmt", given)]:
        if fmt is None:
            continue
        if not isinstance(fmt, Format):
            what = f'the format for "{name}"' if named else "fmt"
            ways = "" if named else ", formats by path, or None for each leaf's own"
            raise TypeError(f"{where}: {what} must be a Format such as precisionlab.BFLOAT16{ways}; got {fmt!r}.")
        check_numbers(fmt)
    check_mode(mode, where)


def check_optimizer(optimizer: Any, where: str) -> optax.GradientTransformationExtraArgs:
    """An Optax transformation, ready for further arguments.

    Raises:
        TypeError: if it is none.
    """
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(f"{where}: expected an Optax gradient transformation, such as optax.adam(1e-3); got {optimizer!r}.")
    return optax.with_extra_args_support(optimizer)


def step_key(mode: Mode, seed: Any, number: Any) -> PRNGKeyArray | None:
    """The random bits of one update; None for modes that need none."""
    return jax.random.fold_in(jax.random.key(seed), number) if isinstance(mode, Stochastic) else None


def leaf_key(key: PRNGKeyArray | None, index: int) -> PRNGKeyArray | None:
    """The random bits of one leaf of an update."""
    return None if key is None else jax.random.fold_in(key, index)
