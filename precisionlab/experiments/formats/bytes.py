"""Which updates does a format lose when a transformer learns to read, and what does that cost?

A small transformer predicts the next byte of Python's own standard library: the same question as that of the digits, asked of
the architecture of language models. Its norm weights begin at exactly 1.0, where the gaps of a format are wide beside an update
of the usual size, so that they are the first to freeze (`worst_layer` says); its matrices hold many small weights, among which
the gaps are narrow. The text differs between versions of Python; the provenance of a run holds its digest.
"""

from dataclasses import dataclass, replace

from precisionlab.experiments.common.experiment import Experiment, Journal, Progress
from precisionlab.experiments.common.requests import check_positive
from precisionlab.experiments.formats.comparison import FIGURES, FormatsConfig, compare_formats, table_columns
from precisionlab.problems import load_bytes, text
from precisionlab.runs.configs import ConfigError
from precisionlab.runs.results import Result

__all__ = ["BYTES", "BytesConfig", "run"]

_METRICS = ("train_loss", "test_loss", "test_bits_per_byte")


@dataclass(frozen=True)
class BytesConfig(FormatsConfig):
    """The arms and the training, as in `FormatsConfig`, and the network.

    Attributes:
        context: bytes seen at once.
        width: of the residual stream; a multiple of heads.
        heads: of each attention.
        layers: blocks of attention and feed-forward.
        limit: size of the corpus in bytes.
    """

    formats: tuple[str, ...] = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    seeds: int = 3
    steps: int = 600
    every: int = 20
    chunk: int = 100
    batch_size: int = 16
    learning_rate: float = 3e-3
    context: int = 16
    width: int = 32
    heads: int = 2
    layers: int = 1
    limit: int = 500_000

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        super().__post_init__()
        check_positive(self, "context", "width", "heads", "layers")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}, heads={self.heads}: width must be a multiple of heads.")


def run(config: BytesConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Train every arm and say what was lost; see `compare_formats` for what the result holds.

    Args:
        config: the arms and the network.
        journal: where rows go between chunks; by default they stay in memory.
        progress: called between chunks.

    Raises:
        ConfigError: if the text is too short, or this Python came without its sources.
    """
    if not isinstance(config, BytesConfig):
        raise ConfigError(f"bytes: expected a BytesConfig; got {config!r}.")
    shape = {name: getattr(config, name) for name in ("context", "width", "heads", "layers", "batch_size", "limit")}
    try:
        problem = text(**shape)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"bytes: {error}") from error
    result = compare_formats("bytes", problem, _METRICS, config, journal=journal, progress=progress)
    return replace(result, provenance={"corpus_sha256": load_bytes(config.limit).digest})


BYTES = Experiment(
    name="bytes",
    question="Which updates does each format lose when a transformer learns to read, and what does that cost?",
    config=BytesConfig,
    quick={"seeds": 2, "steps": 200, "every": 20, "chunk": 100},
    full={},
    run=run,
    columns=table_columns("train_loss", "test_bits_per_byte"),
    figures=FIGURES,
)
