"""Reaching a zero of the residuals to the last bits that float64 has.

Gradient descent ends where time runs out; what is flat there need not be flat at the minimum. Levenberg and Marquardt's method
(optimistix) converges quadratically near a zero: each step is s = -J^T (J J^T + mu)^-1 r, with mu falling as the steps succeed.
Here one singular value decomposition of J serves every mu, and costs least when there are fewer residuals than parameters. Then
undamped steps of least norm, -J^+ r, are taken while the loss still falls.

When is it zero? Moving every weight by half an ulp moves residual i by up to eps/2 sum_j |J_ij theta_j|, and the last sum in a
network, of terms weight x feature, is rounded by as much; a residual of that size cannot be told from zero. So `reached` means

    |r| <= tolerance eps |S|,    S_i = sum_j |J_ij theta_j|,

and for a loss 1/2 |r|^2 a level of about (eps S)^2 / 2. Where there is no zero (fewer parameters than data, a linear network, a
kink in the way of ReLU) `reached` is False, which is an answer and no error.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from precisionlab._typing import Array
from precisionlab.landscape.vectors import EPS, check_function, check_points, in_float64, traceable

__all__ = ["Minimum", "level", "newton", "pseudo_inverse", "reach_minima", "reach_minimum"]

_NEWTON = 30


class Minimum(NamedTuple):
    """Where a solver ended; of one start, or of rows of starts.

    Attributes:
        theta: (..., n).
        loss: (...) 1/2 |residuals|^2 there.
        steps: (...) of the solver, rejected ones included.
        reached: (...) whether the residuals are zero as far as float64 can tell.
    """

    theta: np.ndarray
    loss: Any
    steps: Any
    reached: Any


@in_float64
def reach_minimum(residuals: Callable[[Any], Any], theta: Any, *, tolerance: float = 4.0, max_steps: int = 500) -> Minimum:
    """A zero of the residuals near a start, if there is one.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,) the start.
        tolerance: how many times what rounding alone makes of the residuals still counts as zero, at least 1.
        max_steps: of Levenberg and Marquardt's method.

    Returns:
        A `Minimum` of Python numbers and one vector.

    Raises:
        ValueError: if theta, the function or a number makes no sense.

    Example:
        >>> end = reach_minimum(lambda w: jnp.array([w[0] * w[1] - 2.0]), [1.0, 1.0])
        >>> end.theta.round(6).tolist(), end.reached       # the nearest point of the hyperbola
        ([1.414214, 1.414214], True)
        >>> reach_minimum(lambda w: w**2 + 1.0, [1.0]).reached
        False
    """
    point = check_points("reach_minimum", theta, one=True)
    found = reach_minima(residuals, point[None, :], tolerance=tolerance, max_steps=max_steps)
    return Minimum(found.theta[0], float(found.loss[0]), int(found.steps[0]), bool(found.reached[0]))


@in_float64
def reach_minima(residuals: Callable[[Any], Any], thetas: Any, *, tolerance: float = 4.0, max_steps: int = 500) -> Minimum:
    """The same from many starts, with one compilation.

    Rows are solved one after the other: each then takes its own number of steps, which on CPUs is faster than steps in
    lockstep.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        thetas: (..., n) starts.
        tolerance: as in `reach_minimum`.
        max_steps: as in `reach_minimum`.

    Returns:
        A `Minimum` of arrays.

    Raises:
        ValueError: if the starts, the function or a number make no sense.

    Example:
        >>> reach_minima(lambda w: jnp.array([w[0] * w[1] - 2.0]), [[1.0, 1.0], [-3.0, -1.0]]).reached.tolist()
        [True, True]
    """
    points, fun = check_points("reach_minima", thetas), traceable(residuals)
    if not (np.isfinite(tolerance) and tolerance >= 1) or max_steps < 1:
        raise ValueError(
            f"reach_minima: tolerance must be a finite number and at least 1, max_steps a whole number and at least 1; "
            f"got {tolerance}, {max_steps}."
        )
    check_function("reach_minima", fun, points.shape[-1], scalar=False)
    rows = [_solve(fun, jnp.asarray(row), tolerance, max_steps) for row in points.reshape(-1, points.shape[-1])]
    theta, loss, steps, reached = (np.stack([np.asarray(row[i]) for row in rows]) for i in range(4))
    shape = points.shape[:-1]
    return Minimum(theta.reshape(points.shape), loss.reshape(shape), steps.reshape(shape), reached.reshape(shape))


def pseudo_inverse(matrix: Array) -> tuple[Array, Array]:
    """The pseudo-inverse (n, m), cut at the rounding of the decomposition, and rows that span the row space (others zero)."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    counts = s > max(matrix.shape) * EPS * s[0]
    rows = jnp.where(counts[:, None], vt, 0.0)
    return rows.T @ (u / jnp.where(counts, s, 1.0)[None, :]).T, rows


def newton(residuals: Callable[[Array], Array], theta: Array) -> tuple[Array, Array, Array, Array]:
    """Steps of least norm while the loss falls: the point, its residuals, how many steps were kept, and the `level` there."""

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        point, r, count, _, _ = state
        matrix = _jacobian(residuals, point)
        there = point - pseudo_inverse(matrix)[0] @ r
        then = residuals(there)
        better = jnp.sum(jnp.square(then)) < jnp.sum(jnp.square(r))  # False for a NaN
        kept = jnp.where(better, there, point), jnp.where(better, then, r), count + better.astype(count.dtype)
        # The level is that of the point stepped from: the last one, unless its residuals are exactly zero.
        return *kept, _level(matrix, point), better & jnp.any(then != 0)

    r = residuals(theta)
    start = theta, r, jnp.int64(0), jnp.zeros((), theta.dtype), jnp.any(r != 0)
    point, r, count, least, _ = jax.lax.while_loop(lambda state: state[4] & (state[2] < _NEWTON), step, start)
    return point, r, count, least


def level(residuals: Callable[[Array], Array], theta: Array) -> Array:
    """The norm of the residuals that rounding alone makes, eps |S|."""
    return _level(_jacobian(residuals, theta), theta)


def _level(matrix: Array, theta: Array) -> Array:
    return EPS * jnp.linalg.norm(jnp.abs(matrix) @ jnp.abs(theta))


def _jacobian(residuals: Callable[[Array], Array], theta: Array) -> Array:
    m = jax.eval_shape(residuals, theta).shape[0]
    return (jax.jacrev if m < theta.size else jax.jacfwd)(residuals)(theta)


class _Factors(NamedTuple):
    u: Array
    s: Array
    vt: Array
    r: Array


class _SingularValueDescent(optx.DampedNewtonDescent):
    """The damped step for any damping from one decomposition; the library's own factorizes (m + n) x n numbers for each."""

    def init(self, y: Any, f_info_struct: Any) -> Any:
        m, n = f_info_struct.residual.shape[0], y.size
        k = min(m, n)
        return _Factors(jnp.zeros((m, k)), jnp.zeros(k), jnp.zeros((k, n)), jnp.zeros(m))

    def query(self, y: Any, f_info: Any, state: Any) -> Any:
        del y, state
        u, s, vt = jnp.linalg.svd(f_info.jac.as_matrix(), full_matrices=False)
        return _Factors(u, s, vt, f_info.residual)

    def step(self, step_size: Any, state: Any) -> Any:
        damped = state.s / (jnp.square(state.s) + 1 / step_size)
        return -((damped * (state.r @ state.u)) @ state.vt), optx.RESULTS.successful


class _LevenbergMarquardt(optx.LevenbergMarquardt):
    def __init__(self, rtol: float, atol: float):
        super().__init__(rtol, atol)
        self.descent = _SingularValueDescent()


@functools.partial(jax.jit, static_argnames="max_steps")
def _solve(residuals: Any, theta: Array, tolerance: Any, max_steps: int) -> tuple[Array, Array, Array, Array]:
    m = jax.eval_shape(residuals, theta).shape[0]
    solution = optx.least_squares(
        lambda point, _: residuals(point),
        # Loose: from a step of relative size 1e-6 the undamped ones need two or three.
        _LevenbergMarquardt(rtol=1e-6, atol=1e-9),
        theta,
        options={"jac": "bwd" if m < theta.size else "fwd"},
        max_steps=max_steps,
        throw=False,
    )
    point, r, more, least = newton(residuals, solution.value)
    zero = jnp.linalg.norm(r) <= tolerance * least
    return point, 0.5 * jnp.sum(jnp.square(r)), solution.stats["num_steps"] + more, zero
