"""Spectra against dense linear algebra, matrices of known spectrum, and derivatives written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from precisionlab.landscape import (
    Spectrum,
    gap,
    hessian,
    hessian_spectrum,
    jacobian,
    jacobian_spectrum,
    rank,
    sharpness,
    spectral_density,
)
from precisionlab.landscape.krylov import breakdown


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def quadratic(values, seed=0):
    """A quadratic form of known eigenvalues, and the values in descending order."""
    q = orthogonal(len(values), seed)
    matrix = q @ np.diag(values) @ q.T
    matrix = 0.5 * (matrix + matrix.T)
    return lambda w: 0.5 * (w @ jnp.asarray(matrix) @ w), np.sort(values)[::-1]


class Net:
    """tanh(x W + b) a: residuals, and their Jacobian derived by hand."""

    def __init__(self, d, k, hidden, seed=0):
        random = np.random.default_rng(seed)
        self.x, self.y = random.standard_normal((d, k)), random.standard_normal(d)
        self.k, self.hidden, self.n = k, hidden, hidden * (k + 2)
        self.theta = random.standard_normal(self.n)

    def parts(self, theta):
        w, b, a = np.split(theta, [self.k * self.hidden, (self.k + 1) * self.hidden])
        return w.reshape(self.k, self.hidden), b, a

    def residuals(self, theta):
        cut = self.k * self.hidden
        w, b, a = theta[:cut].reshape(self.k, self.hidden), theta[cut : cut + self.hidden], theta[cut + self.hidden :]
        return jnp.tanh(jnp.asarray(self.x) @ w + b[None, :]) @ a - jnp.asarray(self.y)

    def loss(self, theta):
        return 0.5 * jnp.sum(jnp.square(self.residuals(theta)))

    def jacobian(self, theta):
        w, b, a = self.parts(theta)
        h = np.tanh(self.x @ w + b)
        inner = a * (1 - h**2)
        by_w = self.x[:, :, None] * inner[:, None, :]
        return np.concatenate([by_w.reshape(len(h), -1), inner, h], axis=1)


@pytest.mark.parametrize(("d", "hidden"), [(5, 6), (40, 4)])  # reverse mode, forward mode
def test_jacobian_is_the_one_derived_by_hand(d, hidden):
    net = Net(d, 2, hidden)
    thetas = net.theta + np.random.default_rng(1).standard_normal((2, 3, net.n))
    found = jacobian(net.residuals, thetas)
    assert found.shape == (2, 3, d, net.n)
    wanted = np.stack([net.jacobian(theta) for theta in thetas.reshape(-1, net.n)]).reshape(found.shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_singular_values_of_a_known_matrix(shape):
    wanted = 10.0 ** -np.arange(8)
    left, right = orthogonal(shape[0])[:, :8], orthogonal(shape[1], 1)[:, :8]
    matrix = left @ np.diag(wanted) @ right.T
    found = jacobian_spectrum(lambda w: jnp.asarray(matrix) @ w, np.ones(shape[1]))
    off = np.abs(found.values - wanted)
    assert found.complete
    # The matrix was rounded when it was made, by |A|_F eps / 2 at most; both bounds hold with room for that.
    made = np.finfo(float).eps * np.linalg.norm(matrix) * 8
    assert (off <= found.errors + made).all()
    assert (off <= found.floor).all()
    assert found.floor == pytest.approx(20 * 2.0**-52, rel=0.5)
    assert rank(found) == 8
    assert gap(found, 4) == pytest.approx(10.0, rel=1e-9)
    assert gap(found, 8) == pytest.approx(1e-7 / found.floor, rel=1e-6)


def test_rank_of_a_product_of_thin_matrices():
    random = np.random.default_rng(0)
    for seed in range(20):
        low = random.standard_normal((12, 3)) @ random.standard_normal((3, 30)) * 10.0 ** random.integers(-8, 8)
        found = jacobian_spectrum(Partial(jnp.matmul, low), np.ones(30))
        assert rank(found) == 3, seed
        assert gap(found, 3) > 1e12


def test_the_floor_measures_what_cancellation_leaves():
    # (w - 1)^5, and the same multiplied out, whose derivative near 1 is mostly rounding.
    def residuals(w):
        out = w**5 - 5.0 * w**4 + 10.0 * w**3 - 10.0 * w**2 + 5.0 * w - 1.0
        return jnp.stack([jnp.sum((w - 1.0) ** 5), jnp.sum(out)])

    thetas = 1 + 1e-3 * np.random.default_rng(0).uniform(1, 2, (50, 20))
    found = jacobian_spectrum(residuals, thetas)
    formula = 20 * 2.0**-52 * found.values[:, 0]
    assert (found.values[:, 1] > 100 * formula).all()  # a floor from sizes alone takes the noise for a second direction
    assert (rank(found) == 1).all()


def test_no_derivative_no_rank():
    found = jacobian_spectrum(lambda w: jnp.array([0.0 * w[0], 1.0]), [1.0, 2.0, 3.0])
    assert found.values.tolist() == [0.0, 0.0]
    assert found.floor == 0.0
    assert rank(found) == 0


@pytest.mark.slow
def test_rows_of_points_are_each_as_one_point():
    net = Net(5, 2, 6)
    thetas = np.random.default_rng(2).standard_normal((3, net.n))
    for spectrum, fun in ((jacobian_spectrum, net.residuals), (hessian_spectrum, net.loss)):
        together = spectrum(fun, thetas)
        ranks = rank(together)
        assert ranks.shape == together.floor.shape == (3,)
        for i, theta in enumerate(thetas):
            alone = spectrum(fun, theta)
            np.testing.assert_allclose(together.values[i], alone.values, rtol=0, atol=4 * alone.floor)
            assert rank(alone) == ranks[i]
            assert isinstance(rank(alone), int)
            assert gap(together, np.full(3, 2))[i] == pytest.approx(gap(alone, 2))


def test_hessian_spectrum_of_known_quadratic_forms():
    values = np.concatenate([[-3.0, 1e-9, 7.0], np.linspace(1, 2, 20), np.zeros(7)])
    loss, wanted = quadratic(values)
    found = hessian_spectrum(loss, np.random.default_rng(0).standard_normal(30))
    np.testing.assert_allclose(found.values, wanted, rtol=0, atol=found.floor)
    assert (np.abs(found.values - wanted) <= found.errors + 30 * 2.0**-52 * 7).all()
    assert found.floor < 1e-12
    assert rank(found) == 23
    assert gap(found, 22) == pytest.approx(1e9, rel=1e-3)


@pytest.mark.slow
def test_hessian_at_a_minimum_and_away_from_it():
    net = Net(4, 2, 6)
    theta = np.random.default_rng(3).standard_normal(net.n)
    step = 1e-5
    by_hand = np.zeros((net.n, net.n))  # central differences of the gradient J^T r, which is derived by hand
    for j in range(net.n):
        ends = [theta + sign * step * np.eye(net.n)[j] for sign in (1, -1)]
        with jax.enable_x64(True):
            gradients = [net.jacobian(end).T @ np.asarray(net.residuals(jnp.asarray(end))) for end in ends]
        by_hand[j] = (gradients[0] - gradients[1]) / (2 * step)
    np.testing.assert_allclose(hessian(net.loss, theta), by_hand, rtol=0, atol=1e-8)
    # Labels moved so that theta is a minimum: H = J^T J.
    with jax.enable_x64(True):
        net.y = net.y + np.asarray(net.residuals(jnp.asarray(theta)))
    fun = Net.loss.__get__(net)
    exact = net.jacobian(theta)
    found = hessian_spectrum(lambda w: fun(w), theta)
    singular = np.linalg.svd(exact, compute_uv=False)
    np.testing.assert_allclose(found.values[:4], singular**2, rtol=0, atol=found.floor)
    assert rank(found) == 4
    assert gap(found, 4) > 1e10


@pytest.mark.slow
def test_lanczos_agrees_with_dense():
    net = Net(40, 3, 20)
    dense = hessian_spectrum(net.loss, net.theta)
    found = hessian_spectrum(net.loss, net.theta, dense_below=1, top=8, depth=80)
    assert not found.complete
    largest = dense.values[np.argsort(-np.abs(dense.values))[:8]]
    assert (found.errors < 1e-6 * found.values[0]).all()
    np.testing.assert_allclose(found.values, np.sort(largest)[::-1], rtol=0, atol=found.errors.max())
    with pytest.raises(ValueError, match="all 8 values"):
        rank(found)
    with pytest.raises(ValueError, match="number 8 was not computed"):
        gap(found, 8)
    assert gap(found, 1) == pytest.approx(gap(dense, 1), rel=1e-6)
    dense, krylov = (sharpness(net.loss, net.theta, dense_below=below, depth=80) for below in (2000, 1))
    assert abs(dense.value - krylov.value) <= dense.error + krylov.error
    assert krylov.error < 1e-6 * krylov.value


def test_lanczos_certifies_before_it_converges():
    values = np.linspace(1, 100, 400)
    found = hessian_spectrum(lambda w: 0.5 * jnp.sum(jnp.asarray(values) * w**2), np.zeros(400), dense_below=1, top=6, depth=25)
    distance = np.abs(found.values[:, None] - values).min(axis=1)
    assert (distance <= found.errors).all()
    assert found.errors[-1] > 1e-3  # this one is not there yet, and says so


@pytest.mark.slow
def test_lanczos_exhausts_a_space_and_finds_every_copy():
    values = np.concatenate([np.full(4, 5.0), np.full(3, -2.0), [1e-3], np.zeros(200)])
    loss, _ = quadratic(values)
    found = hessian_spectrum(loss, np.zeros(len(values)), dense_below=1, top=12, depth=40)
    assert found.complete
    np.testing.assert_allclose(found.values, [5.0] * 4 + [1e-3] + [0.0] * 4 + [-2.0] * 3, rtol=0, atol=1e-12)
    assert (np.abs(found.values[5:9]) <= np.maximum(found.floor, found.errors[5:9])).all()
    assert rank(found) == 8
    assert sharpness(loss, np.zeros(len(values)), dense_below=1).value == pytest.approx(5.0, rel=1e-13)


def test_lanczos_keeps_the_largest_magnitudes_with_their_signs():
    values = jnp.array([1.0, 5.0, -7.0, 3.0, -4.0] + [0.0] * 20, jnp.float32)
    found = hessian_spectrum(lambda w: 0.5 * jnp.sum(values.astype(w.dtype) * w**2), np.ones(25), dense_below=1, top=3)
    np.testing.assert_allclose(found.values, [5.0, -4.0, -7.0], rtol=1e-13)
    assert not found.complete


def scaled(scale, w):
    return 0.5 * scale * (w @ w)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "wanted"), [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)])
def test_lanczos_on_multiples_of_the_identity(scale, wanted):
    loss = Partial(scaled, np.float64(scale))
    found = hessian_spectrum(loss, np.ones(30), dense_below=1, top=5, depth=30)
    np.testing.assert_allclose(found.values, np.full(5, wanted), atol=1e-14)
    assert found.complete == (scale == 0)  # five of thirty ones
    assert sharpness(loss, np.ones(30), dense_below=1, depth=30).value == pytest.approx(wanted, abs=1e-14)


@pytest.mark.slow
def test_sharpness_below_zero_with_a_null_space():
    assert sharpness(lambda w: -(w[0] ** 2), np.ones(30), dense_below=1).value == 0.0
    assert sharpness(lambda w: -(w[0] ** 2), np.ones(30)).value == 0.0


def test_breakdown_is_where_the_coupling_ends():
    assert breakdown(np.ones(4), np.array([0.5, 1e-17, 0.5])) == 2
    assert breakdown(np.array([1.0, np.nan]), np.array([np.nan])) == 1
    assert breakdown(np.ones(3), np.array([0.5, 0.5])) == 3
    assert breakdown(np.zeros(2), np.zeros(1)) == 1


def never(w):
    raise AssertionError("computed, though it should have been refused")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hessian(never, np.zeros(10**6)), r"hessian_spectrum\(..., top=k\).*spectral_density"),
        (lambda: hessian_spectrum(never, np.zeros(10**6), dense_below=10**7), r"7\.45e\+03 GiB.*top=k"),
        (lambda: hessian_spectrum(never, np.zeros(10**6), top=500), "at most 268 here"),
        (lambda: hessian_spectrum(never, np.zeros(5), top=0), "top must be at least 1"),
        (lambda: hessian_spectrum(never, np.zeros(50), top=9, depth=5), "depth at least top"),
        (lambda: sharpness(never, np.zeros(10**6), dense_below=10**7), "densely"),
        (lambda: sharpness(never, np.zeros(10**6), depth=1000), "from 1 to 268"),
        (lambda: spectral_density(never, np.zeros(10**7)), "depth from 1 to 26"),
        (lambda: jacobian(lambda w: w, np.zeros(10**6)), "GiB, above 2"),
        (lambda: gap(Spectrum(np.ones(3), np.zeros(3), 0.0, True), 4), "from 1 to the number of values, 3"),
        (lambda: gap(Spectrum(np.ones(3), np.zeros(3), 0.0, True), 0), "from 1 to"),
    ],
)
def test_what_cannot_be_is_refused_first(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_rank_counts_magnitudes_above_floor_and_error():
    found = Spectrum(np.array([2.0, 1e-3, -1.0]), np.array([1e-16, 1e-2, 1e-16]), 1e-15, True)
    assert rank(found) == 2  # the second is not above its own error
    assert gap(found, 2) == pytest.approx(1000.0)
    assert gap(Spectrum(np.array([1.0, 0.0]), np.zeros(2), 0.0, True), 1) == np.inf


@pytest.mark.slow
def test_one_compilation_for_one_function():
    traced = []

    def residuals(w):
        traced.append(1)
        return jnp.sin(w[:3])

    jacobian_spectrum(residuals, np.zeros(5))
    first = len(traced)
    jacobian_spectrum(residuals, np.ones(5))
    jacobian(residuals, np.ones(5))
    assert len(traced) == first + 2  # a look at the shape each time


@pytest.mark.slow
def test_lanczos_agrees_with_dense_at_the_size_where_it_takes_over():
    net = Net(100, 3, 400)  # 2000 parameters
    dense = hessian_spectrum(net.loss, net.theta, dense_below=2001)
    found = hessian_spectrum(net.loss, net.theta)
    largest = np.sort(dense.values[np.argsort(-np.abs(dense.values))[:20]])[::-1]
    assert (np.abs(found.values - largest) <= found.errors + dense.floor).all()
