"""What follows from a slingshot's numbers: the rule, fixed before any run, and nothing but numpy.

Every question is whether something became *smaller by more than a margin* of 5 %: a ratio, in every seed, in logarithms,
averaged over the registers of one kind. Its claim holds if the mean is shown to be below the margin, fails if it is shown to be
above, and is undecided otherwise: two one-sided t tests around the same bound, all of them together adjusted by Holm. The
intervals beside them are BCa intervals of the ratio, each for itself.

    effect      "before" fails                            absent
                "before" holds, "longer" fails            explained by training on
                both hold, "early" fails                  explained by early stopping
                all three hold                            beyond early stopping; then "fresh" and "permuted" say whether the
                                                          solution mattered, or only the norms of the weights
    mechanism   "high" holds, and "share" holds           supported: high frequencies fell, and more than the others
                "high" fails, or "share" does             not supported

and undecided otherwise, or where the registers never memorized half of the noise: then there is no overfit to mend.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from precisionlab.runs.inference import holm, one_sided
from precisionlab.runs.results import Claim
from precisionlab.runs.summary import interval

__all__ = ["ALPHA", "MARGIN", "ROLES", "Judged", "at_equal_loss", "judge"]

ALPHA = 0.05
MARGIN = 0.05
"""How much smaller counts as smaller."""

ROLES = {
    "essay": "0.2",
    "quarter": "0.25",
    "none": "none",
    "fresh": "0.2, fresh",
    "permuted": "0.2, permuted",
    "decay": "weight decay",
    "wider": "0.25, two bits more",
    "coarser": "two bits fewer",
}
"""The arms that the rule reads, by the part they play."""


class Judged(NamedTuple):
    """The answers.

    Attributes:
        claims: each question beside its measurement.
        effect: by (data, kind of register), one of the phrases of the rule, with what it adds.
        mechanism: the same.
    """

    claims: tuple[Claim, ...]
    effect: Mapping[tuple[str, str], str]
    mechanism: Mapping[tuple[str, str], str]


def at_equal_loss(path_train: Any, path_test: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """The test loss at which a training would have stopped at a given training loss: where it first falls to that.

    Between two looks both losses are interpolated, linearly in the logarithm of the training loss.

    Args:
        path_train: training losses of one run, in order, above 0, shape (looks,).
        path_test: test losses at the same looks.
        target: training losses to find, shape (targets,).

    Returns:
        `(test, reached)`: the test losses, and whether the run gets there; where it does not, the test loss at its lowest (or,
        for a target above its first, at its first) training loss.

    Example:
        >>> test, reached = at_equal_loss([4.0, 1.0, 0.25], [8.0, 2.0, 6.0], [2.0, 0.25, 0.1])
        >>> test.tolist(), reached.tolist()
        ([5.0, 6.0, 6.0], [True, True, False])
    """
    train, test, wanted = (np.asarray(values, np.float64) for values in (path_train, path_test, target))
    found, reached = np.empty(wanted.shape), np.empty(wanted.shape, bool)
    for place, loss in np.ndenumerate(wanted):
        below = np.flatnonzero(train <= loss)
        reached[place] = len(below) > 0 and (below[0] > 0 or train[0] == loss)
        if not len(below):
            found[place] = test[np.argmin(train)]
        elif below[0] == 0:
            found[place] = test[0]
        else:
            end = below[0]
            part = np.log(train[end - 1] / loss) / np.log(train[end - 1] / train[end])
            found[place] = test[end - 1] + part * (test[end] - test[end - 1])
    return found, reached


class _Question(NamedTuple):
    group: tuple[str, str]
    role: str
    text: str
    predicted: str
    samples: np.ndarray  # log2 of a ratio; of `overfits` the share less one half, sign turned


def judge(found: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], arms: Sequence[str]) -> Judged:
    """Answer every question.

    Args:
        found: by name of the data, arrays over F registers, A arms and S seeds: `before` (F, S) and `after`, `early` (F, A, S),
            the test losses; `memorized` (F, S); `high` and `total` (F, A, 2, S), the power before, and after shrinking and
            undoing; `changed_normal` (F, A, S).
        kinds: of each register, such as "floating point" and "fixed point".
        arms: the names of the arms; those of `ROLES` must be among them.

    Returns:
        Claims, and a verdict on the effect and one on the mechanism for each data set and kind of register.

    Raises:
        ValueError: if an arm that the rule reads is missing.
    """
    if missing := [name for name in ROLES.values() if name not in arms]:
        raise ValueError(f'judge: the arm "{missing[0]}" is missing; the rule reads {", ".join(ROLES.values())}.')
    at = {role: list(arms).index(name) for role, name in ROLES.items()}
    groups = [(data, kind) for data in found for kind in dict.fromkeys(kinds)]
    asked = [question for group in groups for question in _questions(group, found[group[0]], kinds, at)]
    bounds = [0.0 if question.role == "overfits" else np.log2(1 - MARGIN) for question in asked]
    less = [one_sided(-question.samples, -bound) for question, bound in zip(asked, bounds, strict=True)]
    more = [one_sided(question.samples, bound) for question, bound in zip(asked, bounds, strict=True)]
    sure = holm(np.array(less + more)) < ALPHA
    answers = [True if yes else False if no else None for yes, no in zip(*np.split(sure, 2), strict=True)]
    claims = tuple(_claim(question, held) for question, held in zip(asked, answers, strict=True))
    table = {group: {} for group in groups}
    for question, held in zip(asked, answers, strict=True):
        table[question.group][question.role] = held
    effect = {group: _effect(table[group]) for group in groups}
    mechanism = {}
    for group in groups:
        members = [i for i, kind in enumerate(kinds) if kind == group[1]]
        exact = not np.any(np.asarray(found[group[0]]["changed_normal"])[members, at["quarter"]])
        mechanism[group] = _mechanism(table[group], exact and group[1] == "floating point")
    return Judged(claims, effect, mechanism)


def _questions(
    group: tuple[str, str], arrays: Mapping[str, Any], kinds: Sequence[str], at: Mapping[str, int]
) -> list[_Question]:
    members = [i for i, kind in enumerate(kinds) if kind == group[1]]
    memorized = np.asarray(arrays["memorized"], np.float64)
    overfit = [i for i in members if np.mean(memorized[i]) > 0.5] or members
    before, after, early = (np.asarray(arrays[name], np.float64) for name in ("before", "after", "early"))
    high, total = (np.asarray(arrays[name], np.float64) for name in ("high", "total"))

    def mean(logs: np.ndarray) -> np.ndarray:
        return logs[overfit].mean(axis=0)

    def against(arm: str, other: np.ndarray) -> np.ndarray:
        return mean(_log2(after[:, at[arm]]) - _log2(other))

    def fall(values: np.ndarray, arm: str) -> np.ndarray:
        return mean(_log2(values[:, at[arm], 1]) - _log2(values[:, at[arm], 0]))

    less, essay = f"< {1 - MARGIN:g}", "test loss after factor 0.2"
    rows = [
        ("before", f"{essay} / before it", against("essay", before)),
        ("longer", f"{essay} / training on without", against("essay", after[:, at["none"]])),
        ("early", f"{essay} / early stopping at equal training loss", against("essay", early[:, at["essay"]])),
        ("fresh", f"{essay} / fresh weights of the same norms", against("essay", after[:, at["fresh"]])),
        ("permuted", f"{essay} / the same weights permuted", against("essay", after[:, at["permuted"]])),
        ("decay", f"{essay} / weight decay instead", against("essay", after[:, at["decay"]])),
        ("high", "high-frequency power, factor 0.2 and undone / before", fall(high, "essay")),
        ("share", "share of the power that is high, factor 0.2 and undone / before", fall(high / total, "essay")),
        ("quarter", "high-frequency power, factor 0.25 and undone / before", fall(high, "quarter")),
        ("bits", "test loss after factor 0.25 / the same with two bits more", against("quarter", after[:, at["wider"]])),
        ("coarser", "test loss after two bits fewer / training on without", against("coarser", after[:, at["none"]])),
    ]
    name = ", ".join(group)
    noise = _Question(
        group, "overfits", f"{name}: share of the noise memorized", "> 0.5", 0.5 - memorized[overfit].mean(axis=0)
    )
    return [noise, *(_Question(group, role, f"{name}: {text}", less, samples) for role, text, samples in rows)]


def _log2(values: np.ndarray) -> np.ndarray:
    return np.log2(np.maximum(values, 1e-300))


def _claim(question: _Question, held: bool | None) -> Claim:
    low, high = interval(question.samples)
    mean = float(np.mean(question.samples))
    if question.role == "overfits":
        return Claim(question.text, question.predicted, 0.5 - mean, 0.5 - high, 0.5 - low, held)
    return Claim(question.text, question.predicted, 2.0**mean, 2.0**low, 2.0**high, held)


def _effect(held: Mapping[str, bool | None]) -> str:
    if not held["overfits"]:
        return "undecided: the noise is not shown to be memorized"
    if held["before"] is False:
        return "absent"
    if held["before"] is None:
        return "undecided"
    if not held["longer"]:
        return "explained by training on" if held["longer"] is False else "undecided: training on may explain it"
    if not held["early"]:
        return "explained by early stopping" if held["early"] is False else "undecided: early stopping may explain it"
    as_well = [name for name in ("fresh", "permuted") if held[name] is False]
    if as_well:
        return f"beyond early stopping, but {' and '.join(as_well)} weights of the same norms do as well"
    if held["fresh"] and held["permuted"]:
        return "beyond early stopping, and beyond fresh or permuted weights of the same norms"
    return "beyond early stopping, undecided against fresh or permuted weights of the same norms"


def _mechanism(held: Mapping[str, bool | None], exact: bool) -> str:
    if held["high"] is False or held["share"] is False:
        why = "high frequencies do not fall" if held["high"] is False else "all frequencies fall alike"
        return f"not supported: {why}" + (", and by a factor 0.25 no weight changes unless it underflows" if exact else "")
    if held["high"] and held["share"]:
        if held["bits"] is False:
            return "supported by the spectrum, but no cause of the effect: where two bits more keep everything, it is as large"
        return "supported"
    return "undecided"
