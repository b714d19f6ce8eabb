"""Does the flat manifold of minima come from geometry, or from what the number format can represent?

Overparameterized networks have flat minima. Y. Cooper ("The loss landscape of overparameterized neural networks", 2018)
proves that n weights and d data points with r outputs leave a manifold of minima of dimension n - d r, in real arithmetic. N.
Teague's essay "Global Minima: data types matter" answers that what one sees is the data type: updates below what it can
represent are lost, so that everything around a minimum looks flat.

The question is decided by one measurement, made inside the arithmetic (`directions`): of the directions that are flat where
training rests in a format, which share is flat in real arithmetic, and which in the same format when no update is lost? It is
asked in three worlds, since the answer is not the same in all: the square loss, the square loss with weight decay (the essay
is about regularization), and cross-entropy. Planted worlds, whose answers are known, go through the same decision in every run;
if one of them is named wrongly, the run is invalid. The rule (`decision`) and the planted worlds were fixed before.

Beside it stand measurements that describe and do not decide, with what each side predicts:

    decay     from how many bits on decay moves weights                        p = -log2(lr mu), by the half-gap law
    drift, hyperbola    where a net goes after it has reached the minimum, with noise and decay, as in float64
    sizes, transformer  directions seen against data, weights, bits and step size, in nets of real size
    walkers   n - d directions in which stochastic walkers spread                     none without lost updates
    theorem   in float64 rank and nullity are those of the theorem             (a check of the theorem: no format enters)
    1  census           the lattice points that fit grow by n - d bits a bit          alike for every d
    2  extents          the frozen set shrinks by 1 or 1/2 bits a bit                 by 1 in every direction
    3  unfreezing       the motion in float64 lies in the row space of J              in any direction
    4, 9 repair         what of the format costs how much of the loss: stagnation, lattice, both, neither
    5  spectrum         where weights stagnate: no gap, both signs                    a clean null space
    6  ring             four minima that look like a ring below a known p
    8  floor            the loss that a format leaves ~ 2^-2p
    10 margins          cross-entropy: the computed loss is exactly zero nowhere      on an open set that recedes by ln 2 a bit

Seeds begin at 100, because some choices (the tube of the census, the tangent of the extents, when an arm counts as stagnated,
how long a push is waited for) were made looking at the seeds below, and at those from 100 to 115.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal, Progress, stages
from precisionlab.experiments.common.measured import Measured, on_other_data
from precisionlab.experiments.manifold import (
    census,
    decay,
    directions,
    drift,
    extents,
    floor,
    hyperbola,
    margins,
    repair,
    ring,
    sizes,
    stagnation,
    theorem,
    transformer,
    walkers,
)
from precisionlab.experiments.manifold.configuration import ManifoldConfig
from precisionlab.experiments.manifold.judging import judged
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.numerics.formats import FLOAT64
from precisionlab.runs.configs import ConfigError, config_as_dict
from precisionlab.runs.results import Result

__all__ = ["MANIFOLD", "ManifoldConfig", "judged", "run"]


def run(config: ManifoldConfig, *, journal: Journal | None = None, progress: Progress | None = None) -> Result:
    """Measure, judge and decide.

    Args:
        config: what to run.
        journal: where finished measurements go; by default they stay in memory.
        progress: called between pieces of work.

    Returns:
        A `Result` with the arrays of all measurements (those on digits begin with "digits_"), the claims of both hypotheses for
        each finding, the rows of the table, and an answer for each world.
    """
    if not isinstance(config, ManifoldConfig):
        raise ConfigError(f"manifold: expected a ManifoldConfig; got {config!r}.")
    found = stages(_stages(config, progress), journal=MemoryJournal() if journal is None else journal, progress=progress)
    concluded = judged(found, config.bits)
    return Result(
        experiment="manifold",
        config=config_as_dict(config),
        coords=found.coords,
        arrays=found.arrays,
        rows=concluded.rows,
        claims=concluded.claims,
        verdict=concluded.verdict,
        decided=concluded.decided,
    )


def _stages(config: ManifoldConfig, progress: Progress | None) -> dict[str, Callable[[], Measured]]:
    def some(count: int) -> range:
        return range(config.first_seed, config.first_seed + count)

    seeds, deciding = some(config.seeds), some(config.deciding)
    net = config.net("generic")
    # Nobody can go on in float64 from where that stagnated.
    narrow = tuple(p for p in config.precisions if p < FLOAT64.precision)
    counted = {
        "dial": config.dial,
        "worlds": config.worlds,
        "bits": tuple(sorted({config.bits, *config.described})),
        "free_bits": tuple(sorted({config.bits, *config.free})),
    }
    work: dict[str, Callable[..., Measured]] = {"planted": partial(directions.measure_planted, deciding, bits=config.bits)}
    for data in config.data:
        measure = partial(directions.measure, deciding, net=config.net(data), **counted)
        work[f"directions, {data}"] = partial(_measured_on, _other(config, data), measure)
    if "square_with_decay" in config.worlds:
        work["decay"] = partial(decay.measure, seeds, net=net)
    if "square" in config.worlds and config.walkers:
        work["walkers"] = partial(walkers.measure, some(config.walkers), bits=(config.bits,), dial=config.dial)
    if "square" in config.worlds:
        for name, measure, count in (
            ("sizes", partial(sizes.measure, **sizes.up_to(config.images)), config.sizes),
            ("transformer", transformer.measure, config.transformer),
        ):
            if count:
                work[name] = partial(measure, some(count))
        work["drift"] = partial(drift.measure, seeds, net=net, bits=config.drifting)
        work["hyperbola"] = partial(hyperbola.measure, seeds, bits=config.drifting)
        work["theorem"] = partial(theorem.measure, seeds, nets=config.nets)
        work["census"] = partial(census.measure, seeds, coarser=config.coarser)
        work["extents"] = partial(extents.measure, seeds)
        work["ring"] = partial(ring.measure, seeds)
        for data in config.data:
            arms = {"precisions": narrow, "placements": config.placements, "others": config.others}
            for name, measure in (
                ("stagnation", partial(stagnation.measure, **arms, steps=config.steps)),
                ("repair", partial(repair.measure, precisions=config.repaired, steps=config.steps)),
                ("floor", partial(floor.measure, steps=2 * config.steps)),
            ):
                fitted = partial(measure, seeds, net=config.net(data))
                work[f"{name}, {data}"] = partial(_measured_on, _other(config, data), fitted)
    if "cross_entropy" in config.worlds:
        work["margins"] = partial(margins.measure, seeds, forms=config.forms)

    def tell(name: str) -> Callable[[str, float], None]:
        return lambda _, share: None if progress is None else progress(round(100 * share), 100, name)

    return {name: partial(measure, progress=tell(name)) for name, measure in work.items()}


def _other(config: ManifoldConfig, data: str) -> str:
    return "" if data == config.data[0] else data


def _measured_on(data: str, measure: Callable[..., Measured], *, progress: Any) -> Measured:
    return on_other_data(measure(progress=progress), data)


MANIFOLD = Experiment(
    name="manifold",
    question="Does the flat manifold of minima come from geometry, or from what the number format can represent?",
    config=ManifoldConfig,
    quick={
        "data": ("generic",), "worlds": ("square", "square_with_decay", "cross_entropy"), "seeds": 4, "deciding": 8,
        "walkers": 0, "sizes": 0, "described": (), "drifting": (4, 6, 8, 10, 11, 53), "precisions": (4, 6, 8, 11, 24),
        "repaired": (4, 8), "placements": ("weights",), "others": False, "forms": ("log_softmax", "softplus"), "steps": 4096,
        "coarser": 1, "nets": ("tanh", "softplus", "linear", "under-parameterized"),
    },
    full={
        "seeds": 64, "deciding": 64, "walkers": 16, "images": 1000, "transformer": 2, "described": (5, 11, 14), "free": (11,),
        "repaired": (3, 4, 5, 6, 8, 10, 11),
    },
    run=run,
    columns=(
        "loss", "row", "speaks_for", "p", "flat", "flat_in_float64", "flat_without_loss", "measurement", "silent_because",
    ),
    figures=FIGURES,
)  # fmt: skip
