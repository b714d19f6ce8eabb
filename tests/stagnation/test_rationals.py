"""Values of a format as rationals: against the brackets of the oracle, at values, ties and what lies between."""

import itertools
from fractions import Fraction
from typing import Any

import pytest

import precisionlab as pl
from precisionlab.stagnation.rationals import Rationals
from tests.oracle import bracket, goes_up

FORMATS = (pl.FLOAT8_E5M2, pl.FLOAT6_E2M3FN, pl.ieee_format(4, 1), pl.fixed_point(2, 3), pl.FLOAT8_E8M0FNU._replace(zeros=2))


def magnitudes(fmt: Any) -> list[Fraction]:
    """Eighths of the smallest gap, up through three binades and a little below and above larger powers of two."""
    step = Fraction(2) ** (int(fmt.emin) - int(fmt.precision) - 2)
    far = [Fraction(2) ** e + shift * step for e in range(int(fmt.emin) + 3, int(fmt.emin) + 9) for shift in (-1, 0, 1)]
    return [n * step for n in range(1, 8 * 2 ** (int(fmt.precision) + 2))] + far


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_neighbours_and_ties_are_those_of_the_set_of_values(fmt: Any) -> None:
    grid = Rationals(fmt)
    for x in magnitudes(fmt):
        around = bracket(x, fmt)
        nearest = around.above if goes_up(around, False, "nearest_even") else around.below
        assert (grid.floor(x), grid.floor(x) + grid.gap(x)) == (around.below, around.above), x
        assert (grid.nearest(x), grid.nearest(-x)) == (nearest, -nearest), x
        assert grid.is_even(around.below) != around.odd, x
        at_most = x < grid.cut(around.below) or (x == grid.cut(around.below) and not around.odd)
        assert at_most == (nearest == around.below), x


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_results_are_flushed_after_they_are_rounded(fmt: Any) -> None:
    """To the format's precision, with the exponent unbounded below; what is then below 2^emin is zero."""
    grid, smallest = Rationals(fmt, flushed=True), Fraction(2) ** int(fmt.emin)
    for x in magnitudes(fmt._replace(subnormals=False)):
        around = bracket(x, fmt._replace(emin=int(fmt.emin) - 50))
        rounded = around.above if goes_up(around, False, "nearest_even") else around.below
        assert grid.nearest(x) == (rounded if rounded >= smallest else 0), x


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("start", [Fraction(0), Fraction(-5), Fraction(-1, 3)])
def test_ranges_follow_each_other_with_their_gaps(fmt: Any, start: Fraction) -> None:
    ranges = list(itertools.islice(Rationals(fmt).ranges(start), 12))
    assert ranges[0][0] <= start < ranges[-1][1]
    for (low, high, gap), (following, _, _) in itertools.pairwise(ranges):
        assert low < high == following
        inside = (low + high) / 2 if low + high else high / 2
        # Towards zero the gap above a value is that below its magnitude: the same within a binade.
        assert gap == bracket(abs(inside), fmt).above - bracket(abs(inside), fmt).below
