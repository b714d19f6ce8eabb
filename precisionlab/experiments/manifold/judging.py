"""What follows from the arrays of a run, and from nothing else: answers, rows, claims, sentences."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from precisionlab.experiments.common.measured import Finding, Measured, taken_apart
from precisionlab.experiments.manifold import (
    census,
    decay,
    directions,
    drift,
    extents,
    floor,
    hyperbola,
    margins,
    planted,
    repair,
    ring,
    sizes,
    stagnation,
    theorem,
    transformer,
    walkers,
)
from precisionlab.experiments.manifold.rows import as_claims, side_by_side, what_rows_say
from precisionlab.experiments.manifold.verdicts import INVALID, WORLDS, flat_counts, planted_answers, sentence, summary
from precisionlab.runs.results import Claim

__all__ = ["Concluded", "judged"]

_ROWS = {
    1: "census: log2 of the lattice points that fit, against bits",
    2: "extents: size of the frozen set, against bits",
    3: "unfreezing: what float64 makes of stagnated weights",
    5: "spectrum: the Hessian where updates stagnate",
    6: "ring: where the format makes a manifold of four points",
    8: "floor: the loss left over, against bits",
    10: "margins: where the computed loss is exactly zero",
}


class Concluded(NamedTuple):
    """What follows from the arrays of a run.

    Attributes:
        rows: of the table: what decides first, then what describes.
        claims: predictions beside measurements.
        verdict: the answer, in sentences.
        decided: `verdict` by world (answer and sentence), `planted`, and whether the run is `valid`.
    """

    rows: tuple[dict[str, Any], ...]
    claims: tuple[Claim, ...]
    verdict: str
    decided: dict[str, Any]


def judged(found: Measured, bits: int = directions.BITS) -> Concluded:
    """What follows from stored arrays, and from nothing else.

    Args:
        found: the arrays of a run.
        bits: at which the question is decided.
    """
    parts = taken_apart(found)
    counts = {data: part for (name, data), part in parts.items() if name == "directions"}
    answers = directions.decisions(counts, "directions", bits) if counts else {}
    sentences = {world: sentence(answer, list(counts.values()), bits) for world, answer in answers.items()}
    known = planted_answers(
        directions.decisions({"": parts["planted", ""]}, "planted", bits) if ("planted", "") in parts else {}, planted.EXPECTED
    )
    valid = bool(known) and all(item["answer"] == item["expected"] for item in known)
    verdict = summary({world: answers[world] for world in WORLDS if world in answers}, sentences, known)
    if not valid:  # nothing follows from what was counted, neither in a sentence nor in a row
        answers = {world: answer._replace(answer="undecided", p=1.0, why=INVALID.lower()) for world, answer in answers.items()}
        sentences = dict.fromkeys(answers, verdict)
    claims = [_told("", data, claim) for data, part in counts.items() for claim in directions.claims(part)]
    findings: list[tuple[str, Finding]] = []
    for (name, data), part in parts.items():
        if name in _CLAIMS:
            claims += [_told(group, data, claim) for group, made in _CLAIMS[name].items() for claim in side_by_side(made(part))]
        if name in _JUDGES:
            findings += [(data, finding) for finding in _JUDGES[name](part)]
    claims += [
        _told(f"{finding.row}", data, claim) for data, finding in sorted(findings, key=_by_row) for claim in as_claims(finding)
    ]
    return Concluded(
        rows=(*_deciding_rows(answers, counts, bits), *_describing_rows([finding for _, finding in findings])),
        claims=tuple(claims),
        verdict=verdict,
        decided={
            "verdict": {
                world: {"answer": answers[world].answer, "sentence": sentences[world]} for world in WORLDS if world in answers
            },
            "planted": known,
            "valid": valid,
        },
    )


_JUDGES: Mapping[str, Callable[[Measured], tuple[Finding, ...]]] = {
    "census": census.judge,
    "extents": extents.judge,
    "ring": ring.judge,
    "stagnation": stagnation.judge,
    "floor": floor.judge,
    "margins": margins.judge,
}
_CLAIMS: Mapping[str, Mapping[str, Callable[[Measured], tuple[Claim, ...]]]] = {
    "decay": {"": decay.claims},
    "walkers": {"": walkers.claims},
    "sizes": {"sizes": sizes.claims},
    "transformer": {"transformer": transformer.claims},
    "drift": {"": drift.claims},
    "hyperbola": {"": hyperbola.claims},
    "theorem": {"": theorem.claims},
    "repair": {"cause": repair.causes, "repair": repair.repairs},
}


def _by_row(pair: tuple[str, Finding]) -> int:
    return pair[1].row


def _told(group: str, data: str, claim: Claim) -> Claim:
    before = ", ".join(word for word in (group, data) if word)
    return claim._replace(name=f"{before}: {claim.name}") if before else claim


def _deciding_rows(answers: Mapping[str, Any], counts: Mapping[str, Measured], bits: int) -> list[dict[str, Any]]:
    return [
        {
            "loss": world,
            "row": "deciding",
            "measurement": f"directions flat with {bits} bits, in float64, and with {bits} bits when no update is lost",
            "speaks_for": answer.answer,
            "findings": len(answer.shares),
            "p": answer.p,
            "silent_because": answer.why,
            **{
                name: float(np.median(np.concatenate([flat_counts(part, world, bits, arm) for part in counts.values()])))
                for name, arm in (("flat", "nearest"), ("flat_in_float64", "real"), ("flat_without_loss", "free"))
            },
        }
        for world, answer in answers.items()
    ]


def _describing_rows(findings: list[Finding]) -> list[dict[str, Any]]:
    rows = []
    for loss in ("square", "cross_entropy"):
        for said in what_rows_say([finding for finding in findings if finding.loss == loss]):
            row = {"loss": loss, "row": said.row, "measurement": _ROWS[said.row], "speaks_for": said.speaks_for}
            rows.append({**row, "findings": said.findings, "p": said.p, "silent_because": said.why})
    return rows
