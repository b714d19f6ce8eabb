"""The decision table: what the rows say together, by rules that were fixed before anything was measured.

A finding speaks for a hypothesis if what that hypothesis predicts was measured, what the other predicts was not, and the
chance of such a measurement under the other is small after Holm's correction over all findings of the loss that are tested. A
row of the table may have several findings: other data, other formats, other numbers of points. It speaks if all of them that
are tested speak alike and no untested one contradicts. Everything else is silence. Then, in this order:

    invalid           the positive control was not seen: the measurements could not have shown what they look for
    undecided         rows speak for both, or fewer than two thirds of the rows speak
    representation    all that speak say that the flat set comes from the format
    geometry          all that speak say that it is there in real arithmetic, and no format adds flat directions to it
    mixture           the same, and some formats add flat directions of their own: soft ones, which they cannot see
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from precisionlab.experiments.common.measured import Finding
from precisionlab.runs.inference import holm

__all__ = ["ALPHA", "QUORUM", "VERDICTS", "Decision", "Said", "decide"]

ALPHA = 0.05
"""The chance at which some row may speak wrongly, all rows of a loss together."""

QUORUM = 2 / 3
"""The share of the rows that must speak."""

VERDICTS = ("invalid", "undecided", "representation", "geometry", "mixture")


class Said(NamedTuple):
    """What one row says.

    Attributes:
        row: its number.
        speaks_for: "geometry", "representation", or "nothing".
        findings: how many it has.
        p: the largest p value among those tested, after Holm's correction; NaN without a test.
        why: what kept it silent, the name of a claim; empty if it speaks.
    """

    row: int
    speaks_for: str
    findings: int
    p: float
    why: str


class Decision(NamedTuple):
    """A verdict for one loss.

    Attributes:
        loss: "square" or "cross_entropy".
        verdict: one of `VERDICTS`.
        rows: what each row says.
        sentence: why, in one sentence.
    """

    loss: str
    verdict: str
    rows: tuple[Said, ...]
    sentence: str


def decide(
    loss: str,
    findings: Sequence[Finding],
    *,
    control: bool | None,
    shares: Mapping[str, tuple[float, float, float]] = {},
) -> Decision:
    """Apply the table to the findings of one loss.

    Args:
        loss: which.
        findings: of any losses; those of others are left out.
        control: whether the positive control was seen; None if it decided neither way, which is as bad.
        shares: by format, the directions that are flat there beyond those that are flat in real arithmetic: mean, and the ends
            of its interval over the seeds.

    Raises:
        ValueError: if there is no finding for this loss.

    Example:
        >>> from precisionlab.runs.results import Claim
        >>> held, failed = Claim("slope", 2.0, 2.0, 1.9, 2.1, True), Claim("slope", 0.0, 2.0, 1.9, 2.1, False)
        >>> findings = [Finding(row, "square", held, failed, 1e-6) for row in (1, 2, 3)]
        >>> decide("square", findings, control=True).verdict, decide("square", findings, control=False).verdict
        ('geometry', 'invalid')
    """
    ours = [finding for finding in findings if finding.loss == loss]
    if not ours:
        raise ValueError(f'decide: there is no finding for the loss "{loss}"; give at least one.')
    rows = _what_rows_say(ours)
    spoken = [said.speaks_for for said in rows if said.speaks_for != "nothing"]
    here, theirs = spoken.count("geometry"), spoken.count("representation")
    told = f"of {len(rows)} rows {here} speak for geometry, {theirs} for representation"
    added = {name: share for name, share in shares.items() if share[1] > 0}
    if not control:
        verdict, why = "invalid", "the positive control was not seen, so nothing follows from what else was"
    elif len(set(spoken)) == 2:
        verdict, why = "undecided", f"the rows disagree: {told}"
    elif len(spoken) < QUORUM * len(rows):
        verdict, why = "undecided", f"{told}, and two thirds must speak"
    elif spoken[0] == "representation":
        verdict, why = "representation", told
    elif added:
        verdict = "mixture"
        why = f"{told}; beyond the manifold formats are blind to soft directions, on average {_listed(added)}"
    else:
        verdict, why = "geometry", f"{told}, and no format adds flat directions"
    return Decision(loss, verdict, rows, f"{loss.replace('_', '-')} loss: {verdict}; {why}.")


def _what_rows_say(findings: Sequence[Finding]) -> tuple[Said, ...]:
    tested = [finding for finding in findings if finding.representation is not None and not math.isnan(finding.p)]
    corrected = dict(zip(map(id, tested), holm([finding.p for finding in tested]), strict=True)) if tested else {}
    rows = []
    for row in sorted({finding.row for finding in findings}):
        mine = [finding for finding in findings if finding.row == row]
        p = max((float(corrected[id(finding)]) for finding in mine if id(finding) in corrected), default=math.nan)
        said = {id(finding): _speaks(finding, corrected.get(id(finding))) for finding in mine}
        voices = {voice for voice in said.values() if voice != "untested"}
        speaks, why = (voices.pop(), "") if len(voices) == 1 else ("nothing", "its findings disagree" if voices else "no test")
        silent = next((finding for finding in mine if said[id(finding)] == "nothing"), None)
        against = next(
            (finding for finding in mine if said[id(finding)] == "untested" and finding.geometry.held is False), None
        )
        if silent is not None:
            speaks, why = "nothing", silent.geometry.name
        elif against is not None and speaks == "geometry":
            speaks, why = "nothing", against.geometry.name
        rows.append(Said(row, speaks, len(mine), p, why))
    return tuple(rows)


def _speaks(finding: Finding, p: float | None) -> str:
    if p is None or finding.representation is None:
        return "untested"
    if p < ALPHA and finding.geometry.held and finding.representation.held is False:
        return "geometry"
    if p < ALPHA and finding.representation.held and finding.geometry.held is False:
        return "representation"
    return "nothing"


def _listed(shares: Mapping[str, tuple[float, float, float]]) -> str:
    return ", ".join(f"{mean:.1f} with {name}" for name, (mean, _, _) in shares.items())
