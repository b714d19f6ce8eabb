"""What holds a transformer: its curvature in Adam's metric beside decay's pull and the formats' gaps."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import BLUE, DOT, GREEN, VERMILION, finished

__all__ = ["draw_decay", "draw_held", "draw_spectrum", "draw_transformer"]

_COLOURS = {"geometry": BLUE, "decay": GREEN, "format": VERMILION}


def draw_transformer(measured: Measured, figure: Any) -> Any:
    """All three panels."""
    for axes, draw in zip(figure.subplots(1, 3), (draw_spectrum, draw_held, draw_decay), strict=True):
        draw(measured, axes)
    return figure


def draw_spectrum(measured: Measured, axes: Axes) -> Axes:
    """How many directions have lr lambda above a threshold, with the thresholds of bfloat16 and of decay."""
    powers = np.asarray(measured.coords["transformer_power"], np.float64)
    counts, n = measured.arrays["transformer_counts"].values, float(measured.arrays["transformer_n"].values)
    pull = np.log2(float(measured.arrays["transformer_lr"].values) * float(measured.arrays["transformer_mu"].values))
    shown = powers >= pull - 2  # below it the quadrature has no resolution
    axes.semilogy(powers[shown], np.where(counts > 0, counts, np.nan)[shown], "o-", color=BLUE, lw=1, **DOT)
    axes.axhline(n, color="0.3", lw=1, ls="--", label=f"all n = {n:,.0f}")
    axes.axvline(-8, color=VERMILION, lw=1.5, label="2^-8: bfloat16 sees what is to the right")
    axes.axvline(pull, color=GREEN, lw=1.5, label=f"lr mu = 2^{pull:.1f}: the pull of decay")
    axes.set(xlabel="log₂ of lr λ, λ in Adam's metric", ylabel="directions with more", ylim=(0.5, 30 * n))
    return finished(axes, loc="upper right", fontsize="small")


def draw_held(measured: Measured, axes: Axes) -> Axes:
    """The share of the directions that curvature, decay and the format hold, by bits."""
    bits = list(measured.coords["transformer_bits"])
    shares = measured.arrays["transformer_held"].values.mean(axis=-1) / float(measured.arrays["transformer_n"].values)
    at, below = np.arange(len(bits)), np.zeros(len(bits))
    for k, holder in enumerate(measured.coords["transformer_holder"]):
        axes.bar(at, 100 * shares[:, k], 0.7, bottom=100 * below, color=_COLOURS[holder], alpha=0.8, label=f"held by {holder}")
        below = below + shares[:, k]
    axes.set_xticks(at, [str(p) for p in bits])
    axes.set(xlabel="significand bits p", ylabel="directions (%)", ylim=(0, 125))
    return finished(axes, grid="y", loc="upper right", fontsize="small")


def draw_decay(measured: Measured, axes: Axes) -> Axes:
    """How much smaller decay makes the weights, arm by arm."""
    rms, arms = measured.arrays["transformer_rms"].values, list(measured.coords["transformer_arm"])
    shrunk = 100 * (1 - rms[:, 1] / rms[:, 0])
    axes.bar(range(len(arms)), shrunk.mean(axis=1), 0.6, color=(BLUE, VERMILION, GREEN), alpha=0.8)
    axes.plot(np.repeat(range(len(arms)), shrunk.shape[1]), shrunk.ravel(), ".", color="0.2", label="seeds")
    axes.set_xticks(range(len(arms)), [arm.replace(", ", ",\n") for arm in arms], fontsize="small")
    axes.set(ylabel="weights smaller with decay than without (%)")
    return finished(axes, grid="y", loc="upper center", fontsize="small")
