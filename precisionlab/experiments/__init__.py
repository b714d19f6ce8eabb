"""The questions: one room each, under one registry.

`MAIN` is what `precisionlab run` answers when no experiment is named.
"""

from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal
from precisionlab.experiments.formats.bytes import BYTES, BytesConfig
from precisionlab.experiments.formats.comparison import FormatsConfig
from precisionlab.experiments.formats.digits import DIGITS, DigitsConfig
from precisionlab.experiments.manifold.question import MANIFOLD, ManifoldConfig
from precisionlab.experiments.slingshot.question import SLINGSHOT, SlingshotConfig

__all__ = [
    "BYTES",
    "DIGITS",
    "EXPERIMENTS",
    "MAIN",
    "MANIFOLD",
    "SLINGSHOT",
    "BytesConfig",
    "DigitsConfig",
    "Experiment",
    "FormatsConfig",
    "Journal",
    "ManifoldConfig",
    "MemoryJournal",
    "SlingshotConfig",
]

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (MANIFOLD, SLINGSHOT, DIGITS, BYTES)}
MAIN = "manifold"
