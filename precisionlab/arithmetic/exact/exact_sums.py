"""One rounding of an exact sum, product, or sum of a product.

Arithmetic in the carrier rounds, and rounding its result to a format rounds again. What the first rounding dropped can be had
exactly, as a float, the *remainder*:

    a + b      =  s + e        s = fl(a + b), e by six more sums                                    (Knuth's TwoSum)
    a * b      =  p + e        p = fl(a * b), e from the low words of two integer products
    a * b + c  =  s + e ...    s = fl(a * b + c), e of the right sign    (Boldo and Melquiond, through a sum rounded to odd)

Of the remainder only its sign matters, and whether it is half a unit. With it the carrier's result is moved to where the one
rounding that follows gives what it would give for the exact number: to the odd neighbour where the format keeps at least two
bits less than the carrier, else by a rounding with two more bits.

A result that the backend flushes to zero (below 2^-126 in float32 on CPUs) is zero here too. The remainder of a sum is lost
where it is itself below 2^-126, that is, in float32, with an operand below 2^-102; that of a product never is.

S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from precisionlab._typing import Array
from precisionlab.numerics.carriers import Carrier, carrier_of, from_bits, to_bits, uncontracted
from precisionlab.numerics.formats import Format, is_concrete
from precisionlab.numerics.grids import locate
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import Mode, Stochastic, downward, nearest_away, nearest_even, to_odd, toward_zero, upward

__all__ = [
    "fused",
    "is_carrier_itself",
    "multiplies_exactly",
    "product_remainder",
    "round_once",
    "sum_is_innocuous",
    "sum_to_odd",
    "two_sum",
]


def two_sum(a: Array, b: Array, carrier: Carrier) -> tuple[Array, Array]:
    """The rounded sum and its remainder: a + b = s + e exactly (e is 0 where s is not finite)."""
    s = a + b
    of_b = s - a
    e = (a - (s - of_b)) + (b - of_b)
    return s, jnp.where(_magnitude(e, carrier) < carrier.word(carrier.infinity), e, jnp.zeros((), e.dtype))


def sum_to_odd(a: Array, b: Array) -> Array:
    """The sum rounded to odd in the carrier, from which one more rounding to at most two bits less, in any mode, is right.

    A sum of finite numbers beyond the carrier's largest stays at that value, as rounding to odd has it.

    Example:
        >>> float(sum_to_odd(jnp.float32(1), jnp.float32(2**-30))).hex()
        '0x1.0000020000000p+0'
    """
    carrier = carrier_of(a.dtype, "sum_to_odd")
    s, remainder = two_sum(a, b, carrier)
    return _odd(s, remainder, (a, b), carrier)


def product_remainder(a: Array, b: Array, p: Array, carrier: Carrier, *, sign_only: bool = False) -> Array:
    """The remainder a * b - p of a rounded product p; 0 where p is zero, subnormal or not finite.

    The exact product of two significands has twice the bits of a word, but the remainder is at most half a unit of p: the low
    words of the product and of p, subtracted modulo 2^width, give it as a signed integer. Nothing underflows there; the float
    made of it does so below the carrier's smallest normal, or, with `sign_only`, is then too large, but never zero.
    """
    word, t = carrier.word, carrier.fraction_bits
    hidden = word(1 << t)

    def parts(x: Array) -> tuple[Array, Array]:
        magnitude = _magnitude(x, carrier)
        return magnitude >> word(t), (magnitude & (hidden - word(1))) | hidden

    (exponent_a, significand_a), (exponent_b, significand_b), (exponent_p, significand_p) = parts(a), parts(b), parts(p)
    exponent = exponent_a + exponent_b  # of the product, twice biased
    shift = exponent_p + word(carrier.bias + t) - exponent  # t or t + 1
    units = significand_a * significand_b - (significand_p << shift)
    signed = lax.bitcast_convert_type(units, np.dtype(f"int{carrier.width}")).astype(carrier.dtype) * carrier.dtype(2.0**-t)
    lowest = t + 1 if sign_only else 0
    scale = jnp.maximum(exponent, word(carrier.bias + t + lowest)) - word(carrier.bias + t)
    remainder = signed * from_bits(scale << word(t), carrier)
    ordinary = (_magnitude(p, carrier) - hidden) < word(carrier.infinity) - hidden
    remainder = jnp.where(ordinary, remainder, jnp.zeros((), remainder.dtype))
    return from_bits(to_bits(remainder, carrier) ^ (to_bits(p, carrier) & word(carrier.sign)), carrier)


def fused(a: Array, b: Array, c: Array, carrier: Carrier) -> tuple[Array, Array]:
    """The sum a * b + c rounded once to the carrier, and a remainder of the right sign (half a unit only where it is that).

    The remainder of a product below 2^-102 (float32) is lost, and a product beyond the carrier's largest value is infinite
    whatever c is.
    """
    high = uncontracted(a * b)
    low = product_remainder(a, b, high, carrier)
    sum_low, rest_low = two_sum(c, low, carrier)
    sum_high, rest_high = two_sum(high, sum_low, carrier)
    # Rounded to odd, the small parts keep their side of every midpoint of the sum that follows.
    s, e = two_sum(sum_high, _odd(*two_sum(rest_low, rest_high, carrier), (), carrier), carrier)
    plain = high + c
    finite = _magnitude(plain, carrier) < carrier.word(carrier.infinity)
    return jnp.where(finite, s, plain), jnp.where(finite, e, jnp.zeros((), e.dtype))


def round_once(
    s: Array,
    remainder: Array | None,
    operands: tuple[Array, ...],
    fmt: Format,
    mode: Mode,
    random: Array | None,
    carrier: Carrier,
) -> Array:
    """The exact number s + remainder rounded to a format.

    Stochastic modes round s: the carrier's own rounding, 2^-24 of the value in float32, comes first.

    Args:
        s: a result of the carrier, rounded to nearest even.
        remainder: what that dropped; None where it is known to be exact.
        operands: of the operation: where they are finite and s is not, the exact result is a finite number beyond the carrier.
        fmt: the format, which must fit the carrier.
        mode: any rounding mode.
        random: words for a stochastic mode, in the shape of s.
        carrier: of s.
    """
    nearest = mode in (nearest_even, nearest_away) or isinstance(mode, Stochastic)
    if isinstance(mode, Stochastic) or (remainder is None and nearest):
        return round_carrier(s, fmt, mode, random, carrier)
    remainder = jnp.zeros_like(s) if remainder is None else remainder
    # The nearest modes overflow with the carrier, the others may stop at the largest value.
    place = _truncated(s, remainder, () if nearest else operands, carrier)
    moved = place.odd
    if not (is_concrete(fmt) and fmt.precision + 2 <= carrier.precision):
        moved = _moved_by_two_more_bits(place, remainder, fmt, mode, carrier)
    return round_carrier(from_bits(moved | place.sign, carrier), fmt, mode, None, carrier)


class _Truncated(NamedTuple):
    """The exact number s + remainder, as the carrier's magnitude at or below it and what is left."""

    magnitude: Array
    sign: Array
    inexact: Array
    below: Array  # whether s was above it

    @property
    def odd(self) -> Array:
        """Its magnitude rounded to odd, in bits."""
        return self.magnitude | self.inexact.astype(self.magnitude.dtype)


def _truncated(s: Array, remainder: Array, operands: tuple[Array, ...], carrier: Carrier) -> _Truncated:
    word, infinity = carrier.word, carrier.infinity
    bits, magnitude = to_bits(s, carrier), _magnitude(s, carrier)
    inexact = _magnitude(remainder, carrier) != 0
    below = inexact & (((to_bits(remainder, carrier) ^ bits) & word(carrier.sign)) != 0)
    if operands:  # an infinite result of finite numbers is a finite one beyond the largest value
        overflowed = magnitude == word(infinity)
        for operand in operands:
            overflowed &= _magnitude(operand, carrier) < word(infinity)
        return _Truncated(magnitude - word(below | overflowed), bits ^ magnitude, inexact | overflowed, below)
    return _Truncated(magnitude - word(below), bits ^ magnitude, inexact, below)


def _moved_by_two_more_bits(place: _Truncated, remainder: Array, fmt: Format, mode: Mode, carrier: Carrier) -> Array:
    """Magnitude bits that round to the format as the exact number does, also where the format keeps all bits or all but one."""
    word = carrier.word
    quarters = jnp.where(place.inexact, jnp.where(place.below, word(3), word(1)), word(0))
    if mode not in (nearest_even, toward_zero, upward, downward, to_odd):  # which need not know a tie of the last bit
        quarters = jnp.where(_is_half(place, remainder, carrier), word(2), quarters)
    shift = locate(place.magnitude, fmt, carrier).shift
    few = shift < word(2)
    shift = jnp.minimum(shift, word(1))
    tail = (word(4) << shift) - word(1)
    low = place.magnitude & word(3)
    increment = mode(tail, (place.magnitude >> shift) & word(1), place.sign != 0)
    rounded = (((low << word(2)) + quarters + increment) & ~tail) >> word(2)
    return jnp.where(few, place.magnitude - low + rounded, place.odd)


def sum_is_innocuous(fmt: Format, term_bits: int | None, mode: Mode, carrier: Carrier) -> bool:
    """Whether rounding the carrier's sum of a value of the format and a term is known to be one rounding of the exact sum.

    Args:
        fmt: the format of the sum and of its first operand.
        term_bits: significand bits of the other operand, None if not known.
        mode: the rounding mode.
        carrier: the carrier.
    """
    if isinstance(mode, Stochastic):
        return True
    if not is_concrete(fmt) or mode not in (nearest_even, nearest_away):
        return False
    if is_carrier_itself(fmt, carrier) and mode is nearest_even:
        return True
    # A term of more bits could sit on a midpoint of the format, from which the carrier drops whatever is added to it.
    return term_bits is not None and term_bits <= fmt.precision and 2 * fmt.precision + 2 <= carrier.precision


def is_carrier_itself(fmt: Format, carrier: Carrier) -> bool:
    """Whether the carrier's own roundings are known to be those of the format, up to overflow."""
    return is_concrete(fmt) and fmt.precision == carrier.precision and fmt.emin == carrier.emin


def multiplies_exactly(a: Array, b: Array, carrier: Carrier) -> Array:
    """Whether every product of an entry of a and one of b is a value of the carrier, underflow apart; a scalar.

    So it is where the widest significand of a and the widest of b have no more bits together than the carrier: always with
    operands that were rounded to at most half of its precision.
    """
    spare = _spare_bits(_used_bits(a, carrier), carrier) + _spare_bits(_used_bits(b, carrier), carrier)
    return spare >= carrier.precision


def _used_bits(x: Array, carrier: Carrier) -> Array:
    fraction = to_bits(x, carrier) & carrier.word((1 << carrier.fraction_bits) - 1)
    return _join(fraction) | carrier.word(1 << carrier.fraction_bits)


@custom_vmap
def _join(words: Array) -> Array:
    """The bits set in any entry, of the whole batch under vmap, so that a branch on them stays a branch."""
    return lax.reduce(words, np.zeros((), words.dtype), lax.bitwise_or, tuple(range(words.ndim)))


@_join.def_vmap
def _join_batched(axis_size: int, in_batched: list[bool], words: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _join(words), False


def _spare_bits(used: Array, carrier: Carrier) -> Array:
    one = carrier.word(1)
    return lax.population_count((used & (carrier.word(0) - used)) - one)


def _odd(s: Array, remainder: Array, operands: tuple[Array, ...], carrier: Carrier) -> Array:
    place = _truncated(s, remainder, operands, carrier)
    return from_bits(place.odd | place.sign, carrier)


def _magnitude(x: Array, carrier: Carrier) -> Array:
    return to_bits(x, carrier) & carrier.word(carrier.sign - 1)


def _is_half(place: _Truncated, remainder: Array, carrier: Carrier) -> Array:
    """Whether the remainder is half of the gap around it."""
    word, t = carrier.word, carrier.fraction_bits
    gap = (place.magnitude & word(carrier.infinity)) - word((t + 1) << t)
    return _magnitude(remainder, carrier) == gap
