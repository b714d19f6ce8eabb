"""What decides: the directions that are flat in a format, in real arithmetic, and in the format when no update is lost."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import BLUE, GREEN, VERMILION
from precisionlab.experiments.manifold.verdicts import flat_counts

__all__ = ["draw_counts"]

_ARMS = {
    "nearest": (VERMILION, "o", "in the format, rounded to nearest"),
    "free": (BLUE, "s", "in the format, no update lost (stochastic)"),
    "real": (GREEN, "D", "in real arithmetic (float64)"),
}


def draw_counts(parts: Mapping[str, Measured]) -> Figure:
    """A panel for each world, a column for each number of bits: every seed a dot, the median a bar."""
    first = next(iter(parts.values()))
    worlds = list(first.coords["directions_world"])
    figure, axes = plt.subplots(len(parts), len(worlds), figsize=(3.2 * len(worlds), 3.4 * len(parts)), layout="constrained")
    grid = np.reshape(axes, (len(parts), len(worlds)))
    for row, (data, part) in zip(grid, parts.items(), strict=True):
        size = int(part.arrays["directions_size"].values)
        for ax, world in zip(row, worlds, strict=True):
            bits, free = list(part.coords["directions_bits"])[:-1], list(part.coords["directions_free_bits"])
            columns = sorted({*bits, *free})
            places = [("nearest", p, columns.index(p) - 0.1) for p in bits]
            places += [("free", p, columns.index(p) + 0.22) for p in free]
            for arm, p, x in [*places, ("real", bits[0], float(len(columns)))]:
                counts = flat_counts(part, world, p, arm)
                colour, mark, _ = _ARMS[arm]
                spread = np.linspace(-0.08, 0.08, len(counts))
                ax.plot(x + spread, counts, mark, color=colour, ms=4, alpha=0.6, mew=0)
                ax.plot([x - 0.14, x + 0.14], [np.median(counts)] * 2, color=colour, lw=3)
            ax.set_xticks(range(len(columns) + 1), [*(f"{p} bits" for p in columns), "float64"])
            ax.set_ylim(-0.04 * size, 1.06 * size)
            ax.set_title(f"{world.replace('_', ' ')}{f', {data}' if len(parts) > 1 else ''}", fontsize="medium")
            ax.grid(alpha=0.25, axis="y")
        row[0].set_ylabel(f"flat directions, of {size}")
    for colour, mark, name in _ARMS.values():
        grid[0, 0].plot([], [], mark, color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
