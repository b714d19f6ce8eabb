"""Row 8: the loss at the end against the bits of the format."""

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import BLUE, VERMILION, finished
from precisionlab.experiments.manifold.floor import saw_and_stagnated

__all__ = ["draw_loss_floor"]


def draw_loss_floor(measured: Measured, axes: Axes) -> Axes:
    """The loss that formats leave against p, with the predicted slope; every seed thin, and thick where p sees every mode."""
    bits = np.asarray(measured.coords["floor_precision"], np.float64)
    logs = np.log2(np.maximum(measured.arrays["floor_loss"].values, 1e-32))
    axes.plot(bits, logs, color="0.6", lw=0.6, alpha=0.6)
    axes.plot(bits, np.where(saw_and_stagnated(measured), logs, np.nan), color=BLUE, lw=1.2, alpha=0.7)
    middle = np.median(logs, axis=1)
    axes.plot(bits, middle[-1] - 2 * (bits - bits[-1]), color=VERMILION, lw=2, label="slope -2")
    axes.plot([], [], color=BLUE, lw=1.2, label="seeds, where the format sees every mode at the start")
    axes.plot([], [], color="0.6", lw=0.6, label="where it does not, or went on moving")
    axes.set(xlabel="significand bits p", ylabel="log₂ of the loss at the end", xticks=bits)
    return finished(axes, loc="lower left")
