"""The pictures of `run manifold`: one for each measurement, drawn from the stored arrays."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt

from precisionlab.experiments.common.measured import Measured, taken_apart
from precisionlab.experiments.manifold.pictures.controls import draw_ring, draw_theorem
from precisionlab.experiments.manifold.pictures.counts import draw_counts
from precisionlab.experiments.manifold.pictures.drift import draw_drift, draw_hyperbola
from precisionlab.experiments.manifold.pictures.floors import draw_loss_floor
from precisionlab.experiments.manifold.pictures.lattices import draw_census, draw_extents
from precisionlab.experiments.manifold.pictures.margins import draw_margins
from precisionlab.experiments.manifold.pictures.probes import draw_decay, draw_walkers
from precisionlab.experiments.manifold.pictures.sizes import draw_sizes
from precisionlab.experiments.manifold.pictures.training import draw_spectra, draw_two_by_two, draw_unfreezing
from precisionlab.experiments.manifold.pictures.transformer import draw_transformer
from precisionlab.runs.results import Result

__all__ = ["FIGURES"]


_WORDS = {"generic": "random points", "digits": "digits"}


def _parts(result: Result, name: str) -> dict[str, Measured]:
    """What one measurement found, by the data on which it was made."""
    apart = taken_apart(Measured(result.coords, result.arrays))
    return {data or result.config["data"][0]: part for (of, data), part in apart.items() if of == name}


def _missing(name: str, width: float, height: float) -> Any:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.text(0.5, 0.5, f"{name} was not measured in this run", ha="center")
    axes.set_axis_off()
    return figure


def _one(name: str, draw: Callable[..., Any], width: float = 8.5, height: float = 4.8) -> Callable[[Result], Any]:
    """A figure with a panel for each of the data on which this was measured."""

    def drawn(result: Result) -> Any:
        parts = _parts(result, name)
        if not parts:
            return _missing(name, width, height)
        size = (width, height * len(parts))
        figure, axes = plt.subplots(len(parts), 1, figsize=size, layout="constrained", squeeze=False)
        for ax, (data, part) in zip(axes[:, 0], parts.items(), strict=True):
            draw(part, ax)
            if len(parts) > 1:
                ax.set_title(f"{ax.get_title()} {_WORDS[data]}".strip())
        return figure

    return drawn


def _several(name: str, draw: Callable[..., Any], width: float, height: float) -> Callable[[Result], Any]:
    """A figure with several panels for each of the data on which this was measured."""

    def drawn(result: Result) -> Any:
        parts = _parts(result, name)
        if not parts:
            return _missing(name, width, height)
        figure = plt.figure(figsize=(width, height * len(parts)), layout="constrained")
        places = figure.subfigures(len(parts), 1, squeeze=False)[:, 0]
        for place, (data, part) in zip(places, parts.items(), strict=True):
            draw(part, place)
            if len(parts) > 1:
                place.suptitle(_WORDS[data])
        return figure

    return drawn


def _counts(result: Result) -> Any:
    parts = _parts(result, "directions")
    return draw_counts(parts) if parts else _missing("directions", 8.5, 4.8)


FIGURES: dict[str, Callable[[Result], Any]] = {
    "The answer: directions that are flat in a format, in float64, and in the format when no update is lost": _counts,
    "Decay: how far it moves weights of a few bits along the manifold that the data leave": _one("decay", draw_decay),
    "Walkers: directions in which stochastic rounding still spreads": _one("walkers", draw_walkers),
    "Drift: what is left of it after zero loss, in nets": _several("drift", draw_drift, 13, 5.2),
    "Drift: what is left of it in two weights": _several("hyperbola", draw_hyperbola, 11, 5.2),
    "Sizes: directions that a format sees, in nets of thousands of weights": _several("sizes", draw_sizes, 12, 9),
    "A transformer in bfloat16: what holds its weights": _several("transformer", draw_transformer, 14, 4.6),
    "Census: the lattice points that fit the data, against the bits of the lattice": _one("census", draw_census),
    "Extents: how far from a minimum no weight moves": _one("extents", draw_extents),
    "The theorem: eigenvalues of the Hessian at minima in float64, and their gap at d r": _one("theorem", draw_theorem),
    "Unfreezing: stagnated weights go on in float64": _one("stagnation", draw_unfreezing),
    "Spectra where updates stagnate, and at the minimum": _one("stagnation", draw_spectra),
    "Two by two: stagnation and lattice, each alone": _one("repair", draw_two_by_two),
    "The positive control: four minima that look like a ring": _several("ring", draw_ring, 11, 4.8),
    "The loss that formats leave": _one("floor", draw_loss_floor),
    "Cross-entropy: the margin beyond which the computed loss is exactly zero": _one("margins", draw_margins),
}
