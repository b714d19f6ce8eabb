"""Moments stored narrow: the optimizer's own memory loses updates as weights do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.carriers import widened
from precisionlab.formats import Format
from precisionlab.modes import Mode, nearest_even
from precisionlab.optimizers.roundings import (
    Grid,
    Revealed,
    check_optimizer,
    check_rounding,
    grid_of,
    leaf_key,
    step_key,
    unwrap,
)
from precisionlab.optimizers.sums import is_floating
from precisionlab.rounding import round_to

__all__ = ["RoundStateState", "round_state"]


class RoundStateState(NamedTuple):
    """The state of `round_state`.

    Attributes:
        inner: the wrapped optimizer's own, rounded.
        count: updates made so far, from which the random bits of each derive.
        grid: where the values of the format lie.
    """

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    grid: Grid


def round_state(
    optimizer: optax.GradientTransformation, fmt: Format, mode: Mode = nearest_even, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that what it remembers of each parameter is stored in a format.

    After every update, and at the start, each floating leaf that belongs to a parameter (moments, averages, accumulated
    gradients; those that `optax.tree.map_params` finds) becomes `round_to(leaf, fmt, mode)`. Counts and hyperparameters stay.
    The update itself comes from the moments before they are rounded, as in a kernel that stores them last. A moving average
    with decay b stalls where (1 - b) |x - s| is at most half a gap: in bfloat16, `nu` at 0.999 fed ones stops at a quarter.

    Costs nothing in simulation, where values stay in their dtype; stored natively, a parameter's moments take the bits of fmt.

    Args:
        optimizer: any Optax gradient transformation.
        fmt: the format of the moments; one that saturates or has infinities, or else what overflows becomes NaN.
        mode: how they are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation with the wrapped one's updates.

    Raises:
        TypeError: if optimizer is no gradient transformation, fmt not a format or mode not a function.
        ValueError: if the format's numbers are wrong or do not fit; at `init`, if the optimizer does not tell which of its
            leaves belong to parameters.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> optimizer = round_state(optax.trace(0.9), BFLOAT16)
        >>> w = jnp.ones(2)
        >>> _, state = optimizer.update(jnp.float32([0.1, 0.2]), optimizer.init(w), w)
        >>> state.inner.trace.tolist()
        [0.10009765625, 0.2001953125]
    """
    check_rounding(fmt, mode, "round_state")
    inner = check_optimizer(optimizer, "round_state")

    def rounded(state: Any, number: Any) -> Any:
        try:
            owned = optax.tree.map_params(inner, is_floating, state, transform_non_params=lambda _: False)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "round_state: optax.tree.map_params cannot tell which leaves of this optimizer's state belong to parameters; "
                "wrap the optimizer inside instead: track(round_state(optax.adam(1e-3), fmt))."
            ) from error
        key = step_key(mode, seed, number)
        leaves, structure = jax.tree.flatten(state)
        mine = jax.tree.leaves(jax.tree.map(lambda floats, part: jax.tree.map(lambda _: floats, part), owned, state))
        stored = [
            round_to(widened(leaf), fmt, mode, key=leaf_key(key, index)).astype(leaf.dtype) if floats else leaf
            for index, (leaf, floats) in enumerate(zip(leaves, mine, strict=True))
        ]
        return jax.tree.unflatten(structure, stored)

    def init(params: PyTree[Array]) -> Any:
        return RoundStateState(rounded(inner.init(params), 0), jnp.int32(0), grid_of(fmt, mode))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        state, revealed = unwrap(state)
        updates, moments = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        if revealed:
            return updates, Revealed(state._replace(inner=moments, count=count))
        return updates, state._replace(inner=rounded(moments, count), count=count)

    return optax.GradientTransformationExtraArgs(init, update)
