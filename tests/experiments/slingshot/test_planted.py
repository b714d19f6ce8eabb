"""Planted worlds: the rule names the mechanism where it is at work, and where something else took the high frequencies."""

import dataclasses

import numpy as np
import pytest

from precisionlab.experiments.slingshot import planted, question
from precisionlab.experiments.slingshot.planted import planted_worlds
from precisionlab.experiments.slingshot.spectra import POINTS
from precisionlab.experiments.slingshot.verdicts import mechanism_of

WORLDS = {each.world: each for each in planted_worlds()}


def shares(world: str) -> dict[str, np.ndarray]:
    each = WORLDS[world]
    return dict(zip(POINTS, each.high / each.total, strict=True))


def test_every_world_is_named_rightly() -> None:
    assert {name: each.answer for name, each in WORLDS.items()} == {
        "last bits": "supported",
        "exponent": "not supported",
        "bending": "not supported",
    }
    assert all(each.claim.held for each in WORLDS.values())


def test_in_the_world_of_the_last_bits_the_register_takes_them() -> None:
    share = shares("last bits")
    assert (share["shrunk"] < 1e-20).all()
    assert (share["undone"] < 1e-20).all()
    assert share["exact"] == pytest.approx(share["before"])


def test_in_the_world_of_exponents_nothing_is_lost() -> None:
    share = shares("exponent")
    for point in ("shrunk", "exact", "undone"):
        assert share[point] == pytest.approx(share["before"])


def test_in_the_world_of_bending_they_are_gone_without_a_register_and_come_back() -> None:
    share = shares("bending")
    assert (share["shrunk"] < 0.2 * share["before"]).all()
    assert share["exact"] == pytest.approx(share["shrunk"], rel=1e-4)
    assert share["undone"] == pytest.approx(share["before"])


def test_one_bad_seed_does_not_change_a_name_and_five_do() -> None:
    world = WORLDS["last bits"]
    for bad, answer in ((1, "supported"), (5, "undecided")):
        high = world.high.copy()
        high[POINTS.index("undone"), :bad] = np.nan
        of = {"high": high[None, None], "total": world.total[None, None]}
        assert mechanism_of(("last bits", "fixed8"), of, [0], 0) == answer


def test_a_rule_that_names_a_world_wrongly_makes_the_run_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "mechanism_of", lambda *_: "supported")
    worlds = planted_worlds()
    assert [each.claim.held for each in worlds] == [True, False, False]
    config = dataclasses.replace(question.SlingshotConfig(), seeds=3)
    judged = question.judge({}, [], tuple(question.ARMS))
    told = question._verdict(config, {}, judged, all(each.answer == each.expected for each in worlds))
    assert told.startswith("invalid: the rule does not name every planted world rightly.")
