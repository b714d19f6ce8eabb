"""Pictures of checkpoints: each function draws what one tensor after another would lose, or has not moved.

As in `plots`, a function draws on the axes it is given and returns them, and does nothing else. There may be hundreds of
tensors, with long names that differ in numbers alone, so that most of the work is to show few of them and to say which.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from precisionlab.runs.drawing import BESIDE, COLOURS, FATE_COLOURS, STYLES, new_axes

__all__ = ["plot_forecast", "plot_unchanged"]

_MOST_BARS = 40
_MOST_LETTERS = 52  # of a tensor's name


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
    ax = new_axes(ax, 4.8, 10.5)  # names of tensors are long
    formats = list(dict.fromkeys(curve["format"] for curve in curves))
    lines = {(curve["format"], curve["tensor"]): np.array(curve["lost_fractions"], np.float64) for curve in curves}
    keys: list[Line2D] = []
    for i, kind in enumerate(formats):
        colour = COLOURS[(i + 1) % len(COLOURS)]
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
        for style, row in zip(STYLES[1:], worst[: 3 if len(formats) <= 2 else len(formats) <= 4], strict=False):
            ax.plot(learning_rates, 100 * lines[kind, row["tensor"]], color=colour, linestyle=style, linewidth=1.1)
            keys.append(Line2D([], [], color=colour, linestyle=style, lw=1.1, label=f"  {_short(row['tensor'])}"))
    ax.axvline(lr, color="0.35", linewidth=1, linestyle="--", zorder=1)
    keys.append(Line2D([], [], color="0.35", linestyle="--", lw=1, label=f"learning rate asked: {lr:g}"))
    keys.append(Line2D([], [], color="0.35", lw=5, alpha=0.4, label="low to high there"))
    ax.set(xscale="log", xlim=(learning_rates[0], learning_rates[-1]), ylim=(-2, 102))
    ax.set(xlabel="learning rate", ylabel="updates lost (%)")
    ax.grid(alpha=0.25)
    thin = "thin: the tensors that lose most" if len(keys) > len(formats) + 2 else None
    for text in ax.legend(handles=keys, title=thin, alignment="left", **BESIDE).get_texts():
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
    ax = new_axes(ax, 1.6 + 0.26 * max(len(ordered), 1), 9.5)
    labels = [_short(group[0]["tensor"]) if len(group) == 1 else f"{_short(name)} ({len(group)})" for name, group in ordered]
    places = np.arange(len(ordered))
    same = np.array([100 * _pooled(group, "unchanged_fraction") for _, group in ordered])
    near = np.array([100 * _pooled(group, "one_ulp_fraction") for _, group in ordered])
    ax.barh(places, same, color=FATE_COLOURS["swamped"], height=0.72, label="unchanged")
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
