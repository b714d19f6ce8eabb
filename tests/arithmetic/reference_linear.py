"""Complex arithmetic, factorizations and Fourier transforms as one would write them down: entry by entry, in NumPy on the host.

`rounds` is one rounding of float64 arrays: every function rounds after each operation on real numbers, which float64 does with
room to spare. Entries lose their terms in the order in which the columns become known, which is written here from the left
(what an entry loses), and in the library from the right (whom a column takes from).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Rounds = Callable[[Any], Any]
Pair = tuple[Any, Any]


def multiply(x: Pair, y: Pair, rounds: Rounds) -> Pair:
    (a, b), (c, d) = x, y
    return rounds(rounds(a * c) - rounds(b * d)), rounds(rounds(a * d) + rounds(b * c))


def divide(x: Pair, y: Pair, rounds: Rounds) -> Pair:
    """Smith's algorithm, of scalars."""
    (a, b), (c, d) = x, y
    if abs(c) >= abs(d):
        r = rounds(d / c)
        t = rounds(c + rounds(d * r))
        return rounds(rounds(a + rounds(b * r)) / t), rounds(rounds(b - rounds(a * r)) / t)
    r = rounds(c / d)
    t = rounds(d + rounds(c * r))
    return rounds(rounds(b + rounds(a * r)) / t), rounds(rounds(rounds(b * r) - a) / t)


def cholesky(a: np.ndarray, rounds: Rounds) -> np.ndarray:
    n = len(a)
    known = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for k in range(j):
                s = rounds(s - rounds(known[i, k] * known[j, k]))
            known[i, j] = rounds(np.sqrt(s)) if i == j else rounds(s / known[j, j])
    return known


def lu(a: np.ndarray, rounds: Rounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = a.copy()
    m, n = a.shape
    order, pivots = np.arange(m), []
    for k in range(min(m, n)):
        chosen = k + int(np.argmax(np.abs(a[k:, k])))
        pivots.append(chosen)
        a[[k, chosen]], order[[k, chosen]] = a[[chosen, k]], order[[chosen, k]]
        for i in range(k + 1, m):
            a[i, k] = rounds(a[i, k] / a[k, k])
            for j in range(k + 1, n):
                a[i, j] = rounds(a[i, j] - rounds(a[i, k] * a[k, j]))
    return a, np.array(pivots), order


def triangular_solve(a: np.ndarray, b: np.ndarray, lower: bool, rounds: Rounds) -> np.ndarray:
    n = len(a)
    x = np.zeros_like(b)
    for column in range(b.shape[1]):
        known: list[int] = []
        for i in range(n) if lower else reversed(range(n)):
            s = b[i, column]
            for k in known:
                s = rounds(s - rounds(a[i, k] * x[k, column]))
            x[i, column] = rounds(s / a[i, i])
            known.append(i)
    return x


def tridiagonal_solve(dl: np.ndarray, d: np.ndarray, du: np.ndarray, b: np.ndarray, rounds: Rounds) -> np.ndarray:
    """Gaussian elimination with partial pivoting on the band, held as a full matrix; one right-hand side."""
    n = len(d)
    a = np.diag(d) + np.diag(dl[1:], -1) + np.diag(du[:-1], 1)
    b = b.copy()
    for i in range(n - 1):
        if abs(a[i, i]) < abs(a[i + 1, i]):
            a[[i, i + 1]], b[[i, i + 1]] = a[[i + 1, i]], b[[i + 1, i]]
        ratio = rounds(a[i + 1, i] / a[i, i])
        for j in range(i + 1, min(n, i + 3)):
            a[i + 1, j] = rounds(a[i + 1, j] - rounds(ratio * a[i, j]))
        b[i + 1] = rounds(b[i + 1] - rounds(ratio * b[i]))
    x = np.zeros(n)
    for i in reversed(range(n)):
        s = b[i]
        for j in range(i + 1, min(n, i + 3)):
            s = rounds(s - rounds(a[i, j] * x[j]))
        x[i] = rounds(s / a[i, i])
    return x


def fourier(real: np.ndarray, imag: np.ndarray, sign: int, rounds: Rounds) -> Pair:
    """The transform with exp(sign 2 pi i jk / n), by halves: even entries, odd entries, butterflies."""
    n = len(real)
    if n == 1:
        return real, imag
    evens = fourier(real[::2], imag[::2], sign, rounds)
    odds = fourier(real[1::2], imag[1::2], sign, rounds)
    angle = 2 * np.pi * np.arange(n // 2) / n
    w = rounds(np.round(np.cos(angle), 15)), rounds(sign * np.round(np.sin(angle), 15))
    turned = multiply(w, odds, rounds)
    upper = [rounds(even + odd) for even, odd in zip(evens, turned, strict=True)]
    lower = [rounds(even - odd) for even, odd in zip(evens, turned, strict=True)]
    return np.concatenate([upper[0], lower[0]]), np.concatenate([upper[1], lower[1]])
