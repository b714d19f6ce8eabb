"""The decision's operating characteristics: known worlds are named, and spoiled seeds make it say nothing, not the contrary."""

import pytest

from precisionlab.experiments.manifold.characteristics import operating_characteristics


@pytest.mark.slow
def test_answers_are_right_or_none() -> None:
    found = operating_characteristics(range(2000, 2006), seeds=(16,), spoiled=(0.0, 0.2), draws=100)
    assert len({one.world for one in found}) == 10
    for one in found:
        assert set(one.answers) <= {one.expected, "undecided"}, one
        assert sum(one.answers.values()) == pytest.approx(1.0)
        if one.spoiled == 0:
            assert one.answers == {one.expected: 1.0}, one
        elif one.expected != "undecided":
            assert one.answers[one.expected] > 0.6, one  # four of sixteen may be anything: 80 in 100
