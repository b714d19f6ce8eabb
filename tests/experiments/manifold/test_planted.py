"""Planted worlds through the whole decision, and random weights in place of training, which must decide nothing."""

import jax
import numpy as np
import pytest

from precisionlab.experiments.manifold import directions, planted
from precisionlab.experiments.manifold.decision import decide
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import first_weights
from precisionlab.experiments.manifold.worlds import networks


@pytest.mark.slow
@pytest.mark.parametrize("bits", [7, 10])
def test_every_planted_world_is_named(bits: int) -> None:
    found = directions.decisions({"": directions.measure_planted(range(5), bits=bits)}, "planted", bits)
    assert {world: decision.answer for world, decision in found.items()} == planted.EXPECTED
    assert found["half and half"].shares["in real arithmetic"].median == 0.5


@pytest.mark.slow
def test_the_share_that_is_planted_is_the_share_that_is_found() -> None:
    seeds = range(5)
    worlds = {f"{weak}": planted.mixed(seeds, weak) for weak in range(planted.PAIRS + 1)}
    measured = directions.counted("planted", worlds, list(seeds), (8,), (8,), 16384, 4096)
    for weak in range(planted.PAIRS + 1):
        for reference, values in directions.samples(measured, "planted", f"{weak}", 8).items():
            np.testing.assert_allclose(values, 1 - weak / planted.PAIRS, rtol=1e-12, err_msg=f"{weak} {reference}")


def test_the_weak_term_leaves_four_points_and_none_of_the_rest_does() -> None:
    """By the Hessian in float64: singular on a ring, not at the four points, nor in a bowl."""
    made = planted.worlds([1])
    places = np.tile([1.0, 0.0], planted.PAIRS)
    for world, singular in (
        ("manifold", 6),
        ("format's ring", 0),
        ("half and half", 3),
        ("soft modes", 0),
        ("nothing flat", 0),
    ):
        with jax.enable_x64(True):
            hessian = np.asarray(jax.hessian(planted.pairs)(places, made[world].of(np.array(0)).data))
        values = np.linalg.eigvalsh(hessian)
        assert (np.abs(values) < 1e-12).sum() == singular, world
        assert values.min() > -1e-12, world


def test_a_number_of_pairs_out_of_range_is_refused() -> None:
    for seeds, weak in (([], 0), ([1], 7), ([1], -1)):
        with pytest.raises(ValueError, match=r"give at least one seed and 0 to 6 pairs with the weak term"):
            planted.mixed(seeds, weak)


@pytest.mark.slow
def test_random_weights_in_place_of_training_decide_nothing() -> None:
    """The nets of the run, asked where they begin: the Jacobian has its null space there too, and nobody may be told so."""
    seeds = list(range(5))
    fits = Net().fits(seeds)
    starts = np.stack([first_weights(fit, seed) for fit, seed in zip(fits, seeds, strict=True)])
    worlds = {
        name: world._replace(starts=starts, trained=False)
        for name, world in networks(Net(), seeds).items()
        if name in ("square", "square_with_decay")
    }
    measured = directions.counted("directions", worlds, seeds, (8,), (8,), 1024, 1024)
    for name in worlds:
        found = decide(name, directions.samples(measured, "directions", name, 8))
        assert found.answer == "undecided", name
        assert "nothing rests in the format" in found.why
