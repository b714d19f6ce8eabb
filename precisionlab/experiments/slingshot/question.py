"""Does it help an overfitted network to shrink all its weights and train a little more, and do high frequencies fall off?

N. Teague ("Global Minima: data types matter", 2022) proposes the slingshot: train to overfit on little data, multiply every
weight by 0.2, train a few epochs more, until the weights are as large as before. He expects generalization to improve because
the high-frequency parts of the learned function, small in the weights, fall off the register. These are two claims, and each
has rivals:

    the effect      shrinking takes the network back to a larger training loss, where the same run generalized better before:
                    early stopping at equal training loss. Or any small weights would do: fresh ones, or the same ones permuted,
                    at equal norms; or weight decay. Training on without shrinking is the control for all of them. What is seen
                    depends on when one looks: after 1, 2.5, 5, 10 and 50 % more steps, and when the norm is back.
    the mechanism   in the shrunk function high frequencies can be missing because the register lost them, or because tanh of
                    little is a line. A factor 1/4 is exact in floating point barring underflow, and 1/5 costs half an ulp at
                    most; in fixed point 1/4 drops two bits. So the spectrum of the learned function is taken four times:
                    before; shrunk, and beside it the same weights shrunk without any rounding; shrunk and *undone*, where
                    only what fell off the register can be missing; and after the training that follows. Planted worlds, in
                    which it is known what became of the high frequencies, go through the same rule in every run.

The files beside this one have the rule of the verdict, the arms and the data. Weights live in their register throughout,
stochastically rounded (a native dtype rounds to nearest); everything measured is computed on the stored weights, the spectra in
float64. Adam's moments begin anew in every arm, but for those in which they are kept, as Keras does.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal, Progress, stages
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.slingshot.arms import ARMS, REGISTERS, kind_of
from precisionlab.experiments.slingshot.looks import look_shares
from precisionlab.experiments.slingshot.measuring import measure_slingshot
from precisionlab.experiments.slingshot.pictures.figures import FIGURES
from precisionlab.experiments.slingshot.planted import planted_worlds
from precisionlab.experiments.slingshot.ratios import early_losses, recovered
from precisionlab.experiments.slingshot.settings import SlingshotConfig
from precisionlab.experiments.slingshot.sizes import (
    SIZED_ARMS,
    SIZED_REACH,
    SIZED_REGISTER,
    size_questions,
    size_sentence,
)
from precisionlab.experiments.slingshot.spectra import POINTS
from precisionlab.experiments.slingshot.tasks import TASKS
from precisionlab.experiments.slingshot.telling import in_short, rows_of, sentences
from precisionlab.experiments.slingshot.verdicts import ROLES, judge, overfitted
from precisionlab.numerics.modes import MODES
from precisionlab.runs.configs import ConfigError, config_as_dict
from precisionlab.runs.results import Labelled, Result

__all__ = ["SLINGSHOT", "SlingshotConfig", "run"]

_FOR_CERTAIN = 32


def run(config: SlingshotConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Train, sling and judge.

    Args:
        config: what to run.
        journal: where finished stages go; by default they stay in memory. A stage is one data set in all simulated registers,
            or in one native dtype, or with one number of points.
        progress: called between looks.

    Returns:
        A `Result` with, for each of the data, arrays named after it: losses along training (`_path_train`, `_path_test`) and
        after the slingshot (`_train`, `_test`), the `_norm` of the weights after it and `_norm_before`, `_early` (test loss of
        early stopping at equal training loss), `_memorized`, `_high` and `_total` power at the points, `_power` (the spectra),
        `_changed`; and `NAME_sizes_test`, ..., with an axis of numbers of points. Its rows: each arm in each kind of register.
    """
    if not isinstance(config, SlingshotConfig):
        raise ConfigError(f"slingshot: expected a SlingshotConfig; got {config!r}.")
    work = {name: partial(_stage, config, name, *what, progress) for name, what in _stages(config).items()}
    found = stages(work, journal=MemoryJournal() if journal is None else journal, progress=progress)
    return _result(config, found)


def _stages(config: SlingshotConfig) -> Mapping[str, tuple[str, tuple[str, ...], int | None]]:
    """Data, registers and points of each stage: the simulated formats together, each native dtype, each number of points."""
    simulated = tuple(name for name in config.registers if REGISTERS[name].dtype is None)
    parts = ([simulated] if simulated else []) + [(name,) for name in config.registers if name not in simulated]
    main = {f"{data} in {', '.join(part)}": (data, part, None) for data in config.data for part in parts}
    sized = [data for data in config.data if data in config.sized]
    return main | {f"{data} with {size} points": (data, (SIZED_REGISTER,), size) for data in sized for size in config.sizes}


def _stage(
    config: SlingshotConfig, name: str, data: str, names: tuple[str, ...], points: int | None, progress: Progress | None
) -> Measured:
    place = config.data.index(data)
    longest, seeds = (config.longest[place], config.seeds) if points is None else (SIZED_REACH, config.size_seeds)
    arms = ARMS if points is None else SIZED_ARMS
    arrays = measure_slingshot(
        TASKS[data](config.width) if points is None else TASKS[data](config.width, points),
        {register: REGISTERS[register] for register in names},
        arms,
        seeds,
        steps=config.steps[place],
        longest=longest,
        chunk=config.chunk,
        learning_rate=config.learning_rate,
        mode=MODES[config.mode],
        spectra=points is None,
        progress=(lambda *_: None) if progress is None else lambda done, total: progress(done, total, name),
    )
    register, size = f"{name}: register", "" if points is None else "size_"
    seed, arm, step, more, frequency = f"{size}seed", f"{size}arm", f"{data}_step", f"{data}_{size}more", f"{data}_frequency"
    coords: dict[str, Any] = {
        register: names,
        arm: tuple(arms),
        step: np.arange(0, config.steps[place] + 1, config.chunk),
        more: look_shares(longest),
        seed: range(seeds),
    }
    axes = {
        **dict.fromkeys(("path_train", "path_test"), (seed, step)),
        **dict.fromkeys(("train", "test", "norm"), (arm, seed, more)),
        **dict.fromkeys(("memorized", "norm_before"), (seed,)),
        **dict.fromkeys(("changed", "changed_normal"), (arm, seed)),
    }
    if points is None:
        coords |= {"point": POINTS, frequency: arrays.pop("frequencies")}
        axes |= {**dict.fromkeys(("high", "total"), (arm, "point", seed)), "power": (arm, "point", frequency)}
    return Measured(coords, {f"{name}: {kind}": Labelled((register, *axes[kind]), arrays[kind]) for kind in arrays})


def _result(config: SlingshotConfig, found: Measured) -> Result:
    """All stages side by side, early stopping beside them, and what follows."""
    coords: dict[str, Any] = {"register": config.registers, **{k: v for k, v in found.coords.items() if ": register" not in k}}
    arrays: dict[str, Labelled] = {}
    measured: dict[str, dict[str, Any]] = {}
    sized: dict[str, dict[int, dict[str, Any]]] = {}
    parts = _stages(config)
    for data in config.data:
        mine = {name: names for name, (of, names, points) in parts.items() if of == data and points is None}
        order = [register for names in mine.values() for register in names]
        places = [order.index(register) for register in config.registers]
        joined = _joined(found, list(mine), "register", places)
        arrays |= {f"{data}_{kind}": array for kind, array in joined.items()}
        of = {kind: array.values for kind, array in joined.items()}
        of |= {"shares": coords[f"{data}_more"], "points": TASKS[data](config.width).points}
        of["early"] = early_losses(of, list(ARMS).index(ROLES["none"]))
        arrays[f"{data}_early"] = Labelled(("register", "arm", "seed"), of["early"])
        measured[data] = of
        if with_sizes := {points: name for name, (of_data, _, points) in parts.items() if of_data == data and points}:
            coords["size"] = config.sizes
            joined = _joined(found, list(with_sizes.values()), "size", range(len(with_sizes)))
            arrays |= {f"{data}_sizes_{kind}": array for kind, array in joined.items()}
            sized[data] = {}
            for place, points in enumerate(with_sizes):
                each = {kind: array.values[place : place + 1] for kind, array in joined.items()}
                each |= {"shares": coords[f"{data}_size_more"], "points": points}
                sized[data][points] = each | {"early": early_losses(each, list(SIZED_ARMS).index(ROLES["none"]))}
    kinds = [kind_of(name) for name in config.registers]
    judged = judge(measured, kinds, tuple(ARMS), [each for data, of in sized.items() for each in size_questions(data, of)])
    worlds = planted_worlds()
    rows = [row for data, of in measured.items() for row in rows_of(data, of, kinds, tuple(ARMS))]
    for data, sizes in sized.items():
        rows += [row for of in sizes.values() for row in rows_of(data, of, ["float32"], tuple(SIZED_ARMS))]
    return Result(
        experiment="slingshot",
        config=config_as_dict(config),
        coords=coords,
        arrays=arrays,
        rows=tuple(rows),
        claims=(*judged.claims, *(world.claim for world in worlds)),
        verdict=_verdict(config, measured, judged, all(world.answer == world.expected for world in worlds)),
    )


def _joined(found: Measured, stage_names: list[str], axis: str, order: Any) -> dict[str, Labelled]:
    """The arrays of several stages, by kind, along a first axis of their registers, or of their sizes."""
    prefix = f"{stage_names[0]}: "
    joined = {}
    for kind in [name.removeprefix(prefix) for name in found.arrays if name.startswith(prefix)]:
        pieces = [found.arrays[f"{name}: {kind}"] for name in stage_names]
        joined[kind] = Labelled((axis, *pieces[0].dims[1:]), np.concatenate([piece.values for piece in pieces])[list(order)])
    return joined


def _verdict(config: SlingshotConfig, measured: Mapping[str, Mapping[str, Any]], judged: Any, valid: bool) -> str:
    """What was measured, in sentences."""
    kinds = [kind_of(name) for name in config.registers]
    counts = {}
    for data, of in measured.items():
        for kind in dict.fromkeys(kinds):
            members = overfitted(of, [place for place, other in enumerate(kinds) if other == kind])
            counts[data, kind] = (*recovered(of, members, tuple(ARMS), ROLES["essay"]), of["shares"][-1])
    told = [in_short(judged.answers, judged.mechanism), *sentences(judged.answers, judged.mechanism, counts)]
    told += [sentence for data in config.data for sentence in size_sentence(data, judged.answers)]
    invalid = "" if valid else "invalid: the rule does not name every planted world rightly. "
    few = "" if config.seeds >= _FOR_CERTAIN else f" ({config.seeds} seeds can leave undecided what {_FOR_CERTAIN} decide.)"
    return invalid + "\n".join(told) + few


SLINGSHOT = Experiment(
    name="slingshot",
    question="Does shrinking all weights of an overfitted network help, and because high frequencies fall off the register?",
    config=SlingshotConfig,
    quick={
        "data": ("waves", "digits"),
        "registers": ("float32", "fixed8"),
        "seeds": 12,
        "steps": (2400, 800),
        "longest": (0.5, 0.5),
        "sizes": (),
    },
    full={
        "seeds": 64,
        "registers": (
            "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "fixed16", "fixed12", "fixed8", "native bfloat16",
            "native float16",
        ),
        "longest": (3.0, 1.3, 3.0),
        "sizes": (16, 32, 64, 128, 256, 512),
        "sized": ("waves", "relu_waves", "digits"),
        "size_seeds": 32,
    },
    run=run,
    columns=(
        "data", "points", "registers", "arm", "against", "at_1", "at_2.5", "at_5", "at_10", "at_50", "at_norm", "norm_back",
        "shrunk", "exact", "undone",
    ),
    figures=FIGURES,
)  # fmt: skip
