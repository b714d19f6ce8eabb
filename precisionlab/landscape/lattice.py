r"""The lattice census: how many points of a lattice fit the data as well as their spacing allows.

Take a lattice of spacing h in a box of R^n and count its points with loss <= c h^2. For a loss 1/2 |r|^2 that is the tube
|r| <= s, s = sqrt(2 c) h, and by the coarea formula the volume of that tube is exactly

    vol = integral over |t| <= s of F(t) dt,    F(t) = integral over {r = t} of dA / sqrt(det J J^T),

J the Jacobian of the d residuals. F is smooth where J has rank d, and the odd terms of its expansion cancel in the ball, so
that

    count = vol / h^n = V_d (2 c)^(d/2) F(0) h^-(n - d) (1 + O(c h^2)) + discrepancy,        V_d volume of the unit d-ball.

The logarithm of the count grows by n - d for each bit of the spacing. Two things disturb that, and they pull c apart: the
relative bias O(c h^2), which wants a small c, and the discrepancy between points and volume, which wants a tube some spacings
wide: for d = n all points lie in an ellipsoid with half-axes sqrt(2 c) / sigma_i spacings, sigma_i the singular values of J,
and between the bits their number scatters by about one layer of its surface. No c is right for every loss: look whether the
slope stays as bits are added.

Floats of p bits are a lattice whose spacing follows the point, 2^(e - p + 1) in the binade [2^e, 2^(e+1)). With h = 2^-p times
a scale the same holds, with the density of the lattice inside the integral, as long as the exponents stay in a fixed range:
around zero a floating lattice is not a lattice but a heap. That density jumps at the edges of binades: where d = n and a tube
reaches over one, its count is off by up to a factor of two for each weight, until with more bits the tube has shrunk away from
the edge.

A box of N points an axis costs N^n evaluations. Where a bound on the slope of |r| is known, a block of points can be ruled out
by the value at its centre, exactly, and the cost falls to about the number of points that are near the tube.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.landscape.vectors import check_function, traceable

__all__ = ["Census", "census", "fixed_axis", "float_axis"]

_CHUNK = 1 << 16  # evaluations at once: some megabytes, whatever the size of the box
_ELSEWHERE = (
    "walk along the manifold (landscape.walking), measure frozen extents (landscape.extents) "
    "or count flat directions (landscape.flatness)"
)


class Census(NamedTuple):
    """What a census found.

    Attributes:
        hits: lattice points with loss <= threshold.
        total: lattice points in the box.
        evaluated: how often the loss was computed.
        points: (hits, n) the points themselves, in lexicographic order; None unless asked for.
    """

    hits: int
    total: int
    evaluated: int
    points: np.ndarray | None


def fixed_axis(low: float, high: float, bits: int) -> np.ndarray:
    """The multiples of 2^-bits in [low, high), one axis of a fixed-point lattice.

    The interval is half open so that its points stand for cells that tile it: a closed one counts one layer too many, a
    relative error of the order of the spacing that would tilt every slope.

    Args:
        low: lower end.
        high: upper end, above `low`.
        bits: fraction bits of the lattice, from -50 to 50.

    Returns:
        Ascending float64 values.

    Raises:
        ValueError: if the ends are not finite and ascending, `bits` is out of range, or no multiple lies between the ends.

    Example:
        >>> fixed_axis(-0.5, 0.5, 2).tolist()
        [-0.5, -0.25, 0.0, 0.25]
    """
    _whole("fixed_axis: bits", bits, -50, 50)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"fixed_axis: low={low} and high={high} must be finite and ascending.")
    first, end = math.ceil(math.ldexp(low, bits)), math.ceil(math.ldexp(high, bits))
    if first >= end:
        raise ValueError(f"fixed_axis: no multiple of 2^-{bits} lies in [{low}, {high}); give a wider interval or more bits.")
    if end - first > 1 << 24:
        raise ValueError(f"fixed_axis: {end - first:,} points on one axis, at most {1 << 24:,} are allowed; give fewer bits.")
    return np.ldexp(np.arange(first, end, dtype=np.float64), -bits)


def float_axis(precision: int, smallest: int, largest: int) -> np.ndarray:
    """The floats of `precision` bits with exponents in a range, of both signs, one axis of a floating lattice.

    Args:
        precision: significand bits p with the hidden one, from 1 to 24.
        smallest: exponent of the lowest binade; what is smaller than 2^smallest is left out.
        largest: exponent of the highest binade; magnitudes end below 2^(largest + 1).

    Returns:
        Ascending float64 values, 2^p for each binade.

    Raises:
        ValueError: if `precision` or the exponents are out of range.

    Example:
        >>> float_axis(2, 0, 1).tolist()
        [-3.0, -2.0, -1.5, -1.0, 1.0, 1.5, 2.0, 3.0]
    """
    _whole("float_axis: precision", precision, 1, 24)
    _whole("float_axis: smallest", smallest, -500, 500)
    _whole("float_axis: largest", largest, smallest, min(smallest + 63, 500))
    significands = np.arange(1 << (precision - 1), 1 << precision, dtype=np.float64)
    positive = np.concatenate([np.ldexp(significands, e - precision + 1) for e in range(smallest, largest + 1)])
    return np.concatenate([-positive[::-1], positive])


def census(
    loss: Callable[[Any], Any],
    axes: Sequence[np.ndarray],
    threshold: float,
    *,
    slope_bound: float | None = None,
    points: bool = False,
    most_points: int = 1 << 28,
) -> Census:
    """Count the points of a lattice where a loss is at most `threshold`; every point, none sampled.

    Args:
        loss: of a float64 vector (n,), not negative. Data in a `jax.tree_util.Partial` share one compilation.
        axes: for each of 1 to 4 weights the ascending values that it may take; the lattice is their product.
        threshold: the largest loss that counts, c h^2.
        slope_bound: a bound on the norm of the gradient of sqrt(2 loss) in the box, for 1/2 |r|^2 any bound on the norm of the
            Jacobian of r. With it, blocks that cannot hold a point are skipped; the count is the same.
        points: whether to return the points.
        most_points: refuse larger boxes.

    Raises:
        ValueError: if there are more than 4 weights or `most_points` points, or an argument makes no sense.

    Example:
        >>> circle = lambda w: (w[0] ** 2 + w[1] ** 2 - 25.0) ** 2
        >>> census(circle, [fixed_axis(-8, 8, 0)] * 2, 0.0).hits       # (0, 5), (3, 4), (4, 3), ...
        12
    """
    rows = [np.asarray(axis, np.float64) for axis in axes]
    _check(rows, threshold, slope_bound, most_points)
    with jax.enable_x64(True):
        fun = traceable(loss)
        check_function("census", fun, len(rows), scalar=True)
        if slope_bound is None:
            return _exhaustive(fun, rows, float(threshold), points)
        return _pruned(fun, rows, float(threshold), float(slope_bound), points)


def _exhaustive(loss: Partial, rows: list[np.ndarray], threshold: float, points: bool) -> Census:
    table, shape = _table(rows)
    total = math.prod(shape)
    strides = jnp.asarray(np.cumprod([1, *shape[:0:-1]])[::-1].copy())
    sizes = jnp.asarray(np.array(shape))
    counts, found = [], []
    for start in range(0, total, _CHUNK):
        below = _below_in_slab(loss, table, strides, sizes, np.int64(start), np.int64(total), threshold)
        if points:
            found.append(start + np.flatnonzero(below))
        else:
            counts.append(jnp.count_nonzero(below))
    if not points:
        return Census(int(sum(map(int, counts))), total, total, None)
    flat = np.concatenate(found)
    indices = np.unravel_index(flat, shape)
    return Census(len(flat), total, total, np.stack([row[i] for row, i in zip(rows, indices, strict=True)], axis=1))


@jax.jit
def _below_in_slab(loss: Any, table: Any, strides: Any, sizes: Any, start: Any, total: Any, threshold: Any) -> Any:
    flat = start + jnp.arange(_CHUNK)
    indices = (flat[:, None] // strides[None, :]) % sizes[None, :]
    theta = jax.vmap(lambda row, i: row[i], in_axes=(0, 1), out_axes=1)(table, indices)
    return (flat < total) & (jax.vmap(loss)(theta) <= threshold)


def _pruned(loss: Partial, rows: list[np.ndarray], threshold: float, slope_bound: float, points: bool) -> Census:
    """Depth first through blocks of 2^level points an axis, so that what waits stays small."""
    table, shape = _table(rows)
    sizes, n = np.array(shape), len(rows)
    count, evaluated, found = 0, 0, []
    level = max(0, int(max(shape) - 1).bit_length() - 3)
    corners = np.stack(np.meshgrid(*[np.arange(0, size, 1 << level) for size in shape], indexing="ij"), axis=-1)
    halves = np.stack(np.meshgrid(*[(0, 1)] * n, indexing="ij"), axis=-1).reshape(1, -1, n)
    waiting = [(level, corners.reshape(-1, n).astype(np.int32))]
    while waiting:
        level, corners = waiting.pop()
        if len(corners) > _CHUNK:
            waiting.append((level, corners[_CHUNK:]))
            corners = corners[:_CHUNK]
        # One of two sizes, so that there are two compilations and little waste on small blocks.
        room = _CHUNK if len(corners) > _CHUNK // 16 else _CHUNK // 16
        padded = np.zeros((room, n), np.int32)
        padded[: len(corners)] = corners
        last = np.minimum(padded + ((1 << level) - 1), sizes[None, :] - 1).astype(np.int32)
        kept = np.asarray(_within_reach(loss, table, padded, last, threshold, slope_bound))[: len(corners)]
        evaluated += len(corners)
        corners = corners[kept]
        if level:
            children = (corners[:, None, :] + halves.astype(np.int32) * np.int32(1 << (level - 1))).reshape(-1, n)
            waiting.append((level - 1, children[(children < sizes[None, :]).all(axis=1)]))
        else:
            count += len(corners)
            if points:
                found.append(corners)
    where = None
    if points:
        chosen = np.concatenate([np.zeros((0, n), np.int32), *found])
        chosen = chosen[np.lexsort(chosen.T[::-1])]
        where = np.stack([row[chosen[:, i]] for i, row in enumerate(rows)], axis=1)
    return Census(count, math.prod(shape), evaluated, where)


@jax.jit
def _within_reach(loss: Any, table: Any, first: Any, last: Any, threshold: Any, slope_bound: Any) -> Any:
    """Whether a block may hold a point; for a block of one point, whether it does."""
    pick = jax.vmap(lambda row, i: row[i], in_axes=(0, 1), out_axes=1)
    low, high = pick(table, first), pick(table, last)
    values = jax.vmap(loss)(0.5 * (low + high))
    # Half the diagonal, a little longer so that the rounding of the loss cannot lose a block.
    radius = 0.5 * (1 + 1e-9) * jnp.sqrt(jnp.sum(jnp.square(high - low), axis=1))
    reach = jnp.sqrt(2 * threshold) * (1 + 1e-9) + slope_bound * radius
    # A NaN rules out no block, but is no point.
    return jnp.where(radius > 0, ~(2 * values > jnp.square(reach)), values <= threshold)


def _table(rows: list[np.ndarray]) -> tuple[Any, tuple[int, ...]]:
    """The axes in equal lengths, so that the compiled program depends on the order of magnitude of the box alone."""
    shape = tuple(map(len, rows))
    width = 1 << (max(shape) - 1).bit_length()
    return jnp.asarray(np.stack([np.pad(row, (0, width - len(row))) for row in rows])), shape


def _check(rows: list[np.ndarray], threshold: float, slope_bound: float | None, most_points: int) -> None:
    if not 1 <= len(rows) <= 4:
        raise ValueError(
            f"census: {len(rows)} weights, allowed are 1 to 4, for the points grow with the power of their number; "
            f"{_ELSEWHERE}."
        )
    for row in rows:
        if row.ndim != 1 or not len(row) or not np.isfinite(row).all() or (np.diff(row) <= 0).any():
            raise ValueError(f"census: each axis must be a row of ascending finite numbers; got one of shape {row.shape}.")
    total = math.prod(map(len, rows))
    if total > most_points:
        raise ValueError(
            f"census: the box holds {total:,} lattice points, more than most_points={most_points:,}; take fewer bits or a "
            f"smaller box, raise most_points, or {_ELSEWHERE}."
        )
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"census: threshold must be finite and not negative; got {threshold}.")
    if slope_bound is not None and not (math.isfinite(slope_bound) and slope_bound > 0):
        raise ValueError(f"census: slope_bound must be finite and positive, or None where none is known; got {slope_bound}.")


def _whole(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}; got {value!r}.")
