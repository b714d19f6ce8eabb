"""What rounding does to the bits of a carrier, in as few operations as a format and a mode allow.

Any mode in any format adds an increment to a significand and drops the bits below the grid (`round_carrier`). Nearest even is
what most roundings are, and takes less; what is known of a format when a program is compiled takes less again:

    float32 but for its precision, as bfloat16    `lax.reduce_precision`, the integer operations as a single one
    other known formats                           that above 2^emin; below it, where the spacing is constant, an exact scaling
                                                  and `lax.round`; what is beyond the largest value is decided on bits
    traced formats                                `_nearest_even_by_words`

With the exponents of its own carrier `lax.reduce_precision` has nothing to flush and nothing to overflow to.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.numerics.carriers import Carrier, choose, from_bits, to_bits
from precisionlab.numerics.formats import Format
from precisionlab.numerics.grids import locate
from precisionlab.numerics.modes import Mode, nearest_away, nearest_even
from precisionlab.numerics.placing import round_place
from precisionlab.numerics.words import FormatWords, is_number, words_of

__all__ = ["round_carrier"]


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
        kept, result = round_place(place, magnitude, negative, words.smallest, mode, random, carrier, more)

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
    capped = jnp.minimum(jnp.maximum(magnitude, hidden), words.top)
    shift = (words.level - capped) >> word(carrier.fraction_bits)
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
