"""The decision table, row by row of its own description, and that it can say no."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Finding
from precisionlab.experiments.manifold.decision import ALPHA, decide
from precisionlab.runs.inference import one_sided
from precisionlab.runs.results import Claim
from precisionlab.runs.summary import interval

SIDES = {"geometry": (True, False), "representation": (False, True), "both": (True, True), "neither": (False, False)}


def finding(row: int, says: str, p: float = 1e-6, loss: str = "square") -> Finding:
    held, other = SIDES[says]
    return Finding(row, loss, Claim(f"row {row}", 0, 0, 0, 0, held), Claim(f"row {row}", 1, 0, 0, 0, other), p)


def verdict(says: Sequence[str], p: float = 1e-6, control: bool | None = True, **more: object) -> str:
    return decide("square", [finding(row, one, p) for row, one in enumerate(says)], control=control, **more).verdict  # type: ignore[arg-type]


def test_each_verdict_follows_from_its_rule() -> None:
    geometry = ["geometry"] * 6
    assert verdict(geometry) == "geometry"
    assert verdict(["representation"] * 6) == "representation"
    assert verdict(geometry, control=False) == verdict(geometry, control=None) == "invalid"
    assert verdict([*geometry, "representation"]) == "undecided"
    assert verdict(["geometry"] * 4 + ["both"] * 2) == "geometry"  # four of six are two thirds
    assert verdict(["geometry"] * 3 + ["neither"] * 2) == "undecided"
    assert verdict(["both"] * 6) == verdict(["neither"] * 6) == "undecided"
    shares = {"bfloat16": (0.0, 0.0, 0.0), "float8_e4m3fn": (2.0, 1.5, 2.5)}
    mixed = decide("square", [finding(1, "geometry")], control=True, shares=shares)
    assert mixed.verdict == "mixture"
    assert mixed.sentence.endswith("on average 2.0 with float8_e4m3fn.")
    assert "bfloat16" not in mixed.sentence
    # Shares whose interval holds zero add nothing.
    assert verdict(geometry, shares={"bfloat16": (0.5, -0.5, 1.5)}) == "geometry"
    # They are no excuse for rows that are silent, and no matter where the rows say representation.
    assert verdict(["neither"] * 6, shares=shares) == "undecided"
    assert verdict(["representation"] * 6, shares=shares) == "representation"


def test_a_row_needs_its_p_after_correction_and_both_claims_decided() -> None:
    assert verdict(["geometry"] * 6, p=ALPHA / 6.5) == "geometry"
    assert verdict(["geometry"] * 6, p=ALPHA / 5.5) == "undecided"  # Holm: the smallest of six must be below alpha / 6
    assert verdict(["geometry"] * 6, p=math.nan) == "undecided"
    open_claim = finding(1, "geometry")
    for held in (None, True):
        other = open_claim._replace(representation=Claim("", 1, 0, 0, 0, held))
        assert decide("square", [other], control=True).rows[0].speaks_for == "nothing"
    assert decide("square", [open_claim._replace(representation=None)], control=True).rows[0].speaks_for == "nothing"


def test_a_row_speaks_if_all_its_findings_do() -> None:
    """On other data, for other numbers of points: one that is silent, disagrees or contradicts silences the row."""
    speaks, silent, disagrees = finding(1, "geometry"), finding(1, "both"), finding(1, "representation")
    untested, contradicts = (finding(1, side, math.nan) for side in ("geometry", "neither"))
    for others, expected in (
        ([speaks], "geometry"), ([untested], "geometry"), ([silent], "nothing"), ([disagrees], "nothing"),
        ([contradicts], "nothing"),
    ):  # fmt: skip
        (said,) = decide("square", [speaks, *others], control=True).rows
        assert (said.speaks_for, said.findings, bool(said.why)) == (expected, 2, expected == "nothing")
    # Two rows of one finding each, and one row of two: the quorum counts rows.
    assert decide("square", [speaks, finding(2, "both"), finding(3, "geometry")], control=True).verdict == "geometry"
    assert decide("square", [speaks, speaks, finding(2, "both")], control=True).verdict == "undecided"


def test_losses_are_decided_apart() -> None:
    findings = [finding(1, "geometry"), finding(2, "representation", loss="cross_entropy")]
    assert decide("square", findings, control=True).verdict == "geometry"
    assert decide("cross_entropy", findings, control=True).verdict == "representation"
    with pytest.raises(ValueError, match=r'there is no finding for the loss "hinge"'):
        decide("hinge", findings, control=True)


def judged(arms: np.ndarray, row: int) -> Finding:
    """The first arm is larger, says geometry; the second, says representation. Shape (arms, seeds)."""
    difference = arms[0] - arms[1]
    low, high = interval(difference)
    up = Claim(f"row {row}", "> 0", float(difference.mean()), low, high, True if low > 0 else False if high < 0 else None)
    down = Claim(f"row {row}", "< 0", float(difference.mean()), low, high, True if high < 0 else False if low > 0 else None)
    return Finding(row, "square", up, down, min(one_sided(difference), one_sided(-difference)))


def test_labels_shuffled_between_arms_decide_nothing() -> None:
    """Six rows with an effect of three deviations, 16 seeds: told apart as they are, not when a coin names the arms."""
    random = np.random.default_rng(0)
    verdicts = {"as they are": [], "shuffled": []}
    for _ in range(40):
        rows = random.standard_normal((6, 2, 16)) + np.array([3.0, 0.0])[:, None]
        coins = random.random((6, 1, 16)) < 0.5
        for name, arms in (("as they are", rows), ("shuffled", np.where(coins, rows[:, ::-1], rows))):
            verdicts[name].append(decide("square", [judged(arm, row) for row, arm in enumerate(arms)], control=True).verdict)
    assert set(verdicts["as they are"]) == {"geometry"}
    assert set(verdicts["shuffled"]) == {"undecided"}
