"""Singular values of Jacobians and eigenvalues of Hessians, each with what rounding makes of it.

At a minimum of 1/2 |r|^2 with r = 0, H = J^T J: the rank of J is that of H, and n minus the rank is the dimension of the flat
directions. Two errors stand between the numbers and that rank. The decomposition moves a value by about max(m, n) eps times the
largest (the perturbation that a backward stable algorithm makes; LAPACK Users' Guide, 4.9). And the matrix itself was rounded
where automatic differentiation made it, which `derivatives` measures. By Weyl's inequality no value moves by more than the norm
of the perturbation, so the sum of the two is the floor. Below it a value cannot be told from zero.

Where J can be had, take its spectrum: eigenvalues of H are squares, and those of H below eps lambda_1 are singular values of
J below 1.5e-8 sigma_1. Where J can be had, its spectrum sees twice as many digits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import PRNGKeyArray
from precisionlab.landscape.derivatives import MOST_ENTRIES, hessian, hessian_noise, jacobian_and_noise, refuse_large
from precisionlab.landscape.krylov import ritz_pairs
from precisionlab.landscape.vectors import EPS, check_function, check_points, in_float64, traceable

__all__ = ["Estimate", "Spectrum", "gap", "hessian_spectrum", "jacobian_spectrum", "rank", "sharpness"]


class Spectrum(NamedTuple):
    """Singular values or eigenvalues; of one point, or of rows of points.

    Attributes:
        values: (..., k) descending.
        errors: (..., k) how far the true value can be: the residual of the pair, and the noise of the matrix.
        floor: (...) what rounding makes of a zero; smaller values say nothing.
        complete: whether no value above the floor is missing.
    """

    values: np.ndarray
    errors: np.ndarray
    floor: Any
    complete: bool


class Estimate(NamedTuple):
    """A number and its error.

    Attributes:
        value: of the quantity.
        error: how far off it can be, or the standard error where vectors were drawn.
    """

    value: float
    error: float


@in_float64
def jacobian_spectrum(residuals: Callable[[Any], Any], theta: Any) -> Spectrum:
    """The singular values of the Jacobian of the residuals.

    Args:
        residuals: of a float64 vector (n,), giving (m,). Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,), or rows (..., n).

    Returns:
        A complete `Spectrum` of min(m, n) values. n minus its `rank` is the nullity of J.

    Raises:
        ValueError: as `jacobian`.

    Example:
        >>> found = jacobian_spectrum(lambda w: jnp.array([3.0 * w[0], 4.0 * w[0] + 1e-20 * w[1]]), [1.0, 1.0])
        >>> rank(found), round(float(found.values[0]), 12)
        (1, 5.0)
    """
    matrices, noise = jacobian_and_noise("jacobian_spectrum", residuals, theta)
    u, values, vt = np.linalg.svd(matrices, full_matrices=False)
    right = matrices @ np.swapaxes(vt, -1, -2) - u * values[..., None, :]
    left = np.swapaxes(matrices, -1, -2) @ u - np.swapaxes(vt, -1, -2) * values[..., None, :]
    # Of the symmetric matrix [[0, J], [J^T, 0]], whose eigenvalues are +- the singular values.
    residual = np.sqrt(0.5 * (np.sum(right**2, axis=-2) + np.sum(left**2, axis=-2)))
    floor = max(matrices.shape[-2:]) * EPS * values[..., 0] + noise
    return Spectrum(values, residual + noise[..., None], _number(floor), True)


@in_float64
def hessian_spectrum(
    loss: Callable[[Any], Any],
    theta: Any,
    *,
    dense_below: int = 2000,
    top: int = 20,
    depth: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Spectrum:
    """Eigenvalues of the Hessian: all of them below `dense_below` parameters, those of largest magnitude from there on.

    Args:
        loss: of a float64 vector (n,), giving one number. Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,), or rows (..., n).
        dense_below: the number of parameters from which Lanczos' method takes over; at most 10,000 are done densely.
        top: how many values Lanczos' method returns.
        depth: of the Krylov space; by default 2 top + 20. Products with the Hessian: twice as many. Values that have not
            converged say so in `errors`; a larger depth lowers them. Of a multiple eigenvalue one copy is certain to be seen,
            all if `complete`.
        key: for the starting vector; the same one each time by default.

    Returns:
        A `Spectrum`, values descending with their signs; complete if dense, or if Lanczos' method has met everything above the
        floor.

    Raises:
        ValueError: if theta or the function make no sense, or more is asked for than fits.

    Example:
        >>> saddle = lambda w: 2.0 * w[0] ** 2 - 0.5 * w[1] ** 2 + 0.0 * w[2]
        >>> hessian_spectrum(saddle, [1.0, 1.0, 1.0]).values.tolist()
        [4.0, 0.0, -1.0]
    """
    points, fun = check_points("hessian_spectrum", theta), traceable(loss)
    n = points.shape[-1]
    deep = min(n, 2 * top + 20 if depth is None else depth)
    if top < 1 or deep < min(top, n):
        raise ValueError(f"hessian_spectrum: top must be at least 1 and depth at least top; got top={top}, depth={depth}.")
    if n < dense_below:
        refuse_large("hessian_spectrum", n)
    elif n * deep > MOST_ENTRIES:
        raise ValueError(
            f"hessian_spectrum: {deep} Krylov vectors of {n} parameters take {n * deep / 2**27:.1f} GiB, more than 2; "
            f"ask for fewer with top and depth (at most {MOST_ENTRIES // n} here), or use spectral_density."
        )
    check_function("hessian_spectrum", fun, n, scalar=True)
    rows = points.reshape(-1, n)
    if n < dense_below:
        found = [_dense_spectrum(fun, row) for row in rows]
    else:
        found = [_top_of_spectrum(fun, row, min(top, n), deep, key) for row in rows]
    shape = points.shape[:-1]
    values, errors = (np.stack([one[i] for one in found]).reshape(*shape, -1) for i in (0, 1))
    floor = np.array([one.floor for one in found]).reshape(shape)
    return Spectrum(values, errors, _number(floor), all(one.complete for one in found))


def rank(spectrum: Spectrum) -> Any:
    """How many values rise above the noise floor, and above their own errors, in magnitude.

    Args:
        spectrum: complete, or at least with values down to the floor.

    Returns:
        An int, or (...) ints for rows.

    Raises:
        ValueError: if values above the floor may be missing from the spectrum.

    Example:
        >>> rank(Spectrum(np.array([3.0, 1e-3, 1e-17]), np.full(3, 1e-16), 1e-15, True))
        2
    """
    above = np.abs(spectrum.values) > np.maximum(spectrum.errors, np.asarray(spectrum.floor)[..., None])
    if not spectrum.complete and above.all(axis=-1).any():
        raise ValueError(
            f"rank: all {above.shape[-1]} values that were computed are above the floor, so the rank is that or more; "
            "ask hessian_spectrum for a larger top."
        )
    count = above.sum(axis=-1)
    return int(count) if not spectrum.values.ndim > 1 else count


def gap(spectrum: Spectrum, rank: Any) -> Any:
    """The ratio across a rank: the last value that counts over the first that does not, or over the floor if that is larger.

    Args:
        spectrum: of one point or of rows.
        rank: at least 1; an int, or one for each row.

    Returns:
        The ratio of magnitudes, or (...) of them for rows; inf where the floor is zero and nothing follows.

    Raises:
        ValueError: if a rank is not within the values.

    Example:
        >>> gap(Spectrum(np.array([3.0, 1e-3, 1e-17]), np.full(3, 1e-16), 1e-15, True), 2)
        1000000000000.0
    """
    sizes = -np.sort(-np.abs(spectrum.values), axis=-1)
    at = np.broadcast_to(np.asarray(rank), sizes.shape[:-1])
    if at.size and (at.min() < 1 or at.max() > sizes.shape[-1]):
        raise ValueError(f"gap: rank must be from 1 to the number of values, {sizes.shape[-1]}; got {rank}.")
    if not spectrum.complete and at.max() == sizes.shape[-1]:
        raise ValueError(
            f"gap: what follows the value number {at.max()} was not computed; ask hessian_spectrum for a larger top."
        )
    padded = np.concatenate([sizes, np.zeros((*sizes.shape[:-1], 1))], axis=-1)
    last, following = (np.take_along_axis(padded, (at + shift)[..., None], axis=-1)[..., 0] for shift in (-1, 0))
    below = np.maximum(following, spectrum.floor)
    return _number(np.where(below > 0, last / np.where(below > 0, below, 1.0), np.inf))


@in_float64
def sharpness(
    loss: Callable[[Any], Any],
    theta: Any,
    *,
    dense_below: int = 2000,
    depth: int = 40,
    key: PRNGKeyArray | None = None,
) -> Estimate:
    """The largest eigenvalue of the Hessian; gradient descent with a step above 2 over it is unstable.

    Args:
        loss: of a float64 vector (n,), giving one number.
        theta: (n,).
        dense_below: as in `hessian_spectrum`.
        depth: of the Krylov space.
        key: for the starting vector; the same one each time by default.

    Returns:
        The value, and the residual of its pair: an eigenvalue lies that close, and Lanczos' value is never above the largest
        one.

    Raises:
        ValueError: as `hessian_spectrum`.

    Example:
        >>> sharpness(lambda w: jnp.sum(jnp.arange(1.0, 4.0) * w**2), [1.0, 1.0, 1.0]).value
        6.0
    """
    point, fun = check_points("sharpness", theta, one=True), traceable(loss)
    if point.size < dense_below:
        refuse_large("sharpness", point.size)
    elif depth < 1 or min(depth, point.size) * point.size > MOST_ENTRIES:
        most = MOST_ENTRIES // point.size
        raise ValueError(f"sharpness: depth must be from 1 to {most} for {point.size} parameters; got {depth}.")
    check_function("sharpness", fun, point.size, scalar=True)
    if point.size < dense_below:
        found = _dense_spectrum(fun, point)
        return Estimate(float(found.values[0]), float(found.errors[0]))
    ritz = ritz_pairs(fun, point, min(depth, point.size), _key(key))
    if ritz.exhausted and ritz.values.size < point.size and not (ritz.values > 0).any():
        return Estimate(0.0, ritz.floor)
    return Estimate(float(ritz.values[0]), float(ritz.errors[0]))


def _dense_spectrum(loss: Any, theta: np.ndarray) -> Spectrum:
    matrix = hessian(loss, theta)
    noise = float(hessian_noise(loss, jnp.asarray(theta)))
    symmetric = 0.5 * (matrix + matrix.T)
    values, vectors = np.linalg.eigh(symmetric)
    residual = np.linalg.norm(symmetric @ vectors - vectors * values, axis=0)
    floor = theta.size * EPS * float(np.abs(values).max()) + noise
    return Spectrum(values[::-1], residual[::-1] + noise, floor, True)


def _top_of_spectrum(loss: Any, theta: np.ndarray, top: int, depth: int, key: PRNGKeyArray | None) -> Spectrum:
    ritz = ritz_pairs(loss, theta, depth, _key(key))
    missing = max(0, top - ritz.values.size) if ritz.exhausted else 0  # zeros, as far as can be seen
    values = np.concatenate([ritz.values, np.zeros(missing)])
    errors = np.concatenate([ritz.errors, np.full(missing, ritz.floor)])
    largest = np.argsort(-np.abs(values), kind="stable")[:top]
    kept = largest[np.argsort(-values[largest], kind="stable")]
    left = np.delete(np.abs(values), largest).max(initial=0.0)
    return Spectrum(values[kept], errors[kept], ritz.floor, ritz.exhausted and bool(left <= ritz.floor))


def _key(key: PRNGKeyArray | None) -> PRNGKeyArray:
    return jax.random.key(0) if key is None else key


def _number(values: np.ndarray) -> Any:
    return float(values) if np.ndim(values) == 0 else values
