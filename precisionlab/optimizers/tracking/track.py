"""A record of what is lost, carried in the optimizer's state."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.checks import check_numbers
from precisionlab.numerics.formats import Format, name_of
from precisionlab.numerics.randomness import fold
from precisionlab.optimizers.meaning.meant import kept_alone
from precisionlab.optimizers.meaning.probing import narrowed_leaves, with_sums
from precisionlab.optimizers.meaning.remaking import remade
from precisionlab.optimizers.roundings import check_optimizer
from precisionlab.optimizers.sums import stored_sum
from precisionlab.optimizers.tracking.arriving import Arrival, arrived, start_arrival
from precisionlab.optimizers.tracking.records import (
    MisplacedWarning,
    Record,
    StateRecord,
    TrackState,
    is_tracked,
    stagnation,
)
from precisionlab.optimizers.tracking.sights import (
    Asked,
    Event,
    floating,
    in_blocks_of,
    look_at_nothing,
    look_at_state,
    look_at_weights,
    told_leaves,
    weights_and_updates,
)
from precisionlab.optimizers.tracking.storing import store_description
from precisionlab.optimizers.tracking.windows import counted, start_window
from precisionlab.stagnation.ages import start_ages, update_ages

__all__ = ["MisplacedWarning", "Record", "StateRecord", "TrackState", "stagnation", "track"]


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
        if any(isinstance(node, TrackState) for node in jax.tree.leaves(inner_state, is_leaf=is_tracked)):
            raise ValueError("track: this optimizer is tracked inside already; wrap the whole optimizer once, outermost.")
        weights, seen = look_at_nothing(asked, params, inner_state)
        remembered = None
        if seen is not None:
            told, rows = told_leaves(asked, inner_state), seen.tally.fates.shape[0]
            kept = with_sums(kept_alone(inner, inner_state, params), inner, inner_state, params, told)
            narrowed = narrowed_leaves(inner, inner_state, params, told)
            remembered = StateRecord(*seen, None, kept, _marks(told), start_window(rows), narrowed)
        floats = floating(params)
        moved = start_ages(_with_entries(floats)) if ages else None
        arrival = start_arrival(jax.tree.leaves(floats))
        record = Record(
            jnp.int32(0),
            weights.tally,
            weights.what_if,
            moved,
            weights.stochastic,
            weights.compensated,
            jnp.int32(0),
            None,
            remembered,
            arrival,
            store_description(jax.tree.leaves(floats)),
            start_window(weights.tally.fates.shape[0]),
            jnp.zeros(max(len(jax.tree.leaves(floats)), 1), jnp.int32),
        )
        return TrackState(inner_state, jnp.int32(0), record)

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("track: whether an update lands depends on the weights; call update(grads, state, params).")
        told = told_leaves(asked, state.inner)
        given, record, number = updates, _fitting(state.record, told), state.updates + 1

        def updated(gradients: PyTree[Array], before: Any, weights: PyTree[Array]) -> tuple[PyTree[Array], Any]:
            return inner.update(gradients, before, weights, **extra)

        updates, after = updated(given, state.inner, params)
        event = Event(params, given, updates, state.inner, after, extra)
        weights, steps = weights_and_updates(params, updates)

        def compared() -> Arrival:
            return arrived(record.arrival, jax.tree.leaves(weights))

        def looked(event: Event) -> Record:
            key, reads = fold(jax.random.key(0), number), record.reads + 1
            seen, gradients, leaving = look_at_weights(asked, event, compared(), fold(key, 0))
            mine, memory = record.state, look_at_state(asked, event, fold(key, 1))
            if mine is not None and memory is not None:
                window = counted(mine.window, memory.tally)
                mine = StateRecord(*memory, None, mine.kept, _marks(told), window, mine.narrowed)
            told_of = mine, leaving, record.storage, counted(record.window, seen.tally), gradients
            found = Record(number, seen.tally, seen.what_if, record.ages, *seen[2:], reads, None, *told_of)
            # In the containers of the first record: parameters may come boxed to `init` and bare to `update`.
            return jax.tree.unflatten(jax.tree.structure(record), jax.tree.leaves(found))

        if every == 1:
            latest = looked(event)
        else:

            def due() -> Record:
                if in_blocks_of(event, jax.tree.leaves(weights)):
                    return looked(event)
                return looked(event._replace(updates=remade(updated, (given, state.inner, params), after)))

            # Between two looks nothing is done at all, but in the step after one: there the weights are compared.
            branches = (lambda: record, lambda: record._replace(arrival=compared()), due)
            waiting = record.arrival.pending.astype(jnp.int32)
            latest = jax.lax.switch(jnp.where(number % every == 0, 2, waiting), branches)
        if record.ages is not None:
            weights, steps = _with_entries(weights), _with_entries(steps)
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


def _check_params(params: PyTree[Any]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, float):
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
            raise TypeError(
                f"track: the parameter at {where} is a Python number, {leaf}; make it an array: jnp.asarray({leaf})."
            )


def _with_entries(tree: PyTree[Array]) -> PyTree[Any]:
    """The tree without leaves of size zero, which nothing has moved, and not everybody saves."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _marks(told: Sequence[bool]) -> Array:
    return jnp.array(told if any(told) else [*told, False], bool)


def _fitting(record: Record, told: Sequence[bool]) -> Record:
    """The record, begun anew where it tells of other leaves of the state: optimizers may widen theirs in the first update."""
    seen, count = record.state, max(1, sum(told))
    if seen is None or (seen.tally.fates.shape[0] == count and (seen.told.shape[-1] == len(told)) == any(told)):
        return record
    tallies = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), tuple(seen[:4]))
    named = dict(zip(StateRecord._fields, tallies, strict=False))
    return record._replace(state=seen._replace(**named, told=_marks(told), window=start_window(count)))
