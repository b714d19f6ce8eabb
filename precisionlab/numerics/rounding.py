"""Rounding to any format, by integer operations on the bits of a wide carrier.

Integers, because a cast is not a rounding: compilers elide a float32 -> bfloat16 -> float32 pair, contract products into
sums, fold (x + C) - C to x, and flush subnormals. There is nothing in an integer sum that they may take away.

One float operation earns its place by speed: below 2^emin of a format known at compile time, where the spacing is constant,
nearest_even is an exact scaling and `lax.round`. What to do with the result is again decided on bits.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.numerics.carriers import CARRIERS, Carrier, choose, computed_once, from_bits, to_bits
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.derivatives import constant, straight_through
from precisionlab.numerics.formats import Format, is_concrete, name_of
from precisionlab.numerics.grids import entered, keep, locate
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, mode_name, nearest_away, nearest_even
from precisionlab.numerics.randomness import check_key, counter_hash, hash_positions
from precisionlab.numerics.wide import in_float64
from precisionlab.numerics.words import FormatWords, is_number, words_of

__all__ = [
    "happens",
    "joined_format",
    "round_carrier",
    "round_result",
    "round_to",
    "scaled",
    "shared_words",
    "split_format",
    "stored",
]


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


def round_result(x: Array, fmt: Format, mode: Mode, random: Array | None, traced: FormatWords | None = None) -> Array:
    """What `round_to` computes, for one of many operations: unchecked, and stored rather than computed anew for each use.

    Args:
        x: float32 or float64.
        fmt: a format that fits.
        mode: a rounding mode.
        random: for stochastic modes, the two words of a row of `randomness.key_rows`.
        traced: of a format that is not concrete, the `shared_words`, if they are there.
    """
    fixed, _ = split_format(fmt)
    if traced is None and not is_concrete(fmt):
        traced = shared_words(fmt, CARRIERS[x.dtype.name])
    return straight_through(x, _round_stored(constant(x), random, traced, fixed=fixed, mode=mode))


def shared_words(fmt: Format, carrier: Carrier) -> FormatWords:
    """Those words of a format that are traced, made once for all of its roundings."""
    fixed, traced = split_format(fmt)
    return _shared_words(traced, fixed=fixed, carrier=carrier)


@partial(jax.jit, static_argnames=("fixed", "carrier"))
def _shared_words(traced: Format, *, fixed: Format, carrier: Carrier) -> FormatWords:
    every, known = words_of(joined_format(traced, fixed), carrier), words_of(fixed, carrier)
    return FormatWords(
        *(computed_once(one) if other is None and one is not None else None for one, other in zip(every, known, strict=True))
    )


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
def _round_stored(x: Array, words: Array | None, traced: FormatWords | None, *, fixed: Format, mode: Mode) -> Array:
    # Not inlined: hundreds of equal roundings are traced and lowered once.
    random, carrier = None, CARRIERS[x.dtype.name]
    if isinstance(mode, Stochastic) and words is not None:
        hashed = mode.generator is counter_hash
        random = hash_positions(words, x.shape, carrier.uint) if hashed else mode.generator(words, x.shape, carrier.uint)
    numbers = words_of(fixed, carrier)
    if traced is not None:
        numbers = FormatWords(*(one if other is None else other for one, other in zip(numbers, traced, strict=True)))
    return computed_once(round_carrier(x, fixed, mode, random, carrier, words=numbers))


_computed_once = jax.jit(computed_once)


def round_carrier(
    x: Array,
    fmt: Format,
    mode: Mode,
    random: Array | None,
    carrier: Carrier,
    more: tuple[Array, Array] | None = None,
    words: FormatWords | None = None,
) -> Array:
    """The law itself, unchecked and without a derivative: what `round_to` computes once its arguments are right.

    With two `more` random words a stochastic mode is exact also where more is dropped than one word has places for.
    """
    if mode is nearest_even and _is_short_carrier(fmt, carrier):
        # The same integer operations as below, as a single one that compilers have to leave alone.
        return lax.reduce_precision(x, carrier.width - 1 - carrier.fraction_bits, int(fmt.precision) - 1)
    word, words = carrier.word, words or words_of(fmt, carrier)
    bits = to_bits(x, carrier)
    magnitude = bits & word(carrier.sign - 1)
    sign = bits ^ magnitude
    negative = sign != 0
    infinity, has_signed_zero = word(carrier.infinity), is_number(fmt.zeros) and fmt.zeros == 2
    carries = random is not None or mode in (nearest_even, nearest_away)

    def increment_of(tail: Any, odd: Any, random: Any) -> Array:
        return mode(tail, odd, negative) if random is None else mode(tail, odd, negative, random)

    if mode is nearest_even and not all(map(is_number, fmt)):
        return _nearest_even_by_words(bits, magnitude, words, carrier)
    if mode is nearest_even and _scales_exactly(fmt, carrier):
        result = _nearest_even_by_scaling(magnitude, fmt, carrier)
        kept = result
    else:
        place = locate(magnitude, words, carrier)
        far_below = None
        if mode not in (nearest_even, nearest_away) and place.base is not None:
            # More than the whole significand is dropped: the result is zero or the smallest value, and a carry has no binade
            # to go to. The nearest modes never carry from there.
            far_below = place.shift > word(carrier.precision)
            shift = jnp.minimum(place.shift, word(carrier.width - 1))
            excess = place.shift - shift
            shifted = place.significand >> excess
            if more is not None:
                dropped = place.significand & ((word(1) << jnp.minimum(excess, word(carrier.width - 1))) - word(1))
                shifted = shifted + word(happens(dropped, excess, *more, carrier))
            if random is None:
                shifted = jnp.maximum(shifted, jnp.minimum(place.significand, word(1)))  # what was dropped is not zero
            place = place._replace(significand=shifted, shift=shift)
        odd = (place.significand >> place.shift) & word(1)
        kept, result = keep(place, increment_of(place.tail(carrier), odd, random), carrier)
        if far_below is not None:
            result = choose(far_below, words.smallest, result)

    if carries and is_number(fmt.overflow) and math.isnan(fmt.overflow):
        result = choose(result > words.largest, words.overflow, result)  # which takes in infinities and NaN
    elif carries and _carries_to_infinity(fmt, carrier):
        result = choose(magnitude > infinity, magnitude, result)
    else:
        beyond = words.overflow
        if not carries:
            # A finite value beyond the largest overflows if the mode would carry out of an odd value with all bits dropped.
            overflows = increment_of(word(3), word(1), None) > 0
            beyond = choose(overflows | (magnitude == infinity), beyond, words.largest)
        result = choose(result > words.largest, choose(magnitude > infinity, magnitude, beyond), result)

    if has_signed_zero:
        # On a uniform grid a zero significand is a zero magnitude already; elsewhere it still holds the base.
        return from_bits((result if kept is result else choose(kept == 0, word(0), result)) | sign, carrier)
    empty = kept == 0
    if is_number(fmt.zeros) and fmt.zeros == 1:
        return from_bits(choose(empty, word(0), result | sign), carrier)
    rounded = choose(empty, words.zero, result) | (sign & choose(empty, words.signs, word(-1)))
    return from_bits(choose(bits - word(1) > words.last, _nan(carrier), rounded), carrier)


def happens(significand: Array, excess: Array, high: Array, low: Array, carrier: Carrier) -> Array:
    """True with the probability significand * 2^-excess, which is below 1, to two words of random bits."""
    width = carrier.width
    first, second = (scaled(significand, excess, places, carrier) for places in (width, 2 * width))
    return (high < first) | ((high == first) & (low < second))


def scaled(significand: Array, excess: Array, places: int, carrier: Carrier) -> Array:
    """The last word of the whole part of significand * 2^(places - excess)."""
    word, last = carrier.word, carrier.word(carrier.width - 1)
    left = word(places) - jnp.minimum(excess, word(places))
    right = jnp.maximum(excess, word(places)) - word(places)
    shifted = (significand << jnp.minimum(left, last)) >> jnp.minimum(right, last)
    return jnp.where(left > last, word(0), jnp.where(right > last, word(0), shifted))


def _carries_to_infinity(fmt: Format, carrier: Carrier) -> bool:
    """Whether one unit above the format's largest value is known to be the carrier's own infinity, which the sum then gives."""
    if not all(map(is_number, fmt)) or fmt.overflow != math.inf:
        return False
    return float(fmt.largest) == math.ldexp(2.0 - math.ldexp(1.0, 1 - fmt.precision), carrier.bias)


def _is_short_carrier(fmt: Format, carrier: Carrier) -> bool:
    """Whether the format is known to be the carrier with fewer significand bits, as bfloat16 is float32."""
    return (
        _carries_to_infinity(fmt, carrier)
        and 2 <= fmt.precision < carrier.precision
        and fmt.emin == carrier.emin
        and bool(fmt.subnormals)
        and fmt.zeros == 2
    )


def _scales_exactly(fmt: Format, carrier: Carrier) -> bool:
    """Whether below 2^emin the format's values are known to be integer multiples of a normal number of the carrier."""
    return (
        all(map(is_number, fmt))
        and bool(fmt.subnormals)
        and fmt.zeros != 0
        and 2 <= fmt.precision < carrier.precision
        and carrier.emin < fmt.emin - fmt.precision + 1 < -carrier.emin
    )


def _nearest_even_by_words(bits: Array, magnitude: Array, words: FormatWords, carrier: Carrier) -> Array:
    """Round to nearest even in as few operations as a format takes of which nothing need be known.

    The bits of the magnitude are rounded in their place, carries into the exponent included. That is wrong only where more
    than a significand is dropped: what then does not vanish is the smallest value.
    """
    word = carrier.word
    hidden, one = word(1 << carrier.fraction_bits), word(1)
    shift = (words.level - lax.clamp(hidden, magnitude, words.top)) >> word(carrier.fraction_bits)
    tail = (one << shift) - one
    odd = ((magnitude | hidden) >> shift) & one
    result = (magnitude + ((tail + odd) >> one)) & ~tail
    result = jnp.maximum(result, words.smallest)
    beyond = choose(magnitude > word(carrier.infinity), magnitude, words.overflow)
    result = choose(result > words.largest, beyond, result)
    sign = bits ^ magnitude
    rounded = choose(magnitude <= words.vanishing, (sign & words.signs) | words.zero, result | sign)
    return from_bits(choose(bits - one > words.last, _nan(carrier), rounded), carrier)


def _nan(carrier: Carrier) -> Any:
    return carrier.word(int(np.asarray(np.nan, carrier.dtype).view(carrier.uint)))


def _nearest_even_by_scaling(magnitude: Array, fmt: Format, carrier: Carrier) -> Array:
    """Round magnitudes to nearest even with a constant shift above 2^emin and a rounding to an integer below it.

    Below 2^emin the spacing is constant. In units of it, and the multiplication by a power of two is exact, rounding is
    `lax.round`: an operation of its own, with nothing to fold or contract, on operands that flushing cannot hurt because the
    spacing is a normal number. It takes half of the instructions that shifting by a variable amount takes.
    """
    spacing, size = fmt.emin - fmt.precision + 1, from_bits(magnitude, carrier)
    above = lax.reduce_precision(size, carrier.width - 1 - carrier.fraction_bits, int(fmt.precision) - 1)
    units = lax.round(size * carrier.dtype(2.0**-spacing), lax.RoundingMethod.TO_NEAREST_EVEN)
    low = carrier.word((fmt.emin + carrier.bias) << carrier.fraction_bits)
    return to_bits(choose(magnitude < low, units * carrier.dtype(2.0**spacing), above), carrier)


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
