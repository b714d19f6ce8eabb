"""A record of what is lost, carried in the optimizer's state."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.formats import Format
from precisionlab.optimizers.meaning.remaking import remade
from precisionlab.optimizers.sums import stored_sum
from precisionlab.optimizers.tracking.arriving import arrived, corners_now
from precisionlab.optimizers.tracking.reading import asked_of, begun, check_params, fitting, read
from precisionlab.optimizers.tracking.records import (
    MisplacedWarning,
    Record,
    StateRecord,
    TrackState,
    stagnation,
)
from precisionlab.optimizers.tracking.sights import Event, floating, in_blocks_of, weights_and_updates
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
        every: look at one update in `every`; the others cost a copy of the weights, and gradients live until the look would be
            made. `observer` looks from outside of the step, which then stays as it is.
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
    asked = asked_of(optimizer, formats, detail, state, "track")
    inner = asked.optimizer

    def init(params: PyTree[Array]) -> Any:
        check_params(params, "track")
        inner_state = inner.init(params)
        moved = start_ages(_with_entries(floating(params))) if ages else None
        return TrackState(inner_state, jnp.int32(0), begun(asked, params, inner_state, moved, "track"))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("track: whether an update lands depends on the weights; call update(grads, state, params).")
        given, record, number = updates, fitting(asked, state.record, state.inner), state.updates + 1

        def updated(gradients: PyTree[Array], before: Any, weights: PyTree[Array]) -> tuple[PyTree[Array], Any]:
            return inner.update(gradients, before, weights, **extra)

        updates, after = updated(given, state.inner, params)
        event = Event(params, given, updates, state.inner, after, extra)
        weights, steps = weights_and_updates(params, updates)
        leaves = jax.tree.leaves(weights)
        if every == 1:
            latest = read(asked, event, record, number)
        else:

            def compared() -> Record:
                return record._replace(arrival=arrived(record.arrival, leaves, corners_now(leaves)))

            def due() -> Record:
                if in_blocks_of(event, leaves):
                    return read(asked, event, record, number)
                return read(asked, event._replace(updates=remade(updated, (given, state.inner, params), after)), record, number)

            # Between two looks nothing is done at all, but in the step after one: there the weights are compared.
            waiting = record.arrival.pending.astype(jnp.int32)
            latest = jax.lax.switch(jnp.where(number % every == 0, 2, waiting), (lambda: record, compared, due))
        if record.ages is not None:
            weights, steps = _with_entries(weights), _with_entries(steps)
            latest = latest._replace(ages=update_ages(record.ages, weights, jax.tree.map(stored_sum, weights, steps)))
        return updates, TrackState(after, number, latest)

    return optax.GradientTransformationExtraArgs(init, update)


def _with_entries(tree: PyTree[Array]) -> PyTree[Any]:
    """The tree without leaves of size zero, which nothing has moved, and not everybody saves."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)
