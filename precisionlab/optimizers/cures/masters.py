"""Master weights: whole weights in float32, of which the loss sees rounded copies.

A copy that does not change while its master does is *invisible*, not *lost*. Masters lose what float32 loses, unless they are
rounded stochastically as well.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PRNGKeyArray, PyTree
from precisionlab.arithmetic.exact.chances import round_sum
from precisionlab.numerics.carriers import uncontracted, widened
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.modes import Mode, Stochastic, nearest_even
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.choosing import Formats, Row, grids_of, rows_of
from precisionlab.optimizers.cures.grid import leading
from precisionlab.optimizers.roundings import Grid, Revealed, check_optimizer, check_rounding, leaf_key, step_key, unwrap
from precisionlab.optimizers.sums import in_one_carrier, is_floating, stored_sum
from precisionlab.optimizers.widening import wide

__all__ = ["MasterWeightsState", "master_weights"]


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        inner: the wrapped optimizer's own.
        count: updates made so far, from which the random bits of each derive.
        masters: the weights in float32 (float64 where the parameters are); None for leaves that are not floating.
        grid: where the values of each floating leaf lie.
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
    optimizer: optax.GradientTransformation, fmt: Formats = None, mode: Mode = nearest_even, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that it trains float32 weights, of which the parameters are copies rounded to a format.

    The masters take the optimizer's updates; the updates returned lead the parameters to `round_to(masters, fmt, mode)`. Call
    `init` with the weights unrounded, then round them. A parameter that does not change while its master does is invisible,
    not lost: it moves once its master has crossed to another value's side. What changes the parameters from outside does not
    reach the masters.

    The floor is float32's: rounded to nearest, masters lose updates of at most half the gap beside them. With `stochastic` the
    masters are rounded so too, in proportion to the exact sum, and lose none on average.

    Costs 4 bytes a parameter (8 where parameters are float64). `track(master_weights(...))` tells the entries whose masters
    have moved (`Tally.invisible`) from those that are lost to float32 as well.

    Args:
        optimizer: any Optax gradient transformation; it sees masters for parameters, and gradients as wide as they.
        fmt: the format of the parameters, in a wider dtype or natively in the format's own: one, by path, or None for each
            leaf's own, as `round_params` takes it.
        mode: how they are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, and gives updates in the carrier's dtype; adding them lands on
        the rounded masters, with the exception that `kahan` names.

    Raises:
        TypeError: if optimizer is no gradient transformation, fmt no format, mapping or None, or mode not a function.
        ValueError: if a format's numbers are wrong; at `init`, if a pattern matches nothing or a narrow dtype cannot hold its
            format; at update time, without `params`.

    References:
        P. Micikevicius et al., "Mixed precision training", 2018.

    Example:
        >>> from precisionlab import BFLOAT16
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
        begun = inner.init(_with_the_rest(masters, params))
        return MasterWeightsState(begun, jnp.int32(0), masters, grids_of(fmt, params, mode, "master_weights"))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("master_weights: the updates lead from the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        masters = _with_the_rest(state.masters, params)
        steps, inner_state = inner.update(wide(updates), state.inner, masters, **extra)
        if revealed:
            return steps, Revealed(state._replace(inner=inner_state, count=state.count + 1))
        key = step_key(mode, seed, state.count)
        structure, rows = rows_of(fmt, "master_weights", steps, params, masters)

        def leaf(row: Row) -> tuple[Any, Any]:
            w, u, master = row.leaves
            if row.fmt is None:
                return u, None
            bits = leaf_key(key, row.number)
            after = _moved(master, u, mode, leaf_key(bits, 1))
            visible = round_to(after, row.fmt, mode, key=bits)
            wide_w, step, target = in_one_carrier(w, u, visible)
            return leading(wide_w, step, target, row.fmt), after

        pairs = list(map(leaf, rows))
        moves, after = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, state._replace(inner=inner_state, count=state.count + 1, masters=after)

    return optax.GradientTransformationExtraArgs(init, update)


def _moved(master: Array, update: Array, mode: Mode, key: PRNGKeyArray | None) -> Array:
    """The master after an update, in its own dtype."""
    if not isinstance(mode, Stochastic):
        return stored_sum(master, uncontracted(widened(update)))
    exact = dataclasses.replace(mode, bits=None)
    before, step = in_one_carrier(master, update)
    return round_sum(before, step, FORMATS[master.dtype.name], exact, key=key).astype(master.dtype)


def _with_the_rest(masters: PyTree[Array], params: PyTree[Array]) -> PyTree[Array]:
    """The masters, and the parameters themselves where there is none."""
    leaves, structure = jax.tree.flatten(params)
    whole = structure.flatten_up_to(masters)
    return jax.tree.unflatten(structure, [w if m is None else m for w, m in zip(leaves, whole, strict=True)])
