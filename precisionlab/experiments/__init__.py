"""The questions: one file each, under one registry.

`MAIN` is what `precisionlab run` answers when no experiment is named.
"""

from precisionlab.experiments.base import Experiment, Journal, MemoryJournal
from precisionlab.experiments.bytes import BYTES, BytesConfig
from precisionlab.experiments.digits import DIGITS, DigitsConfig
from precisionlab.experiments.formats import FormatsConfig

__all__ = [
    "BYTES",
    "DIGITS",
    "EXPERIMENTS",
    "MAIN",
    "BytesConfig",
    "DigitsConfig",
    "Experiment",
    "FormatsConfig",
    "Journal",
    "MemoryJournal",
]

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (DIGITS, BYTES)}
MAIN = "digits"
