"""Walkers spread where a world is flat, and nowhere else; the claims can say either thing."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import planted, walkers
from precisionlab.experiments.manifold.pictures.probes import draw_walkers
from precisionlab.experiments.manifold.worlds import World
from precisionlab.runs.results import Labelled


def test_directions_without_a_pull_are_counted() -> None:
    """Noise is made by what the first pair feels, and reaches the rest through a rotation that the loss knows nothing of."""

    def loss(theta, curvature):
        return 0.5 * jnp.sum(curvature * jnp.square(theta - 1.5)) + 2.0**-9 * jnp.sum(jnp.sin(64 * theta)) / 64

    world = World(loss, np.array([[0.5, 0.25, 0.0, 0.0, 0.0]]), np.full((1, 5), 1.5), np.ones(1))
    assert walkers.spreading(world, 8, 64, train=512)[0] <= 3


@pytest.mark.slow
def test_planted_worlds_are_told_apart() -> None:
    worlds = planted.worlds(range(4))
    assert (walkers.spreading(worlds["format's ring"], 8, 4096) <= 1).all()
    assert (walkers.spreading(worlds["nothing flat"], 8, 256) == 0).all()


@pytest.mark.slow
def test_dimension_falls_with_every_point_and_goes_with_decay() -> None:
    """The review's numbers, at 39 and 35 of 41: the count follows the data, inside the format."""
    measured = walkers.measure(range(3), points=(2, 6), bits=(11,), hidden=8)
    np.testing.assert_allclose(measured.arrays["walkers_flat"].values[:, 0], [[39] * 3, [35] * 3], atol=2)
    assert (measured.arrays["walkers_decayed"].values <= 2).all()
    assert draw_walkers(measured, Figure().subplots()).lines


def made(flat: list[float], decayed: float) -> Measured:
    random = np.random.default_rng(0)
    arrays = {
        "walkers_flat": Labelled(
            ("walkers_points", "walkers_bits", "walkers_seed"), np.array(flat)[:, None, None] + random.normal(0, 0.1, (3, 1, 8))
        ),
        "walkers_decayed": Labelled(("walkers_bits", "walkers_seed"), np.full((1, 8), decayed)),
        "walkers_size": Labelled((), np.array(41)),
    }
    return Measured({"walkers_seed": range(8), "walkers_points": [2, 4, 6], "walkers_bits": [8]}, arrays)


def test_the_claims_can_say_either() -> None:
    assert {claim.says for claim in walkers.claims(made([39, 37, 35], 0))[:-1]} == {"geometry"}
    assert {claim.says for claim in walkers.claims(made([0, 0, 0], 0))[:-1]} == {"representation"}
    said = [claim.says for claim in walkers.claims(made([20, 20, 20], 30))]
    assert said == ["neither"] * 3 + ["representation", ""]
    assert walkers.claims(made([20, 20, 20], 30))[-1].held is False


def test_points_that_do_not_ascend_are_refused() -> None:
    for points in ((3,), (3, 2)):
        with pytest.raises(ValueError, match=r"give at least one seed and two ascending numbers of points"):
            walkers.measure(range(2), points=points)
