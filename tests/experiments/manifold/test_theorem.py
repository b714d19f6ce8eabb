"""Rank, nullity and gap at minima against numpy, and claims that fail when the numbers do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import theorem
from precisionlab.experiments.manifold.settings import residuals_of, setting
from precisionlab.runs.results import Labelled

SEEDS = (3, 4)
NETS = ("tanh", "linear")


@pytest.fixture(scope="module")
def measured() -> Measured:
    return theorem.measure(SEEDS, nets=NETS)


@pytest.mark.slow
def test_spectra_are_those_of_numpy(measured: Measured) -> None:
    assert measured.coords["theorem_net"] == list(NETS)
    given = setting(theorem.SMOOTH["tanh"], SEEDS, distance=0.0)
    for s in range(len(SEEDS)):
        with jax.enable_x64(True):
            jacobian = np.asarray(jax.jacfwd(residuals_of(given.residuals, s))(jnp.asarray(given.minima[s])))
        steep = np.linalg.svd(jacobian, compute_uv=False) ** 2
        values = measured.arrays["theorem_values"].values[0, s]
        np.testing.assert_allclose(np.sort(values[:33])[::-1][:4], steep, rtol=1e-9)
        assert np.abs(np.sort(np.abs(values[:33]))[:-4]).max() < 1e-13 * steep[0]
        assert measured.arrays["theorem_rank"].values[0, s] == np.linalg.matrix_rank(jacobian) == 4
    assert measured.arrays["theorem_size"].values[0] == jacobian.shape[1] == 33
    assert measured.arrays["theorem_reached"].values.tolist() == [[True, True], [False, False]]


@pytest.mark.slow
def test_claims_follow_the_numbers(measured: Measured) -> None:
    held = [claim.held for claim in theorem.claims(measured)]
    assert held == [True, True]
    for name, wrong in (("rank", 5), ("gap", 10.0), ("reached", False)):
        array = measured.arrays[f"theorem_{name}"]
        values = array.values.copy()
        values[0, 0] = wrong
        altered = measured._replace(arrays={**measured.arrays, f"theorem_{name}": Labelled(array.dims, values)})
        assert theorem.claims(altered)[0].held is not True, name
        values = np.where(np.arange(2)[:, None] == 1, True, array.values) if name == "reached" else values
        altered = measured._replace(arrays={**measured.arrays, f"theorem_{name}": Labelled(array.dims, values)})
        assert (theorem.claims(altered)[1].held is True) == (name != "reached"), name


def test_wrong_requests_are_refused() -> None:
    for seeds, nets in (((), NETS), (SEEDS, ()), (SEEDS, ("sigmoid",))):
        with pytest.raises(ValueError, match="theorem: give at least one seed, and nets from tanh, "):
            theorem.measure(seeds, nets=nets)
