"""The answers in words and in a table: each sentence says what was measured, and no more.

Kinds of registers of which the same is said are told of together, their numbers as a range.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from precisionlab.experiments.slingshot.arms import ARMS
from precisionlab.experiments.slingshot.looks import MOMENTS
from precisionlab.experiments.slingshot.ratios import NORM, loss_ratio, power_ratio, recovered, share_ratio
from precisionlab.experiments.slingshot.seeds import median, median_interval
from precisionlab.experiments.slingshot.verdicts import ROLES, Answer, overfitted

__all__ = ["rows_of", "sentences"]

Answers = Mapping[str, Answer]

_EFFECT = ("overfits", "before", "longer", "early", "soon", "fresh", "norm")
_MECHANISM = ("shrunk", "register", "high", "share")


def sentences(
    answers: Mapping[tuple[str, str], Answers],
    mechanism: Mapping[tuple[str, str], str],
    counts: Mapping[tuple[str, str], tuple[int, int, float]],
) -> list[str]:
    """One sentence for the effect and one for the mechanism, for each data set and all kinds of registers that answer alike.

    Args:
        answers: from `judge`.
        mechanism: from `judge`.
        counts: how many runs got back to their norm, of how many, and within what share of the steps before, by group.
    """
    told = []
    for roles, tell in ((_EFFECT, _effect), (_MECHANISM, _mechanism)):
        alike: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
        for group in (group for group, of in answers.items() if all(role in of for role in roles)):
            said = tuple(answers[group][role].smaller for role in roles)
            if roles is _EFFECT and not said[0]:
                said = said[:1]
            alike.setdefault((group[0], said, mechanism[group] if roles is _MECHANISM else ""), []).append(group)
        for (data, *_), groups in alike.items():
            kinds = " and ".join(kind for _, kind in groups)
            told.append(f"{data}, {kinds}: {tell(groups, answers, mechanism, counts)}.")
    return told


def _effect(groups: Sequence[tuple[str, str]], answers: Any, _: Any, counts: Any) -> str:
    said = {role: answers[groups[0]][role].smaller for role in _EFFECT}

    def of(role: str) -> str:
        return _range(answers[group][role].measured for group in groups)

    if said["overfits"] is not True:
        return f"the networks are not shown to memorize the noise (share {of('overfits')}), so nothing is said of an effect"
    started = {
        True: f"after 10 % more steps the test loss is {of('before')} of what it was before",
        False: f"after 10 % more steps the test loss is not lower than before ({of('before')} of it)",
        None: f"after 10 % more steps it is undecided whether the test loss is lower than before ({of('before')} of it)",
    }[said["before"]]
    if said["before"] is True:
        of_longer = {
            True: "training on without does not give that",
            False: "training on gives it too",
            None: "training on may give it too",
        }
        of_early = {
            True: "early stopping at equal training loss does not give as much",
            False: "early stopping at equal training loss gives as much",
            None: "early stopping at equal training loss may give as much",
        }
        started += f"; {of_longer[said['longer']]} (ratio {of('longer')}), {of_early[said['early']]} ({of('early')})"
    word = {True: "ahead of", False: "not ahead of", None: "not decidedly ahead of"}
    fresh = (
        f"{word[said['soon']]} fresh weights of the same norms after 2.5 % more steps ({of('soon')}), "
        f"{word[said['fresh']]} them after 10 % ({of('fresh')})"
    )
    there, runs = (sum(counts[group][place] for group in groups) for place in (0, 1))
    back = f"{there} of {runs} runs came back to the norm before within {100 * counts[groups[0]][2]:g} % more steps"
    if there:
        left = {True: "the gain was still there", False: "the gain was gone", None: "whether a gain was left is undecided"}
        back += f", where {left[said['norm']]} ({of('norm')} of the test loss before)"
    return f"{started}; {fresh}; {back}"


def _mechanism(groups: Sequence[tuple[str, str]], answers: Any, mechanism: Any, _: Any) -> str:
    said = {role: answers[groups[0]][role].smaller for role in _MECHANISM}

    def of(role: str) -> str:
        return _range(answers[group][role].measured for group in groups)

    shrunk = {
        True: f"in the shrunk function the share of high frequencies is {of('shrunk')} of that before",
        False: f"in the shrunk function the share of high frequencies does not fall ({of('shrunk')} of that before)",
        None: f"whether high frequencies lose share in the shrunk function is undecided ({of('shrunk')} of that before)",
    }[said["shrunk"]]
    exact = {
        True: "and smaller than without any rounding: the register takes some of it",
        False: "and the same without any rounding: "
        + ("the nonlinearity takes it" if said["shrunk"] else "the register takes nothing"),
        None: "and undecided whether that of the same weights without any rounding is larger",
    }[said["register"]]
    undone = f"undone, high frequencies have {of('high')} of their power and {of('share')} of their share"
    verdict = {
        "supported": "something high fell off the register: the essay's mechanism is supported",
        "not supported": "nothing high fell off the register that others did not: the essay's mechanism is not supported",
        "undecided": "whether something high fell off the register is undecided",
    }[mechanism[groups[0]]]
    return f"{shrunk}, {exact} (ratio {of('register')}); {undone}: {verdict}"


def rows_of(data: str, of: Mapping[str, Any], kinds: Sequence[str], arms: Sequence[str]) -> list[dict[str, Any]]:
    """The table of one data set: medians of ratios over seeds with their exact intervals; they describe and decide nothing.

    Args:
        data: its name.
        of: arrays, as `ratios` reads them, and `points`, how many training data there are; spectra may be missing.
        kinds: of each register.
        arms: the names of the arms.

    Returns:
        A row for each kind, arm and what it is compared with: `at_1`, `at_2.5`, ..., test losses slung over those compared
        with, at the moments; of the arms that go on longest `at_norm`, and `norm_back`, how many runs got there; where the
        comparison is with before, shares of high frequencies over those before: `shrunk`, `exact`, `undone`, `after`, and the
        power undone over that before, `power_undone`.
    """
    rows = []
    for kind in dict.fromkeys(kinds):
        members = overfitted(of, [place for place, other in enumerate(kinds) if other == kind])
        for place, arm in enumerate(arms):
            rivals = [ROLES["none"], ROLES["fresh"]] if arm in (ROLES["essay"], "0.2, moments kept") else []
            for against in ("before", *(["early"] if arm == ROLES["essay"] else []), *rivals):
                back = against == "before" and arm in ARMS and ARMS[arm].factor != 1 and ARMS[arm].reach > MOMENTS[-1]
                moments = (0.1,) if against == "early" else (*MOMENTS, *([NORM] if back and "high" in of else []))
                samples = {f"at_{_name(at)}": loss_ratio(of, members, arms, arm, against, at) for at in moments}
                if against == "before" and "high" in of:
                    samples |= {
                        point: share_ratio(of, members, place, point) for point in ("shrunk", "exact", "undone", "after")
                    }
                    samples["power_undone"] = power_ratio(of, members, place, "undone")
                row: dict[str, Any] = {"data": data, "points": of["points"], "registers": kind, "arm": arm, "against": against}
                for name, logs in samples.items():
                    low, high = median_interval(logs)
                    row |= {name: 2.0 ** median(logs), f"{name}_low": 2.0**low, f"{name}_high": 2.0**high}
                if NORM in moments:
                    there, runs = recovered(of, members, arms, arm)
                    row["norm_back"] = f"{there} of {runs}"
                rows.append(row)
    return rows


def _name(moment: float | str) -> str:
    return moment if isinstance(moment, str) else f"{100 * moment:g}"


def _range(values: Iterable[float]) -> str:
    texts = [f"{value:.2g}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
