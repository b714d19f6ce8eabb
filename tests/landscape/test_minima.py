"""Minima to machine zero, and the dimension of the manifold that they form: n - d r, or a failure where one belongs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.landscape import gap, hessian_spectrum, jacobian_spectrum, rank, reach_minima, reach_minimum
from precisionlab.landscape.minima import level

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "linear": lambda h: h,
}


@functools.cache
def fit(d, r, inputs, hidden, activation, layers=1, seed=0):
    """Residuals of a network on generic points, and a function that draws starts."""
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((d, inputs)), random.standard_normal((d, r))
    sizes = [inputs, *[hidden] * layers, r]
    shapes = list(itertools.pairwise(sizes))

    def starts(count):
        draws = np.random.default_rng(1000 + seed)
        parts = [
            [draws.standard_normal((count, a * b)) / np.sqrt(a), 0.5 * draws.standard_normal((count, b))] for a, b in shapes
        ]
        return np.concatenate([part for pair in parts for part in pair], axis=1)

    def residuals(theta):
        h, at = jnp.asarray(x), 0
        for i, (a, b) in enumerate(shapes):
            h = h @ theta[at : at + a * b].reshape(a, b) + theta[at + a * b : at + (a + 1) * b][None, :]
            at += (a + 1) * b
            if i + 1 < len(shapes):
                h = ACTIVATIONS[activation](h)
        return (h - jnp.asarray(y)).ravel()

    return residuals, starts


def loss_of(residuals):
    return lambda theta: 0.5 * jnp.sum(jnp.square(residuals(theta)))


# d, r, inputs, hidden, activation, layers, n
SETTINGS = [
    (8, 1, 2, 16, "tanh", 1, 65),
    (5, 1, 1, 8, "tanh", 1, 25),
    (10, 2, 3, 24, "softplus", 1, 146),
    (12, 1, 2, 30, "gelu", 1, 121),
    (6, 3, 2, 12, "gelu", 2, 231),
    (20, 1, 2, 50, "softplus", 1, 201),
    (16, 2, 4, 20, "tanh", 2, 562),
]


def check_theorem(setting, seeds):
    *arguments, n = setting
    d, r = arguments[:2]
    residuals, starts = fit(*arguments)
    found = reach_minima(residuals, starts(seeds))
    assert found.theta.shape == (seeds, n)
    assert found.reached.all()
    assert (found.loss < 1e-24).all()
    spectrum = jacobian_spectrum(residuals, found.theta)
    assert (rank(spectrum) == d * r).all()
    assert (n - rank(spectrum) == n - d * r).all()
    assert (gap(spectrum, d * r) > 1e10).all()
    return residuals, found, spectrum


@pytest.mark.sampled(1)
@pytest.mark.parametrize("setting", SETTINGS[:6], ids=str)
def test_nullity_at_a_minimum_is_n_minus_d_r(setting):
    check_theorem(setting, 4)


@pytest.mark.thorough
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_nullity_at_a_minimum_is_n_minus_d_r_in_every_seed(setting):
    residuals, found, spectrum = check_theorem(setting, 16)
    d, r = setting[:2]
    hessians = hessian_spectrum(loss_of(residuals), found.theta)
    assert (rank(hessians) == d * r).all()
    assert (gap(hessians, d * r) > 1e6).all()
    errors = hessians.floor[:, None] + 4 * spectrum.floor[:, None] * spectrum.values
    assert (np.abs(hessians.values[:, : d * r] - spectrum.values**2) <= errors).all()  # H = J^T J


@pytest.mark.slow
def test_a_linear_network_has_no_zero_and_a_smaller_rank():
    residuals, starts = fit(10, 1, 2, 8, "linear", layers=2)
    found = reach_minima(residuals, starts(4))
    assert not found.reached.any()
    assert (found.loss > 1e-2).all()
    assert (rank(jacobian_spectrum(residuals, found.theta)) == 3).all()  # affine in two inputs, whatever the depth
    # What is left is the distance of the labels from all affine functions.
    with jax.enable_x64(True):
        targets = -np.asarray(residuals(jnp.zeros(found.theta.shape[1])))
    x = np.random.default_rng(0).standard_normal((10, 2))
    design = np.hstack([x, np.ones((10, 1))])
    least = targets - design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    np.testing.assert_allclose(found.loss, 0.5 * np.sum(least**2), rtol=1e-9)


def test_with_fewer_parameters_than_data_there_is_no_zero():
    residuals, starts = fit(40, 1, 2, 4, "tanh")
    found = reach_minima(residuals, starts(4), max_steps=100)
    assert not found.reached.any()
    assert (found.loss > 1e-2).all()


@pytest.mark.slow
def test_relu_is_an_answer_either_way():
    residuals, starts = fit(10, 1, 2, 20, "relu")
    found = reach_minima(residuals, starts(4))
    assert (found.reached == (found.loss < 1e-24)).all()
    assert np.isfinite(found.theta).all()


def test_least_squares_ends_at_the_nearest_solution():
    random = np.random.default_rng(0)
    matrix, target, start = random.standard_normal((6, 20)), random.standard_normal(6), random.standard_normal(20)
    found = reach_minimum(lambda w: jnp.asarray(matrix) @ w - jnp.asarray(target), start)
    assert found.reached
    nearest = start + np.linalg.pinv(matrix) @ (target - matrix @ start)
    np.testing.assert_allclose(found.theta, nearest, atol=1e-13)


def test_more_equations_than_unknowns_that_agree():
    random = np.random.default_rng(1)
    matrix, answer = random.standard_normal((20, 6)), random.standard_normal(6)
    target = matrix @ answer
    found = reach_minimum(lambda w: jnp.asarray(matrix) @ w - jnp.asarray(target), np.zeros(6))
    assert found.reached
    np.testing.assert_allclose(found.theta, answer, atol=1e-13)


def test_a_singular_zero_is_reached_slowly_or_not_claimed():
    # x^2 = 0: Newton halves the distance each time, and the level falls with it: it may never be quite zero.
    found = reach_minimum(lambda w: w**2, [1.0])
    assert found.loss < 1e-20
    assert isinstance(found.reached, bool)


def test_level_is_the_weighted_row_sum():
    with jax.enable_x64(True):
        found = float(level(lambda w: jnp.stack([w[0] * w[1], w[1]]), jnp.array([3.0, -2.0])))
    assert found == pytest.approx(2.0**-52 * np.hypot(12.0, 2.0), rel=1e-14)


def test_one_row_is_as_many_rows():
    residuals, starts = fit(5, 1, 1, 8, "tanh")
    together = reach_minima(residuals, starts(3))
    alone = reach_minimum(residuals, starts(3)[1])
    assert (alone.theta == together.theta[1]).all()
    assert (alone.loss, alone.steps, alone.reached) == (together.loss[1], together.steps[1], together.reached[1])
    assert isinstance(alone.loss, float)


def test_one_compilation_for_all_seeds():
    traced = []

    def residuals(w):
        traced.append(1)
        return jnp.sum(w**2, keepdims=True) - 2.0

    reach_minima(residuals, np.random.default_rng(0).standard_normal((2, 3)))
    first = len(traced)
    reach_minima(residuals, np.random.default_rng(1).standard_normal((4, 3)))
    assert len(traced) == first + 1  # the look at the shape


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"tolerance": 0.5}, "at least 1"), ({"tolerance": np.nan}, "finite"), ({"max_steps": 0}, "max_steps")],
)
def test_bad_numbers_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        reach_minimum(lambda w: w, [1.0], **arguments)
