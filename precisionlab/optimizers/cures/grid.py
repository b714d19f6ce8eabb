"""Weights that stay on a format's grid: the update is changed so that adding it lands there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.arithmetic.exact.chances import round_sum
from precisionlab.arithmetic.exact.exact_sums import is_carrier_itself
from precisionlab.numerics.carriers import CARRIERS, to_bits, uncontracted
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode, nearest_even
from precisionlab.optimizers.choosing import Formats, Row, grids_of, rows_of
from precisionlab.optimizers.roundings import Grid, Revealed, check_rounding, leaf_key, step_key, unwrap
from precisionlab.optimizers.sums import in_one_carrier

__all__ = ["RoundParamsState", "leading", "round_params"]


class RoundParamsState(NamedTuple):
    """The state of `round_params`.

    Attributes:
        count: updates made so far, from which the random bits of each derive.
        grid: where the values of each floating leaf lie.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    grid: Grid

    @property
    def residual(self) -> None:
        """Nothing keeps the updates that do not land."""


def round_params(fmt: Formats = None, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Change updates so that adding them lands on the grid of a format; last in a chain.

    With w on the grid already, in a wider dtype or natively in the format's own, w + u' is exactly w + u rounded once to it.
    Round the first weights too: from a w off the grid there may be no float that leads onto it. Costs no memory beyond a few
    numbers a leaf. `track` around the chain tells what is lost, from the updates as they were before this rounding.

    The floor. Rounded to nearest, an update of at most half the gap from w to its neighbour is lost (a tie only where w is
    even), in every step anew. Rounded stochastically there is none: w + u lands on the farther neighbour with the probability
    |u| / gap of the exact sum, float32 in float32 included, to 2^-64 of an ulp of float32; what a float32 update itself cannot
    hold (below 2^-126) is nothing here either.

    Args:
        fmt: the format of the weights. None is that of each leaf's own dtype. A mapping gives formats by path: the first
            pattern that matches a leaf or what it lies in ("norm", "block_0/mlp", `*` and `?` within a name) holds, others
            keep their own dtypes. A format alone is that of all leaves; but where some are stored in it natively, it is
            theirs, and the others keep their own.
        mode: how they are rounded. `stochastic` makes updates of any size land in proportion to their size.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, and gives updates in the carrier's dtype. (In a leaf of float32
        rounded to float32 itself, the last bit may be off where one step carries a weight across zero or beyond twice its
        size: no float leads there.)

    Raises:
        TypeError: if fmt is no format, mapping or None, or mode not a function.
        ValueError: if a format's numbers are wrong; at `init`, if a pattern matches nothing or a narrow dtype cannot hold its
            format; at update time, without `params`.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> optimizer = optax.chain(optax.sgd(0.1), round_params(BFLOAT16))
        >>> w = jnp.float32(1.0)
        >>> updates, _ = optimizer.update(jnp.float32(0.4), optimizer.init(w), w)
        >>> float(optax.apply_updates(w, updates))
        0.9609375
    """
    check_rounding(fmt, mode, "round_params")

    def init(params: PyTree[Array]) -> RoundParamsState:
        return RoundParamsState(jnp.int32(0), grids_of(fmt, params, mode, "round_params"))

    def update(updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("round_params: the grid is that of the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        if revealed:
            return updates, Revealed(state)
        key = step_key(mode, seed, state.count)
        structure, rows = rows_of(fmt, "round_params", updates, params)

        def leaf(row: Row) -> Any:
            if row.fmt is None:
                return row.leaves[1]
            wide, step = in_one_carrier(*row.leaves)
            target = round_sum(wide, step, row.fmt, mode, key=leaf_key(key, row.number))
            return leading(wide, step, target, row.fmt)

        return jax.tree.unflatten(structure, list(map(leaf, rows))), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def leading(w: Array, step: Array, target: Array, fmt: Format) -> Array:
    """The update that leads from a weight to a target, which is the sum of weight and step, rounded to a format.

    Between values of a narrow format it is their difference. In the carrier's own format that may be no float, where the step
    itself leads there.
    """
    carrier = CARRIERS[w.dtype.name]
    if not is_carrier_itself(fmt, carrier):
        return target - w
    step = uncontracted(step)
    return jnp.where(to_bits(w + step, carrier) == to_bits(target, carrier), step, target - w)
