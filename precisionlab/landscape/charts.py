"""Charts of the loss around minima, in planes and along paths whose axes mean something.

A plane through random directions shows mostly row directions, because a random vector has a part in the row space of J wherever
that is; one through null and row directions shows what there is to see: a valley floor and its walls. Its axes are orthonormal,
so that distances in the chart are distances between weights.

Given a format, a chart also shows the lattice. A plane misses nearly all lattice points, and so each point of the plane is
shown as what would be stored for it: `Cells` holds the distinct stored points, where they lie (projected to the plane), how far
off the plane, and whether training is frozen there: whether no weight would move under one step of gradient descent, rounded to
nearest.

Between two minima the straight line leaves the manifold; the path of `manifold_path` is a string of points pulled back onto it
and spaced out evenly, again and again. Where the manifold is not connected, or the string cannot follow it, a gap stays between
two neighbours.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.landscape.spaces import split_spaces
from precisionlab.landscape.vectors import check_function, traceable
from precisionlab.landscape.walking import retract
from precisionlab.numerics.checks import check_format
from precisionlab.numerics.formats import Format
from precisionlab.numerics.rounding import round_to
from precisionlab.stagnation.landing import landing_threshold

__all__ = [
    "Cells",
    "Chart",
    "Path",
    "Plane",
    "chart",
    "manifold_path",
    "plane_along",
    "plane_at_minimum",
    "plane_through",
    "straight_path",
]


class Plane(NamedTuple):
    """A plane in the space of weights.

    Attributes:
        origin: (n,) the point at (0, 0).
        right: (n,) unit vector of the first coordinate.
        up: (n,) unit vector of the second, orthogonal to it.
    """

    origin: np.ndarray
    right: np.ndarray
    up: np.ndarray


class Cells(NamedTuple):
    """The lattice as a plane meets it.

    Attributes:
        points: (C, n) the stored weights, each once.
        right: (C,) first coordinate of their projection to the plane.
        up: (C,) second coordinate.
        offset: (C,) distance from the plane.
        frozen: (C,) whether no weight moves there.
        owner: (U, R) for each point of the chart which of them is stored for it.
    """

    points: np.ndarray
    right: np.ndarray
    up: np.ndarray
    offset: np.ndarray
    frozen: np.ndarray
    owner: np.ndarray


class Chart(NamedTuple):
    """The loss on a grid in a plane.

    Attributes:
        plane: where it is.
        right: (R,) first coordinates.
        up: (U,) second coordinates.
        loss: (U, R) in float64.
        cells: the lattice, if a format was given.
    """

    plane: Plane
    right: np.ndarray
    up: np.ndarray
    loss: np.ndarray
    cells: Cells | None


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


def plane_along(origin: Any, right: Any, up: Any) -> Plane:
    """The plane through a point along two directions; `right` is kept, `up` made orthogonal to it, both become unit vectors.

    Args:
        origin: (n,).
        right: (n,) not zero.
        up: (n,) not parallel to `right`.

    Raises:
        ValueError: if the vectors differ in length, are not finite, or span no plane.

    Example:
        >>> plane_along([1.0, 0.0], [2.0, 0.0], [1.0, 1.0]).up.tolist()
        [0.0, 1.0]
    """
    at, first, second = (np.asarray(vector, np.float64) for vector in (origin, right, up))
    if at.ndim != 1 or not at.shape == first.shape == second.shape:
        raise ValueError(f"plane_along: three vectors of one length are needed; got {at.shape}, {first.shape}, {second.shape}.")
    if not all(np.isfinite(vector).all() for vector in (at, first, second)):
        raise ValueError("plane_along: a vector has entries that are not finite; give finite ones.")
    size = np.linalg.norm(first)
    first = first / size if size else first
    across = second - (second @ first) * first
    if not size or np.linalg.norm(across) <= 1e-12 * np.linalg.norm(second):
        raise ValueError("plane_along: the two directions are parallel or zero and span no plane; give two that differ.")
    across = across / np.linalg.norm(across)
    across = across - (across @ first) * first  # twice is enough
    return Plane(at, first, across / np.linalg.norm(across))


def plane_through(first: Any, second: Any, third: Any) -> Plane:
    """The plane through three points, the first at (0, 0) and the second on the axis to the right.

    Args:
        first: (n,).
        second: (n,).
        third: (n,) not on the line through the others.

    Raises:
        ValueError: as `plane_along`.

    Example:
        >>> plane_through([1.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 1.0, 5.0]).up.tolist()
        [0.0, 0.0, 1.0]
    """
    at = np.asarray(first, np.float64)
    return plane_along(at, np.asarray(second, np.float64) - at, np.asarray(third, np.float64) - at)


def plane_at_minimum(residuals: Callable[[Any], Any], theta: Any, *, null: int = 0, row: int = 0) -> Plane:
    """The plane at a minimum with a null direction to the right and a row direction up: along the valley, and out of it.

    Args:
        residuals: of a vector (n,), giving (m,).
        theta: (n,) the minimum.
        null: which null direction.
        row: which row direction; the first has the largest singular value.

    Raises:
        ValueError: if there are not so many directions.

    Example:
        >>> plane = plane_at_minimum(lambda w: w[:1] ** 2 + w[1:] ** 2 - 1.0, [1.0, 0.0])
        >>> bool(np.allclose(np.abs(plane.right), [0, 1])), bool(np.allclose(np.abs(plane.up), [1, 0]))
        (True, True)
    """
    split = split_spaces(residuals, theta)
    for name, index, have in (("null", null, split.null.shape[1]), ("row", row, split.row.shape[1])):
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < have:
            raise ValueError(
                f"plane_at_minimum: {name}={index!r}, and there are {have} {name} directions here, counted from 0; "
                "give one of them, or choose directions yourself with plane_along."
            )
    return plane_along(theta, split.null[:, null], split.row[:, row])


def chart(
    loss: Callable[[Any], Any],
    plane: Plane,
    reach: float | tuple[float, float, float, float],
    *,
    size: int = 101,
    fmt: Format | None = None,
    lr: float | None = None,
) -> Chart:
    """The loss on a grid in a plane, and what a format makes of it.

    Args:
        loss: of a float64 vector (n,). Data in a `jax.tree_util.Partial` share one compilation.
        plane: where.
        reach: how far from the origin in each direction, or (left, right, bottom, top) in coordinates of the plane.
        size: points on each side, from 2 to 2001.
        fmt: the format of the stored weights; None for the loss alone.
        lr: the step size that decides what is frozen; needed with `fmt`.

    Raises:
        ValueError: if a number is out of range, or `lr` is missing.

    Example:
        >>> around = chart(lambda w: jnp.sum(w**2) / 2, plane_along([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]), 1.0, size=3)
        >>> around.loss.tolist()
        [[1.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 1.0]]
    """
    left, right, bottom, top = reach if isinstance(reach, tuple) else (-reach, reach, -reach, reach)
    if not (np.isfinite([left, right, bottom, top]).all() and left < right and bottom < top):
        raise ValueError(f"chart: reach must be a positive number, or left < right and bottom < top; got {reach}.")
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 2 <= size <= 2001:
        raise ValueError(f"chart: size must be a whole number from 2 to 2001; got {size!r}.")
    if fmt is not None:
        check_format(fmt)
        if lr is None or not (np.isfinite(lr) and lr > 0):
            raise ValueError(f"chart: what a format freezes depends on the step; give a positive lr, got {lr}.")
    xs, ys = np.linspace(left, right, size), np.linspace(bottom, top, size)
    thetas = (plane.origin + xs[:, None] * plane.right + ys[:, None, None] * plane.up).reshape(size * size, -1)
    fun = traceable(loss)
    check_function("chart", fun, len(plane.origin), scalar=True)
    with jax.enable_x64(True):
        values = np.asarray(_losses(fun, jnp.asarray(thetas))).reshape(size, size)
        cells = None if fmt is None or lr is None else _cells(fun, plane, thetas, (size, size), fmt, float(lr))
    return Chart(plane, xs, ys, values, cells)


def _cells(loss: Partial, plane: Plane, thetas: np.ndarray, shape: tuple[int, int], fmt: Format, lr: float) -> Cells:
    stored = np.asarray(_stored(jnp.asarray(thetas), fmt)) + 0.0  # +0 and -0 are one point
    points, owner = np.unique(stored, axis=0, return_inverse=True)
    frozen = np.asarray(_frozen(loss, jnp.asarray(points), jnp.asarray(lr), fmt))
    away = points - plane.origin
    right, up = away @ plane.right, away @ plane.up
    offset = np.linalg.norm(away - right[:, None] * plane.right - up[:, None] * plane.up, axis=1)
    return Cells(points, right, up, offset, frozen, owner.reshape(shape))


@jax.jit
def _losses(loss: Any, thetas: Any) -> Any:
    return jax.lax.map(loss, thetas, batch_size=1024)


@functools.partial(jax.jit, static_argnames="fmt")
def _stored(thetas: Any, fmt: Format) -> Any:
    return round_to(thetas, fmt)


@functools.partial(jax.jit, static_argnames="fmt")
def _frozen(loss: Any, points: Any, lr: Any, fmt: Format) -> Any:
    """Whether the step -lr g is lost at every weight, by the half-gap law."""
    updates = -lr * jax.lax.map(jax.grad(loss), points, batch_size=1024)
    upward, downward = landing_threshold(points, fmt)
    lands = jnp.where(updates > 0, updates >= upward, -updates >= downward)
    return ~jnp.any(lands & (updates != 0), axis=1)


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
    return _path(loss, first + np.linspace(0, 1, points)[:, None] * (last - first))


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
    return _path(Partial(_half_square, traceable(residuals)), string)


def _half_square(residuals: Any, theta: Any) -> Any:
    return 0.5 * jnp.sum(jnp.square(residuals(theta)))


def _path(loss: Callable[[Any], Any], points: np.ndarray) -> Path:
    fun = traceable(loss)
    check_function("straight_path", fun, points.shape[1], scalar=True)
    with jax.enable_x64(True):
        values = np.asarray(_losses(fun, jnp.asarray(points)))
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return Path(points, np.concatenate([[0.0], np.cumsum(steps)]), values, float(steps.max() / steps.mean()))


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
