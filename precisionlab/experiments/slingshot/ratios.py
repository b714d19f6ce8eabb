"""Ratios by seed, in logarithms, averaged over the registers of one kind: what claims and rows are made of.

`of` is what was measured of one data set: arrays over F registers, A arms and S seeds, by name: `path_test`, `path_train` (F,
S, looks), `test`, `train`, `norm` (F, A, S, looks), `norm_before`, `memorized` (F, S), `early` (F, A, S), `high`, `total` (F,
A, points, S), and `shares`, when the later looks were, as shares of the steps before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from precisionlab.experiments.slingshot.looks import at_equal_loss, at_moment, at_norm
from precisionlab.experiments.slingshot.spectra import POINTS

__all__ = ["NORM", "READ", "early_losses", "log2", "loss_ratio", "power_ratio", "recovered", "share_ratio"]

READ = 0.1
"""The moment at which the effect is judged, a share of the steps before."""
NORM = "norm"
"""The other kind of moment: when the norm of all weights is again what it was before."""


def loss_ratio(
    of: Mapping[str, Any], members: Sequence[int], arms: Sequence[str], arm: str, against: str, moment: float | str = READ
) -> np.ndarray:
    """Log2 of an arm's test loss over another.

    Args:
        of: arrays, see above.
        members: places of the registers to average over.
        arms: the names of the arms, in order.
        arm: one of them.
        against: before (the slingshot), early (stopping at equal training loss, at `READ` only), or an arm at the same moment.
        moment: a share of the steps, or `NORM`, where registers in which the norm does not come back are left out of the
            average.

    Returns:
        Shape (S,); NaN where the arm was not trained so long, a loss is no number, or the norm never came back.
    """

    def losses(name: str) -> np.ndarray:
        place = list(arms).index(name)
        test = np.asarray(of["test"], np.float64)[members, place]
        if moment == NORM:
            return at_norm(of["norm"][members, place], test, of["norm_before"][members])
        return at_moment(test, of["shares"], float(moment))

    if against == "before":
        other = np.asarray(of["path_test"], np.float64)[members, :, -1]
    elif against == "early":
        other = np.asarray(of["early"], np.float64)[members, list(arms).index(arm)]
    else:
        other = losses(against)
    return _mean(log2(losses(arm)) - log2(other), some=moment == NORM)


def recovered(of: Mapping[str, Any], members: Sequence[int], arms: Sequence[str], arm: str) -> tuple[int, int]:
    """How many runs of an arm get back to the norm before, and of how many.

    Args:
        of: arrays, see above.
        members: places of the registers.
        arms: the names of the arms.
        arm: one of them.
    """
    there = np.asarray(of["norm"])[members, list(arms).index(arm)] >= np.asarray(of["norm_before"])[members][..., None]
    return int(there.any(-1).sum()), int(there.any(-1).size)


def power_ratio(of: Mapping[str, Any], members: Sequence[int], place: int, point: str, against: str = "before") -> np.ndarray:
    """Log2 of the power of high frequencies at one of `POINTS` over that at another.

    Args:
        of: arrays, see above.
        members: places of the registers.
        place: of the arm.
        point: numerator.
        against: denominator.

    Returns:
        Shape (S,).
    """
    return _fall(np.asarray(of["high"], np.float64)[members, place], point, against)


def share_ratio(of: Mapping[str, Any], members: Sequence[int], place: int, point: str, against: str = "before") -> np.ndarray:
    """The same of the share of the power that is high."""
    high, total = (np.asarray(of[name], np.float64)[members, place] for name in ("high", "total"))
    return _fall(high / np.maximum(total, 1e-300), point, against)


def early_losses(of: Mapping[str, Any], none: int) -> np.ndarray:
    """For each run at `READ`, the test loss of early stopping where the run without a slingshot had the same training loss.

    Args:
        of: arrays, see above.
        none: the place of the arm that is trained on without; what it does after `READ` is left out.

    Returns:
        Shape (F, A, S).
    """
    later = (np.asarray(of["shares"]) <= READ) & (np.asarray(of["shares"]) > 0)
    train, test = (np.concatenate([of[f"path_{kind}"], of[kind][:, none][..., later]], axis=-1) for kind in ("train", "test"))
    target = at_moment(np.asarray(of["train"]), of["shares"], READ)
    found = np.empty(target.shape)
    for register, seed in np.ndindex(target.shape[0], target.shape[2]):
        here = register, slice(None), seed
        found[here], _ = at_equal_loss(train[register, seed], test[register, seed], target[here])
    return found


def log2(values: Any) -> np.ndarray:
    """Of what may underflow to 0: of 1e-300 then."""
    return np.log2(np.maximum(np.asarray(values, np.float64), 1e-300))


def _fall(values: np.ndarray, point: str, against: str) -> np.ndarray:
    return _mean(log2(values[:, POINTS.index(point)]) - log2(values[:, POINTS.index(against)]))


def _mean(logs: np.ndarray, some: bool = False) -> np.ndarray:
    """Over registers: of those that have a number, or NaN unless all have."""
    if not some:
        return logs.mean(axis=0)
    there = ~np.isnan(logs)
    return np.where(there.any(0), np.where(there, logs, 0.0).sum(0) / np.maximum(there.sum(0), 1), np.nan)
