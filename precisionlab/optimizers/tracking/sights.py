"""What there is to see in one update of an optimizer: the weights, and what the optimizer remembers."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from precisionlab._typing import Array, PRNGKeyArray, PyTree
from precisionlab.numerics.carriers import CARRIERS, as_float64, to_bits, widened
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import FORMATS, Format
from precisionlab.optimizers.meaning.meant import Leaf, meant_state, state_leaves
from precisionlab.optimizers.meaning.recipes import Recipes, recipes
from precisionlab.optimizers.roundings import Placed, numbers_of, reveal, rounding_states, rounds_weights
from precisionlab.optimizers.sums import is_floating, stored_sum
from precisionlab.optimizers.tracking.arriving import chosen_corners, corners
from precisionlab.optimizers.tracking.looking import Looked, look, look_in_blocks, nothing_seen
from precisionlab.optimizers.tracking.questions import Sight, Wanted
from precisionlab.optimizers.tracking.storing import grids_of_weights
from precisionlab.optimizers.tracking.windows import nonzero_entries
from precisionlab.stagnation.packing import PackedTallies

__all__ = [
    "Asked",
    "Event",
    "Weighed",
    "floating",
    "in_blocks_of",
    "look_at_nothing",
    "look_at_state",
    "look_at_weights",
    "told_leaves",
    "weights_and_updates",
]

_STATE = Wanted(detail=False, directions=True, gaps=True)
"""Without sums and histograms, which take most of the time, and there are several leaves for each weight."""


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


class Weighed(NamedTuple):
    """What a look at the weights finds.

    Attributes:
        looked: the fates of the updates.
        gradients: for each floating leaf how many entries of its gradient are not zero.
        corners: the first entries of each floating leaf: what is stored, what is added, and their sum.
    """

    looked: Looked
    gradients: Array
    corners: Array


def look_at_nothing(asked: Asked, params: PyTree[Array], state: Any, where: str) -> tuple[Looked, Looked | None]:
    """What looks at weights and state will return, all zeros.

    Raises:
        ValueError: if a format that is asked about has values that the carrier of a leaf does not hold.
    """
    weights = jax.tree.leaves(floating(params))
    kept = any(rounds_weights(node) and node.residual is not None for node in rounding_states(state))
    mine = _nothing(asked, floating(params), Wanted(asked.detail, kept=kept), {_carrier(leaf) for leaf in weights}, where)
    if asked.state is False:
        return mine, None
    places = zip(state_leaves(state), jax.tree.leaves(state), strict=True)
    leaves = [leaf if place is not None and _told(asked, place) else None for place, leaf in places]
    carriers = {"float64" if asked.state else _carrier(leaf) for leaf in leaves if leaf is not None}
    return mine, _untreed(_nothing(asked, jax.tree.unflatten(jax.tree.structure(state), leaves), _STATE, carriers, where))


def _nothing(asked: Asked, tree: Any, wanted: Wanted, carriers: set[str], where: str) -> Looked:
    for carrier, fmt in itertools.product(sorted(carriers), asked.formats.values()):
        require_fits(fmt, CARRIERS[carrier], where)
    widest = jnp.float64 if "float64" in carriers and wanted.detail else jnp.float32
    return nothing_seen(len(jax.tree.leaves(tree)), widest, tree, asked.formats, wanted)


def _carrier(leaf: Any) -> str:
    """The carrier in which a leaf is counted."""
    return "float64" if jax.dtypes.canonicalize_dtype(leaf.dtype) == np.float64 else "float32"


def look_at_weights(asked: Asked, event: Event, key: PRNGKeyArray) -> Weighed:
    """The fates of the updates, as they were before any rounding of ours inside the optimizer.

    Args:
        asked: what is asked.
        event: the update; where leaves are looked at in blocks what it gave is made again.
        key: of stochastic rounding.
    """
    weights = floating(event.params)
    leaves, structure = jax.tree.flatten(weights)
    kept = any(rounds_weights(node) and node.residual is not None for node in rounding_states(event.before))
    wanted = Wanted(asked.detail, kept=kept)
    gradients = _gradients(event)
    if not in_blocks_of(event, leaves):
        rows = _weight_rows(asked, event, None)
        looked = look(_weight_sight, rows, structure, asked.formats, key, wanted)
        steps = jax.tree.leaves(weights_and_updates(event.params, event.updates)[1])
        return Weighed(looked, nonzero_entries(gradients), corners(leaves, steps))

    def rows_of(given: Any, before: Any, params: Any) -> tuple[Any, Any]:
        updates, after = asked.optimizer.update(given, before, params, **event.extra)
        mine = Event(params, given, updates, before, after, event.extra)
        return _weight_rows(asked, mine, gradients), after

    arguments = event.given, event.before, event.params
    made = recipes(rows_of, arguments).of(arguments, event.after)
    looked, nonzero, first = look_in_blocks(_weight_sight, made, structure, asked.formats, key, wanted)
    return Weighed(looked, nonzero, chosen_corners(leaves, first))


def in_blocks_of(event: Event, leaves: Sequence[Any]) -> bool:
    """Whether leaves of this update are looked at in blocks: where a program is made, for one device.

    Places in a leaf are int32, so none may have 2^31 entries.
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((event.params, event.given, event.before)))
    return traced and jax.device_count() == 1 and 0 < max(map(jnp.size, leaves), default=0) < 2**31


def _weight_rows(asked: Asked, event: Event, gradients: Sequence[Any] | None) -> list[tuple[Any, ...]]:
    meant = event.updates
    if any(map(rounds_weights, rounding_states(event.before))):
        meant = asked.optimizer.update(event.given, reveal(event.before), event.params, **event.extra)[0]
    weights, steps = weights_and_updates(event.params, event.updates)
    leaves, made = jax.tree.leaves(weights), jax.tree.leaves(steps)
    rows = zip(
        leaves,
        made,
        [None] * len(made) if meant is event.updates else jax.tree.leaves(weights_and_updates(event.params, meant)[1]),
        _keeping(weights, event),
        list(map(_spacing, grids_of_weights(list(_by_path(weights)), event.before), leaves)),
        [None] * len(made) if gradients is None else gradients,
        strict=True,
    )
    return list(rows)


def _weight_sight(old: Array, made: Array, meant: Any, kept: Any, grid: Any, gradient: Any) -> Sight:
    return Sight(old, made if meant is None else meant, stored_sum(old, made), kept, grid, made, gradient)


def _gradients(event: Event) -> list[Any]:
    """The gradient of each floating leaf; zero where it is none of floats, or gradients are of another kind."""
    leaves, structure = jax.tree.flatten(event.params)
    mine = [leaf for leaf in leaves if is_floating(leaf)]
    if jax.tree.structure(event.given) != structure:
        return [jnp.zeros_like(leaf, jnp.float32) for leaf in mine]
    given = [grad for leaf, grad in zip(leaves, jax.tree.leaves(event.given), strict=True) if is_floating(leaf)]
    return [
        grad if is_floating(grad) and grad.shape == leaf.shape else jnp.zeros_like(leaf, jnp.float32)
        for leaf, grad in zip(mine, given, strict=True)
    ]


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
    old, structure = jax.tree.flatten(event.before)
    places = state_leaves(event.before)
    told = [place is not None and _told(asked, place) for place in places]
    if not any(told):
        return _untreed(look(_state_sight, [None] * len(old), structure, asked.formats, key, _STATE))

    def rows_of(given: Any, before: Any, params: Any, after: Any) -> tuple[Any, Any]:
        meant = meant_state(asked.optimizer, given, before, params, event.extra, double=bool(asked.state))
        rows = zip(places, told, jax.tree.leaves(before), meant, jax.tree.leaves(after), strict=True)
        return [(one, two, three, _spacing(place.grid, one)) for place, mark, one, two, three in rows if mark and place], ()

    arguments = event.given, event.before, event.params, event.after
    blocks = in_blocks_of(event, [leaf for leaf, mark in zip(old, told, strict=True) if mark])
    # Made with the types that the optimizer has: with 64-bit ones it would draw and count in those.
    made = recipes(rows_of, arguments) if blocks else iter(rows_of(*arguments)[0])
    with jax.enable_x64(True) if asked.state else nullcontext():
        found = iter(made.of(arguments, ()) if isinstance(made, Recipes) else made)
        rows: list[Any] = [next(found) if mark else None for mark in told]
        asking: Any = _state_sight, rows, structure, asked.formats, key, _STATE
        return _untreed(look_in_blocks(*asking)[0] if blocks else look(*asking))


def _untreed(looked: Looked) -> Looked:
    """Without its trees: the state itself tells its own, and a second one with its names would confuse those who search it."""
    return jax.tree.map(lambda packed: packed._replace(tree=None), looked, is_leaf=lambda node: isinstance(node, PackedTallies))


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
