"""Which updates does a format lose on real data, and what does that cost?

A small network learns scikit-learn's digits with its weights stored in each of several formats, under each of several
rounding modes. At regular steps the fate of every single update is read. Two things are expected from the half-gap law alone:
the fewer significand bits, the larger the share of updates that round to nothing under nearest rounding; and stochastic
rounding, which lands small updates in proportion to their size, trains further wherever that share is large.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import optax

from precisionlab._nearest import allowed_names
from precisionlab.configs import ConfigError, config_as_dict
from precisionlab.experiments.base import BINS, FATES, SUMS, Experiment, Journal, MemoryJournal, Progress, train_arms
from precisionlab.formats import FORMATS
from precisionlab.modes import MODES
from precisionlab.policy import Policy
from precisionlab.problems import digits as digits_problem
from precisionlab.runs.results import Claim, Labelled, Result
from precisionlab.runs.summary import interval, paired_ratio_interval
from precisionlab.stagnation import HISTOGRAM_EDGES

__all__ = ["DIGITS", "DigitsConfig", "run"]

_SITES = ("weights", "gradients", "updates", "moments")
_OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd, "lion": optax.lion}


@dataclass(frozen=True)
class DigitsConfig:
    """The arms, the network and the training.

    Attributes:
        formats: names in `FORMATS`.
        modes: names in `MODES`.
        sites: what is rounded to the format: weights, gradients, updates, moments.
        seeds: how many; each seed gives the same initialization and batches to every arm.
        steps: updates an arm; a multiple of `every`.
        every: read the fates of one update in `every`.
        chunk: updates between two writes to the run folder; a multiple of `every`.
        hidden: units of the hidden layers.
        batch_size: images in a batch.
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
    hidden: tuple[int, ...] = (32,)
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        for field, names, known in (
            ("formats", self.formats, FORMATS),
            ("modes", self.modes, MODES),
            ("sites", self.sites, _SITES),
            ("optimizer", (self.optimizer,), _OPTIMIZERS),
        ):
            if not names:
                raise ValueError(f"{field} is empty; name at least one of {', '.join(known)}.")
            for name in names:
                if name not in known:
                    raise ValueError(f'{field} holds an unknown name "{name}"; {allowed_names(name, known)}')
            if len(set(names)) != len(names):
                raise ValueError(f"{field} names {', '.join(names)}; name each once.")
        for field in ("seeds", "steps", "every", "chunk", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if "float64" in self.formats or "float8_e8m0fnu" in self.formats:
            raise ValueError("formats holds one that weights cannot take in a float32 carrier: float64 or float8_e8m0fnu.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}; give at least one layer of at least one unit.")
        if self.steps % self.every or self.chunk % self.every:
            raise ValueError(
                f"steps={self.steps}, chunk={self.chunk}, every={self.every}: steps and chunk must be multiples of every."
            )
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be a positive number.")


def run(config: DigitsConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Train every arm and say what was lost.

    Args:
        config: the arms.
        journal: where rows go between chunks; by default they stay in memory.
        progress: called between chunks.

    Returns:
        A `Result` with `loss` and `stagnated_fraction` over (format, mode, seed, step), `fates` and `histogram` over (format,
        mode), a row for each format and mode, and the claims.

    Example:
        >>> arms = {"formats": ("bfloat16", "float8_e4m3fn"), "modes": ("nearest_even",), "optimizer": "sgd", "hidden": (4,)}
        >>> result = run(DigitsConfig(**arms, seeds=2, steps=20, every=10, chunk=20))
        >>> [row["format"] for row in result.rows], [claim.held for claim in result.claims]
        (['bfloat16', 'float8_e4m3fn'], [True])
    """
    if not isinstance(config, DigitsConfig):
        raise ConfigError(f"digits: expected a DigitsConfig; got {config!r}.")
    journal = MemoryJournal() if journal is None else journal
    problem = digits_problem(sizes=(64, *config.hidden, 10), batch_size=config.batch_size)
    policies = {name: Policy(**dict.fromkeys(config.sites, FORMATS[name])) for name in config.formats}
    train_arms(
        problem,
        _OPTIMIZERS[config.optimizer](config.learning_rate),
        policies,
        {name: MODES[name] for name in config.modes},
        range(config.seeds),
        steps=config.steps,
        chunk=config.chunk,
        every=config.every,
        journal=journal,
        progress=progress,
    )
    return _result(config, journal)


def _result(config: DigitsConfig, journal: Journal) -> Result:
    sums = ", ".join(f"sum({name}) AS {name}" for name in (*FATES, *SUMS))
    metrics = "max(train_loss) AS train_loss, max(test_accuracy) AS test_accuracy"
    # isnan: DuckDB orders NaN above every number.
    clean = "nullif(CASE WHEN isnan({0}) THEN NULL ELSE {0} END, NULL) AS {0}"
    source = f"(SELECT * REPLACE ({clean.format('train_loss')}, {clean.format('test_accuracy')}) FROM records)"
    cells = journal.query(
        f"SELECT format, mode, seed, step, max(loss) AS loss, {sums}, {metrics} FROM {source} GROUP BY format, mode, seed, step"
    )
    leaves = journal.query(
        "SELECT format, mode, leaf, sum(swamped + underflowed) / greatest(sum(landed + swamped + underflowed), 1) AS share "
        f"FROM records WHERE step > {config.steps - _window(config)} GROUP BY format, mode, leaf ORDER BY share DESC, leaf"
    )
    quoted = ", ".join(f'sum("{name}") AS "{name}"' for name in BINS)
    bins = journal.query(f"SELECT format, mode, {quoted} FROM records GROUP BY format, mode")
    steps = tuple(sorted({int(step) for step in cells["step"]}))
    axes = {"format": config.formats, "mode": config.modes, "seed": tuple(range(config.seeds)), "step": steps}
    grid = {name: _gridded(cells, axes, name) for name in ("loss", *FATES, *SUMS, "train_loss", "test_accuracy")}
    stagnated = grid["swamped"] + grid["underflowed"]
    asked = grid["landed"] + stagnated
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = stagnated / asked
    pair = {"format": config.formats, "mode": config.modes}
    histogram = np.stack([_gridded(bins, pair, name) for name in BINS], axis=-1)
    fates = np.stack([grid[name].sum((2, 3)) for name in FATES], axis=-1)
    reads = np.asarray(steps)
    first, last = reads <= max(_window(config), reads[0]), reads > config.steps - _window(config)
    samples = {
        "train_loss": grid["train_loss"][..., -1],
        "test_accuracy": grid["test_accuracy"][..., -1],
        "stagnated_first": _pooled(stagnated, asked, first),
        "stagnated_fraction": _pooled(stagnated, asked, last),
        "lost_mass": _pooled(grid["stagnated_mass"], grid["update_mass"], last),
        "descent_quality": _pooled(grid["moved_along"], grid["update_square"], last),
    }
    worst = {}
    for fmt, mode, leaf, share in zip(*(leaves[name] for name in ("format", "mode", "leaf", "share")), strict=True):
        worst.setdefault((str(fmt), str(mode)), (str(leaf), float(share)))
    rows = tuple(
        _row(fmt, mode, {name: values[i, j] for name, values in samples.items()}, worst[fmt, mode])
        for j, mode in enumerate(config.modes)
        for i, fmt in enumerate(config.formats)
    )
    claims = _claims(config, samples)
    names = ("format", "mode", "seed", "step")
    return Result(
        experiment="digits",
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
        verdict=_verdict(config, samples, claims),
    )


def _window(config: DigitsConfig) -> int:
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


def _claims(config: DigitsConfig, samples: Mapping[str, np.ndarray]) -> tuple[Claim, ...]:
    claims = []
    stagnated, loss = samples["stagnated_fraction"], samples["train_loss"]
    if "nearest_even" in config.modes:
        nearest = config.modes.index("nearest_even")
        order = sorted(range(len(config.formats)), key=lambda i: -FORMATS[config.formats[i]].precision)
        for finer, coarser in pairwise(order):
            if FORMATS[config.formats[finer]].precision == FORMATS[config.formats[coarser]].precision:
                continue
            more = stagnated[coarser, nearest] - stagnated[finer, nearest]
            low, high = interval(more)
            name = f"nearest_even loses more updates in {config.formats[coarser]} than in {config.formats[finer]}"
            claims.append(Claim(name, "> 0", float(np.mean(more)), low, high, _sign(low, high)))
        if "stochastic" in config.modes:
            random = config.modes.index("stochastic")
            for i, fmt in enumerate(config.formats):
                # Where nearest rounding loses less than half there is little for stochastic rounding to bring back.
                if not np.mean(stagnated[i, nearest]) > 0.5:
                    continue
                low, high = paired_ratio_interval(loss[i, random], loss[i, nearest])
                ratio = float(np.exp(np.mean(np.log(loss[i, random] / loss[i, nearest]))))
                held = None if np.isnan(low) else (True if high < 1 else False if low > 1 else None)
                claims.append(Claim(f"{fmt}: training loss, stochastic / nearest_even", "< 1", ratio, low, high, held))
    return tuple(claims)


def _sign(low: float, high: float) -> bool | None:
    return True if low > 0 else False if high < 0 else None


def _verdict(config: DigitsConfig, samples: Mapping[str, np.ndarray], claims: tuple[Claim, ...]) -> str:
    shares = np.mean(samples["stagnated_fraction"], axis=-1)
    i, j = np.unravel_index(np.nanargmax(shares), shares.shape) if np.isfinite(shares).any() else (0, 0)
    worst = f"{config.formats[i]} under {config.modes[j]} loses {100 * shares[i, j]:.2f} % of its updates"
    tested = [claim for claim in claims if claim.held is not None]
    if not claims:
        return f"{worst}; with these arms there is nothing to compare."
    held = sum(bool(claim.held) for claim in tested)
    undecided = len(claims) - len(tested)
    return f"{worst}; of {len(claims)} claims {held} held, {len(tested) - held} failed, {undecided} undecided."


def _figure(result: Result) -> Any:
    from matplotlib.figure import Figure

    from precisionlab.runs.plots import plot_loss, plot_stagnation

    figure = Figure(figsize=(14, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_loss(result, ax=left)
    plot_stagnation(result, ax=right)
    figure.suptitle("Digits: what each format does to training")
    return figure


DIGITS = Experiment(
    name="digits",
    question="Which updates does each format lose when a network learns digits, and what does that cost?",
    config=DigitsConfig,
    quick={"seeds": 3, "steps": 400, "every": 20, "chunk": 100},
    run=run,
    columns=(
        "format",
        "mode",
        "train_loss",
        "test_accuracy",
        "stagnated_first",
        "stagnated_fraction",
        "lost_mass",
        "descent_quality",
        "worst_layer",
        "worst_layer_stagnated",
    ),
    figure=_figure,
)
