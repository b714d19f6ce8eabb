"""The answers in words and in a table: each sentence says what was measured, and no more.

Kinds of registers of which the same is said are told of together, their numbers as a range.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from precisionlab.experiments.slingshot.arms import ARMS
from precisionlab.experiments.slingshot.looks import MOMENTS
from precisionlab.experiments.slingshot.ratios import NORM, loss_ratio, power_ratio, recovered, share_ratio
from precisionlab.experiments.slingshot.verdicts import ROLES, Answer, overfitted
from precisionlab.runs.seeds import finite_or_none, median, median_interval

__all__ = ["in_short", "rows_of", "sentences"]

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
        asked = [group for group, of in answers.items() if all(role in of for role in roles)]
        alike: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
        for group in asked:
            said = tuple(answers[group][role].smaller for role in roles)
            if roles is _EFFECT and not said[0]:
                said = said[:1]
            alike.setdefault((group[0], said, mechanism[group] if roles is _MECHANISM else ""), []).append(group)
        for (data, *_), groups in alike.items():
            every = len(groups) == sum(group[0] == data for group in asked)
            kinds = "all registers" if every else " and ".join(kind for _, kind in groups)
            told.append(f"{data}, {kinds}: {tell(groups, answers, mechanism, counts)}.")
    return told


def in_short(answers: Mapping[tuple[str, str], Answers], mechanism: Mapping[tuple[str, str], str]) -> str:
    """All answers counted, in three sentences; a case is one data set in one kind of register.

    Args:
        answers: from `judge`.
        mechanism: from `judge`.
    """
    cases = [of for of in answers.values() if all(role in of for role in _EFFECT)]
    mended = [of for of in cases if of["overfits"].smaller is True]

    def count(role: str, smaller: bool, among: Sequence[Answers] = mended) -> int:
        return sum(of[role].smaller is smaller for of in among)

    bent = [of for of in cases if of["shrunk"].smaller is True]
    verdicts = list(mechanism.values())
    return (
        f"In short, of {len(cases)} cases (data in one kind of register): the noise is shown to be memorized in {len(mended)}; "
        f"of these the test loss is lower than before after 10 % more steps in {count('before', True)}, no higher (to within "
        f"5 %) with early stopping at equal training loss in {count('early', False)}, no higher with fresh weights of the same "
        f"norms in {count('fresh', False)} (after 2.5 % more steps in {count('soon', False)}; there it is higher in "
        f"{count('soon', True)}), and the gain is gone where the norm is back in {count('norm', False)}, still there in "
        f"{count('norm', True)}. The shrunk function has a lower share of high frequencies than before in {len(bent)}, of "
        f"these as low without any rounding in {count('register', False, bent)}. High frequencies are shown to fall off the "
        f"register in {verdicts.count('supported')}, not to in {verdicts.count('not supported')}; the rest is undecided."
    )


def _effect(groups: Sequence[tuple[str, str]], answers: Any, _: Any, counts: Any) -> str:
    said, of = _read(groups, answers, _EFFECT)
    if said["overfits"] is not True:
        return f"the networks are not shown to memorize the noise (share {of('overfits')}), so nothing is said of an effect"
    better = {True: "lower", False: "not lower", None: "not decidedly lower"}[said["before"]]
    told = [f"after 10 % more steps the test loss is {better} than before ({of('before')} of it)"]
    if said["before"] is True:
        word = {True: "does not do as well", False: "does as well", None: "may do as well"}
        told.append(
            f"training on without a slingshot {word[said['longer']]} (ratio {of('longer')}), stopping early at equal training "
            f"loss {word[said['early']]} ({of('early')})"
        )
    ahead = {True: "ahead of", False: "not ahead of", None: "not decidedly ahead of"}
    told.append(
        f"{ahead[said['soon']]} fresh weights of the same norms after 2.5 % more steps ({of('soon')}), "
        f"{ahead[said['fresh']]} them after 10 % ({of('fresh')})"
    )
    there, runs = (sum(counts[group][place] for group in groups) for place in (0, 1))
    back = f"the norm of before is back in {there} of {runs} runs within {100 * counts[groups[0]][2]:g} % more steps"
    if there:
        left = {True: "the gain is still there", False: "the gain is gone", None: "whether a gain is left is undecided"}
        back += f", and then {left[said['norm']]} ({of('norm')} of the test loss before)"
    return "; ".join([*told, back])


def _mechanism(groups: Sequence[tuple[str, str]], answers: Any, mechanism: Any, _: Any) -> str:
    said, of = _read(groups, answers, _MECHANISM)
    falls = {True: "lower", False: "not lower", None: "not decidedly lower"}[said["shrunk"]]
    exact = {
        True: "lower than where nothing is rounded: the register takes some of it",
        False: "no lower than where nothing is rounded" + (": the nonlinearity does it" if said["shrunk"] else ""),
        None: "not decidedly lower than where nothing is rounded",
    }[said["register"]]
    why = "nothing high fell off the register" if said["high"] is False else "what fell off the register was not high"
    verdict = {
        "supported": "something high fell off the register, the essay's mechanism is supported",
        "not supported": f"{why}, the essay's mechanism is not supported",
        "undecided": "whether something high fell off the register is undecided",
    }[mechanism[groups[0]]]
    return (
        f"in the shrunk function the share of high frequencies is {falls} than before ({of('shrunk')} of it), and {exact} "
        f"(ratio {of('register')}); shrunk and undone, high frequencies have {of('high')} of their power and {of('share')} of "
        f"their share: {verdict}"
    )


def _read(
    groups: Sequence[tuple[str, str]], answers: Any, roles: Sequence[str]
) -> tuple[dict[str, bool | None], Callable[[str], str]]:
    """What all of the groups answer, and the range of their numbers."""
    said = {role: answers[groups[0]][role].smaller for role in roles}
    return said, lambda role: _range(answers[group][role].measured for group in groups)


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
                    low, high = finite_or_none(*median_interval(logs))
                    row |= {name: 2.0 ** median(logs), f"{name}_low": 2.0**low, f"{name}_high": 2.0**high}
                if NORM in moments:
                    there, runs = recovered(of, members, arms, arm)
                    row["norm_back"] = f"{there} of {runs}"
                rows.append(row)
    return rows


def _name(moment: float | str) -> str:
    return moment if isinstance(moment, str) else f"{100 * moment:g}"


def _range(values: Iterable[float]) -> str:
    texts = [f"{value:.2f}" if value >= 0.1 else f"{value:.1g}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
