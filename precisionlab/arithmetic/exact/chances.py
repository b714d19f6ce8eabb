"""Stochastic rounding of an exact sum: up with the probability that the sum asks for, however small one of its terms is.

The carrier's sum s = fl(a + b) drops a remainder e, and an update below half of the carrier's own gap is all remainder: rounded
stochastically, s would stay where it is for ever. So the exact sum s + e is rounded stochastically twice, each time exactly:

    to the carrier    T below, T + 1 above in the carrier's last place: up with the chance (s + e - T) / gap
    to the format     as ever, by adding random bits below its last place

Both grids are nested, so the mean of both together is s + e and the chance to go up is the whole remainder over the gap of the
format. Where s is exact the first does nothing, and the random bits of the second are those of `round_to`.

A chance is compared with two random words, 64 bits in a float32 carrier: in units of the carrier's gap it is right to 2^-64, in
float32 therefore to 2^-64 of an ulp, in bfloat16 to 2^-80. Below 2^-31 of the smallest value of a format, where a word has no
place left for what is dropped, the same two words decide: the chance is right to 2^-95 of that value.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array, Bool, Float, PRNGKeyArray
from precisionlab.arithmetic.exact.exact_sums import two_sum
from precisionlab.numerics.carriers import Carrier, carrier_of, from_bits, to_bits, uncontracted
from precisionlab.numerics.derivatives import straight_through
from precisionlab.numerics.formats import FORMATS, Format
from precisionlab.numerics.grids import locate
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import Mode, Stochastic
from precisionlab.numerics.placing import happens, scaled
from precisionlab.numerics.randomness import check_key, fold
from precisionlab.numerics.rounding import round_to

__all__ = ["carried_sum", "round_sum"]


class _Exact(NamedTuple):
    """An exact sum among the carrier's numbers.

    Attributes:
        magnitude: bits of the carrier's number at or below its magnitude.
        sign: the sign bit.
        inexact: whether something is left.
        below: whether the carrier's sum was above it: what is left is then the gap less the remainder.
        significand, excess: the remainder's size is significand * 2^-excess of the gap.
    """

    magnitude: Array
    sign: Array
    inexact: Bool[Array, "..."]
    below: Bool[Array, "..."]
    significand: Array
    excess: Array


def round_sum(
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    fmt: Format,
    mode: Mode,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "..."]:
    """The sum a + b rounded to a format, under stochastic modes in proportion to the exact sum.

    Other modes round the carrier's sum, as `round_to(a + b, fmt, mode)` does.

    Args:
        a: any shape, float32 or float64.
        b: the same shape and dtype; it may be a product, which is not contracted into the sum.
        fmt: a format that fits, whose numbers may be traced.
        mode: a rounding mode. Of r random bits the chance is a multiple of 2^-r, rounded down, as everywhere.
        key: a JAX random key for stochastic modes.

    Returns:
        The rounded sum, with the derivatives of a + b. A remainder below 2^-126 is lost in float32 (2^-1022 in float64), and
        with it, where an operand is below 2^-102, the proportion.

    Raises:
        As `round_to`.

    Example:
        >>> import jax
        >>> from precisionlab import BFLOAT16, stochastic
        >>> w, u = jnp.ones(2**16), jnp.full(2**16, 2.0**-15 * (1 + 2.0**-20))
        >>> moved = int(jnp.sum(round_sum(w, u, BFLOAT16, stochastic, key=jax.random.key(0)) > 1))
        >>> abs(moved - 256) < 80  # of 2^16, each with a chance of 2^-8
        True
    """
    b = uncontracted(b)
    if not isinstance(mode, Stochastic) or key is None:
        return round_to(a + b, fmt, mode, key=key)
    carrier = carrier_of(a.dtype, "round_sum")
    key = check_key(key, "round_sum")
    random, high, low = (mode.generator(k, a.shape, carrier.uint) for k in (key, fold(key, 0), fold(key, 1)))
    place = _exactly(lax.stop_gradient(a), lax.stop_gradient(b), carrier)
    if mode.bits is None:
        up = place.inexact & (place.below ^ happens(place.significand, place.excess, high, low, carrier))
        more = low, high
    else:
        shift = locate(place.magnitude, fmt, carrier).shift
        kept = jnp.maximum(carrier.word(mode.bits), shift) - shift  # of the r bits, those below the carrier's last place
        up, more = place.inexact & (high < _first_bits(place, kept, carrier)), None
    whole = from_bits(place.magnitude + carrier.word(up) | place.sign, carrier)
    return straight_through(a + b, round_carrier(whole, fmt, mode, random, carrier, more))


def carried_sum(a: Float[Array, "..."], b: Float[Array, "..."], mode: Mode, *, key: PRNGKeyArray | None) -> Any:
    """The sum a + b as a number of the carrier: its own, or under stochastic modes one whose mean is the exact sum.

    An intermediate of a rounding by r bits is no rounding of that hardware, so here all bits count.
    """
    exact = dataclasses.replace(mode, bits=None) if isinstance(mode, Stochastic) else None
    return a + uncontracted(b) if exact is None else round_sum(a, b, FORMATS[a.dtype.name], exact, key=key)


def _exactly(a: Array, b: Array, carrier: Carrier) -> _Exact:
    word, t = carrier.word, carrier.fraction_bits
    s, remainder = two_sum(a, b, carrier)
    bits, rest = to_bits(s, carrier), to_bits(remainder, carrier)
    magnitude, size = bits & word(carrier.sign - 1), rest & word(carrier.sign - 1)
    inexact = size != 0
    below = inexact & (((bits ^ rest) & word(carrier.sign)) != 0)
    under = magnitude - word(below)
    binade, own = (jnp.maximum(x >> word(t), word(1)) for x in (under, size))
    significand = size - ((own - word(1)) << word(t))
    return _Exact(under, bits ^ magnitude, inexact, below, significand, binade - own)


def _first_bits(place: _Exact, count: Array, carrier: Carrier) -> Array:
    """The first bits of what is left, as a fraction of the gap, in a word."""
    word = carrier.word
    high, rest = (scaled(place.significand, place.excess, words * carrier.width, carrier) for words in (1, 2))
    # One less a fraction that ends within the word is the word's negative; one that does not end there is one step below.
    cut = (rest != 0) | (high == 0)
    fraction = jnp.where(place.below, jnp.where(cut, ~high, word(0) - high), high)
    return fraction & ~(~word(0) >> count)
