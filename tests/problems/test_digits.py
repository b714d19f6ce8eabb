"""The digits are split as promised, and the network computes what numpy computes."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.numerics.formats import FLOAT8_E4M3FN, FLOAT8_E5M2, ieee_format
from precisionlab.numerics.rounding import round_to
from precisionlab.problems import (
    ACTIVATIONS,
    PROBLEMS,
    accuracy,
    cross_entropy,
    digits,
    load_digits,
    mlp_apply,
    mlp_init,
    uniform_indices,
)


def reference_logits(params, images, activation):
    """The network in numpy float64, written out for two layers."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = activation(images.astype(np.float64) @ w["layer1"]["weight"] + w["layer1"]["bias"])
    return hidden @ w["layer2"]["weight"] + w["layer2"]["bias"]


def reference_loss(logits, labels):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(labels)), labels])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_split_is_stratified_and_complete(seed):
    data = load_digits(seed)
    assert data.train_images.shape == (1437, 64)
    assert data.test_images.shape == (360, 64)
    assert {part.dtype for part in data} == {np.dtype(np.float32), np.dtype(np.int32)}
    train, test = (np.bincount(labels, minlength=10) for labels in (data.train_labels, data.test_labels))
    assert np.all(np.abs(test - (train + test) / 5) < 1)
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    original = np.column_stack([labels, pixels / 16])
    images, answers = np.concatenate(data[::2]), np.concatenate(data[1::2])
    split = np.column_stack([answers, images])
    assert sorted(map(bytes, split)) == sorted(map(bytes, original))


def test_split_depends_on_the_seed_alone():
    digest = hashlib.sha256(b"".join(part.tobytes() for part in load_digits(0))).hexdigest()
    assert digest[:16] == "beaf6aa3b37c44c6"
    assert not np.array_equal(load_digits(0).test_images, load_digits(1).test_images)


def test_pixels_are_sixteenths_and_read_only():
    data = load_digits()
    assert set(np.unique(data.train_images * 16)) == set(range(17))
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0, 0] = 1


@pytest.mark.parametrize("stop", [1, 2, 10, 1437, 65535, 65536, 65537, 947_946, 2**31])
def test_uniform_indices_is_the_high_word_of_the_product(stop):
    key = jax.random.key(stop)
    bits = np.asarray(jax.random.bits(key, (2000,), jnp.uint32)).tolist()
    assert uniform_indices(key, (2000,), stop).tolist() == [word * stop >> 32 for word in bits]


def test_uniform_indices_are_uniform():
    counts = np.bincount(uniform_indices(jax.random.key(0), (100_000,), 10), minlength=10)
    # chi squared with 9 degrees of freedom exceeds 27.9 once in a thousand keys
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 27.9


def test_batches_are_training_pairs_under_every_transform():
    problem = digits()
    keys = jax.random.split(jax.random.key(3), 5)
    images, labels = jax.jit(jax.vmap(problem.batch))(keys)
    alone = jax.jit(problem.batch)(keys[0])
    assert np.array_equal(alone[0], images[0])
    assert np.array_equal(alone[1], labels[0])
    known = {(row.tobytes(), int(label)) for row, label in zip(*load_digits()[:2], strict=True)}
    for number in range(5):
        single = problem.batch(keys[number])
        assert np.array_equal(single[0], images[number])
        assert np.array_equal(single[1], labels[number])
        pairs = zip(np.asarray(images[number]), np.asarray(labels[number]), strict=True)
        assert {(row.tobytes(), int(label)) for row, label in pairs} <= known
    assert not np.array_equal(images[0], images[1])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_network_and_metrics_agree_with_numpy(activation):
    reference = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
    problem = digits(activation=ACTIVATIONS[activation])
    params = jax.tree.map(lambda leaf: leaf + jnp.float32(0.05), problem.init(jax.random.key(0)))
    found = jax.jit(problem.evaluate)(params)
    data = load_digits()
    for part, images, labels in (("train", *data[:2]), ("test", *data[2:])):
        logits = reference_logits(params, images, reference)
        assert float(found[f"{part}_loss"]) == pytest.approx(reference_loss(logits, labels), rel=1e-5)
        hits = float(found[f"{part}_accuracy"]) * len(labels)
        assert abs(hits - np.sum(logits.argmax(-1) == labels)) < 1.5  # one image may sit on the fence
    assert float(problem.loss(params, problem.train)) == pytest.approx(float(found["train_loss"]), rel=1e-6)


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences_in_float64():
    problem = digits(batch_size=8)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), problem.init(jax.random.key(0)))
        batch = problem.batch(jax.random.key(1))
        leaves, tree = jax.tree.flatten(params)
        random = np.random.default_rng(0)
        direction = jax.tree.unflatten(tree, [jnp.asarray(random.standard_normal(leaf.shape)) for leaf in leaves])

        @jax.jit
        def along(step):
            return problem.loss(jax.tree.map(lambda p, d: p + step * d, params, direction), batch)

        # six correct digits: the step is small enough to cross no kink of relu for this key
        difference = (float(along(1e-6)) - float(along(-1e-6))) / 2e-6
        gradient = jax.jit(jax.grad(problem.loss))(params, batch)
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert difference == pytest.approx(slope, rel=1e-6)


def test_cross_entropy_is_careful():
    logits = jnp.array([[1e4, 0.0, -1e4], [3e38, -3e38, 0.0]], jnp.float32)
    labels = jnp.array([0, 0])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, labels)
    assert float(value) == 0.0
    assert np.array_equal(gradient, np.zeros((2, 3)))
    assert float(cross_entropy(logits[:1], jnp.array([1]))) == 1e4  # a probability that underflows still has a logarithm
    one = jax.grad(cross_entropy)(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([2]))
    weights = np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum()
    np.testing.assert_allclose(one[0], weights - [0, 0, 1], rtol=1e-5, atol=1e-7)


def test_cross_entropy_counts_every_axis():
    logits = jnp.zeros((3, 5, 4))
    assert float(cross_entropy(logits, jnp.zeros((3, 5), jnp.int32))) == pytest.approx(np.log(4))


def test_accuracy_counts():
    assert float(accuracy(jnp.eye(4), jnp.array([0, 1, 2, 0]))) == 0.75


def test_initial_weights_have_the_variance_of_he():
    params = mlp_init(jax.random.key(0), (400, 300, 10))
    weight = np.asarray(params["layer1"]["weight"], np.float64)
    # standard error of the variance of N normals: variance * sqrt(2 / N)
    assert abs(weight.var() * 200 - 1) < 4 * np.sqrt(2 / weight.size)
    assert abs(weight.mean()) < 4 * np.sqrt(1 / 200 / weight.size)
    assert not np.asarray(params["layer2"]["bias"]).any()
    assert list(params) == ["layer1", "layer2"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_data_follow_the_dtype_of_the_parameters(dtype):
    with jax.enable_x64(True):
        problem = digits()
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), problem.init(jax.random.key(0)))
        value, gradient = jax.jit(jax.value_and_grad(problem.loss))(params, problem.batch(jax.random.key(1)))
    assert value.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
    assert np.isfinite(float(value))


@pytest.mark.slow
def test_deep_networks_keep_their_order():
    sizes = (64, *[8] * 11, 10)
    params = mlp_init(jax.random.key(0), sizes)
    hidden = np.ones((2, 64))
    for number in range(1, 13):
        hidden = hidden @ np.asarray(params[f"layer{number}"]["weight"], np.float64)
        hidden = hidden if number == 12 else np.maximum(hidden, 0)
    np.testing.assert_allclose(mlp_apply(params, jnp.ones((2, 64))), hidden, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_training_learns():
    problem = PROBLEMS["digits"]()

    def step(params, key):
        gradient = jax.grad(problem.loss)(params, problem.batch(key))
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), None

    params, _ = jax.lax.scan(step, problem.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 1000))
    metrics = problem.evaluate(params)
    assert float(metrics["test_accuracy"]) > 0.93
    assert float(metrics["train_loss"]) < 0.15


def test_pixels_survive_every_format_of_four_bits():
    pixels = jnp.asarray(np.unique(load_digits().train_images))
    for fmt, kept in ((FLOAT8_E4M3FN, 17), (ieee_format(5, 3), 17), (FLOAT8_E5M2, 13)):
        assert int(jnp.sum(round_to(pixels, fmt) == pixels)) == kept


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"sizes": (10, 10)}, ValueError, r"begin with 64 .* end with 10 .*got \(10, 10\)"),
        ({"sizes": (64,)}, ValueError, r"at least inputs and outputs"),
        ({"sizes": (64, 0, 10)}, ValueError, r"each of sizes must be a whole number of at least 1; got 0"),
        ({"sizes": (64, 2.5, 10)}, ValueError, r"each of sizes .* got 2\.5"),
        ({"batch_size": 0}, ValueError, r"batch_size must be a whole number of at least 1; got 0"),
        ({"split_seed": -1}, ValueError, r"split_seed .* got -1"),
        ({"activation": "tanh"}, TypeError, r"activation must be a function.*pass ACTIVATIONS\['tanh'\]"),
        ({"activation": "sine"}, TypeError, r"activation must be a function.*relu, tanh"),
    ],
)
def test_mistakes_get_a_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        digits(**arguments)


def test_missing_scikit_learn_gets_a_sentence(monkeypatch):
    load_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'precisionlab\[lab\]'"):
        digits()
