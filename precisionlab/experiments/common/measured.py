"""What a measurement hands over: arrays with named axes, and what two hypotheses said about them beforehand.

A measurement is two functions. `measure` does the work and returns arrays; `judge` reads the arrays, and nothing else, so
that what follows from a stored run can be told again, and tested on arrays whose labels were shuffled.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from precisionlab.runs.results import Claim, Labelled

__all__ = ["MEASUREMENTS", "Finding", "Measured", "on_other_data", "taken_apart"]

MEASUREMENTS = ("theorem", "census", "extents", "ring", "stagnation", "repair", "dimension", "margins", "sizes", "transformer")
"""Each measurement's arrays and axes begin with its name."""

_DATA = ("", "digits", "generic")


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


def on_other_data(found: Measured, data: str) -> Measured:
    """The same measurement on other data, under names of its own: all but the seeds begin with the data's.

    Args:
        found: arrays and axes named after their measurement, `repair_...`.
        data: "digits", "generic", or empty for none.
    """

    def named(name: str) -> str:
        return name if name == "seed" or not data else f"{data}_{name}"

    arrays = {named(name): Labelled(tuple(map(named, dims)), values) for name, (dims, values) in found.arrays.items()}
    return Measured({named(axis): labels for axis, labels in found.coords.items()}, arrays)


def taken_apart(found: Measured) -> dict[tuple[str, str], Measured]:
    """The measurements that arrays belong to, by name and, if they were renamed by `on_other_data`, by these data.

    Args:
        found: the arrays of any number of measurements.
    """
    parts: dict[tuple[str, str], Measured] = {}
    for data in _DATA:
        prefix = f"{data}_" if data else ""
        for name in MEASUREMENTS:
            mine = {key: array for key, array in found.arrays.items() if key.startswith(f"{prefix}{name}_")}
            if mine:
                arrays = {
                    key.removeprefix(prefix): Labelled(tuple(dim.removeprefix(prefix) for dim in dims), values)
                    for key, (dims, values) in mine.items()
                }
                axes = {dim for array in mine.values() for dim in array.dims}
                coords = {axis.removeprefix(prefix): labels for axis, labels in found.coords.items() if axis in axes}
                parts[name, data] = Measured(coords, arrays)
    return parts
