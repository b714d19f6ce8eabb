"""Claims about whole numbers and about means, and the finding that two of them make.

A dimension is right in a seed or it is not: a t test of sixteen equal numbers has no spread to work with. So the claim is about
the share of seeds that agree, with its exact interval (Clopper and Pearson), and it holds if every seed agrees, or all but one
in sixteen: more seeds must not make a claim harder to hold, and one of them may be a bad one. Against a
hypothesis that fails stands a sign test: were it true, each seed would agree with it at least as often as not.

A mean is above or below a bound if its bootstrap interval is; it is equal to a prediction if that is shown (`tost`).
"""

import math
from typing import Any

import numpy as np
import scipy.special

from precisionlab.experiments.common.measured import Finding
from precisionlab.runs.inference import clopper_pearson, tost
from precisionlab.runs.results import Claim
from precisionlab.runs.seeds import sign_test_above
from precisionlab.runs.summary import interval

__all__ = ["above", "against", "agreement", "below", "equal", "estimate", "finding", "mean_where", "p_of_equal"]


def agreement(name: str, agree: Any) -> Claim:
    """The claim that something is so in every seed.

    Args:
        name: what.
        agree: (seeds,) booleans.

    Returns:
        The share of seeds with its interval; held if all agree, of sixteen or more all but one in sixteen; not held if half of
        them or fewer do; else open.

    Example:
        >>> claim = agreement("nullity 36", [True] * 16)
        >>> claim.measured, round(claim.low, 2), claim.held
        (1.0, 0.79, True)
        >>> agreement("nullity 36", [True] * 15 + [False]).held, agreement("nullity 36", [True] * 7 + [False]).held
        (True, None)
    """
    seen = np.asarray(agree, bool)
    share = float(seen.mean())
    held = True if (~seen).sum() <= seen.size // 16 else (False if share <= 0.5 else None)
    return Claim(f"{name}: share of seeds", 1.0, share, *clopper_pearson(int(seen.sum()), seen.size), held)


def against(agree: Any) -> float:
    """The p value of so few seeds agreeing, were each to agree with a chance of one half.

    Example:
        >>> against([False] * 4), against([True] * 4)
        (0.0625, 1.0)
    """
    seen = np.asarray(agree, bool)
    return float(scipy.special.bdtr(int(seen.sum()), seen.size, 0.5))


def finding(row: int, geometry: Claim, representation: Claim, p_geometry: float, p_representation: float) -> Finding:
    """A finding on the square loss, with the p value that belongs in it: that under the hypothesis whose claim fails.

    Args:
        row: its number in the table of predictions.
        geometry: the claim of geometry.
        representation: the claim of representation.
        p_geometry: the chance of such a measurement if geometry were true.
        p_representation: the chance of it if representation were true.

    Returns:
        Its p value is one of the two; the larger where both claims fail, NaN where neither does.

    Example:
        >>> held, failed = Claim("", 1.0, 1.0, 0.8, 1.0, True), Claim("", 1.0, 0.0, 0.0, 0.2, False)
        >>> finding(7, held, failed, 1.0, 1e-5).p
        1e-05
    """
    failed = [p for claim, p in ((geometry, p_geometry), (representation, p_representation)) if claim.held is False]
    return Finding(row, "square", geometry, representation, max(failed) if failed else math.nan)


def estimate(samples: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds, and the ends of its interval.

    Args:
        samples: (seeds,).
    """
    return float(np.mean(samples)), *interval(samples)


def mean_where(values: np.ndarray, chosen: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the chosen values along an axis; NaN where none is.

    Args:
        values: of any shape.
        chosen: booleans of the same shape.
        axis: gone in what is returned.

    Example:
        >>> mean_where(np.array([[1.0, 3.0], [5.0, np.nan]]), np.array([[True, True], [True, False]]), axis=1).tolist()
        [2.0, 5.0]
    """
    counts = chosen.sum(axis=axis)
    return np.where(counts > 0, np.where(chosen, values, 0.0).sum(axis=axis) / np.maximum(counts, 1), np.nan)


def above(name: str, samples: np.ndarray, bound: float) -> Claim:
    """The claim that a mean is above a bound: held if its interval is, not held if that is below.

    Args:
        name: of what.
        samples: (seeds,).
        bound: of the mean.

    Example:
        >>> above("steps", np.array([3.0, 4.0, 5.0]), 1.0).held, above("steps", np.array([3.0, 4.0, 5.0]), 4.0).held
        (True, None)
    """
    mean, low, high = estimate(samples)
    held = True if low > bound else (False if high < bound else None)
    return Claim(name, f"> {bound:g}", mean, low, high, held)


def below(name: str, samples: np.ndarray, bound: float) -> Claim:
    """The claim that a mean is below a bound.

    Args:
        name: of what.
        samples: (seeds,).
        bound: of the mean.
    """
    mean, low, high = estimate(samples)
    held = True if high < bound else (False if low > bound else None)
    return Claim(name, f"< {bound:g}", mean, low, high, held)


def equal(name: str, samples: np.ndarray, target: float, margin: float) -> Claim:
    """The claim that a mean is what was predicted, to within a margin (see `runs.inference.tost`).

    Args:
        name: of what.
        samples: (seeds,).
        target: the prediction.
        margin: how far from it still counts as equal.
    """
    return Claim(name, target, *estimate(samples), tost(samples, target, margin).equal)


def p_of_equal(samples: np.ndarray, target: float, margin: float) -> float:
    """The p value of such samples if their median were what was predicted, to within a margin: two sign tests.

    Args:
        samples: (seeds,).
        target: the prediction.
        margin: how far from it still counts as equal.
    """
    return min(1.0, 2 * min(sign_test_above(samples, target + margin), sign_test_above(-samples, margin - target)))
