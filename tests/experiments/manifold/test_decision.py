"""The rule of the decision, from its own description: each answer, what one bad seed may do, and that it can say nothing."""

import numpy as np
import pytest

from precisionlab.experiments.manifold.decision import ANSWERS, REFERENCES, decide, shares


def answer(*medians: float, seeds: int = 16, spread: float = 0.0) -> str:
    noise = np.linspace(-spread, spread, seeds)
    return decide("square", {f"{i}": np.full(seeds, median) + noise for i, median in enumerate(medians)}).answer


def test_each_answer_follows_from_its_rule() -> None:
    assert answer(0.9, 1.1) == answer(0.97, 0.95) == "geometry"
    assert answer(0.0, 0.1) == "representation"
    assert answer(0.5, 0.2) == answer(0.89, 0.11) == "mixture"
    assert answer(0.97, 0.0) == answer(0.97, 0.5) == "undecided"  # they disagree
    assert answer(0.9, spread=0.1) == answer(0.1, spread=0.1) == "undecided"  # across a bound
    assert {answer(0.9), answer(0.1), answer(0.5), answer(np.nan)} == set(ANSWERS)


@pytest.mark.parametrize(("seeds", "bad"), [(5, 0), (8, 1), (16, 4), (64, 24)])
def test_a_few_bad_seeds_change_nothing_and_one_more_does(seeds: int, bad: int) -> None:
    """Whatever they are: no share at all, or one on the other side."""
    for worst in (np.nan, 0.0):
        values = np.full(seeds, 0.97)
        values[:bad] = worst
        assert decide("square", {"real": values}).answer == "geometry", (worst, bad)
        values[: bad + 1] = worst
        assert decide("square", {"real": values}).answer == "undecided", (worst, bad)
    assert answer(0.97, seeds=4) == "undecided"


def test_p_is_that_of_the_least_sure_share_and_no_less_than_seeds_can_know() -> None:
    sure, doubtful = np.full(16, 0.97), np.array([0.97] * 13 + [0.5] * 3)
    assert decide("square", {"real": sure}).p == 2.0**-16
    found = decide("square", {"real": sure, "free": doubtful})
    assert (found.answer, found.p) == ("geometry", sum([1, 16, 120, 560]) / 2**16)
    assert decide("square", {"real": np.full(16, 0.5)}).p == 2.0**-16
    assert decide("square", {"real": [0.97] * 3}).p == 1.0


def test_why_it_is_undecided_is_said() -> None:
    for samples, words in (
        ({"real": [np.nan] * 16}, "in 16 of 16 seeds nothing rests in the format, or nothing is flat there"),
        ({"real": [0.97] * 4}, "4 seeds are too few"),
        ({"real": np.linspace(0.8, 1.0, 16)}, "the share real is between 0.85 and 0.95, across a bound"),
        ({"real": [1.0] * 16, "free": [0.0] * 16}, "real says geometry, free says representation"),
    ):
        assert decide("square", samples).why == words
    with pytest.raises(ValueError, match=r'there is no share of the world "square"'):
        decide("square", {})


def test_a_share_needs_rest_in_the_format_and_something_flat() -> None:
    found = shares([36, 36, 36, 0], [True, False, True, True], [36, 36, 36, 0], [True, True, False, True])
    np.testing.assert_array_equal(found, [1.0, np.nan, 0.0, np.nan])
    assert len(REFERENCES) == 2


def test_counts_shuffled_between_arithmetics_decide_nothing() -> None:
    """Sixteen seeds of a world of the format's, told as it is, and with a coin for every seed that swaps two arithmetics."""
    random = np.random.default_rng(0)
    told = []
    for _ in range(40):
        flat = np.stack([random.integers(34, 39, 16), np.zeros(16, int)])
        coins = random.random(16) < 0.5
        here, there = np.where(coins, flat[::-1], flat)
        assert decide("w", {"real": shares(flat[0], np.ones(16), flat[1], np.ones(16))}).answer == "representation"
        told.append(decide("w", {"real": shares(here, np.ones(16), there, np.ones(16))}).answer)
    # A coin that swaps four of sixteen or fewer, one in 26, swaps few enough to be bad seeds.
    assert set(told) <= {"undecided", "representation"}
    assert told.count("undecided") >= 36
