"""The one training loop that experiments share: formats, modes and seeds as arms, and the fate of every update as rows.

`train_arms` sweeps formats and seeds in compiled chunks, once for each rounding mode, and after every chunk hands rows and
state to the journal, so that an interrupted run continues where it was and ends bit for bit as if it had never stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.common.experiment import Journal, Progress
from precisionlab.numerics.modes import Mode
from precisionlab.problems import Problem
from precisionlab.stagnation.fates import HISTOGRAM_EDGES, by_path
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import Record, State, make_step, start

__all__ = ["BINS", "FATES", "SUMS", "train_arms"]

FATES = ("landed", "swamped", "underflowed", "zero", "nonfinite")
SUMS = ("update_mass", "stagnated_mass", "moved_along", "update_square")
BINS = tuple(f"bin_{edge}" for edge in HISTOGRAM_EDGES[:-1])


def train_arms(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    formats: Mapping[str, Policy],
    modes: Mapping[str, Mode],
    seeds: Sequence[int],
    *,
    steps: int,
    chunk: int,
    every: int,
    journal: Journal,
    progress: Progress | None = None,
) -> None:
    """Train every combination of format, mode and seed, and write what happened to the journal.

    A row is one leaf of the parameters in one arm at one step that was read: columns `format`, `mode`, `seed`, `step`, `leaf`,
    `loss`, the counts `FATES`, the sums `SUMS`, the histogram `BINS`, and, at the last read of each chunk, the metrics of
    `problem.evaluate` (NaN elsewhere).

    Args:
        problem: what to train.
        optimizer: with what.
        formats: the policies by name; all of them are one compiled program.
        modes: the rounding modes by name; one program each.
        seeds: the seeds, which pair the arms.
        steps: updates an arm, a multiple of `every`.
        chunk: updates between two visits to the journal, a multiple of `every`.
        every: read the fates of one update in `every`.
        journal: where rows go, and what was done before.
        progress: called after every chunk.
    """
    per_mode = -(-steps // chunk)
    total = per_mode * len(modes)
    done, saved = journal.resume()
    policies = list(formats.values())
    evaluate = jax.jit(jax.vmap(jax.vmap(problem.evaluate)))

    def begin(key: Any, policy: Policy) -> State:
        return start(problem.init(jax.random.fold_in(key, 0)), optimizer, policy, key=key)

    for index, (mode_name, mode) in enumerate(modes.items()):
        first = done - index * per_mode
        if first >= per_mode:
            continue
        step = make_step(problem.loss, optimizer, modes=mode, every=every)
        state = _restored(begin, policies[0], saved) if first > 0 and saved is not None else None
        remaining = steps - max(first, 0) * chunk
        arms = sweep_chunks(step, begin, problem.batch, policies, seeds, steps=remaining, chunk=chunk, state=state)
        for segment, (after, record) in enumerate(arms, max(first, 0)):
            metrics = {name: np.asarray(values) for name, values in evaluate(after.params).items()}
            columns = _columns(record, metrics, tuple(formats), mode_name, seeds)
            journal.append(columns, [np.asarray(leaf) for leaf in jax.tree.leaves(_without_keys(after))])
            if progress is not None:
                progress(index * per_mode + segment + 1, total, f"{mode_name}: {len(policies)} formats x {len(seeds)} seeds")


def _without_keys(state: State) -> State:
    return state._replace(key=jax.random.key_data(state.key))


def _restored(begin: Callable[[Any, Policy], State], policy: Policy, saved: Sequence[np.ndarray]) -> State:
    structure = jax.tree.structure(jax.eval_shape(lambda: _without_keys(begin(jax.random.key(0), policy))))
    state = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in saved])
    return state._replace(key=jax.random.wrap_key_data(state.key))


def _columns(
    record: Record, metrics: Mapping[str, np.ndarray], formats: Sequence[str], mode: str, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """The rows of one chunk, in long form: axes (step, format, seed) for each leaf."""
    read = np.flatnonzero(np.asarray(record.read))
    steps, loss = np.asarray(record.step)[read], np.asarray(record.loss)[read]
    shape = loss.shape
    axes = {
        "format": np.asarray(formats)[None, :, None],
        "mode": np.asarray(mode),
        "seed": np.asarray(seeds)[None, None, :],
        "step": steps[:, None, None],
    }
    parts: list[dict[str, np.ndarray]] = []
    for leaf, fates in by_path(record.tally).items():
        part = {name: np.broadcast_to(values, shape) for name, values in axes.items()}
        part["leaf"] = np.broadcast_to(np.asarray(leaf), shape)
        part["loss"] = loss
        part |= {name: np.asarray(getattr(fates, name))[read] for name in (*FATES, *SUMS)}
        part |= {name: np.asarray(fates.histogram)[read][..., position] for position, name in enumerate(BINS)}
        for name, values in metrics.items():
            at_end = np.full(shape, np.nan)
            at_end[-1] = values
            part[name] = at_end
        parts.append(part)
    return {name: np.concatenate([part[name].reshape(-1) for part in parts]) for name in parts[0]}
