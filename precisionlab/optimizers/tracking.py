"""A record of what is lost, carried in the optimizer's state."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from precisionlab._typing import Array, Bool, Int, PyTree
from precisionlab.ages import Ages, start_ages, update_ages
from precisionlab.checks import check_numbers
from precisionlab.fates import Tally
from precisionlab.formats import Format, name_of
from precisionlab.optimizers.arriving import Arrival, arrived, departed, misplacement, start_arrival
from precisionlab.optimizers.meaning import Kept, kept_alone, state_leaves
from precisionlab.optimizers.remaking import remade
from precisionlab.optimizers.roundings import check_optimizer
from precisionlab.optimizers.sights import (
    Asked,
    Event,
    floating,
    look_at_nothing,
    look_at_state,
    look_at_weights,
    told_leaves,
    weights_and_updates,
)
from precisionlab.optimizers.storing import Storage, check_whole, storage_of, store_description
from precisionlab.optimizers.sums import stored_sum
from precisionlab.packing import PackedTallies, lost_fractions, refilled, skeleton, unpack
from precisionlab.randomness import fold

__all__ = ["MisplacedWarning", "Record", "StateRecord", "TrackState", "stagnation", "track"]

_RECENT = 100


class MisplacedWarning(UserWarning):
    """The weights do not go where a record says."""


class StateRecord(NamedTuple):
    """What `track` saw of the optimizer's own state; each tree is that of the state, None where there is nothing to see.

    Attributes:
        tally: a `Tally` for each leaf that is stored narrower than float32 (for each floating one if asked for), against the
            same update made in wider arithmetic; counts alone, with rising and falling entries told apart.
        what_if, stochastic, compensated: as in `Record`, for the same leaves.
        recent: as in `Record`, for each leaf of `tally`.
        kept: for each leaf the factor by which an update without gradient multiplies it, as meant and as stored; NaN where it
            is not known.
        told: for each leaf of the state, in order, whether the tallies tell of it.
    """

    tally: PyTree[Tally]
    what_if: Mapping[str, PyTree[Tally]]
    stochastic: Mapping[str, PyTree[Tally]]
    compensated: Mapping[str, PyTree[Tally]]
    recent: PyTree[Array]
    kept: PyTree[Kept]
    told: Bool[Array, "..."]


class Record(NamedTuple):
    """What `track` saw when it last looked.

    Attributes:
        step: the number of that update, from 1; 0 if it has not looked yet.
        tally: a `Tally` for each leaf of the parameters, in the parameters' own tree.
        what_if: for each format asked about, by name, the tallies there would have been had the weights been stored in it,
            rounded to nearest even; counts alone, as in the next two.
        ages: when each entry last moved, if asked for, else None.
        stochastic: what if they had been stored with stochastic rounding.
        compensated: what if they had been stored to nearest, with a compensation in the same format: `Tally.invisible` counts
            the updates that it would keep.
        reads: how many updates were looked at.
        recent: for each leaf of the parameters the `lost_fraction`, averaged over the last hundred reads in which anything
            was asked of it (a running mean; NaN if nothing ever was).
        state: the same for the optimizer's own state; None with `state=False`.
        arrival: whether the weights went where the tallies say.
        storage: the formats that weights and state are stored in, by path; None in a record taken under a transformation.
    """

    step: Int[Array, ""]
    tally: PyTree[Tally]
    what_if: Mapping[str, PyTree[Tally]]
    ages: Ages | None
    stochastic: Mapping[str, PyTree[Tally]]
    compensated: Mapping[str, PyTree[Tally]]
    reads: Int[Array, ""]
    recent: PyTree[Array]
    state: StateRecord | None
    arrival: Arrival
    storage: Storage | Any


class TrackState(NamedTuple):
    """The state of `track`: the wrapped optimizer's own, the updates counted so far, and the latest record, packed."""

    inner: Any
    updates: Int[Array, ""]
    record: Record


def track(
    optimizer: optax.GradientTransformation,
    formats: Sequence[Format] | Mapping[str, Format] | None = None,
    every: int = 1,
    *,
    detail: bool = True,
    ages: bool = False,
    state: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state carries a record of the updates that the stored weights lose.

    The updates pass through unchanged. Wrap the outermost transformation, learning rate included: inside a chain, before
    the learning rate, there is no update yet to judge, and `stagnation` warns. Roundings inside (`round_params`, `kahan`,
    `master_weights`) are judged by what went into them, and what a compensation or a master keeps counts as invisible.

    Args:
        optimizer: any Optax gradient transformation.
        formats: formats to ask about: how much would be lost if the weights (and with `state=True` the optimizer's moments)
            were stored in each, rounded to nearest even, stochastically, or with a compensation, while training goes on as it
            is. A sequence is recorded under the formats' names, a mapping under its keys.
        every: look at one update in `every`; in large models the others cost little: on CPUs a copy of the weights.
        detail: False counts fates alone, without masses, descent quality and histogram, at a fraction of the cost.
        ages: also remember when each entry last moved, in every update. Costs 4 bytes a parameter; without it the state
            grows only with the number of leaves.
        state: whether to look at the optimizer's own state, for what it loses and for `formats`: None at what is stored
            narrower than float32, against the same update made in float32; True at all floating leaves, against the same
            update made in float64, so that float32's own losses show; False not at all. Costs a second update, and where the
            state is donated a copy of it.

    Returns:
        A gradient transformation with the same updates. Its `update` needs `params`.

    Raises:
        ValueError: if `every` is not a positive whole number; at update time, without `params`.

    Example:
        >>> optimizer = track(optax.sgd(1e-3))
        >>> params = {"scale": jnp.ones(4, jnp.bfloat16)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"scale": jnp.ones(4, jnp.bfloat16)}, state, params)
        >>> float(stagnation(state).tally["scale"].stagnated_fraction)
        1.0
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"track: every must be a whole number of at least 1 (look at one update in `every`); got {every!r}.")
    inner = check_optimizer(optimizer, "track")
    asked = Asked(inner, _named_formats(formats), detail, state)

    def init(params: PyTree[Array]) -> Any:
        _check_params(params)
        inner_state = inner.init(params)
        if any(isinstance(node, TrackState) for node in jax.tree.leaves(inner_state, is_leaf=_is_tracked)):
            raise ValueError("track: this optimizer is tracked inside already; wrap the whole optimizer once, outermost.")
        weights, seen = look_at_nothing(asked, params, inner_state)
        remembered = None
        if seen is not None:
            kept, told = kept_alone(inner, inner_state, params), told_leaves(asked, inner_state)
            remembered = StateRecord(*seen, lost_fractions(seen.tally), kept, jnp.array(told, bool))
        floats = floating(params)
        moved = start_ages(floats) if ages else None
        arrival = start_arrival(jax.tree.leaves(floats))
        record = Record(
            jnp.int32(0),
            weights.tally,
            weights.what_if,
            moved,
            weights.stochastic,
            weights.compensated,
            jnp.int32(0),
            lost_fractions(weights.tally),
            remembered,
            arrival,
            store_description(jax.tree.leaves(floats)),
        )
        return TrackState(inner_state, jnp.int32(0), record)

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("track: whether an update lands depends on the weights; call update(grads, state, params).")
        given, record, number = updates, state.record, state.updates + 1

        def updated(gradients: PyTree[Array], before: Any, weights: PyTree[Array]) -> tuple[PyTree[Array], Any]:
            return inner.update(gradients, before, weights, **extra)

        updates, after = updated(given, state.inner, params)
        event = Event(params, given, updates, state.inner, after, extra)
        weights, steps = weights_and_updates(params, updates)

        def compared() -> Arrival:
            return arrived(record.arrival, jax.tree.leaves(weights))

        def looked(event: Event) -> Record:
            weights, steps = weights_and_updates(params, event.updates)
            key, reads = fold(jax.random.key(0), number), record.reads + 1
            seen = look_at_weights(asked, event, fold(key, 0))
            mine, memory = record.state, look_at_state(asked, event, fold(key, 1))
            if mine is not None and memory is not None:
                mine = StateRecord(
                    *memory,
                    _averaged(mine.recent, memory.tally, reads),
                    mine.kept,
                    jnp.array(told_leaves(asked, state.inner), bool),
                )
            sums = jax.tree.map(stored_sum, weights, steps)
            leaving = departed(compared(), *map(jax.tree.leaves, (weights, steps, sums)))
            recent = _averaged(record.recent, seen.tally, reads)
            found = Record(
                number, seen.tally, seen.what_if, record.ages, *seen[2:], reads, recent, mine, leaving, record.storage
            )
            # In the containers of the first record: parameters may come boxed to `init` and bare to `update`.
            return jax.tree.unflatten(jax.tree.structure(record), jax.tree.leaves(found))

        if every == 1:
            latest = looked(event)
        else:

            def due() -> Record:
                return looked(event._replace(updates=remade(updated, (given, state.inner, params), after)))

            # Between two looks nothing is done at all, but in the step after one: there the weights are compared.
            branches = (lambda: record, lambda: record._replace(arrival=compared()), due)
            waiting = record.arrival.pending.astype(jnp.int32)
            latest = jax.lax.switch(jnp.where(number % every == 0, 2, waiting), branches)
        if record.ages is not None:
            latest = latest._replace(ages=update_ages(record.ages, weights, jax.tree.map(stored_sum, weights, steps)))
        return updates, TrackState(after, number, latest)

    return optax.GradientTransformationExtraArgs(init, update)


def _named_formats(formats: Sequence[Format] | Mapping[str, Format] | None) -> dict[str, Format]:
    if formats is None:
        return {}
    if isinstance(formats, Format):
        formats = [formats]
    given = list(formats.values()) if isinstance(formats, Mapping) else list(formats)
    for fmt in given:
        if not isinstance(fmt, Format):
            raise TypeError(f"track: formats must hold Format values such as precisionlab.BFLOAT16; got {fmt!r}.")
        check_numbers(fmt)
    return dict(formats) if isinstance(formats, Mapping) else {name_of(fmt): fmt for fmt in given}


def _is_tracked(node: Any) -> bool:
    return isinstance(node, TrackState)


def _check_params(params: PyTree[Any]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, float):
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
            raise TypeError(
                f"track: the parameter at {where} is a Python number, {leaf}; make it an array: jnp.asarray({leaf})."
            )


def _averaged(mean: Array, seen: PackedTallies, reads: Array) -> Array:
    """The running means of the fractions lost, over about the last `_RECENT` reads."""
    found, number = lost_fractions(seen), jnp.minimum(reads, _RECENT).astype(jnp.float32)
    if found.shape != mean.shape:  # Optimizers may widen their state in the first update.
        return found
    known = jnp.where(jnp.isnan(mean), found, mean + (found - mean) / number)
    return jnp.where(jnp.isnan(found), mean, known)


def stagnation(opt_state: Any) -> Record:
    """The record of `track`, found anywhere inside an optimizer state.

    Args:
        opt_state: the state of an optimizer that holds `track`: chained, masked, in MultiSteps, inject_hyperparams, ...

    Returns:
        The `Record`; its `.tally` is a `Tally` for each floating leaf of the parameters.

    Raises:
        ValueError: if there is no such record, or more than one.

    Warns:
        MisplacedWarning: if in most updates the weights did not go where the record says, as when `track` stands inside a
            chain before the learning rate.

    Example:
        >>> state = optax.chain(optax.clip(1.0), track(optax.sgd(0.1))).init(jnp.ones(3))
        >>> int(stagnation(state).step)
        0
    """
    found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_tracked) if _is_tracked(leaf)]
    if not found:
        raise ValueError("stagnation: this state holds no record; wrap the optimizer first: track(optimizer).")
    if len(found) > 1:
        raise ValueError(f"stagnation: this state holds {len(found)} records; wrap the whole optimizer once, outermost.")
    record = found[0].record
    if not isinstance(record.arrival.missed, Tracer) and not jnp.ndim(record.arrival.missed):
        sentence = misplacement(record.arrival)
        if sentence is not None:
            warnings.warn(f"stagnation: {sentence}", MisplacedWarning, stacklevel=2)

    state, inner = record.state, found[0].inner
    latest = record._replace(**_unpacked(record))
    check_whole(latest.tally, record.storage)
    if state is not None:
        tree = _state_tree(inner, state.told, state.tally.fates.shape[-2])
        placed = jax.tree.map(
            lambda node: node._replace(tree=tree) if _is_packed(node) else node,
            state,
            is_leaf=_is_packed,
        )
        rows = [Kept(*row) for row in zip(state.kept.meant, state.kept.stored, strict=True)]
        kept = jax.tree.unflatten(jax.tree.structure(inner), rows)
        latest = latest._replace(state=state._replace(**_unpacked(placed), kept=kept))
    return latest._replace(storage=storage_of(latest.recent, record.storage, inner))


def _is_packed(node: Any) -> bool:
    return isinstance(node, PackedTallies)


def _state_tree(state: Any, told: Any, count: int) -> PyTree[Any]:
    """The tree of the leaves of a state that were counted."""
    if isinstance(told, Tracer):  # By the dtypes that the state has now, which only a first update may have changed.
        places = state_leaves(state)
        every = sum(place is not None for place in places) == count
        marks = [place is not None and (every or place.narrow) for place in places]
    else:
        marks = np.atleast_2d(np.asarray(told))[0]  # of a stack of records, those of the first
    return skeleton(jax.tree.unflatten(jax.tree.structure(state), [0 if mark else None for mark in marks]))


def _unpacked(seen: Any) -> dict[str, Any]:
    tallies = {"tally": unpack(seen.tally), "recent": refilled(seen.tally.tree, list(seen.recent))}
    return tallies | {
        name: {fmt: unpack(held) for fmt, held in getattr(seen, name).items()}
        for name in ("what_if", "stochastic", "compensated")
    }
