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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab._typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from precisionlab.arithmetic import Accumulation, simulate
from precisionlab.arithmetic.policy import Policy, check_policy
from precisionlab.arithmetic.rules import check_mode_rules, every_rule
from precisionlab.numerics.carriers import FLOAT32_CARRIER, FLOAT64_CARRIER, Carrier, widened
from precisionlab.numerics.formats import is_concrete
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, nearest_even
from precisionlab.stagnation.ages import Ages, start_ages, update_ages
from precisionlab.stagnation.counting import tally
from precisionlab.stagnation.fates import Tally
from precisionlab.training.loss_scaling import LossScale, all_finite, next_scale, scale_loss, select_step, unscale
from precisionlab.training.sites import (
    check_moments,
    checked_dtypes,
    grid_of,
    move_weights,
    round_moments,
    round_site,
    store_natively,
)

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
    native = checked_dtypes(dtypes, "start")
    if loss_scale is not None and not isinstance(loss_scale, LossScale):
        raise TypeError(
            f"start: loss_scale must be a LossScale, such as dynamic_loss_scale() or static_loss_scale(1024); got "
            f"{loss_scale!r}."
        )
    root = jax.random.key(key) if isinstance(key, int | np.integer) else key
    params = round_site(params, formats.weights, nearest_even, root)
    if native.weights is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(native.weights), params)
    inner = optimizer.init(jax.tree.map(widened, params))
    if formats.moments is not None and is_concrete(formats.moments):
        check_moments(optimizer, inner, formats.moments)
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
    native = checked_dtypes(dtypes, "make_step")

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
            return round_site(tree, getattr(formats, site), getattr(site_modes, site), jax.random.fold_in(key, _SITES[site]))

        weights = jax.tree.map(widened, state.params)
        scaling = state.loss_scale
        (_, value), gradients = computed(weights, batch, scaling, formats.compute, key, carrier)
        gradients = store_natively(at("gradients", gradients), native.gradients)
        finite = None
        if scaling is not None:
            finite, gradients = all_finite(gradients), unscale(scaling, gradients)
        updates, inner = optimizer.update(gradients, state.optimizer, weights)
        if formats.moments is not None:
            inner = round_moments(optimizer, inner, formats.moments)
        if finite is not None:
            updates = select_step(finite, updates, jax.tree.map(jnp.zeros_like, updates))
        kept = store_natively(at("updates", updates), native.updates)
        at_weights = formats.weights, site_modes.weights, jax.random.fold_in(key, _SITES["weights"])
        moved = move_weights(weights, kept, *at_weights)
        params = moved if native.weights is None else jax.tree.map(lambda leaf: leaf.astype(native.weights), moved)
        if finite is not None:
            params, inner = select_step(finite, (params, inner), (state.params, state.optimizer))

        def look() -> PyTree[Tally]:
            grid = None if formats.weights is None else grid_of(formats.weights, carrier)
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
