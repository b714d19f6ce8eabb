"""Rows 3, 4, 5 and 9: where training stagnates, what lies beneath, and which part of a format does it."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import AMBER, BLUE, GREEN, PINK, SKY, VERMILION, finished
from precisionlab.experiments.manifold.repair import ARMS, CELLS

__all__ = ["draw_spectra", "draw_two_by_two", "draw_unfreezing"]

_BY_BITS = (BLUE, VERMILION, GREEN, PINK, SKY, AMBER)
_CELLS = {
    "neither": ("0.25", "float64"),
    "stagnation": (VERMILION, "stagnation alone"),
    "lattice": (BLUE, "lattice alone (SR)"),
    "both": (PINK, "both (nearest)"),
    "kahan": (GREEN, "lattice, Kahan"),
    "master": (SKY, "lattice, float64 masters"),
}
_LEAST = 1e-32  # a loss of zero has no place on a logarithmic axis


def draw_unfreezing(measured: Measured, axes: Axes) -> Axes:
    """The loss after unfreezing, of arms whose weights alone are rounded: every seed thin, the median over seeds thick."""
    times = np.asarray(measured.coords["stagnation_time"], np.float64)
    paths = measured.arrays["stagnation_loss_after"].values
    settled = measured.arrays["stagnation_stagnated"].values.astype(bool)
    bits = list(measured.coords["stagnation_format"])
    known = [arm for arm in range(len(bits)) if settled[arm].any()]
    for colour, arm in zip(_BY_BITS, (known[i] for i in _spread(len(known), 6)), strict=False):
        rows = np.maximum(paths[arm][settled[arm]], _LEAST)
        axes.plot(times, rows.T, color=colour, lw=0.5, alpha=0.2)
        axes.plot(times, np.median(rows, axis=0), color=colour, lw=2, label=f"{bits[arm]} bits")
        axes.plot(times[0], np.median(rows[:, 0]), "o", color=colour, ms=6, mec="white", clip_on=False, zorder=3)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(yscale="log", xlabel="steps in float64 after stagnation", ylabel="loss", xlim=(0, times[-1]))
    axes.set_xticks([0, *times[1::3]], ["0", *(f"{int(time)}" for time in times[1::3])])
    axes.minorticks_off()
    return finished(axes, title="stagnated in", loc="lower left")


def draw_spectra(measured: Measured, axes: Axes) -> Axes:
    """Hessian eigenvalues of one seed where it stagnated, and at the float64 minimum."""
    bits = list(measured.coords["stagnation_format"])
    values = measured.arrays["stagnation_eigenvalues"].values[:, 0]
    least = measured.arrays["stagnation_minimum_eigenvalues"].values[0]
    floor = float(measured.arrays["stagnation_minimum_floor"].values[0])
    constraints = int(measured.arrays["stagnation_constraints"].values)
    index = np.asarray(measured.coords["stagnation_index"])
    rows = [(f"stagnated, {bits[i]} bits", values[i], _BY_BITS[k]) for k, i in enumerate(_spread(len(bits), 4))]
    for label, spectrum, colour in [*rows, ("float64 minimum", least, "0.2")]:
        order = np.argsort(-np.abs(spectrum))
        sizes, negative = np.maximum(np.abs(spectrum[order]), 1e-20), spectrum[order] < 0
        axes.plot(index, sizes, color=colour, lw=0.8, alpha=0.6, zorder=1)
        axes.plot(index[~negative], sizes[~negative], "o", color=colour, ms=4, label=label, zorder=2)
        axes.plot(index[negative], sizes[negative], "o", color=colour, mfc="white", ms=4, zorder=2)
    axes.axhline(floor, color="0.5", lw=1, ls=":")
    axes.text(index[-1], floor * 1.6, "noise floor at the minimum", ha="right", va="bottom", fontsize="small", color="0.4")
    axes.axvline(constraints + 0.5, color="0.5", lw=1)
    axes.text(constraints + 0.9, axes.get_ylim()[1], f"d r = {constraints}", va="top", fontsize="small", color="0.4")
    axes.plot([], [], "o", color="0.4", mfc="white", ms=4, label="open: negative")
    axes.set(yscale="log", xlabel="eigenvalue, by magnitude", ylabel="|eigenvalue of the Hessian|")
    return finished(axes)


def _spread(count: int, most: int) -> np.ndarray:
    """Indices up to count, at most so many, as far apart as they can be."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def draw_two_by_two(measured: Measured, axes: Axes) -> Axes:
    """The loss of every cell in every format: seeds as dots, their geometric mean as a bar, the flat directions as numbers."""
    bits, loss = list(measured.coords["repair_format"]), np.maximum(measured.arrays["repair_loss"].values, _LEAST)
    flat = measured.arrays["repair_flat"].values
    width = 0.8 / len(ARMS)
    for i, _ in enumerate(bits):
        for k, arm in enumerate(ARMS):
            colour, name = _CELLS[arm]
            x = i + (k - (len(ARMS) - 1) / 2) * width
            seeds = loss[k, i]
            spread = np.linspace(-0.3, 0.3, len(seeds)) * width
            axes.plot(x + spread, seeds, "o", color=colour, ms=3, alpha=0.5, mew=0)
            mean = np.exp(np.log(seeds).mean())
            axes.plot([x - 0.4 * width, x + 0.4 * width], [mean, mean], color=colour, lw=3, label=name if i == 0 else None)
            if arm in CELLS:
                axes.annotate(
                    f"{flat[CELLS.index(arm), i].mean():.1f}",
                    (x, seeds.max()),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    rotation=90,
                    fontsize="small",
                    color=colour,
                )
    axes.set_xticks(range(len(bits)), [f"{p} bits" for p in bits])
    axes.set(yscale="log", ylabel="loss at the end", xlabel="numbers: flat directions, in the mean over seeds")
    axes.margins(y=0.15)
    return finished(axes, grid="y")
