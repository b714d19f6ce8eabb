"""What `track` saw: a record inside the optimizer's state, packed, and unpacked for those who ask."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from precisionlab._typing import Array, Bool, Int, PyTree
from precisionlab.optimizers.meaning.meant import Kept, state_leaves
from precisionlab.optimizers.tracking.arriving import Arrival, misplacement
from precisionlab.optimizers.tracking.storing import Storage, check_whole, storage_of
from precisionlab.optimizers.tracking.windows import Window, opened
from precisionlab.stagnation.ages import Ages
from precisionlab.stagnation.fates import Tally
from precisionlab.stagnation.packing import PackedTallies, refilled, skeleton, unpack

__all__ = ["MisplacedWarning", "Record", "StateRecord", "TrackState", "is_tracked", "stagnation"]


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
            is not known, and for a single number that belongs to no parameter unless it is a sum.
        told: for each leaf of the state, in order, whether the tallies tell of it; one more, all False, if they tell of none.
        window: as in `Record`.
        narrowed: for each leaf of the state 1 if the optimizer rounds it to fewer bits than float32 has before it is stored,
            else 0; NaN where that was not asked, or is not known.
    """

    tally: PyTree[Tally]
    what_if: Mapping[str, PyTree[Tally]]
    stochastic: Mapping[str, PyTree[Tally]]
    compensated: Mapping[str, PyTree[Tally]]
    recent: PyTree[Array]
    kept: PyTree[Kept]
    told: Bool[Array, "..."]
    window: PyTree[Window] | Any = None
    narrowed: PyTree[Array] | Any = None


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
        recent: for each leaf of the parameters the share that was lost of all updates asked of it in the last reads, those of
            `window`; NaN if nothing was.
        state: the same for the optimizer's own state; None with `state=False`.
        arrival: whether the weights went where the tallies say.
        storage: the formats that weights and state are stored in, by path; None in a record taken under a transformation.
        window: for each leaf of the parameters the updates that the last reads lost and kept, and how many reads these are: all
            up to a hundred, then 51 to 100.
        gradients: for each leaf of the parameters how many entries of its gradient were not zero.
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
    window: PyTree[Window] | Any = None
    gradients: PyTree[Array] | Any = None


class TrackState(NamedTuple):
    """The state of `track`: the wrapped optimizer's own, the updates counted so far, and the latest record, packed."""

    inner: Any
    updates: Int[Array, ""]
    record: Record


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
        >>> import optax
        >>> from precisionlab.optimizers import track
        >>> state = optax.chain(optax.clip(1.0), track(optax.sgd(0.1))).init(jnp.ones(3))
        >>> int(stagnation(state).step)
        0
    """
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_tracked) if is_tracked(node)]
    if not found:
        raise ValueError("stagnation: this state holds no record; wrap the optimizer first: track(optimizer).")
    if len(found) > 1:
        raise ValueError(f"stagnation: this state holds {len(found)} records; wrap the whole optimizer once, outermost.")
    inner, _, record = _unboxed(found[0])
    if not isinstance(record.arrival.missed, Tracer) and not jnp.ndim(record.arrival.missed):
        sentence = misplacement(record.arrival)
        if sentence is not None:
            warnings.warn(f"stagnation: {sentence}", MisplacedWarning, stacklevel=2)

    latest = record._replace(**_unpacked(record))
    check_whole(latest.tally, record.storage)
    if record.state is not None:
        latest = latest._replace(state=_state_record(record.state, inner))
    if record.gradients is not None:
        latest = latest._replace(gradients=refilled(record.tally.tree, _numbers(record.gradients)))
    return latest._replace(storage=storage_of(latest.recent, record.storage, inner))


def is_tracked(node: Any) -> bool:
    """Whether this is the state of `track`."""
    return isinstance(node, TrackState)


def _unboxed(tree: PyTree[Any]) -> PyTree[Any]:
    """The tree with what Flax keeps in boxes of its own (variables, arrays with the names of their axes) bare."""
    modules = [("flax.nnx", "Variable"), ("flax.core.meta", "AxisMetadata")]
    boxes = tuple(getattr(sys.modules[module], name) for module, name in modules if module in sys.modules)

    def bare(node: Any) -> Any:
        if not isinstance(node, boxes):
            return node
        (held,) = jax.tree.leaves(node, is_leaf=lambda inside: inside is not node)
        return bare(held)

    return jax.tree.map(bare, tree, is_leaf=lambda node: isinstance(node, boxes))


def _state_record(seen: StateRecord, inner: Any) -> StateRecord:
    """The record of a state in the tree of that state."""
    structure = jax.tree.structure(inner)
    tree = _state_tree(inner, seen.told, seen.tally.fates.shape[-2])
    placed = jax.tree.map(lambda node: node._replace(tree=tree) if _is_packed(node) else node, seen, is_leaf=_is_packed)
    columns = [_numbers(column)[: structure.num_leaves] for column in seen.kept]
    kept = jax.tree.unflatten(structure, [Kept(*row) for row in zip(*columns, strict=True)])
    latest = seen._replace(**_unpacked(placed), kept=kept)
    if seen.narrowed is None:
        return latest
    return latest._replace(narrowed=jax.tree.unflatten(structure, _numbers(seen.narrowed)[: structure.num_leaves]))


def _numbers(column: Array) -> list[Array]:
    """One number for each leaf. A list is cut and not the array: of none there is nothing that a mesh could hold."""
    return list(jnp.moveaxis(column, -1, 0))


def _is_packed(node: Any) -> bool:
    return isinstance(node, PackedTallies)


def _state_tree(state: Any, told: Any, count: int) -> PyTree[Any]:
    """The tree of the leaves of a state that were counted."""
    structure = jax.tree.structure(state)
    if told.shape[-1] != structure.num_leaves:
        marks = [False] * structure.num_leaves
    elif isinstance(told, Tracer):  # By the dtypes that the state has now.
        places = state_leaves(state)
        every = sum(place is not None for place in places) == count
        marks = [place is not None and (every or place.narrow) for place in places]
    else:
        marks = np.atleast_2d(np.asarray(told))[0]  # of a stack of records, those of the first
    return skeleton(jax.tree.unflatten(structure, [0 if mark else None for mark in marks]))


def _unpacked(seen: Any) -> dict[str, Any]:
    window = opened(seen.window, seen.tally)
    recent = jax.tree.map(lambda held: held.share, window, is_leaf=lambda node: isinstance(node, Window))
    return {"tally": unpack(seen.tally), "recent": recent, "window": window} | {
        name: {fmt: unpack(held) for fmt, held in getattr(seen, name).items()}
        for name in ("what_if", "stochastic", "compensated")
    }
