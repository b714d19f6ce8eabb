"""The rule can say each of its answers and none; its sentences say what was measured."""

from typing import Any

import numpy as np
import pytest

from precisionlab.experiments.slingshot.arms import ARMS
from precisionlab.experiments.slingshot.looks import look_shares
from precisionlab.experiments.slingshot.ratios import NORM, early_losses, loss_ratio, recovered
from precisionlab.experiments.slingshot.sizes import SIZED_ARMS, size_questions, size_sentence
from precisionlab.experiments.slingshot.spectra import POINTS
from precisionlab.experiments.slingshot.telling import in_short, rows_of, sentences
from precisionlab.experiments.slingshot.verdicts import ROLES, Judged, judge

NAMES = tuple(ARMS)
KINDS = ("floating point", "floating point", "fixed point")
GROUP = ("waves", "fixed point")
SHARES = look_shares(0.5)


def synthetic(seeds: int = 32, noise: float = 0.01, arms: Any = NAMES, **ratios: float) -> dict[str, Any]:
    """Arrays in which the factor 0.2 has the given ratios: of its test loss to `before`, `none`, `early`, `fresh` and, at
    2.5 %, `soon`; of that when the norm is back to before (`norm`; 0 if it never is); of power to before, `shrunk`, `exact`,
    `undone` (of the high) and `undone_low`. 1 for all others.
    """
    rng = np.random.default_rng(0)
    level = 2.0 ** rng.normal(0, 0.5, seeds)  # a seed's own, which pairing removes
    kinds = len(KINDS)

    def near(value: float, *shape: int) -> np.ndarray:
        return level * value * 2.0 ** rng.normal(0, noise, (*shape, seeds))

    def of(name: str) -> float:
        return ratios.get(name, 1.0)

    test = np.stack([near(1.0, kinds, len(arms)) for _ in SHARES], -1)
    if "fresh" in arms or ROLES["fresh"] in arms:
        fresh, none, essay = (list(arms).index(ROLES[role]) for role in ("fresh", "none", "essay"))
        test[:, none] /= of("none")
        test[:, fresh, :, SHARES.index(0.1)] /= of("fresh")
        test[:, fresh, :, SHARES.index(0.025)] /= of("soon")
        test[:, essay, :, -1] = near(of("norm") / of("before"), kinds)
    norm = np.broadcast_to(np.linspace(0.2, 0.99 if ratios.get("norm") == 0 else 1.0, len(SHARES)), test.shape)
    power = {"before": (1.0, 10.0), "shrunk": (of("shrunk"), 10.0), "exact": (of("exact"), 10.0), "after": (1.0, 10.0)}
    power["undone"] = of("undone"), 10 * of("undone_low")
    high, low = (np.stack([near(power[point][part], kinds, len(arms)) for point in POINTS], 2) for part in (0, 1))
    return {
        "shares": SHARES,
        "points": 20,
        "path_test": np.stack([near(1.0, kinds), near(1 / of("before"), kinds)], -1),
        "path_train": np.ones((kinds, seeds, 2)),
        "test": test,
        "train": np.ones_like(test),
        "early": near(1 / of("early"), kinds, len(arms)),
        "memorized": np.full((kinds, seeds), of("memorized") if "memorized" in ratios else 0.9),
        "norm": norm,
        "norm_before": np.ones((kinds, seeds)),
        "high": high,
        "total": high + low,
    }


def judged(**ratios: Any) -> Judged:
    return judge({"waves": synthetic(**ratios)}, KINDS, NAMES)


def answers(**ratios: Any) -> dict[str, bool | None]:
    return {role: answer.smaller for role, answer in judged(**ratios).answers[GROUP].items()}


@pytest.mark.parametrize("role", ["before", "none", "early", "soon", "fresh", "norm"])
@pytest.mark.parametrize(("ratio", "answer"), [(0.8, True), (1.0, False), (1.3, False)])
def test_each_question_of_the_effect_by_itself(role: str, ratio: float, answer: bool | None) -> None:
    name = {"none": "longer"}.get(role, role)
    assert answers(**{role: ratio})[name] is answer
    assert answers(**{role: 0.95}, noise=0.3)[name] is None


def test_a_network_that_memorized_little_has_nothing_to_mend() -> None:
    assert answers(memorized=0.3)["overfits"] is False
    assert answers(memorized=0.9)["overfits"] is True


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ({}, "not supported"),
        ({"undone": 1.3}, "not supported"),
        ({"undone": 0.6, "undone_low": 0.6}, "not supported"),
        ({"undone": 0.6}, "supported"),
        ({"undone": 0.95, "undone_low": 0.1}, "not supported"),
        ({"undone": 0.95, "noise": 0.05}, "undecided"),
        ({"undone": 0.6, "undone_low": 0.635, "noise": 0.05}, "undecided"),
        ({"shrunk": 0.1, "exact": 0.1}, "not supported"),
    ],
)
def test_the_rule_on_the_mechanism(ratios: dict[str, float], answer: str) -> None:
    assert judged(**ratios).mechanism[GROUP] == answer


def test_a_fall_in_the_shrunk_function_is_the_register_s_only_if_it_is_smaller_without_one() -> None:
    bent, lost = answers(shrunk=0.1, exact=0.1), answers(shrunk=0.1, undone=0.5)
    assert (bent["shrunk"], bent["register"], bent["high"]) == (True, False, False)
    assert (lost["shrunk"], lost["register"], lost["high"]) == (True, True, True)


def test_few_seeds_decide_nothing_however_alike_they_are() -> None:
    told = judged(seeds=5, before=0.01, noise=0.0)
    assert all(answer.smaller is None for answer in told.answers[GROUP].values())


def test_one_bad_seed_changes_no_answer_and_too_many_do() -> None:
    for bad, answer in ((1, True), (12, None)):
        arrays = synthetic(before=0.5)
        arrays["path_test"][:, :bad] = np.nan
        found = judge({"waves": arrays}, KINDS, NAMES)
        assert found.answers[GROUP]["before"].smaller is answer
        claim = next(claim for claim in found.claims if "fixed point: test loss slung / before, after" in claim.name)
        assert claim.measured == pytest.approx(0.5, rel=0.05)
        assert claim.name.endswith(f"seen in {32 - bad} of 32 seeds")
        assert (claim.high < 0.6) == (bad == 1)  # NaN with twelve: an end would be infinite


def test_a_question_without_numbers_stays_in_the_family() -> None:
    """27 of 32 is enough for a family of thirty-three, and not for one of six hundred, though the others say nothing."""
    arrays = synthetic(before=0.5)
    arrays["path_test"][:, :5] = np.nan
    assert judge({"waves": arrays}, KINDS, NAMES).answers[GROUP]["before"].smaller is True
    silent = size_questions("waves", {8: synthetic(arms=SIZED_ARMS), 16: synthetic(arms=SIZED_ARMS)})[0]
    silent = silent._replace(samples=np.full(32, np.nan))
    more = [silent._replace(group=("silent", str(number))) for number in range(600)]
    assert judge({"waves": arrays}, KINDS, NAMES, more).answers[GROUP]["before"].smaller is None


@pytest.mark.parametrize("seed", range(3))
def test_labels_shuffled_between_arms_give_undecided(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = synthetic(before=0.5, none=0.5, early=0.7, fresh=0.7, soon=0.5, norm=0.5, undone=0.3, shrunk=0.3)
    for name, axis in (("test", 1), ("high", 2), ("total", 2)):
        arrays[name] = rng.permuted(arrays[name], axis=axis)
    arrays["path_test"] = arrays["test"][:, 3, :, :2]
    found = judge({"waves": arrays}, KINDS, NAMES)
    assert not any(found.answers[GROUP][role].smaller for role in ("longer", "soon", "fresh", "high"))
    assert "supported" not in found.mechanism.values()


def test_registers_that_never_overfit_are_left_out() -> None:
    arrays = synthetic(before=0.5)
    arrays["memorized"][0] = 0.2
    arrays["test"][0] *= 10  # and would have turned the answer
    assert judge({"waves": arrays}, KINDS, NAMES).answers["waves", "floating point"]["before"].smaller is True


def test_claims_say_who_predicts_what() -> None:
    claims = {claim.name: claim for claim in judged(before=0.5, shrunk=0.2, exact=0.2).claims}
    assert len(claims) == 2 * (1 + 6 * 2 + 1 + 3 * 2)
    begin = "waves, fixed point: test loss slung / before, after 10 % more steps: predicted by "
    essay, none = claims[f"{begin}the essay, seen in 32 of 32 seeds"], claims[f"{begin}no effect, seen in 0 of 32 seeds"]
    assert (essay.predicted, essay.held, none.predicted, none.held) == ("< 0.95", True, ">= 0.95", False)
    assert essay.low < essay.measured < essay.high
    assert essay.measured == pytest.approx(0.5, rel=0.02)
    both = "waves, fixed point: share of high frequencies, shrunk / before: predicted by the essay and the nonlinearity, "
    assert claims[f"{both}seen in 32 of 32 seeds"].held
    straight = judge({"digits": synthetic()}, KINDS, NAMES).claims
    assert any("shrunk / before: predicted by the nonlinearity, seen in 32 of 32" in claim.name for claim in straight)
    with pytest.raises(ValueError, match=r'judge: the arm "0.2, fresh" is missing; the rule reads 0.2, none, 0.2, fresh'):
        judge({"waves": synthetic()}, KINDS, [name for name in NAMES if name != "0.2, fresh"])


def told(**ratios: Any) -> str:
    found = judged(**ratios)
    arrays = synthetic(**ratios)
    counts = {group: (*recovered(arrays, [0], NAMES, "0.2"), 0.5) for group in found.answers}
    return " ".join(sentences(found.answers, found.mechanism, counts))


def test_sentences_say_what_was_measured() -> None:
    said = told(before=0.5, none=0.5, early=1.0, soon=0.7, fresh=1.0, norm=1.1, shrunk=0.2, exact=0.2)
    for part in (
        "waves, all registers: after 10 % more steps the test loss is lower than before (0.50 of it)",
        "training on without a slingshot does not do as well (ratio 0.50)",
        "stopping early at equal training loss does as well (1.00)",
        "ahead of fresh weights of the same norms after 2.5 % more steps (0.70), not ahead of them after 10 % (1.00)",
        "the norm of before is back in 64 of 64 runs within 50 % more steps, and then the gain is gone (1.10 of the test loss ",
        "the share of high frequencies is lower than before (0.21 to 0.22 of it), and no lower than where nothing is rounded: "
        "the nonlinearity does it (ratio 1.00)",
        "nothing high fell off the register, the essay's mechanism is not supported",
    ):
        assert part in said, part
    lost = told(shrunk=0.2, undone=0.5)
    assert "lower than where nothing is rounded: the register takes some of it" in lost
    assert "something high fell off the register, the essay's mechanism is supported" in lost
    assert "the norm of before is back in 0 of 64 runs within 50 % more steps." in told(norm=0)
    assert "not shown to memorize the noise (share 0.30), so nothing is said of an effect" in told(memorized=0.3)


def test_in_short_the_answers_are_counted() -> None:
    found = judged(before=0.5, early=1.0, soon=0.7, fresh=1.0, norm=1.1, shrunk=0.2, exact=0.2)
    said = in_short(found.answers, found.mechanism)
    for part in (
        "of 2 cases (data in one kind of register): the noise is shown to be memorized in 2;",
        "lower than before after 10 % more steps in 2, no higher (to within 5 %) with early stopping at equal training",
        "no higher with fresh weights of the same norms in 2 (after 2.5 % more steps in 0; there it is higher in 2),",
        "and the gain is gone where the norm is back in 2, still there in 0.",
        "a lower share of high frequencies than before in 2, of these as low without any rounding in 2.",
        "fall off the register in 0, not to in 2; the rest is undecided.",
    ):
        assert part in said, part
    straight = judged()
    assert "than before in 0, of these as low without any rounding in 0." in in_short(straight.answers, straight.mechanism)
    lost = judged(shrunk=0.2, undone=0.5, memorized=0.3)
    said = in_short(lost.answers, lost.mechanism)
    assert "memorized in 0; of these the test loss is lower than before after 10 % more steps in 0" in said
    assert "as low without any rounding in 0. High frequencies are shown to fall off the register in 2, not to in 0;" in said


def test_runs_whose_norm_never_comes_back_are_counted() -> None:
    arrays = synthetic(before=0.5, norm=0.8, seeds=6)
    arrays["norm"] = arrays["norm"].copy()
    arrays["norm"][0, :, :4] *= 0.5
    arrays["norm"][1, :, :2] *= 0.5
    place = NAMES.index("0.2")
    assert recovered(arrays, [0, 1], NAMES, "0.2") == (6, 12)
    logs = loss_ratio(arrays, [0, 1], NAMES, "0.2", "before", NORM)
    assert np.isnan(logs).tolist() == [True, True, False, False, False, False]
    alone = np.log2(arrays["test"][1, place, 2, -1] / arrays["path_test"][1, 2, -1])
    assert logs[2] == pytest.approx(alone)  # of the register in which it came back
    row = next(row for row in rows_of("waves", arrays, ["a", "a", "b"], NAMES) if row["arm"] == "0.2")
    assert row["norm_back"] == "6 of 12"
    assert row["at_norm"] == pytest.approx(0.8, rel=0.05)


def test_early_stopping_is_read_on_the_way_until_a_tenth_more_steps() -> None:
    arrays = synthetic(seeds=2)
    none, essay = NAMES.index("none"), NAMES.index("0.2")
    arrays["path_train"] = np.broadcast_to([8.0, 2.0], (3, 2, 2))
    arrays["path_test"] = np.broadcast_to([1.0, 3.0], (3, 2, 2))
    arrays["train"][:, essay] = 4.0
    arrays["train"][:, none], arrays["test"][:, none] = 1.5, 5.0
    arrays["train"][:, none, :, SHARES.index(0.1)], arrays["test"][:, none, :, SHARES.index(0.1)] = 0.5, 7.0
    arrays["train"][:, none, :, -1] = 0.1
    arrays["train"][:, NAMES.index("0.5")] = 0.2  # which is reached, but later
    found = early_losses(arrays, none)
    assert found[:, essay] == pytest.approx(np.full((3, 2), 2.0))  # half of the way from 8 to 2
    assert found[:, none] == pytest.approx(np.full((3, 2), 7.0))
    assert found[:, NAMES.index("0.5")] == pytest.approx(np.full((3, 2), 7.0))


@pytest.mark.parametrize(
    ("few", "many", "words"),
    [
        (0.5, 1.2, "no gain after 10 % more steps (1.20 of the test loss before); fewer points gain more (ratio 0.42)"),
        (0.5, 0.5, "a gain after 10 % more steps (0.50 of the test loss before); fewer points do not gain more"),
    ],
)
def test_small_data(few: float, many: float, words: str) -> None:
    found = {n: synthetic(arms=SIZED_ARMS, before=ratio) for n, ratio in ((512, many), (16, few))}
    told = judge({}, [], NAMES, size_questions("waves", found))
    assert size_sentence("waves", told.answers)[0].startswith(f"waves, 16 to 512 points: with 512 there is {words}")
    assert size_sentence("digits", told.answers) == []
    assert size_questions("waves", {16: found[16]}) == []
