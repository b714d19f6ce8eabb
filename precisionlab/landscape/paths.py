"""Paths between minima, and the loss along them.

Between two minima the straight line leaves the manifold; the path of `manifold_path` is a string of points pulled back onto it
and spaced out evenly, again and again. Where the manifold is not connected, or the string cannot follow it, a gap stays between
two neighbours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.landscape.vectors import losses_at, traceable
from precisionlab.landscape.walking import retract

__all__ = ["Path", "manifold_path", "straight_path"]


class Path(NamedTuple):
    """Points from one minimum to another.

    Attributes:
        points: (K, n), the ends included.
        arc: (K,) length of the path up to each.
        loss: (K,) in float64.
        gap: the longest step over the mean step; near 1 for an evenly spaced path, much more where it is torn.
    """

    points: np.ndarray
    arc: np.ndarray
    loss: np.ndarray
    gap: float


def straight_path(loss: Callable[[Any], Any], start: Any, end: Any, *, points: int = 51) -> Path:
    """The straight line between two points, and the loss on it.

    Args:
        loss: of a float64 vector (n,).
        start: (n,).
        end: (n,).
        points: how many, at least 2.

    Raises:
        ValueError: if the points differ in length, coincide or are not finite.

    Example:
        >>> straight_path(lambda w: (w @ w - 1.0) ** 2 / 2, [1.0, 0.0], [-1.0, 0.0], points=3).loss.tolist()
        [0.0, 0.5, 0.0]
    """
    first, last = _ends("straight_path", start, end, points)
    return _path("straight_path", traceable(loss), first + np.linspace(0, 1, points)[:, None] * (last - first))


def manifold_path(
    residuals: Callable[[Any], Any], start: Any, end: Any, *, points: int = 51, rounds: int = 10, via: Any = None
) -> Path:
    """A path between two minima along the manifold of minima: a string retracted and spaced out evenly, in turns.

    Args:
        residuals: of a vector (n,), giving (m,); zero at both ends.
        start: (n,) a minimum.
        end: (n,) another.
        points: how many, at least 3.
        rounds: how often.
        via: (n,) a point that the first string goes through, where the straight line leads over a place where the Jacobian
            loses rank (the centre, between opposite points of a circle).

    Returns:
        The path with 1/2 |residuals|^2 on it. A `gap` far above 1 says that the string is torn.

    Raises:
        ValueError: as `straight_path`.

    Example:
        >>> circle = lambda w: jnp.sum(w**2, keepdims=True) - 1.0
        >>> path = manifold_path(circle, [1.0, 0.0], [0.0, 1.0])
        >>> bool(path.loss.max() < 1e-25), round(float(path.arc[-1]), 3)     # a quarter of the circumference
        (True, 1.571)
    """
    first, last = _ends("manifold_path", start, end, points)
    if isinstance(rounds, bool) or not isinstance(rounds, int | np.integer) or rounds < 1:
        raise ValueError(f"manifold_path: rounds must be a whole number, at least 1; got {rounds!r}.")
    corners = [first, last] if via is None else [first, _finite_vector("manifold_path", via, first.shape), last]
    string = _evenly(np.stack(corners), points)
    for turn in range(rounds):
        string[1:-1] = retract(residuals, string[1:-1])
        if turn + 1 < rounds:
            string = _evenly(string, points)
    return _path("manifold_path", Partial(_half_square, traceable(residuals)), string)


def _half_square(residuals: Any, theta: Any) -> Any:
    return 0.5 * jnp.sum(jnp.square(residuals(theta)))


def _path(where: str, loss: Partial, points: np.ndarray) -> Path:
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(steps)])
    return Path(points, arc, losses_at(where, loss, points), float(steps.max() / steps.mean()))


def _evenly(string: np.ndarray, points: int) -> np.ndarray:
    """The polygon through some points, spaced evenly by its length; the ends stay exactly."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(string, axis=0), axis=1))])
    wanted = np.linspace(0, arc[-1], points)
    spaced = np.stack([np.interp(wanted, arc, column) for column in string.T], axis=1)
    spaced[0], spaced[-1] = string[0], string[-1]
    return spaced


def _ends(where: str, start: Any, end: Any, points: int) -> tuple[np.ndarray, np.ndarray]:
    least = 2 if where == "straight_path" else 3
    if isinstance(points, bool) or not isinstance(points, int | np.integer) or points < least:
        raise ValueError(f"{where}: points must be a whole number, at least {least}; got {points!r}.")
    first = _finite_vector(where, start, np.shape(start))
    last = _finite_vector(where, end, first.shape)
    if (first == last).all():
        raise ValueError(f"{where}: start and end are the same point; give two.")
    return first, last


def _finite_vector(where: str, vector: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.array(vector, np.float64)
    if values.ndim != 1 or values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"{where}: points must be finite vectors of one length; got shape {values.shape} beside {shape}.")
    return values
