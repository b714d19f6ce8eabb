"""Intervals cover what they say, degenerate samples are answered plainly, and tables show what is known."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats

from precisionlab.runs.summary import band, interval, number, paired_ratio_interval, table


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_interval_is_scipys_bca() -> None:
    samples = np.random.default_rng(3).exponential(size=12)
    found = interval(samples)
    expected = scipy.stats.bootstrap((samples,), np.mean, n_resamples=99_999, rng=np.random.default_rng(1))
    width = expected.confidence_interval.high - expected.confidence_interval.low
    np.testing.assert_allclose(found, expected.confidence_interval, atol=0.03 * width)
    assert interval(samples) == found  # the same samples, the same interval


@pytest.mark.parametrize(("seeds", "least", "most"), [(8, 0.86, 0.90), (40, 0.93, 0.96)])
def test_coverage(seeds: int, least: float, most: float) -> None:
    """2000 intervals: three standard errors are 0.02 at eight seeds and 0.015 at forty."""
    low, high = band(np.random.default_rng(1).normal(5.0, 1.0, size=(2000, seeds)))
    assert least < np.mean((low <= 5.0) & (high >= 5.0)) < most


def test_wider_confidence_is_a_wider_interval() -> None:
    samples = np.random.default_rng(0).normal(size=10)
    narrow, wide = interval(samples, 0.5), interval(samples, 0.99)
    assert wide[0] < narrow[0] < samples.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-300, 1e300])
def test_equal_samples_give_a_point(value: float) -> None:
    assert interval([value] * 8) == (value, value)


@pytest.mark.parametrize("samples", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0], [math.inf, math.inf]])
def test_no_interval_where_there_is_none(samples: list[float]) -> None:
    low, high = interval(samples)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    "samples", [[0, 0, 0, 0, 0, 0, 0, 1], [1, 2], [1e8, 1e8 + 1e-7, 1e8], [1e-310, 2e-310, 3e-310], [1.0, 1.0 + 2e-16]]
)
def test_nearly_degenerate_samples_stay_inside_their_range(samples: list[float]) -> None:
    low, high = interval(samples)
    assert min(samples) <= low <= high <= max(samples)


def test_band_is_the_interval_of_each_entry() -> None:
    samples = np.random.default_rng(0).normal(size=(2, 3, 6))
    samples[0, 1] = 4.0
    samples[1, 2, 0] = np.nan
    low, high = band(samples, resamples=9999)
    assert low.shape == high.shape == (2, 3)
    assert (low[0, 1], high[0, 1]) == (4.0, 4.0)
    assert np.isnan(low[1, 2])
    np.testing.assert_allclose([low[1, 0], high[1, 0]], interval(samples[1, 0]), atol=0.05)


def test_wrong_shapes_and_confidences_are_refused() -> None:
    with pytest.raises(ValueError, match="one axis"):
        interval(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], 95)


def test_paired_ratio() -> None:
    rng = np.random.default_rng(0)
    common, noise = rng.lognormal(0, 2, size=16), rng.lognormal(0, 0.05, size=16)
    low, high = paired_ratio_interval(3 * common * noise, common)
    assert 2.8 < low < 3.0 < high < 3.2  # pairing removes the common spread, a factor of e^2
    assert paired_ratio_interval([2.0, 6.0], [1.0, 3.0]) == (2.0, 2.0)
    inverse = paired_ratio_interval(common, 3 * common * noise)
    np.testing.assert_allclose(inverse, (1 / high, 1 / low), rtol=0.01)
    with pytest.raises(ValueError, match="positive"):
        paired_ratio_interval([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="shapes"):
        paired_ratio_interval([1.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0123456, 0.0119, 0.0128), "0.0123 [0.0119, 0.0128]"),
        ((0.9991, 0.99901, 0.99923), "0.9991 [0.9990, 0.9992]"),
        ((0.25, 0.25, 0.25), "0.250 [0.250, 0.250]"),
        ((1.0, 1.0, 1.0 + 1e-9), "1.00 [1.00, 1.00]"),
        ((0.0, 0.0, 0.0), "0 [0, 0]"),
        ((-1.5, -2.0, 10.0), "-1.5 [-2.0, 10.0]"),
        ((0.5, math.nan, math.nan), "0.500"),
        ((math.nan, math.nan, math.nan), "nan"),
        ((math.inf,), "inf"),
        ((1234.5,), "1234"),
        ((1.5e-7, 1e-7, 2e-7), "1.50e-07 [1.00e-07, 2.00e-07]"),
        ((2.5e6,), "2.50e+06"),
        ((np.float32(0.1),), "0.100"),
        ((3,), "3"),
        ((True,), "yes"),
        ((np.bool_(False),), "no"),
        ((None,), "-"),
        (("bfloat16",), "bfloat16"),
    ],
)
def test_numbers(arguments: tuple, text: str) -> None:
    assert number(*arguments) == text


def test_table_puts_intervals_beside_their_quantity() -> None:
    rows = [
        {"format": "a", "loss": 1.0, "loss_low": 0.5, "loss_high": 2, "fill_low": 3},
        {"format": "b", "loss": 4.0, "steps": 7},
    ]
    assert table(rows) == [
        ["format", "loss", "fill_low", "steps"],
        ["a", "1.00 [0.50, 2.00]", "3", "-"],
        ["b", "4.00", "-", "7"],
    ]
    assert table(rows, ["steps", "format"]) == [["steps", "format"], ["-", "a"], ["7", "b"]]
    assert table([]) == [[]]
