"""The sign test and the interval of the median are exact, and no bad seed, nor too few of them, makes either say more."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from precisionlab.runs.seeds import agreeing, median, median_interval, sign_test, sign_test_above

NAN = math.nan


@pytest.mark.parametrize("n", [1, 5, 8, 12])
def test_the_sign_test_counts_coins(n: int) -> None:
    for ups in range(n + 1):
        samples = [1.0] * ups + [-1.0] * (n - ups)
        worse = sum(max(sum(coins), n - sum(coins)) >= max(ups, n - ups) for coins in itertools.product((0, 1), repeat=n))
        assert sign_test(samples) == pytest.approx(float(Fraction(worse, 2**n)), rel=1e-12)


@pytest.mark.parametrize(("n", "least"), [(16, 2.0**-15), (32, 2.0**-31)])
def test_it_never_says_less_than_its_seeds_can_know(n: int, least: float) -> None:
    assert sign_test(np.full(n, -1e9)) == pytest.approx(least, rel=1e-12)
    assert sign_test([1e30] * n, null=-1e30) == pytest.approx(least, rel=1e-12)


def test_a_seed_without_a_number_and_a_tie_count_against_the_larger_side() -> None:
    assert sign_test([1.0] * 7 + [NAN]) == sign_test([1.0] * 7 + [0.0]) == sign_test([1.0] * 7 + [-1.0])
    assert sign_test([NAN] * 16) == sign_test([0.0] * 16) == 1.0
    assert sign_test([]) == 1.0


def test_the_interval_of_the_median_covers_whatever_the_distribution() -> None:
    rng = np.random.default_rng(0)
    for draw, true in ((rng.exponential, math.log(2)), (rng.standard_cauchy, 0.0)):
        found = [median_interval(draw(size=16)) for _ in range(2000)]
        share = np.mean([low <= true <= high for low, high in found])
        assert 0.95 <= share <= 0.99  # the 4th and the 13th: exactly 0.979


def test_which_order_statistics_it_takes() -> None:
    assert median_interval(range(16)) == (3.0, 12.0)
    assert median_interval(range(32)) == (9.0, 22.0)
    assert all(math.isnan(end) for end in median_interval(range(5)))


def test_one_bad_seed_moves_an_interval_by_one_place_and_many_open_it() -> None:
    values = np.arange(16.0)
    wild = values.copy()
    wild[-1] = 1e9
    assert median_interval(wild) == median_interval(values)
    wild[5] = NAN
    assert median_interval(wild) == (2.0, 13.0)
    wild[:4] = NAN
    assert median_interval(wild) == (-math.inf, math.inf)
    assert median(wild) == pytest.approx(np.nanmedian(wild))
    assert math.isnan(median([NAN, NAN]))
    assert (agreeing(wild, 6.5, True), agreeing(wild, 6.5, False)) == (2, 9)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sign_test: samples have shape \(2, 2\), allowed is one axis, the seeds"):
        sign_test(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="sign_test: null is nan, allowed is a finite number"):
        sign_test([1.0], null=NAN)
    with pytest.raises(ValueError, match=r"median_interval: confidence is 1\.0, allowed is a number between 0 and 1"):
        median_interval([1.0], confidence=1.0)


def test_the_one_sided_test_counts_the_seeds_above() -> None:
    for seeds in (1, 4, 16):
        assert sign_test_above(np.ones(seeds)) == 2.0**-seeds
        assert sign_test_above(np.zeros(seeds)) == sign_test_above(np.full(seeds, np.nan)) == 1.0
    assert sign_test_above(np.r_[np.ones(15), np.nan]) == 17 / 2**16
    assert sign_test_above(-np.arange(4.0), -2.0) == (4 + 6 + 1) / 16
    assert sign_test_above([]) == 1.0
    with pytest.raises(ValueError, match="sign_test_above: bound is inf, allowed is a finite number"):
        sign_test_above([1.0], math.inf)
