"""The spectrum of the learned function: before the slingshot, shrunk, shrunk and undone, and after the training that follows.

At the second time the function is what the shrunk weights compute, of which the essay speaks. There high frequencies can be
missing because the register lost them, or because the network bends less where its weights are small: tanh of little is a line,
and a ReLU network of several layers changes its kinks, since the factor acts once on a bias and twice on what passed through
a layer before it. So a fifth spectrum stands beside it, that of the same weights scaled in float64 and never rounded: there
is no register in it. At the third time only what fell off the register can be missing.

All of them are those of the function less its mean (`power.centred`), in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.experiments.slingshot.arms import Slung
from precisionlab.experiments.slingshot.power import Power, centred, power_above, power_spectrum
from precisionlab.experiments.slingshot.tasks import Task

__all__ = ["POINTS", "spectra_of"]

POINTS = ("before", "shrunk", "exact", "undone", "after")
"""When spectra are taken; exact is the shrunk function without a register."""


def spectra_of(
    task: Task,
    data: Any,
    tree: Callable[[np.ndarray], Any],
    flat: np.ndarray,
    slung: Sequence[Sequence[Slung]],
    final: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the learned functions vary with, at each of `POINTS`.

    Args:
        task: the problem, whose `lines` are looked along.
        data: of every seed.
        tree: from flat weights (., seeds, n) to parameters.
        flat: weights before, (registers, seeds, n).
        slung: what each arm made of them, a row for each register.
        final: weights after training on, (registers, arms, seeds, n).

    Returns:
        `high` and `total` power (registers, arms, points, seeds), in squared units of the output; `power` (registers, arms,
        points, frequencies), geometric means over seeds; `frequencies`.
    """
    lines = np.asarray(jax.jit(jax.vmap(task.lines))(data), np.float64)
    seeds, count, points = lines.shape[:3]
    learned = jax.jit(jax.vmap(task.network))
    with jax.enable_x64(True):
        inputs = jnp.asarray(lines.reshape(seeds, count * points, -1))

    def spectrum(weights: np.ndarray) -> np.ndarray:
        """Summed over outputs, the mean over lines: (seeds, frequencies)."""
        with jax.enable_x64(True):
            outputs = np.asarray(learned(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree(weights)), inputs))
        along = centred(np.moveaxis(outputs.reshape(seeds, count, points, -1), -1, -2))
        return power_spectrum(along, task.length).values.sum(-2).mean(-2)

    values = []
    for before, row, after in zip(flat, slung, final, strict=True):
        first = spectrum(before.astype(np.float64))
        for each, last in zip(row, after, strict=True):
            later = (each.weights.astype(np.float64), each.exact, each.undone, last.astype(np.float64))
            values.append(np.stack([first, *map(spectrum, later)]))
    whole = np.stack(values).reshape(len(flat), -1, *values[0].shape)
    power = Power(power_spectrum(np.zeros(points), task.length).frequencies, whole)
    return {
        "frequencies": power.frequencies,
        "high": power_above(power, task.cut),
        "total": power_above(power, 0),
        "power": np.exp(np.mean(np.log(np.maximum(power.values, 1e-300)), axis=3)),
    }
