"""Decay stops where the half-gap law says, at two settings of lr mu; and the claims can say the other thing."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import decay
from precisionlab.experiments.manifold.pictures.probes import draw_decay
from precisionlab.runs.results import Labelled


@pytest.mark.slow
def test_the_threshold_is_minus_log2_of_lr_mu_to_the_bit() -> None:
    """The review's numbers: .001 a bit below, .63 at it, .96 two above."""
    measured = decay.measure(range(5), dials=(7, 10))
    np.testing.assert_array_equal(measured.arrays["decay_end"].values, [[7] * 5, [10] * 5])
    motion = measured.arrays["decay_motion"].values
    assert (motion[:, :2] < 0.03).all()
    assert (motion[:, 2] > 0.5).all()
    assert (motion[:, 4:] > 0.9).all()
    assert all(claim.held is True or claim.says == "representation" for claim in decay.claims(measured))
    assert draw_decay(measured, Figure().subplots()).lines


def made(motion: list[float], ends: list[float]) -> Measured:
    offsets = list(decay._OFFSETS)
    coords = {"seed": range(8), "decay_dial": [7], "decay_offset": offsets}
    rows = np.repeat(np.array(motion)[None, :, None], 8, axis=2)
    arrays = {
        "decay_motion": Labelled(("decay_dial", "decay_offset", "seed"), rows),
        "decay_end": Labelled(("decay_dial", "seed"), np.array([ends])),
    }
    return Measured(coords, arrays)


def test_the_claims_can_say_either() -> None:
    place, below = decay.claims(made([0, 0, 0.7, 0.9, 1, 1], [7.0] * 7 + [np.inf]))
    assert (place.held, below.says) == (True, "representation")
    place, below = decay.claims(made([1.0] * 6, [5.0] * 8))
    assert (place.held, below.says) == (False, "geometry")
    assert decay.claims(made([0, 0.5, 1, 1, 1, 1], [np.inf] * 8))[0].held is False
    # Four seeds, as --quick has, give no interval of a median: nothing is decided, and nothing failed.
    assert decay.claims(made([0, 0, 0.7, 0.9, 1, 1], [7.0] * 4))[0].held is None


def test_a_dial_out_of_range_is_refused() -> None:
    for seeds, dials in (([], (7,)), ([1], ()), ([1], (3,))):
        with pytest.raises(ValueError, match=r"give at least one seed, and dials from 5 to 20"):
            decay.measure(seeds, dials=dials)
