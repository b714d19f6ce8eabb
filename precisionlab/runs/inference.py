"""Tests over seeds: is a mean where it was predicted, is it beyond a bound, and what do many such answers say together?

"Equal" cannot follow from a test that finds no difference. An equivalence test states a margin beforehand and asks whether the
mean is shown to lie within it (two one-sided tests: Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).

The tests are Student's t tests. Seeds are independent, and what is measured of one seed is mostly itself a mean or a slope. At
16 seeds of normal samples these tests err as often as they say, whereas bootstrap intervals are too narrow (a nominal 0.95
covers about 0.91; `summary.interval` shows them for their asymmetry). Under strong skew neither is exact: of 16 exponential
samples a nominal 0.05 is about 0.12 for the claim that the mean is below, and 0.02 that it is above. Compare ratios by their
logarithms. And far in the tail a t test knows only what it assumes: sixteen values cannot show a chance of 10^-17. What decides
is therefore counted in seeds (`runs.seeds`), exact for any distribution, and one bad seed may be any value.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special

__all__ = ["Test", "clopper_pearson", "holm", "one_sided", "slopes", "tost"]


class Test(NamedTuple):
    """What an equivalence test found.

    Attributes:
        estimate: the mean over seeds; NaN if a sample is not finite or there is none.
        low: lower end of the t interval of the mean at confidence `1 - 2 alpha`; NaN for fewer than two samples.
        high: upper end.
        p: the larger p value of the two one-sided tests, against "the mean lies on the margin or outside"; NaN as `low`.
        equal: True if the interval lies within the margin, which is the same as `p < alpha`; False if it lies outside of it;
            None if it holds an end of the margin, or there is no interval.
    """

    __test__ = False  # a class of this name is not a test case

    estimate: float
    low: float
    high: float
    p: float
    equal: bool | None


def tost(samples: Any, target: float, margin: float, alpha: float = 0.05) -> Test:
    """Whether the mean over seeds is equal to `target`, to within `margin`.

    Args:
        samples: one value a seed, shape `(seeds,)`; of two arms, their differences.
        target: the prediction, in the units of the samples.
        margin: how far from it still counts as equal; stated before the samples are seen.
        alpha: how often "equal" may be said of a mean on the margin or outside.

    Returns:
        The decision with its interval and p value. Where all samples are the same number, the interval is that number.

    Raises:
        ValueError: if the samples have not one axis, or target, margin or alpha is not a number that makes sense.

    Example:
        >>> found = tost([-1.02, -0.99, -1.01, -0.98, -1.0], target=-1.0, margin=0.05)
        >>> found.equal, round(found.low, 3), round(found.high, 3)
        (True, -1.015, -0.985)
        >>> tost([-0.5, -0.52, -0.49, -0.51], target=-1.0, margin=0.05).equal
        False
    """
    values = _samples("tost", samples)
    for name, given in (("target", target), ("margin", margin)):
        if not math.isfinite(given) or (name == "margin" and given <= 0):
            allowed = "a positive finite number" if name == "margin" else "a finite number"
            raise ValueError(f"tost: {name} is {given}, allowed is {allowed}.")
    if not 0 < alpha < 0.5:
        raise ValueError(f"tost: alpha is {alpha}, allowed is a number between 0 and 0.5, such as 0.05.")
    mean, error = _mean_and_error(values - target)
    above, below = _tail(mean + margin, error, len(values)), _tail(margin - mean, error, len(values))
    reach = error * float(scipy.special.stdtrit(len(values) - 1, 1 - alpha)) if error > 0 else error
    low, high = mean - reach, mean + reach
    p = math.nan if math.isnan(error) else max(above, below)
    equal = None
    if -margin < low and high < margin:
        equal = True
    elif low > margin or high < -margin:
        equal = False
    return Test(target + mean, target + low, target + high, p, equal)


def one_sided(samples: Any, bound: float = 0.0) -> float:
    """The p value of the claim that the mean over seeds is above `bound`: small where the samples support it.

    It is the t test's. Arms that share their seeds are compared by their differences, `one_sided(a - b)`; that a mean is
    below, by `one_sided(-samples, -bound)`.

    Args:
        samples: one value a seed, shape `(seeds,)`.
        bound: what the mean is claimed to exceed.

    Returns:
        How often samples of a mean at the bound would support the claim as much. NaN for fewer than two samples or any that is
        not finite; where all samples are the same number, 0 above the bound and 1 otherwise.

    Raises:
        ValueError: if the samples have not one axis, or the bound is not finite.

    Example:
        >>> round(one_sided([1.0, 2.0, 3.0, 4.0]), 4)
        0.0152
        >>> one_sided([0.5, 0.5, 0.5], bound=0.5)
        1.0
    """
    values = _samples("one_sided", samples)
    if not math.isfinite(bound):
        raise ValueError(f"one_sided: bound is {bound}, allowed is a finite number.")
    mean, error = _mean_and_error(values - bound)
    return _tail(mean, error, len(values))


def _samples(where: str, samples: Any) -> np.ndarray:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1:
        raise ValueError(f"{where}: samples have shape {values.shape}, allowed is one axis, the seeds; give one row at a time.")
    return values


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error; the error is NaN where there is none, the mean also where a value is not finite."""
    if not len(values) or not np.isfinite(values).all():
        return math.nan, math.nan
    if (values == values[0]).all():  # exactly: a mean of equal numbers need not be that number
        return float(values[0]), math.nan if len(values) < 2 else 0.0
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _tail(mean: float, error: float, seeds: int) -> float:
    """P(T >= mean / error) for Student's T with seeds - 1 degrees of freedom."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    return float(scipy.special.stdtr(seeds - 1, -mean / error))


def holm(p_values: Any) -> np.ndarray:
    """Adjust p values for being looked at together: of those below alpha, any is wrong with a probability of at most alpha.

    Holm's step-down procedure (Scand. J. Statist. 6, 1979). It needs no independence: the smallest of m is multiplied by m, the
    next by m - 1, and so on, and none becomes smaller than one before it.

    Args:
        p_values: shape `(tests,)`. NaN, a test that could not be made, counts in m, because the family was fixed before the
            samples were seen; it stays NaN.

    Returns:
        Adjusted p values in the given order, at most 1, shape `(tests,)`.

    Raises:
        ValueError: if there is more than one axis, or a value is outside of 0 to 1.

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005])
        array([0.03, 0.06, 0.06, 0.02])
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"holm: p values have shape {values.shape}, allowed is one axis, the tests.")
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"holm: p values are {values.tolist()}, allowed are numbers from 0 to 1, and NaN.")
    order = np.argsort(values, kind="stable")  # NaN comes last
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a probability: no value in it is refuted by the count on either side at `(1 - confidence) / 2`.

    It covers with at least `confidence` at any probability (Clopper and Pearson, Biometrika 26, 1934). If every one of n seeds
    agrees, its lower end is `((1 - confidence) / 2) ** (1 / n)`.

    Args:
        successes: how often it happened.
        trials: how often it could have, at least 1.
        confidence: the least probability of covering.

    Returns:
        `(low, high)`.

    Raises:
        ValueError: if the counts are not whole numbers with `0 <= successes <= trials`, or confidence is not between 0 and 1.

    Example:
        >>> low, high = clopper_pearson(16, 16)
        >>> round(low, 4), high
        (0.7941, 1.0)
    """
    hits, n = int(successes), int(trials)
    if (hits, n) != (successes, trials) or not 0 <= hits <= n or n < 1:
        raise ValueError(
            f"clopper_pearson: {successes} successes in {trials} trials, allowed are whole numbers, "
            "at least one trial and from 0 to all of them successes."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"clopper_pearson: confidence is {confidence}, allowed is a number between 0 and 1, such as 0.95.")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(scipy.special.betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(scipy.special.betainccinv(hits + 1, n - hits, tail))
    return low, high


def slopes(x: Sequence[float] | np.ndarray, y: Any) -> np.ndarray:
    """Slopes of the least-squares lines of y against x, one for each entry of the other axes.

    Args:
        x: where, shape `(points,)`, at least two of them different.
        y: what was measured there, shape `(..., points)`, such as `(seeds, points)`.

    Returns:
        Slopes in units of y over units of x, shape `(...)`; NaN where a y is not finite.

    Raises:
        ValueError: if the shapes do not fit, or x has no two different finite values.

    Example:
        >>> slopes([1, 2, 3], [[2.0, 4.0, 6.0], [1.0, 1.0, 1.0]])
        array([2., 0.])
    """
    places, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if places.ndim != 1 or values.ndim < 1 or values.shape[-1] != len(places):
        raise ValueError(
            f"slopes: x has shape {places.shape}, y has {values.shape}; give y a value for each x on its last axis."
        )
    if not np.isfinite(places).all() or len(np.unique(places)) < 2:
        raise ValueError(f"slopes: x is {places.tolist()}, allowed are finite numbers, at least two of them different.")
    usable = np.asarray(np.isfinite(values).all(axis=-1, keepdims=True))
    values = np.where(usable, values, 0.0)
    away = places - places.mean()
    found = (values - values.mean(axis=-1, keepdims=True)) @ away / (away @ away)
    return np.where(usable[..., 0], found, np.nan)
