"""Factorizations and solves, by their textbook algorithms: what runs is their every multiplication, subtraction and division.

All are right-looking: as soon as a column is known, its products are subtracted from what remains, so that an entry loses one
term after the other, in the order of the columns. Written as plain JAX, they are simulated like any other function.

G. H. Golub and C. F. Van Loan, "Matrix Computations", 4th edition, 3.1.2 (substitution), 3.4.1 (LU), 4.2.5 (Cholesky).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array
from precisionlab.arithmetic.complexes import is_complex

__all__ = ["cholesky", "lu", "triangular_solve", "tridiagonal_solve"]


def cholesky(a: Array) -> Array:
    """Outer products: l_kk = sqrt(a_kk), l_ik = a_ik / l_kk, then a_ij - l_ik l_jk for all that remains, column by column.

    Args:
        a: shape (..., n, n); its lower triangle is read.

    Returns:
        The lower triangular factor; NaN throughout if a pivot is not positive.
    """
    return _batched(_cholesky, a.ndim - 2)(a)


def _cholesky(a: Array) -> Array:
    n = a.shape[-1]
    rows = jnp.arange(n)

    def column(rest: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
        pivot = lax.real(rest[k, k]) if is_complex(rest.dtype) else rest[k, k]
        root = lax.sqrt(pivot)
        entry = lax.complex(root, jnp.zeros_like(root)) if is_complex(rest.dtype) else root
        below = rest[:, k] / _spread(root, rest[:, k])
        known = jnp.where(rows > k, below, jnp.where(rows == k, entry, jnp.zeros_like(below)))
        right = lax.conj(known) if is_complex(rest.dtype) else known
        later = (rows[:, None] > k) & (rows[None, :] > k)
        return jnp.where(later, rest - known[:, None] * right[None, :], rest), (known, pivot > 0)

    _, (columns, positive) = lax.scan(column, a, rows)
    return jnp.where(jnp.all(positive), columns.T, jnp.full_like(a, jnp.nan))


def _spread(divisor: Array, dividend: Array) -> Array:
    """A real divisor of a complex column, both parts of which it divides."""
    return lax.convert_element_type(divisor, dividend.dtype)


def lu(a: Array) -> tuple[Array, Array, Array]:
    """Gaussian elimination with partial pivoting: the first largest pivot, l_ik = a_ik / a_kk, then a_ij - l_ik a_kj.

    A pivot of zero leaves its column as it is. The size of a complex pivot is |re| + |im|, as in LAPACK.

    Args:
        a: shape (..., m, n).

    Returns:
        L below the diagonal and U; the row that each row was exchanged with; the permutation of the rows.
    """
    return _batched(_lu, a.ndim - 2)(a)


def _lu(a: Array) -> tuple[Array, Array, Array]:
    m, n = a.shape
    rows, columns = jnp.arange(m), jnp.arange(n)

    def eliminate(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        rest, order = state
        column = rest[:, k]
        size = jnp.abs(column.real) + jnp.abs(column.imag) if is_complex(a.dtype) else jnp.abs(column)
        chosen = jnp.argmax(jnp.where(rows >= k, size, -jnp.inf)).astype(jnp.int32)
        swapped = jnp.where(rows == k, chosen, jnp.where(rows == chosen, k, rows))
        rest, order = rest[swapped], order[swapped]
        pivot, column = rest[k, k], rest[:, k]
        divisor = jnp.where(pivot != 0, pivot, jnp.ones_like(pivot))
        ratio = jnp.where(rows > k, column / divisor, column)
        later = (rows[:, None] > k) & (columns[None, :] > k)
        rest = jnp.where(later, rest - ratio[:, None] * rest[k][None, :], rest)
        return (jnp.where(columns[None, :] == k, ratio[:, None], rest), order), chosen

    start = (a, rows.astype(jnp.int32))
    (factors, order), pivots = lax.scan(eliminate, start, jnp.arange(min(m, n)))
    return factors, pivots, order


def triangular_solve(
    a: Array, b: Array, *, left_side: bool, lower: bool, transpose_a: bool, conjugate_a: bool, unit_diagonal: bool
) -> Array:
    """Substitution: x_k = b_k / a_kk, then b_i - a_ik x_k for the rows that remain, from the known end to the other.

    The arguments are those of the primitive; one triangle of a is read.
    """
    a = lax.conj(a) if conjugate_a and is_complex(a.dtype) else a
    if not left_side:  # x a = b is a' x' = b'
        b = jnp.swapaxes(b, -1, -2)
    if transpose_a == left_side:
        a, lower = jnp.swapaxes(a, -1, -2), not lower
    solve = _batched(lambda a, b: _substitute(a, b, lower, unit_diagonal), a.ndim - 2)
    x = solve(a, b)
    return x if left_side else jnp.swapaxes(x, -1, -2)


def _substitute(a: Array, b: Array, lower: bool, unit_diagonal: bool) -> Array:
    rows = jnp.arange(a.shape[0])

    def row(rest: Array, k: Array) -> tuple[Array, Array]:
        known = rest[k] if unit_diagonal else rest[k] / a[k, k]
        later = rows > k if lower else rows < k
        return jnp.where(later[:, None], rest - a[:, k][:, None] * known[None, :], rest), known

    return lax.scan(row, b, rows, reverse=not lower)[1]


def tridiagonal_solve(dl: Array, d: Array, du: Array, b: Array) -> Array:
    """Gaussian elimination with partial pivoting between neighbouring rows, as LAPACK's gtsv, then back substitution.

    Args:
        dl: the lower diagonal, shape (..., n), its first entry not read.
        d: the diagonal, shape (..., n).
        du: the upper diagonal, shape (..., n), its last entry not read.
        b: right-hand sides, shape (..., n, k).
    """
    return _batched(_tridiagonal, d.ndim - 1)(dl, d, du, b)


def _tridiagonal(dl: Array, d: Array, du: Array, b: Array) -> Array:
    du = jnp.where(jnp.arange(d.shape[0]) < d.shape[0] - 1, du, jnp.zeros_like(du))

    def size(x: Array) -> Array:
        return jnp.abs(x.real) + jnp.abs(x.imag) if is_complex(x.dtype) else jnp.abs(x)

    def eliminate(above: tuple[Array, Array, Array], below: tuple[Array, ...]) -> tuple[Any, Any]:
        pivot, right, known = above
        first, second, third, rest = below
        exchanged = size(pivot) < size(first)
        rows = [(pivot, right, jnp.zeros_like(right), known), (first, second, third, rest)]
        top, bottom = ([jnp.where(exchanged, y, x) for x, y in zip(*pair, strict=True)] for pair in (rows, rows[::-1]))
        ratio = bottom[0] / top[0]
        return (bottom[1] - ratio * top[1], bottom[2] - ratio * top[2], bottom[3] - ratio * top[3]), top

    last, tops = lax.scan(eliminate, (d[0], du[0], b[0]), (dl[1:], d[1:], du[1:], b[1:]))
    end = last[2] / last[0]

    def substitute(later: tuple[Array, Array], row: list[Array]) -> tuple[tuple[Array, Array], Array]:
        pivot, right, beyond, known = row
        x = (known - right * later[0] - beyond * later[1]) / pivot
        return (x, later[0]), x

    _, xs = lax.scan(substitute, (end, jnp.zeros_like(end)), tops, reverse=True)
    return jnp.concatenate([xs, end[None]])


def _batched(function: Callable[..., Any], dimensions: int) -> Callable[..., Any]:
    for _ in range(dimensions):
        function = jax.vmap(function)
    return function
