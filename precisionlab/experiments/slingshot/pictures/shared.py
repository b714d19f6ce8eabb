"""What the pictures of a slingshot share: panels side by side, means over seeds, and which registers are shown."""

from typing import Any

import numpy as np

from precisionlab.experiments.slingshot.arms import kind_of
from precisionlab.runs.drawing import COLOURS
from precisionlab.runs.results import Result
from precisionlab.runs.seeds import median_interval

__all__ = ["PALETTE", "WORDS", "figure_of", "medians", "one_of_each_kind", "plain", "seeds"]

PALETTE = (*COLOURS[1:], COLOURS[0])
WORDS = {"waves": "noisy sine, tanh", "relu_waves": "noisy sine, ReLU", "digits": "digits, ReLU"}


def figure_of(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its panels, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def medians(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2 to the median over seeds, the last axis, and the ends of its interval; NaN where most seeds have no number."""
    rows = logs.reshape(-1, logs.shape[-1])
    most = np.mean(np.isnan(rows), axis=-1) < 0.5
    middle = np.array([np.nanmedian(row) if enough else np.nan for row, enough in zip(rows, most, strict=True)])
    ends = np.array([median_interval(row) if enough else (np.nan, np.nan) for row, enough in zip(rows, most, strict=True)])
    shape = logs.shape[:-1]
    return 2.0 ** middle.reshape(shape), 2.0 ** ends[:, 0].reshape(shape), 2.0 ** ends[:, 1].reshape(shape)


def one_of_each_kind(result: Result) -> list[int]:
    """The last register of each kind, which is the narrowest as they are usually named."""
    kinds = {kind_of(name): place for place, name in enumerate(result.coords["register"])}
    return sorted(kinds.values())


def seeds(result: Result) -> str:
    """How many, in words."""
    return f"{len(result.coords['seed'])} seeds"


def plain(axis: Any) -> None:
    """Numbers as numbers on a logarithmic axis of a few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}" if high < 30 * low else NullFormatter())
    if high < 30 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
