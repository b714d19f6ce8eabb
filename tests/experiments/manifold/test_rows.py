"""What describing rows say: a row needs its p after correction, every one of its findings, and both claims decided."""

import math

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Finding
from precisionlab.experiments.manifold.rows import ALPHA, as_claims, side_by_side, what_rows_say
from precisionlab.runs.results import Claim

SIDES = {"geometry": (True, False), "representation": (False, True), "both": (True, True), "neither": (False, False)}


def finding(row: int, says: str, p: float = 1e-6) -> Finding:
    held, other = SIDES[says]
    return Finding(row, "square", Claim(f"row {row}", 0, 0, 0, 0, held), Claim(f"row {row}", 1, 0, 0, 0, other), p)


def test_a_row_needs_its_p_after_correction_and_both_claims_decided() -> None:
    def spoken(p: float) -> set[str]:
        return {said.speaks_for for said in what_rows_say([finding(row, "geometry", p) for row in range(6)])}

    assert spoken(ALPHA / 6.5) == {"geometry"}
    assert spoken(ALPHA / 5.5) == {"nothing"}  # Holm: the smallest of six must be below alpha / 6
    assert spoken(math.nan) == {"nothing"}
    # One that has no p stays in the family: what is fixed before cannot be left out after.
    family = [finding(1, "geometry", ALPHA / 1.5), finding(2, "geometry", math.nan)]
    assert what_rows_say(family)[0].speaks_for == "nothing"
    assert what_rows_say(family[:1])[0].speaks_for == "geometry"
    for held in (None, True):
        other = finding(1, "geometry")._replace(representation=Claim("", 1, 0, 0, 0, held))
        assert what_rows_say([other])[0].speaks_for == "nothing"
    assert what_rows_say([finding(1, "geometry")._replace(representation=None)])[0].speaks_for == "nothing"


def test_a_row_speaks_if_all_its_findings_do() -> None:
    speaks, silent, disagrees = finding(1, "geometry"), finding(1, "both"), finding(1, "representation")
    one, contradicts = (finding(1, side)._replace(representation=None) for side in ("geometry", "neither"))
    for others, expected in (
        ([speaks], "geometry"),
        ([one], "geometry"),
        ([silent], "nothing"),
        ([disagrees], "nothing"),
        ([contradicts], "nothing"),
    ):
        (said,) = what_rows_say([speaks, *others])
        assert (said.speaks_for, said.findings, bool(said.why)) == (expected, 2, expected == "nothing")


@pytest.mark.parametrize("says", SIDES)
def test_both_predictions_stand_in_one_claim(says: str) -> None:
    (claim,) = as_claims(finding(1, says))
    assert (claim.predicted, claim.held, claim.says) == ("geometry: 0; representation: 1", None, says)
    opened = finding(1, says)
    undecided = opened._replace(geometry=opened.geometry._replace(held=None))
    assert as_claims(undecided)[0].says == "undecided"


def test_claims_of_different_quantities_stay_apart() -> None:
    here = Claim("slope", 2.0, 2.0, np.nan, 2.1, True)
    one = Finding(1, "square", here, here._replace(measured=1.0), 0.1)
    assert [claim.name for claim in as_claims(one)] == ["geometry: slope", "representation: slope"]
    assert len(as_claims(one._replace(representation=here))) == 1  # ends that are no numbers are the same ends
    assert as_claims(one._replace(representation=None)) == (here,)


def test_claims_of_several_sides_stand_beside_each_other() -> None:
    def claims(*held: bool | None) -> list[Claim]:
        sides = ("geometry", "representation, of the drift alone", "representation, of what is stored")
        return [Claim(f"drift kept, by {side}", 0.1, 0.5, 0.4, 0.6, h) for side, h in zip(sides, held, strict=True)]

    for held, says in (
        ((True, False, False), "geometry"),
        ((False, True, True), "representation, of the drift alone and representation, of what is stored"),
        ((False, None, False), "undecided"),
        ((False, False, False), "neither"),
    ):
        (one,) = side_by_side(claims(*held))
        assert (one.name, one.held, one.says) == ("drift kept", None, says)
    # What is another quantity, or has one side, stays as it is.
    other = Claim("geometry: kept", 1.0, 0.7, 0.4, 0.6, True)
    alone = Claim("slope", 1.0, 0.5, 0.4, 0.6, True)
    found = side_by_side([*claims(True, False, False), other, alone, alone])
    assert found[1:] == (other, alone, alone)
