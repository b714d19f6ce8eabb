"""Rows 1 and 2: what is counted and measured on lattices, against their bits."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import DOT, finished
from precisionlab.experiments.manifold.census import WEIGHTS
from precisionlab.experiments.manifold.extents import DIRECTIONS
from precisionlab.runs.drawing import COLOURS
from precisionlab.runs.inference import slopes

__all__ = ["draw_census", "draw_extents"]

_DASHES = {"fixed": "-", "floating": "--"}
_MARKS = {"fixed": "o", "floating": "s"}


def draw_census(measured: Measured, axes: Axes) -> Axes:
    """Counts against bits for every seed, their mean, and the predicted slopes."""
    bits = np.asarray(measured.coords["census_bits"], np.float64)
    counts = measured.arrays["census_count"].values
    for j, d in enumerate(measured.coords["census_points"]):
        for i, lattice in enumerate(measured.coords["census_lattice"]):
            used = np.isfinite(counts[:, i, j]).any(axis=0)
            _draw_series(axes, f"d = {d}", lattice, bits[used], counts[:, i, j][:, used], WEIGHTS - d, COLOURS[d])
    axes.plot([], [], color="0.35", lw=1.8, label=f"lines: predicted slope, n - d with n = {WEIGHTS}")
    axes.set(xlabel="bits of the lattice", ylabel="log₂ of the points with loss ≤ c h²", xticks=bits)
    return finished(axes)


def draw_extents(measured: Measured, axes: Axes) -> Axes:
    """Extents against bits, every seed thin, their mean with the predicted slope, and the isolated minimum."""
    bits = np.asarray(measured.coords["extents_bits"], np.float64)
    lengths = measured.arrays["extents_length"].values
    series = [(direction, predicted, lengths[:, :, k]) for k, (direction, predicted) in enumerate(DIRECTIONS.items())]
    series.append(("isolated minimum, d > n", -1.0, measured.arrays["extents_isolated"].values))
    for (name, predicted, values), colour in zip(series, COLOURS[1:], strict=False):
        for i, lattice in enumerate(measured.coords["extents_lattice"]):
            rows = values[:, :, i].reshape(-1, len(bits))
            _draw_series(axes, name, lattice, bits, rows, predicted, colour, width=0.5, alpha=0.15)
    axes.plot([], [], color="0.35", lw=1.8, label="lines: predicted slopes, -1, -1/2, 0, -1")
    axes.set(xlabel="bits of the lattice", ylabel="log₂ of the extent of the frozen set", xticks=bits)
    return finished(axes)


def _draw_series(
    axes: Axes,
    name: str,
    lattice: str,
    bits: np.ndarray,
    values: np.ndarray,
    predicted: float,
    colour: str,
    width: float = 0.6,
    alpha: float = 0.25,
) -> None:
    """The logarithm of each row of values, thin; their mean as marks, and through it a line of the predicted slope."""
    with np.errstate(divide="ignore"):
        logs = np.log2(values)
    logs = logs[np.isfinite(logs).all(axis=1)]
    if not len(logs):
        return
    mean, dashes = logs.mean(axis=0), _DASHES[lattice]
    label = f"{name}, {lattice} point: slope {slopes(bits, logs).mean():.2f}"
    axes.plot(bits, logs.T, color=colour, lw=width, alpha=alpha, ls=dashes)
    axes.plot(bits, mean.mean() + predicted * (bits - bits.mean()), color=colour, lw=1.8, ls=dashes, zorder=2)
    axes.plot(bits, mean, _MARKS[lattice], color=colour, label=label, **DOT)
