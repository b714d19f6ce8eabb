"""Pictures of results: each function draws on the axes it is given and returns them, and does nothing else.

Colour says the format and line style the rounding mode.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from precisionlab.runs.drawing import BESIDE, COLOURS, FATE_COLOURS, STYLES, ink, new_axes
from precisionlab.runs.results import Result, select
from precisionlab.runs.summary import band

__all__ = ["plot_error_profile", "plot_fates", "plot_histogram", "plot_loss", "plot_stagnation"]

_MOST_STEPS = 400  # more points than a figure has pixels only cost time


def plot_stagnation(result: Result, *, ax: Axes | None = None) -> Axes:
    """The share of wanted updates that changed nothing, against the step.

    Args:
        result: `arrays["stagnated_fraction"]` has the axes format, mode, seed and step.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: a line for each format and mode, the mean over seeds, in its 95 % interval.

    Raises:
        KeyError: if the result has no such array.
    """
    ax = _plot_curves(result, "stagnated_fraction", new_axes(ax))
    ax.set(ylabel="stagnated fraction of nonzero updates", ylim=(-0.02, 1.02))
    return ax


def plot_loss(result: Result, *, ax: Axes | None = None) -> Axes:
    """The training loss against the step, on a logarithmic axis where every loss is positive.

    Args:
        result: `arrays["loss"]` has the axes format, mode, seed and step.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: a line for each format and mode, the mean over seeds, in its 95 % interval. A line ends in a cross
        where some seed's loss is no longer finite.

    Raises:
        KeyError: if the result has no such array.
    """
    ax = _plot_curves(result, "loss", new_axes(ax))
    values = result.arrays["loss"].values
    finite = values[np.isfinite(values)]
    if finite.size and (finite > 0).all():
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high < 1000 * low:  # few powers of ten: label 0.2 and 0.5 between them, plainly
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_ylabel("training loss")
    return ax


def _plot_curves(result: Result, name: str, ax: Axes) -> Axes:
    """A line and its band for each format and mode, and a legend that names each colour and style once."""
    array = result.arrays.get(name) or select(result, name)  # select says what there is instead
    if set(array.dims) != {"format", "mode", "seed", "step"}:
        raise ValueError(f'"{name}" has the axes {", ".join(array.dims)}, allowed are format, mode, seed and step.')
    formats, modes = result.coords["format"], result.coords["mode"]
    steps = np.asarray(result.coords["step"])
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_STEPS)).round().astype(int))
    crossed = False
    for i, kind in enumerate(formats):
        for j, mode in enumerate(modes):
            curve = select(result, name, format=kind, mode=mode)
            seeds = np.moveaxis(curve.values, curve.dims.index("seed"), -1)[kept].astype(np.float64)
            colour, style = COLOURS[i % len(COLOURS)], STYLES[j % len(STYLES)]
            finite = np.isfinite(seeds).all(axis=1)
            mean = np.full(len(kept), np.nan)
            mean[finite] = seeds[finite].mean(axis=1)
            ax.plot(steps[kept], mean, color=colour, linestyle=style, linewidth=1.6, label=f"{kind}, {mode}")
            ax.fill_between(steps[kept], *band(seeds), color=colour, alpha=0.15, linewidth=0)
            if not finite.all() and finite.any():
                last = np.flatnonzero(finite)[-1]
                if last + 1 < len(kept):
                    crossed = True
                    ax.plot(steps[kept][last], mean[last], "x", color=colour, markersize=9, markeredgewidth=2)
    ax.set(xlabel="step", xlim=(steps[0], steps[-1]) if len(steps) > 1 else None)
    ax.grid(alpha=0.25)
    keys = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=2.5, label=str(kind)) for i, kind in enumerate(formats)]
    keys += [
        Line2D([], [], color="0.35", linestyle=STYLES[j % len(STYLES)], label=str(mode).replace("_", " "))
        for j, mode in enumerate(modes)
    ]
    if crossed:
        keys.append(Line2D([], [], color="0.35", marker="x", linestyle="", label="not finite from here"))
    seeds = len(result.coords["seed"])
    title = f"mean and 95 % interval\nover {seeds} seeds" if seeds > 1 else "one seed"
    ax.legend(handles=keys, title=title, alignment="left", **BESIDE)
    return ax


def plot_fates(tally_counts: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """What became of every entry's update: landed, swamped, underflowed, or none was asked.

    Args:
        tally_counts: entries by fate; or, for a bar each, a mapping of names (of leaves, formats, ...) to such counts.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: stacked bars of shares, in per cent; the number of entries stands at the end of each bar.

    Raises:
        ValueError: if a fate is unknown.
    """
    nested = all(isinstance(counts, Mapping) for counts in tally_counts.values())
    bars = {str(name): counts for name, counts in tally_counts.items()} if nested else {"all entries": tally_counts}
    if strangers := [fate for counts in bars.values() for fate in counts if fate not in FATE_COLOURS]:
        raise ValueError(f'plot_fates: unknown fate "{strangers[0]}"; allowed are {", ".join(FATE_COLOURS)}.')
    ax = new_axes(ax, 1.4 + 0.45 * len(bars))
    totals = np.array([sum(int(n) for n in counts.values()) for counts in bars.values()])
    start = np.zeros(len(bars))
    for fate, colour in FATE_COLOURS.items():
        share = 100 * np.array([int(counts.get(fate, 0)) for counts in bars.values()]) / np.maximum(totals, 1)
        ax.barh(list(bars), share, left=start, color=colour, edgecolor="white", linewidth=0.8, height=0.7, label=fate)
        for row, (left, width) in enumerate(zip(start, share, strict=True)):
            if width >= 7:  # narrower ones cannot hold their number
                ax.text(left + width / 2, row, f"{width:.0f} %", ha="center", va="center", color=ink(colour))
        start = start + share
    for row, total in enumerate(totals):
        ax.text(101, row, f"{total:,} entries", va="center")
    ax.set(xlabel="share of entries (%)", xlim=(0, 100))
    ax.invert_yaxis()  # first name on top, as in a table
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=len(FATE_COLOURS), borderaxespad=0.0, frameon=False)
    return ax


def plot_histogram(edges: Sequence[float] | np.ndarray, counts: Any, *, ax: Axes | None = None) -> Axes:
    """How large updates are beside the spacing of the weights they meet.

    Args:
        edges: bin edges of log2(|u| / ulp(w)), shape `(bins + 1,)`, rising; the outer two may be infinite.
        counts: entries in each bin, shape `(bins,)`.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: bars, and the line at -1 (half an ulp) from which an update lands when rounding to nearest.

    Raises:
        ValueError: if there is not one more edge than counts.
    """
    edges, counts = np.array(edges, np.float64), np.asarray(counts)
    if edges.ndim != 1 or counts.shape != (len(edges) - 1,):
        raise ValueError(
            f"plot_histogram: edges have shape {edges.shape} and counts {counts.shape}; give one more edge than counts."
        )
    width = np.median(np.diff(edges[np.isfinite(edges)])) if np.isfinite(edges).sum() > 1 else 1.0
    open_below, open_above = np.isneginf(edges[0]), np.isposinf(edges[-1])
    if open_below:
        edges[0] = edges[1] - width
    if open_above:
        edges[-1] = edges[-2] + width
    ax = new_axes(ax)
    lost = edges[1:] <= -1
    # Other roundings have no such line: stochastic rounding lets small updates land now and then.
    sides = ((lost, "swamped", "lost when rounding to nearest"), (~lost, "landed", "lands when rounding to nearest"))
    for chosen, fate, label in sides:
        if chosen.any():
            ax.bar(
                edges[:-1][chosen],
                counts[chosen],
                width=np.diff(edges)[chosen],
                align="edge",
                color=FATE_COLOURS[fate],
                edgecolor="white",
                linewidth=0.5,
                label=label,
            )
    ax.axvline(-1, color="black", linestyle="--", linewidth=1.5, label="landing line: |u| = ulp(w) / 2")
    if open_below or open_above:
        ends = [f"below {edges[1]:g}"] * bool(open_below) + [f"above {edges[-2]:g}"] * bool(open_above)
        ax.plot([], [], " ", label=f"outermost: all {' and '.join(ends)}")
    ax.set(xlabel="log2(|u| / ulp(w)), size of the update in spacings of its weight", ylabel="entries")
    ax.set_xlim(min(edges[0], -1.5), max(edges[-1], -0.5))
    ax.grid(axis="y", alpha=0.25)
    ax.set_axisbelow(True)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=2, borderaxespad=0.0, frameon=False)
    return ax


def plot_error_profile(operations: Sequence[tuple[float, float, str, bool]], *, ax: Axes | None = None) -> Axes:
    """What each operation of a function added to its error.

    Args:
        operations: in order of execution, for each the relative error that it introduced, the relative error of its result,
            a label (its scope), and whether it made infinities or NaN.
        ax: where to draw; a new figure by default.

    Returns:
        The axes, logarithmic: a dot for each error introduced, a line for the error carried, crosses where results were not
        finite. Labels stand where they change.
    """
    ax = new_axes(ax)
    introduced = np.array([row[0] for row in operations], np.float64)
    carried = np.array([row[1] for row in operations], np.float64)
    broken = np.array([row[3] for row in operations], bool)
    order = np.arange(len(operations))
    ax.plot(order, np.where(carried > 0, carried, np.nan), color="#0072B2", label="carried: error of the result so far")
    shown = np.where(introduced > 0, introduced, np.nan)
    ax.plot(order, shown, "o", markersize=3, color="#D55E00", label="introduced by this rounding")
    if broken.any():
        for place in order[broken]:
            ax.axvline(place, color="#CC79A7", linewidth=1, alpha=0.6)
        ax.plot([], [], color="#CC79A7", label="results not finite")
    labels = [row[2] for row in operations]
    changes = [at for at in range(len(labels)) if labels[at] and (at == 0 or labels[at] != labels[at - 1])]
    least = max(1, len(labels) // 24)  # room between two labels
    ticks = [at for number, at in enumerate(changes) if number == 0 or at - changes[number - 1] >= least]
    ax.set_xticks(ticks, [labels[at] for at in ticks], rotation=90, fontsize=7)
    ax.set(yscale="log", ylabel="relative error (2-norm)", xlabel="operations in order of execution, labelled by scope")
    ax.grid(axis="y", alpha=0.25)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=3, borderaxespad=0.0, frameon=False)
    return ax
