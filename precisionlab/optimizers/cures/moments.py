"""Moments stored narrow: the optimizer's own memory loses updates as weights do.

An optimizer given narrow state rounds to it by itself, at every operation, to nearest, and its constants too. What is rounded
once, by a mode, has to be made wide: in float32, and where a mean is promised in float64, whose own losses are 2^-53.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PRNGKeyArray, PyTree
from precisionlab.numerics.carriers import widened
from precisionlab.numerics.formats import FORMATS, Format
from precisionlab.numerics.modes import Mode, Stochastic, nearest_even
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.choosing import Formats, formats_of, grid_of, held_by
from precisionlab.optimizers.meaning.meant import meant_leaves
from precisionlab.optimizers.roundings import (
    Grid,
    Revealed,
    check_optimizer,
    check_rounding,
    leaf_key,
    step_key,
    unwrap,
)
from precisionlab.optimizers.sums import is_floating
from precisionlab.optimizers.widening import wide

__all__ = ["RoundStateState", "round_state"]


class RoundStateState(NamedTuple):
    """The state of `round_state`.

    Attributes:
        inner: the wrapped optimizer's own, rounded.
        count: updates made so far, from which the random bits of each derive.
        grid: where the values of those leaves of `inner` lie that are rounded.
    """

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    grid: Grid


def round_state(
    optimizer: optax.GradientTransformation, fmt: Formats = None, mode: Mode = nearest_even, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that what it remembers of each parameter is stored in a format.

    Each floating leaf that belongs to a parameter (moments, averages, accumulated gradients; those that
    `optax.tree.map_params` finds) becomes `round_to(leaf, fmt, mode)` after every update, and at the start. Counts, keys and
    hyperparameters stay. Nothing else is rounded: the update is made in float32 whatever it is given, so that bfloat16 moments
    decay by 0.999 and not by the 1 it is in bfloat16, and comes from the moments before they are rounded, as in a kernel that
    stores them last. A moving average with decay b stalls where (1 - b) |x - s| is at most half a gap: in bfloat16, `nu` at
    0.999 fed ones stops at a quarter.

    With `stochastic` no floor is left: what is rounded is made in float64, so that an entry of state moves in proportion to an
    update of any size above 2^-54 of itself. (An optimizer that needs a factorization keeps what its own dtypes lose.)

    Costs nothing in simulation, where values stay in their dtype; stored natively, a parameter's moments take the bits of fmt.
    With `stochastic` the state's part of the update is made a second time, in float64.

    Args:
        optimizer: any Optax gradient transformation.
        fmt: the format of the moments: one for all, by their paths in the optimizer's state ("nu", "mu/kernel"; the others in
            their own dtypes), or None for each leaf's own dtype; one that saturates or has infinities, or else what overflows
            becomes NaN.
        mode: how they are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation with the wrapped one's updates, in the dtypes they would have without it: float32 ones as
        they were made, narrower ones rounded once, by the mode. Leaves of the state stay in the dtypes that `init` gives them.
        Around `in_float32(optimizer)` updates are float32 too, as a cure that follows in the chain would have them.

    Raises:
        TypeError: if optimizer is no gradient transformation, fmt no format, mapping or None, or mode not a function.
        ValueError: if a format's numbers are wrong; at `init`, if a pattern matches nothing, float32 cannot hold a format, or
            the optimizer does not tell which of its leaves belong to parameters.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> optimizer = round_state(optax.trace(0.9), BFLOAT16)
        >>> w = jnp.ones(2)
        >>> _, state = optimizer.update(jnp.float32([0.1, 0.2]), optimizer.init(w), w)
        >>> state.inner.trace.tolist()
        [0.10009765625, 0.2001953125]
    """
    check_rounding(fmt, mode, "round_state")
    inner = check_optimizer(optimizer, "round_state")

    def places_of(state: Any, params: PyTree[Array]) -> list[int]:
        """The numbers of the leaves that are rounded."""
        try:
            marks = optax.tree.map_params(inner, is_floating, state, transform_non_params=lambda _: False)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            found = _places_by_path(state, params)
            if found:
                return found
            raise ValueError(
                "round_state: optax.tree.map_params cannot tell which leaves of this optimizer's state belong to parameters; "
                "wrap the optimizer inside instead: track(round_state(optax.adam(1e-3), fmt))."
            ) from error
        spread = jax.tree.map(lambda floats, part: jax.tree.map(lambda _: floats, part), marks, state)
        return [place for place, floats in enumerate(jax.tree.leaves(spread)) if floats]

    def init(params: PyTree[Array]) -> Any:
        # Made wide, so that hyperparameters in the state are not rounded either; stored in the dtypes that Optax gives moments.
        begun = inner.init(wide(params))
        if not any(map(is_floating, jax.tree.leaves(params))):  # none, or what stands for them in `optax.tree.map_params`
            return RoundStateState(begun, jnp.int32(0), grid_of([], [], [], mode))
        leaves, structure = jax.tree.flatten(begun)
        stored, places = jax.tree.leaves(jax.eval_shape(inner.init, params)), places_of(begun, params)
        narrow = [leaves[place].astype(stored[place].dtype) for place in places]
        before = jax.tree.unflatten(structure, _with(leaves, places, narrow))
        paths = [jax.tree_util.tree_leaves_with_path(before)[place][0] for place in places]
        grid = grid_of(paths, narrow, formats_at(before, places, refuse=True), mode)
        found = rounded(before, places, [leaves[place] for place in places], keys_of(0, places))
        return RoundStateState(jax.tree.unflatten(structure, _with(leaves, places, found)), jnp.int32(0), grid)

    def rounded(before: Any, places: Sequence[int], values: Sequence[Array], keys: Sequence[Any]) -> list[Array]:
        """New values of some leaves of a state, on their grids, in the dtypes in which those are stored."""
        mine = [jax.tree.leaves(before)[place] for place in places]
        rows = zip(values, mine, formats_at(before, places), keys, strict=True)
        return [_stored(value, leaf.dtype, asked, mode, key) for value, leaf, asked, key in rows]

    def formats_at(state: Any, places: Sequence[int], *, refuse: bool = False) -> list[Format | None]:
        held = jax.tree_util.tree_leaves_with_path(state)
        paths, leaves = ([held[place][side] for place in places] for side in (0, 1))
        return formats_of(fmt, paths, leaves, "round_state", refuse=refuse, every=True)

    def keys_of(number: Any, places: Sequence[int]) -> list[Any]:
        key = step_key(mode, seed, number)
        return [leaf_key(key, place) for place in places]

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        state, revealed = unwrap(state)
        given, count = (updates, state.inner, params), state.count + 1
        steps, after = inner.update(*wide(given), **wide(extra))
        if revealed:
            return steps, Revealed(state._replace(inner=after, count=count))
        leaves, structure = jax.tree.flatten(after)
        held = state.inner if structure == jax.tree.structure(state.inner) else after  # which some make in their first update
        places = places_of(held, updates if params is None else params)
        keys = keys_of(count, places)
        if isinstance(mode, Stochastic):
            values = meant_leaves(inner, *given, extra, places, double=True)
            with jax.enable_x64(True):
                found = rounded(held, places, values, keys)
        else:
            values = [leaves[place] for place in places]
            if any(value.dtype.itemsize < 4 for value in values):  # by dtypes of its own (`mu_dtype`)
                values = meant_leaves(inner, *given, extra, places)
            found = rounded(held, places, values, keys)
        before = jax.tree.leaves(held)
        kept = [leaf.astype(old.dtype) if is_floating(leaf) else leaf for leaf, old in zip(leaves, before, strict=True)]
        inner_state = jax.tree.unflatten(structure, _with(kept, places, found))
        made, tree = jax.tree.flatten(steps)
        rows = zip(
            made,
            _update_dtypes(inner, updates, params, extra),
            keys_of(count, range(len(leaves), len(leaves) + len(made))),
            strict=True,
        )
        returned = [
            _stored(step, dtype, FORMATS[dtype.name], mode, key) if is_floating(step) else step for step, dtype, key in rows
        ]
        return jax.tree.unflatten(tree, returned), state._replace(inner=inner_state, count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def _places_by_path(state: Any, params: PyTree[Array]) -> list[int]:
    """The numbers of the floating leaves whose paths and shapes end in those of a parameter."""
    owned = [(path, jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if jnp.ndim(leaf)]

    def ends(path: Any, leaf: Any) -> bool:
        return any(path[len(path) - len(p) :] == p and leaf.shape[leaf.ndim - len(shape) :] == shape for p, shape in owned)

    placed = enumerate(jax.tree_util.tree_leaves_with_path(state))
    return [place for place, (path, leaf) in placed if is_floating(leaf) and ends(path, leaf)]


def _with(leaves: Sequence[Any], places: Sequence[int], found: Sequence[Any]) -> list[Any]:
    changed = dict(zip(places, found, strict=True))
    return [changed.get(place, leaf) for place, leaf in enumerate(leaves)]


def _stored(value: Array, dtype: Any, fmt: Format | None, mode: Mode, key: PRNGKeyArray | None) -> Array:
    """A value rounded once, in the dtype that holds it."""
    if fmt is None or (value.dtype == dtype and fmt == FORMATS[dtype.name]):
        return value
    return round_to(widened(value), held_by(dtype, fmt), mode, key=key).astype(dtype)


def _update_dtypes(
    inner: optax.GradientTransformationExtraArgs, updates: PyTree[Array], params: Any, extra: dict[str, Any]
) -> list[Any]:
    """The dtypes that the optimizer's updates have where it is given what is stored."""

    def made(updates: PyTree[Array], params: Any) -> PyTree[Array]:
        state = inner.init(updates if params is None else params)
        return inner.update(updates, state, params, **extra)[0]

    try:
        found = jax.eval_shape(made, updates, params)
    except (TypeError, ValueError):  # of eight bits beside anything wider there is no sum
        found = updates
    return [getattr(leaf, "dtype", None) for leaf in jax.tree.leaves(found)]
