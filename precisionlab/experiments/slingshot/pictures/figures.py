"""What is drawn of a slingshot, by caption."""

from collections.abc import Callable, Mapping
from typing import Any

from precisionlab.experiments.slingshot.pictures.arms import draw_arms, draw_paths
from precisionlab.experiments.slingshot.pictures.courses import draw_courses, draw_sizes
from precisionlab.experiments.slingshot.pictures.spectra import draw_spectra
from precisionlab.runs.results import Result

__all__ = ["FIGURES"]

FIGURES: Mapping[str, Callable[[Result], Any]] = {
    "Test loss over that before, against more steps; stars: where the norm of the weights is back": draw_courses,
    "Spectra of the learned function: before, shrunk, shrunk and undone, and after training on": draw_spectra,
    "Test loss slung over before, and over fresh weights, against the number of training points": draw_sizes,
    "Test loss after each arm over that before, beside early stopping at equal training loss": draw_arms,
    "Test loss against training loss, on the way in and after the slingshot": draw_paths,
}
"""By caption; the first is saved beside the run."""
