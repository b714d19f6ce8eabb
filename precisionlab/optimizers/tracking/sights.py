"""What there is to see in one update of an optimizer: the weights, and what the optimizer remembers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, PRNGKeyArray, PyTree
from precisionlab.numerics.carriers import CARRIERS, as_float64, to_bits, widened
from precisionlab.numerics.formats import FORMATS, Format
from precisionlab.optimizers.meaning.meant import Leaf, meant_state, state_leaves
from precisionlab.optimizers.roundings import Placed, numbers_of, reveal, rounding_states, rounds_weights
from precisionlab.optimizers.sums import is_floating, stored_sum
from precisionlab.optimizers.tracking.looking import Looked, Sight, Wanted, look
from precisionlab.optimizers.tracking.storing import grids_of_weights
from precisionlab.stagnation.packing import PackedTallies

__all__ = [
    "Asked",
    "Event",
    "floating",
    "look_at_nothing",
    "look_at_state",
    "look_at_weights",
    "told_leaves",
    "weights_and_updates",
]


class Asked(NamedTuple):
    """What `track` was asked for; see there."""

    optimizer: optax.GradientTransformationExtraArgs
    formats: Mapping[str, Format]
    detail: bool
    state: bool | None


class Event(NamedTuple):
    """One update: what the optimizer was given, what it gave, and its state before and after."""

    params: PyTree[Array]
    given: PyTree[Array]
    updates: PyTree[Array]
    before: Any
    after: Any
    extra: dict[str, Any]


def floating(params: PyTree[Any]) -> PyTree[Any]:
    """The tree with what cannot stagnate (integers, None, masked leaves) replaced by None, which has no leaves."""
    return jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, params)


def weights_and_updates(params: PyTree[Any], updates: PyTree[Any]) -> tuple[PyTree[Any], PyTree[Any]]:
    """What can stagnate of both.

    Raises:
        ValueError: if trees or shapes differ.
    """
    structures = jax.tree.structure(params), jax.tree.structure(updates)
    if structures[0] != structures[1]:
        raise ValueError(
            f"track: the updates are not the same tree as the parameters: {structures[1]} against {structures[0]}; pass the "
            f"gradients of these parameters."
        )
    for (path, leaf), step in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(updates), strict=True):
        if jnp.shape(leaf) != jnp.shape(step):
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            raise ValueError(f"track: at {where}, the update has shape {jnp.shape(step)} and the parameter {jnp.shape(leaf)}.")
    steps = jax.tree.map(lambda leaf, step: step if is_floating(leaf) else None, params, updates)
    return floating(params), steps


def look_at_nothing(asked: Asked, params: PyTree[Array], state: Any) -> tuple[Looked, Looked | None]:
    """What looks at weights and state will return, all zeros."""

    def looks(params: PyTree[Array], state: Any) -> Any:
        event, key = Event(params, params, params, state, state, {}), jax.random.key(0)
        meant = [widened(leaf) if is_floating(leaf) else leaf for leaf in jax.tree.leaves(state)]
        seen = None if asked.state is False else _look_at_state(asked, event, meant, key)
        return _look_at_weights(asked, event, params, key), seen

    shapes = jax.eval_shape(looks, params, state)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def look_at_weights(asked: Asked, event: Event, key: PRNGKeyArray) -> Looked:
    """The fates of the updates, as they were before any rounding of ours inside the optimizer."""
    meant = event.updates
    if any(map(rounds_weights, rounding_states(event.before))):
        meant = asked.optimizer.update(event.given, reveal(event.before), event.params, **event.extra)[0]
    return _look_at_weights(asked, event, meant, key)


def _look_at_weights(asked: Asked, event: Event, meant: PyTree[Array], key: PRNGKeyArray) -> Looked:
    weights, steps = weights_and_updates(event.params, event.updates)
    leaves, structure = jax.tree.flatten(weights)
    made = jax.tree.leaves(steps)
    rows = zip(
        leaves,
        made,
        # Not a second time where it is the same: rows are copied to lie together.
        [None] * len(made) if meant is event.updates else jax.tree.leaves(weights_and_updates(event.params, meant)[1]),
        _keeping(weights, event),
        list(map(_spacing, grids_of_weights(list(_by_path(weights)), event.before), leaves)),
        strict=True,
    )
    kept = any(rounds_weights(node) and node.residual is not None for node in rounding_states(event.before))
    return look(_weight_sight, list(rows), structure, asked.formats, key, Wanted(asked.detail, kept=kept), at_hand=True)


def _weight_sight(old: Array, made: Array, meant: Any, kept: Any, grid: Any) -> Sight:
    return Sight(old, made if meant is None else meant, stored_sum(old, made), kept, grid)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _keeping(weights: PyTree[Array], event: Event) -> list[Any]:
    """For each weight, where what keeps residuals has changed; None where nothing does."""
    changed: dict[str, Any] = {}
    for old, new in zip(rounding_states(event.before), rounding_states(event.after), strict=True):
        if not rounds_weights(old) or old.residual is None:
            continue
        for (path, one), other in zip(_by_path(old.residual).items(), jax.tree.leaves(new.residual), strict=True):
            one, other = widened(one), widened(other)
            carrier = CARRIERS[one.dtype.name]
            changed[path] = to_bits(one, carrier) != to_bits(other, carrier)
    return [changed.get(path) for path in _by_path(weights)]


def look_at_state(asked: Asked, event: Event, key: PRNGKeyArray) -> Looked | None:
    """The fates of what was to be added to the optimizer's state."""
    if asked.state is False:
        return None
    arguments = asked.optimizer, event.given, event.before, event.params, event.extra
    if asked.state:
        meant = meant_state(*arguments, double=True)
        with jax.enable_x64(True):
            return _look_at_state(asked, event, meant, key)
    narrow = any(place is not None and place.narrow for place in state_leaves(event.before))
    return _look_at_state(asked, event, meant_state(*arguments) if narrow else jax.tree.leaves(event.after), key)


def _look_at_state(asked: Asked, event: Event, meant: Sequence[Array], key: PRNGKeyArray) -> Looked:
    old, structure = jax.tree.flatten(event.before)
    places = zip(state_leaves(event.before), old, meant, jax.tree.leaves(event.after), strict=True)
    rows = [
        (before, wanted, after, _spacing(place.grid, before)) if place is not None and _told(asked, place) else None
        for place, before, wanted, after in places
    ]
    # Without sums and histograms, which take most of the time to compile, and there are several leaves for each weight.
    counts = Wanted(detail=False, directions=True, gaps=True)
    seen = look(_state_sight, rows, structure, asked.formats, key, counts, at_hand=False)
    # The state itself tells the tree, and a second one with its names would confuse those who search it.
    return jax.tree.map(lambda packed: packed._replace(tree=None), seen, is_leaf=lambda node: isinstance(node, PackedTallies))


def told_leaves(asked: Asked, state: Any) -> list[bool]:
    """For each leaf of a state, whether the record tells of it."""
    return [_told(asked, place) for place in state_leaves(state)]


def _told(asked: Asked, place: Leaf | None) -> bool:
    return place is not None and (bool(asked.state) or place.narrow)


def _state_sight(old: Array, meant: Array, new: Array, grid: Any) -> Sight:
    before, wanted = widened(old), widened(meant)
    if before.dtype != wanted.dtype:
        before, wanted = as_float64(before), as_float64(wanted)
    return Sight(old, wanted - before, new, None, grid)


def _spacing(placed: Placed | None, leaf: Array) -> tuple[Any, Any] | None:
    """Precision and smallest exponent of what a rounding keeps on a grid; None for what no rounding is around."""
    if placed is None:
        return None
    own, numbers = FORMATS[leaf.dtype.name], numbers_of(placed)
    coarser = numbers[0] > 0
    return jnp.where(coarser, numbers[0], own.precision), jnp.where(coarser, numbers[1], own.emin)
