"""When one looks at a run after its slingshot, and what one reads there: nothing but numpy.

The moments are shares of the updates before the slingshot: after 1, 2.5, 5, 10 and 50 % more steps; and one of the run's own,
when the norm of all weights is again what it was before. A run that does not get there within the steps it is given has no such
moment, and is counted as one that has none.
"""

from typing import Any

import numpy as np

__all__ = ["MOMENTS", "at_equal_loss", "at_moment", "at_norm", "look_shares"]

MOMENTS = (0.01, 0.025, 0.05, 0.1, 0.5)
"""When ratios are read, as shares of the steps before the slingshot."""

_EARLY = (0.0, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1)


def look_shares(longest: float) -> tuple[float, ...]:
    """When the losses are taken, as shares of the steps before: densely at first, in the end in tenths.

    Args:
        longest: the last of them, at least 0.1; beyond 0.5 in tenths.

    Example:
        >>> look_shares(0.2)
        (0.0, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
    """
    return (*_EARLY, *(k / 20 for k in range(3, 10) if k <= 20 * longest), *(k / 10 for k in range(5, round(10 * longest) + 1)))


def at_moment(values: np.ndarray, shares: Any, moment: float) -> np.ndarray:
    """What was there after a share of the steps; NaN if nobody looked so late.

    Args:
        values: shape `(..., looks)`.
        shares: of the looks, shape `(looks,)`.
        moment: one of them.

    Example:
        >>> at_moment(np.array([[3.0, 1.0]]), (0.0, 0.1), 0.1), at_moment(np.array([[3.0, 1.0]]), (0.0, 0.1), 0.5)
        (array([1.]), array([nan]))
    """
    found = np.flatnonzero(np.isclose(np.asarray(shares, np.float64), moment))
    return values[..., found[0]] if len(found) else np.full(values.shape[:-1], np.nan)


def at_norm(norms: np.ndarray, values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What was there when the norm first was again at its target; between two looks, linearly in the norm.

    Args:
        norms: of the weights at each look, shape `(..., looks)`; NaN after the last.
        values: at the same looks, such as test losses.
        target: the norms to find, shape `(...)`.

    Returns:
        Shape `(...)`; NaN where the run does not get there.

    Example:
        >>> norms, losses = np.array([[1.0, 3.0, 5.0], [1.0, 2.0, 3.0]]), np.array([[9.0, 5.0, 7.0], [9.0, 8.0, 7.0]])
        >>> at_norm(norms, losses, np.array([4.0, 4.0]))
        array([ 6., nan])
    """
    found = np.full(target.shape, np.nan)
    for place, wanted in np.ndenumerate(target):
        sizes, seen = norms[place], values[place]
        there = np.flatnonzero(sizes >= wanted)
        if len(there):
            end = there[0]
            part = 1.0 if end == 0 else (wanted - sizes[end - 1]) / (sizes[end] - sizes[end - 1])
            found[place] = seen[end] if end == 0 else seen[end - 1] + part * (seen[end] - seen[end - 1])
    return found


def at_equal_loss(path_train: Any, path_test: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """The test loss at which a training would have stopped at a given training loss: where it first falls to that.

    Between two looks both losses are interpolated, linearly in the logarithm of the training loss.

    Args:
        path_train: training losses of one run, in order, above 0, shape (looks,).
        path_test: test losses at the same looks.
        target: training losses to find, shape (targets,).

    Returns:
        `(test, reached)`: the test losses, and whether the run gets there; where it does not, the test loss at its lowest (or,
        for a target above its first, at its first) training loss. NaN for a target that is NaN.

    Example:
        >>> test, reached = at_equal_loss([4.0, 1.0, 0.25], [8.0, 2.0, 6.0], [2.0, 0.25, 0.1])
        >>> test.tolist(), reached.tolist()
        ([5.0, 6.0, 6.0], [True, True, False])
    """
    train, test, wanted = (np.asarray(values, np.float64) for values in (path_train, path_test, target))
    found, reached = np.full(wanted.shape, np.nan), np.zeros(wanted.shape, bool)
    for place, loss in np.ndenumerate(wanted):
        if np.isnan(loss) or np.isnan(train).all():
            continue
        below = np.flatnonzero(train <= loss)
        reached[place] = len(below) > 0 and (below[0] > 0 or train[0] == loss)
        if not len(below):
            found[place] = test[np.nanargmin(train)]
        elif below[0] == 0:
            found[place] = test[0]
        else:
            end = below[0]
            part = np.log(train[end - 1] / loss) / np.log(train[end - 1] / train[end])
            found[place] = test[end - 1] + part * (test[end] - test[end - 1])
    return found, reached
