"""The picture of the answer has a column for all bits, those without lost updates alone too."""

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.pictures.counts import draw_counts
from precisionlab.runs.results import Labelled


@pytest.mark.parametrize("free", [[8], [8, 11]])
def test_every_number_of_bits_is_a_column(free: list[int]) -> None:
    coords = {
        "directions_world": ["square"], "directions_bits": [8, 14, 53], "directions_free_bits": free, "directions_seed": [1, 2],
    }  # fmt: skip
    arrays = {"directions_size": Labelled((), np.array(41))}
    for prefix, axis in (("", "directions_bits"), ("free_", "directions_free_bits")):
        dims = ("directions_world", axis, "directions_seed")
        shape = tuple(len(coords[dim]) for dim in dims)
        arrays[f"directions_{prefix}flat"] = Labelled(dims, np.full(shape, 36.0))
        arrays[f"directions_{prefix}rests"] = Labelled(dims, np.ones(shape, bool))
    (axes,) = draw_counts({"": Measured(coords, arrays)}).axes
    ticks = [f"{p} bits" for p in sorted({8, 14, *free})]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*ticks, "float64"]
    assert len(axes.lines) == 2 * (2 + len(free) + 1) + 3  # dots and a bar for each, and the legend's marks
