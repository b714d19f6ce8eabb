"""Life after zero loss: what is left of the drift along the minima, against bits, in nets and in two weights."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.panels import AMBER, BELOW, BLUE, DOT, GREEN, PINK, VERMILION, finished
from precisionlab.experiments.manifold.drift import WORLDS
from precisionlab.experiments.manifold.hyperbola import NOISES

__all__ = ["draw_drift", "draw_hyperbola"]

_WORDS = {
    "gaussian": (BLUE, "Gaussian label noise"),
    "two_valued": (AMBER, "two-valued label noise"),
    "decay": (VERMILION, "weight decay"),
    "gaussian_decay": (PINK, "weight decay and Gaussian noise"),
}
_WIDEST = 15
"""Where 53 bits stand on an axis of bits."""


def draw_drift(measured: Measured, figure: Any) -> Any:
    """Shares of the drift under both roundings, laws as lines; and how far nets walk that nothing should move."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    bits, kept = _places(measured.coords["drift_bits"]), measured.arrays["drift_kept"].values[-1]
    stored, alone = (np.median(measured.arrays[f"drift_{name}"].values, axis=-1) for name in ("stored", "alone"))
    for axes, mode, title in ((left, 0, "rounded to nearest"), (middle, 1, "rounded stochastically")):
        for shift, (world, (colour, name)) in zip((-0.12, -0.04, 0.04, 0.12), _WORDS.items(), strict=True):
            k = WORLDS.index(world)
            label = name if mode == 0 else None
            _draw_shares(axes, bits + shift, kept[mode, k], colour, label)
            if mode == 0 and np.isfinite(stored[k]).all():
                axes.plot(bits[:-1], stored[k, :-1], color=colour, lw=1.8, zorder=1)
        axes.axhline(1.0, color="0.4", lw=1, ls="--", label="geometry" if mode == 0 else None, zorder=0)
        axes.set(title=title, xlabel="significand bits p", ylim=(-0.6, 1.9))
        _mark_widest(axes, measured.coords["drift_bits"], bits)
    gaussian = WORLDS.index("gaussian")
    left.plot(bits[:-1], alone[gaussian, :-1], color=BLUE, lw=1.4, ls=":", zorder=1)
    left.plot([], [], color="0.35", lw=1.8, label="representation, of the step that is stored")
    left.plot([], [], color=BLUE, lw=1.4, ls=":", label="representation, of the drift alone (Gaussian)")
    left.set_ylabel("drift along the minima, beside float64's")
    _draw_walk(measured, right)
    finished(left, **BELOW)
    middle.grid(alpha=0.25)
    return figure


def draw_hyperbola(measured: Measured, figure: Any) -> Any:
    """Two weights: what is left of the drift against bits; and in one format against the size of the noise, with its law."""
    left, right = figure.subplots(1, 2)
    bits, kept = _places(measured.coords["hyperbola_bits"]), measured.arrays["hyperbola_kept"].values
    for k, noise in enumerate(NOISES):
        colour, name = _WORDS[noise]
        _draw_shares(left, bits + 0.1 * (k - 0.5), kept[0, k], colour, f"{name}, nearest")
    _draw_shares(left, bits, kept[1, 0], GREEN, "Gaussian label noise, stochastic")
    for name, where in (
        ("predicted", "half is left, by the step that is stored"),
        ("alone", "half is left, by the drift alone"),
    ):
        at = measured.arrays[f"hyperbola_{name}"].values
        if np.isfinite(at).all():
            left.axvline(at.mean(), color="0.35", lw=1.4, ls="-" if name == "predicted" else ":", label=where, zorder=0)
    left.axhline(1.0, color="0.4", lw=1, ls="--", label="geometry", zorder=0)
    left.set(xlabel="significand bits p", ylabel="fall of x² - y², beside float64's", ylim=(-0.6, 1.9))
    _mark_widest(left, measured.coords["hyperbola_bits"], bits)
    sizes = np.asarray(measured.coords["hyperbola_size"])
    scan, law = (measured.arrays[f"hyperbola_{name}"].values for name in ("scan", "scan_law"))
    for k, noise in enumerate(NOISES):
        colour, name = _WORDS[noise]
        _draw_shares(right, sizes, scan[k], colour, name)
        right.plot(sizes, law[k], color=colour, lw=1.6, zorder=1)
    right.axhline(1.0, color="0.4", lw=1, ls="--", zorder=0)
    right.axhline(0.0, color="0.4", lw=1, zorder=0)
    right.axvline(0.5, color="0.6", lw=1, ls=":")
    right.text(0.51, 0.98, "half a gap", transform=right.get_xaxis_transform(), va="top", fontsize="small", color="0.4")
    right.plot([], [], color="0.35", lw=1.6, label="lines: the mean of the rounded step")
    right.set(
        xlabel="size of the step's noise, in gaps (6 bits, x = 1.5)", ylabel="drift of x, beside float64's", ylim=(-4, 12)
    )
    for axes in (left, right):
        finished(axes, **BELOW)
    return figure


def _draw_walk(measured: Measured, axes: Axes) -> None:
    """The still world: the way along the manifold against time, every format that has a square root of its own."""
    times, bits = np.asarray(measured.coords["drift_time"]), measured.coords["drift_bits"]
    along = measured.arrays["drift_along"].values[:, :, WORLDS.index("still")] / measured.arrays["drift_norm"].values
    narrow = [k for k, p in enumerate(bits) if p < 24]
    shown = [narrow[i] for i in np.unique(np.linspace(0, len(narrow) - 1, 4).round().astype(int))] if narrow else []
    for colour, k in zip((BLUE, VERMILION, GREEN, PINK), shown, strict=False):
        for mode, style in ((0, ":"), (1, "-")):
            mean = along[:, mode, k].mean(axis=-1)
            axes.plot(
                times, mean, style, marker="o", color=colour, label=f"{bits[k]} bits" if mode else None, **{**DOT, "ms": 5}
            )
        axes.plot(times, along[-1, 1, k].mean() * np.sqrt(times / times[-1]), color=colour, lw=4, alpha=0.2, zorder=0)
    axes.plot([], [], ":", color="0.35", label="to nearest")
    axes.plot([], [], "-", color="0.35", label="stochastically")
    axes.plot([], [], color="0.35", lw=4, alpha=0.2, label="square root of time")
    axes.set(xscale="log", yscale="log", title="no noise, no decay", xlabel="steps", ylabel="way along the minima / |w|")
    axes.set_xticks(times, [str(time) for time in times])
    axes.minorticks_off()
    finished(axes, **BELOW)


def _draw_shares(axes: Axes, x: np.ndarray, shares: np.ndarray, colour: str, label: str | None) -> None:
    """(places, seeds): the mean over seeds as a mark, twice its standard error as a bar."""
    mean = shares.mean(axis=-1)
    error = shares.std(axis=-1, ddof=1) / np.sqrt(shares.shape[-1]) if shares.shape[-1] > 1 else np.zeros_like(mean)
    axes.errorbar(x, mean, 2 * error, fmt="o", color=colour, label=label, elinewidth=1, **DOT)


def _places(bits: Any) -> np.ndarray:
    return np.minimum(np.asarray(bits, np.float64), max(_WIDEST, *(p + 1 for p in bits if p < 53)))


def _mark_widest(axes: Axes, bits: Any, places: np.ndarray) -> None:
    axes.set_xticks(places, [str(p) for p in bits])
