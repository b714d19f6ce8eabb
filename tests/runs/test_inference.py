"""Tests over seeds err as often as they say: exactly where a distribution is known, by simulation with a bound elsewhere."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from precisionlab.runs import inference
from precisionlab.runs.inference import clopper_pearson, holm, one_sided, slopes, tost
from precisionlab.runs.summary import band

SEEDS, RUNS = 16, 10_000


def normal(mean: float = 0.0, key: int = 0, runs: int = RUNS) -> np.ndarray:
    return np.random.default_rng(key).normal(mean, 1.0, size=(runs, SEEDS))


def near(share: float, expected: float, runs: int = RUNS) -> bool:
    """Within four standard errors: one false alarm in 16,000."""
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / runs)


# One-sided tests


def test_one_sided_is_the_t_test() -> None:
    for row in normal(0.3, runs=20):
        expected: Any = scipy.stats.ttest_1samp(row, 0.1, alternative="greater")
        assert one_sided(row, 0.1) == pytest.approx(expected.pvalue, rel=1e-12)
        assert one_sided(-row, -0.1) == pytest.approx(1 - expected.pvalue, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_one_sided_errs_as_often_as_it_says(alpha: float) -> None:
    assert near(float(np.mean([one_sided(row, 5.0) < alpha for row in normal(5.0)])), alpha)


def test_under_strong_skew_it_errs_as_the_module_says() -> None:
    samples = np.random.default_rng(0).exponential(size=(RUNS, SEEDS))
    above = np.mean([one_sided(row, 1.0) < 0.05 for row in samples])
    below = np.mean([one_sided(-row, -1.0) < 0.05 for row in samples])
    assert (round(float(above), 2), round(float(below), 2)) == (0.02, 0.12)


@pytest.mark.parametrize(
    ("samples", "p"),
    [([0.1] * 3, 1.0), ([0.1, 0.1], 1.0), ([0.2] * 3, 0.0), ([-1.0] * 2, 1.0), ([0.1 + 1e-9, 0.1 + 2e-9], 0.10)],
)
def test_equal_samples_are_above_or_not(samples: list[float], p: float) -> None:
    assert one_sided(samples, 0.1) == pytest.approx(p, abs=0.003)


@pytest.mark.parametrize("samples", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_no_test_where_there_is_none(samples: list[float]) -> None:
    found = tost(samples, 1.0, 0.5)
    assert math.isnan(one_sided(samples))
    assert [math.isnan(value) for value in (found.low, found.high, found.p)] == [True] * 3
    assert found.equal is None
    assert (found.estimate == 1.0) is (samples == [1.0])


# Equivalence


@pytest.mark.parametrize("target", [0.0, -0.5, 1e6])
def test_equivalence_is_two_t_tests_and_an_interval(target: float) -> None:
    for row in normal(0.1, runs=20):
        found = tost(target + row, target, 0.6, alpha=0.1)
        tests: Any = [
            scipy.stats.ttest_1samp(row, -0.6, alternative="greater"),
            scipy.stats.ttest_1samp(row, 0.6, alternative="less"),
        ]
        expected = tests[0].confidence_interval(0.9).low, tests[1].confidence_interval(0.9).high
        np.testing.assert_allclose((found.low - target, found.high - target), expected, rtol=1e-6)
        assert found.p == pytest.approx(max(test.pvalue for test in tests), rel=1e-6)
        assert found.estimate == pytest.approx(target + row.mean())
        assert (found.equal is True) is (found.p < 0.1)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_mean_on_the_margin_is_rarely_called_equal_or_different(side: int) -> None:
    """The other margin is eight standard errors away, so that alpha is the error rate itself and not only its bound."""
    found = [tost(row, 3.0, 1.0).equal for row in normal(3.0 + side)]
    assert near(found.count(True) / RUNS, 0.05)
    assert near(found.count(False) / RUNS, 0.05)


def test_power_inside_the_margin() -> None:
    """P(equal) at the target: the mean must be closer than margin - t s / sqrt(n), with s^2 a chi-squared of n - 1."""
    margin, t = 0.6, scipy.stats.t.ppf(0.95, SEEDS - 1)

    def given(square: float) -> float:
        room = math.sqrt(SEEDS) * margin - t * math.sqrt(square / (SEEDS - 1))
        return float(scipy.stats.chi2.pdf(square, SEEDS - 1)) * max(0.0, 2 * float(scipy.stats.norm.cdf(room)) - 1)

    power = scipy.integrate.quad(given, 0, 80)[0]
    found = [tost(row, 0.0, margin).equal for row in normal()]
    assert 0.3 < power < 0.9
    assert near(found.count(True) / RUNS, power)
    assert found.count(False) / RUNS < 0.001


def test_a_small_margin_cannot_be_met_by_few_seeds() -> None:
    """Two one-sided tests together say "equal" less often than alpha, not more, where the noise exceeds the margin."""
    found = [tost(row, 0.0, 0.2).equal for row in normal()]
    assert found.count(True) / RUNS < 0.05
    assert found.count(None) / RUNS > 0.9


@pytest.mark.parametrize(
    ("value", "equal", "p"),
    [(1.0, True, 0.0), (1.24, True, 0.0), (1.25, None, 1.0), (1.26, False, 1.0), (0.75, None, 1.0), (0.7, False, 1.0)],
)
def test_samples_that_are_the_same_number(value: float, equal: bool | None, p: float) -> None:
    assert tost([value] * 5, 1.0, 0.25) == inference.Test(value, value, value, p, equal)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1.0, 2.0]], 0.0, 1.0), r"samples have shape \(1, 2\), allowed is one axis, the seeds"),
        (([1.0, 2.0], math.nan, 1.0), "target is nan, allowed is a finite number"),
        (([1.0, 2.0], 0.0, 0.0), "margin is 0.0, allowed is a positive finite number"),
        (([1.0, 2.0], 0.0, math.inf), "margin is inf"),
        (([1.0, 2.0], 0.0, 1.0, 5), "alpha is 5, allowed is a number between 0 and 0.5"),
    ],
)
def test_wrong_questions_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tost(*arguments)


def test_wrong_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="bound is nan"):
        one_sided([1.0, 2.0], math.nan)
    with pytest.raises(ValueError, match="one_sided: samples have shape"):
        one_sided(3.0)


# Coverage


@pytest.mark.parametrize(("alpha", "margin"), [(0.025, 1.0), (0.05, 0.5)])
def test_the_interval_of_the_equivalence_test_covers(alpha: float, margin: float) -> None:
    found = [tost(row, 0.0, margin, alpha) for row in normal(0.2)]
    assert near(float(np.mean([test.low <= 0.2 <= test.high for test in found])), 1 - 2 * alpha)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "shape", "covers"), [(16, "normal", 0.91), (16, "skew", 0.89), (32, "normal", 0.935), (32, "skew", 0.92)]
)
def test_bca_intervals_cover_as_documented(seeds: int, shape: str, covers: float) -> None:
    """Of 4000 intervals, four standard errors are 0.018; the nominal 0.95 is not reached at these numbers of seeds."""
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(4000, seeds)) if shape == "normal" else rng.exponential(size=(4000, seeds)) - 1
    low, high = band(samples)
    assert abs(np.mean((low <= 0) & (high >= 0)) - covers) < 0.018


# Many tests


HOLM = [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.03, 0.04, 0.05], [0.09, 0.09, 0.09]),
    ([0.5, 0.9], [1.0, 1.0]),
    ([0.02, math.nan, 0.01], [0.04, math.nan, 0.03]),  # three tests were asked for
    ([0.2], [0.2]),
    ([], []),
    ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
]


@pytest.mark.parametrize(("given", "adjusted"), HOLM)
def test_holm_by_hand(given: list[float], adjusted: list[float]) -> None:
    np.testing.assert_allclose(holm(given), adjusted, rtol=1e-12)


def test_holm_is_its_definition() -> None:
    """Step down by alpha itself: reject the smallest p while it is at most alpha / (those left)."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        p = rng.uniform(size=6) ** 3
        for alpha in (0.01, 0.05, 0.2):
            rejected, left = set(), len(p)
            for test in np.argsort(p):
                if p[test] > alpha / left:
                    break
                rejected.add(int(test))
                left -= 1
            assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected


@pytest.mark.parametrize("true", [1, 4, 8])
def test_holm_s_family_wise_error_rate(true: int) -> None:
    """Eight independent tests, `true` of them of true hypotheses, the others never missed: 1 - (1 - alpha / true)^true."""
    p = np.zeros((RUNS, 8))
    p[:, :true] = np.random.default_rng(3).uniform(size=(RUNS, true))
    wrong = np.mean([(holm(row)[:true] <= 0.05).any() for row in p])
    assert near(float(wrong), 1 - (1 - 0.05 / true) ** true)


@pytest.mark.slow
def test_holm_s_error_rate_when_tests_depend_on_each_other() -> None:
    """Ten comparisons that share one control arm."""
    rng = np.random.default_rng(4)
    wrong = []
    for _ in range(4000):
        control = rng.normal(size=SEEDS)
        wrong.append((holm([one_sided(rng.normal(size=SEEDS) - control) for _ in range(10)]) <= 0.05).any())
    assert 0.02 < np.mean(wrong) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize(
    ("given", "words"), [([[0.1]], "one axis"), ([0.1, 1.5], "numbers from 0 to 1"), ([-0.1], "from 0 to 1")]
)
def test_what_is_no_p_value_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        holm(given)


# Probabilities


def at_least(hits: int, trials: int, probability: Fraction) -> Fraction:
    """P(X >= hits) of a binomial X, in rationals."""
    terms = (math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(hits, trials + 1))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("trials", [1, 2, 5, 16, 32])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_solves_its_equations(trials: int, confidence: float) -> None:
    """At each end of the interval the tail is the allowed one, by sums in rationals."""
    tail = (1 - confidence) / 2
    for hits in range(trials + 1):
        low, high = clopper_pearson(hits, trials, confidence)
        assert 0 <= low <= hits / trials <= high <= 1
        assert (low == 0) is (hits == 0)
        assert (high == 1) is (hits == trials)
        if hits:
            assert float(at_least(hits, trials, Fraction(low))) == pytest.approx(tail, rel=1e-9)
        if hits < trials:
            assert float(1 - at_least(hits + 1, trials, Fraction(high))) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("trials", [4, 16])
def test_clopper_pearson_covers_every_probability(trials: int) -> None:
    intervals = [clopper_pearson(hits, trials) for hits in range(trials + 1)]
    for numerator in range(101):
        p = Fraction(numerator, 100)
        covered = [hits for hits, (low, high) in enumerate(intervals) if low <= p <= high]
        share = sum((at_least(hits, trials, p) - at_least(hits + 1, trials, p) for hits in covered), Fraction(0))
        assert share >= Fraction(95, 100)


def test_when_every_seed_agrees() -> None:
    assert clopper_pearson(16, 16) == (pytest.approx(0.025 ** (1 / 16), rel=1e-12), 1.0)
    assert clopper_pearson(0, 16) == (0.0, pytest.approx(1 - 0.025 ** (1 / 16), rel=1e-12))


@pytest.mark.parametrize("counts", [(3, 2), (-1, 2), (0, 0), (1.5, 2), (1, 2.5)])
def test_what_is_no_count_is_refused(counts: Any) -> None:
    with pytest.raises(ValueError, match="allowed are whole numbers"):
        clopper_pearson(*counts)
    with pytest.raises(ValueError, match="confidence is 95"):
        clopper_pearson(1, 2, 95)


# Slopes


def test_slopes_are_those_of_polyfit() -> None:
    rng = np.random.default_rng(5)
    x, y = np.sort(rng.uniform(-3, 9, size=7)), rng.normal(size=(3, 4, 7))
    expected = np.polyfit(x, y.reshape(-1, 7).T, 1)[0].reshape(3, 4)
    np.testing.assert_allclose(slopes(x, y), expected, rtol=1e-10)
    np.testing.assert_allclose(slopes(x, y[0, 0]), expected[0, 0], rtol=1e-10)


def test_slopes_of_lines_are_theirs() -> None:
    bits = np.arange(3, 12)
    gradients = np.array([-1.0, -0.5, 0.0, 2.0])
    np.testing.assert_allclose(slopes(bits, gradients[:, None] * bits[None] + 1e6), gradients, atol=1e-9)


def test_slopes_keep_nan_to_itself() -> None:
    found = slopes([0, 1, 2], [[0.0, 1.0, 2.0], [0.0, math.nan, 2.0], [0.0, -math.inf, 1.0]])
    assert found[0] == 1.0
    assert np.isnan(found[1:]).all()
    assert slopes([0, 1], np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [1.0, 2.0, 3.0], r"x has shape \(2,\), y has \(3,\)"),
        ([1, 2], 3.0, r"y has \(\)"),
        ([[1, 2]], [1.0, 2.0], r"x has shape \(1, 2\)"),
        ([1, 1], [1.0, 2.0], "at least two of them different"),
        ([1, math.inf], [1.0, 2.0], "allowed are finite numbers"),
        ([], [], "at least two"),
    ],
)
def test_slopes_of_nothing_are_refused(x: Any, y: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        slopes(x, y)
