"""The values of a format as exact rationals, on the host: gaps, neighbours and halfway points, for laws that are equalities."""

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from precisionlab.numerics.formats import Format

__all__ = ["Rationals", "exponent_of", "power"]


def power(exponent: int) -> Fraction:
    """2^exponent."""
    return Fraction(2) ** exponent


def exponent_of(positive: Fraction) -> int:
    """floor(log2 x), exactly.

    Example:
        >>> exponent_of(Fraction(1, 3)), exponent_of(Fraction(1, 4))
        (-2, -2)
    """
    guess = positive.numerator.bit_length() - positive.denominator.bit_length()
    return guess if power(guess) <= positive else guess - 1


class Rationals(NamedTuple):
    """The values of a format under rounding to nearest even, the exponent unbounded above.

    Attributes:
        fmt: with Python's numbers, and a zero.
        flushed: whether results below 2^emin become zero after they have been rounded.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> grid = Rationals(BFLOAT16)
        >>> grid.gap(Fraction(3)), grid.below(Fraction(1)), grid.nearest(Fraction(257))
        (Fraction(1, 64), Fraction(255, 256), Fraction(256, 1))
    """

    fmt: Format
    flushed: bool = False

    def gap(self, x: Fraction) -> Fraction:
        """From the largest value up to x to the next; for numbers below zero the gap at zero."""
        p, emin = int(self.fmt.precision), int(self.fmt.emin)
        if x >= power(emin):
            return power(exponent_of(x) - p + 1)
        return power(emin - p + 1 if self.fmt.subnormals and not self.flushed else emin)

    def floor(self, x: Fraction) -> Fraction:
        """The largest value up to x, which is not negative."""
        return x // self.gap(x) * self.gap(x)

    def below(self, x: Fraction) -> Fraction:
        """The largest value under x; below zero for a zero."""
        under = x - self.gap(x) / 4 if x == self.floor(x) else x
        return self.floor(under) if under >= 0 else under

    def is_even(self, value: Fraction) -> bool:
        """Whether ties go to this value."""
        return value / self.gap(value) % 2 == 0

    def cut(self, y: Fraction) -> Fraction:
        """What a number must stay under to round to at most y (or reach, where that value is even and nothing is flushed)."""
        value = self.floor(y)
        above = value + self.gap(value)
        if self.flushed and value == 0:
            return above * (1 - Fraction(1, 2 ** (int(self.fmt.precision) + 1)))
        return (value + above) / 2

    def nearest(self, x: Fraction) -> Fraction:
        """The value that x, of either sign, rounds to."""
        if self.flushed and abs(x) < self.cut(Fraction(0)):
            return Fraction(0)
        gap = self.gap(abs(x))
        # Python rounds a fraction to the even integer on a tie; counting in gaps, so does the format.
        return round(x / gap) * gap

    def first_above(self, bound: Fraction) -> float:
        """The first value beyond a bound that is not negative."""
        value = self.floor(bound)
        return self.finite(value + self.gap(value))

    def finite(self, value: Fraction) -> float:
        """A value as a float; inf beyond the largest."""
        return float(value) if value <= Fraction(self.fmt.largest) else math.inf

    def ranges(self, start: Fraction) -> Iterator[tuple[Fraction, Fraction, Fraction]]:
        """The ranges [low, high) over which the gap above a value is constant, upwards from that of a start, with the gap."""
        p, emin = int(self.fmt.precision), int(self.fmt.emin)
        if -start > power(emin):
            for e in range(exponent_of(-start), emin - 1, -1):  # beside a power of two the gap towards zero is the narrower one
                yield -power(e + 1), -power(e), power(e - p + 1)
        yield -power(emin), power(emin), self.gap(Fraction(0))
        for e in itertools.count(emin):
            yield power(e), power(e + 1), power(e - p + 1)
