"""What a run of the main question is: its arms, its nets, and how many of them."""

from dataclasses import dataclass

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.experiments.manifold import directions, drift, theorem
from precisionlab.experiments.manifold.nets import DATA, Net
from precisionlab.experiments.manifold.settings import PRECISIONS
from precisionlab.experiments.manifold.vanishing import LOSSES
from precisionlab.experiments.manifold.worlds import NETWORKS
from precisionlab.problems.fitting import SMOOTH

__all__ = ["ManifoldConfig"]

_DENSE = 2000


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
        images: up to how many images these nets are pushed and trained on, of 20, 100, 300 and 1,000.
        transformer: how many the counts in a transformer have, a minute each; 0 leaves it out.
        described: further significand bits at which directions are counted.
        free: significand bits at which they are counted without lost updates too, beside `bits`.
        drifting: significand bits in which nets go on after they have reached a minimum; 53 is float64, which must be there.
        dial: -log2(lr mu) in the worlds with decay: the bits below which no weight can follow it.
        precisions: significand bits of the float arms.
        repaired: significand bits of the repair and the two by two; with many, training ends where the steps do.
        placements: what is rounded: weights first, then gradients (and weights), all (arithmetic too).
        others: whether named formats, fixed point and rounding toward zero are arms of the unfreezing too.
        forms: of the cross-entropy, names in `vanishing.LOSSES`, log_softmax among them.
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
    data: tuple[str, ...] = DATA
    seeds: int = 16
    first_seed: int = 100
    deciding: int = 16
    bits: int = directions.BITS
    walkers: int = 6
    sizes: int = 3
    images: int = 300
    transformer: int = 0
    described: tuple[int, ...] = (5, 11)
    free: tuple[int, ...] = ()
    drifting: tuple[int, ...] = drift.BITS
    dial: float = 9.0
    precisions: tuple[int, ...] = PRECISIONS
    repaired: tuple[int, ...] = (4, 6, 10)
    placements: tuple[str, ...] = ("weights", "gradients", "all")
    others: bool = True
    forms: tuple[str, ...] = tuple(LOSSES)
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
            ("data", DATA),
            ("placements", tuple(PLACEMENTS)),
            ("nets", nets),
            ("forms", tuple(LOSSES)),
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
            ("images", 100, 1000),
            ("transformer", 0, 10**4),
            ("first_seed", 0, 10**9),
            ("bits", 3, 24),
            ("dial", 2, 12),
            ("points", 3, 64),
            ("inputs", 1, 64),
        ):
            if not low <= getattr(self, field) <= high:
                raise ValueError(f"{field} is {getattr(self, field)}; allowed are {low} to {high}.")
        for field, high in (("precisions", 53), ("repaired", 53), ("drifting", 53), ("described", 24), ("free", 24)):
            given = getattr(self, field)
            none = not given and field not in ("described", "free")
            if none or list(given) != sorted(set(given)) or any(not 3 <= p <= high for p in given):
                raise ValueError(f"{field} are {given}; give ascending whole numbers from 3 to {high}.")
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

    def net(self, data: str) -> Net:
        """The net that is trained, on one of the data.

        Args:
            data: one of `nets.DATA`.
        """
        return Net(self.points, inputs=self.inputs, hidden=self.hidden, activation=self.activation, data=data)
