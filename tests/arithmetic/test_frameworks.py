"""Models of Flax, Equinox and Haiku as their users write them: simulated with their gradients, with rules by their scopes."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic import error_profile, simulate
from precisionlab.arithmetic.rules import Rules
from tests.cases import assert_same

pytestmark = pytest.mark.filterwarnings("default")  # theirs; this file is about results

BFLOAT16, E5M2, FLOAT32 = pl.BFLOAT16, pl.FLOAT8_E5M2, pl.FLOAT32
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)


class Model(NamedTuple):
    """Parameters, and a function of them and of a batch."""

    params: Any
    apply: Callable[[Any, Any], Any]


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def linen() -> Model:
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(name="norm")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
            x = nn.gelu(nn.Dense(8, name="hidden")(x))
            x = nn.Dropout(0.5, deterministic=True)(x)
            return nn.Dense(4, name="out")(x)

    block = Block()
    return Model(block.init(jax.random.key(0), X), block.apply)


def nnx() -> Model:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.hidden = nnx.Linear(8, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.out = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            x = self.norm(x)
            x = x + self.attention(x)
            return self.out(self.dropout(nnx.gelu(self.hidden(x))))

    graph, params, rest = nnx.split(Block(nnx.Rngs(0)), nnx.Param, ...)
    return Model(params, lambda params, x: nnx.merge(graph, params, rest)(x))


def equinox() -> Model:
    import equinox as eqx

    class Block(eqx.Module):
        norm: eqx.nn.LayerNorm
        hidden: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        out: eqx.nn.Linear
        activation: Callable[..., Any]

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.norm = eqx.nn.LayerNorm(8)
            self.hidden = eqx.nn.Linear(8, 8, key=a)
            self.dropout = eqx.nn.Dropout(0.5, inference=True)
            self.out = eqx.nn.Linear(8, 4, key=b)
            self.activation = jax.nn.relu

        def __call__(self, x):
            return self.out(self.dropout(self.activation(self.hidden(self.norm(x)))))

    params, static = eqx.partition(Block(jax.random.key(0)), eqx.is_inexact_array)
    return Model(params, lambda params, x: jax.vmap(jax.vmap(eqx.combine(params, static)))(x))


def haiku() -> Model:
    import haiku as hk

    def block(x):
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True, name="norm")(x)
        x = jax.nn.gelu(hk.Linear(8, name="hidden")(x))
        return hk.Linear(4, name="out")(x)

    transformed = hk.without_apply_rng(hk.transform(block))
    return Model(transformed.init(jax.random.key(0), X), transformed.apply)


MODELS: dict[str, Callable[[], Model]] = {"linen": linen, "nnx": nnx, "equinox": equinox, "haiku": haiku}


def loss_of(model: Model) -> Callable[..., Any]:
    return lambda params, x, y: jnp.mean(jnp.square(model.apply(params, x) - y))


def assert_on_grid(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert_same(leaf, pl.round_to(leaf, BFLOAT16), what="off the grid")


def size(tree: Any) -> float:
    return math.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(tree)))


@pytest.mark.sampled("equinox")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_gradient(name):
    model = MODELS[name]()
    got = jax.jit(simulate(model.apply, BFLOAT16))(model.params, X)
    native = model.apply(model.params, X)
    assert (got.shape, got.dtype) == ((2, 5, 4), jnp.float32)
    assert_on_grid(got)
    np.testing.assert_allclose(got, native, atol=0.1)
    assert np.mean(np.asarray(got) != np.asarray(pl.round_to(native, BFLOAT16))) > 0.1  # rounding the result alone is not it

    step = jax.value_and_grad(loss_of(model))
    value, gradient = jax.jit(simulate(step, BFLOAT16))(model.params, X, Y)
    wanted, exactly = jax.jit(step)(model.params, X, Y)
    assert jax.tree.structure(gradient) == jax.tree.structure(model.params)
    assert_on_grid((value, gradient))
    assert float(value) == pytest.approx(float(wanted), rel=0.03)
    error = size(jax.tree.map(jnp.subtract, gradient, exactly)) / size(exactly)
    assert 0 < error < 0.05


# The frameworks that name scopes after their modules.
SCOPED = ("linen", "haiku")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCOPED)
def test_rules_by_the_scopes_of_the_framework(name):
    """With everything else exact, the rounding of one module is the only one."""
    model = MODELS[name]()
    coarse = jax.jit(simulate(model.apply, Rules(FLOAT32, scopes={"norm": E5M2})))(model.params, X)
    fine = jax.jit(simulate(model.apply, FLOAT32))(model.params, X)
    error = np.max(np.abs(np.asarray(coarse) - np.asarray(fine)))
    assert 1e-3 < error < 1.0
    with_norm = jax.jit(simulate(model.apply, Rules(E5M2, scopes={"norm": FLOAT32})))(model.params, X)
    without = jax.jit(simulate(model.apply, E5M2))(model.params, X)
    assert np.any(np.asarray(with_norm) != np.asarray(without))


@pytest.mark.slow
def test_profiles_by_the_scopes_of_the_framework():
    model = haiku()
    profile = error_profile(jax.grad(loss_of(model)), Rules(BFLOAT16, scopes={"norm": FLOAT32}))(model.params, X, Y)
    scopes = profile.by_scope()
    for module in ("norm", "hidden", "out"):
        worst = max(error for scope, error in scopes.items() if scope.endswith(module))
        assert (worst < 2.0**-20) == (module == "norm"), scopes


@pytest.mark.slow
def test_whole_objects_go_through():
    """Equinox modules hold functions beside arrays; nnx objects are passed as they are."""
    import equinox as eqx
    from flax import nnx

    linear = eqx.nn.MLP(8, 4, 6, 1, activation=jnp.tanh, key=jax.random.key(1))
    simulated = eqx.filter_jit(simulate(lambda model, x: jax.vmap(model)(x), BFLOAT16))
    assert_on_grid(simulated(linear, X[0]))

    layer = nnx.Linear(8, 4, rngs=nnx.Rngs(2))
    assert_on_grid(nnx.jit(lambda layer, x: simulate(layer, BFLOAT16)(x))(layer, X))
    updated = simulate(lambda params, x: nnx.merge(nnx.graphdef(layer), params)(x), BFLOAT16)(nnx.state(layer), X)
    kernel, bias = (pl.round_to(leaf[...], BFLOAT16) for leaf in (layer.kernel, layer.bias))
    product = pl.round_to(jnp.matmul(pl.round_to(jnp.asarray(X), BFLOAT16), kernel, precision="highest"), BFLOAT16)
    assert_same(updated, pl.round_to(product + bias, BFLOAT16))
