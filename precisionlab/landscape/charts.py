"""Charts of the loss in planes, and of what a format makes of it.

Given a format, a chart also shows the lattice. A plane misses nearly all lattice points, and so each point of the plane is
shown as what would be stored for it: `Cells` holds the distinct stored points, where they lie (projected to the plane), how far
off the plane, and whether training is frozen there: whether no weight would move under one step of gradient descent, rounded to
nearest.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.landscape.planes import Plane
from precisionlab.landscape.vectors import in_float64, losses_at, traceable
from precisionlab.numerics.checks import check_format
from precisionlab.numerics.formats import Format
from precisionlab.numerics.rounding import round_to
from precisionlab.stagnation.landing import landing_threshold

__all__ = ["Cells", "Chart", "chart"]


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
        >>> from precisionlab.landscape import plane_along
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
    values = losses_at("chart", fun, thetas).reshape(size, size)
    cells = None if fmt is None or lr is None else _cells(fun, plane, thetas, (size, size), fmt, float(lr))
    return Chart(plane, xs, ys, values, cells)


@in_float64
def _cells(loss: Partial, plane: Plane, thetas: np.ndarray, shape: tuple[int, int], fmt: Format, lr: float) -> Cells:
    stored = np.asarray(_stored(jnp.asarray(thetas), fmt)) + 0.0  # +0 and -0 are one point
    points, owner = np.unique(stored, axis=0, return_inverse=True)
    frozen = np.asarray(_frozen(loss, jnp.asarray(points), jnp.asarray(lr), fmt))
    away = points - plane.origin
    right, up = away @ plane.right, away @ plane.up
    offset = np.linalg.norm(away - right[:, None] * plane.right - up[:, None] * plane.up, axis=1)
    return Cells(points, right, up, offset, frozen, owner.reshape(shape))


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
