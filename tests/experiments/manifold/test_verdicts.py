"""Sentences say what was counted, each number from the arrays, and explain nothing that is not so."""

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import directions
from precisionlab.experiments.manifold.verdicts import sentence
from precisionlab.runs.results import Labelled

SEEDS = 8


def told(world: str, flat: float, real: float, free: float, *, bits: int = 8, rests: tuple[bool, bool] = (True, True)) -> str:
    """The sentence of a world with these counts in every seed; whether weights rest in float64 and stochastically."""
    at, seeds = ("directions_world", "directions_bits", "directions_seed"), np.ones(SEEDS)
    alone = ("directions_world", "directions_free_bits", "directions_seed")
    arrays = {
        "directions_flat": Labelled(at, np.array([[flat * seeds, real * seeds]])),
        "directions_rests": Labelled(at, np.array([[seeds > 0, rests[0] * seeds > 0]])),
        "directions_free_flat": Labelled(alone, np.array([[free * seeds]])),
        "directions_free_rests": Labelled(alone, np.array([[rests[1] * seeds > 0]])),
        "directions_size": Labelled((), np.array(41)),
        "directions_dial": Labelled((), np.array(9.0)),
    }
    coords = {
        "directions_world": [world], "directions_bits": [bits, 53], "directions_free_bits": [bits],
        "directions_seed": list(range(SEEDS)),
    }  # fmt: skip
    part = Measured(coords, arrays)
    return sentence(directions.decisions({"": part}, "directions", bits)[world], [part], bits)


def test_each_answer_names_its_own_counts() -> None:
    assert "37 of 41 directions are flat; 36 of these are flat in real arithmetic as well, and 35 stay" in told(
        "square", 37, 36, 35
    )
    assert "30 of 41 directions are flat; 15 of them are flat in real arithmetic too, and 12 when" in told("square", 30, 15, 12)
    said = told("square", 37, 1, 3)
    assert "in real arithmetic 1 of them are flat, and when no update is lost to rounding 3 of them are flat" in said
    assert "so say 8 of 8 seeds by themselves" in said
    assert told("square", 37, 36, 0).startswith("Square loss: undecided. In real arithmetic says geometry")


@pytest.mark.parametrize("rests", [(False, False), (True, False), (False, True)])
def test_what_does_not_rest_is_said_of_each_arithmetic(rests: tuple[bool, bool]) -> None:
    words = {True: "0 of them are flat", False: "training does not come to rest in any seed"}
    said = told("cross_entropy", 37, 0, 0, rests=rests)
    assert f"in real arithmetic {words[rests[0]]}, and when no update is lost to rounding {words[rests[1]]}." in said


def test_decay_is_the_reason_only_where_it_is_lost() -> None:
    assert "weights of fewer than 9 bits cannot take so small a step" in told("square_with_decay", 37, 0, 0, bits=8)
    assert "cannot take" not in told("square_with_decay", 9, 0, 0, bits=11)
