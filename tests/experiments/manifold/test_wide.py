"""The curvature of a wide net in closed form is that of its Jacobian; zeros are zeros; widening adds nothing."""

import jax
import numpy as np
import pytest

from precisionlab.experiments.manifold import wide
from precisionlab.experiments.manifold.settings import first_weights
from precisionlab.landscape import jacobian
from precisionlab.problems.fitting import Fit, digits_fit, parity_fit


@pytest.fixture(scope="module")
def net() -> tuple[Fit, np.ndarray, np.ndarray]:
    fit = parity_fit(9, inputs=4, hidden=6, seed=3)
    theta = first_weights(fit, 3)
    return fit, theta, np.asarray(jacobian(fit.residuals_at, theta))


def test_gram_is_that_of_the_jacobian(net: tuple[Fit, np.ndarray, np.ndarray]) -> None:
    fit, theta, matrix = net
    np.testing.assert_allclose(wide.linearized(fit, theta).gram(), matrix @ matrix.T, rtol=1e-12)


@pytest.mark.parametrize("few", [0, 2**16])
def test_directions_are_singular_vectors(
    net: tuple[Fit, np.ndarray, np.ndarray], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From K and from J itself."""
    monkeypatch.setattr(wide, "_FEW", few)
    fit, theta, matrix = net
    here = wide.linearized(fit, theta)
    found = here.directions()
    sizes = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.values, sizes**2, rtol=1e-9)
    np.testing.assert_allclose(here.curvatures(), sizes**2, rtol=1e-9)
    np.testing.assert_allclose(found.left @ matrix, np.sqrt(found.values)[:, None] * found.right, atol=1e-7)


def test_fewer_weights_than_points_have_as_many_directions_as_weights() -> None:
    fit = parity_fit(20, inputs=3, hidden=2)
    here = wide.linearized(fit, first_weights(fit, 0))
    found = here.directions()
    assert found.right.shape == (fit.n, fit.n)
    assert len(here.curvatures()) == fit.n == 11


def test_a_zero_is_found_near_the_start() -> None:
    fit = parity_fit(60, hidden=16, seed=1)
    first = first_weights(fit, 1)
    end = wide.zero_near(fit, first)
    with jax.enable_x64(True):
        residuals = np.asarray(fit.residuals_at(end.theta))
    assert np.sqrt(np.mean(residuals**2)) < 1e-9
    assert np.linalg.norm(end.theta - first) < np.linalg.norm(first)
    assert end.steps < 30


def test_where_there_is_no_zero_none_is_claimed() -> None:
    fit = parity_fit(40, inputs=2, hidden=2)
    end = wide.zero_near(fit, first_weights(fit, 0), steps=20)
    assert end.steps == 20
    assert end.loss > 1e-3


def test_a_widened_net_is_the_same_net(net: tuple[Fit, np.ndarray, np.ndarray]) -> None:
    fit, theta, matrix = net
    wider = parity_fit(9, inputs=4, hidden=10, seed=3)
    there = np.asarray(jacobian(wider.residuals_at, wide.widened(fit, 10, theta)))
    used = wide.widened(fit, 10, np.ones_like(theta)) == 1
    np.testing.assert_allclose(there[:, used], matrix, atol=1e-14)
    assert not there[:, ~used].any()
    with pytest.raises(ValueError, match="6 hidden units already; got hidden=5"):
        wide.widened(fit, 5, theta)


def test_the_largest_learning_rate_is_a_power_of_two_that_is_stable() -> None:
    for largest in (0.3, 1.0, 5.0, 1234.5):
        lr = wide.largest_lr([largest, 0.1])
        assert 0.5 < lr * largest <= 1
        assert np.frexp(lr)[0] == 0.5


def test_other_nets_are_refused() -> None:
    for fit in (parity_fit(5, activation="relu"), parity_fit(5, layers=2), digits_fit(5, r=3)):
        with pytest.raises(ValueError, match="linearized: the closed form is that of a tanh net with one hidden layer"):
            wide.linearized(fit, first_weights(fit, 0))
