"""Pictures of a slingshot: what it does to the test loss beside its rivals, the spectra at three points, the way back down."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from precisionlab.runs.drawing import COLOURS
from precisionlab.runs.results import Result
from precisionlab.runs.summary import interval

__all__ = ["FIGURES", "draw_arms", "draw_paths", "draw_spectra"]

_COLOURS = (*COLOURS[1:], COLOURS[0])


def _data(result: Result) -> list[str]:
    return list(result.config["data"])


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def draw_arms(result: Result) -> Any:
    """The test loss after each arm over that before it, with the early stopping of equal training loss beside it."""
    names = _data(result)
    figure, panels = _figure(len(names), 7.5, 7.5)
    arms, registers = result.coords["arm"], result.coords["register"]
    for panel, data in zip(panels, names, strict=True):
        before = result.arrays[f"{data}_path_test"].values[..., -1]
        after, early = result.arrays[f"{data}_test"].values[..., -1], result.arrays[f"{data}_early"].values
        for i, register in enumerate(registers):
            colour, shift = _COLOURS[i % len(_COLOURS)], 0.7 * ((i + 0.5) / len(registers) - 0.5)
            for j in range(len(arms)):
                for values, marker, fill in ((after[i, j], "o", colour), (early[i, j], "D", "none")):
                    logs = np.log2(values / before[i])
                    low, high = (2.0**bound for bound in interval(logs))
                    panel.plot([low, high], [j + shift] * 2, color=colour, linewidth=1.2, alpha=0.8)
                    panel.plot(2.0 ** logs.mean(), j + shift, marker, color=colour, markerfacecolor=fill, markersize=4.5)
            panel.plot([], [], "o", color=colour, label=register)
        panel.plot([], [], "D", color="0.3", markerfacecolor="none", label="early stopping at\nequal training loss")
        panel.axvline(1, color="0.4", linewidth=1, linestyle="--")
        panel.set(xscale="log", xlabel="test loss after / before the slingshot", title=data)
        panel.set_yticks(range(len(arms)), arms)
        for j in range(len(arms) - 1):
            panel.axhline(j + 0.5, color="0.9", linewidth=0.8, zorder=0)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.grid(axis="x", which="both", alpha=0.25)
        _plain(panel.xaxis)
    for panel in panels[1:]:
        panel.set_yticklabels([])
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0)
    figure.suptitle(f"What the slingshot does to generalization (geometric mean, 95 % interval, {_seeds(result)})")
    return figure


def draw_spectra(result: Result) -> Any:
    """The spectra at the three points, for the factor 0.2, in one register of each kind."""
    names = _data(result)
    kinds = _narrowest(result)
    figure, panels = _figure(len(names) * len(kinds), 5.2, 4.6)
    arm, none = result.coords["arm"].index("0.2"), result.coords["arm"].index("none")
    looks = (("before", "#000000", "-", 2.4), ("undone", "#D55E00", "--", 1.6), ("after", "#0072B2", "-", 1.6))
    words = {"before": "before", "undone": "shrunk by 0.2 and undone", "after": "after training on"}
    places = [(data, place) for data in names for place in kinds]
    for panel, (data, place) in zip(panels, places, strict=True):
        power = result.arrays[f"{data}_power"].values[place]
        frequencies = np.asarray(result.coords[f"{data}_frequency"])
        shown = frequencies > 0
        for point, colour, style, width in looks:
            values = power[arm, result.coords["point"].index(point), shown]
            panel.plot(frequencies[shown], values, style, color=colour, linewidth=width, label=words[point])
        values = power[none, result.coords["point"].index("after"), shown]
        panel.plot(frequencies[shown], values, ":", color="0.5", linewidth=1.4, label="trained on without shrinking")
        panel.axvline(_CUTS[data], color="0.7", linewidth=1)
        panel.text(_CUTS[data] * 1.06, 0.03, "high", color="0.45", transform=panel.get_xaxis_transform())
        panel.set(xscale="log", yscale="log", title=f"{data}, {result.coords['register'][place]}", xlabel=_UNITS[data])
        panel.grid(alpha=0.25)
        _plain(panel.xaxis)
    panels[0].set_ylabel("power (geometric mean over seeds)")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0)
    figure.suptitle(f"The spectrum of the learned function, three times ({_seeds(result)})")
    return figure


def draw_paths(result: Result) -> Any:
    """Test loss against training loss: the way in, and the ways back down after the slingshot and its rivals."""
    names = _data(result)
    places = _narrowest(result)[:1]
    figure, panels = _figure(len(names), 6.2, 5.2)
    chosen = ("0.2", "0.2, fresh", "0.2, permuted", "0.2, last layer", "weight decay")
    for panel, data in zip(panels, names, strict=True):
        of = {kind: result.arrays[f"{data}_{kind}"].values[places[0]] for kind in ("path_train", "path_test", "train", "test")}
        panel.plot(_mean(of["path_train"]), _mean(of["path_test"]), color="black", linewidth=2, label="training until then")
        for number, name in enumerate(chosen):
            arm = result.coords["arm"].index(name)
            train, test = _mean(of["train"][arm]), _mean(of["test"][arm])
            colour = _COLOURS[number % len(_COLOURS)]
            panel.plot(train, test, ".-", color=colour, linewidth=1.4, label=f"after: {name}")
            panel.plot(train[-1], test[-1], "o", color=colour, markersize=7)
        panel.invert_xaxis() if not panel.xaxis_inverted() else None
        panel.set(xscale="log", yscale="log", xlabel="training loss (falls to the right)", ylabel="test loss")
        panel.set_title(f"{data}, {result.coords['register'][places[0]]}")
        panel.grid(which="both", alpha=0.2)
        _plain(panel.yaxis)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0)
    figure.suptitle(f"Test loss at equal training loss (geometric means, {_seeds(result)}; large dots: the end)")
    return figure


_CUTS = {"waves": 2.0, "digits": 3.0}
_UNITS = {"waves": "cycles per unit of x", "digits": "cycles per line between two images"}


def _mean(values: np.ndarray) -> np.ndarray:
    """The geometric mean over seeds, of shape (seeds, looks)."""
    return np.exp(np.log(values).mean(axis=0))


def _narrowest(result: Result) -> list[int]:
    """One register of each kind: a fixed-point one, if there is one, last."""
    names = result.coords["register"]
    floats = [i for i, name in enumerate(names) if not name.startswith(("fixed", "native"))] or [
        i for i, name in enumerate(names) if name.startswith("native")
    ]
    fixed = [i for i, name in enumerate(names) if name.startswith("fixed")]
    return [part[-1] for part in (floats, fixed) if part]


def _seeds(result: Result) -> str:
    return f"{len(result.coords['seed'])} seeds"


def _plain(axis: Any) -> None:
    """Numbers as numbers on a logarithmic axis of a few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if high < 30 * low else NullFormatter())
    if high < 30 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))


FIGURES: Mapping[str, Callable[[Result], Any]] = {
    "Test loss after each arm over that before, beside early stopping at equal training loss": draw_arms,
    "Spectra of the learned function: before, after shrinking and undoing it, and after training on": draw_spectra,
    "Test loss against training loss, on the way in and after the slingshot": draw_paths,
}
"""What is drawn, by caption."""
