"""The bridge to Optax: watch what is lost in anybody's training loop, and land exactly on a format's grid.

`track` goes around a whole optimizer, so that it sees the update that `apply_updates` will add:

    optimizer = track(optax.adam(1e-3))          # the one line; everything else stays as it is
    ...
    record = stagnation(opt_state)               # wherever the state ended up inside other wrappers
    total(record.tally).stagnated_fraction
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.carriers import CARRIERS, to_bits, uncontracted
from precisionlab.checks import check_numbers
from precisionlab.formats import FORMATS, Format, name_of
from precisionlab.modes import Mode, Stochastic, check_mode, nearest_even
from precisionlab.rounding import round_to
from precisionlab.stagnation import Ages, Tally, start_ages, tally, update_ages, widened

__all__ = ["Record", "RoundParamsState", "TrackState", "apply_updates", "round_params", "stagnation", "stored_sum", "track"]


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
    """The state of `track`: the wrapped optimizer's own, the updates counted so far, and the latest record."""

    inner: Any
    count: Int[Array, ""]
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
    the learning rate, there is no update yet to judge.

    Args:
        optimizer: any Optax gradient transformation.
        formats: formats to ask about: how much would be lost if the weights were stored in each, rounded to nearest even,
            while training goes on as it is. A sequence is recorded under the formats' names, a mapping under its keys.
        every: look at one update in `every`; the others cost next to nothing.
        detail: False counts fates alone, without masses, descent quality and histogram, at a quarter of the cost.
        ages: also remember when each entry last moved, in every update. Costs 4 bytes a parameter; without it the state
            grows only with the number of leaves.

    Returns:
        A gradient transformation with the same updates. Its `update` needs `params`.

    Raises:
        ValueError: if `every` is not a positive whole number, or at update time without `params`.

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

    def init(params: PyTree[Array]) -> TrackState:
        nothing = jax.eval_shape(lambda tree: _look(tree, tree, asked, detail), _floating(params))
        tallies, what_if = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
        record = Record(jnp.int32(0), tallies, what_if, start_ages(_floating(params)) if ages else None)
        return TrackState(inner.init(params), jnp.int32(0), record)

    def update(
        updates: PyTree[Array], state: TrackState, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], TrackState]:
        if params is None:
            raise ValueError("track: whether an update lands depends on the weights; call update(grads, state, params).")
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        weights, steps = _floating_pair(params, updates)

        def looked() -> tuple[Any, Any]:
            return _look(weights, steps, asked, detail)

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


def _named_formats(formats: Sequence[Format] | Mapping[str, Format] | None) -> dict[str, Format]:
    if formats is None:
        return {}
    if isinstance(formats, Format):
        formats = [formats]
    named = dict(formats) if isinstance(formats, Mapping) else None
    for fmt in formats if named is None else named.values():
        if not isinstance(fmt, Format):
            raise TypeError(f"track: formats must hold Format values such as precisionlab.BFLOAT16; got {fmt!r}.")
        check_numbers(fmt)
    return {name_of(fmt): fmt for fmt in formats} if named is None else named


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _floating(params: PyTree[Any]) -> PyTree[Any]:
    """The tree with what cannot stagnate (integers, None, masked leaves) replaced by None, which has no leaves."""
    return jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, params)


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
    steps = jax.tree.map(lambda leaf, step: step if _is_floating(leaf) else None, params, updates)
    return _floating(params), steps


def _look(weights: PyTree[Array], updates: PyTree[Array], asked: Mapping[str, Format], detail: bool) -> tuple[Any, Any]:
    tallies = tally(weights, updates, jax.tree.map(stored_sum, weights, updates), detail=detail)

    def stored_as(fmt: Format) -> PyTree[Tally]:
        wide = jax.tree.map(widened, weights)
        before = jax.tree.map(lambda leaf: round_to(leaf, fmt), wide)
        after = jax.tree.map(lambda leaf, step: round_to(leaf + step.astype(leaf.dtype), fmt), before, updates)
        return tally(before, updates, after, grid=(fmt.precision, fmt.emin), detail=detail)

    return tallies, {name: stored_as(fmt) for name, fmt in asked.items()}


def stored_sum(leaf: Array, update: Array) -> Array:
    """What `optax.apply_updates` stores for `leaf + update`, as a value of the carrier, with the rounding made explicit.

    Optax adds in the promoted type and casts once. Left to the compiler, under jit that cast may be elided from a copy made
    for looking at; rounding by integers is not. Where Optax refuses (8 bits and fewer beside anything wider) it is the sum that
    `apply_updates` makes.
    """
    # Values as stored: a compiler may see through the cast that made a narrow update.
    wide, step = widened(leaf), widened(update)
    if wide.dtype != step.dtype:
        wide, step = wide.astype(jnp.float64), step.astype(jnp.float64)
    if leaf.dtype.name in CARRIERS:
        return (wide + step).astype(leaf.dtype)
    result = wide + step if _promotes(leaf.dtype, update.dtype) else _sum_to_odd(wide, step)
    return round_to(result, FORMATS[leaf.dtype.name])


def _promotes(a: Any, b: Any) -> bool:
    with jax.numpy_dtype_promotion("standard"):
        try:
            jnp.promote_types(a, b)
        except jax.dtypes.TypePromotionError:
            return False
    return False if a != b and (a.itemsize == 1 or b.itemsize == 1) else True


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
    return found[0].record


def apply_updates(params: PyTree[Array], updates: PyTree[Array]) -> PyTree[Array]:
    """Add updates to parameters with one correct rounding, for every floating dtype, fp8 and fp4 included.

    Each entry becomes the value of its dtype nearest to the exact sum, ties to even, whatever the dtype of the update.
    `optax.apply_updates` adds in the promoted type and casts, which rounds twice, and raises for fp8 beside anything else.

    Args:
        params: arrays of any dtype; None leaves pass through, and integer leaves are added to as Optax does.
        updates: the same tree.

    Returns:
        The new parameters, each leaf in its own dtype. Sums below 2^-100 in magnitude may be rounded twice (float32
        arithmetic flushes the correction there).

    Raises:
        ValueError: if the trees or shapes differ.

    Example:
        >>> w = jnp.array([1.0, 448.0], jnp.float8_e4m3fn)
        >>> apply_updates(w, jnp.array([0.07, -17.0], jnp.float32)).tolist()
        [1.125, 416.0]
    """
    # None is a leaf here, so that frozen parameters keep their place.
    none = {"is_leaf": lambda node: node is None}
    one, other = jax.tree.structure(params, **none), jax.tree.structure(updates, **none)
    if one != other:
        raise ValueError(f"apply_updates: the updates are not the same tree as the parameters: {other} against {one}.")

    def leaf(path: Any, w: Any, u: Any) -> Any:
        if w is None or u is None:
            return w
        w, u = jnp.asarray(w), jnp.asarray(u)
        if w.shape != u.shape:
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            raise ValueError(f"apply_updates: at {where}, the update has shape {u.shape} and the parameter {w.shape}.")
        if not _is_floating(w) or w.dtype.name not in FORMATS or w.dtype.name in CARRIERS:
            with jax.numpy_dtype_promotion("standard"):
                return jnp.asarray(w + (widened(u) if _is_floating(u) else u)).astype(w.dtype)
        wide, step = widened(w), widened(u)
        if wide.dtype != step.dtype:
            wide = wide.astype(jnp.float64)
        return round_to(_sum_to_odd(wide, uncontracted(step)), FORMATS[w.dtype.name]).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params, updates, **none)


def _sum_to_odd(a: Array, b: Array) -> Array:
    """A + b rounded to odd in the carrier: a later rounding to fewer bits is then a rounding of the exact sum.

    The error of the rounded sum is itself a float (O. Moller, D. Knuth: TwoSum); where it is not zero the last bit of the
    result is made odd, towards the error (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    carrier = CARRIERS[a.dtype.name]
    total = a + b
    virtual = total - a
    error = (a - (total - virtual)) + (b - virtual)
    bits, error_bits = to_bits(total, carrier), to_bits(error, carrier)
    one, sign = carrier.word(1), carrier.word(carrier.sign)
    magnitude = bits & ~sign
    inexact = ((error_bits & ~sign) != 0) & (magnitude < carrier.word(carrier.infinity)) & (magnitude != 0)
    outward = ((bits ^ error_bits) & sign) == 0
    moved = jnp.where(outward, bits + one, bits - one)
    fixed = jnp.where(inexact & ((bits & one) == 0), moved, bits)
    return jax.lax.bitcast_convert_type(fixed, carrier.dtype)


class RoundParamsState(NamedTuple):
    """The state of `round_params`: how many updates have been made, from which the random bits of each derive."""

    count: Int[Array, ""]


def round_params(fmt: Format, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Change updates so that adding them lands on the grid of a format; last in a chain.

    With w on the grid already, in a wider dtype or natively in the format's own, w + u' is exactly `round_to(w + u, fmt, mode)`.
    Round the first weights too: from a w off the grid there may be no float that leads onto it. Costs no memory beyond one
    counter.

    Args:
        fmt: the format of the weights.
        mode: how they are rounded. `stochastic` makes updates below half an ulp land in proportion to their size.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, and gives updates in the carrier's dtype.

    Raises:
        TypeError: if fmt is not a format or mode not a function.
        ValueError: if the format's numbers are wrong, or at update time without `params`.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> optimizer = optax.chain(optax.sgd(0.1), round_params(BFLOAT16))
        >>> w = jnp.float32(1.0)
        >>> updates, _ = optimizer.update(jnp.float32(0.4), optimizer.init(w), w)
        >>> float(optax.apply_updates(w, updates))
        0.9609375
    """
    if not isinstance(fmt, Format):
        raise TypeError(f"round_params: fmt must be a Format such as precisionlab.BFLOAT16; got {fmt!r}.")
    check_numbers(fmt)
    check_mode(mode, "round_params")

    def init(params: PyTree[Array]) -> RoundParamsState:
        del params
        return RoundParamsState(jnp.int32(0))

    def update(
        updates: PyTree[Array], state: RoundParamsState, params: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], RoundParamsState]:
        if params is None:
            raise ValueError("round_params: the grid is that of the weights; call update(grads, state, params).")
        key = jax.random.fold_in(jax.random.key(seed), state.count) if isinstance(mode, Stochastic) else None
        leaves, structure = jax.tree.flatten(updates)
        weights = structure.flatten_up_to(params)

        def leaf(index: int, w: Any, u: Any) -> Any:
            if not _is_floating(w):
                return u
            wide, step = widened(w), widened(u)
            if step.dtype != wide.dtype:
                wide, step = wide.astype(jnp.float64), step.astype(jnp.float64)
            bits = None if key is None else jax.random.fold_in(key, index)
            return round_to(wide + uncontracted(step), fmt, mode, key=bits) - wide

        rounded = [leaf(index, w, u) for index, (w, u) in enumerate(zip(weights, leaves, strict=True))]
        return jax.tree.unflatten(structure, rounded), RoundParamsState(state.count + 1)

    return optax.GradientTransformation(init, update)
