"""Hessians without matrices: products with vectors, and what a Krylov space shows of the spectrum.

A product H v costs about two gradients: the derivative of the gradient along v. Lanczos' method (matfree) builds an orthonormal
basis Q of span(v, H v, ..., H^(k-1) v), reorthogonalizing fully; in it, H is tridiagonal. The pairs (t, x) from the
eigenvectors of Q^T H Q come with a certificate that needs no theory of convergence: some eigenvalue of H lies within |H x - t
x| of t.

Two things go wrong in practice. Where the space is exhausted early (d r outliers above a null space, say), the next basis
vector is rounding noise divided by its own size; the basis is cut there, and the search goes on from a new random vector
orthogonal to it, which also finds further copies of multiple eigenvalues. When such a vector meets nothing but noise, with
probability one nothing is left.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from matfree import decomp

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.landscape.derivatives import hessian_noise, hessian_rows
from precisionlab.landscape.vectors import EPS

__all__ = ["Ritz", "breakdown", "ritz_pairs", "tridiagonals"]


class Ritz(NamedTuple):
    """What a Krylov space shows of a Hessian.

    Attributes:
        values: (k,) approximate eigenvalues, descending.
        errors: (k,) some eigenvalue lies within this.
        floor: what rounding makes of a zero eigenvalue.
        exhausted: whether every other eigenvalue is zero to within the floor.
    """

    values: np.ndarray
    errors: np.ndarray
    floor: float
    exhausted: bool


@functools.partial(jax.jit, static_argnames="depth")
def tridiagonals(loss: Any, theta: Array, starts: Array, depth: int) -> tuple[Array, Array]:
    """Diagonals (s, depth) and off-diagonals (s, depth - 1) of H in the Krylov spaces of the rows of `starts` (s, n)."""
    return jax.lax.map(lambda start: _lanczos(loss, theta, start, None, depth)[1:], starts)


def ritz_pairs(loss: Partial, theta: np.ndarray, depth: int, key: PRNGKeyArray) -> Ritz:
    """Approximate eigenvalues of the Hessian from up to `depth` (at most n) products, and as many again to certify them."""
    n, scale, exhausted = theta.size, 0.0, False
    point, basis = jnp.asarray(theta), np.zeros((0, n))
    while len(basis) < depth and not exhausted:
        key, use = jax.random.split(key)
        start = np.asarray(jax.random.normal(use, (n,), jnp.float64))
        locked = np.zeros((depth if len(basis) else 0, n))  # of two shapes only, so that restarts compile once
        locked[: len(basis)] = basis
        start = start - (start @ basis.T) @ basis
        found = _deflated(loss, point, jnp.asarray(start), jnp.asarray(locked), depth)
        q, diagonal, off = (np.asarray(part) for part in found)
        kept = breakdown(diagonal, off)
        seen = max(np.abs(diagonal[:kept]).max(), np.abs(off[: kept - 1]).max(initial=0.0))
        scale = max(scale, seen)
        if seen <= 4 * depth * EPS * scale:
            exhausted = True
        else:
            # Those of a second pass are orthogonal to the first ones already; QR sees to the last bits.
            basis = np.linalg.qr(np.concatenate([basis, q[:kept]])[:depth].T)[0].T
            exhausted = len(basis) == n
    products = np.asarray(_rows(loss, point, jnp.asarray(basis)))
    small = basis @ products.T
    values, mixing = np.linalg.eigh(0.5 * (small + small.T))
    residuals = np.linalg.norm(mixing.T @ products - values[:, None] * (mixing.T @ basis), axis=1)
    noise = float(hessian_noise(loss, point))
    floor = max(depth, 1) * EPS * float(np.abs(values).max(initial=0.0)) + noise
    return Ritz(values[::-1], residuals[::-1] + noise, floor, exhausted)


def breakdown(diagonal: np.ndarray, off: np.ndarray) -> int:
    """How many rows of a tridiagonal matrix (k,), (k - 1,) come before the Krylov space is exhausted: from 1 to k."""
    for i, beta in enumerate(off):
        known = max(np.abs(diagonal[: i + 1]).max(), np.abs(off[:i]).max(initial=0.0))
        if not beta > 4 * diagonal.size * EPS * known:  # a NaN is a division by zero, one step later
            return i + 1
    return diagonal.size


@functools.partial(jax.jit, static_argnames="depth")
def _deflated(loss: Any, theta: Array, start: Array, locked: Array, depth: int) -> tuple[Array, Array, Array]:
    return _lanczos(loss, theta, start, locked, depth)


def _lanczos(loss: Any, theta: Array, start: Array, locked: Array | None, depth: int) -> tuple[Array, Array, Array]:
    def without(v: Array) -> Array:
        return v if locked is None else v - (v @ locked.T) @ locked

    def product(v: Array) -> Array:
        return without(jax.jvp(jax.grad(loss), (theta,), (without(v),))[1])

    # Not tridiag_sym, which averages both off-diagonals: past a breakdown only the lower one, a norm, says that there was one.
    found = decomp.hessenberg(depth, reortho="full")(product, start)
    matrix = cast(Array, found.J_small)
    return cast(Array, found.Q_tall), jnp.diagonal(matrix), jnp.diagonal(matrix, -1)


@jax.jit
def _rows(loss: Any, theta: Array, vectors: Array) -> Array:
    return hessian_rows(loss, theta, vectors)
