"""Compensated weights: what one rounding drops is kept in a second narrow number, and added to the next update.

Where something keeps the residual, an entry that did not change is *invisible*, not *lost*: it moves once enough has gathered.
A compensation in the narrow format itself loses too, far lower (see `kahan`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PyTree
from precisionlab.arithmetic.exact.chances import carried_sum, round_sum
from precisionlab.arithmetic.exact.exact_sums import is_carrier_itself, two_sum
from precisionlab.numerics.carriers import CARRIERS
from precisionlab.numerics.modes import Mode, nearest_even
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.choosing import Formats, Row, check_zeros, grids_of, rows_of
from precisionlab.optimizers.cures.grid import leading
from precisionlab.optimizers.roundings import Grid, Revealed, check_rounding, leaf_key, step_key, unwrap
from precisionlab.optimizers.sums import in_one_carrier, is_floating

__all__ = ["KahanState", "kahan"]


class KahanState(NamedTuple):
    """The state of `kahan`.

    Attributes:
        count: updates made so far, from which the random bits of each derive.
        compensation: what the weights still lack, values of the format in the dtypes of the weights; None for other leaves.
        grid: where the values of each floating leaf lie.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    compensation: PyTree[Array]
    grid: Grid

    @property
    def residual(self) -> PyTree[Array]:
        """What keeps the updates that do not land."""
        return self.compensation


def kahan(fmt: Formats = None, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Compensated weights: what one rounding drops, the next update brings; last in a chain.

    Each weight w has a compensation c, which starts at zero and is itself a value of the format:

        y = u + c      w' = round(w + y)      c' = round(y - (w' - w))

    The floor. Let p be the precision and h half the gap from w to its neighbour in the direction of u. Equal updates gather in
    c, which must climb to h; on the way it passes [h/2, h), where half of its own gap is h 2^-(p+1). So nearest rounding still
    loses equal updates with |u| <= max(h 2^-(p+1), 2^(emin-p)) for ever, c standing at h/2 or below, and delivers every larger
    one (as the carrier sees u + c), where plain rounding loses all up to h. The second term is half the smallest subnormal (for
    the smallest weights it is h itself, and odd ones take the tie); without subnormals it is 2^(emin-1), or h if that is less.
    Each step adds at most the floor, with the larger h of w', to the error of w + c. An entry that equal updates do not
    change is invisible above the floor, and lost below. With `stochastic` there is no floor: every sum on the way is rounded in
    proportion to its exact value, so that the mean of w + c is exact for updates of any size.

    Costs one number of the format a parameter, in the parameter's dtype. `track` around the chain tells the entries whose
    update waits in the compensation (`Tally.invisible`) from those whose update is lost.

    Args:
        fmt: the format of weights and compensations: one, by path, or None for each leaf's own, as `round_params` takes it. It
            must have a zero.
        mode: how both are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, on the grid already, in a wider dtype or natively in the
        format's own, and gives updates in the carrier's dtype; adding them lands on w'. (In a float32 carrier its last bit may
        be off where one step carries a weight across zero and to 2^(22-p) times its size: no float leads there. Float32 leaves
        in float32 itself compensate for that too.) Where w' or u is not finite c becomes zero.

    Raises:
        TypeError: if fmt is no format, mapping or None, or mode not a function.
        ValueError: if a format's numbers are wrong or it has no zero; at `init`, if a pattern matches nothing or a narrow dtype
            cannot hold its format; at update time, without `params`.

    References:
        W. Kahan, "Further remarks on reducing truncation errors", 1965.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> optimizer = kahan(BFLOAT16)
        >>> w, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.float32(0.003), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> float(w), round(float(w + state.compensation), 3)
        (1.0078125, 1.009)
    """
    check_rounding(fmt, mode, "kahan")
    check_zeros(fmt, "kahan: a compensation")

    def init(params: PyTree[Array]) -> KahanState:
        nothing = jax.tree.map(lambda w: jnp.zeros_like(w) if is_floating(w) else None, params)
        return KahanState(jnp.int32(0), nothing, grids_of(fmt, params, mode, "kahan", zero="a compensation"))

    def update(updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("kahan: the grid is that of the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        if revealed:
            return updates, Revealed(state)
        key = step_key(mode, seed, state.count)
        structure, rows = rows_of(fmt, "kahan", updates, params, state.compensation)

        def leaf(row: Row) -> tuple[Any, Any]:
            w, u, c = row.leaves
            if row.fmt is None:
                return u, c
            wide, step, rest = in_one_carrier(w, u, c)
            carrier = CARRIERS[wide.dtype.name]
            bits = leaf_key(key, row.number)

            def carried(a: Array, b: Array, number: int) -> Array:
                return carried_sum(a, b, mode, key=leaf_key(bits, number))

            wanted = carried(rest, step, 2)
            moved = leading(wide, wanted, round_sum(wide, wanted, row.fmt, mode, key=bits), row.fmt)
            missing = carried(wanted, -moved, 3)
            if is_carrier_itself(row.fmt, carrier):
                made, short = two_sum(wide + moved, -wide, carrier)  # what the sum will really do
                missing = carried(carried(wanted, -made, 3), -short, 4)
            missing = round_to(jnp.where(jnp.isfinite(missing), missing, 0), row.fmt, mode, key=leaf_key(bits, 1))
            return moved, missing.astype(w.dtype)

        pairs = list(map(leaf, rows))
        moves, missing = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, state._replace(count=state.count + 1, compensation=missing)

    return optax.GradientTransformation(init, update)
