"""Training steps as pure functions of state, batch and formats.

`step(state, batch, formats) -> (State, Record)`: `State` is what the next step needs, `Record` what one looks at. Functions
(the loss, the optimizer, the rounding modes) are closed over; numbers (the formats) are arguments, so a sweep over formats and
seeds is one compiled program.

Two ways to hold narrow values, which agree bit for bit wherever the native arithmetic is IEEE-faithful:

    simulated   float32 arrays rounded by integers to any `Format` at each site of the `Policy`
    native      arrays really stored in a narrow dtype (`dtypes=Policy(weights=jnp.bfloat16, ...)`)

Parameters of float64 (inside `with jax.enable_x64(True):`) carry formats of up to 53 bits and 11 exponent bits in the same way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab._typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from precisionlab.arithmetic import Accumulation, simulate
from precisionlab.arithmetic.exact.chances import carried_sum, round_sum
from precisionlab.arithmetic.policy import Policy, check_policy
from precisionlab.arithmetic.rules import check_mode_rules, every_rule
from precisionlab.numerics.blocks import BlockFormat, round_blocks
from precisionlab.numerics.carriers import CARRIERS, FLOAT32_CARRIER, FLOAT64_CARRIER, Carrier, uncontracted, widened
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import FORMATS, Format, is_concrete
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, nearest_even
from precisionlab.numerics.rounding import round_to
from precisionlab.stagnation.ages import Ages, start_ages, update_ages
from precisionlab.stagnation.counting import tally
from precisionlab.stagnation.fates import Tally
from precisionlab.training.loss_scaling import LossScale, all_finite, next_scale, scale_loss, select_step, unscale

__all__ = ["Record", "State", "Step", "batch_key", "carrier_of_params", "make_step", "start"]

_SITES = {name: index for index, name in enumerate(Policy._fields)}
_BATCH = len(_SITES)


class State(NamedTuple):
    """What the next step needs.

    Attributes:
        step: steps made so far, those included that loss scaling skipped: batches and random bits go on.
        params: the stored weights.
        optimizer: the optimizer's state.
        key: the root of all randomness; the bits of a step derive from (key, step), so a resumed run repeats them.
        ages: when each entry last moved, or None if nobody asked.
        loss_scale: the scale of the next loss, or None for no scaling.
    """

    step: Int[Array, ""]
    params: PyTree[Array]
    optimizer: Any
    key: PRNGKeyArray
    ages: Ages | None
    loss_scale: LossScale | None = None


class Record(NamedTuple):
    """What one looks at; stacked along a leading axis by `run`, and after axes for format and seed by `sweep`.

    Attributes:
        step: the number of the step, from 1.
        loss: the loss before it, without any scale.
        read: whether the fates were read in this step (one in `every`); if not, the tally is all zeros.
        tally: a `Tally` for each leaf of the parameters. A skipped step asks nothing: every entry counts as `zero`.
        skipped: whether loss scaling skipped the step because its gradients were not finite; None without scaling.
        scale: what the loss was multiplied by; None without scaling.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""]
    read: Bool[Array, ""]
    tally: PyTree[Tally]
    skipped: Bool[Array, ""] | None = None
    scale: Float[Array, ""] | None = None


Step = Callable[..., tuple[State, Record]]
"""`step(state, batch, formats=Policy()) -> (State, Record)`."""


def start(
    params: PyTree[Array],
    optimizer: optax.GradientTransformation,
    formats: Policy = Policy(),
    *,
    key: PRNGKeyArray | int = 0,
    dtypes: Policy | None = None,
    ages: bool = False,
    loss_scale: LossScale | None = None,
) -> State:
    """The state before the first step, with the weights already on their grid (rounded to nearest even).

    Args:
        params: float32 weights; or float64 ones, inside `with jax.enable_x64(True):`, for formats that float32 cannot hold.
        optimizer: the Optax optimizer.
        formats: the formats of the simulated sites; only `weights` and `moments` matter here.
        key: root of all randomness, a JAX key or a seed.
        dtypes: native storage instead of simulation, see `make_step`.
        ages: remember when each entry last moved (4 bytes an entry).
        loss_scale: `static_loss_scale(...)` or `dynamic_loss_scale(...)`: the steps multiply the loss by it before they
            differentiate, round the gradients so scaled at their site, and divide them in float32. A step whose gradients
            are not finite then changes nothing but the step count and the scale.

    Returns:
        The initial `State`.

    Raises:
        TypeError, ValueError: for a policy that is none, formats that do not fit the dtype of the parameters (of the moments,
            for theirs), or a loss scale that is none.

    Example:
        >>> from precisionlab import FLOAT16, static_loss_scale
        >>> optimizer, formats, x = optax.sgd(1.0), Policy(gradients=FLOAT16), 2.0**-26  # x rounds to zero in float16
        >>> step = jax.jit(make_step(lambda w, batch: jnp.sum(w * x), optimizer))
        >>> begun = start(jnp.zeros(1), optimizer, formats, loss_scale=static_loss_scale(1024))
        >>> [float(step(state, None, formats)[0].params[0]) for state in (begun, begun._replace(loss_scale=None))]
        [-1.4901161193847656e-08, 0.0]
    """
    check_policy(formats, "start", carrier_of_params(params))
    native = _checked_dtypes(dtypes, "start")
    if loss_scale is not None and not isinstance(loss_scale, LossScale):
        raise TypeError(
            f"start: loss_scale must be a LossScale, such as dynamic_loss_scale() or static_loss_scale(1024); got "
            f"{loss_scale!r}."
        )
    if formats.weights is not None:
        params = jax.tree.map(lambda leaf: _rounded(leaf, formats.weights, nearest_even, None), params)
    if native.weights is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(native.weights), params)
    root = jax.random.key(key) if isinstance(key, int | np.integer) else key
    inner = optimizer.init(jax.tree.map(widened, params))
    if formats.moments is not None and is_concrete(formats.moments):
        # An optimizer may keep its averages in a dtype of its own, narrower than the parameters.
        optax.tree.map_params(optimizer, partial(_check_moment, fmt=formats.moments), inner)
    return State(jnp.int32(0), params, inner, root, start_ages(params) if ages else None, loss_scale)


def make_step(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    *,
    modes: Mode | Policy = nearest_even,
    every: int = 1,
    detail: bool = True,
    dtypes: Policy | None = None,
    accumulation: Accumulation | None = None,
) -> Step:
    """A training step, to be jitted, scanned or vmapped.

    Args:
        loss: `loss(params, batch)` gives a scalar; it sees float32 parameters (float64 ones if they are float64).
        optimizer: any Optax optimizer, learning rate included.
        modes: one rounding mode for every site, or a `Policy` of modes (None there means nearest_even; `compute` also takes
            `Rules` of modes). A stochastic one rounds weights in proportion to the exact sum of weight and update.
        every: read the fates of one update in `every`.
        detail: False counts fates alone, without masses, descent quality and histogram, at a fraction of the cost.
        dtypes: a `Policy` of native dtypes for `weights`, `gradients` and `updates`: arrays are then really stored in them,
            rounded by the hardware's or the compiler's casts, and `formats` must stay empty.
        accumulation: how sums and products of matrices are accumulated where `Policy.compute` has a format, see `simulate`.

    Returns:
        `step(state, batch, formats=Policy()) -> (State, Record)`. The numbers of the formats may be traced; those of block
        formats may not, so a policy that has some is closed over: `jax.jit(partial(step, formats=policy))`.

    Raises:
        ValueError, TypeError: for a mode that is no function, an `every` that is no positive whole number, a dtype that no
            format describes.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> optimizer, formats = optax.sgd(0.1), Policy(weights=BFLOAT16)
        >>> step = make_step(lambda w, batch: jnp.sum((w - batch) ** 2), optimizer)
        >>> state = start(jnp.ones(3), optimizer, formats)
        >>> state, record = jax.jit(step)(state, jnp.zeros(3), formats)
        >>> state.params.tolist(), int(record.tally.landed)
        ([0.80078125, 0.80078125, 0.80078125], 3)
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"make_step: every must be a whole number of at least 1; got {every!r}.")
    site_modes = (
        Policy(*(mode or nearest_even for mode in modes)) if isinstance(modes, Policy) else Policy(*[modes] * len(_SITES))
    )
    for site, mode in site_modes._asdict().items():
        (check_mode_rules if site == "compute" else check_mode)(mode, "make_step")
    draws = any(isinstance(mode, Stochastic) for mode in every_rule(site_modes.compute))
    native = _checked_dtypes(dtypes, "make_step")

    def scaled(weights: PyTree[Array], batch: Any, scaling: LossScale | None) -> tuple[Array, Array]:
        value = loss(weights, batch)
        return value if scaling is None else scale_loss(scaling, value), value

    differentiated = jax.value_and_grad(scaled, has_aux=True)

    def computed(
        weights: PyTree[Array], batch: Any, scaling: LossScale | None, rules: Any, key: PRNGKeyArray, carrier: Carrier
    ) -> Any:
        """((scaled loss, loss), gradients of the scaled loss), with every operation rounded if there are rules."""
        if rules is None:
            return differentiated(weights, batch, scaling)
        simulated = simulate(differentiated, rules, mode=site_modes.compute, accumulation=accumulation, carrier=carrier.dtype)
        bits = {"key": jax.random.fold_in(key, _SITES["compute"])} if draws else {}
        return simulated(weights, batch, scaling, **bits)

    def step(state: State, batch: Any, formats: Policy = Policy()) -> tuple[State, Record]:
        carrier = carrier_of_params(state.params)
        check_policy(formats, "step", carrier)
        if dtypes is not None and any(fmt is not None for fmt in formats):
            raise ValueError("step: this step stores native dtypes; formats can only be simulated, so leave them at Policy().")
        key = jax.random.fold_in(state.key, state.step)

        def at(site: str, tree: PyTree[Array]) -> PyTree[Array]:
            return _round_site(tree, getattr(formats, site), getattr(site_modes, site), jax.random.fold_in(key, _SITES[site]))

        weights = jax.tree.map(widened, state.params)
        scaling = state.loss_scale
        (_, value), gradients = computed(weights, batch, scaling, formats.compute, key, carrier)
        gradients = _store(at("gradients", gradients), native.gradients)
        finite = None
        if scaling is not None:
            finite, gradients = all_finite(gradients), unscale(scaling, gradients)
        updates, inner = optimizer.update(gradients, state.optimizer, weights)
        if formats.moments is not None:
            inner = optax.tree.map_params(
                optimizer, partial(_round_moment, fmt=formats.moments), inner, transform_non_params=lambda leaf: leaf
            )
        if finite is not None:
            updates = select_step(finite, updates, jax.tree.map(jnp.zeros_like, updates))
        kept = _store(at("updates", updates), native.updates)
        at_weights = formats.weights, site_modes.weights, jax.random.fold_in(key, _SITES["weights"])
        moved = _moved(weights, kept, *at_weights)
        params = moved if native.weights is None else jax.tree.map(lambda leaf: leaf.astype(native.weights), moved)
        if finite is not None:
            params, inner = select_step(finite, (params, inner), (state.params, state.optimizer))

        def look() -> PyTree[Tally]:
            grid = None if formats.weights is None else _grid(formats.weights, carrier)
            stored = kept if formats.updates is not None or native.updates is not None else None
            return tally(state.params, updates, params, stored_update=stored, grid=grid, detail=detail)

        if every == 1:
            read, fates = jnp.bool_(True), look()
        else:
            read = (state.step + 1) % every == 0
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(look))
            fates = jax.lax.cond(read, look, lambda: blank)
        ages = None if state.ages is None else update_ages(state.ages, state.params, params)
        number = state.step + 1
        after, record = State(number, params, inner, state.key, ages), Record(number, value, read, fates)
        if scaling is None or finite is None:
            return after, record
        return (
            after._replace(ages=select_step(finite, ages, state.ages), loss_scale=next_scale(scaling, finite)),
            record._replace(skipped=~finite, scale=scaling.scale),
        )

    return step


def _checked_dtypes(dtypes: Policy | None, where: str) -> Policy:
    if dtypes is None:
        return Policy()
    if not isinstance(dtypes, Policy):
        raise TypeError(f"{where}: dtypes must be a Policy of dtypes, such as Policy(weights=jnp.bfloat16); got {dtypes!r}.")
    for site, dtype in dtypes._asdict().items():
        if dtype is None:
            continue
        if site in ("compute", "moments"):
            raise ValueError(f"{where}: native storage is for weights, gradients and updates; leave dtypes.{site} at None.")
        if np.dtype(dtype).name not in FORMATS or np.dtype(dtype) == np.float64:
            raise ValueError(f"{where}: dtypes.{site} must be float32 or a narrower float; got {np.dtype(dtype).name}.")
    return Policy(*(None if dtype is None else np.dtype(dtype) for dtype in dtypes))


def _round_site(tree: PyTree[Array], fmt: Format | BlockFormat | None, mode: Mode, key: PRNGKeyArray) -> PyTree[Array]:
    if fmt is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    if not isinstance(mode, Stochastic):
        return jax.tree.unflatten(structure, [_rounded(leaf, fmt, mode, None) for leaf in leaves])
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [_rounded(leaf, fmt, mode, keys[i]) for i, leaf in enumerate(leaves)])


def _moved(weights: Any, updates: Any, fmt: Format | BlockFormat | None, mode: Mode, key: PRNGKeyArray) -> PyTree[Array]:
    """The weights and their updates, added and rounded: under stochastic modes in proportion to the exact sum."""
    if fmt is None or not isinstance(mode, Stochastic):
        return _round_site(jax.tree.map(lambda w, u: w + uncontracted(u), weights, updates), fmt, mode, key)
    leaves, structure = jax.tree.flatten(weights)
    rows = zip(leaves, structure.flatten_up_to(updates), jax.random.split(key, len(leaves)), strict=True)
    return jax.tree.unflatten(structure, [_rounded_sum(w, u, fmt, mode, bits) for w, u, bits in rows])


def _rounded_sum(w: Array, u: Array, fmt: Format | BlockFormat, mode: Mode, key: PRNGKeyArray) -> Array:
    if isinstance(fmt, Format):
        return round_sum(w, u, fmt, mode, key=key)
    return _rounded(carried_sum(w, u, mode, key=jax.random.fold_in(key, 0)), fmt, mode, key)


def _rounded(leaf: Array, fmt: Format | BlockFormat, mode: Mode, key: PRNGKeyArray | None) -> Array:
    if isinstance(fmt, Format):
        return round_to(leaf, fmt, mode, key=key)
    return round_blocks(jnp.atleast_1d(leaf), fmt, -1, mode, key=key).reshape(jnp.shape(leaf))


def _grid(fmt: Format | BlockFormat, carrier: Carrier) -> tuple[Any, Any]:
    """Precision and emin of the stored weights, for the histogram; elements of a block have the spacing of their own binade."""
    return (fmt.precision, fmt.emin) if isinstance(fmt, Format) else (fmt.element.precision, carrier.emin)


def _round_moment(leaf: Array, fmt: Format) -> Array:
    return round_to(leaf, fmt) if leaf.dtype.name in CARRIERS else leaf


def _check_moment(leaf: Array, fmt: Format) -> Array:
    if leaf.dtype.name in CARRIERS:
        require_fits(fmt, CARRIERS[leaf.dtype.name], "start: Policy.moments, in the dtype of the optimizer's state")
    return leaf


def _store(tree: PyTree[Array], dtype: Any) -> PyTree[Array]:
    """Through a narrow dtype and back, as values in memory that no compiler may see through."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: widened(leaf.astype(dtype)), tree)


def batch_key(state: State) -> PRNGKeyArray:
    """The key of the batch of the next step."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), _BATCH)


def carrier_of_params(params: PyTree[Array]) -> Carrier:
    """What holds the simulated values of a step: float64 where every parameter is and 64-bit JAX is on, else float32.

    Example:
        >>> carrier_of_params({"w": jnp.ones(3)}).precision
        24
    """
    leaves = jax.tree.leaves(params)
    on = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    return FLOAT64_CARRIER if on and leaves and all(leaf.dtype == np.float64 for leaf in leaves) else FLOAT32_CARRIER
