"""Formats compared: one training, in several formats under several rounding modes, with the fate of every update.

Experiments that ask what formats do to training differ in their problem. What they share is here: the arms and the training as
a configuration, the run from problem to `Result`, and the figure. What is rounded is said by `sites`; the metrics of the
problem are always measured in float32 on the weights as stored, so that arms differ by what they learned and not by how it is
measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.common.experiment import Journal, MemoryJournal, Progress
from precisionlab.experiments.common.requests import check_names, check_positive
from precisionlab.experiments.formats.arms import BINS, FATES, SUMS, train_arms
from precisionlab.experiments.formats.verdicts import format_claims, verdict
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.modes import MODES
from precisionlab.problems import Problem
from precisionlab.runs.configs import config_as_dict
from precisionlab.runs.results import Labelled, Result
from precisionlab.runs.summary import interval
from precisionlab.stagnation.fates import HISTOGRAM_EDGES

__all__ = ["FIGURES", "FormatsConfig", "compare_formats", "draw_formats", "table_columns"]

_OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd, "lion": optax.lion}
_LOSSES = ("stagnated_first", "stagnated_fraction", "lost_mass", "descent_quality", "zero_fraction")


@dataclass(frozen=True)
class FormatsConfig:
    """The arms and the training.

    Attributes:
        formats: names in `FORMATS`.
        modes: names in `MODES`.
        sites: what is rounded to the format: weights, compute, gradients, updates, moments.
        seeds: how many; each seed gives the same initialization and batches to every arm.
        steps: updates an arm; a multiple of `every`.
        every: read the fates of one update in `every`.
        chunk: updates between two writes to the run folder; a multiple of `every`.
        batch_size: examples in a batch.
        optimizer: adam, adamw, sgd or lion.
        learning_rate: its step size.
    """

    formats: tuple[str, ...] = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
    modes: tuple[str, ...] = ("nearest_even", "stochastic")
    sites: tuple[str, ...] = ("weights",)
    seeds: int = 8
    steps: int = 2000
    every: int = 20
    chunk: int = 200
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        check_names("formats", self.formats, FORMATS)
        check_names("modes", self.modes, MODES)
        check_names("sites", self.sites, Policy._fields)
        check_names("optimizer", (self.optimizer,), _OPTIMIZERS)
        check_positive(self, "seeds", "steps", "every", "chunk", "batch_size")
        if "float64" in self.formats or "float8_e8m0fnu" in self.formats:
            raise ValueError("formats holds one that weights cannot take in a float32 carrier: float64 or float8_e8m0fnu.")
        if self.steps % self.every or self.chunk % self.every:
            raise ValueError(
                f"steps={self.steps}, chunk={self.chunk}, every={self.every}: steps and chunk must be multiples of every."
            )
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be a positive number.")


def table_columns(*metrics: str) -> tuple[str, ...]:
    """The columns of the printed table, with these metrics of the problem."""
    return ("format", "mode", *metrics, *_LOSSES, "worst_layer", "worst_layer_stagnated")


def compare_formats(
    experiment: str,
    problem: Problem,
    metrics: Sequence[str],
    config: FormatsConfig,
    *,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train every arm and say what was lost.

    Args:
        experiment: name of the experiment.
        problem: what to train; its `evaluate` gives `train_loss`.
        metrics: what the rows report of it, `train_loss` first.
        config: the arms.
        journal: where rows go between chunks; by default they stay in memory.
        progress: called between chunks.

    Returns:
        A `Result` with `loss` and `stagnated_fraction` over (format, mode, seed, step), `fates` and `histogram` over (format,
        mode), a row for each format and mode, and the claims. In the rows, over the last tenth of the steps (`stagnated_first`:
        the first): `stagnated_fraction` of the updates that were asked, `lost_mass`, `descent_quality`, and `zero_fraction`,
        the share of entries that nothing was asked of because their update was zero.
    """
    journal = MemoryJournal() if journal is None else journal
    train_arms(
        problem,
        _OPTIMIZERS[config.optimizer](config.learning_rate),
        {name: Policy(**dict.fromkeys(config.sites, FORMATS[name])) for name in config.formats},
        {name: MODES[name] for name in config.modes},
        range(config.seeds),
        steps=config.steps,
        chunk=config.chunk,
        every=config.every,
        journal=journal,
        progress=progress,
    )
    return _result(experiment, metrics, config, journal)


def _result(experiment: str, metrics: Sequence[str], config: FormatsConfig, journal: Journal) -> Result:
    sums = ", ".join(f"sum({name}) AS {name}" for name in (*FATES, *SUMS))
    # isnan: DuckDB orders NaN above every number.
    clean = ", ".join(f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END AS {name}" for name in metrics)
    best = ", ".join(f"max({name}) AS {name}" for name in metrics)
    cells = journal.query(
        f"SELECT format, mode, seed, step, max(loss) AS loss, {sums}, {best} "
        f"FROM (SELECT * REPLACE ({clean}) FROM records) GROUP BY format, mode, seed, step"
    )
    leaves = journal.query(
        "SELECT format, mode, leaf, sum(swamped + underflowed) / greatest(sum(landed + swamped + underflowed), 1) AS share "
        f"FROM records WHERE step > {config.steps - _window(config)} GROUP BY format, mode, leaf ORDER BY share DESC, leaf"
    )
    quoted = ", ".join(f'sum("{name}") AS "{name}"' for name in BINS)
    bins = journal.query(f"SELECT format, mode, {quoted} FROM records GROUP BY format, mode")
    steps = tuple(sorted({int(step) for step in cells["step"]}))
    axes = {"format": config.formats, "mode": config.modes, "seed": tuple(range(config.seeds)), "step": steps}
    grid = {name: _gridded(cells, axes, name) for name in ("loss", *FATES, *SUMS, *metrics)}
    stagnated = grid["swamped"] + grid["underflowed"]
    asked = grid["landed"] + stagnated
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = stagnated / asked
    pair = {"format": config.formats, "mode": config.modes}
    histogram = np.stack([_gridded(bins, pair, name) for name in BINS], axis=-1)
    fates = np.stack([grid[name].sum((2, 3)) for name in FATES], axis=-1)
    reads = np.asarray(steps)
    first, last = reads <= max(_window(config), reads[0]), reads > config.steps - _window(config)
    samples = {name: grid[name][..., -1] for name in metrics} | {
        "stagnated_first": _pooled(stagnated, asked, first),
        "stagnated_fraction": _pooled(stagnated, asked, last),
        "lost_mass": _pooled(grid["stagnated_mass"], grid["update_mass"], last),
        "descent_quality": _pooled(grid["moved_along"], grid["update_square"], last),
        "zero_fraction": _pooled(grid["zero"], np.sum([grid[name] for name in FATES], axis=0), last),
    }
    worst = {}
    for fmt, mode, leaf, share in zip(*(leaves[name] for name in ("format", "mode", "leaf", "share")), strict=True):
        worst.setdefault((str(fmt), str(mode)), (str(leaf), float(share)))
    rows = tuple(
        _row(fmt, mode, {name: values[i, j] for name, values in samples.items()}, worst[fmt, mode])
        for j, mode in enumerate(config.modes)
        for i, fmt in enumerate(config.formats)
    )
    claims = format_claims(config.formats, config.modes, config.sites, samples)
    names = ("format", "mode", "seed", "step")
    return Result(
        experiment=experiment,
        config=config_as_dict(config),
        coords={**axes, "fate": FATES, "bin": HISTOGRAM_EDGES[:-1]},
        arrays={
            "loss": Labelled(names, grid["loss"]),
            "stagnated_fraction": Labelled(names, fraction),
            "fates": Labelled(("format", "mode", "fate"), fates),
            "histogram": Labelled(("format", "mode", "bin"), histogram),
        },
        rows=rows,
        claims=claims,
        verdict=verdict(config.formats, config.modes, samples, claims),
    )


def _window(config: FormatsConfig) -> int:
    """Updates over which the first and the last fractions are pooled: a tenth of the run, but at least one read."""
    return max(config.steps // 10, config.every)


def _gridded(columns: Mapping[str, np.ndarray], axes: Mapping[str, Any], name: str) -> np.ndarray:
    """A column as an array over named axes."""
    grid = np.full([len(labels) for labels in axes.values()], np.nan)
    places = []
    for axis, labels in axes.items():
        where = {label: position for position, label in enumerate(labels)}
        places.append([where[str(label) if isinstance(labels[0], str) else int(label)] for label in columns[axis]])
    grid[tuple(places)] = np.ma.filled(np.ma.asarray(columns[name]).astype(float), np.nan)
    return grid


def _pooled(part: np.ndarray, whole: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Ratios of sums over some steps, for each arm and seed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return part[..., steps].sum(-1) / whole[..., steps].sum(-1)


def _row(fmt: str, mode: str, samples: Mapping[str, np.ndarray], worst: tuple[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"format": fmt, "mode": mode}
    for name, values in samples.items():
        low, high = interval(values)
        row |= {name: float(np.mean(values)), f"{name}_low": low, f"{name}_high": high}
    return row | {"worst_layer": worst[0], "worst_layer_stagnated": worst[1]}


def draw_formats(result: Result) -> Any:
    """Loss and stagnated fraction side by side; the title says what was rounded, a note which arms have no line."""
    from matplotlib.figure import Figure

    from precisionlab.runs.plots import plot_loss, plot_stagnation

    figure = Figure(figsize=(14, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    sites = result.config["sites"]
    plot_loss(result, ax=left)
    plot_stagnation(result, ax=right)
    if "compute" in sites:
        left.set_ylabel("training loss, as computed in the format")
    absent = _never_finite(result)
    if absent:
        left.set_xlabel(f"step\nno line where no loss is finite: {', '.join(absent)}")
    words = ["every operation" if site == "compute" else site for site in Policy._fields if site in sites]
    figure.suptitle(f"{result.experiment.capitalize()}: what each format does to training (rounded: {', '.join(words)})")
    return figure


def _never_finite(result: Result) -> list[str]:
    """The arms whose mean loss is at no step finite."""
    finite = np.isfinite(result.arrays["loss"].values).all(axis=2)
    pairs = np.argwhere(~np.any(finite, axis=-1)).tolist()
    return [f"{result.coords['format'][i]} under {result.coords['mode'][j]}" for i, j in pairs]


FIGURES = {"Training loss, and the share of updates that changed nothing": draw_formats}
"""What an experiment that compares formats draws, by caption."""
