"""A record begun, and one update read into it; who reads when is told in `track` and `observing`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.checks import check_numbers
from precisionlab.numerics.formats import Format, name_of
from precisionlab.numerics.randomness import fold
from precisionlab.optimizers.meaning.meant import kept_alone
from precisionlab.optimizers.meaning.probing import narrowed_leaves, with_sums
from precisionlab.optimizers.roundings import check_optimizer
from precisionlab.optimizers.tracking.arriving import arrived, departed, start_arrival
from precisionlab.optimizers.tracking.records import Record, StateRecord, TrackState, is_tracked
from precisionlab.optimizers.tracking.sights import (
    Asked,
    Event,
    floating,
    look_at_nothing,
    look_at_state,
    look_at_weights,
    told_leaves,
)
from precisionlab.optimizers.tracking.storing import store_description
from precisionlab.optimizers.tracking.windows import counted, start_window
from precisionlab.stagnation.ages import Ages

__all__ = ["asked_of", "begun", "check_params", "fitting", "read"]


def asked_of(
    optimizer: Any, formats: Sequence[Format] | Mapping[str, Format] | None, detail: bool, state: bool | None, where: str
) -> Asked:
    """What is asked, checked.

    Raises:
        TypeError: if the optimizer is none, or a format.
        ValueError: if the numbers of a format are wrong.
    """
    return Asked(check_optimizer(optimizer, where), _named_formats(formats, where), detail, state)


def check_params(params: PyTree[Any], where: str) -> None:
    """Refuse parameters that are Python numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, float):
            place = jax.tree_util.keystr(path, simple=True, separator="/") or "the top"
            raise TypeError(
                f"{where}: the parameter at {place} is a Python number, {leaf}; make it an array: jnp.asarray({leaf})."
            )


def begun(asked: Asked, params: PyTree[Array], state: Any, ages: Ages | None, where: str) -> Record:
    """The record before the first update.

    Raises:
        ValueError: if the state holds a record already; if the carrier of a leaf does not hold a format that is asked about.
    """
    if any(isinstance(node, TrackState) for node in jax.tree.leaves(state, is_leaf=is_tracked)):
        raise ValueError(f"{where}: this optimizer is tracked inside already; wrap the whole optimizer once, outermost.")
    weights, seen = look_at_nothing(asked, params, state, where)
    remembered = None
    if seen is not None:
        told, rows = told_leaves(asked, state), seen.tally.fates.shape[0]
        kept = with_sums(kept_alone(asked.optimizer, state, params), asked.optimizer, state, params, told)
        narrowed = narrowed_leaves(asked.optimizer, state, params, told)
        remembered = StateRecord(*seen, None, kept, _marks(told), start_window(rows), narrowed)
    leaves = jax.tree.leaves(floating(params))
    return Record(
        jnp.int32(0),
        weights.tally,
        weights.what_if,
        ages,
        weights.stochastic,
        weights.compensated,
        jnp.int32(0),
        None,
        remembered,
        start_arrival(leaves),
        store_description(leaves),
        start_window(weights.tally.fates.shape[0]),
        jnp.zeros(max(len(leaves), 1), jnp.int32),
    )


def read(asked: Asked, event: Event, record: Record, number: Any) -> Record:
    """The record after one more look.

    Args:
        asked: what is asked.
        event: the update.
        record: the record before, `fitting` the state.
        number: of the update.
    """
    key, reads = fold(jax.random.key(0), number), record.reads + 1
    seen, gradients, corners = look_at_weights(asked, event, fold(key, 0))
    mine, memory = record.state, look_at_state(asked, event, fold(key, 1))
    if mine is not None and memory is not None:
        window = counted(mine.window, memory.tally)
        mine = StateRecord(*memory, None, mine.kept, _marks(told_leaves(asked, event.before)), window, mine.narrowed)
    leaving = departed(arrived(record.arrival, jax.tree.leaves(floating(event.params)), corners[0]), corners)
    told_of = mine, leaving, record.storage, counted(record.window, seen.tally), gradients
    found = Record(number, seen.tally, seen.what_if, record.ages, *seen[2:], reads, None, *told_of)
    # In the containers of the first record: parameters may come boxed to `init` and bare to `update`.
    return jax.tree.unflatten(jax.tree.structure(record), jax.tree.leaves(found))


def _named_formats(formats: Sequence[Format] | Mapping[str, Format] | None, where: str) -> dict[str, Format]:
    if formats is None:
        return {}
    if isinstance(formats, Format):
        formats = [formats]
    given = list(formats.values()) if isinstance(formats, Mapping) else list(formats)
    for fmt in given:
        if not isinstance(fmt, Format):
            raise TypeError(f"{where}: formats must hold Format values such as precisionlab.BFLOAT16; got {fmt!r}.")
        check_numbers(fmt)
    return dict(formats) if isinstance(formats, Mapping) else {name_of(fmt): fmt for fmt in given}


def _marks(told: Sequence[bool]) -> Array:
    return jnp.array(told if any(told) else [*told, False], bool)


def fitting(asked: Asked, record: Record, state: Any) -> Record:
    """The record, begun anew where it tells of other leaves of the state: optimizers may widen theirs in the first update."""
    told, seen = told_leaves(asked, state), record.state
    count = max(1, sum(told))
    if seen is None or (seen.tally.fates.shape[0] == count and (seen.told.shape[-1] == len(told)) == any(told)):
        return record
    tallies = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), tuple(seen[:4]))
    named = dict(zip(StateRecord._fields, tallies, strict=False))
    return record._replace(state=seen._replace(**named, told=_marks(told), window=start_window(count)))
