"""Many questions about the entries of an array, answered in one pass over it.

How compilers like sums best differs by what is summed: integers in one reduction of many operands, floats as products with
ones, few entries in a few small kernels. What each way costs is in `benchmarks/NOTES.md`.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array

__all__ = ["Column", "are_few", "combining", "histogram", "reduced", "sums"]

_ROWS = 16
"""So many rows give every thread something to count."""

_FEW = 1 << 10
"""Up to so many entries a few small kernels count them one thing after another; with more, everything in one pass."""

_ALONE: dict[Any, Any] = {operator.add: jax.lax.add, jnp.minimum: jax.lax.min, jnp.maximum: jax.lax.max}
"""The combinations as primitives, which a reduction of one operand has kernels for."""


class Column(NamedTuple):
    """An integer for each entry, and how the entries come together."""

    terms: Array
    start: int = 0
    combine: Callable[[Array, Array], Array] = operator.add


def reduced(columns: list[Column]) -> list[Array]:
    """Each column brought together, all of them in one pass over memory.

    Separate sums would compute the masks, and the rounding behind them, once each; one reduction with many operands computes
    them together, and integer operands still vectorize. Where arrays may be sharded they stay separate: compilers partition a
    reduction of one operand, and gather the whole of many.
    """
    if columns[0].terms.ndim == 0:
        return [column.terms for column in columns]
    axes = tuple(range(columns[0].terms.ndim))
    if jax.device_count() > 1:
        return [jax.lax.reduce(column.terms, np.int32(column.start), _ALONE[column.combine], axes) for column in columns]
    terms = tuple(column.terms for column in columns)
    if not are_few(terms[0]):
        # A reduction to one number is made by one thread; to many rows first, by all.
        shape = terms[0].shape
        rows = next((axis for axis in axes[:-1] if math.prod(shape[: axis + 1]) >= _ROWS), 0)
        within = axes[rows + 1 :] if len(axes) > 1 else axes
        starts = tuple(np.int32(column.start) for column in columns)
        terms = tuple(jax.lax.reduce(terms, starts, combining(tuple(column.combine for column in columns)), within))
        if len(axes) == 1:
            return list(terms)
        terms = jax.lax.optimization_barrier(terms)
    # Every number that a reduction combines is a buffer to be looked after in every call: one for each combination will do.
    found: dict[int, Array] = {}
    for together, alone in _ALONE.items():
        places = [place for place, column in enumerate(columns) if column.combine is together]
        if places:
            stacked = jnp.stack([terms[place] for place in places])
            start = np.int32(columns[places[0]].start)
            found |= dict(zip(places, jax.lax.reduce(stacked, start, alone, tuple(range(1, stacked.ndim))), strict=True))
    return [found[place] for place in range(len(columns))]


def are_few(entries: Array) -> bool:
    """Whether these are few, and no compiler has to bring the parts of sharded arrays together for them."""
    return entries.size <= _FEW and jax.device_count() == 1


def histogram(bins: Array, count: int) -> Array:
    """How many entries lie in each bin, of few: a comparison with every bin, which compiles to one small kernel."""
    every = np.arange(count, dtype=np.int32)
    return jnp.sum((bins.reshape(1, -1) == every[:, None]).astype(jnp.int32), axis=1)


@cache  # JAX knows a reduction that it has compiled by the function's identity.
def combining(combine: tuple[Any, ...]) -> Callable[[tuple[Array, ...], tuple[Array, ...]], tuple[Array, ...]]:
    """What a reduction of several operands combines them with: the same function for the same combinations."""
    return lambda one, other: tuple(together(a, b) for together, a, b in zip(combine, one, other, strict=True))


def sums(terms: list[Array]) -> Sequence[Array]:
    """Float sums; as products with ones where that is faster, since compilers must not reorder plain ones."""
    first = terms[0]
    if are_few(first):
        return tuple(jnp.sum(jnp.stack(terms), axis=tuple(range(1, first.ndim + 1))))
    if first.ndim < 2 or first.size < _FEW:
        return [jnp.sum(term) for term in terms]
    ones = jnp.ones(first.shape[-1], first.dtype)
    return [jnp.sum(jnp.matmul(term, ones, precision=jax.lax.Precision.HIGHEST)) for term in terms]
