"""A function applied in place to entries of an array (`x.at[indices].apply(f)`), one index after the other.

As with `numpy.ufunc.at`, an index that comes twice has the function applied twice. What XLA does within one scatter is made
here of a gather, the function, and a scatter for every index in row-major order; at once, where the program says that no
index comes twice.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array

__all__ = ["apply_in_place"]


def apply_in_place(
    operand: Any,
    indices: Array,
    updates: tuple[int, ...],
    params: dict[str, Any],
    function: Callable[[Array, Any], tuple[Any, Any]],
) -> tuple[Any, Any]:
    """The operand with its indexed entries replaced by a function of them.

    Args:
        operand: arrays of one shape in a tree, for the same indices.
        indices: (..., d), integer, as `lax.scatter` takes them.
        updates: the shape of the updates, which tells how large the windows are that an index points to.
        params: of the scatter: its dimension numbers, mode and whether indices are unique.
        function: `function(turn, entries) -> (entries, seen)`, entries in a tree as the operand.

    Returns:
        The new operand, and what was seen, stacked over the turns.
    """
    numbers, rows = _without_batches(indices, params["dimension_numbers"])
    rank = jnp.ndim(jax.tree.leaves(operand)[0])
    sizes = iter(updates[axis] for axis in params["dimension_numbers"].update_window_dims)
    window = tuple(1 if axis in numbers.inserted_window_dims else next(sizes) for axis in range(rank))
    several = params["unique_indices"]
    shift = 1 if several else 0
    places = tuple(axis + shift for axis in range(rank - len(numbers.inserted_window_dims)))
    read = lax.GatherDimensionNumbers(places, numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims)
    write = lax.ScatterDimensionNumbers(places, numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims)
    options = {"mode": params["mode"], "unique_indices": several}

    def turn(held: Any, step: Any) -> tuple[Any, Any]:
        number, row = step
        entries = jax.tree.map(lambda array: lax.gather(array, row, read, window, **options), held)
        entries, seen = function(number, entries)
        return jax.tree.map(lambda array, new: lax.scatter(array, row, new, write, **options), held, entries), seen

    if several:
        held, seen = turn(operand, (jnp.uint32(0), rows))
        return held, jax.tree.map(lambda array: array[None], seen)
    return lax.scan(turn, operand, (jnp.arange(len(rows), dtype=jnp.uint32), rows))


def _without_batches(indices: Array, numbers: Any) -> tuple[Any, Array]:
    """Indices as rows; a batch dimension as one more coordinate, which counts."""
    shape, batches = indices.shape[:-1], numbers.scatter_indices_batching_dims
    counts = [lax.broadcasted_iota(indices.dtype, (*shape, 1), axis) for axis in batches]
    rows = jnp.concatenate([indices, *counts], axis=-1).reshape(math.prod(shape), indices.shape[-1] + len(counts))
    plain = lax.ScatterDimensionNumbers(
        (),
        tuple(sorted((*numbers.inserted_window_dims, *numbers.operand_batching_dims))),
        (*numbers.scatter_dims_to_operand_dims, *numbers.operand_batching_dims),
    )
    return plain, rows
