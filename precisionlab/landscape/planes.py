"""Planes in the space of weights whose axes mean something.

A plane through random directions shows mostly row directions, because a random vector has a part in the row space of J wherever
that is; one through null and row directions shows what there is to see: a valley floor and its walls. Axes are orthonormal, so
that distances in the plane are distances between weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from precisionlab.landscape.spaces import split_spaces

__all__ = ["Plane", "plane_along", "plane_at_minimum", "plane_through"]


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
