"""Updates of scattered entries, one after the other.

A scatter names for each of its updates where it belongs, and several may belong to the same entry. They are taken in row-major
order of the scatter's indices (for `x.at[i].add(y)`, as i is written; for a segment sum, as its terms come), beginning with the
entry itself:

    x_i = fl(x_i + u)        scatter-add, segment sums, the gradient of an embedding and of indexing
    x_i = fl(x_i - u)        scatter-sub
    x_i = fl(x_i * u)        scatter-mul

each rounded to `Accumulation.accumulate`; its other fields mean nothing here. Without an `Accumulation` the entries are
float32 sums in the backend's own order, rounded once at the end.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.arithmetic.sums.accumulation import Accumulation, compiled_run
from precisionlab.arithmetic.sums.orders import Operations
from precisionlab.numerics.derivatives import with_exact_derivative
from precisionlab.numerics.modes import Mode

__all__ = ["rounded_scatter"]


def rounded_scatter(
    name: str,
    operand: Array,
    indices: Array,
    updates: Array,
    how: Accumulation,
    mode: Mode,
    key: PRNGKeyArray | None,
    *,
    dimension_numbers: lax.ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode_of_indices: Any,
) -> Array:
    """A scatter with each of its updates rounded.

    Args:
        name: "scatter-add", "scatter-sub" or "scatter-mul".
        operand: float32 or float64, any shape.
        indices: of the updates.
        updates: in the dtype of the operand.
        how: `accumulate` is the format of the entries as they are updated; those that are not stay as they are.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.
        dimension_numbers: with all that follows, the parameters of the equation.
        indices_are_sorted: whether they are.
        unique_indices: whether no two belong to the same entry.
        mode_of_indices: what happens to updates out of bounds.

    Returns:
        The updated operand, with the derivative of the exact scatter.
    """
    options = {"indices_are_sorted": indices_are_sorted, "unique_indices": unique_indices, "mode": mode_of_indices}
    exact = partial(_scattered, _SCATTERS[name], dimension_numbers, options)
    places, terms = _in_order(operand, indices, updates, dimension_numbers, mode_of_indices)
    rounded = compiled_run((operand.reshape(-1), terms, places), how, mode, key, _one_by_one, name)
    return with_exact_derivative(exact, rounded.reshape(operand.shape), operand, indices, updates)


_SCATTERS = {"scatter-add": lax.scatter_add, "scatter-sub": lax.scatter_sub, "scatter-mul": lax.scatter_mul}


def _scattered(scatter: Any, numbers: Any, options: dict[str, Any], operand: Array, indices: Array, updates: Array) -> Array:
    return scatter(operand, indices, updates, numbers, **options)


def _one_by_one(operations: Operations, entries: Array, terms: Array, places: Array, name: str) -> Array:
    def step(entries: Array, numbered: tuple[Array, Array, Array]) -> tuple[Array, None]:
        where, term, index = numbered
        before = entries.at[where].get(mode="fill", fill_value=0)
        if name == "scatter-mul":
            after = operations.multiply(before, term, operations.how.accumulate, (0, index))
        else:
            after = operations.add(before, -term if name == "scatter-sub" else term, (1, index), bits=None)
        return entries.at[where].set(after, mode="drop"), None

    return lax.scan(step, entries, (places, terms, jnp.arange(places.shape[0])))[0]


def _in_order(operand: Array, indices: Array, updates: Array, numbers: Any, mode: Any) -> tuple[Array, Array]:
    """For each index in turn, the flat places of the entries in its window (beyond the last, if dropped), and their updates."""
    gathering = lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    sizes = iter(updates.shape[axis] for axis in numbers.update_window_dims)
    window = tuple(1 if axis in single else next(sizes) for axis in range(operand.ndim))
    all_places = np.arange(operand.size, dtype=np.int32).reshape(operand.shape)
    places = lax.gather(all_places, indices, gathering, window, mode=mode, fill_value=operand.size)
    outer = [axis for axis in range(updates.ndim) if axis not in numbers.update_window_dims]
    order = (*outer, *numbers.update_window_dims)
    count = math.prod(updates.shape[axis] for axis in outer)
    size = math.prod(updates.shape[axis] for axis in numbers.update_window_dims)
    flat = (jnp.transpose(x, order).reshape(count, size) for x in (places, updates))
    return next(flat), next(flat)
