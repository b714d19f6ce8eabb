"""The numbers of a format as words of a carrier, derived once for all that is rounded to it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from precisionlab.numerics.carriers import Carrier, power_of_two, to_bits
from precisionlab.numerics.formats import Format

__all__ = ["FormatWords", "is_number", "largest_bits", "magnitude_bits", "smallest_positive", "words_of"]


class FormatWords(NamedTuple):
    """The numbers of a format as words of a carrier: all that a rounding asks of it.

    Those of what is known before tracing are NumPy's, so that they are constants of whatever is compiled. The others are
    scalars that all roundings of a program can share.

    Attributes:
        drop: the bits that the format lacks in each binade from 2^emin up.
        low: the magnitude bits below which the spacing is constant, those of 2^emin; None if the format is known to have the
            carrier's own exponents.
        below: how many bits are dropped there, plus the exponent, at the place of the exponent.
        largest: the magnitude bits of the largest value.
        overflow: those of what is beyond.
        smallest: those of the smallest positive value.
        zero: those of what rounds to zero: the smallest positive value where there is no zero.
        signs: the sign bits that a zero may have.
        last: the last of the bits, less one, that are no NaN: those of positive numbers where there is neither zero nor sign.
        top: to nearest, where the spacing stops to be constant; from there up magnitudes are taken for it.
        level: to nearest, what is above a magnitude, at the place of the exponent, is how many of its bits are dropped.
        vanishing: the largest magnitude bits that nearest even rounds to zero.
    """

    drop: Any
    low: Any
    below: Any
    largest: Any
    overflow: Any
    smallest: Any
    zero: Any
    signs: Any
    last: Any
    top: Any
    level: Any
    vanishing: Any


def words_of(fmt: Format, carrier: Carrier) -> FormatWords:
    """The words of a format; None for those that depend on numbers which are None."""
    t, word = carrier.fraction_bits, carrier.word
    p, emin, largest, overflow, subnormals, zeros = fmt

    def made(function: Callable[..., Any], *numbers: Any) -> Any:
        return None if any(number is None for number in numbers) else function(*numbers)

    def dropped(p: Any) -> Any:
        return t + 1 - _integer(p)

    def is_bare(emin: Any, zeros: Any) -> Any:  # e8m0, whose smallest power of two is a subnormal of float32
        return (_integer(zeros) == 0) & (_integer(emin) == carrier.emin - 1)

    def low(emin: Any, zeros: Any) -> Any:
        return word(_where(is_bare(emin, zeros), 1, _integer(emin) + carrier.bias)) << word(t)

    def below(p: Any, emin: Any, subnormals: Any, zeros: Any) -> Any:
        # Without subnormals the only values below 2^emin are 0 and 2^emin itself: a spacing of one whole binade.
        spread = _integer(emin) + carrier.bias + _where(subnormals, dropped(p), t)
        return word(_where(is_bare(emin, zeros), dropped(p), spread)) << word(t)

    def top(emin: Any, subnormals: Any) -> Any:
        return (word(_where(subnormals, _integer(emin) + carrier.bias + 1, 1)) << word(t)) - word(1)

    def level(p: Any, emin: Any, subnormals: Any) -> Any:
        return (word(_where(subnormals, _integer(emin) + carrier.bias, 0) + dropped(p)) << word(t)) + word((1 << t) - 1)

    def vanishing(p: Any, emin: Any, subnormals: Any, zeros: Any) -> Any:
        half = power_of_two(_where(subnormals, _integer(emin) - _integer(p), _integer(emin) - 1), carrier)
        # Without a zero nothing vanishes; but below the normals of the carrier two powers of two are in a binade.
        none = word(_where(is_bare(emin, zeros), (3 << (t - 2)) - 1, 0))
        return word(_where(_integer(zeros) == 0, none, half))

    smallest = made(lambda *numbers: smallest_positive(Format(*numbers), carrier), p, emin, 1, 1, subnormals)
    return FormatWords(
        drop=made(lambda p: word(dropped(p)), p),
        low=None if _is_uniform(fmt, carrier) else made(low, emin, zeros),
        below=None if _is_uniform(fmt, carrier) else made(below, p, emin, subnormals, zeros),
        largest=None if largest is None else largest_bits(fmt, carrier),
        overflow=None if overflow is None else magnitude_bits(overflow, carrier),
        smallest=smallest,
        zero=made(lambda smallest, zeros: word(_where(_integer(zeros) == 0, smallest, word(0))), smallest, zeros),
        signs=made(lambda zeros: word(_where(_integer(zeros) == 2, word(-1), word(0))), zeros),
        last=made(lambda zeros: word(_where(_integer(zeros) == 0, word(carrier.sign - 2), word(-1))), zeros),
        top=made(top, emin, subnormals),
        level=made(level, p, emin, subnormals),
        vanishing=made(vanishing, p, emin, subnormals, zeros),
    )


def _is_uniform(fmt: Format, carrier: Carrier) -> bool:
    # With one bit of precision, the one that tells odd from even is the hidden one.
    return (
        is_number(fmt.precision)
        and fmt.precision > 1
        and _is(fmt.emin, carrier.emin)
        and _is(fmt.subnormals, True)
        and _nonzero(fmt.zeros)
    )


def _integer(number: Any) -> Any:
    return int(number) if is_number(number) else jnp.asarray(number, jnp.int32)


def _where(condition: Any, one: Any, other: Any) -> Any:
    """A choice; by Python where it is known."""
    return (one if condition else other) if is_number(condition) else jnp.where(condition, one, other)


def smallest_positive(fmt: Format, carrier: Carrier) -> Any:
    """The magnitude bits of the smallest positive value of a format."""
    emin = _integer(fmt.emin)
    exponent = _where(fmt.subnormals, emin - _integer(fmt.precision) + 1, emin)
    return power_of_two(exponent, carrier)


def largest_bits(fmt: Format, carrier: Carrier) -> Any:
    """The magnitude bits of the largest finite value, at most the carrier's own."""
    bits, most = magnitude_bits(fmt.largest, carrier), carrier.word(carrier.infinity - 1)
    return min(bits, most) if is_number(bits) else jnp.minimum(bits, most)


def magnitude_bits(number: Any, carrier: Carrier) -> Any:
    """The magnitude bits of a number of a format in the carrier."""
    if is_number(number):  # one constant, not four operations to fold
        with np.errstate(over="ignore"):
            return carrier.word(int(np.abs(np.asarray(number).astype(carrier.dtype)).view(carrier.uint)))
    return to_bits(jnp.abs(jnp.asarray(number).astype(carrier.dtype)), carrier)


def is_number(field: Any) -> bool:
    """Whether one field of a format is known before tracing."""
    return isinstance(field, int | float | np.number | np.bool_)


def _is(field: Any, value: Any) -> bool:
    return is_number(field) and bool(field == value)


def _nonzero(field: Any) -> bool:
    return is_number(field) and field != 0
