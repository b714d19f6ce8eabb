"""The same asked of each of many leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from precisionlab._typing import PyTree

__all__ = ["axes_of", "of_each"]


def axes_of(*arrays: Any) -> tuple[str, ...]:
    """The mesh axes along which these arrays differ inside `jax.shard_map`; none elsewhere."""
    return tuple(sorted({axis for array in arrays for axis in jax.typeof(array).manual_axis_type.varying}))


def of_each(fun: Callable[..., PyTree[Any]], rows: Sequence[tuple[Any, ...]]) -> PyTree[Any]:
    """What a function makes of every row, stacked in the order of the rows.

    Args:
        fun: a function of arrays, or of trees of them, to a tree of arrays whose shapes are the same for all rows. It is traced
            once for all rows of one shape.
        rows: its arguments, at least one row.

    Returns:
        The tree of results, with an axis of rows in front; where rows give different dtypes, the widest.
    """
    # Without tracing nothing is compiled but single operations, and a program of its own would be compiled in every call.
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(rows))
    each = jax.jit(fun) if traced else fun

    def stacked(*found: Any) -> Any:
        dtype = jnp.result_type(*found)
        return jnp.stack([one.astype(dtype) for one in found])

    return jax.tree.map(stacked, *(each(*row) for row in rows))
