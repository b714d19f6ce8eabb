"""What an optimizer's program does to its state, found out by running it once on numbers of our own.

A record of what happened cannot tell a sum from a maximum, or a number that storage rounds from one that came rounded already.
The program can, on parameters of one entry each.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import widened
from precisionlab.optimizers.meaning.meant import Kept, meant_state, state_leaves
from precisionlab.optimizers.roundings import concealed, reveal, rounding_states, rounds_state
from precisionlab.optimizers.sums import is_floating

__all__ = ["narrowed_leaves", "with_sums"]

_UNEVEN = 0.7654321, 0.1234567, 0.3456789
"""State, gradients and weights of which no narrow format holds products and sums."""

_SAME = 2.0**-18
"""Relative difference of float32 results that some operations in another order may make, and no rounding to 16 bits."""

_LEVELS = 1.0, 2.0, -4.0
"""What a number is set to, to see whether the same is added to each."""


def narrowed_leaves(
    inner: optax.GradientTransformationExtraArgs, state: Any, params: PyTree[Array], told: Sequence[bool]
) -> Array:
    """Which leaves an optimizer rounds by itself to fewer bits than float32 has, before they are stored.

    Asked where that makes a difference: of leaves in float32 and of those that a rounding of ours rounds stochastically, which
    is of no use for what is on the grid already.

    Args:
        inner: the optimizer.
        state: its first state.
        params: the parameters, of which only the tree, the dtypes and the numbers of axes matter.
        told: for each leaf of the state whether it is looked at.

    Returns:
        For each leaf 1 if it is, else 0; NaN where it was not asked or cannot be told.
    """
    leaves = jax.tree.leaves(state)
    found = np.full(max(len(leaves), 1), np.nan, np.float32)
    by_chance = any(rounds_state(node) and not _surely_nearest(node) for node in rounding_states(state))
    places = state_leaves(state)
    asked = [
        index
        for index, (place, leaf, mark) in enumerate(zip(places, leaves, told, strict=True))
        if mark and place is not None and (by_chance if place.grid is not None else leaf.dtype.itemsize >= 4)
    ]
    level, slope, weight = _UNEVEN
    small = _small(inner, params, weight) if asked else None
    probes = None if small is None else _made(inner, small[0], small[1], asked, level, slope)
    if probes is not None:
        for index in asked:
            meant, own = probes[0][index], probes[1][index]
            if np.isfinite(meant).all() and np.isfinite(own).all() and meant.any():
                found[index] = np.max(np.abs(own - meant)) > _SAME * np.max(np.abs(meant))
    return jnp.asarray(found)


def with_sums(
    kept: Kept, inner: optax.GradientTransformationExtraArgs, state: Any, params: PyTree[Array], told: Sequence[bool]
) -> Kept:
    """The factors, with 1 also for single numbers of no parameter to which something is added in each update.

    To a sum the same is added whatever it holds. A maximum, an average or a number that is set anew differ in that.

    Args:
        kept: what is known, NaN for those.
        inner: the optimizer.
        state: its first state.
        params: the parameters, of which only the tree, the dtypes and the numbers of axes matter.
        told: for each leaf of the state whether it is looked at.
    """
    owned = {(path, jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    places = [
        index
        for index, (mark, (path, leaf)) in enumerate(zip(told, jax.tree_util.tree_leaves_with_path(state), strict=True))
        if mark and jnp.ndim(leaf) == 0 and not any((path[start:], ()) in owned for start in range(len(path) + 1))
    ]
    small = _small(inner, params, _UNEVEN[2]) if places else None
    sums = np.zeros(len(told), bool)
    if small is None:
        return kept
    for index in places:
        made = [_made(inner, small[0], small[1], [index], level, _UNEVEN[1]) for level in _LEVELS]
        known = [sides for sides in made if sides is not None]
        if len(known) == len(_LEVELS):
            added = [float(sides[0][index]) - level for sides, level in zip(known, _LEVELS, strict=True)]
            sums[index] = np.ptp(added) <= 2.0**-40 * max(map(abs, (*added, *_LEVELS)))
    return Kept(*(jnp.where(sums, 1, column) for column in kept)) if sums.any() else kept


def _surely_nearest(node: Any) -> bool:
    rows = node.grid.rows
    return not isinstance(rows, Tracer) and not np.asarray(rows)[..., 2].any()


def _small(inner: optax.GradientTransformationExtraArgs, params: PyTree[Array], weight: float) -> tuple[Any, Any] | None:
    """Parameters of one entry each, and the first state of an optimizer of them; None if it makes no such state."""

    def one(leaf: Any) -> Array:
        return jnp.full((1,) * jnp.ndim(leaf), weight if is_floating(leaf) else 0, jnp.result_type(leaf))

    try:
        with jax.ensure_compile_time_eval():
            few = jax.tree.map(one, params)
            return few, inner.init(few)
    except Exception:  # An optimizer may ask for more than one entry.
        return None


def _made(
    inner: optax.GradientTransformationExtraArgs,
    params: PyTree[Array],
    state: Any,
    places: Sequence[int],
    level: float,
    slope: float,
) -> tuple[list[Any], list[Any]] | None:
    """The leaves of the state after an update, as meant in float64 and as the program makes them; None if it cannot."""
    leaves, structure = jax.tree.flatten(state)
    try:
        with jax.ensure_compile_time_eval():
            filled = [jnp.full_like(leaf, level) if index in places else leaf for index, leaf in enumerate(leaves)]
            held = jax.tree.unflatten(structure, filled)
            grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, slope) if is_floating(leaf) else leaf, params)
            own = jax.tree.leaves(concealed(inner.update(grads, reveal(held), params)[1]))
            meant = meant_state(inner, grads, held, params, {}, double=True)
            return [_array(leaf) for leaf in meant], [_array(leaf) for leaf in own]
    except Exception:  # It may also ask for what only a real update has: then nothing is known.
        return None


def _array(leaf: Any) -> Any:
    return np.asarray(widened(leaf), np.float64) if is_floating(leaf) else np.zeros(1)
