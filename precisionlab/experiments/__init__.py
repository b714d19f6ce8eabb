"""The questions: one file each, under one registry.

`MAIN` is what `precisionlab run` answers when no experiment is named.
"""

from precisionlab.experiments.base import Experiment, Journal, MemoryJournal
from precisionlab.experiments.digits import DIGITS, DigitsConfig

__all__ = ["DIGITS", "EXPERIMENTS", "MAIN", "DigitsConfig", "Experiment", "Journal", "MemoryJournal"]

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (DIGITS,)}
MAIN = "digits"
