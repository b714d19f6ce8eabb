"""What a measurement hands over: arrays with named axes, and what two hypotheses said about them beforehand.

A measurement is two functions. `measure` does the work and returns arrays; `judge` reads the arrays, and nothing else, so
that what follows from a stored run can be told again, and tested on arrays whose labels were shuffled.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from precisionlab.runs.results import Claim, Labelled

__all__ = ["Finding", "Measured"]


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        coords: the labels of each axis.
        arrays: by name, with the names of their axes; "seed" is one of them wherever seeds differ.
    """

    coords: Mapping[str, Sequence[Any]]
    arrays: Mapping[str, Labelled]


class Finding(NamedTuple):
    """One row of the decision table: a measurement beside what each hypothesis predicts of it.

    Attributes:
        row: its number in the table of predictions.
        loss: "square" or "cross_entropy".
        geometry: what follows if the manifold of minima is there in real arithmetic.
        representation: what follows if it comes from what the format can represent; None where nothing follows.
        p: the p value of the measurement if the hypothesis whose claim fails were true; NaN where neither fails or no test is
        made.
    """

    row: int
    loss: str
    geometry: Claim
    representation: Claim | None
    p: float
