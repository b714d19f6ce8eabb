"""One problem, slung: overfit in every register, sling in every arm, train on, and look at the learned functions three times.

Before; after shrinking and undoing it, which shows what fell off the register and nothing else; and after the training
that follows. All registers, arms and seeds are trained side by side by the sweep that everything else uses, in two compiled
programs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy, stack_policies
from precisionlab.experiments.slingshot.arms import Arm, Register, Slung, sling
from precisionlab.experiments.slingshot.power import Power, power_above, power_spectrum
from precisionlab.experiments.slingshot.tasks import Task
from precisionlab.numerics.modes import Mode
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import State, make_step, start

__all__ = ["POINTS", "measure_slingshot"]

POINTS = ("before", "undone", "after")
"""When the spectrum of the learned function is taken."""


def measure_slingshot(
    task: Task,
    registers: Mapping[str, Register],
    arms: Mapping[str, Arm],
    seeds: int,
    *,
    steps: int,
    more: int,
    chunk: int,
    learning_rate: float,
    mode: Mode,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, np.ndarray]:
    """Overfit in every register, sling in every arm, train on, and measure; two compiled trainings for all of it.

    Args:
        task: the problem.
        registers: either all simulated, or one native.
        arms: from `ARMS`; "none" must be among them.
        seeds: how many; each has data, initial weights, batches and random bits of its own, which all registers and arms share.
        steps: updates until the slingshot, a multiple of `chunk`.
        more: and after it, too.
        chunk: updates between two looks at the losses.
        learning_rate: Adam's; its moments begin anew in every arm.
        mode: how weights are rounded where the register is simulated.
        progress: called after each chunk with the chunks done and those there are.

    Returns:
        With the axes F (registers), A (arms), S (seeds): `path_train` and `path_test` (F, S, looks before), `train` and `test`
        (F, A, S, looks after, from the moment after the slingshot on), `memorized` (F, S), `high` and `total` power
        (F, A, points, S), `power` (F, A, points, frequencies; geometric means over seeds), `changed`, the share of weights
        whose bits do not come back, and `changed_normal`, the share of those among the weights that did not underflow (F, A,
        S); `frequencies`.
    """
    dtype = next(iter(registers.values())).dtype
    native = None if dtype is None else Policy(weights=dtype)
    optimizer = optax.chain(
        optax.scale_by_adam(),
        optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=0.0),
        optax.scale(-learning_rate),
    )
    rounding: dict[str, Any] = {"dtypes": native} if native else {"modes": mode}
    inner = make_step(task.loss, optimizer, every=chunk, detail=False, **rounding)
    keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
    data = jax.jit(jax.vmap(lambda key: task.data(_data_key(key))))(keys)
    looks = jax.jit(jax.vmap(jax.vmap(task.evaluate), in_axes=(0, None)))

    def step(state: State, key: Any, formats: Policy = Policy()) -> Any:
        return inner(state, task.batch(key, task.data(_data_key(state.key))), formats)

    def begin(key: Any, policy: Policy) -> State:
        return start(task.init(jax.random.fold_in(key, 0)), optimizer, policy, key=key, dtypes=native)

    def look(params: Any) -> dict[str, np.ndarray]:
        """The metrics of all networks, as many at a time as there are registers: one compiled program for both trainings."""
        wide, size = _as_float32(params), len(registers)
        starts = range(0, len(jax.tree.leaves(wide)[0]), size)
        parts = [looks(jax.tree.map(lambda leaf, at=at: leaf[at : at + size], wide), data) for at in starts]
        return {name: np.concatenate([np.asarray(part[name], np.float64) for part in parts]) for name in parts[0]}

    def train(policies: Sequence[Policy], params: Any, decay: Sequence[float], done: int, length: int) -> tuple[Any, Any]:
        """The last parameters, and each metric with a last axis of looks, the first one before training."""
        fresh: Any = jax.jit(jax.vmap(jax.vmap(optimizer.init)))(_as_float32(params))
        rates = jnp.asarray(np.repeat(np.array(decay)[:, None], seeds, axis=1), jnp.float32)
        fresh = (fresh[0], fresh[1]._replace(hyperparams={"weight_decay": rates}), *fresh[2:])
        state, seen = State(jnp.int32(done), params, fresh, keys, None), [look(params)]
        arms = sweep_chunks(step, begin, lambda key: key, policies, range(seeds), steps=length, chunk=chunk, state=state)
        for number, (now, _) in enumerate(arms, -(-done // chunk) + 1):
            params = now.params
            seen.append(look(params))
            progress(number, -(-(steps + more) // chunk))
        return params, {name: np.stack([each[name] for each in seen], -1) for name in seen[0]}

    policies = [Policy() if native else Policy(weights=register.fmt) for register in registers.values()]
    params, path = train(policies, _initial(begin, policies, keys), [0.0] * len(registers), 0, steps)
    flat, tree = _flattened(params), _unflatten(params)
    leaves, parts = _places(params)
    slung = [
        [sling(arm, flat[place], register.fmt, leaves, parts[arm.part], seed=17) for arm in arms.values()]
        for place, register in enumerate(registers.values())
    ]
    launched = tree(np.stack([each.weights for row in slung for each in row]))
    launched = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.float32), launched)
    decay = [0.0 if arm.kind != "decay" else (1 - arm.factor ** (1 / more)) / learning_rate for arm in arms.values()]
    onward = [Policy() if native else Policy(weights=each.fmt) for row in slung for each in row]
    after, course = train(onward, launched, decay * len(registers), steps, more)

    grid = (len(registers), len(arms), seeds)
    final = _flattened(after).reshape(*grid, -1)
    return {
        "path_train": path["train_loss"],
        "path_test": path["test_loss"],
        "memorized": path["memorized"][..., -1],
        "train": course["train_loss"].reshape(*grid, -1),
        "test": course["test_loss"].reshape(*grid, -1),
        **_changes(flat, slung, list(registers.values())),
        **_powers(task, data, tree, flat, slung, final),
    }


def _changes(flat: np.ndarray, slung: Sequence[Sequence[Slung]], registers: Sequence[Register]) -> dict[str, np.ndarray]:
    """The shares of weights that are not what they were when the slingshot is undone."""
    changed = np.stack([[each.undone != before for each in row] for before, row in zip(flat, slung, strict=True)])
    least = np.array([2.0**register.fmt.emin for register in registers])
    normal = np.stack([[np.abs(each.weights) >= low for each in row] for low, row in zip(least, slung, strict=True)])
    share = (changed & normal).sum(-1) / np.maximum(normal.sum(-1), 1)
    return {"changed": changed.mean(-1), "changed_normal": share}


def _powers(
    task: Task,
    data: Any,
    tree: Callable[[np.ndarray], Any],
    flat: np.ndarray,
    slung: Sequence[Sequence[Slung]],
    final: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the learned functions vary with, at the three points, computed in float64."""
    lines = np.asarray(jax.jit(jax.vmap(task.lines))(data), np.float64)
    seeds, count, points = lines.shape[:3]
    inputs = lines.reshape(seeds, count * points, -1)
    learned = jax.jit(jax.vmap(jax.vmap(task.network), in_axes=(0, None)))

    def spectra(weights: np.ndarray) -> np.ndarray:
        """Summed over outputs, the mean over lines: (arms, seeds, frequencies)."""
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree(weights))
            outputs = np.asarray(learned(params, jnp.asarray(inputs)))
        along = np.moveaxis(outputs.reshape(*outputs.shape[:2], count, points, -1), -1, -2)
        return power_spectrum(along, task.length).values.sum(-2).mean(-2)

    values = []
    for before, row, after in zip(flat, slung, final, strict=True):
        same = np.broadcast_to(before.astype(np.float64), after.shape)
        looks = (same, np.stack([each.undone for each in row]), after.astype(np.float64))
        values.append(np.stack([spectra(weights) for weights in looks], 1))
    power = Power(power_spectrum(np.zeros(points), task.length).frequencies, np.stack(values))
    return {
        "frequencies": power.frequencies,
        "high": power_above(power, task.cut),
        "total": power_above(power, 0),
        "power": np.exp(np.mean(np.log(np.maximum(power.values, 1e-300)), axis=3)),
    }


def _initial(begin: Callable[[Any, Policy], State], policies: Sequence[Policy], keys: Any) -> Any:
    """The parameters with which training begins, rounded as they are stored."""
    traced, complete = stack_policies(policies)
    of_seeds = jax.vmap(lambda key, policy: begin(key, complete(policy)).params, in_axes=(0, None))
    return jax.jit(jax.vmap(of_seeds, in_axes=(None, 0), axis_size=len(policies)))(keys, traced)


def _data_key(key: Any) -> Any:
    return jax.random.fold_in(key, 1)


def _as_float32(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def _flattened(params: Any) -> np.ndarray:
    """Leaves with two leading axes as one float32 array (., seeds, n)."""
    return np.concatenate([np.asarray(leaf, np.float32).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(params)], -1)


def _unflatten(params: Any) -> Callable[[np.ndarray], Any]:
    """The way back, for any leading axes."""
    structure, shapes = jax.tree.structure(params), [leaf.shape[2:] for leaf in jax.tree.leaves(params)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def tree(values: np.ndarray) -> Any:
        pieces = zip(np.split(values, ends, axis=-1), shapes, strict=True)
        return jax.tree.unflatten(structure, [piece.reshape(*values.shape[:-1], *shape) for piece, shape in pieces])

    return tree


def _places(params: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The number of the leaf of each flat weight, and which weights are in each part."""
    found = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    leaves = np.repeat(np.arange(len(paths)), [math.prod(leaf.shape[2:]) for _, leaf in found])
    layers = sorted({path.split("/")[0] for path in paths})
    chosen = {
        "all": [True for _ in paths],
        "weights": [not path.endswith("/bias") for path in paths],
        "first": [path.startswith(f"{layers[0]}/") for path in paths],
        "last": [path.startswith(f"{layers[-1]}/") for path in paths],
    }
    return leaves, {part: np.array(which)[leaves] for part, which in chosen.items()}
