"""Pictures of results: each function draws on the axes it is given and returns them, and does nothing else.

Colour says the format and line style the rounding mode, in colours that stay apart for colour-blind eyes (Okabe, Ito).
Legends stand beside the data, never on it.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from precisionlab.runs.files import write_atomically
from precisionlab.runs.results import Result, select
from precisionlab.runs.summary import band

__all__ = [
    "PLOT_SUFFIXES",
    "plot_error_profile",
    "plot_fates",
    "plot_forecast",
    "plot_histogram",
    "plot_loss",
    "plot_stagnation",
    "plot_unchanged",
    "save_plot",
]

_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", ":", "-.")
_FATES = {"landed": "#009E73", "swamped": "#D55E00", "underflowed": "#CC79A7", "zero": "#BBBBBB"}
_BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0, "frameon": False}
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
"""What `save_plot` can write."""

_MOST_BARS = 40
_MOST_LETTERS = 52  # of a tensor's name
_MOST_STEPS = 400  # more points than a figure has pixels only cost time


def _axes(ax: Axes | None, height: float = 4.5, width: float = 8.0) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


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
    ax = _plot_curves(result, "stagnated_fraction", _axes(ax))
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
    ax = _plot_curves(result, "loss", _axes(ax))
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
            colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[j % len(_STYLES)]
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
    keys = [Line2D([], [], color=_COLOURS[i % len(_COLOURS)], lw=2.5, label=str(kind)) for i, kind in enumerate(formats)]
    keys += [
        Line2D([], [], color="0.35", linestyle=_STYLES[j % len(_STYLES)], label=str(mode).replace("_", " "))
        for j, mode in enumerate(modes)
    ]
    if crossed:
        keys.append(Line2D([], [], color="0.35", marker="x", linestyle="", label="not finite from here"))
    seeds = len(result.coords["seed"])
    title = f"mean and 95 % interval\nover {seeds} seeds" if seeds > 1 else "one seed"
    ax.legend(handles=keys, title=title, alignment="left", **_BESIDE)
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
    if strangers := [fate for counts in bars.values() for fate in counts if fate not in _FATES]:
        raise ValueError(f'plot_fates: unknown fate "{strangers[0]}"; allowed are {", ".join(_FATES)}.')
    ax = _axes(ax, 1.4 + 0.45 * len(bars))
    totals = np.array([sum(int(n) for n in counts.values()) for counts in bars.values()])
    start = np.zeros(len(bars))
    for fate, colour in _FATES.items():
        share = 100 * np.array([int(counts.get(fate, 0)) for counts in bars.values()]) / np.maximum(totals, 1)
        ax.barh(list(bars), share, left=start, color=colour, edgecolor="white", linewidth=0.8, height=0.7, label=fate)
        for row, (left, width) in enumerate(zip(start, share, strict=True)):
            if width >= 7:  # narrower ones cannot hold their number
                ax.text(left + width / 2, row, f"{width:.0f} %", ha="center", va="center", color=_ink(colour))
        start = start + share
    for row, total in enumerate(totals):
        ax.text(101, row, f"{total:,} entries", va="center")
    ax.set(xlabel="share of entries (%)", xlim=(0, 100))
    ax.invert_yaxis()  # first name on top, as in a table
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.02), ncols=len(_FATES), borderaxespad=0.0, frameon=False)
    return ax


def _ink(colour: str) -> str:
    """Black or white, whichever can be read on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


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
    ax = _axes(ax)
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
                color=_FATES[fate],
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
        operations: in order of execution, for each the relative error that it introduced, the relative error of its result, a
        label
            (its scope), and whether it made infinities or NaN.
        ax: where to draw; a new figure by default.

    Returns:
        The axes, logarithmic: a dot for each error introduced, a line for the error carried, crosses where results were not
        finite. Labels stand where they change.
    """
    ax = _axes(ax)
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


def plot_forecast(
    learning_rates: Sequence[float],
    curves: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    lr: float,
    *,
    ax: Axes | None = None,
) -> Axes:
    """The share of updates that each format would lose, against the learning rate.

    Args:
        learning_rates: rising, all above 0.
        curves: `tensor`, `format` and `lost_fractions` (one for each learning rate); of the tensor `total` for each format.
        answers: `tensor`, `format`, `lost_fraction`, `low` and `high` at `lr` itself, for the same.
        lr: the learning rate asked about.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: a line for each format's total, a bar from low to high at `lr`, and thin lines for the tensors that lose
        most there: three of them for up to two formats, one for up to four, no two alike but for numbers in their names.
    """
    ax = _axes(ax, 4.8, 10.5)  # names of tensors are long
    formats = list(dict.fromkeys(curve["format"] for curve in curves))
    lines = {(curve["format"], curve["tensor"]): np.array(curve["lost_fractions"], np.float64) for curve in curves}
    keys: list[Line2D] = []
    for i, kind in enumerate(formats):
        colour = _COLOURS[(i + 1) % len(_COLOURS)]
        (total,) = (row for row in answers if (row["format"], row["tensor"]) == (kind, "total"))
        ax.plot(learning_rates, 100 * lines[kind, "total"], color=colour, linewidth=2.4, zorder=3)
        if np.isfinite(total["lost_fraction"]):
            place = lr * 1.12 ** (i - (len(formats) - 1) / 2)  # bars beside each other
            ax.vlines(place, 100 * total["low"], 100 * total["high"], color=colour, linewidth=5, alpha=0.4, zorder=3.5)
            ax.plot(place, 100 * total["lost_fraction"], "o", color=colour, markeredgecolor="white", markersize=8, zorder=4)
        keys.append(Line2D([], [], color=colour, lw=2.4, label=f"{kind}, all tensors"))
        rows = [row for row in answers if row["format"] == kind and row["tensor"] != "total"]
        rows = [row for row in rows if np.isfinite(row["lost_fraction"])]
        rows.sort(key=lambda row: (row["lost_fraction"], lines[row["format"], row["tensor"]].mean()), reverse=True)
        alike = {_family(row["tensor"]): row for row in reversed(rows)}  # the worst of each
        worst = [row for row in rows if alike[_family(row["tensor"])] is row] if len(rows) > 1 else []
        for style, row in zip(_STYLES[1:], worst[: 3 if len(formats) <= 2 else len(formats) <= 4], strict=False):
            ax.plot(learning_rates, 100 * lines[kind, row["tensor"]], color=colour, linestyle=style, linewidth=1.1)
            keys.append(Line2D([], [], color=colour, linestyle=style, lw=1.1, label=f"  {_short(row['tensor'])}"))
    ax.axvline(lr, color="0.35", linewidth=1, linestyle="--", zorder=1)
    keys.append(Line2D([], [], color="0.35", linestyle="--", lw=1, label=f"learning rate asked: {lr:g}"))
    keys.append(Line2D([], [], color="0.35", lw=5, alpha=0.4, label="low to high there"))
    ax.set(xscale="log", xlim=(learning_rates[0], learning_rates[-1]), ylim=(-2, 102))
    ax.set(xlabel="learning rate", ylabel="updates lost (%)")
    ax.grid(alpha=0.25)
    thin = "thin: the tensors that lose most" if len(keys) > len(formats) + 2 else None
    for text in ax.legend(handles=keys, title=thin, alignment="left", **_BESIDE).get_texts():
        text.set_parse_math(False)  # a name may hold a dollar sign
    return ax


def _family(name: str) -> str:
    return re.sub(r"[0-9]+", "*", name)


def _short(name: str) -> str:
    """A name with its middle left out where it is long: the end tells tensors apart, the beginning models."""
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS // 3]}…{name[-(2 * _MOST_LETTERS // 3) :]}"


def plot_unchanged(rows: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """How much of each tensor did not change, most unchanged first.

    Args:
        rows: `tensor`, `entries`, `unchanged_fraction` and `one_ulp_fraction`; those without entries are left out.
        ax: where to draw; a new figure by default.

    Returns:
        The axes: a bar for each tensor; beyond 40 of them, a bar for all whose names differ in numbers alone, and a dot for
        each of its tensors. What is still beyond 40 shares the last bar.
    """
    rows = [row for row in rows if row["entries"]]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = _family(row["tensor"]) if len(rows) > _MOST_BARS else row["tensor"]
        groups.setdefault(name, []).append(row)
    ordered = sorted(groups.items(), key=lambda group: -_pooled(group[1], "unchanged_fraction"))
    if len(ordered) > _MOST_BARS:
        kept, others = ordered[: _MOST_BARS - 1], ordered[_MOST_BARS - 1 :]
        rest = [row for _, group in others for row in group]
        ordered = [*kept, ("others", rest)]
    ax = _axes(ax, 1.6 + 0.26 * max(len(ordered), 1), 9.5)
    labels = [_short(group[0]["tensor"]) if len(group) == 1 else f"{_short(name)} ({len(group)})" for name, group in ordered]
    places = np.arange(len(ordered))
    same = np.array([100 * _pooled(group, "unchanged_fraction") for _, group in ordered])
    near = np.array([100 * _pooled(group, "one_ulp_fraction") for _, group in ordered])
    ax.barh(places, same, color=_FATES["swamped"], height=0.72, label="unchanged")
    ax.barh(places, near, left=same, color="#56B4E9", height=0.72, label="moved to a neighbouring value")
    ax.barh(places, 100 - same - near, left=same + near, color="#E8E8E8", height=0.72, label="moved further")
    dots = [(place, 100 * row["unchanged_fraction"]) for place, (_, group) in enumerate(ordered) for row in group if group[1:]]
    handles = ax.get_legend_handles_labels()[0]
    if dots:
        y, x = zip(*dots, strict=True)
        style: dict[str, Any] = {"color": "black", "markersize": 3, "alpha": 0.45, "label": "unchanged, each tensor of several"}
        handles += ax.plot(x, y, "o", clip_on=False, zorder=4, **style)
    ax.set_yticks(places, labels, fontsize=8)
    for tick in ax.get_yticklabels():
        tick.set_parse_math(False)
    ax.set(xlabel="share of entries (%)", xlim=(0, 100), ylim=(len(ordered) - 0.4, -0.6))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)  # room above the names
    return ax


def _pooled(group: Sequence[Mapping[str, Any]], what: str) -> float:
    """A share of all entries of some tensors."""
    return sum(row[what] * row["entries"] for row in group) / sum(row["entries"] for row in group)


def save_plot(ax: Axes, path: Path) -> None:
    """Write the figure around axes to a file, in full or not at all, and close it.

    Args:
        ax: what a function of this module returned.
        path: a file that ends in one of `PLOT_SUFFIXES`; its folder exists.

    Raises:
        RunError: if it cannot be written.
    """
    figure: Any = ax.figure
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
            write_atomically(
                path, lambda file: figure.savefig(file, format=path.suffix.lower()[1:], dpi=150, bbox_inches="tight")
            )
    finally:
        plt.close(figure)
