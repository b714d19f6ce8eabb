"""The noisy sine is what it says: places in their cells, noise of its size, metrics as numpy computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.problems.waves import clean_wave, draw_waves, wave_grid, waves


def test_places_lie_one_in_each_cell():
    for seed in range(20):
        inputs = np.asarray(draw_waves(jax.random.key(seed), points=16).inputs)[:, 0]
        assert np.array_equal(np.floor((inputs + 1) * 8), np.arange(16))


@pytest.mark.slow
def test_targets_are_the_sine_and_noise_of_its_size():
    data = jax.vmap(lambda key: draw_waves(key, points=50, noise=0.3, cycles=3.0))(jax.random.split(jax.random.key(0), 400))
    inputs = np.asarray(data.inputs, np.float64)
    assert np.asarray(data.clean) == pytest.approx(np.sin(3 * np.pi * inputs), abs=1e-5)
    errors = np.asarray(data.targets, np.float64) - np.asarray(data.clean)
    assert errors.std() == pytest.approx(0.3, rel=0.02)  # 20,000 draws: the standard error is 0.5 %
    assert abs(errors.mean()) < 0.01
    exact = draw_waves(jax.random.key(0), noise=0.0)
    assert np.array_equal(exact.targets, exact.clean)


def test_seeds_have_data_of_their_own_that_jit_repeats():
    one, again, other = (draw_waves(jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.targets, again.targets)
    assert not np.array_equal(one.targets, other.targets)
    jitted = jax.jit(draw_waves)(jax.random.key(0))
    assert np.asarray(jitted.targets) == pytest.approx(np.asarray(one.targets), abs=1e-6)


@pytest.mark.slow
def test_loss_and_metrics_agree_with_numpy():
    problem = waves(sizes=(1, 8, 1), points=10, data_seed=3)
    params = problem.init(jax.random.key(1))
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def network(x):
        hidden = np.tanh(4 * x @ w["layer1"]["weight"] + w["layer1"]["bias"])
        return hidden @ w["layer2"]["weight"] + w["layer2"]["bias"]

    inputs, targets = (np.asarray(part, np.float64) for part in problem.batch(jax.random.key(5)))
    expected = np.mean((network(inputs) - targets) ** 2)
    assert float(problem.loss(params, problem.train)) == pytest.approx(expected, rel=1e-5)
    metrics = problem.evaluate(params)
    grid = np.linspace(-1, 1, 256, endpoint=False)[:, None]
    assert float(metrics["train_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["test_loss"]) == pytest.approx(np.mean((network(grid) - np.sin(2 * np.pi * grid)) ** 2), rel=1e-5)


@pytest.mark.slow
def test_parameters_of_any_width_keep_their_dtype():
    problem = waves(sizes=(1, 4, 1))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.init(jax.random.key(0)))
    assert problem.loss(params, problem.train).dtype == jnp.bfloat16
    assert clean_wave(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert wave_grid(4)[:, 0].tolist() == [-1.0, -0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sizes": (1, 8, 2)}, r"sizes must begin and end with 1; got \(1, 8, 2\)"),
        ({"points": 1}, "points must be a whole number of at least 2; got 1"),
        ({"noise": -0.1}, "noise must be a finite number of at least 0; got -0.1"),
        ({"noise": float("nan")}, "noise must be"),
        ({"cycles": 0.0}, "cycles must be a positive finite number; got 0.0"),
        ({"data_seed": -1}, "data_seed must be a whole number of at least 0"),
    ],
)
def test_bad_input_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=f"waves: {sentence}"):
        waves(**fields)
