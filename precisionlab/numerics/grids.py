"""Where a number lies among the values of a format.

Take the magnitude bits of a carrier value x apart into `significand + base`, with the hidden bit in the significand and only
the exponent in the base. The values of the format in the binade of x are then the multiples of 2^shift in the significand:

    shift = (t + 1 - p)  +  max(emin - exponent(x), 0)           t: fraction bits of the carrier

the first term for the bits the format lacks everywhere, the second for those it lacks below 2^emin. Rounding, the spacing at
x and its neighbours are integer arithmetic on these three words. Where the format has the carrier's own exponent range the
second term vanishes, the base with it, and the whole ladder is one uniform grid: that case costs half of the instructions or
less.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float
from precisionlab.numerics.carriers import FLOAT32_CARRIER, Carrier, carrier_of, choose, from_bits, power_of_two, to_bits
from precisionlab.numerics.checks import check_format, require_fits
from precisionlab.numerics.formats import Format, describe_numbers, is_concrete
from precisionlab.numerics.wide import in_float64, is_host_number, on_host, unheld
from precisionlab.numerics.words import FormatWords, largest_bits, smallest_positive, words_of

__all__ = [
    "Place",
    "as_carrier",
    "entered",
    "finite_values",
    "keep",
    "locate",
    "locate_scaled",
    "neighbors",
    "spacing_exponent",
    "ulp",
]


class Place(NamedTuple):
    """A magnitude relative to the grid of a format; all fields are words of the carrier's width.

    Attributes:
        significand: the bits to be rounded.
        base: what to add to a nonzero rounded significand to get magnitude bits again; None for nothing.
        shift: the grid is the multiples of 2^shift in the significand; the bit at that position tells whether the format's
            value at or below the magnitude is odd.
    """

    significand: Array
    base: Array | None
    shift: Array

    def tail(self, carrier: Carrier) -> Array:
        """The bits below the grid, all set."""
        return (carrier.word(1) << self.shift) - carrier.word(1)


def as_carrier(x: Any, where: str) -> tuple[Array, Carrier]:
    """Values as an array of a carrier dtype (Python numbers become float32), with the carrier.

    What float32 does not hold has to be kept from here (`wide.unheld`).
    """
    if is_host_number(x):
        return jnp.asarray(x, jnp.float32), FLOAT32_CARRIER
    values = on_host(x)
    if values is not None:
        carrier_of(values.dtype, where)  # by its own name, before JAX makes another dtype of it
    array = jnp.asarray(x if values is None else values)
    return array, carrier_of(array.dtype, where)


def locate(magnitude: Array, fmt: Format | FormatWords, carrier: Carrier) -> Place:
    """The place of magnitudes (carrier bits without the sign) on the grid of a format."""
    t, word = carrier.fraction_bits, carrier.word
    words = fmt if isinstance(fmt, FormatWords) else words_of(fmt, carrier)
    if words.low is None:
        return Place(magnitude, None, words.drop)
    hidden = word(1 << t)
    exponent_bits = jnp.maximum(magnitude & word(carrier.infinity), hidden)
    base = exponent_bits - hidden
    shift = choose(magnitude < words.low, (words.below - exponent_bits) >> word(t), words.drop)
    return Place(magnitude - base, base, shift)


def locate_scaled(magnitude: Array, fmt: Format, power: Array, carrier: Carrier) -> Place:
    """The place of magnitudes on the grid of a format times 2^power, a power for each, as far down as the carrier goes.

    For formats with subnormals whose smallest value, times 2^power, the carrier holds. Unlike `locate` it knows how many bits
    the carrier's own subnormals have, since the format's normal numbers may lie among them.
    """
    t, word = carrier.fraction_bits, carrier.word
    hidden = word(1 << t)
    exponent_bits = jnp.maximum(magnitude & word(carrier.infinity), hidden)
    base = exponent_bits - hidden
    significand = magnitude - base
    # As a float the significand is normal, and says where its top bit is, a cheaper count of leading zeros.
    integer = significand.astype(np.dtype(f"int{carrier.width}")).astype(carrier.dtype)
    several = (to_bits(integer, carrier) >> word(t)).astype(jnp.int32) - (carrier.bias + fmt.precision - 1)
    lowest = power + (fmt.emin - fmt.precision + 1 + carrier.bias + t)  # the exponent of the last place, biased
    shift = jnp.maximum(several, lowest - (exponent_bits >> word(t)).astype(jnp.int32))
    return Place(significand, base, word(jnp.maximum(shift, 0)))


def keep(place: Place, increment: Array, carrier: Carrier) -> tuple[Array, Array]:
    """Add an increment to the significand and drop the bits below the grid.

    Returns:
        The kept significand (zero where the magnitude became zero) and the magnitude bits, valid where it is nonzero.
    """
    kept = (place.significand + increment) & ~place.tail(carrier)
    return (kept, kept) if place.base is None else (kept, kept + place.base)


def spacing_exponent(magnitude: Array, fmt: Format, carrier: Carrier) -> Array:
    """log2 of the spacing of the format in the binade of a magnitude, as int32."""
    shift = locate(magnitude, fmt, carrier).shift.astype(jnp.int32)
    # The shift counts from the last bit of the carrier, whose weight is that of the binade (subnormals share the first).
    binade = jnp.maximum(magnitude >> carrier.word(carrier.fraction_bits), carrier.word(1)).astype(jnp.int32)
    return binade - (carrier.bias + carrier.fraction_bits) + shift


def entered(x: Any, fmt: Format, where: str) -> tuple[Array | np.ndarray, Carrier]:
    """Values of a carrier that holds the format; or, of NumPy, the float64 that a function has to look at `in_float64`."""
    wide = unheld(x)
    array, carrier = as_carrier(x, where) if wide is None else (wide, FLOAT32_CARRIER)
    if is_concrete(fmt):
        require_fits(fmt, carrier, where)
    return array, carrier


def finite_values(fmt: Format) -> np.ndarray:
    """Every finite value of a format, ascending, in float64; zero appears once.

    Args:
        fmt: a concrete format of at most 2^20 values.

    Raises:
        ValueError: if the format has more values than that.

    Example:
        >>> from precisionlab import FLOAT4_E2M1FN
        >>> finite_values(FLOAT4_E2M1FN)[7:].tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    check_format(fmt)
    p, emin = int(fmt.precision), int(fmt.emin)
    top = math.frexp(fmt.largest)[1] - 1
    count = (max(top, emin - 1) - emin + 2) << (p - 1)
    if count > 1 << 19:
        raise ValueError(
            f"finite_values: {describe_numbers(fmt)} has about {2 * count:,} values; at most {1 << 20:,} can be listed; "
            f"sample it instead."
        )
    significands = np.arange(1 << (p - 1), 1 << p, dtype=np.float64)
    normal = [np.ldexp(significands, e - p + 1) for e in range(emin, top + 1)]
    below = np.ldexp(np.arange(1, 1 << (p - 1), dtype=np.float64), emin - p + 1) if fmt.subnormals else np.empty(0)
    positive = np.concatenate([below, *normal])
    positive = positive[positive <= fmt.largest]
    return positive if fmt.zeros == 0 else np.concatenate([-positive[::-1], np.zeros(1), positive])


def ulp(x: Float[Array, "..."] | float, fmt: Format) -> Float[Array, "..."]:
    """The spacing of the format's values in the binade of x.

    This is 2^(max(e, emin) - p + 1) for |x| in [2^e, 2^(e+1)); in a format without subnormals the spacing below 2^emin is
    2^emin. The format's largest value sets no bound here.

    Args:
        x: any shape, float32 or float64 (a Python number counts as float32). What float32 does not hold, of NumPy or Python,
            is looked at as the float64 it is, outside of 64-bit JAX too; the answer then is float32.
        fmt: the format, which must fit the dtype of x.

    Returns:
        The spacing in the units of x, same shape and dtype; NaN where x is not finite.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> float(ulp(1.0, BFLOAT16)), float(ulp(-300.0, BFLOAT16))
        (0.0078125, 2.0)
    """
    array, carrier = entered(x, fmt, "ulp")
    if isinstance(array, np.ndarray):
        return in_float64(lambda: ulp(jnp.asarray(array), fmt))
    magnitude = to_bits(array, carrier) & carrier.word(carrier.sign - 1)
    spacing = power_of_two(spacing_exponent(magnitude, fmt, carrier), carrier)
    return jnp.where(
        magnitude >= carrier.word(carrier.infinity), jnp.asarray(jnp.nan, array.dtype), from_bits(spacing, carrier)
    )


def neighbors(x: Float[Array, "..."] | float, fmt: Format) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The nearest values of the format strictly below and strictly above x.

    Args:
        x: any shape, float32 or float64 (a Python number counts as float32), of NumPy and Python as for `ulp`; need not be a
            value of the format.
        fmt: the format, which must fit the dtype of x.

    Returns:
        `(below, above)`, same shape and dtype as x. Where there is no finite value on that side the answer is -inf or inf
        (NaN on the lower side of a format without negative values); NaN where x is NaN.

    Example:
        >>> from precisionlab import FLOAT8_E4M3FN
        >>> below, above = neighbors(1.0, FLOAT8_E4M3FN)
        >>> float(below), float(above)
        (0.9375, 1.125)
    """
    array, carrier = entered(x, fmt, "neighbors")
    if isinstance(array, np.ndarray):
        return in_float64(lambda: neighbors(jnp.asarray(array), fmt))
    bits, word = to_bits(array, carrier), carrier.word
    magnitude = bits & word(carrier.sign - 1)
    negative = bits != magnitude
    infinity, smallest, largest = word(carrier.infinity), smallest_positive(fmt, carrier), largest_bits(fmt, carrier)

    def truncated(of: Array) -> Array:
        """The largest value of the format at or below a magnitude."""
        kept, result = keep(locate(of, fmt, carrier), word(0), carrier)
        return jnp.minimum(jnp.where(kept == 0, word(0), result), largest)

    place = locate(magnitude, fmt, carrier)
    kept, at_or_below = keep(place, word(0), carrier)
    unit = word(1) << place.shift
    outward = jnp.where(kept == 0, smallest, at_or_below + unit)
    outward = jnp.where(outward > largest, infinity, outward)
    inward = truncated(jnp.maximum(magnitude, word(1)) - word(1))
    at_zero = magnitude == 0
    # Towards zero from below: -0 where the format has one.
    signed = (inward > 0) | (jnp.asarray(fmt.zeros) == 2)
    above = jnp.where(negative & ~at_zero, inward | jnp.where(signed, word(carrier.sign), word(0)), outward)
    below = jnp.where(negative | at_zero, outward | word(carrier.sign), inward)
    nan = magnitude > infinity
    bare = jnp.asarray(fmt.zeros) == 0
    low = jnp.asarray(jnp.nan, array.dtype)
    below_value = jnp.where(bare & (negative | (magnitude <= smallest)), low, from_bits(below, carrier))
    above_value = from_bits(jnp.where(bare & (negative | at_zero), smallest, above), carrier)
    return jnp.where(nan, array, below_value), jnp.where(nan, array, above_value)
