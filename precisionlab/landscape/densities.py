"""All eigenvalues of a large Hessian at once, blurred: density and trace from random vectors.

For a random vector v with E v v^T = I, E v^T f(H) v = tr f(H). Stochastic Lanczos quadrature (Golub and Meurant; Ubaru, Chen
and Saad 2017) evaluates v^T f(H) v / n for all f at once: the eigenvalues of the tridiagonal matrix of the Krylov space of v
are nodes, the squared first components of its eigenvectors are weights, and the sum is exact for polynomials of degree up to 2
depth - 1. So a density is a mean over probes of combs of weighted spikes; blurred with a width that says what resolution is
asked for, it is a curve with a standard error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.landscape.derivatives import MOST_ENTRIES, hessian, hessian_rows
from precisionlab.landscape.krylov import breakdown, tridiagonals
from precisionlab.landscape.spectra import Estimate
from precisionlab.landscape.vectors import EPS, check_function, check_points, in_float64, traceable

__all__ = ["Density", "density_at", "hessian_trace", "moment", "spectral_density"]


class Density(NamedTuple):
    """The spectral measure of a Hessian, one quadrature for each probe.

    Attributes:
        nodes: (probes, depth) of the quadratures.
        weights: (probes, depth), each row of sum 1; zero where a Krylov space ended early.
    """

    nodes: np.ndarray
    weights: np.ndarray


@in_float64
def spectral_density(
    loss: Callable[[Any], Any], theta: Any, *, key: PRNGKeyArray | None = None, probes: int = 10, depth: int = 60
) -> Density:
    """The density of the eigenvalues of the Hessian, by stochastic Lanczos quadrature.

    Args:
        loss: of a float64 vector (n,), giving one number. Data in a `jax.tree_util.Partial` share one compilation.
        theta: (n,).
        key: for the probes; the same ones each time by default.
        probes: random vectors of entries +-1, at least 2.
        depth: of each Krylov space; at most n is used.

    Returns:
        The quadratures; see `density_at` and `moment`.

    Raises:
        ValueError: if theta or the function make no sense, or a number is out of range.

    Example:
        >>> found = spectral_density(lambda w: jnp.sum(jnp.array([3.0, 3.0, 1.0, 0.0]) * w**2) / 2, np.zeros(4))
        >>> round(moment(found, 1).value, 12)         # tr H / n
        1.75
    """
    point, fun = check_points("spectral_density", theta, one=True), traceable(loss)
    deep = min(depth, point.size)
    if probes < 2 or deep < 1 or deep * point.size > MOST_ENTRIES:
        raise ValueError(
            f"spectral_density: probes must be at least 2, depth from 1 to {MOST_ENTRIES // point.size} for "
            f"{point.size} parameters; got probes={probes}, depth={depth}."
        )
    check_function("spectral_density", fun, point.size, scalar=True)
    starts = jax.random.rademacher(jax.random.key(0) if key is None else key, (probes, point.size), jnp.float64)
    diagonals, offs = (np.asarray(part) for part in tridiagonals(fun, jnp.asarray(point), starts, deep))
    nodes, weights = np.zeros((probes, deep)), np.zeros((probes, deep))
    for probe, (diagonal, off) in enumerate(zip(diagonals, offs, strict=True)):
        kept = breakdown(diagonal, off)
        matrix = np.diag(diagonal[:kept]) + np.diag(off[: kept - 1], 1) + np.diag(off[: kept - 1], -1)
        nodes[probe, :kept], vectors = np.linalg.eigh(matrix)
        weights[probe, :kept] = vectors[0] ** 2 / np.sum(vectors[0] ** 2)
    return Density(nodes, weights)


def density_at(density: Density, at: Any, width: float) -> tuple[np.ndarray, np.ndarray]:
    """The density as a curve: every spike a Gaussian of the given width.

    Args:
        density: from `spectral_density`.
        at: (k,) where.
        width: standard deviation of the Gaussian, in units of the eigenvalues, positive.

    Returns:
        (k,) density, of integral 1, and (k,) its standard error over the probes.

    Raises:
        ValueError: if the width is not positive.

    Example:
        >>> spike = Density(np.array([[2.0], [2.0]]), np.ones((2, 1)))
        >>> [part.round(3).tolist() for part in density_at(spike, [2.0, 3.0], 1.0)]
        [[0.399, 0.242], [0.0, 0.0]]
    """
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"density_at: width must be a positive number; got {width}.")
    places = np.asarray(at, np.float64)
    # One probe after the other: (k, depth) numbers at a time.
    curves = np.stack(
        [
            np.exp(-0.5 * ((places[:, None] - nodes) / width) ** 2) @ weights
            for nodes, weights in zip(density.nodes, density.weights, strict=True)
        ]
    ) / (width * np.sqrt(2 * np.pi))
    return curves.mean(axis=0), _standard_error(curves)


def moment(density: Density, power: int) -> Estimate:
    """tr(H^power) / n, with its standard error over the probes; exact quadrature while power < 2 depth."""
    each = np.sum(density.weights * density.nodes**power, axis=1)
    return Estimate(float(each.mean()), float(_standard_error(each)))


@in_float64
def hessian_trace(
    loss: Callable[[Any], Any], theta: Any, *, key: PRNGKeyArray | None = None, probes: int = 100, dense_below: int = 2000
) -> Estimate:
    """The trace of the Hessian: exact for few parameters, Hutchinson's mean of v^T H v beyond.

    Args:
        loss: of a float64 vector (n,), giving one number.
        theta: (n,).
        key: for the probes; the same ones each time by default.
        probes: random vectors of entries +-1, at least 2.
        dense_below: the number of parameters from which probes take over.

    Returns:
        The trace; its error is that of rounding if exact, and otherwise the standard error over the probes.

    Raises:
        ValueError: if theta or the function make no sense, or a number is out of range.

    Example:
        >>> hessian_trace(lambda w: w[0] ** 2 + 3.0 * w[0] * w[1] + 2.0 * w[1] ** 2, [1.0, 1.0]).value
        6.0
    """
    point, fun = check_points("hessian_trace", theta, one=True), traceable(loss)
    if point.size < dense_below:
        matrix = hessian(fun, point)
        diagonal = np.diag(matrix)
        rounding = point.size * EPS * float(np.abs(diagonal).sum()) + float(np.linalg.norm(matrix - matrix.T))
        return Estimate(float(diagonal.sum()), rounding)
    if probes < 2:
        raise ValueError(f"hessian_trace: probes must be at least 2, so that there is a standard error; got {probes}.")
    check_function("hessian_trace", fun, point.size, scalar=True)
    each = np.asarray(_quadratic_forms(fun, jnp.asarray(point), jax.random.key(0) if key is None else key, jnp.arange(probes)))
    return Estimate(float(each.mean()), float(_standard_error(each)))


@jax.jit
def _quadratic_forms(loss: Any, theta: Array, key: PRNGKeyArray, probes: Array) -> Array:
    def one(probe: Array) -> Array:
        signs = jax.random.rademacher(jax.random.fold_in(key, probe), theta.shape, theta.dtype)
        return signs @ hessian_rows(loss, theta, signs[None, :])[0]

    return jax.lax.map(one, probes)


def _standard_error(samples: np.ndarray) -> np.ndarray:
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
