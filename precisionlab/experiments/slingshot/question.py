"""Does it help an overfitted network to shrink all its weights and train a little more, and do high frequencies fall off?

N. Teague ("Global Minima: data types matter", 2022) proposes the slingshot: train to overfit, multiply every weight by 0.2,
train a few epochs more. He expects generalization to improve because the high-frequency parts of the learned function, small in
the weights, fall off the register. These are two claims, and each has a rival:

    the effect      shrinking takes the network back to a larger training loss, where the same run generalized better before:
                    early stopping at equal training loss. Or any small weights would do: fresh ones, or the same ones permuted,
                    at equal norms; or weight decay. Training on without shrinking is the control for all of them.
    the mechanism   a factor 1/4 is exact in floating point barring underflow, and 1/5 costs half an ulp at most; in fixed point
                    1/4 drops two bits. So the spectrum of the learned function is taken three times: before; after shrinking
                    *and undoing it*, where only what fell off the register can be missing; and after the training that follows.
                    Only a fall of the high frequencies at the second supports the mechanism. Two more arms separate its parts:
                    two bits fewer without shrinking, and shrinking into a register with two bits more.

The files beside this one have the rule of the verdict, the arms and the data. Weights live in their register throughout,
stochastically rounded (a native dtype rounds to nearest); everything measured is computed on the stored weights, the spectra in
float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from precisionlab._nearest import allowed_names
from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal, Progress, stages
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.slingshot.arms import ARMS, REGISTERS
from precisionlab.experiments.slingshot.measuring import POINTS, measure_slingshot
from precisionlab.experiments.slingshot.pictures import FIGURES
from precisionlab.experiments.slingshot.tasks import TASKS
from precisionlab.experiments.slingshot.verdicts import ROLES, at_equal_loss, judge
from precisionlab.numerics.modes import MODES
from precisionlab.runs.configs import ConfigError, config_as_dict
from precisionlab.runs.results import Labelled, Result
from precisionlab.runs.summary import interval

__all__ = ["SLINGSHOT", "SlingshotConfig", "run"]

_KINDS = {True: "floating point", False: "fixed point"}
_FOR_CERTAIN = 16


@dataclass(frozen=True)
class SlingshotConfig:
    """The data, the registers and the training; the arms are always all of `arms`.

    Attributes:
        data: waves, digits.
        registers: names in `arms.REGISTERS`.
        seeds: how many; each has data, labels' noise and initial weights of its own, the same for every register and arm.
        steps: updates until the slingshot, for each of `data`.
        more: updates after it.
        chunk: updates between two looks at the losses.
        mode: how simulated registers round weights.
        learning_rate: Adam's.
        width: units of the hidden layers.

    Raises:
        ValueError: for unknown names, numbers that make no sense, or steps that are no multiples of `chunk`.

    Example:
        >>> SlingshotConfig(data=("waves",), steps=(400,), more=(40,), seeds=4).registers[:3]
        ('float32', 'float16', 'bfloat16')
    """

    data: tuple[str, ...] = ("waves", "digits")
    registers: tuple[str, ...] = ("float32", "float16", "bfloat16", "fixed12", "fixed8", "native bfloat16")
    seeds: int = 32
    steps: tuple[int, ...] = (3600, 1600)
    more: tuple[int, ...] = (360, 160)
    chunk: int = 40
    mode: str = "stochastic"
    learning_rate: float = 3e-3
    width: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        known = (("data", self.data, TASKS), ("registers", self.registers, REGISTERS), ("mode", (self.mode,), MODES))
        for field, names, allowed in known:
            if not names:
                raise ValueError(f"{field} is empty; name at least one of {', '.join(allowed)}.")
            for name in names:
                if name not in allowed:
                    raise ValueError(f'{field} holds an unknown name "{name}"; {allowed_names(name, allowed)}')
            if len(set(names)) != len(names):
                raise ValueError(f"{field} names {', '.join(names)}; name each once.")
        for field in ("steps", "more"):
            if len(getattr(self, field)) != len(self.data):
                raise ValueError(f"{field} is {getattr(self, field)}; give one number for each of {', '.join(self.data)}.")
        for field, value in (("seeds", self.seeds), ("chunk", self.chunk), ("width", self.width)):
            if value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1.")
        for field in ("steps", "more"):
            if any(value < 1 or value % self.chunk for value in getattr(self, field)):
                raise ValueError(f"{field} is {getattr(self, field)}; allowed are positive multiples of chunk={self.chunk}.")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be a positive number.")


def run(config: SlingshotConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Train, sling and judge.

    Args:
        config: what to run.
        journal: where finished stages go; by default they stay in memory. A stage is one data set in all simulated registers,
            or in one native dtype.
        progress: called between chunks.

    Returns:
        A `Result` with, for each of the data, arrays named after it: losses along training (`_path_train`, `_path_test`) and
        after the slingshot (`_train`, `_test`), `_early` (test loss of early stopping at equal training loss), `_memorized`,
        `_high` and `_total` power at the three points, `_power` (the spectra), `_changed`. Its rows: each arm in each kind of
        register.
    """
    if not isinstance(config, SlingshotConfig):
        raise ConfigError(f"slingshot: expected a SlingshotConfig; got {config!r}.")
    work = {name: partial(_stage, config, name, data, native, progress) for name, (data, native) in _stages(config).items()}
    found = stages(work, journal=MemoryJournal() if journal is None else journal, progress=progress)
    return _result(config, found)


def _stages(config: SlingshotConfig) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Data and registers of each stage: the simulated formats together, and each native dtype."""
    simulated = tuple(name for name in config.registers if REGISTERS[name].dtype is None)
    parts = ([simulated] if simulated else []) + [(name,) for name in config.registers if name not in simulated]
    return {f"{data} in {', '.join(part)}": (data, part) for data in config.data for part in parts}


def _stage(config: SlingshotConfig, name: str, data: str, names: tuple[str, ...], progress: Progress | None) -> Measured:
    place = config.data.index(data)
    arrays = measure_slingshot(
        TASKS[data](config.width),
        {register: REGISTERS[register] for register in names},
        ARMS,
        config.seeds,
        steps=config.steps[place],
        more=config.more[place],
        chunk=config.chunk,
        learning_rate=config.learning_rate,
        mode=MODES[config.mode],
        progress=(lambda *_: None) if progress is None else lambda done, total: progress(done, total, name),
    )
    frequencies = arrays.pop("frequencies")
    register = f"{name}: register"
    look, later = np.arange(0, config.steps[place] + 1, config.chunk), np.arange(0, config.more[place] + 1, config.chunk)
    coords = {
        register: names,
        "arm": tuple(ARMS),
        "point": POINTS,
        f"{data}_step": look,
        f"{data}_more": later,
        f"{data}_frequency": frequencies,
        "seed": range(config.seeds),
    }
    axes = {
        **dict.fromkeys(("path_train", "path_test"), ("seed", f"{data}_step")),
        **dict.fromkeys(("train", "test"), ("arm", "seed", f"{data}_more")),
        **dict.fromkeys(("high", "total"), ("arm", "point", "seed")),
        "memorized": ("seed",),
        "power": ("arm", "point", f"{data}_frequency"),
        **dict.fromkeys(("changed", "changed_normal"), ("arm", "seed")),
    }
    return Measured(coords, {f"{name}: {kind}": Labelled((register, *axes[kind]), arrays[kind]) for kind in arrays})


def _result(config: SlingshotConfig, found: Measured) -> Result:
    """All stages side by side, early stopping beside them, and what follows."""
    coords: dict[str, Any] = {"register": config.registers, **{k: v for k, v in found.coords.items() if ": register" not in k}}
    arrays: dict[str, Labelled] = {}
    measured: dict[str, dict[str, np.ndarray]] = {}
    parts = _stages(config)
    for data in config.data:
        mine = {name: names for name, (of, names) in parts.items() if of == data}
        order = [register for names in mine.values() for register in names]
        places = [order.index(register) for register in config.registers]
        prefix = f"{next(iter(mine))}: "
        for kind in [name.removeprefix(prefix) for name in found.arrays if name.startswith(prefix)]:
            pieces = [found.arrays[f"{name}: {kind}"] for name in mine]
            values = np.concatenate([piece.values for piece in pieces])[places]
            arrays[f"{data}_{kind}"] = Labelled(("register", *pieces[0].dims[1:]), values)
        of = {kind.removeprefix(f"{data}_"): array.values for kind, array in arrays.items() if kind.startswith(f"{data}_")}
        early, reached = _early(of)
        for kind, values in (("early", early), ("early_reached", reached)):
            arrays[f"{data}_{kind}"] = Labelled(("register", "arm", "seed"), values)
        measured[data] = {**of, "early": early, "before": of["path_test"][..., -1], "after": of["test"][..., -1]}
    kinds = [_KINDS[REGISTERS[name].floating] for name in config.registers]
    judged = judge(measured, kinds, tuple(ARMS))
    return Result(
        experiment="slingshot",
        config=config_as_dict(config),
        coords=coords,
        arrays=arrays,
        rows=tuple(_rows(measured, kinds)),
        claims=judged.claims,
        verdict=_verdict(judged.effect, judged.mechanism, config.seeds),
    )


def _early(of: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each arm, early stopping where its run, trained on without the slingshot, had the arm's last training loss."""
    none = list(ARMS).index(ROLES["none"])
    train, test = (np.concatenate([of[f"path_{kind}"], of[kind][:, none, :, 1:]], axis=-1) for kind in ("train", "test"))
    target = of["train"][..., -1]
    early, reached = np.empty(target.shape), np.empty(target.shape, bool)
    for register, seed in np.ndindex(target.shape[0], target.shape[2]):
        here = register, slice(None), seed
        early[here], reached[here] = at_equal_loss(train[register, seed], test[register, seed], target[here])
    return early, reached


def _rows(measured: Mapping[str, Mapping[str, np.ndarray]], kinds: list[str]) -> list[dict[str, Any]]:
    rows = []
    for data, of in measured.items():
        for kind in dict.fromkeys(kinds):
            members = [place for place, other in enumerate(kinds) if other == kind]
            for place, arm in enumerate(ARMS):
                samples = {
                    "train_loss": of["train"][members, place, :, -1],
                    "test_loss": of["after"][members, place],
                    "over_before": of["after"][members, place] / of["before"][members],
                    "over_early": of["after"][members, place] / of["early"][members, place],
                    "high_undone": of["high"][members, place, 1] / of["high"][members, place, 0],
                    "high_after": of["high"][members, place, 2] / of["high"][members, place, 0],
                }
                row: dict[str, Any] = {"data": data, "registers": kind, "arm": arm}
                for name, values in samples.items():
                    logs = np.log2(np.maximum(values, 1e-300)).mean(axis=0)
                    low, high = interval(logs)
                    row |= {name: 2.0 ** float(logs.mean()), f"{name}_low": 2.0**low, f"{name}_high": 2.0**high}
                rows.append(row)
    return rows


def _verdict(effect: Mapping[tuple[str, str], str], mechanism: Mapping[tuple[str, str], str], seeds: int) -> str:
    def told(answers: Mapping[tuple[str, str], str]) -> str:
        return "; ".join(f"{', '.join(group)}: {answer}" for group, answer in answers.items())

    few = "" if seeds >= _FOR_CERTAIN else f" ({seeds} seeds can leave undecided what 32 decide.)"
    return f"effect: {told(effect)}. Mechanism: {told(mechanism)}.{few}"


SLINGSHOT = Experiment(
    name="slingshot",
    question="Does shrinking all weights of an overfitted network help, and because high frequencies fall off the register?",
    config=SlingshotConfig,
    quick={"seeds": 8, "registers": ("float32", "bfloat16", "fixed8")},
    full={
        "seeds": 128,
        "registers": (
            "float32", "float16", "bfloat16", "float8_e4m3fn", "fixed16", "fixed12", "fixed8", "native bfloat16",
            "native float16",
        ),
    },
    run=run,
    columns=("data", "registers", "arm", "train_loss", "test_loss", "over_before", "over_early", "high_undone", "high_after"),
    figures=FIGURES,
)  # fmt: skip
