"""The spectrum of the learned function at four times, each as shares of its power: a shrunk function is small as a whole."""

from typing import Any

import numpy as np

from precisionlab.experiments.slingshot.pictures.shared import WORDS, figure_of, one_of_each_kind, plain, seeds
from precisionlab.experiments.slingshot.tasks import TASKS
from precisionlab.runs.results import Result

__all__ = ["draw_spectra"]

_LOOKS = {
    "before": ("1  before", "#000000", "-", 2.6),
    "shrunk": ("2  shrunk by 0.2", "#D55E00", "-", 2.2),
    "exact": ("    the same without any rounding", "#F0A070", ":", 3.0),
    "undone": ("3  shrunk and undone", "#009E73", "--", 1.6),
    "after": ("4  after 10 % more steps", "#0072B2", "-", 1.6),
}


def draw_spectra(result: Result) -> Any:
    """The spectra for the factor 0.2, in one register of each kind; a row for each data set."""
    names, places = list(result.config["data"]), one_of_each_kind(result)
    figure, panels = figure_of(len(places), 4.8, 3.9, rows=len(names))
    arm = result.coords["arm"].index("0.2")
    for panel, (data, place) in zip(panels, [(data, place) for data in names for place in places], strict=True):
        power = result.arrays[f"{data}_power"].values[place, arm]
        frequencies = np.asarray(result.coords[f"{data}_frequency"])
        shown = frequencies > 0
        for point, (words, colour, style, width) in _LOOKS.items():
            values = power[result.coords["point"].index(point), shown]
            panel.plot(frequencies[shown], values / values.sum(), style, color=colour, linewidth=width, label=words)
        task = TASKS[data](result.config["width"])
        panel.axvline(task.cut, color="0.7", linewidth=1)
        panel.text(task.cut * 1.08, 0.93, "high", color="0.45", transform=panel.get_xaxis_transform())
        panel.set(xscale="log", yscale="log", xlabel=task.frequency_unit)
        panel.set_ylim(1e-9, 2)
        panel.set_title(f"{WORDS.get(data, data)}, {result.coords['register'][place]}")
        panel.grid(alpha=0.25)
        plain(panel.xaxis)
    for number in range(0, len(panels), len(places)):
        panels[number].set_ylabel("share of the power")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"The learned function, four times ({seeds(result)}, geometric means)")
    return figure
