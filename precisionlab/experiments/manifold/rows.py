"""What the describing rows say: measurements that show the manifold, and what a format makes of it, but do not decide.

A finding speaks for a hypothesis if what that one predicts was measured, what the other predicts was not, and the chance of
such a measurement under the other is small after Holm's correction over all findings with two predictions, those without a p
value included: the family was fixed before anything was measured. A row of several findings speaks if all of those speak alike
and none with one prediction contradicts. Everything else is silence.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from precisionlab.experiments.common.measured import Finding
from precisionlab.runs.inference import holm
from precisionlab.runs.results import Claim

__all__ = ["ALPHA", "Said", "as_claims", "side_by_side", "what_rows_say"]

ALPHA = 0.05
"""The chance at which some row may speak wrongly, all rows of a loss together."""


class Said(NamedTuple):
    """What one row says.

    Attributes:
        row: its number.
        speaks_for: "geometry", "representation", or "nothing".
        findings: how many it has.
        p: the largest p value of its findings, after Holm's correction; NaN without a test.
        why: what kept it silent, the name of a claim; empty if it speaks.
    """

    row: int
    speaks_for: str
    findings: int
    p: float
    why: str


def what_rows_say(findings: Sequence[Finding]) -> tuple[Said, ...]:
    """What each row of one loss says.

    Args:
        findings: of one loss.

    Example:
        >>> held, failed = Claim("slope", 2.0, 2.0, 1.9, 2.1, True), Claim("slope", 0.0, 2.0, 1.9, 2.1, False)
        >>> [said.speaks_for for said in what_rows_say([Finding(1, "square", held, failed, 1e-3)])]
        ['geometry']
        >>> [said.speaks_for for said in what_rows_say([Finding(1, "square", held, failed, 0.03)] * 2)]      # Holm
        ['nothing']
    """
    two = [finding.representation is not None for finding in findings]
    adjusted = iter(holm([finding.p for finding, both in zip(findings, two, strict=True) if both]) if any(two) else ())
    corrected = [float(next(adjusted)) if both else None for both in two]
    rows = []
    for row in sorted({finding.row for finding in findings}):
        mine = [(finding, p) for finding, p in zip(findings, corrected, strict=True) if finding.row == row]
        voices = [(_speaks(finding, p), finding) for finding, p in mine]
        speaking = {voice for voice, _ in voices if voice not in ("untested", "nothing")}
        silent = next((finding for voice, finding in voices if voice == "nothing"), None)
        against = next((f for voice, f in voices if voice == "untested" and f.geometry.held is False), None)
        speaks, why = "nothing", ""
        if silent is not None:
            why = silent.geometry.name
        elif len(speaking) != 1:
            why = "its findings disagree" if speaking else "one prediction, no test"
        elif against is not None:
            why = against.geometry.name
        else:
            speaks = speaking.pop()
        known = [p for _, p in mine if p is not None and not math.isnan(p)]
        rows.append(Said(row, speaks, len(mine), max(known, default=math.nan), why))
    return tuple(rows)


def as_claims(finding: Finding) -> tuple[Claim, ...]:
    """A finding as claims: the predictions of both sides beside what was measured.

    Args:
        finding: with one prediction or two.

    Returns:
        One claim where both predict the same quantity: `predicted` names the two, `says` is the side whose prediction was
        measured. Otherwise the claim of each, named after its side if there are two.

    Example:
        >>> held, failed = Claim("slope", 2.0, 2.0, 1.9, 2.1, True), Claim("slope", 0.0, 2.0, 1.9, 2.1, False)
        >>> claim, = as_claims(Finding(1, "square", held, failed, 1e-3))
        >>> claim.predicted, claim.says, claim.held
        ('geometry: 2; representation: 0', 'geometry', None)
    """
    here, there = finding.geometry, finding.representation
    if there is None:
        return (here,)
    if not np.array_equal(here[2:5], there[2:5], equal_nan=True):
        return tuple(
            claim._replace(name=f"{side}: {claim.name}") for side, claim in (("geometry", here), ("representation", there))
        )
    words = {(True, False): "geometry", (False, True): "representation", (True, True): "both", (False, False): "neither"}
    says = "undecided" if here.held is None or there.held is None else words[here.held, there.held]
    predicted = f"geometry: {_number(here.predicted)}; representation: {_number(there.predicted)}"
    return (here._replace(predicted=predicted, held=None, says=says),)


def side_by_side(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """Claims of the same quantity by different sides as one: who predicts what, and whose prediction was measured.

    Args:
        claims: those of a side are called "SIDE: QUANTITY" (geometry or representation) or "QUANTITY, by SIDE".

    Example:
        >>> said = {"geometry": 1, "representation": 0}
        >>> sides = [Claim(f"{side}: kept", share, 0.98, 0.95, 1.0, share == 1) for side, share in said.items()]
        >>> (one,) = side_by_side(sides)
        >>> one.name, one.predicted, one.says
        ('kept', 'geometry: 1; representation: 0', 'geometry')
    """
    groups: dict[tuple[Any, ...], list[tuple[str, Claim]]] = {}
    for number, claim in enumerate(claims):
        side, _, quantity = claim.name.partition(": ")
        if side not in ("geometry", "representation"):
            quantity, _, side = claim.name.partition(", by ")
        key = (quantity, claim.measured, claim.low, claim.high) if side else (claim.name, number)
        groups.setdefault(key, []).append((side, claim))
    made = []
    for (quantity, *_), sides in groups.items():
        if len(sides) == 1:
            made.append(sides[0][1])
            continue
        right = [side for side, claim in sides if claim.held]
        open_ = any(claim.held is None for _, claim in sides)
        says = " and ".join(right) or ("undecided" if open_ else "neither")
        predicted = "; ".join(f"{side}: {_number(claim.predicted)}" for side, claim in sides)
        made.append(sides[0][1]._replace(name=quantity, predicted=predicted, held=None, says=says))
    return tuple(made)


def _number(predicted: str | float) -> str:
    return predicted if isinstance(predicted, str) else f"{predicted:.3g}"


def _speaks(finding: Finding, p: float | None) -> str:
    here, there = finding.geometry, finding.representation
    if p is None or there is None:
        return "untested"
    if p < ALPHA and here.held and there.held is False:
        return "geometry"
    if p < ALPHA and there.held and here.held is False:
        return "representation"
    return "nothing"
