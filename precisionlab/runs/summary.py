"""Numbers with their noise: intervals over seeds, ratios of paired seeds, and tables that show no more than is known.

The unit is a seed. Intervals are BCa bootstrap intervals of the mean (bias-corrected and accelerated; Efron 1987), with
a fixed generator, so that the same samples always give the same interval.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["band", "interval", "number", "paired_ratio_interval", "table"]

_BOUNDS = ("_low", "_high")


def interval(samples: Any, confidence: float = 0.95) -> tuple[float, float]:
    """The BCa bootstrap interval of the mean of some samples.

    Args:
        samples: one value a seed, shape `(seeds,)`.
        confidence: the share of such intervals that cover the true mean, in the limit of many seeds. With eight
            normal seeds a nominal 0.95 covers about 0.88.

    Returns:
        `(low, high)`: NaN for fewer than two samples or any that is not finite; a point if all samples are equal.

    Raises:
        ValueError: if `samples` is not one-dimensional or `confidence` is not between 0 and 1.

    Example:
        >>> low, high = interval([1.0, 2.0, 3.0, 4.0])
        >>> 1.0 < low < 2.5 < high < 4.0
        True
        >>> interval([0.5, 0.5, 0.5])
        (0.5, 0.5)
    """
    values = np.asarray(samples, np.float64)
    if values.ndim != 1:
        raise ValueError(f"interval: samples have shape {values.shape}, allowed is one axis, the seeds; use band for more.")
    low, high = band(values, confidence, resamples=9999)
    return float(low), float(high)


def band(samples: Any, confidence: float = 0.95, resamples: int = 999) -> tuple[np.ndarray, np.ndarray]:
    """`interval` along the last axis, for every entry of the other axes.

    Args:
        samples: shape `(..., seeds)`.
        confidence: as in `interval`.
        resamples: bootstrap resamples; the default is enough to draw.

    Returns:
        `(low, high)`, each of shape `(...)`.

    Raises:
        ValueError: if `confidence` is not between 0 and 1.

    Example:
        >>> low, high = band([[1.0, 1.0], [2.0, float("nan")]])
        >>> low
        array([ 1., nan])
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, allowed is a number between 0 and 1, such as 0.95.")
    values = np.asarray(samples, np.float64)
    shape, seeds = values.shape[:-1], values.shape[-1]
    values = values.reshape(math.prod(shape), seeds)
    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    usable = np.isfinite(values).all(axis=1) & (seeds > 1)
    point = usable & (values == values[:, :1]).all(axis=1)
    low[point] = high[point] = values[point].max(axis=1, initial=-np.inf)
    if (spread := usable & ~point).any():
        low[spread], high[spread] = _bca(values[spread], confidence, resamples)
    return low.reshape(shape), high.reshape(shape)


def _bca(values: np.ndarray, confidence: float, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    import scipy.stats  # a second to load, which who prints a stored table need not wait for

    # Around its own centre and in units of its own spread, a sample far from zero or tiny keeps its digits.
    centre = values.mean(axis=1, keepdims=True)
    scale = np.abs(values - centre).max(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the remedy for a degenerate resampling stands below
        found = scipy.stats.bootstrap(
            ((values - centre) / scale,),
            np.mean,
            axis=1,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, 10**6 // values.size),
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    # Where almost every seed agrees, the correction can have no finite value: then the range is the honest answer.
    low = np.where(np.isfinite(found.low), centre[:, 0] + scale[:, 0] * found.low, values.min(axis=1))
    high = np.where(np.isfinite(found.high), centre[:, 0] + scale[:, 0] * found.high, values.max(axis=1))
    return low, high


def paired_ratio_interval(a: Any, b: Any, confidence: float = 0.95) -> tuple[float, float]:
    """The BCa interval of the geometric mean of `a / b`, paired by seed.

    Args:
        a: one positive value a seed, shape `(seeds,)`.
        b: the same seeds in the other arm.
        confidence: as in `interval`.

    Returns:
        `(low, high)` of the ratio; an interval that excludes 1 says that the arms differ.

    Raises:
        ValueError: if the shapes differ, or a value is not positive.

    Example:
        >>> paired_ratio_interval([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
        (2.0, 2.0)
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"paired_ratio_interval: shapes are {first.shape} and {second.shape}, allowed is one value a seed in each."
        )
    if (first <= 0).any() or (second <= 0).any():
        raise ValueError("paired_ratio_interval: a ratio needs positive values; compare differences with interval(a - b).")
    low, high = interval(np.log2(first / second), confidence)  # base 2 keeps powers of two exact
    return 2.0**low, 2.0**high


def number(value: Any, *bounds: float) -> str:
    """A number, and its interval if there is one, to three significant digits or as many as tell the bounds apart.

    Args:
        value: anything; what is not a float is shown as it is.
        *bounds: low and high; not shown where one of them is not finite.

    Example:
        >>> number(0.012345, 0.01191, 0.01283), number(0.999, 0.99901, 0.99923), number(1e-9), number(3)
        ('0.0123 [0.0119, 0.0128]', '0.9990 [0.9990, 0.9992]', '1.00e-09', '3')
    """
    if value is None:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, float | np.floating):
        return str(value)
    shown = [float(value), *(float(bound) for bound in bounds)]
    if not all(map(math.isfinite, shown)):
        shown = shown[:1]
    if not math.isfinite(shown[0]):
        return str(shown[0])
    # Three digits, unless the bounds print alike and more digits, up to six, tell them apart.
    tries = [_rounded(shown, digits) for digits in range(3, 7)]
    texts = next((texts for texts in tries if len(set(texts[1:])) == 2), tries[0])
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{', '.join(texts[1:])}]"


def _rounded(values: Sequence[float], digits: int) -> list[str]:
    """All values to the same decimals, so that they can be compared by eye; the largest has `digits` digits."""
    largest = max(map(abs, values))
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    if largest == 0:
        return ["0" for _ in values]
    if -4 <= exponent < 6:
        return [f"{value:.{max(0, digits - 1 - exponent)}f}" for value in values]
    return [f"{value:.{digits - 1}e}" for value in values]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> list[list[str]]:
    """Rows as text, the header first, each quantity beside its interval.

    Args:
        rows: mappings; a quantity `x` may have `x_low` and `x_high` beside it.
        columns: which keys to show, in order; by default every key that is not such a bound, as first met.

    Returns:
        Lists of cells, all of one length. A key that a row lacks is shown as "-".

    Example:
        >>> table([{"format": "bfloat16", "loss": 0.0123, "loss_low": 0.0119, "loss_high": 0.0128}])
        [['format', 'loss'], ['bfloat16', '0.0123 [0.0119, 0.0128]']]
    """
    if columns is None:
        keys = dict.fromkeys(key for row in rows for key in row)
        columns = [key for key in keys if not (key.endswith(_BOUNDS) and key.rpartition("_")[0] in keys)]
    return [list(columns), *([_cell(row, column) for column in columns] for row in rows)]


def _cell(row: Mapping[str, Any], column: str) -> str:
    bounds = [row[column + end] for end in _BOUNDS if isinstance(row.get(column + end), int | float | np.number)]
    return number(row.get(column), *(bounds if len(bounds) == 2 else ()))
