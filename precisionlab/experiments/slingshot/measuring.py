"""One problem, slung: overfit in every register, sling in every arm, train on, and look at what became of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.experiments.slingshot.arms import Arm, Register, Slung, sling
from precisionlab.experiments.slingshot.looks import look_shares
from precisionlab.experiments.slingshot.spectra import spectra_of
from precisionlab.experiments.slingshot.tasks import Task
from precisionlab.experiments.slingshot.training import Training, flattened, unflatten
from precisionlab.numerics.modes import Mode

__all__ = ["measure_slingshot"]

_READ = 0.1
"""When spectra after training are taken; weight decay alone would scale by its arm's factor by then."""


def measure_slingshot(
    task: Task,
    registers: Mapping[str, Register],
    arms: Mapping[str, Arm],
    seeds: int,
    *,
    steps: int,
    longest: float,
    chunk: int,
    learning_rate: float,
    mode: Mode,
    spectra: bool = True,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, np.ndarray]:
    """Overfit in every register, sling in every arm, train on, and measure; one compiled program for all of it.

    Args:
        task: the problem.
        registers: either all simulated, or one native.
        arms: from `ARMS`.
        seeds: how many; each has data, initial weights, batches and random bits of its own, which all registers and arms share.
        steps: updates until the slingshot, a multiple of `chunk`.
        longest: for how long arms are trained on at most, as a share of the steps; at least 0.1. Each stops at its own reach.
        chunk: updates between two looks at the losses on the way to the slingshot.
        learning_rate: Adam's.
        mode: how weights are rounded where the register is simulated.
        spectra: whether to take the spectra of the learned functions.
        progress: called after each look with the looks done and those there are.

    Returns:
        With the axes F (registers), A (arms), S (seeds): `path_train` and `path_test` (F, S, looks before), `train`, `test` and
        `norm` (F, A, S, looks after, from the moment after the slingshot on; NaN beyond an arm's reach), `memorized` and
        `norm_before` (F, S), `changed`, the share of weights whose bits do not come back, and `changed_normal`, the share of
        those among the weights that did not underflow (F, A, S); and what `spectra_of` returns, the last point after a tenth of
        the steps.
    """
    shares = look_shares(longest)
    looks = {name: [int(np.ceil(share * steps)) for share in shares if share <= arm.reach] for name, arm in arms.items()}
    total, done = steps // chunk + 1 + sum(map(len, looks.values())), 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    dtype = next(iter(registers.values())).dtype
    formats = [register.fmt for register in registers.values()]
    training = Training(task, seeds, learning_rate=learning_rate, mode=mode, dtype=dtype)
    begun = training.begin(formats)
    ended = training.train(begun, formats, range(0, steps + 1, chunk), tell=tell)
    flat, tree = flattened(ended.params), unflatten(ended.params)
    leaves, parts = _places(ended.params)
    slung, trained = [], []
    for name, arm in arms.items():
        made = [sling(arm, weights, fmt, leaves, parts[arm.part], seed=17) for weights, fmt in zip(flat, formats, strict=True)]
        launched = tree(np.stack([each.weights for each in made]))
        onward = training.train(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.float32), launched),
            [each.fmt for each in made],
            looks[name],
            done=steps,
            moments=ended.moments if arm.moments else None,
            decay=(1 - arm.factor ** (1 / (_READ * steps))) / learning_rate if arm.kind == "decay" else 0.0,
            keep=shares.index(_READ),
            tell=tell,
        )
        slung.append(made)
        trained.append(onward)
    by_register = [[row[place] for row in slung] for place in range(len(formats))]
    after = {
        kind: np.stack([_padded(each.seen[kind], len(shares)) for each in trained], 1)
        for kind in ("train_loss", "test_loss", "norm")
    }
    found = {
        "path_train": ended.seen["train_loss"],
        "path_test": ended.seen["test_loss"],
        "memorized": ended.seen["memorized"][..., -1],
        "norm_before": ended.seen["norm"][..., -1],
        "train": after["train_loss"],
        "test": after["test_loss"],
        "norm": after["norm"],
        **_changes(flat, by_register, list(registers.values())),
    }
    if not spectra:
        return found
    final = np.stack([flattened(each.params) for each in trained], 1)
    return found | spectra_of(task, training.data, tree, flat, by_register, final)


def _padded(values: np.ndarray, looks: int) -> np.ndarray:
    """With NaN on the last axis, up to so many looks."""
    return np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, looks - values.shape[-1])], constant_values=np.nan)


def _changes(flat: np.ndarray, slung: Sequence[Sequence[Slung]], registers: Sequence[Register]) -> dict[str, np.ndarray]:
    """The shares of weights that are not what they were when the slingshot is undone."""
    changed = np.stack([[each.undone != before for each in row] for before, row in zip(flat, slung, strict=True)])
    least = np.array([2.0**register.fmt.emin for register in registers])
    normal = np.stack([[np.abs(each.weights) >= low for each in row] for low, row in zip(least, slung, strict=True)])
    share = (changed & normal).sum(-1) / np.maximum(normal.sum(-1), 1)
    return {"changed": changed.mean(-1), "changed_normal": share}


def _places(params: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The number of the leaf of each flat weight, and which weights are in each part."""
    found = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    leaves = np.repeat(np.arange(len(paths)), [int(np.prod(leaf.shape[2:])) for _, leaf in found])
    layers = sorted({path.split("/")[0] for path in paths})
    chosen = {
        "all": [True for _ in paths],
        "weights": [not path.endswith("/bias") for path in paths],
        "first": [path.startswith(f"{layers[0]}/") for path in paths],
        "last": [path.startswith(f"{layers[-1]}/") for path in paths],
    }
    return leaves, {part: np.array(which)[leaves] for part, which in chosen.items()}
