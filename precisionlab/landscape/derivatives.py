"""Jacobians and Hessians, and the rounding in them.

Beside the derivative stands how far off it is. No formula in its size can know that: where large terms cancel, an entry is all
noise. So it is measured, as the difference to the derivative at neighbouring points, every weight an ulp or two away: all
roundings fall anew there, and whatever else changes is as unknown as the last bit of the weights. Random vectors v of entries
+-1 do it without a second matrix, since E |E v|^2 = |E|_F^2; 16 of them are off by less than the factor 2 that is allowed for.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array
from precisionlab.landscape.vectors import EPS, check_function, check_points, in_float64, traceable

__all__ = ["MOST_ENTRIES", "hessian", "hessian_noise", "hessian_rows", "jacobian", "jacobian_and_noise", "refuse_large"]

MOST_ENTRIES = 2**28
"""2 GiB of float64."""

_DENSE = 10_000  # eigenvalues of this many take minutes
_PROBES = 16


@in_float64
def jacobian(residuals: Callable[[Any], Any], theta: Any) -> np.ndarray:
    """The derivatives of the residuals, in the cheaper of the two modes.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,), or rows (..., n).

    Returns:
        (..., m, n) float64.

    Raises:
        ValueError: if the points or the function make no sense, or the result would exceed 2 GiB.

    Example:
        >>> jacobian(lambda w: jnp.array([w[0] * w[1], w[1]]), [2.0, 3.0]).tolist()
        [[3.0, 2.0], [0.0, 1.0]]
    """
    return jacobian_and_noise("jacobian", residuals, theta)[0]


@in_float64
def hessian(loss: Callable[[Any], Any], theta: Any) -> np.ndarray:
    """The dense Hessian, one row for each parameter, as it comes out: symmetric but for rounding.

    Args:
        loss: of a float64 vector (n,), giving one number. Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,) with n at most 10,000.

    Returns:
        (n, n) float64.

    Raises:
        ValueError: if theta or the function make no sense, or n is too large.

    Example:
        >>> hessian(lambda w: w[0] ** 2 * w[1], [2.0, 3.0]).tolist()
        [[6.0, 4.0], [4.0, 0.0]]
    """
    point, fun = check_points("hessian", theta, one=True), traceable(loss)
    refuse_large("hessian", point.size)
    check_function("hessian", fun, point.size, scalar=True)
    return np.asarray(_hessian(fun, jnp.asarray(point)))


def jacobian_and_noise(where: str, residuals: Callable[[Any], Any], theta: Any) -> tuple[np.ndarray, np.ndarray]:
    """The Jacobians (..., m, n) and a bound (...) of the norm of the rounding errors in each. Inside 64-bit JAX."""
    points, fun = check_points(where, theta), traceable(residuals)
    n = points.shape[-1]
    (m,) = check_function(where, fun, n, scalar=False)
    shape = points.shape[:-1]
    if m * math.prod(points.shape) > MOST_ENTRIES:
        raise ValueError(
            f"{where}: {math.prod(shape)} x {m} x {n} derivatives take {m * math.prod(points.shape) / 2**27:.1f} GiB, above 2; "
            "give fewer rows at once, or take hessian_spectrum(loss, theta, top=k) of 1/2 |residuals|^2."
        )
    matrices, noise = _jacobians(fun, jnp.asarray(points.reshape(-1, n)))
    return np.asarray(matrices).reshape(*shape, m, n), np.asarray(noise).reshape(shape)


@jax.jit
def hessian_noise(loss: Any, theta: Array) -> Array:
    """Twice the Frobenius norm of the rounding errors of H, from its products with random vectors here and at neighbours."""

    def product(point: Array, v: Array) -> Array:
        return jax.jvp(jax.grad(loss), (point,), (v,))[1]

    signs = jax.random.rademacher(jax.random.key(0), (_PROBES, theta.size), theta.dtype)
    squares = jax.lax.map(lambda at: jnp.sum(jnp.square(product(theta, at[1]) - product(*at))), (_neighbours(theta), signs))
    return 2 * jnp.sqrt(jnp.mean(squares))


def hessian_rows(loss: Any, theta: Any, vectors: Any) -> Array:
    """H v for each row v of (k, n); a few at a time, so that memory stays that of some gradients."""
    return jax.lax.map(lambda v: jax.jvp(jax.grad(loss), (theta,), (v,))[1], vectors, batch_size=64)


def refuse_large(where: str, n: int) -> None:
    """Refuses n x n matrices that would take gigabytes and minutes."""
    if n > _DENSE:
        raise ValueError(
            f"{where}: a dense Hessian of {n} parameters takes {n**2 / 2**27:.3g} GiB, and at most {_DENSE} are done densely; "
            "take hessian_spectrum(..., top=k) for the largest eigenvalues, or spectral_density for all of them, blurred."
        )


def _neighbours(theta: Array) -> Array:
    """Points (16, n) an ulp or two away from theta in every weight."""
    signs = jax.random.rademacher(jax.random.key(1), (_PROBES, theta.size), theta.dtype)
    return theta[None, :] * (1 + EPS * signs)


@jax.jit
def _jacobians(residuals: Any, thetas: Array) -> tuple[Array, Array]:
    """Each point's Jacobian and, as `hessian_noise`, twice the Frobenius norm of its rounding errors."""

    def one(theta: Array) -> tuple[Array, Array]:
        out, back = jax.vjp(residuals, theta)
        m, n = out.size, theta.size
        if m < n:
            matrix = jax.vmap(lambda row: back(row)[0])(jnp.eye(m, dtype=out.dtype))
        else:
            matrix = jax.vmap(lambda v: jax.jvp(residuals, (theta,), (v,))[1], out_axes=1)(jnp.eye(n, dtype=out.dtype))
        signs = jax.random.rademacher(jax.random.key(0), (_PROBES, n), out.dtype)
        other = jax.vmap(lambda point, v: jax.jvp(residuals, (point,), (v,))[1])(_neighbours(theta), signs)
        return matrix, 2 * jnp.sqrt(jnp.sum(jnp.square(signs @ matrix.T - other)) / _PROBES)

    return jax.vmap(one)(thetas)


@jax.jit
def _hessian(loss: Any, theta: Array) -> Array:
    return hessian_rows(loss, theta, jnp.eye(theta.size, dtype=theta.dtype))
