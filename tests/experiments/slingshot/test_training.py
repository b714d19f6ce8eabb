"""Networks trained by one program of any length are those that the library's own loops train, bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.slingshot.tasks import noisy_relu_wave, noisy_wave
from precisionlab.experiments.slingshot.training import Training, flattened, unflatten
from precisionlab.numerics.formats import BFLOAT16, fixed_point
from precisionlab.numerics.modes import stochastic
from precisionlab.training.loops import sweep
from precisionlab.training.steps import make_step, start

FORMATS = (BFLOAT16, fixed_point(2, 5))


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_it_trains_what_a_sweep_trains_in_pieces_and_with_moments_kept() -> None:
    task = noisy_wave(4, 8)
    training = Training(task, 2, learning_rate=0.01, mode=stochastic)
    whole = training.train(training.begin(FORMATS), FORMATS, [0, 3, 7], keep=1)
    on = training.train(whole.params, FORMATS, [0, 4], done=3, moments=None)
    first = training.train(training.begin(FORMATS), FORMATS, [3])
    again = training.train(first.params, FORMATS, [0, 4], done=3, moments=first.moments)
    end = training.train(training.begin(FORMATS), FORMATS, [0, 7])
    assert np.array_equal(flattened(whole.params), flattened(first.params))
    assert np.array_equal(flattened(again.params), flattened(end.params))
    assert not np.array_equal(flattened(on.params), flattened(end.params))  # Adam begun anew
    assert np.array_equal(again.seen["norm"][..., -1], whole.seen["norm"][..., -1])
    assert whole.seen["norm"][..., 1] == pytest.approx(np.linalg.norm(flattened(whole.params), axis=-1))

    optimizer = optax.chain(optax.scale_by_adam(), optax.scale(-0.01))
    inner = make_step(task.loss, optimizer, modes=stochastic)

    def step(state: Any, key: Any, formats: Policy = Policy()) -> Any:
        return inner(state, task.batch(key, task.data(jax.random.fold_in(state.key, 1))), formats)

    def begin(key: Any, policy: Policy) -> Any:
        return start(task.init(jax.random.fold_in(key, 0)), optimizer, policy, key=key)

    state, _ = sweep(step, begin, lambda key: key, [Policy(weights=fmt) for fmt in FORMATS], range(2), steps=7)
    assert np.array_equal(flattened(state.params), flattened(end.params))


def test_there_and_back() -> None:
    params = {"a": {"weight": jnp.arange(12.0).reshape(1, 2, 3, 2)}, "b": jnp.ones((1, 2))}
    flat = flattened(params)
    assert flat.shape == (1, 2, 7)
    back = unflatten(params)(flat)
    assert jax.tree.all(jax.tree.map(lambda one, other: np.array_equal(one, other), params, back))
    assert unflatten(params)(flat[0])["a"]["weight"].shape == (2, 3, 2)


def relu_net(params: dict[str, Any], x: np.ndarray, factor: float) -> np.ndarray:
    """The network of `noisy_relu_wave` in numpy, its biases scaled by the factor to the power of their layer."""
    hidden = 4 * x
    layers = [params[name] for name in sorted(params)]
    for number, layer in enumerate(layers, 1):
        kernel, bias = factor * np.asarray(layer["weight"], np.float64), factor**number * np.asarray(layer["bias"], np.float64)
        hidden = hidden @ kernel + bias
        hidden = np.maximum(hidden, 0) if number < len(layers) else hidden
    return hidden


def test_why_a_relu_network_changes_its_shape_when_it_shrinks() -> None:
    """Where each bias shrinks as what passes through its layer, only the size of the function changes: it is the biases."""
    task, rng = noisy_relu_wave(8), np.random.default_rng(3)
    sizes = ((1, 8), (8, 8), (8, 1))
    params = {f"layer{i + 1}": {"weight": rng.normal(size=s), "bias": rng.normal(size=s[1])} for i, s in enumerate(sizes)}
    x = np.linspace(-1, 1, 64)[:, None]
    with jax.enable_x64(True):
        network = jax.jit(task.network)
        whole = np.asarray(network(jax.tree.map(jnp.asarray, params), jnp.asarray(x)))
        shrunk = np.asarray(network(jax.tree.map(lambda leaf: jnp.asarray(0.25 * leaf), params), jnp.asarray(x)))
    assert relu_net(params, x, 1.0) == pytest.approx(whole, rel=1e-10, abs=1e-12)
    assert relu_net(params, x, 0.25) == pytest.approx(0.25**3 * whole, rel=1e-10, abs=1e-12)
    line = np.polyfit(whole[:, 0], shrunk[:, 0], 1)
    assert np.std(shrunk[:, 0] - np.polyval(line, whole[:, 0])) > 0.1 * np.std(shrunk)
