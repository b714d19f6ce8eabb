"""What blocks mean once they are rounded: the scale of each, and its elements.

The functions here see blocks along an axis of their own (`cutting`). Elements are v / X, rounded, and mean X times that. Where
the scales X are powers of two and the carrier holds all numbers of the grid, nothing is divided: v is rounded to the grid of X
times the elements.
"""

import math

import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array
from precisionlab.numerics.block_formats import BlockFormat, powers_of_two
from precisionlab.numerics.carriers import Carrier, from_bits, to_bits, uncontracted
from precisionlab.numerics.cutting import largest_of_block
from precisionlab.numerics.formats import FLOAT32
from precisionlab.numerics.grids import Place, locate, locate_scaled
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import Mode, nearest_even, to_odd
from precisionlab.numerics.placing import round_place
from precisionlab.numerics.rounding import round_to
from precisionlab.numerics.scaling import normalized, over_common_power, significand_of, times_common_power, times_power
from precisionlab.numerics.words import is_number, largest_bits, smallest_positive

__all__ = ["round_parts", "scale_parts"]

_NARROW = -40
"""The exponent of the smallest product of a scale and an element from which on sums of exponents have room to spare."""


def round_parts(x: Array, random: Array | None, *, block_format: BlockFormat, axis: int, mode: Mode, carrier: Carrier) -> Array:
    """What blocks mean once their elements are rounded.

    Args:
        x: of the carrier, with an axis along which all entries share a scale.
        random: words of its shape, for stochastic modes.
        block_format: the block format; its elements saturate.
        axis: that axis.
        mode: how elements are rounded.
        carrier: of x.
    """
    if _scales_in_place(block_format, carrier):
        rounds = _round_powers
    else:
        rounds = _round_fractions if _is_narrow(block_format) else _round_general
    return rounds(x, random, block_format=block_format, axis=axis, mode=mode, carrier=carrier)


def _scales_in_place(block_format: BlockFormat, carrier: Carrier) -> bool:
    """Whether the elements' grid, times any scale, is known to be one of the carrier's own numbers."""
    element, scale = block_format.element, block_format.scale
    if not (powers_of_two(block_format) and all(map(is_number, element))):
        return False
    lowest = scale.emin + element.emin - element.precision + 1
    return bool(element.subnormals) and element.zeros == 2 and lowest >= carrier.emin - carrier.fraction_bits


def _round_powers(
    x: Array, random: Array | None, *, block_format: BlockFormat, axis: int, mode: Mode, carrier: Carrier
) -> Array:
    """Scales that are powers of two: arguments as of `round_parts`, for a block format that `_scales_in_place`."""
    bits, element = to_bits(x, carrier), block_format.element
    magnitude = bits & carrier.word(carrier.sign - 1)
    sign = bits ^ magnitude
    factor, exponent = scale_parts(magnitude, block_format, axis, carrier)
    top, smallest = (
        times_power(number, exponent, nearest_even, carrier)
        for number in (largest_bits(element, carrier), smallest_positive(element, carrier))
    )
    place = locate_scaled(magnitude, element, exponent, carrier)
    if random is None:
        kept, rounded = round_place(place, magnitude, sign != 0, smallest, mode, None, carrier)
    else:  # of which as many bits are compared as v / X drops, which is a normal number where v is not
        left = lax.clz(place.significand) - carrier.word(carrier.width - 1 - carrier.fraction_bits)
        full = Place(place.significand << left, None, place.shift + left)
        kept, _ = round_place(full, magnitude, sign != 0, smallest, mode, random, carrier)
        below = full.shift > carrier.word(carrier.precision)
        rounded = jnp.where(below, smallest, magnitude - place.significand + (kept >> left))
    rounded = jnp.minimum(jnp.where(kept == 0, kept, rounded), top)
    return jnp.where(jnp.isnan(factor), factor, from_bits(rounded | sign, carrier))


def _is_narrow(block_format: BlockFormat) -> bool:
    """Whether elements and fractional scales are known, and too narrow for a carrier's subnormals to matter beside a block."""
    element, scale = block_format.element, block_format.scale
    if powers_of_two(block_format) or not all(map(is_number, element)):
        return False
    lowest = (fmt.emin - fmt.precision + 1 for fmt in (element, scale))
    return element.zeros == 2 and sum(lowest) >= _NARROW and max(element.largest, scale.largest) <= 2.0**16


def _round_fractions(
    x: Array, random: Array | None, *, block_format: BlockFormat, axis: int, mode: Mode, carrier: Carrier
) -> Array:
    """Blocks with fractional scales: arguments as of `round_parts`, for a block format that `_is_narrow`."""
    bits = to_bits(x, carrier)
    magnitude = bits & carrier.word(carrier.sign - 1)
    factor, exponent = scale_parts(magnitude, block_format, axis, carrier)
    exponent = jnp.max(exponent)  # one, of the tensor
    quotient = from_bits(over_common_power(magnitude, exponent, carrier), carrier)
    divided = to_bits(_over_factor(quotient, factor), carrier)
    # Of what became zero on the way the directed modes still need to know that it was not.
    divided = jnp.maximum(divided, jnp.minimum(magnitude, carrier.word(1)))
    sign = bits ^ magnitude
    element = to_bits(round_carrier(from_bits(divided | sign, carrier), block_format.element, mode, random, carrier), carrier)
    magnitude = element & carrier.word(carrier.sign - 1)
    product = to_bits(from_bits(magnitude, carrier) * factor, carrier)
    values = from_bits(times_common_power(product, exponent, carrier) | (element ^ magnitude), carrier)
    return jnp.where(jnp.isnan(factor), factor, values)


def _over_factor(x: Array, factor: Array) -> Array:
    """X over the factor of its block, correctly rounded; a factor of zero does not divide."""
    # It is stored for a block that is negligible in its tensor; its elements, whatever they are, mean zero.
    divisor = jnp.where(factor == 0, jnp.ones_like(factor), factor)
    # Compilers multiply by the inexact reciprocal of a divisor that many entries share: this one is each entry's own.
    return x / jnp.where(x == x, divisor, jnp.asarray(jnp.nan, x.dtype))


def _round_general(
    x: Array, random: Array | None, *, block_format: BlockFormat, axis: int, mode: Mode, carrier: Carrier
) -> Array:
    """Any block format, traced elements too: arguments as of `round_parts`."""
    bits = to_bits(x, carrier)
    magnitude = bits & carrier.word(carrier.sign - 1)
    factor, exponent = scale_parts(magnitude, block_format, axis, carrier)
    quotient = times_power(magnitude, -exponent, to_odd, carrier)
    if not powers_of_two(block_format):
        divided = _over_factor(from_bits(quotient, carrier), factor)
        # Of what the division flushed to zero the directed modes still need to know that it was not zero.
        quotient = jnp.maximum(to_bits(divided, carrier), jnp.minimum(quotient, carrier.word(1)))
    element = round_carrier(from_bits(quotient | (bits ^ magnitude), carrier), block_format.element, mode, random, carrier)
    rounded = to_bits(element, carrier)
    magnitude = rounded & carrier.word(carrier.sign - 1)
    sign = rounded ^ magnitude
    if not powers_of_two(block_format):
        magnitude = to_bits(from_bits(magnitude, carrier) * factor, carrier)
    values = from_bits(times_power(magnitude, exponent, nearest_even, carrier) | sign, carrier)
    return jnp.where(jnp.isnan(factor), factor, values)


def scale_parts(magnitude: Array, block_format: BlockFormat, axis: int, carrier: Carrier) -> tuple[Array, Array]:
    """The scale of each block as factor * 2^exponent: a factor that no arithmetic flushes (1 in MX, or NaN), and an int32.

    Args:
        magnitude: bits without signs; the blocks are along an axis.
        block_format: the block format.
        axis: that axis, of length one in what is returned.
        carrier: of the bits.
    """
    largest = largest_of_block(magnitude, axis)
    return (_power_scales if powers_of_two(block_format) else _fraction_scales)(largest, block_format, carrier)


def _power_scales(largest: Array, block_format: BlockFormat, carrier: Carrier) -> tuple[Array, Array]:
    """Powers of two, from the largest magnitude bits of each block."""
    scale, infinity = block_format.scale, carrier.word(carrier.infinity)
    limit = largest_bits(block_format.element, carrier)
    (significand, exponent), (top_significand, top_exponent) = normalized(largest, carrier), normalized(limit, carrier)
    step = carrier.word(1) << locate(limit, block_format.element, carrier).shift
    exponent = exponent - top_exponent + block_format.law(significand, top_significand, step).astype(jnp.int32)
    top = math.frexp(scale.largest)[1] - 1
    stored = largest < infinity
    if scale.overflow != scale.largest:
        stored &= exponent <= top
    one, nan = jnp.asarray(1, carrier.dtype), jnp.asarray(jnp.nan, carrier.dtype)
    return jnp.where(stored, one, nan), jnp.clip(exponent, int(scale.emin), top)


def _fraction_scales(largest: Array, block_format: BlockFormat, carrier: Carrier) -> tuple[Array, Array]:
    """The law of NVFP4, from the largest magnitude bits of each block."""
    nan, infinity = jnp.asarray(jnp.nan, carrier.dtype), carrier.word(carrier.infinity)
    element = from_bits(largest_bits(block_format.element, carrier), carrier)
    finite = largest < infinity
    significand, exponent = significand_of(largest, carrier)
    # A divisor that may be NaN is no constant: compilers multiply by the inexact reciprocal of a constant. Nor do they merge
    # two divisions with a select on NaN between them.
    quotient = uncontracted(significand / jnp.where(finite, element, nan))
    if block_format.tensor_scale:
        whole = jnp.max(largest, initial=0)
        tensor_significand, tensor_exponent = significand_of(whole, carrier)
        span = jnp.where(whole < infinity, element * jnp.asarray(block_format.scale.largest, carrier.dtype), nan)
        tensor = uncontracted(round_to(tensor_significand / span, FLOAT32))
        tensor = jnp.where(whole == 0, jnp.ones_like(tensor), tensor)
    else:
        tensor, tensor_exponent = jnp.ones((), carrier.dtype), jnp.int32(0)
    relative = times_power(to_bits(quotient / tensor, carrier), exponent - tensor_exponent, to_odd, carrier)
    scale = round_to(from_bits(relative, carrier), block_format.scale)
    factor = jnp.where(finite & jnp.isfinite(scale), scale * tensor, nan)
    return factor, jnp.broadcast_to(tensor_exponent, factor.shape)
