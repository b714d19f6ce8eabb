"""Rounding to any format, by integer operations on the bits of a wide carrier.

Integers, because a cast is not a rounding: compilers elide a float32 -> bfloat16 -> float32 pair, contract products into
sums, fold (x + C) - C to x, and flush subnormals. There is nothing in an integer sum that they may take away.

One float operation earns its place by speed: below 2^emin of a format known at compile time, where the spacing is constant,
nearest_even is an exact scaling and `lax.round`. What to do with the result is again decided on bits.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.numerics.carriers import CARRIERS, Carrier, computed_once, from_bits, to_bits
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.derivatives import constant, straight_through
from precisionlab.numerics.formats import Format, is_concrete, name_of
from precisionlab.numerics.grids import entered, is_number, largest_bits, locate, magnitude_bits, smallest_positive
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, mode_name, nearest_away, nearest_even
from precisionlab.numerics.placing import round_place
from precisionlab.numerics.randomness import check_key, counter_hash, hash_positions
from precisionlab.numerics.wide import in_float64

__all__ = ["joined_format", "round_carrier", "round_result", "round_to", "split_format", "stored"]


def round_to(
    x: Float[Array, "..."] | float,
    fmt: Format,
    mode: Mode = nearest_even,
    *,
    key: PRNGKeyArray | None = None,
    backward: Format | None = None,
) -> Float[Array, "..."]:
    """Round every entry of x to a value of a format.

    Beyond `fmt.largest` the nearest and stochastic modes give the format's overflow value with the sign of x, `upward` does so
    for positive x alone, `downward` for negative x alone, and `toward_zero` and `to_odd` stop at the largest value. Infinities
    become the overflow value in every mode; NaN stays NaN. Works under jit, vmap, scan and differentiation: the derivative is
    one everywhere (straight-through).

    Args:
        x: any shape, float32 or float64 (a Python number counts as float32). What float32 does not hold, of NumPy or Python,
            is rounded once from the float64 it is, outside of 64-bit JAX too; the result then is float32.
        fmt: the format. Python numbers are compiled in; traced or stacked ones are arguments of one compiled program.
        mode: a rounding mode such as `nearest_even`, `upward`, `stochastic`.
        key: a JAX random key, needed by stochastic modes and ignored by the others.
        backward: a format for the cotangent, rounded to nearest even on its way back; None leaves it alone. With it only
            reverse-mode differentiation is possible.

    Returns:
        The rounded values, same shape and dtype as x.

    Raises:
        TypeError: if x is not float32 or float64, if fmt is not a Format, or mode not a function.
        ValueError: if the format does not fit the dtype of x, or a stochastic mode has no key.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT8_E4M3FN, upward
        >>> float(round_to(0.1, BFLOAT16)), float(round_to(0.1, BFLOAT16, upward))
        (0.10009765625, 0.10009765625)
        >>> float(round_to(1 + 2**-8 + 2**-40, BFLOAT16))      # in float32 it would be a tie
        1.0078125
        >>> round_to(jnp.array([500.0, -1e-3, 0.3]), FLOAT8_E4M3FN).tolist()
        [nan, -0.001953125, 0.3125]
    """
    for given, name in ((fmt, "fmt"), (backward, "backward")):
        if not (isinstance(given, Format) or (given is None and name == "backward")):
            raise TypeError(f"round_to: {name} must be a Format such as precisionlab.BFLOAT16; got {given!r}.")
    array, carrier = entered(x, fmt, "round_to")
    if backward is not None and is_concrete(backward):
        require_fits(backward, carrier, "round_to")
    check_mode(mode, "round_to")
    if isinstance(mode, Stochastic) and key is None:
        raise ValueError(
            f"round_to: {mode_name(mode)} rounding to {name_of(fmt) if is_concrete(fmt) else 'a traced format'} needs "
            f"random bits; pass key=jax.random.key(seed)."
        )
    if isinstance(array, np.ndarray):
        return in_float64(lambda: round_to(jnp.asarray(array), fmt, mode, key=key))  # a constant, which has no cotangent
    random = mode.generator(check_key(key, "round_to"), array.shape, carrier.uint) if isinstance(mode, Stochastic) else None
    if backward is not None:
        array = _rounded_cotangent(array, backward)
    fixed, traced = split_format(fmt)
    return straight_through(array, _round(constant(array), random, traced, fixed=fixed, mode=mode))


def round_result(x: Array, fmt: Format, mode: Mode, words: Array | None) -> Array:
    """What `round_to` computes, for one of many operations: unchecked, and stored rather than computed anew for each use.

    Args:
        x: float32 or float64.
        fmt: a format that fits.
        mode: a rounding mode.
        words: for stochastic modes, the two words of a row of `randomness.key_rows`.
    """
    fixed, traced = split_format(fmt)
    return straight_through(x, _round_stored(constant(x), words, traced, fixed=fixed, mode=mode))


def stored(x: Array) -> Array:
    """X unrounded, but stored as results of `round_result` are."""
    return straight_through(x, _computed_once(constant(x)))


def split_format(fmt: Format) -> tuple[Format, Format]:
    """The numbers that are known, and those that are traced."""
    fixed = Format(*(field if is_number(field) else None for field in fmt))
    return fixed, Format(*(None if is_number(field) else field for field in fmt))


def joined_format(traced: Format, fixed: Format) -> Format:
    """The format whose numbers `split_format` parted."""
    return Format(*(field if number is None else number for field, number in zip(traced, fixed, strict=True)))


@partial(jax.jit, static_argnames=("fixed", "mode"))
def _round(x: Array, random: Array | None, traced: Format, *, fixed: Format, mode: Mode) -> Array:
    return round_carrier(x, joined_format(traced, fixed), mode, random, CARRIERS[x.dtype.name])


@partial(jax.jit, static_argnames=("fixed", "mode"))
def _round_stored(x: Array, words: Array | None, traced: Format, *, fixed: Format, mode: Mode) -> Array:
    # Not inlined: hundreds of equal roundings are traced and lowered once.
    random, carrier = None, CARRIERS[x.dtype.name]
    if isinstance(mode, Stochastic) and words is not None:
        hashed = mode.generator is counter_hash
        random = hash_positions(words, x.shape, carrier.uint) if hashed else mode.generator(words, x.shape, carrier.uint)
    return computed_once(round_carrier(x, joined_format(traced, fixed), mode, random, carrier))


_computed_once = jax.jit(computed_once)


def round_carrier(
    x: Array,
    fmt: Format,
    mode: Mode,
    random: Array | None,
    carrier: Carrier,
    more: tuple[Array, Array] | None = None,
) -> Array:
    """The law itself, unchecked and without a derivative: what `round_to` computes once its arguments are right.

    With two `more` random words a stochastic mode is exact also where more is dropped than one word has places for.
    """
    word = carrier.word
    bits = to_bits(x, carrier)
    magnitude = bits & word(carrier.sign - 1)
    sign = bits ^ magnitude
    negative = sign != 0
    infinity, largest = word(carrier.infinity), largest_bits(fmt, carrier)
    overflow = magnitude_bits(fmt.overflow, carrier)

    def increment_of(tail: Array, odd: Array, random: Array | None) -> Array:
        return mode(tail, odd, negative) if random is None else mode(tail, odd, negative, random)

    if mode is nearest_even and _scales_exactly(fmt, carrier):
        result = _nearest_even_by_scaling(magnitude, fmt, carrier)
        kept = result
    else:
        place = locate(magnitude, fmt, carrier)
        kept, result = round_place(place, magnitude, negative, smallest_positive(fmt, carrier), mode, random, carrier, more)

    carries = random is not None or mode in (nearest_even, nearest_away)
    if carries and is_number(fmt.overflow) and math.isnan(fmt.overflow):
        result = jnp.where(result > largest, overflow, result)  # which takes in infinities and NaN
    elif carries and _carries_to_infinity(fmt, carrier):
        result = jnp.where(magnitude > infinity, magnitude, result)
    else:
        # A finite value beyond the largest overflows if the mode would carry out of an odd value with every dropped bit set.
        everything = None if random is None else ~word(0)
        overflows = increment_of(word(3), word(1), everything) > 0
        beyond = jnp.where(overflows | (magnitude == infinity), overflow, largest)
        result = jnp.where(result > largest, jnp.where(magnitude > infinity, magnitude, beyond), result)

    if is_number(fmt.zeros) and fmt.zeros == 2:
        # On a uniform grid a zero significand is a zero magnitude already; elsewhere it still holds the base.
        return from_bits((result if kept is result else jnp.where(kept == 0, word(0), result)) | sign, carrier)
    zero = sign & jnp.where(jnp.asarray(fmt.zeros) == 2, ~word(0), word(0))
    rounded = jnp.where(kept == 0, zero, result | sign)
    if not (is_number(fmt.zeros) and fmt.zeros != 0):
        bare, smallest = jnp.asarray(fmt.zeros) == 0, smallest_positive(fmt, carrier)
        nan = to_bits(jnp.asarray(jnp.nan, carrier.dtype), carrier)
        positive = jnp.where(kept == 0, smallest, rounded)
        rounded = jnp.where(bare, jnp.where(negative | (magnitude == 0), nan, positive), rounded)
    return from_bits(rounded, carrier)


def _carries_to_infinity(fmt: Format, carrier: Carrier) -> bool:
    """Whether one unit above the format's largest value is known to be the carrier's own infinity, which the sum then gives."""
    if not all(map(is_number, fmt)) or fmt.overflow != math.inf:
        return False
    return float(fmt.largest) == math.ldexp(2.0 - math.ldexp(1.0, 1 - fmt.precision), carrier.bias)


def _scales_exactly(fmt: Format, carrier: Carrier) -> bool:
    """Whether below 2^emin the format's values are known to be integer multiples of a normal number of the carrier."""
    return (
        all(map(is_number, fmt))
        and bool(fmt.subnormals)
        and fmt.zeros != 0
        and 2 <= fmt.precision < carrier.precision
        and carrier.emin < fmt.emin - fmt.precision + 1 < -carrier.emin
    )


def _nearest_even_by_scaling(magnitude: Array, fmt: Format, carrier: Carrier) -> Array:
    """Round magnitudes to nearest even with a constant shift above 2^emin and a rounding to an integer below it.

    Below 2^emin the spacing is constant. In units of it, and the multiplication by a power of two is exact, rounding is
    `lax.round`: an operation of its own, with nothing to fold or contract, on operands that flushing cannot hurt because the
    spacing is a normal number. It takes half of the instructions that shifting by a variable amount takes.
    """
    word, spacing = carrier.word, fmt.emin - fmt.precision + 1
    shift = word(carrier.precision - fmt.precision)
    tail = (word(1) << shift) - word(1)
    above = (magnitude + nearest_even(tail, (magnitude >> shift) & word(1), False)) & ~tail
    to_units, to_values = carrier.dtype(2.0**-spacing), carrier.dtype(2.0**spacing)
    units = lax.round(from_bits(magnitude, carrier) * to_units, lax.RoundingMethod.TO_NEAREST_EVEN)
    return jnp.where(
        magnitude < word((fmt.emin + carrier.bias) << carrier.fraction_bits), to_bits(units * to_values, carrier), above
    )


@jax.custom_vjp
def _rounded_cotangent(x: Array, fmt: Format) -> Array:
    """The identity, whose cotangent is rounded to a format."""
    del fmt
    return x


def _rounded_cotangent_forward(x: Array, fmt: Format) -> tuple[Array, Format]:
    return x, fmt


def _rounded_cotangent_backward(fmt: Format, cotangent: Array) -> tuple[Array, None]:
    return round_to(cotangent, fmt), None


_rounded_cotangent.defvjp(_rounded_cotangent_forward, _rounded_cotangent_backward)
