"""Which updates does a format lose on real data, and what does that cost?

A small network learns scikit-learn's digits with its weights stored in each of several formats, under each of several
rounding modes. At regular steps the fate of every single update is read. Two things are expected from the half-gap law alone:
the fewer significand bits, the larger the share of updates that round to nothing under nearest rounding; and stochastic
rounding, which lands small updates in proportion to their size, trains further wherever that share is large.
"""

from dataclasses import dataclass

from precisionlab.experiments.common.experiment import Experiment, Journal, Progress
from precisionlab.experiments.formats.comparison import FIGURES, FormatsConfig, compare_formats, table_columns
from precisionlab.problems import digits as digits_problem
from precisionlab.runs.configs import ConfigError
from precisionlab.runs.results import Result

__all__ = ["DIGITS", "DigitsConfig", "run"]

_METRICS = ("train_loss", "test_accuracy")


@dataclass(frozen=True)
class DigitsConfig(FormatsConfig):
    """The arms and the training, as in `FormatsConfig`, and the network.

    Attributes:
        hidden: units of the hidden layers.
    """

    hidden: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}; give at least one layer of at least one unit.")


def run(config: DigitsConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Train every arm and say what was lost; see `compare_formats` for what the result holds.

    Args:
        config: the arms and the network.
        journal: where rows go between chunks; by default they stay in memory.
        progress: called between chunks.

    Example:
        >>> arms = {"formats": ("bfloat16", "float8_e4m3fn"), "modes": ("nearest_even",), "optimizer": "sgd", "hidden": (4,)}
        >>> result = run(DigitsConfig(**arms, seeds=2, steps=20, every=10, chunk=20))
        >>> [row["format"] for row in result.rows], [claim.held for claim in result.claims]
        (['bfloat16', 'float8_e4m3fn'], [True])
    """
    if not isinstance(config, DigitsConfig):
        raise ConfigError(f"digits: expected a DigitsConfig; got {config!r}.")
    problem = digits_problem(sizes=(64, *config.hidden, 10), batch_size=config.batch_size)
    return compare_formats("digits", problem, _METRICS, config, journal=journal, progress=progress)


DIGITS = Experiment(
    name="digits",
    question="Which updates does each format lose when a network learns digits, and what does that cost?",
    config=DigitsConfig,
    quick={"seeds": 3, "steps": 400, "every": 20, "chunk": 100},
    full={},
    run=run,
    columns=table_columns(*_METRICS),
    figures=FIGURES,
)
