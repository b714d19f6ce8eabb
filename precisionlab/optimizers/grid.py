"""Weights that stay on a format's grid: the update is changed so that adding it lands there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.carriers import as_float64, uncontracted, widened
from precisionlab.formats import Format
from precisionlab.modes import Mode, nearest_even
from precisionlab.optimizers.roundings import Grid, Revealed, check_rounding, grid_of, leaf_key, step_key, unwrap
from precisionlab.optimizers.sums import is_floating
from precisionlab.rounding import round_to

__all__ = ["RoundParamsState", "round_params"]


class RoundParamsState(NamedTuple):
    """The state of `round_params`.

    Attributes:
        count: updates made so far, from which the random bits of each derive.
        grid: where the values of the format lie.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    grid: Grid

    @property
    def residual(self) -> None:
        """Nothing keeps the updates that do not land."""


def round_params(fmt: Format, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Change updates so that adding them lands on the grid of a format; last in a chain.

    With w on the grid already, in a wider dtype or natively in the format's own, w + u' is exactly `round_to(w + u, fmt,
    mode)`. Round the first weights too: from a w off the grid there may be no float that leads onto it. Costs no memory beyond
    three numbers. `track` around the chain tells what is lost, from the updates as they were before this rounding.

    The floor. Rounded to nearest, an update of at most half the gap from w to its neighbour is lost (a tie only where w is
    even), in every step anew. Rounded stochastically w + u lands in proportion to u, once it is there: the carrier makes the
    sum, and updates of at most half of the carrier's own gap are lost in it: 2^-24 at a weight of 1 in float32, where half a
    gap of bfloat16 is 2^-8. Such steps want a compensation (`kahan`), or masters in something wider still.

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
    check_rounding(fmt, mode, "round_params")

    def init(params: PyTree[Array]) -> RoundParamsState:
        del params
        return RoundParamsState(jnp.int32(0), grid_of(fmt, mode))

    def update(updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("round_params: the grid is that of the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        if revealed:
            return updates, Revealed(state)
        key = step_key(mode, seed, state.count)
        leaves, structure = jax.tree.flatten(updates)
        weights = structure.flatten_up_to(params)

        def leaf(index: int, w: Any, u: Any) -> Any:
            if not is_floating(w):
                return u
            wide, step = widened(w), widened(u)
            if step.dtype != wide.dtype:
                wide, step = as_float64(wide), as_float64(step)
            return round_to(wide + uncontracted(step), fmt, mode, key=leaf_key(key, index)) - wide

        rounded = [leaf(index, w, u) for index, (w, u) in enumerate(zip(weights, leaves, strict=True))]
        return jax.tree.unflatten(structure, rounded), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)
