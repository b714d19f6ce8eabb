"""Leaves of one kind, seen together.

A model has hundreds of leaves and a dozen shapes. What is asked of each leaf alike is therefore traced, lowered and compiled
once for a shape, not once for a leaf, which for hundreds of leaves is the difference between a minute and seconds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from precisionlab._typing import PyTree

__all__ = ["axes_of", "of_each"]

_SMALL = 1 << 12
"""Up to so many entries a stack costs less than programs of their own."""

_MANY = 8
"""From so many large leaves on, on CPUs, a loop over copies of them is worth the tenth by which it is slower. GPUs' compilers
make one kernel of equal ones by themselves, and a loop with branches would make their hosts wait."""


def axes_of(*arrays: Any) -> tuple[str, ...]:
    """The mesh axes along which these arrays differ inside `jax.shard_map`; none elsewhere."""
    return tuple(sorted({axis for array in arrays for axis in jax.typeof(array).manual_axis_type.varying}))


def of_each(fun: Callable[..., PyTree[Any]], rows: Sequence[tuple[Any, ...]], *, at_hand: bool = False) -> PyTree[Any]:
    """What a function makes of every row, stacked in the order of the rows.

    Args:
        fun: a function of arrays, or of trees of them, to a tree of arrays whose shapes are the same for all rows.
        rows: its arguments, at least one row.
        at_hand: whether the arguments lie in memory anyway, so that large ones may be taken up one after the other; others
            are better made where they are used.

    Returns:
        The tree of results, with an axis of rows in front; where rows give different dtypes, the widest.
    """
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_kind(row), []).append(index)
    found = [_of_group(fun, [rows[index] for index in group], at_hand) for group in groups.values()]
    order = np.argsort([index for group in groups.values() for index in group])

    def joined(*parts: Any) -> Any:
        dtype = jnp.result_type(*parts)
        whole = parts[0] if len(parts) == 1 else jnp.concatenate([part.astype(dtype) for part in parts])
        return whole if (order == np.arange(len(order))).all() else whole[order]

    return jax.tree.map(joined, *found)


def _kind(row: tuple[Any, ...]) -> Any:
    """What rows have in common that may go together."""
    leaves, structure = jax.tree.flatten(row)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf), axes_of(leaf)) for leaf in leaves)


def _of_group(fun: Callable[..., Any], rows: list[tuple[Any, ...]], at_hand: bool) -> Any:
    leaves = jax.tree.leaves(rows[0])
    # Without tracing nothing is compiled but single operations, and a program of its own would be compiled in every call.
    traced = any(isinstance(leaf, Tracer) for leaf in leaves)
    each = jax.jit(fun) if traced else fun  # traced once for a kind, however often it is called
    # Nothing says how arrays are laid out over several devices, and a stack of different layouts would move them.
    together = traced and len(rows) > 1 and jax.device_count() == 1
    if together and max(map(jnp.size, leaves)) <= _SMALL:
        # Behind a barrier, lest what makes them is made again inside of the stack.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(jax.lax.optimization_barrier(leaves)), *rows)
        return jax.vmap(each)(*stacked)
    if together and at_hand and len(rows) >= _MANY and jax.default_backend() == "cpu":
        branches = [lambda row=row: row for row in rows]
        return jax.lax.map(lambda index: each(*jax.lax.switch(index, branches)), np.arange(len(rows)))
    return jax.tree.map(lambda *found: jnp.stack(found), *(each(*row) for row in rows))
