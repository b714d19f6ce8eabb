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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal, Progress, stages
from precisionlab.experiments.common.measured import Finding, Measured, on_other_data, taken_apart
from precisionlab.experiments.manifold import (
    census,
    decay,
    directions,
    drift,
    extents,
    floor,
    hyperbola,
    margins,
    planted,
    repair,
    ring,
    sizes,
    stagnation,
    theorem,
    transformer,
    walkers,
)
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.experiments.manifold.rows import as_claims, what_rows_say
from precisionlab.experiments.manifold.settings import PRECISIONS
from precisionlab.experiments.manifold.verdicts import WORLDS, flat_counts, planted_answers, sentence, summary
from precisionlab.experiments.manifold.worlds import NETWORKS
from precisionlab.numerics.formats import FLOAT64
from precisionlab.problems.fitting import SMOOTH
from precisionlab.runs.configs import ConfigError, config_as_dict
from precisionlab.runs.results import Claim, Result

__all__ = ["MANIFOLD", "ManifoldConfig", "judged", "run"]

_DATA = ("generic", "digits")
_DENSE = 2000
_ROWS = {
    1: "census: log2 of the lattice points that fit, against bits",
    2: "extents: size of the frozen set, against bits",
    3: "unfreezing: what float64 makes of stagnated weights",
    5: "spectrum: the Hessian where updates stagnate",
    6: "ring: where the format makes a manifold of four points",
    8: "floor: the loss left over, against bits",
    10: "margins: where the computed loss is exactly zero",
}


@dataclass(frozen=True)
class ManifoldConfig:
    """The arms, the nets and how many of them.

    Attributes:
        worlds: square, square_with_decay, cross_entropy, cross_entropy_with_decay; the last is described, not decided.
        data: generic (random points), digits (scikit-learn's).
        seeds: how many; each draws data, weights and directions of its own, the same for every arm.
        first_seed: the number of the first.
        deciding: how many seeds the deciding measurement has; 5 are the fewest that can decide.
        bits: the significand bits at which it decides, beside those of `described`.
        walkers: how many seeds the count of spreading walkers has; 0 leaves it out, which is half a minute at 6.
        sizes: how many seeds the counts in nets of thousands of weights have; 0 leaves them out.
        transformer: how many the counts in a transformer have, a minute each; 0 leaves it out.
        described: further significand bits at which directions are counted.
        free: significand bits at which they are counted without lost updates too, `bits` among them.
        drifting: significand bits in which nets go on after they have reached a minimum; 53 is float64, which must be there.
        dial: -log2(lr mu) in the worlds with decay: the bits below which no weight can follow it.
        precisions: significand bits of the float arms.
        repaired: significand bits of the repair and the two by two; with many, training ends where the steps do.
        placements: what is rounded: weights first, then gradients (and weights), all (arithmetic too).
        others: whether named formats, fixed point and rounding toward zero are arms of the unfreezing too.
        forms: of the cross-entropy, names in `margins.LOSSES`, log_softmax among them.
        points: data points d of the trained nets.
        inputs: coordinates of a point.
        hidden: units of the hidden layer, more than points.
        activation: tanh, softplus or gelu.
        steps: of gradient descent at most, a power of two.
        coarser: bits less for the census, 0 to 2.
        nets: on which the theorem's numbers are checked, names in `theorem.SMOOTH` and `theorem.CONTROLS`.

    Raises:
        ValueError: for what is unknown, out of range, or makes no sense together.
    """

    worlds: tuple[str, ...] = NETWORKS
    data: tuple[str, ...] = _DATA
    seeds: int = 16
    first_seed: int = 100
    deciding: int = 16
    bits: int = directions.BITS
    walkers: int = 6
    sizes: int = 3
    transformer: int = 0
    described: tuple[int, ...] = (5, 11)
    free: tuple[int, ...] = (directions.BITS,)
    drifting: tuple[int, ...] = drift.BITS
    dial: float = 9.0
    precisions: tuple[int, ...] = PRECISIONS
    repaired: tuple[int, ...] = (4, 6, 10)
    placements: tuple[str, ...] = ("weights", "gradients", "all")
    others: bool = True
    forms: tuple[str, ...] = tuple(margins.LOSSES)
    points: int = 5
    inputs: int = 3
    hidden: int = 8
    activation: str = "tanh"
    steps: int = 16384
    coarser: int = 0
    nets: tuple[str, ...] = (*theorem.SMOOTH, *theorem.CONTROLS)

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        nets = (*theorem.SMOOTH, *theorem.CONTROLS)
        known = (
            ("worlds", NETWORKS),
            ("data", _DATA),
            ("placements", tuple(PLACEMENTS)),
            ("nets", nets),
            ("forms", tuple(margins.LOSSES)),
        )
        for field, names in known:
            given = getattr(self, field)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"{field} is {given}; name each of {', '.join(names)} once at most, and at least one.")
            for name in given:
                if name not in names:
                    raise ValueError(f'{field} holds an unknown name "{name}"; {allowed_names(name, names)}')
        if self.activation not in SMOOTH:
            raise ValueError(
                f'activation is "{self.activation}"; allowed are {", ".join(SMOOTH)}: the theorem asks for a smooth one, and '
                "linear and ReLU nets are among the controls already."
            )
        if "log_softmax" not in self.forms:
            raise ValueError(f"forms are {self.forms}; log_softmax must be among them, it is the one that is trained.")
        if self.placements[0] != "weights":
            raise ValueError(f"placements begin with {self.placements[0]}; weights come first, the spectra are taken there.")
        for field, low, high in (
            ("seeds", 1, 10**4),
            ("deciding", 1, 10**4),
            ("walkers", 0, 10**4),
            ("sizes", 0, 10**4),
            ("transformer", 0, 10**4),
            ("first_seed", 0, 10**9),
            ("bits", 3, 24),
            ("dial", 2, 12),
            ("points", 3, 64),
            ("inputs", 1, 64),
        ):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed are {low} to {high}.")
        for field, low, high in (
            ("precisions", 3, 53),
            ("repaired", 3, 53),
            ("described", 3, 24),
            ("free", 3, 24),
            ("drifting", 3, 53),
        ):
            given = getattr(self, field)
            none = not given and field != "described"
            if none or list(given) != sorted(set(given)) or any(not low <= p <= high for p in given):
                raise ValueError(f"{field} are {given}; give ascending whole numbers from {low} to {high}.")
        if self.bits not in self.free:
            raise ValueError(f"free is {self.free}; bits={self.bits} must be among them, where the question is decided.")
        if len(self.precisions) < 3:
            raise ValueError(f"precisions are {self.precisions}; slopes need three or more.")
        if self.hidden <= self.points:
            raise ValueError(f"hidden={self.hidden}, points={self.points}: the theorem asks for more units than points.")
        size = (self.inputs + 2) * self.hidden + 1
        if size > _DENSE:
            raise ValueError(
                f"hidden={self.hidden} makes {size} weights, whose Hessian is not taken densely beyond {_DENSE}; take fewer "
                "units, or look at larger nets with landscape.hessian_spectrum(loss, theta, top=...) and spectral_density."
            )
        if self.steps < 2048 or self.steps & (self.steps - 1):
            raise ValueError(f"steps is {self.steps}; it must be a power of two of at least 2048.")
        if self.coarser not in (0, 1, 2):
            raise ValueError(f"coarser is {self.coarser}; allowed are 0, 1 and 2.")


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
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    deciding = range(config.first_seed, config.first_seed + config.deciding)
    net = {"inputs": config.inputs, "hidden": config.hidden, "activation": config.activation, "points": config.points}
    bits = config.precisions
    narrow = tuple(p for p in bits if p < FLOAT64.precision)  # nobody can go on in float64 from where that stagnated
    counted = {
        **net,
        "dial": config.dial,
        "worlds": config.worlds,
        "bits": tuple(sorted({config.bits, *config.described})),
        "free_bits": config.free,
    }
    work: dict[str, Callable[..., Measured]] = {"planted": partial(directions.measure_planted, deciding, bits=config.bits)}
    for data in config.data:
        measure = partial(directions.measure, deciding, data=data, **counted)
        work[f"directions, {data}"] = partial(_measured_on, _other(config, data), measure)
    if "square_with_decay" in config.worlds:
        work["decay"] = partial(decay.measure, seeds, **net)
    if "square" in config.worlds and config.walkers:
        some = range(config.first_seed, config.first_seed + config.walkers)
        work["walkers"] = partial(walkers.measure, some, bits=(config.bits,), dial=config.dial)
    if "square" in config.worlds:
        for name, measure, count in (
            ("sizes", sizes.measure, config.sizes),
            ("transformer", transformer.measure, config.transformer),
        ):
            if count:
                work[name] = partial(measure, range(config.first_seed, config.first_seed + count))
        work["drift"] = partial(drift.measure, seeds, **net, bits=config.drifting)
        work["hyperbola"] = partial(hyperbola.measure, seeds, bits=config.drifting)
        work["theorem"] = partial(theorem.measure, seeds, nets=config.nets)
        work["census"] = partial(census.measure, seeds, coarser=config.coarser)
        work["extents"] = partial(extents.measure, seeds)
        work["ring"] = partial(ring.measure, seeds)
        for data in config.data:
            trained = {"data": data, **net, "steps": config.steps}
            for name, measure in (
                (
                    "stagnation",
                    partial(
                        stagnation.measure, precisions=narrow, placements=config.placements, others=config.others, **trained
                    ),
                ),
                ("repair", partial(repair.measure, precisions=config.repaired, **trained)),
                ("floor", partial(floor.measure, data=data, **net, steps=2 * config.steps)),
            ):
                work[f"{name}, {data}"] = partial(_measured_on, _other(config, data), partial(measure, seeds))
    if "cross_entropy" in config.worlds:
        work["margins"] = partial(margins.measure, seeds, forms=config.forms)

    def tell(name: str) -> Callable[[str, float], None]:
        return lambda _, share: None if progress is None else progress(round(100 * share), 100, name)

    return {name: partial(measure, progress=tell(name)) for name, measure in work.items()}


def _other(config: ManifoldConfig, data: str) -> str:
    return "" if data == config.data[0] else data


def _measured_on(data: str, measure: Callable[..., Measured], *, progress: Any) -> Measured:
    return on_other_data(measure(progress=progress), data)


class Concluded(NamedTuple):
    """What follows from the arrays of a run.

    Attributes:
        rows: of the table: what decides first, then what describes.
        claims: predictions beside measurements.
        verdict: the answer, in sentences.
        decided: `verdict` by world (answer and sentence), `planted`, and whether the run is `valid`.
    """

    rows: tuple[dict[str, Any], ...]
    claims: tuple[Claim, ...]
    verdict: str
    decided: dict[str, Any]


def judged(found: Measured, bits: int = directions.BITS) -> Concluded:
    """What follows from stored arrays, and from nothing else.

    Args:
        found: the arrays of a run.
        bits: at which the question is decided.
    """
    parts = taken_apart(found)
    counts = {data: part for (name, data), part in parts.items() if name == "directions"}
    answers = directions.decisions(counts, "directions", bits) if counts else {}
    sentences = {world: sentence(answer, list(counts.values()), bits) for world, answer in answers.items()}
    known = planted_answers(
        directions.decisions({"": parts["planted", ""]}, "planted", bits) if ("planted", "") in parts else {}, planted.EXPECTED
    )
    valid = bool(known) and all(item["answer"] == item["expected"] for item in known)
    claims = [_told("", data, claim) for data, part in counts.items() for claim in directions.claims(part)]
    findings: list[tuple[str, Finding]] = []
    for (name, data), part in parts.items():
        if name in _CLAIMS:
            claims += [_told(group, data, claim) for group, made in _CLAIMS[name].items() for claim in made(part)]
        if name in _JUDGES:
            findings += [(data, finding) for finding in _JUDGES[name](part)]
    claims += [
        _told(f"{finding.row}", data, claim) for data, finding in sorted(findings, key=_by_row) for claim in as_claims(finding)
    ]
    return Concluded(
        rows=(*_deciding_rows(answers, counts, bits), *_describing_rows([finding for _, finding in findings])),
        claims=tuple(claims),
        verdict=summary({world: answers[world] for world in WORLDS if world in answers}, sentences, known),
        decided={
            "verdict": {
                world: {"answer": answers[world].answer if valid else "undecided", "sentence": sentences[world]}
                for world in WORLDS
                if world in answers
            },
            "planted": known,
            "valid": valid,
        },
    )


_JUDGES: Mapping[str, Callable[[Measured], tuple[Finding, ...]]] = {
    "census": census.judge,
    "extents": extents.judge,
    "ring": ring.judge,
    "stagnation": stagnation.judge,
    "floor": floor.judge,
    "margins": margins.judge,
}
_CLAIMS: Mapping[str, Mapping[str, Callable[[Measured], tuple[Claim, ...]]]] = {
    "decay": {"": decay.claims},
    "walkers": {"": walkers.claims},
    "sizes": {"sizes": sizes.claims},
    "transformer": {"transformer": transformer.claims},
    "drift": {"drift": drift.claims},
    "hyperbola": {"": hyperbola.claims},
    "theorem": {"": theorem.claims},
    "repair": {"cause": repair.causes, "repair": repair.repairs},
}


def _by_row(pair: tuple[str, Finding]) -> int:
    return pair[1].row


def _told(group: str, data: str, claim: Claim) -> Claim:
    before = ", ".join(word for word in (group, data) if word)
    return claim._replace(name=f"{before}: {claim.name}") if before else claim


def _deciding_rows(answers: Mapping[str, Any], counts: Mapping[str, Measured], bits: int) -> list[dict[str, Any]]:
    return [
        {
            "loss": world,
            "row": "deciding",
            "measurement": f"directions flat with {bits} bits, in float64, and with {bits} bits when no update is lost",
            "speaks_for": answer.answer,
            "findings": len(answer.shares),
            "p": answer.p,
            "silent_because": answer.why,
            **{
                name: float(np.median(np.concatenate([flat_counts(part, world, bits, arm) for part in counts.values()])))
                for name, arm in (("flat", "nearest"), ("flat_in_float64", "real"), ("flat_without_loss", "free"))
            },
        }
        for world, answer in answers.items()
    ]


def _describing_rows(findings: list[Finding]) -> list[dict[str, Any]]:
    rows = []
    for loss in ("square", "cross_entropy"):
        for said in what_rows_say([finding for finding in findings if finding.loss == loss]):
            row = {"loss": loss, "row": said.row, "measurement": _ROWS[said.row], "speaks_for": said.speaks_for}
            rows.append({**row, "findings": said.findings, "p": said.p, "silent_because": said.why})
    return rows


MANIFOLD = Experiment(
    name="manifold",
    question="Does the flat manifold of minima come from geometry, or from what the number format can represent?",
    config=ManifoldConfig,
    quick={
        "data": ("generic",), "seeds": 4, "deciding": 8, "walkers": 0, "sizes": 0, "described": (), "drifting": (4, 6, 8, 10, 11, 53), "precisions": (4, 6, 8, 11, 24), "repaired": (4, 8),
        "worlds": ("square", "square_with_decay", "cross_entropy"),
        "placements": ("weights",), "others": False, "forms": ("log_softmax", "softplus"), "steps": 4096, "coarser": 1,
        "nets": ("tanh", "softplus", "linear", "under-parameterized"),
    },
    full={"seeds": 64, "deciding": 64, "walkers": 16, "transformer": 2, "described": (5, 11, 14), "free": (8, 11), "repaired": (3, 4, 5, 6, 8, 10, 11)},
    run=run,
    columns=("loss", "row", "measurement", "speaks_for", "findings", "p", "silent_because"),
    figures=FIGURES,
)  # fmt: skip
