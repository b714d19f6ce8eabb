"""The questions: one file each, under one registry.

`MAIN` is what `precisionlab run` answers when no experiment is named.
"""

from precisionlab.experiments.base import Experiment, Journal, MemoryJournal
from precisionlab.experiments.bytes import BYTES, BytesConfig
from precisionlab.experiments.digits import DIGITS, DigitsConfig
from precisionlab.experiments.formats import FormatsConfig
from precisionlab.experiments.manifold import MANIFOLD, ManifoldConfig
from precisionlab.experiments.slingshot import SLINGSHOT, SlingshotConfig

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
