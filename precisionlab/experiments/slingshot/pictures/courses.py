"""The ratio of test losses against more steps, with the moment at which the norm is back, and against the number of data."""

from typing import Any

import numpy as np

from precisionlab.experiments.slingshot.looks import MOMENTS, at_moment, at_norm
from precisionlab.experiments.slingshot.pictures.shared import (
    PALETTE,
    WORDS,
    figure_of,
    medians,
    one_of_each_kind,
    plain,
    seeds,
)
from precisionlab.runs.drawing import BESIDE
from precisionlab.runs.results import Result

__all__ = ["draw_courses", "draw_sizes"]

_SHOWN = {
    "0.2": "slung (0.2)",
    "0.2, moments kept": "slung, moments kept",
    "0.2, fresh": "fresh, same norms",
    "none": "trained on without",
}


def draw_courses(result: Result) -> Any:
    """Test loss over that before against the share of more steps, for the slung, the fresh and the untouched."""
    names = [data for data in result.config["data"] if len(result.coords[f"{data}_more"]) > 8] or list(result.config["data"])
    places = one_of_each_kind(result)
    figure, panels = figure_of(len(places), 5.0, 4.2, rows=len(names))
    for panel, (data, place) in zip(panels, [(data, place) for data in names for place in places], strict=True):
        shares = np.asarray(result.coords[f"{data}_more"], np.float64)
        before = result.arrays[f"{data}_path_test"].values[place, :, -1]
        norm, target = result.arrays[f"{data}_norm"].values[place], result.arrays[f"{data}_norm_before"].values[place]
        for number, (name, words) in enumerate(_SHOWN.items()):
            arm, colour = result.coords["arm"].index(name), PALETTE[number]
            logs = np.log2(result.arrays[f"{data}_test"].values[place, arm] / before[:, None]).T
            middle, low, high = medians(logs)
            there = np.isfinite(middle) & (shares > 0)
            panel.fill_between(shares[there] * 100, low[there], high[there], color=colour, alpha=0.15, linewidth=0)
            panel.plot(shares[there] * 100, middle[there], color=colour, linewidth=1.6, label=words)
            if name.startswith("0.2") and there[-1]:
                test = at_norm(norm[arm], logs.T, target)
                when = at_norm(norm[arm], np.broadcast_to(shares, norm[arm].shape), target)
                back = np.isfinite(test)
                if back.any():
                    at = 100 * np.median(when[back]), 2.0 ** np.median(test[back])
                    panel.plot(*at, "*", color=colour, markersize=13, markeredgecolor="white", zorder=5)
                    side = -1 if number == 0 else 1
                    panel.annotate(
                        f"{back.sum()}/{back.size}",
                        at,
                        textcoords="offset points",
                        xytext=(9 * -side, 12 * side - 4),
                        ha="left" if side < 0 else "right",
                        color=colour,
                        fontsize=9,
                    )
        for moment in MOMENTS:
            panel.axvline(100 * moment, color="0.85", linewidth=0.8, zorder=0)
        panel.axhline(1, color="0.4", linewidth=1, linestyle="--")
        panel.set(xscale="log", yscale="log", title=f"{WORDS.get(data, data)}, {result.coords['register'][place]}")
        panel.set_xlabel("more steps, % of those before")
        panel.grid(axis="y", which="both", alpha=0.2)
        plain(panel.xaxis)
        plain(panel.yaxis)
    for number in range(0, len(panels), len(places)):
        panels[number].set_ylabel("test loss / before the slingshot")
    panels[0].plot([], [], "*", color="0.3", markersize=11, label="norm of before is back\n(in so many seeds)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"When one looks: medians of {seeds(result)}, 95 % intervals")
    return figure


def draw_sizes(result: Result) -> Any:
    """Test loss slung over before, and over fresh weights, against the number of training points."""
    names = [data for data in result.config["data"] if f"{data}_sizes_test" in result.arrays]
    figure, panels = figure_of(max(2 * len(names), 1), 4.6, 4.4)
    if not names:
        panels[0].text(0.5, 0.5, "no numbers of points were asked for (sizes)", ha="center", va="center")
        panels[0].set_axis_off()
        return figure
    arms = result.coords["size_arm"]
    panes = [(data, against) for data in names for against in ("before", "0.2, fresh")]
    for panel, (data, against) in zip(panels, panes, strict=True):
        test, shares = result.arrays[f"{data}_sizes_test"].values, result.coords[f"{data}_size_more"]
        sizes = np.asarray(result.coords["size"])
        order = np.argsort(sizes)
        for number, moment in enumerate(MOMENTS):
            slung, other = (at_moment(test[:, arms.index(name)], shares, moment) for name in ("0.2", "0.2, fresh"))
            if against == "before":
                other = result.arrays[f"{data}_sizes_path_test"].values[..., -1]
            middle, low, high = medians(np.log2(slung / other))
            colour = PALETTE[number]
            where = sizes[order] * 2.0 ** (0.04 * (number - 2))
            panel.errorbar(
                where, middle[order], [(middle - low)[order], (high - middle)[order]], fmt="o-", color=colour, markersize=4,
                linewidth=1.3, elinewidth=1, label=f"{100 * moment:g} %",
            )  # fmt: skip
        panel.axhline(1, color="0.4", linewidth=1, linestyle="--")
        words = "before" if against == "before" else "fresh, same norms"
        panel.set(xscale="log", yscale="log", xlabel="training points", title=f"{WORDS.get(data, data)}: slung / {words}")
        panel.set_xticks(sizes[order], [str(size) for size in sizes[order]])
        panel.minorticks_off()
        panel.grid(which="major", alpha=0.25)
        plain(panel.yaxis)
    panels[0].set_ylabel("ratio of test losses")
    panels[-1].legend(title="more steps", **BESIDE)
    figure.suptitle(f"Small data (float32, medians of {len(result.coords['size_seed'])} seeds, 95 % intervals)")
    return figure
