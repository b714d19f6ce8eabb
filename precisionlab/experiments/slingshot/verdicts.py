"""What follows from a slingshot's numbers: the rule, fixed before any run, and nothing but numpy.

Every question is whether something is *smaller by more than a margin* of 5 %: a ratio, in every seed, averaged in logarithms
over the registers of one kind. One side predicts that it is, another that it is not. Which of them is right is told by a sign
test of the seeds on either side of the margin; all questions of a run are one family, adjusted by Holm, and a question
without numbers stays in it. The interval beside a claim is the exact one of the median, for itself. A seed without a number
agrees with neither side.

    overfits    share of the noise memorized > 0.5            where it is not, nothing is said of the effect
    before      test loss after 10 % more steps / before it   the essay: smaller; no effect: not
    longer      / training on without                         the essay: smaller; training on: not
    early       / early stopping at equal training loss       the essay: smaller; early stopping: not
    soon        / fresh weights of the same norms, at 2.5 %   the essay: smaller; a restart: not
    fresh       / the same at 10 %                            the essay: smaller; a restart: not
    norm        when the norm is that of before / before it   the essay: smaller; a passing gain: not
    shrunk      share of the power that is high, in the       the essay: smaller; the nonlinearity: smaller too, where shrinking
                shrunk function / before                      changes a function's shape (`tasks.SHAPE_KEPT`: where it does not)
    register    / the same weights scaled without rounding    the essay: smaller; the nonlinearity: not
    high        high power, shrunk and undone / before        the essay: smaller; no loss: not
    share       share of it, shrunk and undone / before       the essay: smaller; no loss: not

The mechanism is supported if `high` and `share` both are smaller (high frequencies fell off the register, and more than the
others), not supported if one of them is not, and undecided otherwise. The rows of a run ask many more things; they describe,
and decide nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from precisionlab.experiments.slingshot.ratios import NORM, loss_ratio, power_ratio, share_ratio
from precisionlab.experiments.slingshot.tasks import SHAPE_KEPT
from precisionlab.runs.inference import holm
from precisionlab.runs.results import Claim
from precisionlab.runs.seeds import agreeing, finite_or_none, median, median_interval, sign_test

__all__ = [
    "ALPHA",
    "MARGIN",
    "ROLES",
    "Answer",
    "Judged",
    "Question",
    "decide",
    "judge",
    "mechanism_of",
    "overfitted",
    "spectral",
]

ALPHA = 0.05
MARGIN = 0.05
"""How much smaller counts as smaller."""

ROLES = {"essay": "0.2", "none": "none", "fresh": "0.2, fresh"}
"""The arms that the rule reads, by the part they play."""


class Question(NamedTuple):
    """A ratio of which two sides say different things, or the same.

    Attributes:
        group: (data, kind of register).
        role: as in the table above.
        text: what is measured.
        sides: who predicts that it is smaller, and who that it is not; either may be empty.
        samples: log2 of the ratio, shape (seeds,); of `overfits` one half less the share.
    """

    group: tuple[str, str]
    role: str
    text: str
    sides: tuple[tuple[str, ...], tuple[str, ...]]
    samples: np.ndarray


class Answer(NamedTuple):
    """What came of a question.

    Attributes:
        smaller: whether it is; None if the seeds do not tell.
        measured: the median ratio, or share.
    """

    smaller: bool | None
    measured: float


class Judged(NamedTuple):
    """The answers.

    Attributes:
        claims: each side's prediction beside the measurement.
        answers: by group and role.
        mechanism: by group: supported, not supported, or undecided.
    """

    claims: tuple[Claim, ...]
    answers: Mapping[tuple[str, str], Mapping[str, Answer]]
    mechanism: Mapping[tuple[str, str], str]


def judge(
    found: Mapping[str, Mapping[str, Any]],
    kinds: Sequence[str],
    arms: Sequence[str],
    more: Sequence[Question] = (),
) -> Judged:
    """Answer every question.

    Args:
        found: by name of the data, the arrays that `ratios` reads.
        kinds: of each register, such as "floating point" and "fixed point".
        arms: the names of the arms; those of `ROLES` must be among them.
        more: questions of other measurements, which belong to the same family.

    Returns:
        Claims, and the answers for each data set and kind of register.

    Raises:
        ValueError: if an arm that the rule reads is missing.
    """
    if missing := [name for name in ROLES.values() if name not in arms]:
        raise ValueError(f'judge: the arm "{missing[0]}" is missing; the rule reads {", ".join(ROLES.values())}.')
    asked: list[Question] = []
    for data, of in found.items():
        for kind in dict.fromkeys(kinds):
            members = [place for place, other in enumerate(kinds) if other == kind]
            asked += _questions((data, kind), of, members, arms)
    asked += more
    table: dict[tuple[str, str], dict[str, Answer]] = {}
    claims = []
    for question, answer in zip(asked, decide(asked), strict=True):
        table.setdefault(question.group, {})[question.role] = answer
        claims += _claims(question, answer)
    return Judged(tuple(claims), table, {group: _mechanism(of) for group, of in table.items() if "high" in of})


def decide(asked: Sequence[Question]) -> list[Answer]:
    """The answers to one family of questions."""
    bounds = [_bound(question) for question in asked]
    sure = holm(np.array([sign_test(each.samples, bound) for each, bound in zip(asked, bounds, strict=True)])) < ALPHA
    answers = []
    for question, bound, certain in zip(asked, bounds, sure, strict=True):
        most = agreeing(question.samples, bound, True) > agreeing(question.samples, bound, False)
        middle = median(question.samples)
        answers.append(Answer(most if certain else None, 0.5 - middle if question.role == "overfits" else 2.0**middle))
    return answers


def overfitted(of: Mapping[str, Any], members: Sequence[int]) -> list[int]:
    """The registers that memorized most of the noise in the median seed; all of them if none did."""
    memorized = np.asarray(of["memorized"], np.float64)
    return [i for i in members if median(memorized[i]) > 0.5] or list(members)


def spectral(group: tuple[str, str], of: Mapping[str, Any], members: Sequence[int], place: int) -> list[Question]:
    """The questions about the mechanism.

    Args:
        group: data and kind.
        of: `high` and `total`, (F, A, points, S).
        members: places of the registers.
        place: of the arm.
    """
    bends = (("the essay",), ("the nonlinearity",)) if group[0] in SHAPE_KEPT else (("the essay", "the nonlinearity"), ())
    rows = [
        ("shrunk", "share of high frequencies, shrunk / before", bends, share_ratio(of, members, place, "shrunk")),
        (
            "register",
            "share of high frequencies, shrunk in the register / shrunk without rounding",
            (("the essay",), ("the nonlinearity",)),
            share_ratio(of, members, place, "shrunk", "exact"),
        ),
        (
            "high",
            "power of high frequencies, shrunk and undone / before",
            (("the essay",), ("no loss",)),
            power_ratio(of, members, place, "undone"),
        ),
        (
            "share",
            "share of high frequencies, shrunk and undone / before",
            (("the essay",), ("no loss",)),
            share_ratio(of, members, place, "undone"),
        ),
    ]
    return [Question(group, *row) for row in rows]


def mechanism_of(group: tuple[str, str], of: Mapping[str, Any], members: Sequence[int], place: int) -> str:
    """The verdict on the mechanism from its questions alone."""
    asked = spectral(group, of, members, place)
    return _mechanism({question.role: answer for question, answer in zip(asked, decide(asked), strict=True)})


def _questions(group: tuple[str, str], of: Mapping[str, Any], members: list[int], arms: Sequence[str]) -> list[Question]:
    overfit, essay = overfitted(of, members), ROLES["essay"]
    noise = 0.5 - np.asarray(of["memorized"], np.float64)[overfit].mean(axis=0)
    after = "test loss slung / "
    rows = [
        ("before", f"{after}before, after 10 % more steps", "no effect", "before", 0.1),
        ("longer", f"{after}training on without, after 10 % more steps", "training on", ROLES["none"], 0.1),
        ("early", f"{after}early stopping at equal training loss, after 10 % more steps", "early stopping", "early", 0.1),
        ("soon", f"{after}fresh weights of the same norms, after 2.5 % more steps", "a restart", ROLES["fresh"], 0.025),
        ("fresh", f"{after}fresh weights of the same norms, after 10 % more steps", "a restart", ROLES["fresh"], 0.1),
        ("norm", f"{after}before, when the norm is that of before", "a passing gain", "before", NORM),
    ]
    return [
        Question(group, "overfits", "share of the noise memorized", (("the rule",), ()), noise),
        *(
            Question(group, role, text, (("the essay",), (rival,)), loss_ratio(of, overfit, arms, essay, against, moment))
            for role, text, rival, against, moment in rows
        ),
        *spectral(group, of, members, list(arms).index(essay)),
    ]


def _bound(question: Question) -> float:
    return 0.0 if question.role == "overfits" else float(np.log2(1 - MARGIN))


def _claims(question: Question, answer: Answer) -> list[Claim]:
    """A claim for each side; `held` if the seeds decide for it."""
    low, high = finite_or_none(*median_interval(question.samples))
    noise = question.role == "overfits"
    low, high = (0.5 - high, 0.5 - low) if noise else (2.0**low, 2.0**high)
    predicted = ("> 0.5", "<= 0.5") if noise else (f"< {1 - MARGIN:g}", f">= {1 - MARGIN:g}")
    claims = []
    for side, words, below in zip(question.sides, predicted, (True, False), strict=True):
        if side:
            count = f"{agreeing(question.samples, _bound(question), below)} of {len(question.samples)} seeds"
            by = "needed for a verdict on the effect" if noise else f"predicted by {' and '.join(side)}"
            name = f"{', '.join(question.group)}: {question.text}: {by}, seen in {count}"
            held = None if answer.smaller is None else answer.smaller is below
            claims.append(Claim(name, words, answer.measured, low, high, held))
    return claims


def _mechanism(answers: Mapping[str, Answer]) -> str:
    high, share = answers["high"].smaller, answers["share"].smaller
    if high is False or share is False:
        return "not supported"
    return "supported" if high and share else "undecided"
