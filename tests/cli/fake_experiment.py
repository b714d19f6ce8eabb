"""A tiny experiment without JAX, for the tests of the store and the command line.

It adds numbers for some steps, a segment at a time, and carries a float64 sum and a bfloat16 trace. `install` puts it
where the command line looks for experiments; `main` is that command line, and `BARE` starts it without JAX.
"""

import contextlib
import dataclasses
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from precisionlab.runs import results
from precisionlab.runs.results import Claim, Labelled, Result


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    """What the fake experiment is told."""

    formats: tuple[str, ...] = ("float32", "bfloat16")
    segments: int = 4
    rate: float = 0.5
    pause: float = 0.0

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments is {self.segments}, allowed is 1 or more.")


class FakeExperiment(NamedTuple):
    """The fields of a real experiment."""

    name: str
    question: str
    config: type
    quick: Mapping[str, Any]
    full: Mapping[str, Any]
    run: Callable[..., Result]
    columns: tuple[str, ...]
    figures: Mapping[str, Callable[[Result], Any]]


calls: list[int] = []  # the segments computed, in order
before_append: list[Callable[[int], None]] = []  # what a test wants to happen before a segment is written


def run_fake(config: FakeConfig, *, journal: Any = None, progress: Any = None) -> Result:
    """Add numbers, segment after segment."""
    from precisionlab.runs.configs import config_as_dict

    print("chatter that must not reach standard output")
    done, state = journal.resume()
    total: Any
    trace: Any
    total, trace = state if state else (np.zeros(()), np.zeros(3, ml_dtypes.bfloat16))
    for segment in range(done, config.segments):
        calls.append(segment)
        steps = np.arange(3) + 3 * segment
        sums = total + config.rate * np.cumsum(np.sin(steps + 0.1))
        total, trace = np.asarray(sums[-1]), (trace + sums).astype(ml_dtypes.bfloat16)
        for hook in before_append:
            hook(segment)
        journal.append({"step": steps, "loss": sums, "trace": trace, "format": np.array(["bfloat16"] * 3)}, [total, trace])
        if progress:
            progress(segment + 1, config.segments, "adding")
        time.sleep(config.pause)
    columns = journal.query("SELECT step, loss FROM records ORDER BY step")
    loss = columns["loss"]
    return Result(
        experiment="fake",
        config=config_as_dict(config),
        coords={"step": columns["step"], "format": config.formats},
        arrays={"loss": Labelled(("step",), loss), "trace": Labelled((), np.asarray(trace)[0])},
        rows=tuple(
            {
                "format": name,
                "loss": float(loss[-1]),
                "loss_low": float(loss[-1]) - 0.01,
                "loss_high": np.nan,
                "extra": 1,
            }
            for name in config.formats
        ),
        claims=(
            Claim("sum is small", "< 10", float(total), -1.0, 1.5, True),
            Claim("sum [of all] is large", 100.0, float("inf"), float("nan"), float("nan"), False),
            Claim("sum is fair", 0.0, 0.0, -1.0, 1.0, None),
        ),
        verdict="numbers add up",
    )


def draw_fake(result: Result) -> Any:
    """A figure of the sums."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    ax.plot(result.coords["step"], result.arrays["loss"].values)
    return figure


FAKE = FakeExperiment(
    "fake",
    "Do numbers add up?",
    FakeConfig,
    {"segments": 2},
    {"segments": 6},
    run_fake,
    ("format", "loss"),
    {"Sums": draw_fake},
)


PACKAGE = str(Path(results.__file__).parents[1])
# Code that makes `precisionlab` importable without what its `__init__` imports, which is all of JAX.
BARE = (
    "import sys, types\n"
    "sys.modules['precisionlab'] = package = types.ModuleType('precisionlab')\n"
    f"package.__path__ = [{PACKAGE!r}]\n"
)


def install(modules: dict[str, Any], fake: FakeExperiment = FAKE) -> None:
    """Stand in for `precisionlab.experiments` in `sys.modules`, or in what a test gives instead."""
    module: Any = types.ModuleType("precisionlab.experiments")
    module.EXPERIMENTS, module.MAIN = {"fake": fake}, "fake"
    modules["precisionlab.experiments"] = module


def main() -> None:
    """The command line with this experiment alone, for a process of its own."""
    from precisionlab.cli import main as cli
    from precisionlab.cli import running

    install(sys.modules, FAKE._replace(figures={}))
    # JAX would only cost time here, and compiles nothing.
    setattr(running, "_device", lambda: {"device": "none"})  # noqa: B010
    setattr(running, "programs_kept", lambda *_: contextlib.nullcontext())  # noqa: B010
    cli.main()
