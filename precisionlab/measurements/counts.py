"""Claims about whole numbers: a dimension is right in a seed or it is not.

A t test of sixteen equal numbers has no spread to work with. So the claim is about the share of seeds that agree, with its
exact interval (Clopper and Pearson), and it holds if every seed agrees. Against a hypothesis that fails stands a sign test:
were it true, each seed would agree with it at least as often as not.
"""

import math
from typing import Any

import numpy as np
import scipy.special

from precisionlab.runs.inference import clopper_pearson
from precisionlab.runs.results import Claim

__all__ = ["against", "agreement", "p_of_failed"]


def agreement(name: str, agree: Any) -> Claim:
    """The claim that something is so in every seed.

    Args:
        name: what.
        agree: (seeds,) booleans.

    Returns:
        The share of seeds with its interval; held if all agree, not held if none or half of them or fewer do, else open.

    Example:
        >>> claim = agreement("nullity 36", [True] * 16)
        >>> claim.measured, round(claim.low, 2), claim.held
        (1.0, 0.79, True)
    """
    seen = np.asarray(agree, bool)
    share = float(seen.mean())
    held = True if seen.all() else (False if share <= 0.5 else None)
    return Claim(f"{name}: share of seeds", 1.0, share, *clopper_pearson(int(seen.sum()), seen.size), held)


def against(agree: Any) -> float:
    """The p value of so few seeds agreeing, were each to agree with a chance of one half.

    Example:
        >>> against([False] * 4), against([True] * 4)
        (0.0625, 1.0)
    """
    seen = np.asarray(agree, bool)
    return float(scipy.special.bdtr(int(seen.sum()), seen.size, 0.5))


def p_of_failed(geometry: Claim, representation: Claim, *, p_geometry: float, p_representation: float) -> float:
    """The p value that belongs in a finding: that under the hypothesis whose claim fails.

    Args:
        geometry: the claim of geometry.
        representation: the claim of representation.
        p_geometry: the chance of such a measurement if geometry were true.
        p_representation: the chance of it if representation were true.

    Returns:
        One of them; the larger where both fail, NaN where neither does.

    Example:
        >>> held, failed = Claim("", 1.0, 1.0, 0.8, 1.0, True), Claim("", 1.0, 0.0, 0.0, 0.2, False)
        >>> p_of_failed(held, failed, p_geometry=1.0, p_representation=1e-5)
        1e-05
    """
    failed = [p for claim, p in ((geometry, p_geometry), (representation, p_representation)) if claim.held is False]
    return max(failed) if failed else math.nan
