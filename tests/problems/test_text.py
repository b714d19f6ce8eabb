"""The corpus is what it says, and the transformer computes what a plain numpy one computes."""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.problems import PROBLEMS, load_bytes, text, transformer_apply, transformer_init

SMALL = {"context": 12, "width": 16, "heads": 2, "layers": 2, "limit": 200_000, "windows": 16}


def reference_logits(params, tokens, heads):
    """The transformer in numpy float64, one row and one head at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(weights, x):
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt(centered.var(-1, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]

    def attend(weights, x):
        size = x.shape[1] // heads
        q, k, v = (x @ weights[name] for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(x)):
                scores = k[: t + 1, part] @ q[t, part] / math.sqrt(size)
                weight = np.exp(scores - scores.max())
                mixed[t, part] = weight / weight.sum() @ v[: t + 1, part]
        return mixed @ weights["output"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    rows = []
    for row in np.asarray(tokens):
        x = p["embedding"]["bytes"][row] + p["embedding"]["positions"][: len(row)]
        for number in (1, 2):
            block = p[f"block{number}"]
            x = x + attend(block["attention"], norm(block["norm1"], x))
            x = x + gelu(norm(block["norm2"], x) @ block["feedforward"]["up"]) @ block["feedforward"]["down"]
        rows.append(norm(p["norm"], x) @ p["unembedding"])
    return np.stack(rows)


def perturbed(params):
    """Norms that are not the identity, so that a forgotten scale or bias shows."""
    random = np.random.default_rng(0)

    def moved(leaf):
        return jnp.asarray(np.asarray(leaf) + (0.1 * random.standard_normal(leaf.shape)).astype(leaf.dtype))

    return jax.tree.map(moved, params)


@pytest.fixture(scope="module")
def params():
    return perturbed(jax.jit(lambda key: transformer_init(key, 12, 16, 2, 2))(jax.random.key(0)))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, 12)), jnp.int32)


def folder_of(tmp_path, count, size=100):
    for number in range(count):
        (tmp_path / f"m{number:02}.py").write_bytes(bytes([65 + number]) * size)
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a source")
    return str(tmp_path)


def test_every_tenth_file_is_for_testing(tmp_path):
    corpus = load_bytes(10_000, folder_of(tmp_path, 23))
    train, test = bytes(corpus.train).split(b"\0"), bytes(corpus.test).split(b"\0")
    letters = [bytes([65 + number]) * 100 for number in range(23)]
    assert test == [letters[9], letters[19]]
    assert train == [letter for letter in letters if letter not in test]
    assert corpus.files == tuple(f"m{number:02}.py" for number in range(23))
    assert corpus.digest == hashlib.sha256(bytes(corpus.train) + bytes(corpus.test)).hexdigest()


def test_limit_cuts_the_last_file(tmp_path):
    corpus = load_bytes(1_150, folder_of(tmp_path, 23))
    assert len(corpus.files) == 12
    assert bytes(corpus.train).endswith(b"\0" + b"L" * 50)
    separators = (len(corpus.files) - 1) - 1  # one fewer than files in each of two parts, and testing has one file
    assert len(corpus.train) + len(corpus.test) == 1_150 + separators


def test_too_few_sources_get_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text: found 9 Python sources .* at least 10 are needed; raise the"):
        load_bytes(10_000, folder_of(tmp_path, 9))
    with pytest.raises(FileNotFoundError, match=r"found 0 Python sources"):
        load_bytes(10_000, str(tmp_path / "nowhere"))


def test_the_library_is_real_python():
    corpus = load_bytes(300_000)
    assert list(corpus.files) == sorted(corpus.files)
    for part in bytes(corpus.train).split(b"\0")[:5]:
        compile(part, "source", "exec", dont_inherit=True)
    assert b"def " in bytes(corpus.test)
    assert not corpus.train.flags.writeable


def test_targets_are_the_next_bytes_of_the_corpus():
    problem = text(**SMALL)
    inputs, targets = jax.jit(jax.vmap(problem.batch))(jax.random.split(jax.random.key(0), 3))
    assert inputs.shape == targets.shape == (3, 32, 12)
    whole = bytes(load_bytes(SMALL["limit"]).train)
    for row, following in zip(np.asarray(inputs).reshape(-1, 12), np.asarray(targets).reshape(-1, 12), strict=True):
        assert bytes(row.tolist()) + bytes(following[-1:].tolist()) in whole
        assert np.array_equal(row[1:], following[:-1])


def test_fixed_windows_reach_from_the_first_byte_to_the_last():
    problem = text(**SMALL)
    whole = bytes(load_bytes(SMALL["limit"]).train)
    inputs, targets = (np.asarray(part) for part in problem.train)
    assert bytes(inputs[0].tolist()) == whole[:12]
    assert bytes(targets[-1].tolist()) == whole[-12:]


@pytest.mark.slow
def test_transformer_agrees_with_numpy(params, tokens):
    expected = reference_logits(params, tokens, 2)
    apply = jax.jit(lambda tokens: transformer_apply(params, tokens, 2))
    np.testing.assert_allclose(apply(tokens), expected, rtol=1e-4, atol=1e-5)
    short = apply(tokens[:, :5])
    np.testing.assert_allclose(short, expected[:, :5], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_future_does_not_leak(params, tokens):
    apply = jax.jit(lambda tokens: transformer_apply(params, tokens, 2))
    changed = apply(tokens.at[:, 7].set((tokens[:, 7] + 1) % 256))
    same = np.all(np.asarray(apply(tokens) == changed), axis=(0, 2))
    assert same.tolist() == [True] * 7 + [False] * 5


@pytest.mark.slow
def test_large_scores_stay_finite(params, tokens):
    """No infinity anywhere: formats without one would turn it into NaN."""
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dicts
    params["block1"]["attention"]["query"] = params["block1"]["attention"]["query"] * 1e6
    program = jax.make_jaxpr(lambda params: transformer_apply(params, tokens, 2))(params)
    assert "inf" not in str(program)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(transformer_apply(params, tokens, 2))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences_in_float64(params):
    problem = text(**SMALL, batch_size=2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        direction = perturbed(jax.tree.map(np.zeros_like, params))
        batch = problem.batch(jax.random.key(1))

        @jax.jit
        def along(step):
            return problem.loss(jax.tree.map(lambda p, d: p + step * d, params, direction), batch)

        difference = (float(along(1e-5)) - float(along(-1e-5))) / 2e-5
        gradient = jax.jit(jax.grad(problem.loss))(params, batch)
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert difference == pytest.approx(slope, rel=1e-6)


def test_parameters_have_readable_names():
    params = jax.jit(lambda key: transformer_init(key, layers=1))(jax.random.key(0))
    paths = ["/".join(str(part.key) for part in path) for path, _ in jax.tree.leaves_with_path(params)]
    assert sorted(paths) == sorted(
        [
            *(f"block1/attention/{name}" for name in ("query", "key", "value", "output")),
            *(f"block1/feedforward/{name}" for name in ("up", "down")),
            *(f"block1/{norm}/{name}" for norm in ("norm1", "norm2") for name in ("scale", "bias")),
            "embedding/bytes",
            "embedding/positions",
            "norm/scale",
            "norm/bias",
            "unembedding",
        ]
    )
    scales = [leaf for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "scale"]
    assert all(np.array_equal(scale, np.ones(64)) for scale in scales)


@pytest.mark.slow
def test_bits_are_nats_over_log_two_and_training_lowers_them():
    problem = PROBLEMS["text"](**SMALL)
    params = jax.jit(problem.init)(jax.random.key(0))
    evaluate = jax.jit(problem.evaluate)
    before = evaluate(params)

    def step(params, key):
        gradient = jax.grad(problem.loss)(params, problem.batch(key))
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), None

    params, _ = jax.lax.scan(step, params, jax.random.split(jax.random.key(1), 100))
    after = evaluate(params)
    for part in ("train", "test"):
        assert float(after[f"{part}_bits_per_byte"]) == pytest.approx(float(after[f"{part}_loss"]) / math.log(2))
        assert 5.5 < float(before[f"{part}_loss"]) < 7.5
        assert float(after[f"{part}_loss"]) < 4.0
    assert float(jax.jit(problem.loss)(params, problem.train)) == pytest.approx(float(after["train_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"width": 10, "heads": 4}, r"width must be a multiple of heads; got width=10 and heads=4"),
        ({"layers": 0}, r"layers must be a whole number of at least 1; got 0"),
        ({"context": 0}, r"context must be a whole number of at least 1; got 0"),
        ({"context": 10**8}, r"context=100000000 leaves no window in a part of .* bytes"),
        ({"batch_size": -1}, r"batch_size .* got -1"),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        text(**(SMALL | arguments))
