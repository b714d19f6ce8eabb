"""Walking along the manifold of minima: a step in a null direction, and back onto the zeros.

A straight line along a null direction leaves the manifold with the square of the distance; a walk does not. Each step goes
along the tangent space and is retracted by Gauss-Newton steps of least norm (which are normal to it, to first order). The
direction d is carried along by the smallest rotation that takes the old tangent space to the new one. With the projections P0
and P on the two, that is P (1 - (P0 - P)^2)^(-1/2) d (Kato's direct rotation), and up to fourth order in the angle

    P (d + P0 (d - P d) / 2).

The term in brackets matters: projecting alone shortens the part of d that turns and not the rest, and drifts off the geodesic
with the step; with it the error is of the square of the step. On a circle of radius R a step s turns by arctan(s / R).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array
from precisionlab.landscape.minima import level, newton, pseudo_inverse
from precisionlab.landscape.vectors import check_function, check_points, in_float64, traceable

__all__ = ["Walk", "retract", "straight", "walk"]


class Walk(NamedTuple):
    """A walk along the zeros of the residuals.

    Attributes:
        points: (steps + 1, n), the start included.
        losses: (steps + 1,) 1/2 |residuals|^2.
        arc: (steps + 1,) length of the path up to each point, along its chords.
        directions: (steps + 1, n) the unit tangent vector at each point.
        reached: (steps + 1,) whether the residuals are zero there as far as float64 can tell; a walk with a False has left the
            manifold.
    """

    points: np.ndarray
    losses: np.ndarray
    arc: np.ndarray
    directions: np.ndarray
    reached: np.ndarray


@in_float64
def retract(residuals: Callable[[Any], Any], theta: Any) -> np.ndarray:
    """Back onto the zeros of the residuals, by Gauss-Newton steps of least norm while the loss falls.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (..., n) points near the zeros.

    Returns:
        (..., n) float64. From far away, or where there is no zero, it ends where a step no longer helps: check the residuals.

    Raises:
        ValueError: if the points or the function make no sense.

    Example:
        >>> retract(lambda w: jnp.sum(w**2, keepdims=True) - 1.0, [3.0, 4.0]).round(12).tolist()
        [0.6, 0.8]
    """
    points, fun = check_points("retract", theta), traceable(residuals)
    check_function("retract", fun, points.shape[-1], scalar=False)
    rows = points.reshape(-1, points.shape[-1])
    return np.asarray(_retract(fun, jnp.asarray(rows))).reshape(points.shape)


@in_float64
def walk(
    residuals: Callable[[Any], Any], theta: Any, direction: Any, length: float, steps: int, *, tolerance: float = 4.0
) -> Walk:
    """A walk along the zeros of the residuals, as straight as they allow.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,) a zero of the residuals; see `reach_minimum`.
        direction: (n,) where to go; its part in the null space of the Jacobian counts, its length does not.
        length: of all steps together, before they are retracted. `Walk.arc` is what was covered: shorter where the manifold
            bends.
        steps: how many.
        tolerance: what counts as zero, as in `reach_minimum`.

    Raises:
        ValueError: if theta is no zero, the direction has no part in the null space, or a number makes no sense.

    Example:
        >>> circle = lambda w: jnp.sum(w**2, keepdims=True) - 1.0
        >>> there = walk(circle, [1.0, 0.0], [0.0, 1.0], length=np.pi, steps=1000)
        >>> there.points[-1].round(4).tolist(), round(float(there.arc[-1]), 4), bool(there.reached.all())
        ([-1.0, 0.0], 3.1416, True)
    """
    point, fun = check_points("walk", theta, one=True), traceable(residuals)
    along = np.asarray(direction, np.float64)
    if along.shape != point.shape or not np.isfinite(along).all() or not along.any():
        raise ValueError(
            f"walk: direction must be finite, not zero, and of the shape of theta, {point.shape}; got {along.shape}."
        )
    if not (np.isfinite(length) and length > 0) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"walk: length must be a positive number and steps a whole number from 1; got {length}, {steps}.")
    check_function("walk", fun, point.size, scalar=False)
    start, along = jnp.asarray(point), jnp.asarray(along / np.linalg.norm(along))
    norm, zero = (float(part) for part in _state(fun, start))
    if not norm <= tolerance * zero:
        raise ValueError(
            f"walk: theta is no zero of the residuals: their norm is {norm:.3g}, and rounding explains {zero:.3g}; "
            "start from reach_minimum(residuals, theta).theta."
        )
    if np.linalg.norm(_tangential(fun, start, along)) <= 1e-8:
        raise ValueError(
            "walk: direction has no part in the null space of the Jacobian; take a column of "
            "split_spaces(residuals, theta).null (there is none if the Jacobian has full column rank)."
        )
    points, directions, losses, reached = (
        np.asarray(part) for part in _walk(fun, start, along, float(length) / steps, tolerance, steps)
    )
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return Walk(points, losses, arc, directions, reached)


def straight(theta: Any, direction: Any, lengths: Any) -> np.ndarray:
    """Points (k, n) on the straight line from theta (n,) along a direction (n,), at the distances (k,).

    Example:
        >>> straight([1.0, 1.0], [0.0, 2.0], [0.0, 0.5]).tolist()
        [[1.0, 1.0], [1.0, 1.5]]
    """
    along = np.asarray(direction, np.float64)
    if not np.isfinite(along).all() or not along.any():
        raise ValueError("straight: direction must be finite and not zero.")
    return np.asarray(theta, np.float64) + np.asarray(lengths, np.float64)[:, None] * (along / np.linalg.norm(along))


@jax.jit
def _retract(residuals: Any, thetas: Array) -> Array:
    return jax.lax.map(lambda theta: newton(residuals, theta)[0], thetas)


@jax.jit
def _state(residuals: Any, theta: Array) -> tuple[Array, Array]:
    return jnp.linalg.norm(residuals(theta)), level(residuals, theta)


def _rows(residuals: Any, theta: Array) -> Array:
    return pseudo_inverse(jax.jacrev(residuals)(theta))[1]


def _without(rows: Array, v: Array) -> Array:
    return v - (v @ rows.T) @ rows


@jax.jit
def _tangential(residuals: Any, theta: Array, direction: Array) -> Array:
    return _without(_rows(residuals, theta), direction)


@functools.partial(jax.jit, static_argnames="steps")
def _walk(residuals: Any, theta: Array, direction: Array, size: Any, tolerance: Any, steps: int) -> tuple[Array, ...]:
    def look(point: Array, along: Array, r: Array, least: Array) -> tuple[Array, ...]:
        return point, along, 0.5 * jnp.sum(jnp.square(r)), jnp.linalg.norm(r) <= tolerance * least

    def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
        point, along, old = state
        there, r, _count, least = newton(residuals, point + size * along)
        new = _rows(residuals, there)
        lost = along - _without(new, along)
        along = _without(new, along + 0.5 * _without(old, lost))
        along = along / jnp.linalg.norm(along)
        return (there, along, new), look(there, along, r, least)

    rows = _rows(residuals, theta)
    along = _without(rows, direction)
    along = along / jnp.linalg.norm(along)
    first = look(theta, along, residuals(theta), level(residuals, theta))
    rest = jax.lax.scan(step, (theta, along, rows), None, length=steps)[1]
    return tuple(jnp.concatenate([one[None], others]) for one, others in zip(first, rest, strict=True))
