"""Rows 7 and 8: flat directions, and the loss at the end, against the bits of the format."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import BLUE, VERMILION, finished
from precisionlab.experiments.manifold.dimension import flat_counts, saw_and_stagnated

__all__ = ["draw_flat_directions", "draw_loss_floor"]


def draw_flat_directions(measured: Measured, axes: Axes) -> Axes:
    """N_p against p for every seed, its mean, and n - d r; the nullity of every format beside it.

    Args:
        measured: from `dimension.measure`.
        axes: where to draw.

    Returns:
        The axes.
    """
    counts, _ = flat_counts(measured)
    bits, mean = np.asarray(measured.coords["dimension_precision"], np.float64), counts.mean(axis=1)
    nullity = measured.arrays["dimension_nullity"].values
    flat = int(measured.arrays["dimension_size"].values) - int(measured.arrays["dimension_constraints"].values)
    axes.plot(bits, counts, color=VERMILION, lw=0.6, alpha=0.3)
    axes.plot(bits, mean, "o-", color=VERMILION, lw=2, ms=6, mec="white", label="flat to p bits, N_p: mean over seeds")
    axes.fill_between(bits, flat, mean, color=VERMILION, alpha=0.12, lw=0, label="its representational share")
    for k, exponent in enumerate(measured.coords["dimension_exponent"]):
        label = f"nullity of J, {exponent} exponent bits"
        axes.plot(bits, nullity[:, k].mean(axis=1), "s+x"[k % 3], color=BLUE, ms=7, mfc="none", label=label, zorder=3)
    axes.axhline(flat, color="0.3", lw=1, ls="--", zorder=1)
    axes.annotate(
        f"n - d r = {flat}", (bits[-1], flat), xytext=(0, -6), textcoords="offset points", ha="right", va="top", color="0.3"
    )
    axes.set_xscale("log", base=2)
    crowded = np.append(False, np.diff(np.log2(bits)) < 0.2)
    axes.set_xticks(bits, ["" if close else f"{p:.0f}" for p, close in zip(bits, crowded, strict=True)])
    axes.minorticks_off()
    axes.set(xlabel="significand bits p", ylabel="flat directions")
    axes.margins(y=0.15)
    return finished(axes)


def draw_loss_floor(measured: Measured, axes: Axes) -> Axes:
    """The loss that formats leave against p, every seed thin and its part that sees every mode thick, with the predicted slope.

    Args:
        measured: from `dimension.measure`.
        axes: where to draw.

    Returns:
        The axes.
    """
    bits = np.asarray(measured.coords["dimension_floor_precision"], np.float64)
    logs = np.log2(np.maximum(measured.arrays["dimension_loss"].values, 1e-32))
    axes.plot(bits, logs, color="0.6", lw=0.6, alpha=0.6)
    axes.plot(bits, np.where(saw_and_stagnated(measured), logs, np.nan), color=BLUE, lw=1.2, alpha=0.7)
    middle = np.median(logs, axis=1)
    axes.plot(bits, middle[-1] - 2 * (bits - bits[-1]), color=VERMILION, lw=2, label="slope -2")
    axes.plot([], [], color=BLUE, lw=1.2, label="seeds, where the format sees every mode at the start")
    axes.plot([], [], color="0.6", lw=0.6, label="where it does not, or went on moving")
    axes.set(xlabel="significand bits p", ylabel="log₂ of the loss at the end", xticks=bits)
    return finished(axes, loc="lower left")
