"""What a format lets running averages and counters do, in exact arithmetic, without running them.

An average s <- s + (1 - b)(x - s) that is stored in a format moves only while its step (1 - b)|x - s| passes half the gap
from s to its neighbour on the side of x, h(s): the half-gap law of `landing`, with the step for the update. Hence

    it stalls      s rests where (1 - b)|x - s| <= h(s), a tie only if the last bit of s is even: with b = 0.999 an average of
                   ones in bfloat16 rests at 1/4
    it ratchets    if 1 - b <= 2^-(p+1), no s ever falls, not even on zeros
    b is stored    0.999 in bfloat16 is 1.0: nothing enters the average at all

and a count rests where one more is at most half a gap: at 2^p. Every function here takes a step as computed exactly and
rounded once to nearest, ties to even. What a carrier such as float32 rounds on the way can tip only a step that it cannot
tell from a tie. These are answers about formats and constants, so everything is a Python number on the host; nothing is
traced.
"""

import numbers
from fractions import Fraction
from typing import Any

import numpy as np

from precisionlab.numerics.checks import check_numbers
from precisionlab.numerics.formats import Format, is_concrete, name_of
from precisionlab.stagnation.rationals import Rationals, exponent_of, power

__all__ = ["counter_limit", "is_ratchet", "largest_decay", "stall_level", "stored_decay"]


def stored_decay(decay: float, fmt: Format) -> float:
    """The decay that is meant when one is written into a format: the nearest value, ties to even.

    Frameworks round a constant to the dtype of the array it meets: beside bfloat16 parameters b2 = 0.999 is 1.0, and the
    second moment keeps its first value for ever. See `largest_decay` for the largest that is no 1.0.

    Args:
        decay: from 0 to 1, taken as the number it is (a Python float is a binary fraction).
        fmt: the format the constant is stored in. It must have a zero.

    Returns:
        The stored decay; the format's overflow value where its largest value is too small.

    Raises:
        TypeError: if fmt is not a concrete format or decay not a number.
        ValueError: if decay is not between 0 and 1, or the format has no zero.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT16
        >>> stored_decay(0.999, BFLOAT16), stored_decay(0.99, BFLOAT16), stored_decay(0.999, FLOAT16)
        (1.0, 0.98828125, 0.9990234375)
    """
    _check_format(fmt, "stored_decay")
    return _in_range(Rationals(fmt).nearest(_decay(decay, "stored_decay")), fmt)


def largest_decay(fmt: Format) -> float:
    """The largest decay below 1 that a format holds: 1 - 2^-p wherever 1 is a normal number above its smallest.

    1 / (1 - decay) steps, here 2^p, are what an exponential average remembers: in bfloat16 no more than 256.

    Args:
        fmt: the format the constant is stored in. It must have a zero.

    Returns:
        The largest value of the format below 1; 0.0 if none is positive.

    Raises:
        TypeError: if fmt is not a concrete format.
        ValueError: if the format has no zero.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT8_E4M3FN
        >>> largest_decay(BFLOAT16), 1 / (1 - largest_decay(FLOAT8_E4M3FN))
        (0.99609375, 16.0)
    """
    _check_format(fmt, "largest_decay")
    gap = Rationals(fmt).gap(Fraction(1, 2))  # that of [1/2, 1), and wider than 1/2 only where no value is in there
    below = max(-(-1 // gap) - 1, 0) * gap
    return float(min(below, Fraction(fmt.largest)))


def is_ratchet(decay: float, fmt: Format) -> bool:
    """Whether an average of non-negative numbers that is stored in a format can never fall.

    Fed a zero, s becomes round(decay s), and stays where (1 - decay) s is at most half the gap below s. The gap is smallest
    beside s for powers of two, so that with p significand bits the average is a ratchet exactly if

        1 - decay <= 2^-(p+1)

    the tie included, since powers of two are even. Such is the second moment of Adam at b2 = 0.999 in bfloat16, where 2^-9 is
    0.00195: it rises with the gradients and never forgets them. (Where no value of a format reaches 2^(emin+1), as in fixed
    point, its largest value decides instead.)

    Args:
        decay: from 0 to 1, as it is applied; for one that is itself stored, pass `stored_decay(decay, fmt)`.
        fmt: the format the average is stored in, under nearest_even. It must have a zero.

    Returns:
        True if every finite value stays for every non-negative input, False if some value falls.

    Raises:
        TypeError: if fmt is not a concrete format or decay not a number.
        ValueError: if decay is not between 0 and 1, or the format has no zero.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT16
        >>> is_ratchet(0.999, BFLOAT16), is_ratchet(0.99, BFLOAT16), is_ratchet(0.999, FLOAT16)
        (True, False, False)
    """
    _check_format(fmt, "is_ratchet")
    kept = _decay(decay, "is_ratchet")
    # Up to 2^(emin+1) the gap does not grow with s, and from there on every binade repeats the one before it.
    worst = min(Fraction(fmt.largest), Fraction(2) ** (int(fmt.emin) + 1))
    return Rationals(fmt).nearest(kept * worst) == worst


def stall_level(decay: float, fmt: Format, target: float = 1.0, start: float = 0.0) -> float:
    """Where an average of equal numbers comes to rest in a format.

    The average s <- round(s + (1 - decay)(target - s)) moves monotonically from its start and rests at the first value whose
    step is at most half the gap ahead of it (see the module). Gaps are equal within a binade: rising from zero towards t it
    rests in

        2^e <= s < 2^(e+1)     at     max(2^e, t - 2^(e-p) / (1 - decay)), rounded up to the format,

    for the first e where this lies in the binade; on a tie one value later if the last bit is odd. Falling, the same with every
    sign turned. The binades are tried one after the other, so this is as quick where the average takes millions of steps.

    Args:
        decay: from 0 to 1, as it is applied; for one that is itself stored, pass `stored_decay(decay, fmt)`.
        fmt: the format the average is stored in, under nearest_even. It must have a zero.
        target: the number it is fed, any finite one: for a second moment the squared gradient, for a trace t <- g + decay t the
            sum it should reach, g / (1 - decay).
        start: where it starts, rounded to the format.

    Returns:
        The value at rest; the format's overflow value, with a sign, if the average leaves the format on its way.

    Raises:
        TypeError: if fmt is not a concrete format, or another argument not a number.
        ValueError: if decay is not between 0 and 1, target or start not finite, start beyond the format, or the format
            has no zero.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT8_E5M2
        >>> stall_level(0.999, BFLOAT16), stall_level(0.9, BFLOAT16), stall_level(0.999, FLOAT8_E5M2)
        (0.25, 0.98046875, 0.015625)
        >>> stall_level(0.997, BFLOAT16, target=0.0, start=1.0)
        0.6484375
    """
    where = "stall_level"
    _check_format(fmt, where)
    step = 1 - _decay(decay, where)
    goal, begin = _finite(target, "target", where), Rationals(fmt).nearest(_finite(start, "start", where))
    if abs(begin) > Fraction(fmt.largest):
        raise ValueError(
            f"{where}: start must be at most {float(fmt.largest)!r}, the largest of {name_of(fmt)}; got {start!r}."
        )
    if step == 0:
        return float(begin)
    if goal >= begin:
        return _in_range(_rest(step, fmt, goal, begin), fmt)
    return _in_range(-_rest(step, fmt, -goal, -begin), fmt)


def counter_limit(fmt: Format, increment: float = 1.0) -> float:
    """Where a count, or a sum of equal positive terms from zero up, stops growing in a format.

    c + increment rounds back to c once the increment is at most half the gap above c, 2^(e-p) in [2^e, 2^(e+1)); powers of two
    are even, so a tie stays. Hence it stops at 2^(p + ceil(log2 increment)), 2^p for ones, or at 2^emin if that is larger.
    (With a single significand bit powers of two are odd, and a tie goes on to the next.) An increment of at most half the
    smallest positive value never starts.

    Args:
        fmt: the format of the count, under nearest_even. It must have a zero.
        increment: a positive number, added exactly; for one that is itself stored, round it first.

    Returns:
        The last value of the count; the format's overflow value if it gets that far.

    Raises:
        TypeError: if fmt is not a concrete format or increment not a number.
        ValueError: if increment is not positive and finite, or the format has no zero.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT16
        >>> counter_limit(BFLOAT16), counter_limit(BFLOAT16, 1e-3), counter_limit(FLOAT16, 32.0)
        (256.0, 0.5, inf)
    """
    where = "counter_limit"
    _check_format(fmt, where)
    term = _finite(increment, "increment", where)
    if term <= 0:
        raise ValueError(f"{where}: increment must be positive; got {increment!r}.")
    p, emin = int(fmt.precision), int(fmt.emin)
    if 2 * term <= Rationals(fmt).gap(Fraction(0)):
        return 0.0
    e = max(exponent_of(term) + (term > power(exponent_of(term))) + p, emin)
    odd_tie = p == 1 and term == power(e - p)
    return _in_range(power(e + odd_tie), fmt)


def _rest(step: Fraction, fmt: Format, goal: Fraction, start: Fraction) -> Fraction:
    """The first value s from `start` up, the exponent unbounded, where step * (goal - s) does not pass half the gap above."""
    for low, high, gap in Rationals(fmt).ranges(start):
        if start >= high:
            continue
        s = max(low, start, -((gap / 2 / step - goal) // gap) * gap)
        if step * (goal - s) == gap / 2 and s / gap % 2 == 1:
            s += gap
        if s < high:
            return s
    raise AssertionError("a goal lies in some binade")


def _in_range(value: Fraction, fmt: Format) -> float:
    if abs(value) <= Fraction(fmt.largest):
        return float(value)
    return float(fmt.overflow) if value > 0 else -float(fmt.overflow)


def _check_format(fmt: Any, where: str) -> None:
    if not isinstance(fmt, Format):
        raise TypeError(f"{where}: fmt must be a Format such as precisionlab.BFLOAT16; got {fmt!r}.")
    if not is_concrete(fmt):
        raise TypeError(f"{where}: the format holds arrays or traced numbers; pass one whose numbers are Python's.")
    check_numbers(fmt)
    if fmt.zeros == 0:
        raise ValueError(
            f"{where}: averages and counts start at zero, and {name_of(fmt)} has none; choose a format with a zero."
        )


def _finite(value: Any, name: str, where: str) -> Fraction:
    if isinstance(value, np.generic):
        value = float(value)
    if isinstance(value, numbers.Rational):
        return Fraction(value)
    if not isinstance(value, float):
        raise TypeError(
            f"{where}: {name} must be a Python number, since the answer is worked out exactly on the host; got {value!r}; "
            f"for a concrete array pass float({name})."
        )
    if value - value != 0:
        raise ValueError(f"{where}: {name} must be finite; got {value!r}.")
    return Fraction(value)


def _decay(value: Any, where: str) -> Fraction:
    decay = _finite(value, "decay", where)
    if not 0 <= decay <= 1:
        raise ValueError(f"{where}: decay must be from 0 (no memory) to 1 (nothing enters); got {value!r}.")
    return decay
