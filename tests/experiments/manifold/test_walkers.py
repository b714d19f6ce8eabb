"""Walkers spread where a world is flat, and nowhere else; the claims can say either thing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import planted, walkers
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.pictures.probes import draw_walkers
from precisionlab.runs.results import Labelled


@pytest.mark.slow
def test_planted_worlds_are_told_apart() -> None:
    worlds = planted.worlds(range(4))
    assert (walkers.spreading(worlds["format's ring"], 8, 4096) <= 1).all()
    assert (walkers.spreading(worlds["nothing flat"], 8, 256) <= 3).all()
    assert (walkers.spreading(worlds["manifold"], 8, 128) >= 6).all()


@pytest.mark.slow
def test_dimension_falls_with_every_point_and_goes_with_decay() -> None:
    """The review's numbers, at 39 and 35 of 41: the count follows the data, inside the format."""
    measured = walkers.measure(range(3), net=Net(), points=(2, 6), bits=(11,))
    np.testing.assert_allclose(measured.arrays["walkers_flat"].values[:, 0], [[39] * 3, [35] * 3], atol=2)
    assert np.median(measured.arrays["walkers_decayed"].values) <= 2
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
