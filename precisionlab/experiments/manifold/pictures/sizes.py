"""Realistic sizes: what formats see, answer and reduce, against the data, and against n as it passes d r."""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import AMBER, BLUE, DOT, GREEN, PINK, VERMILION, finished

__all__ = ["draw_answered", "draw_reduced", "draw_seen", "draw_sizes", "draw_swept"]

_COLOURS = (VERMILION, AMBER, GREEN, PINK, BLUE)
_GEOMETRY: dict[str, Any] = {"color": "0.3", "lw": 1, "ls": "--"}


def draw_sizes(measured: Measured, figure: Any) -> Any:
    """All four panels; the last is empty where nothing was trained."""
    panels = [draw_seen, draw_answered, draw_swept, draw_reduced]
    places = figure.subplots(2, 2).ravel()
    if not measured.coords["sizes_trained"]:
        panels.pop()
        places[-1].set_axis_off()
    for axes, draw in zip(places, panels, strict=False):
        draw(measured, axes)
    return figure


def draw_seen(measured: Measured, axes: Axes) -> Axes:
    """Directions that lr lambda > 2^-p sees against the number of data, beside all that real arithmetic holds."""
    points, seen = np.asarray(measured.coords["sizes_points"]), measured.arrays["sizes_seen"].values
    axes.loglog(points, points, label="geometry: d r, at every p", **_GEOMETRY)
    for j, (p, colour) in enumerate(zip(measured.coords["sizes_bits"], cycle(_COLOURS), strict=False)):
        axes.loglog(points, seen[1, :, 0, j].mean(axis=1), "o-", color=colour, label=f"{p} bits", **DOT)
        axes.loglog(points, seen[0, :, 0, j].mean(axis=1), ":", color=colour, lw=1.2)
    axes.plot([], [], ":", color="0.3", lw=1.2, label="at random weights")
    axes.set(xlabel="images d", ylabel="directions seen", title=f"Seen, n = {int(measured.arrays['sizes_n'].values):,}")
    return finished(axes, loc="upper left", fontsize="small")


def draw_answered(measured: Measured, axes: Axes) -> Axes:
    """Pushes answered, less those answered the wrong way, against the number of data, at the largest lr and a 64th of it."""
    pushed, answered = np.asarray(measured.coords["sizes_pushed"]), measured.arrays["sizes_answered"].values
    answered = answered - measured.arrays["sizes_wrong"].values
    axes.loglog(pushed, pushed, label="geometry: d r, at every p", **_GEOMETRY)
    for j, (p, colour) in enumerate(zip(measured.coords["sizes_bits"], cycle(_COLOURS), strict=False)):
        for i, style in enumerate(("o-", "s:")):
            mean = answered[:, i, j].mean(axis=1)
            # A count of zero has no place on this axis.
            seen = np.where(mean > 0, mean, np.nan)
            axes.loglog(pushed, seen, style, color=colour, label=f"{p} bits" if i == 0 else None, **DOT)
    axes.plot([], [], "s:", color="0.3", label=f"steps {measured.coords['sizes_slower'][1]} times smaller", **DOT)
    n = int(measured.arrays["sizes_pushed_n"].values)
    axes.set_xticks(pushed, [str(d) for d in pushed])
    axes.minorticks_off()
    axes.set(xlabel="images d", ylabel="directions answered", title=f"Answered by real rounding, n = {n:,}")
    return finished(axes, loc="upper left", fontsize="small")


def draw_swept(measured: Measured, axes: Axes) -> Axes:
    """Directions not seen, and not answered, against n as it passes d r."""
    weights, d = np.asarray(measured.coords["sizes_swept"]), int(measured.arrays["sizes_swept_points"].values)
    axes.plot(weights, np.maximum(0, weights - d), label="geometry: n - min(d r, n), at every p", **_GEOMETRY)
    for j, (p, colour) in enumerate(zip(measured.coords["sizes_swept_bits"], cycle((VERMILION, BLUE)), strict=False)):
        for style, what in (("o-", "seen"), ("x", "answered")):
            flat = weights - measured.arrays[f"sizes_swept_{what}"].values[:, j].mean(axis=1)
            axes.plot(weights, flat, style, color=colour, label=f"{p} bits, not {what}", ms=6, zorder=3)
    axes.axvline(d, color="0.7", lw=1, zorder=0)
    axes.set(xlabel="weights n", ylabel="flat directions", title=f"n through d r = {d}")
    return finished(axes, loc="upper left", fontsize="small")


def draw_reduced(measured: Measured, axes: Axes) -> Axes:
    """Directions that training reduces, by rounding and batch, beside float64 in the same steps."""
    bits, reduced = measured.coords["sizes_trained_bits"], measured.arrays["sizes_reduced"].values[:, :, -1]
    arms = [
        (batch, rounding, f"{'full batch' if b == 'all' else f'minibatches of {b}'},\n{r.replace('_even', '')}")
        for batch, b in enumerate(measured.coords["sizes_batch"])
        for rounding, r in enumerate(measured.coords["sizes_rounding"])
    ]
    width = 0.8 / len(bits)
    for j, p in enumerate(bits):
        heights = np.stack([reduced[batch, rounding, j] for batch, rounding, _ in arms])
        at = np.arange(len(arms)) + width * (j - (len(bits) - 1) / 2)
        colour = BLUE if p == 53 else _COLOURS[j % len(_COLOURS)]
        axes.bar(at, heights.mean(axis=1), width, color=colour, alpha=0.75, label=f"{p} bits")
        axes.plot(np.repeat(at, heights.shape[1]), heights.ravel(), ".", color="0.2", ms=4)
    axes.set_xticks(range(len(arms)), [words for _, _, words in arms], fontsize="small")
    axes.set(ylabel="directions reduced by training", title=f"Reduced, d = {measured.coords['sizes_trained'][-1]}")
    return finished(axes, grid="y", loc="upper left", fontsize="small", ncols=len(bits))
