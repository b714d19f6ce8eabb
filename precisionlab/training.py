"""Training steps as pure functions of state, batch and formats.

`step(state, batch, formats) -> (State, Record)`: `State` is what the next step needs, `Record` what one looks at. Functions
(the loss, the optimizer, the rounding modes) are closed over; numbers (the formats) are arguments, so a sweep over formats and
seeds is one compiled program.

Two ways to hold narrow values, which agree bit for bit wherever the native arithmetic is IEEE-faithful:

    simulated   float32 arrays rounded by integers to any `Format` at each site of the `Policy`
    native      arrays really stored in a narrow dtype (`dtypes=Policy(weights=jnp.bfloat16, ...)`)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab._typing import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from precisionlab.formats import FORMATS, Format
from precisionlab.policy import Policy, check_policy, stack_policies
from precisionlab.rounding import Mode, Stochastic, check_mode, nearest_even, round_to
from precisionlab.stagnation import Ages, Tally, start_ages, tally, update_ages, widened

__all__ = ["Record", "State", "chunks", "make_step", "run", "start", "sweep", "sweep_chunks"]

_SITES = {name: index for index, name in enumerate(Policy._fields)}
_BATCH = len(_SITES)


class State(NamedTuple):
    """What the next step needs.

    Attributes:
        step: updates made so far.
        params: the stored weights.
        optimizer: the optimizer's state.
        key: the root of all randomness; the bits of a step derive from (key, step), so a resumed run repeats them.
        ages: when each entry last moved, or None if nobody asked.
    """

    step: Int[Array, ""]
    params: PyTree[Array]
    optimizer: Any
    key: PRNGKeyArray
    ages: Ages | None


class Record(NamedTuple):
    """What one looks at; stacked along a leading axis by `run`, and after axes for format and seed by `sweep`.

    Attributes:
        step: the number of the update, from 1.
        loss: the loss before it.
        read: whether the fates were read in this step (one in `every`); if not, the tally is all zeros.
        tally: a `Tally` for each leaf of the parameters.
    """

    step: Int[Array, ""]
    loss: Float[Array, ""]
    read: Bool[Array, ""]
    tally: PyTree[Tally]


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
) -> State:
    """The state before the first step, with the weights already on their grid (rounded to nearest even).

    Args:
        params: float32 weights.
        optimizer: the Optax optimizer.
        formats: the formats of the simulated sites; only `weights` and `moments` matter here.
        key: root of all randomness, a JAX key or a seed.
        dtypes: native storage instead of simulation, see `make_step`.
        ages: remember when each entry last moved (4 bytes an entry).

    Returns:
        The initial `State`.

    Raises:
        TypeError, ValueError: for a policy that is none, or formats that do not fit float32.
    """
    check_policy(formats, "start")
    native = _checked_dtypes(dtypes, "start")
    if formats.weights is not None:
        params = jax.tree.map(lambda leaf: round_to(leaf, formats.weights), params)
    if native.weights is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(native.weights), params)
    root = jax.random.key(key) if isinstance(key, int | np.integer) else key
    return State(jnp.int32(0), params, optimizer.init(jax.tree.map(widened, params)), root, start_ages(params) if ages else None)


def make_step(
    loss: Callable[[PyTree[Array], Any], Float[Array, ""]],
    optimizer: optax.GradientTransformation,
    *,
    modes: Mode | Policy = nearest_even,
    every: int = 1,
    detail: bool = True,
    dtypes: Policy | None = None,
) -> Step:
    """A training step, to be jitted, scanned or vmapped.

    Args:
        loss: `loss(params, batch)` gives a scalar; it sees float32 parameters.
        optimizer: any Optax optimizer, learning rate included.
        modes: one rounding mode for every site, or a `Policy` of modes (None there means nearest_even).
        every: read the fates of one update in `every`.
        detail: False counts fates alone, without masses, descent quality and histogram, at a quarter of the cost.
        dtypes: a `Policy` of native dtypes for `weights`, `gradients` and `updates`: arrays are then really stored in them,
            rounded by the hardware's or the compiler's casts, and `formats` must stay empty.

    Returns:
        `step(state, batch, formats=Policy()) -> (State, Record)`. The numbers of the formats may be traced.

    Raises:
        ValueError, TypeError: for a mode that is no function, an `every` that is no positive whole number, a dtype that no
            format describes.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> optimizer, formats = optax.sgd(0.1), Policy(weights=BFLOAT16)
        >>> step = make_step(lambda w, batch: jnp.sum((w - batch) ** 2), optimizer)
        >>> state = start(jnp.ones(3), optimizer, formats)
        >>> state, record = jax.jit(step)(state, jnp.zeros(3), formats)
        >>> state.params.tolist(), int(record.tally.landed)
        ([0.80078125, 0.80078125, 0.80078125], 3)
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"make_step: every must be a whole number of at least 1; got {every!r}.")
    site_modes = Policy(*(mode or nearest_even for mode in modes)) if isinstance(modes, Policy) else Policy(*[modes] * len(_SITES))
    for mode in site_modes:
        check_mode(mode, "make_step")
    native = _checked_dtypes(dtypes, "make_step")

    def step(state: State, batch: Any, formats: Policy = Policy()) -> tuple[State, Record]:
        check_policy(formats, "step")
        if dtypes is not None and any(fmt is not None for fmt in formats):
            raise ValueError("step: this step stores native dtypes; formats can only be simulated, so leave them at Policy().")
        key = jax.random.fold_in(state.key, state.step)

        def at(site: str, tree: PyTree[Array]) -> PyTree[Array]:
            return _round_site(tree, getattr(formats, site), getattr(site_modes, site), jax.random.fold_in(key, _SITES[site]))

        weights = jax.tree.map(widened, state.params)
        value, gradients = jax.value_and_grad(loss)(weights, batch)
        gradients = _store(at("gradients", gradients), native.gradients)
        updates, inner = optimizer.update(gradients, state.optimizer, weights)
        if formats.moments is not None:
            inner = optax.tree.map_params(
                optimizer, partial(_round_moment, fmt=formats.moments), inner, transform_non_params=lambda leaf: leaf
            )
        kept = _store(at("updates", updates), native.updates)
        moved = at("weights", jax.tree.map(lambda w, u: w + _uncontracted(u), weights, kept))
        params = moved if native.weights is None else jax.tree.map(lambda leaf: leaf.astype(native.weights), moved)

        def look() -> PyTree[Tally]:
            grid = None if formats.weights is None else (formats.weights.precision, formats.weights.emin)
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
        return State(number, params, inner, state.key, ages), Record(number, value, read, fates)

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


def _round_site(tree: PyTree[Array], fmt: Format | None, mode: Mode, key: PRNGKeyArray) -> PyTree[Array]:
    if fmt is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    if not isinstance(mode, Stochastic):
        return jax.tree.unflatten(structure, [round_to(leaf, fmt, mode) for leaf in leaves])
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [round_to(leaf, fmt, mode, key=keys[i]) for i, leaf in enumerate(leaves)])


def _round_moment(leaf: Array, fmt: Format) -> Array:
    return round_to(leaf, fmt) if leaf.dtype == jnp.float32 else leaf


def _store(tree: PyTree[Array], dtype: Any) -> PyTree[Array]:
    """Through a narrow dtype and back, as values in memory that no compiler may see through."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: widened(leaf.astype(dtype)), tree)


def _uncontracted(u: Array) -> Array:
    """u, kept apart from the sum that follows, so that a product in it is rounded before it is added.

    CPU compilers contract a * b + c into one rounding, through barriers and bitcasts; a select on NaN they leave alone.
    """
    return jnp.where(u == u, u, jnp.asarray(jnp.nan, u.dtype))


def chunks(
    step: Step, state: State, batch: Callable[[PRNGKeyArray], Any], formats: Policy = Policy(), *, steps: int, chunk: int | None = None
) -> Iterator[tuple[State, Record]]:
    """Train in compiled chunks; between them the caller reports progress, writes results, or stops.

    Args:
        step: from `make_step`.
        state: where to begin; its buffers are donated.
        batch: `batch(key)` gives the batch of one step, jittable.
        formats: the formats of the simulated sites.
        steps: how many steps remain to be made.
        chunk: steps in a chunk, by default all of them.

    Yields:
        The state after each chunk, and its records stacked along a leading axis of steps.
    """
    check_policy(formats, "run")
    advance = _advance(lambda now, policy: step(now, batch(_batch_key(now)), policy))
    yield from _chunked(advance, state, formats, steps, chunk)


def run(
    step: Step,
    state: State,
    batch: Callable[[PRNGKeyArray], Any],
    formats: Policy = Policy(),
    *,
    steps: int,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[State, Record]:
    """Train for some steps, scanned on the device, and give the last state with the records of the steps that were read.

    Args:
        step: from `make_step`.
        state: from `start`, or the last state of an earlier run, which this one then continues bit for bit. Its buffers are
            donated.
        batch: `batch(key)` gives the batch of one step, jittable.
        formats: the formats of the simulated sites.
        steps: how many steps to make.
        chunk: steps between two calls of `progress`, by default all of them.
        progress: called with (steps done, steps in all) after each chunk.

    Returns:
        `(State, Record)` with a leading axis over the steps read (one in `every`).

    Example:
        >>> optimizer = optax.sgd(0.1)
        >>> step = make_step(lambda w, batch: jnp.sum((w - batch) ** 2), optimizer)
        >>> state, record = run(step, start(jnp.ones(3), optimizer), lambda key: jnp.zeros(3), steps=4)
        >>> record.loss.shape, int(state.step)
        ((4,), 4)
    """
    records = []
    for now, record in chunks(step, state, batch, formats, steps=steps, chunk=chunk):
        state = now
        records.append(record)
        if progress is not None:
            progress(sum(part.read.shape[0] for part in records), steps)
    return state, read_records(records, axis=0)


def sweep_chunks(
    step: Step,
    begin: Callable[[PRNGKeyArray, Policy], State],
    batch: Callable[[PRNGKeyArray], Any],
    formats: Sequence[Policy],
    seeds: Sequence[int],
    *,
    steps: int,
    chunk: int | None = None,
    state: State | None = None,
) -> Iterator[tuple[State, Record]]:
    """`sweep`, in compiled chunks like those of `chunks`; `state` resumes from the state of an earlier chunk."""
    policies = [check_policy(policy, "sweep") for policy in formats]
    if not len(seeds):
        raise ValueError("sweep: got no seeds; give at least one, such as range(8).")
    traced, complete = stack_policies(policies)
    # The step count is the same everywhere: unbatched, it keeps `every` a branch instead of a select. The key depends on the
    # seed alone: batches and random bits are drawn once for all formats, which pairs the arms besides saving their cost.
    inner = State(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    outer = inner._replace(key=None)  # pyright: ignore[reportArgumentType]
    records = (Record(None, 0, None, 0),)  # pyright: ignore[reportArgumentType]

    def one(now: State, policy: Policy) -> tuple[State, Record]:
        return step(now, batch(_batch_key(now)), complete(policy))

    def over(function: Callable[..., Any], state_axes: State, policy_axis: int | None, size: int) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=(state_axes, policy_axis), out_axes=(state_axes, *records), axis_size=size)

    if state is None:
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        first = jax.vmap(lambda key, policy: begin(key, complete(policy)), in_axes=(0, None), out_axes=inner)
        state = jax.jit(jax.vmap(first, in_axes=(None, 0), out_axes=outer, axis_size=len(policies)))(keys, traced)
    every_arm = over(over(one, inner, None, len(seeds)), outer, 0, len(policies))
    yield from _chunked(_advance(every_arm), state, traced, steps, chunk)


def sweep(
    step: Step,
    begin: Callable[[PRNGKeyArray, Policy], State],
    batch: Callable[[PRNGKeyArray], Any],
    formats: Sequence[Policy],
    seeds: Sequence[int],
    *,
    steps: int,
    chunk: int | None = None,
) -> tuple[State, Record]:
    """Train every combination of formats and seeds side by side, in one compiled program.

    Args:
        step: from `make_step`.
        begin: `begin(key, policy)` gives the first state, such as `lambda key, policy: start(init(key), optimizer, policy,
            key=key)`.
        batch: `batch(key)` gives the batch of one step; all formats see the same batches for the same seed.
        formats: the policies, one for each arm.
        seeds: the seeds, which pair the arms.
        steps: how many steps to make.
        chunk: steps in one compiled call, by default all of them.

    Returns:
        `(State, Record)`: leaves of the state have leading axes (formats, seeds), except `step` and `key` (seeds only);
        leaves of the record (formats, seeds, steps read), except `step` and `read`.

    Raises:
        ValueError: if there are no formats or no seeds.
    """
    records = []
    final = None
    for final, record in sweep_chunks(step, begin, batch, formats, seeds, steps=steps, chunk=chunk):  # noqa: B007
        records.append(record)
    assert final is not None
    moved = read_records(records, axis=0)
    ahead = partial(jnp.moveaxis, source=0, destination=2)
    return final, moved._replace(loss=ahead(moved.loss), tally=jax.tree.map(ahead, moved.tally))


def _batch_key(state: State) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), _BATCH)


def _advance(one: Callable[[State, Policy], tuple[State, Record]]) -> Callable[..., tuple[State, Record]]:
    @partial(jax.jit, static_argnames="length", donate_argnums=0)
    def advance(state: State, formats: Policy, *, length: int) -> tuple[State, Record]:
        return jax.lax.scan(lambda now, _: one(now, formats), state, None, length=length)

    return advance


def _chunked(
    advance: Callable[..., tuple[State, Record]], state: State, formats: Policy, steps: int, chunk: int | None
) -> Iterator[tuple[State, Record]]:
    if steps < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"run: steps and chunk must be at least 1; got steps={steps}, chunk={chunk}.")
    done = 0
    while done < steps:
        length = min(chunk or steps, steps - done)
        state, record = jax.block_until_ready(advance(state, formats, length=length))
        done += length
        yield state, record
        # The caller may have kept the yielded state; the next call donates its own copy.
        state = jax.tree.map(jnp.copy, state)


def read_records(records: Sequence[Record], axis: int) -> Record:
    """Records of consecutive chunks as one, without the steps whose fates were not read."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), *records)
    rows = np.flatnonzero(np.asarray(joined.read))
    return jax.tree.map(lambda leaf: leaf[rows], joined)
