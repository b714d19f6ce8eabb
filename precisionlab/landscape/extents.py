"""How far from a minimum nothing moves: the extent of the frozen set along a curve.

A step of gradient descent leaves every weight where it is while lr |g_i| <= half the gap of the lattice at w_i, for all i.
Around a minimum this frozen set always has some size; what tells a flat minimum from a coarse lattice is how its size changes
with the spacing h. For a loss 1/2 |r|^2 with r = 0 at theta, J the Jacobian of r, and unit vectors v along row(J), u along
null(J):

    along v              g = J^T J v t + O(t^2)                          t = h / (2 lr max|J^T J v|)               slope -1
    straight along u     g = J^T q t^2 / 2 + O(t^3), q_k = u^T (d^2 r_k) u   t = (h / (lr max|J^T q|))^(1/2)       slope -1/2
    walking along the manifold   g = 0                                   no end, at any h                           slope 0

(slope of log2 of the extent t against the bits -log2 h). If flatness were the lattice's, all three would shrink with h alike,
as they do at an isolated minimum, where H is positive definite and every direction is one of the first kind.

The frozen set need not be star-shaped; an extent is the first exit. It is bracketed on a geometric grid and then bisected in
float64, so that an exit and return within 9 % of the distance can be missed. The gradient's own rounding error, about 1e-16 of
its terms, is the noise floor: half gaps below lr times that find theta itself not frozen, and the extent is 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.landscape.vectors import check_function, traceable
from precisionlab.numerics.checks import check_format
from precisionlab.numerics.formats import FLOAT64, Format, stack_formats
from precisionlab.numerics.grids import ulp

__all__ = ["Extents", "extents_along_line", "extents_along_walk", "frozen_ratios"]

_OCTAVES, _PER_OCTAVE = 64, 8
_HALVINGS = 50


class Extents(NamedTuple):
    """How far one can go before some weight would move.

    Attributes:
        length: (G,) distance to the first exit, for each grid; 0 where already the start is not frozen.
        censored: (G,) whether there was no exit, so that `length` is only how far was looked.
    """

    length: np.ndarray
    censored: np.ndarray


def frozen_ratios(loss: Callable[[Any], Any], thetas: Any, grids: Sequence[float | Format], *, lr: float) -> np.ndarray:
    """How much of the half gap a step of gradient descent asks for, at the weight that asks most.

    Args:
        loss: of a float64 vector (n,). Data in a `jax.tree_util.Partial` share one compilation.
        thetas: (K, n) points.
        grids: G lattices: a spacing h for a fixed-point lattice, or a `Format`, whose gap is that of each weight's binade.
        lr: the step size, positive.

    Returns:
        (K, G) max over i of lr |g_i| / half gap_i; frozen where at most 1.

    Raises:
        ValueError: if the points are not finite rows, or a grid or `lr` makes no sense.

    Example:
        >>> frozen_ratios(lambda w: jnp.sum(w**2) / 2, [[0.0], [0.125], [0.25]], [0.25], lr=1.0).ravel().tolist()
        [0.0, 1.0, 2.0]
    """
    points = np.asarray(thetas, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"frozen_ratios: thetas must be finite rows (K, n); got shape {points.shape}.")
    with jax.enable_x64(True):
        lattices, fun = _grids("frozen_ratios", grids, lr), traceable(loss)
        check_function("frozen_ratios", fun, points.shape[1], scalar=True)
        return np.asarray(_ratios(fun, jnp.asarray(points), lattices))


def extents_along_line(
    loss: Callable[[Any], Any],
    theta: Any,
    direction: Any,
    grids: Sequence[float | Format],
    *,
    lr: float,
    longest: float = 1.0,
) -> Extents:
    """The first exits from the frozen set on a straight line, for many lattices at once.

    Args:
        loss: of a float64 vector (n,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,) the start, a minimum.
        direction: (n,) not zero; its length does not matter.
        grids: G lattices, as in `frozen_ratios`.
        lr: the step size, positive.
        longest: how far to look.

    Returns:
        `Extents` in units of distance.

    Raises:
        ValueError: if the vectors differ in length or are not finite, the direction is zero, or a number makes no sense.

    Example:
        >>> bowl = lambda w: jnp.sum(jnp.array([4.0, 1.0]) * w**2) / 2
        >>> extents_along_line(bowl, [0.0, 0.0], [1.0, 0.0], [2.0**-8, 2.0**-10], lr=0.5).length.tolist()  # h / (2 lr lambda)
        [0.0009765625, 0.000244140625]
    """
    start, along = np.asarray(theta, np.float64), np.asarray(direction, np.float64)
    if start.ndim != 1 or along.shape != start.shape or not (np.isfinite(start).all() and np.isfinite(along).all()):
        raise ValueError(
            f"extents_along_line: theta and direction must be finite vectors of one length; got {start.shape}, {along.shape}."
        )
    if not along.any():
        raise ValueError(
            "extents_along_line: direction is zero; give one that points somewhere, such as a column of split.row."
        )
    if not (np.isfinite(longest) and longest > 0):
        raise ValueError(f"extents_along_line: longest must be a positive number; got {longest}.")
    distances = np.concatenate([[0.0], longest * np.exp2(np.arange(-_OCTAVES * _PER_OCTAVE, 1) / _PER_OCTAVE)])
    with jax.enable_x64(True):
        lattices, fun = _grids("extents_along_line", grids, lr), traceable(loss)
        check_function("extents_along_line", fun, start.size, scalar=True)
        line = jnp.asarray(start), jnp.asarray(along / np.linalg.norm(along))
        ratios = np.asarray(_line_ratios(fun, *line, jnp.asarray(distances), lattices))
        first, outcome = _bracket(ratios, distances)
        low, high = jnp.asarray(distances[np.maximum(first - 1, 0)]), jnp.asarray(distances[first])
        inside = np.asarray(_bisect_line(fun, *line, low, high, lattices))
    return Extents(np.where(outcome == 0, inside, np.where(outcome > 0, longest, 0.0)), outcome > 0)


def extents_along_walk(
    loss: Callable[[Any], Any],
    points: Any,
    grids: Sequence[float | Format],
    *,
    lr: float,
    back: Callable[[np.ndarray], Any] | None = None,
) -> Extents:
    """The first exits from the frozen set on a walk along the manifold, for many lattices at once.

    Args:
        loss: of a float64 vector (n,). Data in a `jax.tree_util.Partial` share one compilation.
        points: (K, n) of the walk, at least two, the first being the start.
        grids: G lattices, as in `frozen_ratios`.
        lr: the step size, positive.
        back: takes a point between two of the walk back to the curve, as `landscape.retract` does; by default chords are taken.

    Returns:
        `Extents` in units of arc length; censored with the length of the walk where it never leaves the frozen set.

    Raises:
        ValueError: if the points are not finite rows, or a grid or `lr` makes no sense.

    Example:
        >>> angles = np.linspace(0, 1, 65)[:, None]
        >>> circle = lambda w: (w @ w - 1.0) ** 2 / 2
        >>> found = extents_along_walk(circle, np.hstack([np.cos(angles), np.sin(angles)]), [2.0**-40], lr=0.1)
        >>> found.censored.tolist(), round(float(found.length[0]), 4)
        ([True], 1.0)
    """
    walked = np.asarray(points, np.float64)
    if walked.ndim != 2 or len(walked) < 2 or not np.isfinite(walked).all():
        raise ValueError(f"extents_along_walk: points must be at least two finite rows (K, n); got shape {walked.shape}.")
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(walked, axis=0), axis=1))])
    ratios = frozen_ratios(loss, walked, grids, lr=lr)
    first, outcome = _bracket(ratios, arc)
    length = np.where(outcome > 0, arc[-1], 0.0)
    for g in np.flatnonzero(outcome == 0).tolist():
        a, b = walked[first[g] - 1], walked[first[g]]
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            chord = (1 - middle) * a + middle * b
            point = np.asarray(chord if back is None else back(chord), np.float64)
            if frozen_ratios(loss, point[None, :], [grids[g]], lr=lr)[0, 0] <= 1:
                low = middle
            else:
                high = middle
        length[g] = arc[first[g] - 1] + low * (arc[first[g]] - arc[first[g] - 1])
    return Extents(length, outcome > 0)


class _Lattices(NamedTuple):
    """G grids as arrays: a spacing, NaN where the format says it; and the step size."""

    spacing: Any
    formats: Format
    lr: Any


def _grids(where: str, grids: Sequence[float | Format], lr: float) -> _Lattices:
    if not len(grids):
        raise ValueError(f"{where}: got no grids; give spacings, such as [2.0**-8], or formats, such as [BFLOAT16].")
    if not (np.isfinite(lr) and lr > 0):
        raise ValueError(f"{where}: lr must be a positive number; got {lr}.")
    spacings = np.array([np.nan if isinstance(grid, Format) else float(grid) for grid in grids])
    for grid, spacing in zip(grids, spacings, strict=True):
        if isinstance(grid, Format):
            check_format(grid)
        elif not (np.isfinite(spacing) and spacing > 0):
            raise ValueError(f"{where}: a spacing must be a positive number; got {grid}.")
    formats = stack_formats([grid if isinstance(grid, Format) else FLOAT64 for grid in grids])
    return _Lattices(jnp.asarray(spacings), formats, jnp.asarray(float(lr)))


def _ratio(gradient: Any, theta: Any, spacing: Any, fmt: Format, lr: Any) -> Any:
    gap = jnp.where(jnp.isnan(spacing), ulp(theta, fmt), spacing)
    return jnp.max(lr * jnp.abs(gradient) / (0.5 * gap))


def _at_all_grids(loss: Any, theta: Any, lattices: _Lattices) -> Any:
    """One gradient, seen by every grid: (G,)."""
    gradient = jax.grad(loss)(theta)
    ratio = jax.vmap(_ratio, in_axes=(None, None, 0, 0, None))
    return ratio(gradient, theta, lattices.spacing, lattices.formats, lattices.lr)


@jax.jit
def _ratios(loss: Any, thetas: Any, lattices: _Lattices) -> Any:
    return jax.lax.map(lambda theta: _at_all_grids(loss, theta, lattices), thetas, batch_size=64)


@jax.jit
def _line_ratios(loss: Any, start: Any, along: Any, distances: Any, lattices: _Lattices) -> Any:
    return jax.lax.map(lambda t: _at_all_grids(loss, start + t * along, lattices), distances, batch_size=64)


@jax.jit
def _bisect_line(loss: Any, start: Any, along: Any, low: Any, high: Any, lattices: _Lattices) -> Any:
    def one(low: Any, high: Any, spacing: Any, fmt: Format) -> Any:
        def halve(_: Any, bracket: Any) -> Any:
            low, high = bracket
            middle = 0.5 * (low + high)
            theta = start + middle * along
            frozen = _ratio(jax.grad(loss)(theta), theta, spacing, fmt, lattices.lr) <= 1
            return jnp.where(frozen, middle, low), jnp.where(frozen, high, middle)

        return jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))[0]

    return jax.vmap(one)(low, high, lattices.spacing, lattices.formats)


def _bracket(ratios: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the first point outside; 0 where an exit was found, 1 where there is none, -1 where the start is out."""
    outside = ~(ratios <= 1)  # a NaN is outside
    exits, first = outside.any(axis=0), outside.argmax(axis=0)
    return np.where(exits, first, len(distances) - 1), np.where(exits, np.where(first == 0, -1, 0), 1)
