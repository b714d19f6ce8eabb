"""Stochastic quadrature against traces and densities that are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.landscape import Density, density_at, hessian_trace, moment, spectral_density
from tests.landscape.test_spectra import Net, quadratic


@pytest.mark.slow
@pytest.mark.parametrize("power", range(6))
def test_moments_are_the_traces_of_powers(power):
    values = np.random.default_rng(0).uniform(-1, 2, 80)
    # Diagonal: v^T D^k v = tr D^k for every v of +-1, so only the quadrature is tested, which is exact below degree 2 depth.
    found = spectral_density(lambda w: 0.5 * jnp.sum(jnp.asarray(values) * w**2), np.zeros(80), probes=2, depth=4)
    got = moment(found, power)
    assert got.value == pytest.approx(np.mean(values**power), rel=1e-12)
    assert got.error < 1e-12
    # Rotated: the probes disagree, and say by how much.
    loss, _ = quadratic(values)
    got = moment(spectral_density(loss, np.zeros(80), probes=30, depth=4), power)
    assert abs(got.value - np.mean(values**power)) <= 4 * got.error + 1e-12
    assert got.error < 0.3


def test_a_quadrature_too_short_is_not_exact():
    values = np.random.default_rng(0).uniform(-1, 2, 80)
    found = spectral_density(lambda w: 0.5 * jnp.sum(jnp.asarray(values) * w**2), np.zeros(80), probes=2, depth=2)
    assert moment(found, 3).value == pytest.approx(np.mean(values**3), rel=1e-12)
    assert moment(found, 4).value != pytest.approx(np.mean(values**4), rel=1e-3)


def test_density_is_that_of_the_dense_hessian():
    values = np.concatenate([np.random.default_rng(1).normal(0, 0.3, 250), [6.0] * 5])
    loss, _ = quadratic(values)
    found = spectral_density(loss, np.zeros(255), probes=40, depth=50, key=jax.random.key(3))
    grid = np.linspace(-3, 9, 600)
    density, error = density_at(found, grid, 0.2)
    exact = np.exp(-0.5 * ((grid[:, None] - values) / 0.2) ** 2).mean(axis=1) / (0.2 * np.sqrt(2 * np.pi))
    assert (np.abs(density - exact) <= 5 * error + 1e-6).all()
    assert error.max() < 0.05
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.slow
def test_krylov_spaces_that_end_early():
    found = spectral_density(lambda w: w @ w, np.zeros(50), depth=20)
    np.testing.assert_allclose(found.weights[:, 0], 1.0)
    np.testing.assert_allclose(found.nodes[:, 0], 2.0)
    assert not found.weights[:, 1:].any()
    nothing = spectral_density(lambda w: 0.0 * jnp.sum(w), np.zeros(50))
    assert moment(nothing, 1).value == 0.0
    single = spectral_density(lambda w: 3.0 * jnp.sum(w**2), np.zeros(1))
    assert moment(single, 2).value == pytest.approx(36.0)


def test_weights_sum_to_one():
    net = Net(20, 2, 20)
    found = spectral_density(net.loss, net.theta, probes=3)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-14)
    assert (found.weights >= 0).all()


@pytest.mark.slow
def test_trace_exact_and_from_probes():
    loss, values = quadratic(np.random.default_rng(2).normal(1, 2, 120))
    exact = hessian_trace(loss, np.zeros(120))
    assert exact.value == pytest.approx(values.sum(), abs=exact.error + 1e-12)
    assert exact.error < 1e-10
    found = hessian_trace(loss, np.zeros(120), dense_below=1, probes=400)
    assert abs(found.value - values.sum()) <= 4 * found.error
    # Hutchinson: the variance of v^T H v is twice the sum of the squares off the diagonal.
    with jax.enable_x64(True):
        diagonal = np.diag(np.asarray(jax.hessian(loss)(jnp.zeros(120))))
    expected = np.sqrt(2 * (np.sum(values**2) - np.sum(diagonal**2)) / 400)
    assert found.error == pytest.approx(expected, rel=0.2)


def test_other_keys_other_probes():
    loss, _ = quadratic(np.arange(30.0))
    one, same, other = (
        hessian_trace(loss, np.zeros(30), dense_below=1, probes=5, key=key)
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spectral_density(lambda w: w @ w, np.ones(3), probes=1), "probes must be at least 2"),
        (lambda: spectral_density(lambda w: w @ w, np.ones(3), depth=0), "depth from 1 to"),
        (lambda: hessian_trace(lambda w: w @ w, np.ones(3), probes=1, dense_below=1), "standard error"),
        (lambda: density_at(Density(np.ones((2, 1)), np.ones((2, 1))), [0.0], 0.0), "width must be a positive"),
    ],
)
def test_bad_numbers_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
