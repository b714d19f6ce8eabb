"""What rounding means, in exact rational arithmetic: a reference to read beside a standard, not to run fast.

A format is a set of values. Among the magnitudes, for precision p and smallest normal exponent emin:

    n * 2^(e-p+1),   2^(p-1) <= n < 2^p,   e >= emin         normal numbers; e is unbounded above
    n * 2^(emin-p+1),      0 <= n < 2^(p-1)                  subnormal numbers and zero (without subnormals: zero alone)

A nonzero value x lies between two neighbours of this set, and a mode picks one of them. Only then is the result held
against the largest finite value of the format. `numbers` means any object with the six fields of a format; nothing here
comes from the library under test.

`round_exact` is the law, one value at a time. `round_array` says the same in float64 arrays, and is tested against it.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

DETERMINISTIC = ("nearest_even", "nearest_away", "toward_zero", "upward", "downward", "to_odd")


class Numbers(NamedTuple):
    """A format, written down for the tests."""

    precision: int
    emin: int
    largest: float
    overflow: float
    subnormals: bool = True
    zeros: int = 2


class Bracket(NamedTuple):
    """The neighbours of a positive magnitude.

    below <= magnitude < above; `fraction` is the share of the gap that truncation discards; `odd` says whether the value
    of `below` is odd (then that of `above` is even).
    """

    below: Fraction
    above: Fraction
    fraction: Fraction
    odd: bool


def exponent(magnitude: Fraction) -> int:
    """floor(log2 magnitude), exactly."""
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if Fraction(2) ** guess <= magnitude else guess - 1


def bracket(magnitude: Fraction, numbers: Any) -> Bracket:
    """The two values of the set around a positive magnitude, with the exponent unbounded above."""
    p, emin = int(numbers.precision), int(numbers.emin)
    e = exponent(magnitude)
    if e >= emin:
        step = Fraction(2) ** (e - p + 1)
    elif bool(numbers.subnormals):
        step = Fraction(2) ** (emin - p + 1)
    else:
        step = Fraction(2) ** emin
    count = magnitude // step
    below, above = count * step, (count + 1) * step
    # With one significand bit every value but zero is odd; of two odd neighbours a tie goes to the larger (IEEE 754-2019,
    # 4.3.1), which is what an odd lower neighbour means here anyway.
    return Bracket(below, above, (magnitude - below) / step, count % 2 == 1)


def goes_up(around: Bracket, negative: bool, mode: str) -> bool:
    """Whether a mode picks the neighbour of larger magnitude."""
    fraction, half = around.fraction, Fraction(1, 2)
    if fraction == 0:
        return False
    return {
        "nearest_even": fraction > half or (fraction == half and around.odd),
        "nearest_away": fraction >= half,
        "toward_zero": False,
        "upward": not negative,
        "downward": negative,
        "to_odd": not around.odd,
    }[mode]


def finish(magnitude: Fraction, negative: bool, numbers: Any, may_overflow: bool) -> float:
    """The signed result in the format: overflow, the missing -0, the missing zero."""
    if magnitude > Fraction(float(numbers.largest)):
        result = float(numbers.overflow) if may_overflow else float(numbers.largest)
        return -result if negative else result
    if magnitude == 0 and int(numbers.zeros) == 1:
        return 0.0
    return math.copysign(float(magnitude), -1.0 if negative else 1.0)


def special(x: float, numbers: Any) -> float | None:
    """The result where no rounding happens at all: NaN, infinities, zeros, and what a format without zero refuses."""
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x):
        return math.nan
    if int(numbers.zeros) == 0 and (negative or x == 0):
        return math.nan
    if math.isinf(x):
        return -float(numbers.overflow) if negative else float(numbers.overflow)
    if x == 0:
        return -0.0 if negative and int(numbers.zeros) == 2 else 0.0
    if int(numbers.zeros) == 0 and Fraction(x) < Fraction(2) ** int(numbers.emin):
        return float(Fraction(2) ** int(numbers.emin))  # nothing smaller exists, in any mode
    return None


def round_exact(x: float, numbers: Any, mode: str) -> float:
    """x rounded to the format by one of the deterministic modes."""
    known = special(x, numbers)
    if known is not None:
        return known
    negative = x < 0
    around = bracket(abs(Fraction(x)), numbers)
    magnitude = around.above if goes_up(around, negative, mode) else around.below
    may_overflow = mode in ("nearest_even", "nearest_away") or mode == ("downward" if negative else "upward")
    return finish(magnitude, negative, numbers, may_overflow)


class Chance(NamedTuple):
    """Stochastic rounding: `up` with the given probability, else `down` ("up" is away from zero)."""

    down: float
    up: float
    probability: Fraction


def round_chance(x: float, numbers: Any, bits: int | None = None) -> Chance:
    """Both outcomes of stochastic rounding, with `bits` random bits (None: as many as it takes)."""
    known = special(x, numbers)
    if known is not None:
        return Chance(known, known, Fraction(0))
    around = bracket(abs(Fraction(x)), numbers)
    kept = around.fraction if bits is None else Fraction(math.floor(around.fraction * 2**bits), 2**bits)
    return Chance(finish(around.below, x < 0, numbers, True), finish(around.above, x < 0, numbers, True), kept)


# The same law for arrays. Every step is exact in float64: at most 53 significand bits, scaled by powers of two.


class ArrayBracket(NamedTuple):
    below: np.ndarray
    above: np.ndarray
    fraction: np.ndarray
    odd: np.ndarray


def bracket_array(magnitude: np.ndarray, numbers: Any) -> ArrayBracket:
    """`bracket` for positive float64 magnitudes. Fractions below 2^-100 of a step come out as some number below 1/2."""
    p, emin = int(numbers.precision), int(numbers.emin)
    significand, e = np.frexp(magnitude)  # in [1/2, 1), hence the shift by one
    e = e.astype(np.int64) - 1
    lowest = emin - p + 1 if bool(numbers.subnormals) else emin
    scale = np.where(e >= emin, e - p + 1, lowest)
    in_steps = np.ldexp(significand, np.maximum(e + 1 - scale, -100))
    count = np.floor(in_steps)
    odd = count % 2 == 1
    with np.errstate(over="ignore"):  # 2^1024 is infinity here, larger than any `largest`, as it should be
        return ArrayBracket(np.ldexp(count, scale), np.ldexp(count + 1, scale), in_steps - count, odd)


def round_array(x: np.ndarray, numbers: Any, mode: str) -> np.ndarray:
    """`round_exact` for an array, in float64."""
    x = np.asarray(x, np.float64)
    negative, magnitude = np.signbit(x), np.abs(x)
    zeros, largest, overflow = int(numbers.zeros), float(numbers.largest), float(numbers.overflow)
    ordinary = np.isfinite(x) & (x != 0)
    around = bracket_array(np.where(ordinary, magnitude, 1.0), numbers)
    inexact = around.fraction > 0
    up = {
        "nearest_even": (around.fraction > 0.5) | ((around.fraction == 0.5) & around.odd),
        "nearest_away": around.fraction >= 0.5,
        "toward_zero": np.zeros_like(negative),
        "upward": inexact & ~negative,
        "downward": inexact & negative,
        "to_odd": inexact & ~around.odd,
    }[mode]
    result = np.where(up, around.above, around.below)
    if zeros == 0:
        result = np.maximum(result, np.ldexp(1.0, int(numbers.emin)))
    may_overflow = {"upward": ~negative, "downward": negative}.get(mode, np.full(x.shape, mode.startswith("nearest")))
    result = np.where(result > largest, np.where(may_overflow, overflow, largest), result)
    result = np.where(ordinary, result, np.where(np.isinf(x), overflow, 0.0))
    result = np.where(negative, -result, result)
    if zeros == 1:
        result = np.where(result == 0, 0.0, result)
    refused = np.isnan(x) | ((negative | (x == 0)) if zeros == 0 else False)
    return np.where(refused, np.nan, result)


def ulp_exact(x: float, numbers: Any) -> Fraction:
    """The gap of the format in the binade of x, the exponent unbounded above."""
    p, emin = int(numbers.precision), int(numbers.emin)
    e = exponent(abs(Fraction(x))) if x != 0 else emin - 1
    if e < emin:
        return Fraction(2) ** (emin - p + 1 if bool(numbers.subnormals) else emin)
    return Fraction(2) ** (e - p + 1)


def all_values(numbers: Any) -> np.ndarray:
    """Every finite value of a small format, ascending, zero once."""
    p, emin, largest = int(numbers.precision), int(numbers.emin), float(numbers.largest)
    lowest = [0.0] if int(numbers.zeros) else []
    if bool(numbers.subnormals):
        lowest += [math.ldexp(n, emin - p + 1) for n in range(1, 2 ** (p - 1))]
    top = exponent(Fraction(largest))
    normal = [math.ldexp(n, e - p + 1) for e in range(emin, top + 1) for n in range(2 ** (p - 1), 2**p)]
    magnitudes = [v for v in lowest + normal if v <= largest]
    return np.unique(np.array(magnitudes if int(numbers.zeros) == 0 else magnitudes + [-v for v in magnitudes]) + 0.0)


def boundary_vector(numbers: Any, carrier: Any, values: int = 24) -> np.ndarray:
    """The carrier values at which some mode changes its mind, both signs.

    Values of the format at both ends of its range, around its smallest normal and around one; quarters and halves of
    the gaps above them; the carrier's neighbours of all of these; and the carrier's own extremes.
    """
    p, emin = int(numbers.precision), int(numbers.emin)
    top = exponent(Fraction(float(numbers.largest)))
    carrier = np.dtype(carrier)
    info = np.finfo(carrier)
    lowest = (emin - p + 1) if bool(numbers.subnormals) else emin
    exponents = {lowest - 2, lowest - 1, lowest, emin - 1, emin, emin + 1, emin + 2, -1, 0, 1, top - 1, top, top + 1}
    points: set[Fraction] = set()
    for e in exponents:
        if e > top + 1:
            continue
        step = ulp_exact(2.0**e, numbers) if e <= 1023 else Fraction(2) ** (e - p + 1)
        base = Fraction(2) ** e // step
        length = int(base) if e >= emin else 1
        counts = {*range(values // 3), *range(length - values // 3, length), length // 2}
        counts = {c for c in counts if 0 <= c < max(length, 1)}
        points |= {(base + c + Fraction(q, 4)) * step for c in counts for q in range(4)}
    if bool(numbers.subnormals):  # the top of the subnormal range
        points |= {Fraction(2) ** emin - Fraction(q, 4) * Fraction(2) ** lowest for q in range(1, 13)}
    points |= {Fraction(float(numbers.largest)) + Fraction(q, 4) * ulp_exact(numbers.largest, numbers) for q in range(-8, 9)}
    limit = Fraction(float(info.max))
    centre = np.array([float(v) for v in points if 0 <= v <= limit]).astype(carrier)
    zero, infinity = carrier.type(0), carrier.type(math.inf)
    with np.errstate(over="ignore", under="ignore"):
        around = np.concatenate([centre, np.nextafter(centre, zero), np.nextafter(centre, infinity)])
    tiny, smallest = info.smallest_subnormal, info.smallest_normal
    extremes = np.array([0, tiny, 2 * tiny, smallest - tiny, smallest, info.max, math.inf, math.nan], carrier)
    magnitudes = np.unique(np.concatenate([around, extremes]))
    return np.concatenate([magnitudes, -magnitudes])
