"""The models that benchmarks train: parameters, and their loss on one batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import precisionlab as pl
from precisionlab.problems import cross_entropy, mlp_apply, mlp_init

__all__ = ["Model", "gpt2", "perceptron", "transformer"]

Model = tuple[Any, Callable[[Any], Any]]


def perceptron(width: int) -> Model:
    """64-width-width-10 at batch 64."""
    images, labels = jax.random.uniform(jax.random.key(1), (64, 64)), jax.random.randint(jax.random.key(2), (64,), 0, 10)
    params = mlp_init(jax.random.key(0), (64, width, width, 10))
    return params, lambda weights: cross_entropy(mlp_apply(weights, images), labels)


def transformer(layers: int, width: int = 64, batch: int = 8, context: int = 64) -> Model:
    """The byte-level transformer of `precisionlab.problems`: 5 leaves and 10 for each layer."""
    problem = pl.problems.text(context=context, width=width, heads=4, layers=layers, batch_size=batch)
    data = problem.batch(jax.random.key(1))
    return problem.init(jax.random.key(0)), lambda weights: problem.loss(weights, data)


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50_257, context: int = 64) -> Model:
    """The shape of GPT-2 small: 124 M parameters in 148 leaves; one sequence of `context` tokens, since time is short."""
    keys = iter(jax.random.split(jax.random.key(0), 2 + 4 * layers))

    def dense(inputs: int, outputs: int) -> dict[str, Any]:
        return {"kernel": 0.02 * jax.random.normal(next(keys), (inputs, outputs)), "bias": jnp.zeros(outputs)}

    def norm() -> dict[str, Any]:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    blocks = {
        f"block{number}": {
            "norm1": norm(),
            "attention": dense(width, 3 * width),
            "output": dense(width, width),
            "norm2": norm(),
            "up": dense(width, 4 * width),
            "down": dense(4 * width, width),
        }
        for number in range(layers)
    }
    tokens, positions = (0.02 * jax.random.normal(next(keys), (rows, width)) for rows in (vocabulary, 1024))
    params = {"tokens": tokens, "positions": positions, "norm": norm(), **blocks}
    text = jax.random.randint(jax.random.key(1), (context + 1,), 0, vocabulary)

    def normed(held: Any, x: Any) -> Any:
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * held["scale"] + held["bias"]

    def applied(held: Any, x: Any) -> Any:
        return x @ held["kernel"] + held["bias"]

    def attended(block: Any, x: Any) -> Any:
        query, key, value = (part.reshape(context, 12, -1) for part in jnp.split(applied(block["attention"], x), 3, -1))
        return applied(block["output"], jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(context, width))

    def loss(weights: Any) -> Any:
        x = weights["tokens"][text[:-1]] + weights["positions"][:context]
        for number in range(layers):
            block = weights[f"block{number}"]
            x = x + attended(block, normed(block["norm1"], x))
            x = x + applied(block["down"], jax.nn.gelu(applied(block["up"], normed(block["norm2"], x))))
        return cross_entropy(normed(weights["norm"], x) @ weights["tokens"].T, text[1:])

    return params, loss
