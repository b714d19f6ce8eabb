"""The nets of the measurements: one hidden layer on a few points, from which the question is asked.

A `Net` says what is the same for every seed; each seed draws points and first weights of its own (`Net.fits`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from precisionlab.problems.fitting import Fit, digits_fit, generic_fit

__all__ = ["DATA", "Net"]

_MAKERS = {"generic": generic_fit, "digits": digits_fit}
DATA = tuple(_MAKERS)
"""What points can be: random ones, or images of digits (scikit-learn's)."""


@dataclass(frozen=True)
class Net:
    """A kind of net, and of the points that it is to fit. By default: the net in which the question is asked.

    Attributes:
        points: d.
        outputs: r, so that there are d r residuals.
        inputs: coordinates of a point.
        hidden: units of each hidden layer; the theorem asks for more than points.
        layers: hidden layers.
        activation: as in `problems.fitting`.
        data: one of `DATA`.

    Raises:
        ValueError: for unknown data. What else makes no fit, `fits` refuses.

    Example:
        >>> fits = Net(points=4, hidden=6).fits(range(2))
        >>> len(fits), fits[0].n, fits[0].inputs.shape, fits[0].name
        (2, 31, (4, 3), 'generic points, tanh')
    """

    points: int = 5
    outputs: int = 1
    inputs: int = 3
    hidden: int = 8
    layers: int = 1
    activation: str = "tanh"
    data: str = "generic"

    def __post_init__(self) -> None:
        """Refuse points that nobody can draw."""
        if self.data not in _MAKERS:
            raise ValueError(f"Net: data must be one of {', '.join(DATA)}; got {self.data!r}.")

    def fits(self, seeds: Iterable[int]) -> list[Fit]:
        """A fit for each seed, of its own points.

        Args:
            seeds: of the points.

        Raises:
            ValueError: for a size or an activation that makes no fit.
        """
        make, shape = _MAKERS[self.data], (self.points, self.outputs, self.inputs, self.hidden, self.activation, self.layers)
        return [make(*shape, seed=int(seed)) for seed in seeds]
