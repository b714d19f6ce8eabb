"""Rounding modes: each is a small function.

All of them round by one sum: with the significand aligned so that the format's values are the multiples of 2^s, add an
increment between 0 and 2^s - 1 and drop the low s bits (`tail` is 2^s - 1, `odd` the last kept bit):

    nearest_even   tail/2 + odd      half a unit, less one step when the kept value is even: ties stay
    nearest_away   tail/2 + 1        half a unit: ties go up in magnitude
    toward_zero    0
    upward         tail if x > 0     anything dropped carries
    downward       tail if x < 0
    to_odd         tail unless odd   an inexact even value moves to its odd neighbour
    stochastic     random in [0, tail]    carries with a probability equal to the dropped fraction, exactly
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from precisionlab._typing import Array, UInt
from precisionlab.numerics.randomness import counter_hash

__all__ = [
    "MODES",
    "Mode",
    "Stochastic",
    "check_mode",
    "downward",
    "mode_name",
    "nearest_away",
    "nearest_even",
    "stochastic",
    "stochastic_bits",
    "to_odd",
    "toward_zero",
    "upward",
]

Mode = Callable[..., Any]
"""`mode(tail, odd, negative) -> increment`; a `Stochastic` mode takes random words as a fourth argument."""


def nearest_even(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """To nearest, ties to the value with the even last bit, or the larger where both are odd (IEEE 754's default, RNE).

    Both are odd only in formats of one significand bit, such as e8m0, where every tie between powers of two goes up.
    """
    del negative
    return (tail >> tail.dtype.type(1)) + (odd & tail)


def nearest_away(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """To nearest, ties away from zero."""
    del odd, negative
    return (tail >> tail.dtype.type(1)) + (tail & tail.dtype.type(1))


def toward_zero(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """Truncation (RTZ)."""
    del odd, negative
    return tail ^ tail


def upward(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """Towards plus infinity (RU)."""
    del odd
    return jnp.where(negative, tail ^ tail, tail)


def downward(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """Towards minus infinity (RD)."""
    del odd
    return jnp.where(negative, tail, tail ^ tail)


def to_odd(tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any) -> UInt[Array, "..."]:
    """An inexact result goes to the neighbour whose last bit is odd, so that a second rounding stays right (RO)."""
    del negative
    return jnp.where(odd != 0, tail ^ tail, tail)


@dataclass(frozen=True)
class Stochastic:
    """Rounds up in magnitude with a probability equal to the dropped fraction (SR).

    Attributes:
        bits: how many random bits decide, or None for all that are dropped (exactly unbiased down to 2^-31 of a unit). With
            r bits the probability is rounded down to a multiple of 2^-r, as in hardware that adds r bits and truncates:
            what is below 2^-r of a unit is lost again.
        generator: `generator(key, shape, dtype)` gives uniform unsigned words: `counter_hash` (fast), or
            `jax.random.bits` (threefry, some twenty times the cost of it all).
    """

    bits: int | None = None
    generator: Callable[..., Any] = counter_hash

    def __call__(
        self, tail: UInt[Array, "..."], odd: UInt[Array, "..."], negative: Any, random: UInt[Array, "..."]
    ) -> UInt[Array, "..."]:
        """The increment: random bits in the places that are dropped."""
        del odd, negative
        increment = random & tail
        return increment if self.bits is None else increment & ~(tail >> tail.dtype.type(self.bits))


stochastic = Stochastic()


def stochastic_bits(r: int) -> Stochastic:
    """Stochastic rounding that draws on r random bits only.

    Args:
        r: 1 to 31.

    Raises:
        ValueError: if r is out of range.

    Example:
        >>> stochastic_bits(4).bits
        4
    """
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= 31:
        raise ValueError(f"stochastic_bits: the number of random bits must be a whole number from 1 to 31; got {r!r}.")
    return Stochastic(bits=r)


MODES: dict[str, Mode] = {
    "nearest_even": nearest_even,
    "nearest_away": nearest_away,
    "toward_zero": toward_zero,
    "upward": upward,
    "downward": downward,
    "to_odd": to_odd,
    "stochastic": stochastic,
}


def mode_name(mode: Mode) -> str:
    """The name of a mode, as in `MODES`; `stochastic_4_bits` for r-bit ones.

    Example:
        >>> mode_name(upward), mode_name(stochastic_bits(4))
        ('upward', 'stochastic_4_bits')
    """
    for name, known in MODES.items():
        if known == mode:
            return name
    if isinstance(mode, Stochastic):
        return "stochastic" if mode.bits is None else f"stochastic_{mode.bits}_bits"
    return getattr(mode, "__name__", repr(mode))


def check_mode(mode: Mode, where: str) -> None:
    """Raise unless `mode` is a rounding mode rather than, say, its name."""
    if callable(mode):
        return
    hint = f"pass the function: precisionlab.{mode}" if mode in MODES else f"the modes are {', '.join(MODES)}"
    raise TypeError(f"{where}: mode must be a rounding function such as nearest_even; got {mode!r}; {hint}.")
