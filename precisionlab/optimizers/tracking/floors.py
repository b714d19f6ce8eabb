"""The floor of a compensation in a format: what is below it is lost even where remainders are kept."""

import jax.numpy as jnp

from precisionlab._typing import Array, Bool
from precisionlab.numerics.carriers import CARRIERS, power_of_two, to_bits
from precisionlab.numerics.formats import Format
from precisionlab.numerics.words import is_number

__all__ = ["above_floor"]


def above_floor(w: Array, u: Array, fmt: Format) -> Bool[Array, "..."]:
    """Where equal updates would gather in a compensation stored in the format, and land in the end: see `kahan`.

    Args:
        w: values of the format, in a carrier.
        u: updates in the same carrier.
        fmt: the format.
    """
    carrier = CARRIERS[w.dtype.name]
    w_bits, u_bits = to_bits(w, carrier), to_bits(u, carrier)
    magnitude = carrier.word(carrier.sign - 1)
    size = w_bits & magnitude
    exponent = jnp.maximum((size >> carrier.word(carrier.fraction_bits)).astype(jnp.int32) - carrier.bias, fmt.emin)
    toward_zero = ((w_bits ^ u_bits) > magnitude) & (size != 0)
    power = (size & carrier.word((1 << carrier.fraction_bits) - 1)) == 0
    narrow = toward_zero & power & (exponent > fmt.emin)
    half = exponent - fmt.precision - narrow.astype(jnp.int32)
    least = jnp.asarray(fmt.emin - fmt.precision, jnp.int32)
    if not (is_number(fmt.subnormals) and fmt.subnormals):
        # From zero, and on the way to it, the gap is the smallest normal number.
        at_zero = (size == 0) | (toward_zero & power & (exponent == fmt.emin))
        gap = jnp.where(at_zero, fmt.emin - 1, half)
        half, least = jnp.where(fmt.subnormals, half, gap), jnp.where(fmt.subnormals, least, jnp.minimum(fmt.emin - 1, gap))
    floor = power_of_two(jnp.maximum(half - fmt.precision - 1, least), carrier)
    return (u_bits & magnitude) > floor
