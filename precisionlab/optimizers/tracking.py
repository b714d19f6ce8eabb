"""A record of what is lost, carried in the optimizer's state."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.ages import Ages, start_ages, update_ages
from precisionlab.carriers import uncontracted
from precisionlab.checks import check_numbers
from precisionlab.formats import Format, name_of
from precisionlab.optimizers.grid import RoundParamsState
from precisionlab.optimizers.sums import is_floating, stored_sum
from precisionlab.packing import PackedTallies, pack, unpack
from precisionlab.rounding import round_to
from precisionlab.stagnation import Tally, tally, widened

__all__ = ["Record", "TrackState", "stagnation", "track"]


class Record(NamedTuple):
    """What `track` saw when it last looked.

    Attributes:
        step: the number of that update, from 1; 0 if it has not looked yet.
        tally: a `Tally` for each leaf of the parameters, in the parameters' own tree.
        what_if: for each format asked about, by name, the tallies there would have been had the weights been stored in it.
        ages: when each entry last moved, if asked for, else None.
    """

    step: Int[Array, ""]
    tally: PyTree[Tally]
    what_if: Mapping[str, PyTree[Tally]]
    ages: Ages | None


class TrackState(NamedTuple):
    """The state of `track`: the wrapped optimizer's own, the updates counted so far, and the latest record, packed."""

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    record: Record


def track(
    optimizer: optax.GradientTransformation,
    formats: Sequence[Format] | Mapping[str, Format] | None = None,
    every: int = 1,
    *,
    detail: bool = True,
    ages: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state carries a record of the updates that the stored weights lose.

    The updates pass through unchanged. Wrap the outermost transformation, learning rate included: inside a chain, before
    the learning rate, there is no update yet to judge. What leaves a chain that ends in `round_params` is rounded already:
    there, wrap the rounding alone, `chain(adam, track(round_params(...)))`, and the record compares what went in with what
    was stored.

    Args:
        optimizer: any Optax gradient transformation.
        formats: formats to ask about: how much would be lost if the weights were stored in each, rounded to nearest even,
            while training goes on as it is. A sequence is recorded under the formats' names, a mapping under its keys.
        every: look at one update in `every`. The others cost a tenth of a step or so on CPUs, because the update has to be
            stored for the choice.
        detail: False counts fates alone, without masses, descent quality and histogram, at a fraction of the cost.
        ages: also remember when each entry last moved, in every update. Costs 4 bytes a parameter; without it the state
            grows only with the number of leaves.

    Returns:
        A gradient transformation with the same updates. Its `update` needs `params`.

    Raises:
        ValueError: if `every` is not a positive whole number; at `init`, if `round_params` is hidden inside; at update time,
            without `params`.

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
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(f"track: expected an Optax gradient transformation, such as optax.adam(1e-3); got {optimizer!r}.")
    asked = _named_formats(formats)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree[Array]) -> Any:
        inner_state = inner.init(params)
        hidden = jax.tree.leaves(inner_state, is_leaf=_rounds)
        if not _rounds(inner_state) and any(map(_rounds, hidden)):
            raise ValueError(
                "track: this chain ends in round_params, and what leaves it is rounded already; track the rounding itself: "
                "chain(..., track(round_params(...)))."
            )
        nothing = jax.eval_shape(lambda tree: _look(tree, tree, tree, None, asked, detail), _floating(params))
        tallies, what_if = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
        record = Record(jnp.int32(0), tallies, what_if, start_ages(_floating(params)) if ages else None)
        return TrackState(inner_state, jnp.int32(0), record)

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("track: whether an update lands depends on the weights; call update(grads, state, params).")
        given = updates
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        weights, steps = _floating_pair(params, updates)
        # The update that was meant: for a rounding, what went into it.
        rounding = state.inner if _rounds(state.inner) else None
        intended = steps if rounding is None else _floating_pair(params, given)[1]
        grid = None if rounding is None else (rounding.precision, rounding.emin)

        def looked() -> tuple[Any, Any]:
            return _look(weights, intended, jax.tree.map(stored_sum, weights, steps), grid, asked, detail)

        if every == 1:
            step, (tallies, what_if) = count, looked()
        else:
            read = count % every == 0
            step = jnp.where(read, count, state.record.step)
            tallies, what_if = jax.lax.cond(read, looked, lambda: (state.record.tally, state.record.what_if))
        moved = state.record.ages
        if moved is not None:
            moved = update_ages(moved, weights, jax.tree.map(stored_sum, weights, steps))
        return updates, TrackState(inner_state, count, Record(step, tallies, what_if, moved))

    return optax.GradientTransformationExtraArgs(init, update)


def _rounds(state: Any) -> bool:
    return isinstance(state, RoundParamsState)


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


def _floating(params: PyTree[Any]) -> PyTree[Any]:
    """The tree with what cannot stagnate (integers, None, masked leaves) replaced by None, which has no leaves."""
    return jax.tree.map(lambda leaf: leaf if is_floating(leaf) else None, params)


def _floating_pair(params: PyTree[Any], updates: PyTree[Any]) -> tuple[PyTree[Any], PyTree[Any]]:
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
    return _floating(params), steps


def _look(
    weights: PyTree[Array],
    updates: PyTree[Array],
    new: PyTree[Array],
    grid: tuple[Any, Any] | None,
    asked: Mapping[str, Format],
    detail: bool,
) -> tuple[Any, Any]:
    tallies = pack(tally(weights, updates, new, grid=grid, detail=detail))

    def stored_as(fmt: Format) -> PackedTallies:
        wide = jax.tree.map(widened, weights)
        before = jax.tree.map(lambda leaf: round_to(leaf, fmt), wide)
        after = jax.tree.map(lambda w, u: round_to(w + uncontracted(widened(u).astype(w.dtype)), fmt), before, updates)
        return pack(tally(before, updates, after, grid=(fmt.precision, fmt.emin), detail=detail))

    return tallies, {name: stored_as(fmt) for name, fmt in asked.items()}


def stagnation(opt_state: Any) -> Record:
    """The record of `track`, found anywhere inside an optimizer state.

    Args:
        opt_state: the state of an optimizer that holds `track`: chained, masked, in MultiSteps, inject_hyperparams, ...

    Returns:
        The `Record`; its `.tally` is a `Tally` for each floating leaf of the parameters.

    Raises:
        ValueError: if there is no such record, or more than one.

    Example:
        >>> state = optax.chain(optax.clip(1.0), track(optax.sgd(0.1))).init(jnp.ones(3))
        >>> int(stagnation(state).step)
        0
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, TrackState))
        if isinstance(leaf, TrackState)
    ]
    if not found:
        raise ValueError("stagnation: this state holds no record; wrap the optimizer first: track(optimizer).")
    if len(found) > 1:
        raise ValueError(f"stagnation: this state holds {len(found)} records; wrap the whole optimizer once, outermost.")
    record = found[0].record
    return record._replace(tally=unpack(record.tally), what_if={name: unpack(seen) for name, seen in record.what_if.items()})
