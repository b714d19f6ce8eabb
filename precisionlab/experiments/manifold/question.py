"""Does the flat manifold of minima come from geometry, or from what the number format can represent?

Overparameterized networks have flat minima. Y. Cooper ("The loss landscape of overparameterized neural networks", 2018)
proves that n weights and d data points with r outputs leave a manifold of minima of dimension n - d r, in real arithmetic. N.
Teague's essay "Global Minima: data types matter" answers that what one sees is the data type: updates below what it can
represent are lost, so that everything around a minimum looks flat. Each hypothesis predicts what nine measurements will give,
and they do not agree:

    1  census           the lattice points that fit grow by n - d bits a bit          alike for every d
    2  extents          the frozen set shrinks by 1, 1/2, 0 bits a bit                by 1 in every direction
    3  unfreezing       in float64 the loss falls on, in the row space                nothing happens
    4  repair           without lost updates loss falls, rank and nullity stay        flatness disappears
    5  spectrum         at the stagnated point: no gap, both signs                    a clean null space
    6  ring             control: four minima that look like a ring below a known p
    7  data             nullity falls with each data point                            it does not
    8  bits             dimension constant, loss left over ~ 2^-2p                    dimension grows as p falls
    9  two by two       which of stagnation and lattice alone does what low precision does

With cross-entropy there is no minimum at all, and the computed loss is exactly zero on an open set: there representation is
right (row 10), and a procedure that could not say so would be worth nothing. What the rows say together is decided by
`decision`, whose rules were fixed before. Seeds begin at 100, because some choices (the tube of the census, the
tangent of the extents, when an arm counts as stagnated) were made looking at the seeds below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.experiments.common.experiment import Experiment, Journal, MemoryJournal, Progress, stages
from precisionlab.experiments.common.measured import Finding, Measured, on_other_data, taken_apart
from precisionlab.experiments.manifold import census, dimension, extents, margins, repair, ring, stagnation, theorem
from precisionlab.experiments.manifold.decision import Decision, decide
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.experiments.manifold.settings import EXPONENTS, PRECISIONS
from precisionlab.numerics.formats import FLOAT64
from precisionlab.problems.fitting import SMOOTH
from precisionlab.runs.configs import ConfigError, config_as_dict
from precisionlab.runs.results import Claim, Result

__all__ = ["MANIFOLD", "ManifoldConfig", "judged", "run"]

_LOSSES = ("square", "cross_entropy")
_DATA = ("generic", "digits")
_DENSE = 2000
_CONTROL = 6
_FOR_CERTAIN = 8
_HALF = 0.5  # of a direction: fewer is none
_ROWS = {
    1: "census: log2 of the lattice points that fit, against bits",
    2: "extents: size of the frozen set, against bits",
    3: "unfreezing: what float64 makes of stagnated weights",
    4: "repair: stagnation away, format kept",
    5: "spectrum: the Hessian where updates stagnate",
    7: "data: nullity against the number of points",
    8: "bits: nullity and loss left over, against p",
    9: "two by two: stagnation, lattice, both, neither",
    10: "margins: where the computed loss is exactly zero",
}


@dataclass(frozen=True)
class ManifoldConfig:
    """The arms, the nets and how many of them.

    Attributes:
        losses: square, cross_entropy.
        data: generic (random points), digits (scikit-learn's).
        seeds: how many; each draws data, weights and directions of its own, the same for every arm.
        first_seed: the number of the first.
        precisions: significand bits of the float arms.
        exponents: their exponent bits, where the range varies.
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

    losses: tuple[str, ...] = _LOSSES
    data: tuple[str, ...] = _DATA
    seeds: int = 16
    first_seed: int = 100
    precisions: tuple[int, ...] = PRECISIONS
    exponents: tuple[int, ...] = EXPONENTS
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
            ("losses", _LOSSES),
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
        for field, low, high in (("seeds", 1, 10**4), ("first_seed", 0, 10**9), ("points", 3, 64), ("inputs", 1, 64)):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed are {low} to {high}.")
        for field, low, high in (("precisions", 3, 53), ("exponents", 5, 11), ("repaired", 3, 53)):
            given = getattr(self, field)
            if not given or list(given) != sorted(set(given)) or given[0] < low or given[-1] > high:
                raise ValueError(f"{field} are {given}; give ascending whole numbers from {low} to {high}.")
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
        each finding, the rows of the decision table, and a verdict for each loss.
    """
    if not isinstance(config, ManifoldConfig):
        raise ConfigError(f"manifold: expected a ManifoldConfig; got {config!r}.")
    found = stages(_stages(config, progress), journal=MemoryJournal() if journal is None else journal, progress=progress)
    decisions, claims = judged(found, config.losses)
    few = "" if config.seeds >= _FOR_CERTAIN else f" ({config.seeds} seeds cannot decide: a sign test needs 8 or more here.)"
    return Result(
        experiment="manifold",
        config=config_as_dict(config),
        coords=found.coords,
        arrays=found.arrays,
        rows=tuple(_rows(decisions)),
        claims=claims,
        verdict=" ".join(decision.sentence for decision in decisions) + few,
    )


def _stages(config: ManifoldConfig, progress: Progress | None) -> dict[str, Callable[[], Measured]]:
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    net = {"inputs": config.inputs, "hidden": config.hidden, "activation": config.activation}
    bits = config.precisions
    narrow = tuple(p for p in bits if p < FLOAT64.precision)  # nobody can go on in float64 from where that stagnated
    work: dict[str, Callable[..., Measured]] = {}
    if "square" in config.losses:
        work["theorem"] = partial(theorem.measure, seeds, nets=config.nets)
        work["census"] = partial(census.measure, seeds, coarser=config.coarser)
        work["extents"] = partial(extents.measure, seeds)
        work["ring"] = partial(ring.measure, seeds)
        for data in config.data:
            on = {"data": data, **net}
            other = "" if data == config.data[0] else data
            arms = {"placements": config.placements, "others": config.others}
            trained = {**on, "points": config.points, "steps": config.steps}
            counted = {**on, "points": range(config.points - 3, config.points + 2), "precisions": bits}
            for name, measure in (
                ("stagnation", partial(stagnation.measure, precisions=narrow, **arms, **trained)),
                ("repair", partial(repair.measure, precisions=config.repaired, **trained)),
                ("dimension", partial(dimension.measure, exponents=config.exponents, steps=2 * config.steps, **counted)),
            ):
                work[f"{name}, {data}"] = partial(_measured_on, other, partial(measure, seeds))
    if "cross_entropy" in config.losses:
        work["margins"] = partial(margins.measure, seeds, forms=config.forms)

    def tell(name: str) -> Callable[[str, float], None]:
        return lambda _, share: None if progress is None else progress(round(100 * share), 100, name)

    return {name: partial(measure, progress=tell(name)) for name, measure in work.items()}


def _measured_on(data: str, measure: Callable[..., Measured], *, progress: Any) -> Measured:
    return on_other_data(measure(progress=progress), data)


def judged(found: Measured, losses: tuple[str, ...] = _LOSSES) -> tuple[tuple[Decision, ...], tuple[Claim, ...]]:
    """What follows from stored arrays, and from nothing else.

    Args:
        found: the arrays of a run.
        losses: which to decide.

    Returns:
        A decision for each loss, and all claims.
    """
    parts = taken_apart(found)
    findings: list[tuple[str, Finding]] = []
    claims: list[Claim] = []
    shares: dict[str, tuple[float, float, float]] = {}
    control = None
    for (name, data), part in parts.items():
        if name == "theorem":
            claims += theorem.claims(part)
            continue
        findings += [(data, finding) for finding in _JUDGES[name](part)]
        if name == "ring":
            control = ring.control_seen(part)
        elif name == "dimension":
            ours = {f"{fmt} on {data}" if data else fmt: share for fmt, share in dimension.shares(part).items()}
            claims += [_share(fmt, share) for fmt, share in ours.items()]
            shares |= ours
        elif name == "repair":
            claims += [_told("cause", data, claim) for claim in repair.causes(part)]
            claims += [_told("repair", data, claim) for claim in repair.repairs(part)]
    for data, finding in sorted(findings, key=lambda pair: pair[1].row):
        for side, claim in (("geometry", finding.geometry), ("representation", finding.representation)):
            if claim is not None:
                claims.append(_told(f"{finding.row} {side}", data, claim))
    tested = [finding for _, finding in findings if finding.row != _CONTROL]
    decisions = [
        decide(loss, tested, control=control if loss == "square" else True, shares=shares if loss == "square" else {})
        for loss in losses
    ]
    return tuple(decisions), tuple(claims)


_JUDGES: Mapping[str, Callable[[Measured], tuple[Finding, ...]]] = {
    "census": census.judge,
    "extents": extents.judge,
    "ring": ring.judge,
    "stagnation": stagnation.judge,
    "repair": repair.judge,
    "dimension": dimension.judge,
    "margins": margins.judge,
}


def _share(fmt: str, share: tuple[float, float, float]) -> Claim:
    """What a format adds to the flat directions: nothing, were geometry all there is."""
    mean, low, high = share
    held = False if low > 0 else True if high < _HALF else None
    return Claim(f"share: directions flat with {fmt} beyond n - d r", 0, mean, low, high, held)


def _told(side: str, data: str, claim: Claim) -> Claim:
    return claim._replace(name=f"{side}{f', {data}' if data else ''}: {claim.name}")


def _rows(decisions: tuple[Decision, ...]) -> list[dict[str, Any]]:
    return [
        {
            "loss": decision.loss,
            "row": said.row,
            "measurement": _ROWS.get(said.row, ""),
            "speaks_for": said.speaks_for,
            "findings": said.findings,
            "p": said.p,
            "silent_because": said.why,
        }
        for decision in decisions
        for said in decision.rows
    ]


MANIFOLD = Experiment(
    name="manifold",
    question="Does the flat manifold of minima come from geometry, or from what the number format can represent?",
    config=ManifoldConfig,
    quick={
        "data": ("generic",), "seeds": 4, "precisions": (4, 6, 8, 11, 24), "exponents": (8,), "repaired": (4, 8),
        "placements": ("weights",), "others": False, "forms": ("log_softmax", "softplus"), "steps": 4096, "coarser": 1,
        "nets": ("tanh", "softplus", "linear", "under-parameterized"),
    },
    full={"seeds": 64, "repaired": (3, 4, 5, 6, 8, 10, 11)},
    run=run,
    columns=("loss", "row", "measurement", "speaks_for", "findings", "p", "silent_because"),
    figures=FIGURES,
)  # fmt: skip
