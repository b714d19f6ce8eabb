"""Master weights: whole weights in float32, of which the loss sees rounded copies.

A copy that does not change while its master does is *invisible*, not *lost*. Masters lose what float32 loses.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.carriers import uncontracted, widened
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
from precisionlab.optimizers.sums import is_floating, stored_sum
from precisionlab.rounding import round_to

__all__ = ["MasterWeightsState", "master_weights"]


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        inner: the wrapped optimizer's own.
        count: updates made so far, from which the random bits of each derive.
        masters: the weights in float32 (float64 where the parameters are); None for leaves that are not floating.
        grid: where the values of the format lie.
    """

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    masters: PyTree[Array]
    grid: Grid

    @property
    def residual(self) -> PyTree[Array]:
        """What keeps the updates that do not land."""
        return self.masters


def master_weights(
    optimizer: optax.GradientTransformation, fmt: Format, mode: Mode = nearest_even, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that it trains float32 weights, of which the parameters are copies rounded to a format.

    The masters take the optimizer's updates; the updates returned lead the parameters to `round_to(masters, fmt, mode)`. Call
    `init` with the weights unrounded, then round them. A parameter that does not change while its master does is invisible,
    not lost: it moves once its master has crossed to another value's side. What changes the parameters from outside does not
    reach the masters.

    Costs 4 bytes a parameter (8 where parameters are float64). `track(master_weights(...))` tells the entries whose masters
    have moved (`Tally.invisible`) from those that are lost to float32 as well.

    Args:
        optimizer: any Optax gradient transformation; it sees masters for parameters, and gradients as wide as they.
        fmt: the format of the parameters, in a wider dtype or natively in the format's own.
        mode: how they are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, and gives updates in the carrier's dtype; adding them lands on
        the rounded masters, with the exception that `kahan` names.

    Raises:
        TypeError: if optimizer is no gradient transformation, fmt not a format or mode not a function.
        ValueError: if the format's numbers are wrong, or at update time without `params`.

    References:
        P. Micikevicius et al., "Mixed precision training", 2018.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> optimizer = master_weights(optax.sgd(1.0), BFLOAT16)
        >>> w, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
        >>> updates, state = optimizer.update(jnp.float32(-0.003), state, w)
        >>> float(updates), round(float(state.masters), 6)
        (0.0, 1.003)
    """
    check_rounding(fmt, mode, "master_weights")
    inner = check_optimizer(optimizer, "master_weights")

    def init(params: PyTree[Array]) -> Any:
        # Copied, so that parameters and state may both be donated.
        masters = jax.tree.map(lambda w: jnp.copy(widened(w)) if is_floating(w) else None, params)
        return MasterWeightsState(inner.init(_with_the_rest(masters, params)), jnp.int32(0), masters, grid_of(fmt, mode))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("master_weights: the updates lead from the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        masters = _with_the_rest(state.masters, params)
        wide = jax.tree.map(lambda g: widened(g) if is_floating(g) else g, updates)
        steps, inner_state = inner.update(wide, state.inner, masters, **extra)
        if revealed:
            return steps, Revealed(state._replace(inner=inner_state, count=state.count + 1))
        key = step_key(mode, seed, state.count)
        leaves, structure = jax.tree.flatten(steps)
        weights, whole = structure.flatten_up_to(params), structure.flatten_up_to(masters)

        def leaf(index: int, w: Any, u: Any, master: Any) -> tuple[Any, Any]:
            if not is_floating(w):
                return u, None
            after = stored_sum(master, uncontracted(widened(u)))
            return round_to(after, fmt, mode, key=leaf_key(key, index)) - widened(w), after

        columns = enumerate(zip(weights, leaves, whole, strict=True))
        pairs = [leaf(index, *row) for index, row in columns]
        moves, after = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, state._replace(inner=inner_state, count=state.count + 1, masters=after)

    return optax.GradientTransformationExtraArgs(init, update)


def _with_the_rest(masters: PyTree[Array], params: PyTree[Array]) -> PyTree[Array]:
    """The masters, and the parameters themselves where there is none."""
    leaves, structure = jax.tree.flatten(params)
    whole = structure.flatten_up_to(masters)
    return jax.tree.unflatten(structure, [w if m is None else m for w, m in zip(leaves, whole, strict=True)])
