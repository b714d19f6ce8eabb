"""The test loss after each arm beside early stopping, and the way in and back down."""

from typing import Any

import numpy as np

from precisionlab.experiments.slingshot.looks import at_moment
from precisionlab.experiments.slingshot.pictures.shared import (
    PALETTE,
    WORDS,
    figure_of,
    medians,
    one_of_each_kind,
    plain,
    seeds,
)
from precisionlab.experiments.slingshot.ratios import READ
from precisionlab.runs.drawing import BESIDE
from precisionlab.runs.results import Result

__all__ = ["draw_arms", "draw_paths"]


def draw_arms(result: Result) -> Any:
    """The test loss after each arm over that before it, with the early stopping of equal training loss beside it."""
    names = list(result.config["data"])
    figure, panels = figure_of(len(names), 5.6, 8.4)
    arms, registers = result.coords["arm"], result.coords["register"]
    for panel, data in zip(panels, names, strict=True):
        before = result.arrays[f"{data}_path_test"].values[..., -1][:, None]
        after = at_moment(result.arrays[f"{data}_test"].values, result.coords[f"{data}_more"], READ)
        early = result.arrays[f"{data}_early"].values
        for i, register in enumerate(registers):
            colour, shift = PALETTE[i % len(PALETTE)], 0.7 * ((i + 0.5) / len(registers) - 0.5)
            for values, marker, fill in ((after[i], "o", colour), (early[i], "D", "none")):
                middle, low, high = medians(np.log2(values / before[i]))
                for j in range(len(arms)):
                    panel.plot([low[j], high[j]], [j + shift] * 2, color=colour, linewidth=1.2, alpha=0.8)
                    panel.plot(middle[j], j + shift, marker, color=colour, markerfacecolor=fill, markersize=4)
            panel.plot([], [], "o", color=colour, label=register)
        panel.plot([], [], "D", color="0.3", markerfacecolor="none", label="early stopping at\nequal training loss")
        panel.axvline(1, color="0.4", linewidth=1, linestyle="--")
        panel.set(xscale="log", xlabel="test loss after / before the slingshot", title=WORDS.get(data, data))
        panel.set_yticks(range(len(arms)), arms)
        for j in range(len(arms) - 1):
            panel.axhline(j + 0.5, color="0.9", linewidth=0.8, zorder=0)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.grid(axis="x", which="both", alpha=0.25)
        plain(panel.xaxis)
    for panel in panels[1:]:
        panel.set_yticklabels([])
    panels[-1].legend(**BESIDE)
    figure.suptitle(f"After 10 % more steps: what each arm does to the test loss (median of {seeds(result)}, 95 % interval)")
    return figure


def draw_paths(result: Result) -> Any:
    """Test loss against training loss: the way in, and the ways back down after the slingshot and its rivals."""
    names = list(result.config["data"])
    place = one_of_each_kind(result)[0]
    figure, panels = figure_of(len(names), 5.4, 5.0)
    chosen = ("0.2", "0.2, fresh", "0.2, permuted", "0.2, last layer", "weight decay")
    for panel, data in zip(panels, names, strict=True):
        of = {kind: result.arrays[f"{data}_{kind}"].values[place] for kind in ("path_train", "path_test", "train", "test")}
        panel.plot(_middle(of["path_train"]), _middle(of["path_test"]), color="black", linewidth=2, label="training until then")
        for number, name in enumerate(chosen):
            arm, colour = result.coords["arm"].index(name), PALETTE[number % len(PALETTE)]
            soon = np.asarray(result.coords[f"{data}_more"]) <= READ
            train, test = _middle(of["train"][arm][:, soon]), _middle(of["test"][arm][:, soon])
            panel.plot(train, test, ".-", color=colour, linewidth=1.4, label=f"after: {name}")
            panel.plot(train[-1], test[-1], "o", color=colour, markersize=7)
        panel.set(xscale="log", yscale="log", xlabel="training loss (falls to the right)")
        panel.invert_xaxis()
        panel.set_title(f"{WORDS.get(data, data)}, {result.coords['register'][place]}")
        panel.grid(which="both", alpha=0.2)
        plain(panel.yaxis)
    panels[0].set_ylabel("test loss")
    panels[-1].legend(**BESIDE)
    figure.suptitle(f"Test loss at equal training loss (medians of {seeds(result)}; large dots: 10 % more steps)")
    return figure


def _middle(values: np.ndarray) -> np.ndarray:
    """The median over seeds, of shape (seeds, looks)."""
    return np.nanmedian(values, axis=0)
