"""Decay and walkers: two laws of what a format follows, and what it does not."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import BLUE, DOT, VERMILION, finished
from precisionlab.runs.drawing import COLOURS

__all__ = ["draw_decay", "draw_walkers"]


def draw_decay(measured: Measured, axes: Axes) -> Axes:
    """Motion along the old manifold, relative to float64's, against the bits: every seed thin, their mean with marks."""
    offsets = np.asarray(measured.coords["decay_offset"], np.float64)
    for i, (dial, colour) in enumerate(zip(measured.coords["decay_dial"], COLOURS[1:], strict=False)):
        motion = measured.arrays["decay_motion"].values[i]
        axes.plot(dial + offsets, motion, color=colour, lw=0.6, alpha=0.3)
        axes.plot(dial + offsets, motion.mean(axis=1), "o-", color=colour, lw=2, label=f"lr mu = 2^-{dial}", **DOT)
        axes.axvline(dial, color=colour, lw=1, ls="--")
        axes.annotate("predicted", (dial, 1.08), xytext=(-3, 0), textcoords="offset points", ha="right", color=colour)
    axes.set(xlabel="significand bits p", ylabel="motion, relative to float64's", ylim=(-0.05, 1.18))
    return finished(axes)


def draw_walkers(measured: Measured, axes: Axes) -> Axes:
    """Directions in which walkers spread, against the number of points: every seed a dot, and n - d as a line."""
    points, n = np.asarray(measured.coords["walkers_points"]), int(measured.arrays["walkers_size"].values)
    axes.plot(points, n - points, color="0.4", lw=1.5, label="geometry: n - d")
    axes.axhline(0, color="0.4", lw=1.5, ls=":", label="representation: none without lost updates")
    for k, (bits, colour) in enumerate(zip(measured.coords["walkers_bits"], (VERMILION, BLUE, *COLOURS[3:]), strict=False)):
        counts = measured.arrays["walkers_flat"].values[:, k]
        spread = np.linspace(-0.15, 0.15, counts.shape[1]) + 0.4 * k
        for d, row in zip(points, counts, strict=True):
            axes.plot(d + spread, row, "o", color=colour, label=f"{bits} bits" if d == points[0] else None, **DOT)
        decayed = measured.arrays["walkers_decayed"].values[k]
        axes.plot(points[-2] + spread, decayed, "s", color=colour, label=f"{bits} bits, with decay", **DOT)
    axes.set(xlabel="data points d", ylabel=f"directions in which walkers spread, of {n}", xticks=points)
    return finished(axes)
