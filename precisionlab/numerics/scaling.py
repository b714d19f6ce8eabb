"""Numbers times powers of two, on bits: exact, whatever a backend's arithmetic does to subnormals.

A finite magnitude is a significand word and an exponent; multiplied by 2^k it keeps the word and moves the exponent, and only
among the subnormals are there bits to round.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.numerics.carriers import Carrier, from_bits, power_of_two, to_bits
from precisionlab.numerics.modes import Mode

__all__ = ["normalized", "over_common_power", "significand_of", "times_common_power", "times_power"]


def normalized(magnitude: Array, carrier: Carrier) -> tuple[Array, Array]:
    """Finite magnitude bits as a significand word, its hidden bit set unless it is zero, and floor(log2) of the value."""
    t, hidden = carrier.fraction_bits, carrier.word(1 << carrier.fraction_bits)
    subnormal = magnitude < hidden
    # A subnormal is an integer in units of the smallest one; as a float that integer is normal, and says where its top bit is.
    integer = magnitude.astype(np.dtype(f"int{carrier.width}")).astype(carrier.dtype)
    normal = jnp.where(subnormal, to_bits(integer, carrier), magnitude)
    unit = jnp.where(subnormal, jnp.int32(carrier.emin - t), jnp.int32(0))
    exponent = (normal >> carrier.word(t)).astype(jnp.int32) - carrier.bias + unit
    significand = (normal & (hidden - carrier.word(1))) | hidden
    return jnp.where(magnitude == 0, carrier.word(0), significand), exponent


def significand_of(magnitude: Array, carrier: Carrier) -> tuple[Array, Array]:
    """Finite magnitude bits as a float in [1, 2), or zero, and the exponent."""
    significand, exponent = normalized(magnitude, carrier)
    return significand.astype(carrier.dtype) * carrier.dtype(2.0**-carrier.fraction_bits), exponent


def times_power(magnitude: Array, exponent: Array, mode: Mode, carrier: Carrier) -> Array:
    """Finite magnitude bits times 2^exponent: exact, rounded by a mode among the subnormals, at most the largest finite."""
    t, word = carrier.fraction_bits, carrier.word
    significand, own = normalized(magnitude, carrier)
    biased = own + exponent + carrier.bias
    shift = word(jnp.clip(1 - biased, 0, t + 2))  # beyond t + 2 only whether it was zero is left to know
    tail = (word(1) << shift) - word(1)
    kept = (significand + mode(tail, (significand >> shift) & word(1), False)) >> shift
    result = kept + (word(jnp.maximum(biased, 1) - 1) << word(t))
    result = jnp.where(biased > 2 * carrier.bias, word(carrier.infinity - 1), result)
    return jnp.where(significand == 0, word(0), result)


def over_common_power(magnitude: Array, exponent: Array, carrier: Carrier) -> Array:
    """Finite magnitude bits over one power of two, 2^exponent, for what is then below 2: exact where it is a normal number.

    What is not becomes zero, or where it was subnormal before as well, something below 2^-100.
    """
    t, hidden = carrier.fraction_bits, carrier.word(1 << carrier.fraction_bits)
    signed = np.dtype(f"int{carrier.width}")
    unit = from_bits(power_of_two(jnp.maximum(carrier.emin - t - exponent, carrier.emin), carrier), carrier)
    subnormal = to_bits(magnitude.astype(signed).astype(carrier.dtype) * unit, carrier)
    moved = (magnitude - (exponent.astype(signed).astype(carrier.uint) << carrier.word(t))).astype(signed)
    normal = jnp.where(moved < signed.type(1 << t), carrier.word(0), moved.astype(carrier.uint))
    return jnp.where(magnitude < hidden, subnormal, normal)


def times_common_power(magnitude: Array, exponent: Array, carrier: Carrier) -> Array:
    """Bits of zeros and of normal magnitudes below 2^(bias - 1) times one power of two, rounded and ended as `times_power`."""
    t, word = carrier.fraction_bits, carrier.word
    signed = np.dtype(f"int{carrier.width}")
    units = from_bits(power_of_two(jnp.minimum(exponent + (t - carrier.emin), carrier.bias), carrier), carrier)
    rounded = lax.round(from_bits(magnitude, carrier) * units, lax.RoundingMethod.TO_NEAREST_EVEN)
    moved = magnitude + (exponent.astype(signed).astype(carrier.uint) << word(t))
    own = (magnitude >> word(t)).astype(jnp.int32)
    below = (own == 0) | (own + exponent < 1)
    return jnp.where(below, rounded.astype(signed).astype(carrier.uint), jnp.minimum(moved, word(carrier.infinity - 1)))
