"""The exact answers are exact: against automatic differentiation, dense algebra, finite differences and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.problems import PROBLEMS, gd_trajectory, least_squares, quadratic, sgd_variance

EIGENVALUES, MINIMUM = (2.5, 1.0, 0.3, 0.0), (1.0, -2.0, 0.5, 4.0)


def descend(problem, w0, lr, steps):
    """Plain gradient descent in float64, all iterates."""
    with jax.enable_x64(True):

        def step(w, _):
            gradient = jax.grad(problem.loss)({"weight": w}, problem.train)["weight"]
            return w - lr * gradient, w

        last, before = jax.lax.scan(step, jnp.asarray(np.asarray(w0, np.float64)), None, length=steps)
        return np.concatenate([np.asarray(before), np.asarray(last)[None]])


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.79, 0.9])
def test_descent_follows_the_closed_form(lr):
    problem = quadratic(EIGENVALUES, MINIMUM)
    w0 = np.array([3.0, 3.0, -1.0, 2.0])
    found = descend(problem, w0, lr, 30)
    expected = gd_trajectory(*problem.answers, w0, lr, 30)
    assert expected.shape == (31, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.array_equal(expected[:, 3], np.full(31, 2.0))  # a flat direction never moves
    assert (abs(expected[-1, 0] - 1) > abs(expected[0, 0] - 1)) == (lr * 2.5 > 2)  # beyond two it diverges


def test_quadratic_loss_gradient_and_metrics():
    problem = quadratic(EIGENVALUES, MINIMUM)
    w = {"weight": jnp.array([2.0, 0.0, 0.5, 1.0])}
    assert float(problem.loss(w, problem.train)) == 0.5 * (2.5 * 1 + 1.0 * 4 + 0 + 0)
    assert jax.grad(problem.loss)(w, problem.train)["weight"].tolist() == [2.5, 2.0, 0.0, 0.0]
    hessian = jax.hessian(problem.loss)(w, problem.train)["weight"]["weight"]
    assert np.array_equal(hessian, np.diag(np.float32(EIGENVALUES)))
    found = problem.evaluate(w)
    assert float(found["loss"]) == 3.25
    assert float(found["distance"]) == pytest.approx(np.sqrt(1 + 4 + 0 + 9))


def test_a_batch_tilts_the_bowl():
    problem = quadratic(EIGENVALUES, noise=0.25)
    assert problem.answers.minimum.tolist() == [1.0] * 4
    tilts = jax.vmap(problem.batch)(jax.random.split(jax.random.key(0), 4000))
    # standard error of a standard deviation: sigma / sqrt(2 N)
    assert abs(float(jnp.std(tilts)) / 0.25 - 1) < 4 / np.sqrt(2 * tilts.size)
    w = {"weight": jnp.array([1.0, 1.0, 1.0, 1.0])}
    assert np.array_equal(jax.grad(problem.loss)(w, tilts[0])["weight"], tilts[0])
    assert not quadratic().batch(jax.random.key(0)).any()


def test_sgd_settles_at_the_variance_of_the_formula():
    problem, lr = quadratic([1.0, 0.5, 1.9], noise=0.1), 1.0

    def step(w, key):
        tilts = jax.vmap(problem.batch)(jax.random.split(key, 4096))
        return w - lr * jax.vmap(jax.grad(problem.loss))({"weight": w}, tilts)["weight"], None

    final, _ = jax.lax.scan(step, jnp.ones((4096, 3)), jax.random.split(jax.random.key(0), 100))
    expected = sgd_variance(problem.answers.eigenvalues, lr, 0.1)
    np.testing.assert_allclose(expected, [0.01, 0.01 / 0.75, 0.01 / 0.19], rtol=1e-12)
    # standard error of a variance: variance * sqrt(2 / N)
    assert np.all(np.abs(np.var(np.asarray(final, np.float64), axis=0) / expected - 1) < 4 * np.sqrt(2 / 4096))


def test_sgd_variance_where_nothing_settles():
    assert sgd_variance(np.array([0.0, 2.0, 3.0]), 1.0, 1.0).tolist() == [np.inf] * 3


@pytest.mark.parametrize(("n", "d"), [(20, 5), (5, 5), (4, 9), (1, 3)])
def test_least_squares_against_dense_algebra(n, d):
    problem = least_squares(n, d, seed=3)
    x, y = (np.asarray(part, np.float64) for part in problem.train)
    answers = problem.answers
    np.testing.assert_allclose(answers.solution, np.linalg.pinv(x) @ y, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(x.T @ (x @ answers.solution - y), 0, atol=1e-10)
    np.testing.assert_allclose(answers.eigenvalues, np.linalg.eigvalsh(x.T @ x / n)[::-1], rtol=1e-8, atol=1e-12)
    assert int(np.sum(answers.eigenvalues == 0)) == max(0, d - n)
    assert answers.loss == pytest.approx(np.sum((x @ answers.solution - y) ** 2) / (2 * n), abs=1e-20)
    with jax.enable_x64(True):

        @jax.jit
        def everything(w):
            derivatives = [f(problem.loss)(w, problem.train)["weight"] for f in (jax.grad, jax.hessian)]
            return *derivatives, problem.evaluate(w)

        gradient, hessian, metrics = everything({"weight": jnp.asarray(answers.solution)})
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    np.testing.assert_allclose(hessian["weight"], answers.hessian, rtol=1e-12, atol=1e-14)
    assert float(metrics["loss"]) == pytest.approx(answers.loss, abs=1e-14)
    assert float(metrics["distance"]) == 0.0


def test_descent_from_zero_finds_the_solution_of_smallest_norm():
    problem = least_squares(6, 10, seed=1)
    lr = 1 / problem.answers.eigenvalues[0]
    found = descend(problem, np.zeros(10), lr, 3000)[-1]
    np.testing.assert_allclose(found, problem.answers.solution, atol=1e-8)
    shifted = found + np.linalg.svd(np.asarray(problem.train[0], np.float64))[2][-1]
    with jax.enable_x64(True):
        other = float(problem.loss({"weight": jnp.asarray(shifted)}, problem.train))
    assert other == pytest.approx(problem.answers.loss, abs=1e-10)  # just as low, and longer
    assert np.linalg.norm(shifted) > np.linalg.norm(problem.answers.solution)


def test_descent_in_the_axes_of_the_hessian_is_the_quadratic():
    problem = least_squares(30, 4, seed=2)
    values, axes = np.linalg.eigh(problem.answers.hessian)
    w0, solution = np.ones(4), problem.answers.solution
    found = descend(problem, w0, 0.3, 25) @ axes
    np.testing.assert_allclose(found, gd_trajectory(values, solution @ axes, w0 @ axes, 0.3, 25), rtol=1e-9)


def test_minibatches_are_rows():
    problem = least_squares(8, 3, batch_size=5)
    x, y = problem.batch(jax.random.key(0))
    assert x.shape == (5, 3)
    rows = {(*map(float, row), float(target)) for row, target in zip(*problem.train, strict=True)}
    assert {(*map(float, row), float(target)) for row, target in zip(x, y, strict=True)} <= rows
    full = least_squares(8, 3)
    assert np.array_equal(full.batch(jax.random.key(0))[0], full.train[0])
    assert not np.array_equal(least_squares(8, 3, seed=1).train[0], full.train[0])


@pytest.mark.parametrize("name", ["least_squares", "quadratic"])
def test_defaults_run(name):
    problem = PROBLEMS[name]()
    assert problem.name == name
    params = problem.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(problem.loss))(params, problem.batch(jax.random.key(1)))
    assert gradient["weight"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: quadratic([]), r"eigenvalues must be a non-empty row of finite numbers"),
        (lambda: quadratic([1.0, np.nan]), r"eigenvalues must be a non-empty row of finite numbers"),
        (lambda: quadratic([1.0, -0.5]), r"must not be negative, or there is no minimum; got -0\.5"),
        (lambda: quadratic([1.0], [0.0, 0.0]), r"equally long; got 1 and 2"),
        (lambda: quadratic(noise=-1.0), r"noise is a standard deviation"),
        (lambda: least_squares(0, 3), r"n must be a whole number of at least 1; got 0"),
        (lambda: least_squares(3, 3, seed=-1), r"seed must be a whole number of at least 0; got -1"),
        (lambda: least_squares(3, 3, noise=np.inf), r"noise is a standard deviation"),
        (lambda: least_squares(3, 3, batch_size=0), r"batch_size must be a whole number of at least 1; got 0"),
        (lambda: gd_trajectory(*np.ones((3, 1)), 0.1, -1), r"steps must be a whole number of at least 0; got -1"),
    ],
)
def test_mistakes_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
