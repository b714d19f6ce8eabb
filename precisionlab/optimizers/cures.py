"""What updates lose in narrow storage, and two cures for it, as Optax transformations.

    round_state      the illness in the optimizer's own memory: moments stored narrow lose updates as weights do
    kahan            keep the remainder of every rounding in a second narrow number, and add it to the next update
    master_weights   keep the whole weight in float32, and show the loss a rounded copy

Where something keeps the residual, an entry that did not change is *invisible*, not *lost*: it moves once enough has gathered.
Float32 masters lose what float32 loses. A compensation in the narrow format itself loses too, far lower (see `kahan`):

    optax.chain(optax.adamw(1e-3), kahan(BFLOAT16))                          # 2 + 2 bytes a parameter beside the moments
    master_weights(round_state(optax.adamw(1e-3), BFLOAT16), BFLOAT16)       # 2 + 4 bytes, moments in 2 + 2
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from precisionlab._typing import Array, Int, PRNGKeyArray, PyTree
from precisionlab.carriers import as_float64, uncontracted
from precisionlab.checks import check_numbers
from precisionlab.formats import Format, name_of
from precisionlab.modes import Mode, Stochastic, check_mode, nearest_even
from precisionlab.optimizers.sums import is_floating, stored_sum
from precisionlab.rounding import round_to
from precisionlab.stagnation import widened

__all__ = ["KahanState", "MasterWeightsState", "RoundStateState", "kahan", "master_weights", "round_state"]


class RoundStateState(NamedTuple):
    """The state of `round_state`: the wrapped optimizer's own, rounded, and the updates made so far."""

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


class KahanState(NamedTuple):
    """The state of `kahan`.

    Attributes:
        count: updates made so far, from which the random bits of each derive.
        compensation: what the weights still lack, values of the format in the dtypes of the weights; None for other leaves.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    compensation: PyTree[Array]


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        inner: the wrapped optimizer's own.
        count: updates made so far, from which the random bits of each derive.
        masters: the weights in float32 (float64 where the parameters are); None for leaves that are not floating.
    """

    inner: Any
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    masters: PyTree[Array]


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
    _check_rounding(fmt, mode, "round_state")
    inner = _checked_optimizer(optimizer, "round_state")

    def rounded(state: Any, number: Any) -> Any:
        try:
            owned = optax.tree.map_params(inner, is_floating, state, transform_non_params=lambda _: False)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "round_state: optax.tree.map_params cannot tell which leaves of this optimizer's state belong to parameters; "
                "wrap the optimizer inside instead: track(round_state(optax.adam(1e-3), fmt))."
            ) from error
        key = _key(mode, seed, number)
        leaves, structure = jax.tree.flatten(state)
        pairs = enumerate(zip(leaves, structure.flatten_up_to(owned), strict=True))
        stored = [
            round_to(widened(leaf), fmt, mode, key=_fold(key, index)).astype(leaf.dtype) if floats else leaf
            for index, (leaf, floats) in pairs
        ]
        return jax.tree.unflatten(structure, stored)

    def init(params: PyTree[Array]) -> Any:
        return RoundStateState(rounded(inner.init(params), 0), jnp.int32(0))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        updates, moments = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        return updates, RoundStateState(rounded(moments, count), count)

    return optax.GradientTransformationExtraArgs(init, update)


def kahan(fmt: Format, mode: Mode = nearest_even, seed: int = 0) -> optax.GradientTransformation:
    """Compensated weights: what one rounding drops, the next update brings; last in a chain.

    Each weight w has a compensation c, which starts at zero and is itself a value of the format:

        y = u + c      w' = round(w + y)      c' = round(y - (w' - w))

    The floor. Let p be the precision and h half the gap from w to its neighbour in the direction of u. Equal updates gather in
    c, which must climb to h; on the way it passes [h/2, h), where half of its own gap is h 2^-(p+1). So nearest rounding still
    loses equal updates with |u| <= max(h 2^-(p+1), 2^(emin-p)) for ever, c standing at h/2 or below, and delivers every larger
    one (as the carrier sees u + c), where plain rounding loses all up to h. The second term is half the smallest subnormal (for
    the smallest weights it is h itself, and odd ones take the tie); without subnormals it is 2^(emin-1), or h if that is less.
    Each step adds at most the floor, with the larger h of w', to the error of w + c. An entry that equal updates do not
    change is invisible above the floor, and lost below. With `stochastic` there is no floor.

    Costs one number of the format a parameter, in the parameter's dtype. `track(kahan(fmt))` reports an entry that has not
    moved as `zero`, since no update leaves here for it; look at the compensation for what is under way.

    Args:
        fmt: the format of weights and compensations. It must have a zero.
        mode: how both are rounded.
        seed: for stochastic modes; bits derive from (seed, number of the update, leaf), so that a resumed run repeats them.

    Returns:
        A gradient transformation. Its `update` needs `params`, on the grid already, in a wider dtype or natively in the
        format's own, and gives updates in the carrier's dtype; adding them lands on w'. (In a float32 carrier its last bit may
        be off where one step carries a weight across zero and to 2^(22-p) times its size: no float leads there.) Where w' or u
        is not finite c becomes zero.

    Raises:
        TypeError: if fmt is not a format or mode not a function.
        ValueError: if the format's numbers are wrong or it has no zero, or at update time without `params`.

    References:
        W. Kahan, "Further remarks on reducing truncation errors", 1965.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> optimizer = kahan(BFLOAT16)
        >>> w, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.float32(0.003), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> float(w), round(float(w + state.compensation), 3)
        (1.0078125, 1.009)
    """
    _check_rounding(fmt, mode, "kahan")
    if fmt.zeros == 0:
        raise ValueError(f"kahan: a compensation starts at zero, and {name_of(fmt)} has none; choose a format with a zero.")

    def init(params: PyTree[Array]) -> KahanState:
        return KahanState(jnp.int32(0), jax.tree.map(lambda w: jnp.zeros_like(w) if is_floating(w) else None, params))

    def update(updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("kahan: the grid is that of the weights; call update(grads, state, params).")
        key = _key(mode, seed, state.count)
        leaves, structure = jax.tree.flatten(updates)
        weights, carried = structure.flatten_up_to(params), structure.flatten_up_to(state.compensation)

        def leaf(index: int, w: Any, u: Any, c: Any) -> tuple[Any, Any]:
            if not is_floating(w):
                return u, c
            wide, step, rest = widened(w), widened(u), widened(c)
            if step.dtype != wide.dtype:
                wide, step, rest = as_float64(wide), as_float64(step), as_float64(rest)
            bits = _fold(key, index)
            wanted = uncontracted(step) + rest
            moved = round_to(wide + wanted, fmt, mode, key=bits) - wide
            missing = wanted - moved
            missing = round_to(jnp.where(jnp.isfinite(missing), missing, 0), fmt, mode, key=_fold(bits, 1))
            return moved, missing.astype(w.dtype)

        columns = enumerate(zip(weights, leaves, carried, strict=True))
        pairs = [leaf(index, *row) for index, row in columns]
        moves, missing = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, KahanState(state.count + 1, missing)

    return optax.GradientTransformation(init, update)


def master_weights(
    optimizer: optax.GradientTransformation, fmt: Format, mode: Mode = nearest_even, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that it trains float32 weights, of which the parameters are copies rounded to a format.

    The masters take the optimizer's updates; the updates returned lead the parameters to `round_to(masters, fmt, mode)`. Call
    `init` with the weights unrounded, then round them. A parameter that does not change while its master does is invisible,
    not lost: it moves once its master has crossed to another value's side. What changes the parameters from outside does not
    reach the masters.

    Costs 4 bytes a parameter (8 where parameters are float64). `track(master_weights(...))` reports an entry that has not
    moved as `zero`, since no update leaves here for it.

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
    _check_rounding(fmt, mode, "master_weights")
    inner = _checked_optimizer(optimizer, "master_weights")

    def init(params: PyTree[Array]) -> Any:
        # Copied, so that parameters and state may both be donated.
        masters = jax.tree.map(lambda w: jnp.copy(widened(w)) if is_floating(w) else None, params)
        return MasterWeightsState(inner.init(_with_the_rest(masters, params)), jnp.int32(0), masters)

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        if params is None:
            raise ValueError("master_weights: the updates lead from the weights; call update(grads, state, params).")
        masters = _with_the_rest(state.masters, params)
        wide = jax.tree.map(lambda g: widened(g) if is_floating(g) else g, updates)
        steps, inner_state = inner.update(wide, state.inner, masters, **extra)
        key = _key(mode, seed, state.count)
        leaves, structure = jax.tree.flatten(steps)
        weights, whole = structure.flatten_up_to(params), structure.flatten_up_to(masters)

        def leaf(index: int, w: Any, u: Any, master: Any) -> tuple[Any, Any]:
            if not is_floating(w):
                return u, None
            after = stored_sum(master, uncontracted(widened(u)))
            return round_to(after, fmt, mode, key=_fold(key, index)) - widened(w), after

        columns = enumerate(zip(weights, leaves, whole, strict=True))
        pairs = [leaf(index, *row) for index, row in columns]
        moves, after = (jax.tree.unflatten(structure, [pair[side] for pair in pairs]) for side in (0, 1))
        return moves, MasterWeightsState(inner_state, state.count + 1, after)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_rounding(fmt: Format, mode: Mode, where: str) -> None:
    if not isinstance(fmt, Format):
        raise TypeError(f"{where}: fmt must be a Format such as precisionlab.BFLOAT16; got {fmt!r}.")
    check_numbers(fmt)
    check_mode(mode, where)


def _checked_optimizer(optimizer: Any, where: str) -> optax.GradientTransformationExtraArgs:
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(f"{where}: expected an Optax gradient transformation, such as optax.adam(1e-3); got {optimizer!r}.")
    return optax.with_extra_args_support(optimizer)


def _key(mode: Mode, seed: Any, number: Any) -> PRNGKeyArray | None:
    return jax.random.fold_in(jax.random.key(seed), number) if isinstance(mode, Stochastic) else None


def _fold(key: PRNGKeyArray | None, index: int) -> PRNGKeyArray | None:
    return None if key is None else jax.random.fold_in(key, index)


def _with_the_rest(masters: PyTree[Array], params: PyTree[Array]) -> PyTree[Array]:
    """The masters, and the parameters themselves where there is none."""
    leaves, structure = jax.tree.flatten(params)
    whole = structure.flatten_up_to(masters)
    return jax.tree.unflatten(structure, [w if m is None else m for w, m in zip(leaves, whole, strict=True)])
