"""Claims about whole numbers: a dimension is right in a seed or it is not.

A t test of sixteen equal numbers has no spread to work with. So the claim is about the share of seeds that agree, with its
exact interval (Clopper and Pearson), and it holds if every seed agrees. Against a hypothesis that fails stands a sign test:
were it true, each seed would agree with it at least as often as not.
"""

from typing import Any

import numpy as np
import scipy.special

from precisionlab.runs.inference import clopper_pearson
from precisionlab.runs.results import Claim

__all__ = ["against", "agreement"]


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
