"""Many training steps: scanned, in chunks, and side by side over formats and seeds.

A chunk is one compiled scan. Between chunks the caller has the state and the records in hand: progress, files, a stop. A sweep
is the same scan over steps that are vmapped over policies and seeds; formats are arguments, so all of them are one program.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import PRNGKeyArray
from precisionlab.arithmetic.policy import Policy, check_policy, split_policy, stack_policies
from precisionlab.numerics.carriers import FLOAT32_CARRIER, FLOAT64_CARRIER, Carrier
from precisionlab.numerics.formats import FLOAT32, FLOAT64
from precisionlab.stagnation.packing import pack, unpack
from precisionlab.training.steps import Record, State, Step, batch_key, carrier_of_params

__all__ = ["chunks", "read_records", "run", "sweep", "sweep_chunks"]


def chunks(
    step: Step,
    state: State,
    batch: Callable[[PRNGKeyArray], Any],
    formats: Policy = Policy(),
    *,
    steps: int,
    chunk: int | None = None,
) -> Iterator[tuple[State, Record]]:
    """Train in compiled chunks; between them the caller reports progress, writes results, or stops.

    Args:
        step: from `make_step`.
        state: where to begin.
        batch: `batch(key)` gives the batch of one step, jittable.
        formats: the formats of the simulated sites.
        steps: how many steps remain to be made.
        chunk: steps in a chunk, by default all of them.

    Yields:
        The state after each chunk, and its records stacked along a leading axis of steps.
    """
    numbers, complete = split_policy(check_policy(formats, "run", carrier_of_params(state.params)))
    advance = _advance(lambda now, policy: _packed(step(now, batch(batch_key(now)), complete(policy))))
    yield from _chunked(advance, state, numbers, steps, chunk)


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
        state: from `start`, or the last state of an earlier run, which this one then continues bit for bit.
        batch: `batch(key)` gives the batch of one step, jittable.
        formats: the formats of the simulated sites.
        steps: how many steps to make.
        chunk: steps between two calls of `progress`, by default all of them.
        progress: called with (steps done, steps in all) after each chunk.

    Returns:
        `(State, Record)` with a leading axis over the steps read (one in `every`).

    Example:
        >>> import optax
        >>> from precisionlab import make_step, start
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
    policies = list(formats)
    if not len(seeds):
        raise ValueError("sweep: got no seeds; give at least one, such as range(8).")
    carrier = _carrier(begin, policies)
    traced, complete = stack_policies(policies, FLOAT64 if carrier is FLOAT64_CARRIER else FLOAT32)
    # The step count is the same everywhere: unbatched, it keeps `every` a branch instead of a select. The key depends on the
    # seed alone: batches and random bits are drawn once for all formats, which pairs the arms besides saving their cost.
    inner = State(None, 0, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
    outer = inner._replace(key=None)  # pyright: ignore[reportArgumentType]
    records = (Record(None, 0, None, 0, 0, 0),)  # pyright: ignore[reportArgumentType]

    def one(now: State, policy: Policy) -> tuple[State, Record]:
        return _packed(step(now, batch(batch_key(now)), complete(policy)))

    def over(function: Callable[..., Any], state_axes: State, policy_axis: int | None, size: int) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=(state_axes, policy_axis), out_axes=(state_axes, *records), axis_size=size)

    def begun() -> State:
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        of_seeds = jax.vmap(lambda key, policy: begin(key, complete(policy)), in_axes=(0, None), out_axes=inner)
        return jax.jit(jax.vmap(of_seeds, in_axes=(None, 0), out_axes=outer, axis_size=len(policies)))(keys, traced)

    every_arm = over(over(one, inner, None, len(seeds)), outer, 0, len(policies))
    yield from _chunked(_advance(every_arm), begun() if state is None else state, traced, steps, chunk)


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
        batch: `batch(key)` gives the batch of one step; for one seed all formats see the same batches and random bits.
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
    states, records = zip(*sweep_chunks(step, begin, batch, formats, seeds, steps=steps, chunk=chunk), strict=True)
    moved = read_records(records, axis=0)
    ahead = partial(jnp.moveaxis, source=0, destination=2)
    arms = {name: jax.tree.map(ahead, getattr(moved, name)) for name in ("loss", "tally", "skipped", "scale")}
    return states[-1], moved._replace(**arms)


def _carrier(begin: Callable[[PRNGKeyArray, Policy], State], policies: Sequence[Policy]) -> Carrier:
    """The carrier of the parameters that `begin` makes, once every policy is known to fit it."""
    on = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    for policy in policies:
        check_policy(policy, "sweep", FLOAT64_CARRIER if on else FLOAT32_CARRIER)
    if not on or not policies:
        return FLOAT32_CARRIER

    def begun(policy: Policy) -> Carrier:
        return carrier_of_params(jax.eval_shape(lambda key: begin(key, policy), jax.random.key(0)).params)

    carrier = begun(policies[0])
    for policy in policies:
        check_policy(policy, "sweep", carrier)
    for policy in policies[1:]:
        # Stacked numbers are traced, and a traced format is not checked: what is beyond float32 begins once by itself.
        try:
            check_policy(policy, "sweep")
        except ValueError:
            begun(policy)
    return carrier


def _advance(one: Callable[[State, Policy], tuple[State, Record]]) -> Callable[..., tuple[State, Record]]:
    @partial(jax.jit, static_argnames="length", donate_argnums=0)
    def advance(state: State, formats: Policy, *, length: int) -> tuple[State, Record]:
        state, record = jax.lax.scan(lambda now, _: one(now, formats), state, None, length=length)
        return state, record._replace(tally=unpack(record.tally))

    return advance


def _packed(made: tuple[State, Record]) -> tuple[State, Record]:
    """Dozens of scalars a step would be dozens of writes in every turn of the scan."""
    state, record = made
    return state, record._replace(tally=pack(record.tally))


def _chunked(
    advance: Callable[..., tuple[State, Record]], state: State, formats: Policy, steps: int, chunk: int | None
) -> Iterator[tuple[State, Record]]:
    if steps < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"run: steps and chunk must be at least 1; got steps={steps}, chunk={chunk}.")
    done = 0
    while done < steps:
        length = min(chunk or steps, steps - done)
        # The caller may keep the state given or yielded (with it the parameters and the key): what is donated is a copy.
        state, record = jax.block_until_ready(advance(jax.tree.map(jnp.copy, state), formats, length=length))
        done += length
        yield state, record


def read_records(records: Sequence[Record], axis: int) -> Record:
    """Records of consecutive chunks as one, without the steps whose fates were not read."""
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), *records)
    rows = np.flatnonzero(np.asarray(joined.read))
    return jax.tree.map(lambda leaf: leaf[rows], joined)
