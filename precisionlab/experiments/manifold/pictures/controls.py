"""What must be seen: the theorem's own numbers, and the positive control."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import ABOVE, AMBER, BLUE, GREEN, VERMILION, finished
from precisionlab.experiments.manifold.theorem import SMOOTH
from precisionlab.runs.drawing import COLOURS

__all__ = ["draw_ring", "draw_theorem"]


def draw_theorem(measured: Measured, axes: Axes) -> Axes:
    """Eigenvalues of every net by magnitude, over the largest; left of the line the steep ones."""
    values, nets = measured.arrays["theorem_values"].values, [name for name in measured.coords["theorem_net"] if name in SMOOTH]
    constraints = measured.arrays["theorem_constraints"].values
    for index, name in enumerate(nets):
        colour = COLOURS[index % len(COLOURS)]
        for row in values[index]:
            sizes = -np.sort(-np.abs(row[np.isfinite(row)]))
            shown = np.maximum(sizes / sizes[0], 1e-18)
            place = np.arange(1, len(shown) + 1) - constraints[index]
            axes.semilogy(place, shown, ".", color=colour, markersize=4, alpha=0.5)
        axes.plot([], [], "o", color=colour, label=name)
    axes.axvline(0.5, color="0.4", linewidth=1)
    axes.set(xlabel="index - d r", ylabel="|eigenvalue| of the Hessian / the largest")
    return finished(axes, fontsize="small")


def draw_ring(measured: Measured, figure: Any) -> Any:
    """The ring with the end points at some precisions, and the share that collapsed against the precision."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_ends(measured, left)
    _draw_shares(measured, right)
    return figure


def _draw_ends(measured: Measured, axes: Axes) -> None:
    bits, ends = list(measured.coords["ring_bits"]), measured.arrays["ring_end"].values
    predicted = measured.arrays["ring_predicted"].values
    around = np.linspace(0, 2 * np.pi, 400)
    axes.plot(np.cos(around), np.sin(around), color="0.8", lw=1)
    middle = float(np.median(predicted)) if np.isfinite(predicted).all() else float(np.median(bits))
    wanted = (bits[0], middle - 1, middle, bits[-1])
    shown = sorted({min(range(len(bits)), key=lambda i, p=p: abs(bits[i] - p)) for p in wanted})
    for rank, (index, colour) in enumerate(zip(shown, (VERMILION, AMBER, GREEN, BLUE), strict=False)):
        places = ends[:, 0, index] * (1 + 0.1 * rank)
        axes.plot(*places.T, "o", color=colour, ms=6, mec="white", mew=0.6, alpha=0.85, label=f"p = {bits[index]}")
    corners = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    axes.plot(*corners.T, "x", color="black", ms=10, mew=2, label="the four minima")
    axes.set(aspect="equal", xlabel="x", ylabel="y", title="ends under nearest_even (each p a little farther out)")
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=8, loc="center")


def _draw_shares(measured: Measured, axes: Axes) -> None:
    bits, collapsed = list(measured.coords["ring_bits"]), measured.arrays["ring_collapsed"].values
    predicted = measured.arrays["ring_predicted"].values
    at = np.arange(len(bits))
    shares = np.array([(predicted <= p).mean() for p in bits])
    axes.step(at, 100 * shares, where="mid", color=BLUE, lw=1.8, label="predicted by the half-gap law")
    axes.plot(at, 100 * collapsed[:, 0].mean(0), "o", color=BLUE, ms=7, mec="white", label="nearest_even")
    axes.plot(at, 100 * collapsed[:, 1].mean(0), "^", color=VERMILION, ms=7, mec="white", label="stochastic")
    axes.set(xlabel="significand bits p", ylabel="collapsed to the four minima (% of seeds)", ylim=(-4, 108))
    axes.set_xticks(at, [str(p) for p in bits])
    finished(axes, ncols=2, fontsize=9, **ABOVE)
