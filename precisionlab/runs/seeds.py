"""What seeds say without a model of their spread: an exact interval of the median, and a sign test.

Both count seeds and nothing else, so that one bad seed costs one count, however bad it is. A seed without a number (NaN, a run
that diverged) stays in the count: it agrees with no claim, and lies beyond either end of an interval.
"""

import math
from typing import Any

import numpy as np
import scipy.special

__all__ = ["agreeing", "finite_or_none", "median", "median_interval", "sign_test", "sign_test_above"]


def sign_test(samples: Any, null: float = 0.0) -> float:
    """The two-sided sign test of "as many seeds lie below `null` as above".

    With n seeds it cannot say less than 2^(1 - n): 3.1e-5 of 16, 4.7e-10 of 32.

    Args:
        samples: one value a seed, shape `(seeds,)`; NaN and values equal to `null` count against the side that has more.
        null: the median under the hypothesis, in the units of the samples.

    Returns:
        How often n fair coins are as one-sided; 1 for no seeds.

    Raises:
        ValueError: if the samples have not one axis, or `null` is not finite.

    Example:
        >>> sign_test([1.0] * 16), sign_test([1.0] * 15 + [float("nan")])
        (3.0517578125e-05, 0.000518798828125)
    """
    values = _checked("sign_test", samples)
    if not math.isfinite(null):
        raise ValueError(f"sign_test: null is {null}, allowed is a finite number.")
    more = int(max(np.sum(values < null), np.sum(values > null)))
    return min(1.0, 2 * float(scipy.special.bdtr(len(values) - more, len(values), 0.5))) if len(values) else 1.0


def sign_test_above(samples: Any, bound: float = 0.0) -> float:
    """The one-sided sign test of the claim that the median is above a bound: small where the seeds support it.

    With n seeds it cannot say less than 2^-n. That the median is below is `sign_test_above(-samples, -bound)`.

    Args:
        samples: one value a seed, shape `(seeds,)`; NaN and values equal to the bound are not above it.
        bound: what the median is claimed to exceed.

    Returns:
        How often n fair coins show as many heads as seeds are above; 1 for no seeds.

    Raises:
        ValueError: if the samples have not one axis, or the bound is not finite.

    Example:
        >>> sign_test_above([1.0, 2.0, 3.0, 4.0]), sign_test_above([1.0, 2.0, 3.0, float("nan")])
        (0.0625, 0.3125)
    """
    values = _checked("sign_test_above", samples)
    if not math.isfinite(bound):
        raise ValueError(f"sign_test_above: bound is {bound}, allowed is a finite number.")
    more = int(np.sum(values > bound))
    return float(scipy.special.bdtr(len(values) - more, len(values), 0.5)) if len(values) else 1.0


def median_interval(samples: Any, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a median: two of the samples, in order, that hold it between them whatever the distribution.

    Args:
        samples: one value a seed, shape `(seeds,)`. NaN is below every sample for the lower end and above every one for the
            upper: a bad seed widens the interval, and an end that only bad seeds could set is infinite.
        confidence: the least probability of covering.

    Returns:
        `(low, high)`, the k-th smallest and largest sample, k as large as the confidence allows; NaN where there are too few
        (below six at 0.95).

    Raises:
        ValueError: if the samples have not one axis, or `confidence` is not between 0 and 1.

    Example:
        >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        (1.0, 6.0)
        >>> median_interval([3.0] * 15 + [float("nan")])
        (3.0, 3.0)
    """
    values = _checked("median_interval", samples)
    if not 0 < confidence < 1:
        raise ValueError(f"median_interval: confidence is {confidence}, allowed is a number between 0 and 1, such as 0.95.")
    n = len(values)
    tails = 2 * scipy.special.bdtr(np.arange((n + 1) // 2), n, 0.5) if n else np.zeros(0)
    place = int(np.sum(tails <= 1 - confidence)) - 1
    if place < 0:
        return math.nan, math.nan
    missing = np.isnan(values)
    low, high = (np.sort(np.where(missing, end, values)) for end in (-np.inf, np.inf))
    return float(low[place]), float(high[n - 1 - place])


def median(samples: Any) -> float:
    """The median of the seeds that have a number; NaN if none has.

    Args:
        samples: one value a seed, shape `(seeds,)`.

    Example:
        >>> median([1.0, float("nan"), 3.0])
        2.0
    """
    values = _checked("median", samples)
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if len(kept) else math.nan


def agreeing(samples: Any, bound: float, below: bool) -> int:
    """How many seeds lie below a bound, or else on it or above; a seed without a number does neither.

    Args:
        samples: one value a seed, shape `(seeds,)`.
        bound: in the units of the samples.
        below: which side.

    Example:
        >>> values = [0.5, 2.0, 3.0, float("nan")]
        >>> agreeing(values, 1.0, True), agreeing(values, 1.0, False)
        (1, 2)
    """
    values = _checked("agreeing", samples)
    return int(np.sum(values < bound if below else values >= bound))


def finite_or_none(low: float, high: float) -> tuple[float, float]:
    """An interval to be shown: NaN at both ends where one of them is infinite, for then it says nothing.

    Args:
        low: lower end.
        high: upper end.

    Example:
        >>> finite_or_none(0.5, 2.0), finite_or_none(0.5, float("inf"))
        ((0.5, 2.0), (nan, nan))
    """
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)


def _checked(where: str, samples: Any) -> np.ndarray:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1:
        raise ValueError(f"{where}: samples have shape {values.shape}, allowed is one axis, the seeds; give one row at a time.")
    return values
