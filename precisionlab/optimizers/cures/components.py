"""Weights as a sum of two numbers of the format: what the first cannot hold, the second does.

two_components   (w, c) stands for w + c; both are values of the format, and every sum on the way is rounded to it
"""

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
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.choosing import Formats, Row, check_zeros, grids_of, rows_of
from precisionlab.optimizers.roundings import Grid, Revealed, check_rounding, leaf_key, step_key, unwrap
from precisionlab.optimizers.sums import in_one_carrier, is_floating

__all__ = ["TwoComponentsState", "two_components"]


class TwoComponentsState(NamedTuple):
    """The state of `two_components`.

    Attributes:
        count: updates made so far, from which the random bits of each derive.
        low: the second component of each weight, values of the format in the dtypes of the weights; None for other leaves.
        grid: where the values of each floating leaf lie.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    low: PyTree[Array]
    grid: Grid

    @property
    def residual(self) -> PyTree[Array]:
        """What keeps the updates that do not land."""
        return self.low


def two_components(fmt: Formats = None, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Weights kept as an unevaluated sum of two values of the format; last in a chain.

    The parameters hold w, the state holds c, and the weight that is meant is w + c. An update u goes in by two error-free sums,
    as in Collage's `Grow`, every intermediate a value of the format:

        s = round(w + u)      v = round(w + u - s)           the sum, and what its rounding dropped
        t = round(c + v)
        w' = round(s + t)     c' = s + t - w'                normalized again: |c'| is at most half the gap beside w'

    Sums round to nearest even, which alone makes their errors values of the format. Something can be lost in v (nothing, if u
    is itself a value of the format) and in t, and these two the mode rounds.

    The floor. Let p >= 2 be the precision and h half the gap from w to its neighbour in the direction of u. Equal updates below
    h leave s at w and gather in c, which moves w once it passes h; at h already if w is odd and gives up the tie. On the way to
    h half of c's own gap is h 2^-(p+1), at h it is twice as much. So nearest rounding loses equal updates for ever exactly if

        |round(u)| <= h 2^-p      for even w, c standing at h or below,
        |round(u)| <= h 2^-(p+1)  for odd w, c standing at h/2 or below,

    where plain rounding loses all up to h. What rounds to zero is among them: |u| up to half the smallest value of the format,
    unless it moves w at once. With `stochastic` there is no floor: v and t are rounded in proportion to their exact values, so
    that the mean of w + c is exact for updates of any size.

    Against `kahan`, which takes as much memory: there u + c is one sum in the carrier, rounded once when it is kept, so a step
    adds at most h 2^-(p+1) to the error of w + c. Here a step adds at most h 2^-p, and h 2^-(p+1) more if u is wider than the
    format, and the floor is never below kahan's. In return no intermediate is wider than the format. Both keep the pair
    normalized.

    Costs one number of the format a parameter, in the parameter's dtype. `track` around the chain tells the entries
    whose update waits in c (`Tally.invisible`) from those whose update is lost. Where w' saturates, c holds what is beyond, up
    to the largest value.

    Args:
        fmt: the format of both components: one, by path, or None for each leaf's own, as `round_params` takes it. It must
            have a zero.
        mode: how what the pair cannot hold is rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, on the grid already, in a wider dtype or natively in the
        format's own, and gives updates in the carrier's dtype; adding them lands on w'. (In a float32 carrier it may land the
        carrier's last bit off where one step cancels a weight to 2^(p-24) of its size, or carries it across zero and to
        2^(22-p) times its size: no float leads there. In float32 leaves in float32 itself c makes up for it.) Where w' is not
        finite c becomes zero.

    Raises:
        TypeError: if fmt is no format, mapping or None, or mode not a function.
        ValueError: if a format's numbers are wrong or it has no zero; at `init`, if a pattern matches nothing or a narrow dtype
            cannot hold its format; at update time, without `params`.

    References:
        T. Yu et al., "Collage: Light-weight low-precision strategy for LLM training", 2024; T. J. Dekker, "A floating-point
        technique for extending the available precision", 1971.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> optimizer = two_components(BFLOAT16)
        >>> w, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.float32(0.003), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> float(w), round(float(w + state.low), 3)
        (1.0078125, 1.009)
    """
    check_rounding(fmt, mode, "two_components")
    check_zeros(fmt, "two_components: the second")

    def init(params: PyTree[Array]) -> TwoComponentsState:
        nothing = jax.tree.map(lambda w: jnp.zeros_like(w) if is_floating(w) else None, params)
        return TwoComponentsState(jnp.int32(0), nothing, grids_of(fmt, params, mode, "two_components", zero="the second"))

    def update(updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("two_components: the grid is that of the weights; call update(grads, state, params).")
        state, revealed = unwrap(state)
        if revealed:
            return updates, Revealed(state)
        key = step_key(mode, seed, state.count)
        structure, rows = rows_of(fmt, "two_components", updates, params, state.low)

        def leaf(row: Row) -> tuple[Any, Any]:
            w, u, c = row.leaves
            if row.fmt is None:
                return u, c
            high, step, low = in_one_carrier(w, u, c)
            bits = leaf_key(key, row.number)
            near, dropped = _sum(high, uncontracted(step), row.fmt)
            dropped = round_to(dropped, row.fmt, mode, key=bits)
            after, rest = _sum(near, round_sum(low, dropped, row.fmt, mode, key=leaf_key(bits, 1)), row.fmt)
            moved = after - high
            if is_carrier_itself(row.fmt, CARRIERS[high.dtype.name]):
                short = after - (high + moved)  # of what the sum will really do
                rest = rest + jnp.where(jnp.isfinite(short), short, 0)
            return moved, round_to(rest, row.fmt).astype(w.dtype)

        pairs = list(map(leaf, rows))
        moves, lows = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, state._replace(count=state.count + 1, low=lows)

    return optax.GradientTransformation(init, update)


def _sum(a: Array, b: Array, fmt: Format) -> tuple[Array, Array]:
    """The sum rounded to the format, and a + b minus that; zero where either is not finite.

    The larger operand goes first (Dekker's Fast2Sum), since its difference to the rounded sum is then exact in the carrier.
    """
    carrier = CARRIERS[a.dtype.name]
    size = carrier.word(carrier.sign - 1)
    swapped = (to_bits(a, carrier) & size) < (to_bits(b, carrier) & size)
    first, second = jnp.where(swapped, b, a), jnp.where(swapped, a, b)
    total = round_to(a + b, fmt)
    error = second - (total - first)
    return total, jnp.where(jnp.isfinite(error), error, 0)
