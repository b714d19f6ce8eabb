"""Small networks in plain JAX, their parameters named as one would say them.

A multilayer perceptron is `{"layer1": {"weight", "bias"}, ...}`; the transformer is causal, with a layer norm
*before* each attention and feed-forward (R. Xiong et al., "On layer normalization in the transformer architecture",
2020), the shape of released language models. Norm weights are leaves called "scale" and begin at exactly 1.0, where
half an ulp of bfloat16 is 2^-8 above and 2^-9 below: the weights that small updates never move. Everything is
computed in the dtype of the parameters.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float, Int, PRNGKeyArray
from precisionlab.problems.base import whole

__all__ = ["mlp_apply", "mlp_init", "transformer_apply", "transformer_init"]

VOCABULARY = 256


def mlp_init(key: PRNGKeyArray, sizes: Sequence[int] = (64, 32, 10)) -> dict[str, dict[str, Array]]:
    """Random weights and zero biases.

    Weights are normal with variance 2 / inputs (K. He et al., "Delving deep into rectifiers", 2015), in float32.

    Args:
        key: a JAX random key.
        sizes: units of each layer, from input to output; at least two numbers.

    Raises:
        ValueError: if the sizes describe no network.

    Example:
        >>> params = mlp_init(jax.random.key(0))
        >>> {name: layer["weight"].shape for name, layer in params.items()}
        {'layer1': (64, 32), 'layer2': (32, 10)}
    """
    sizes = layer_sizes(sizes)
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer{number}": {
            "weight": _matrix(keys[number - 1], inputs, outputs, 2 / inputs),
            "bias": jnp.zeros((outputs,), jnp.float32),
        }
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1)
    }


def mlp_apply(
    params: dict[str, dict[str, Array]],
    images: Float[Array, "batch inputs"],
    activation: Callable[[Any], Any] = jax.nn.relu,
) -> Float[Array, "batch outputs"]:
    """The outputs (logits) of the network, computed in the dtype of the parameters.

    Args:
        params: as `mlp_init` gives them, in any one float dtype.
        images: one image a row.
        activation: applied between the layers, not after the last.

    Example:
        >>> mlp_apply(mlp_init(jax.random.key(0)), jnp.zeros((3, 64))).tolist() == [[0.0] * 10] * 3
        True
    """
    hidden = images.astype(params["layer1"]["weight"].dtype)
    for number in range(1, len(params) + 1):
        layer = params[f"layer{number}"]
        with jax.named_scope(f"layer{number}"):
            hidden = hidden @ layer["weight"] + layer["bias"][None, :]
            hidden = activation(hidden) if number < len(params) else hidden
    return hidden


def transformer_init(key: PRNGKeyArray, context: int = 32, width: int = 64, heads: int = 4, layers: int = 2) -> dict[str, Any]:
    """Parameters of the transformer, as nested dicts such as `params["block1"]["attention"]["query"]`.

    Matrices are normal with variance 1 / inputs, those that write into the residual stream 1 / (2 layers) of that; norm
    scales are one, norm biases zero.

    Args:
        key: a JAX random key.
        context: bytes seen at once.
        width: of the residual stream; a multiple of heads.
        heads: of each attention.
        layers: blocks of attention and feed-forward.

    Raises:
        ValueError: if a number is not positive, or the heads do not divide the width.

    Example:
        >>> params = transformer_init(jax.random.key(0))
        >>> params["block2"]["feedforward"]["up"].shape, params["norm"]["scale"].tolist() == [1.0] * 64
        ((64, 256), True)
    """
    names = ("context", "width", "heads", "layers")
    sizes = (context, width, heads, layers)
    context, width, heads, layers = (whole(f"transformer: {n}", s, 1) for n, s in zip(names, sizes, strict=True))
    if width % heads:
        raise ValueError(f"transformer: width must be a multiple of heads; got width={width} and heads={heads}.")
    keys = iter(jax.random.split(key, 3 + 6 * layers))

    def matrix(inputs: int, outputs: int, variance: float) -> Array:
        return _matrix(next(keys), inputs, outputs, variance)

    def norm() -> dict[str, Array]:
        return {"scale": jnp.ones((width,), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)}

    def block() -> dict[str, Any]:
        return {
            "norm1": norm(),
            "attention": {
                **{name: matrix(width, width, 1 / width) for name in ("query", "key", "value")},
                "output": matrix(width, width, 1 / (2 * layers * width)),
            },
            "norm2": norm(),
            "feedforward": {
                "up": matrix(width, 4 * width, 1 / width),
                "down": matrix(4 * width, width, 1 / (2 * layers * 4 * width)),
            },
        }

    embedding = {"bytes": matrix(VOCABULARY, width, 0.5), "positions": matrix(context, width, 0.5)}
    blocks = {f"block{number}": block() for number in range(1, layers + 1)}
    return {"embedding": embedding, **blocks, "norm": norm(), "unembedding": matrix(width, VOCABULARY, 1 / width)}


def transformer_apply(
    params: dict[str, Any], tokens: Int[Array, "batch time"], heads: int = 4
) -> Float[Array, "batch time 256"]:
    """Logits of the byte after each position, from the bytes up to it.

    Its parts run in named scopes: `embedding`, `block1/attention`, `block1/feedforward`, `block1/norm`, ..., `norm`,
    `unembedding`.

    Args:
        params: as `transformer_init` gives them, in any one float dtype.
        tokens: bytes as integers; at most as many a row as there are positions.
        heads: as in `transformer_init`.

    Example:
        >>> transformer_apply(transformer_init(jax.random.key(0)), jnp.zeros((2, 32), jnp.int32)).shape
        (2, 32, 256)
    """
    time = tokens.shape[1]
    with jax.named_scope("embedding"):
        x = params["embedding"]["bytes"][tokens] + params["embedding"]["positions"][None, :time]
    for number in range(1, sum(name.startswith("block") for name in params) + 1):
        block = params[f"block{number}"]
        with jax.named_scope(f"block{number}"):
            x = x + _attention(block["attention"], _layer_norm(block["norm1"], x), heads)
            x = x + _feedforward(block["feedforward"], _layer_norm(block["norm2"], x))
    normed = _layer_norm(params["norm"], x)
    with jax.named_scope("unembedding"):
        return normed @ params["unembedding"]


@jax.named_scope("feedforward")
def _feedforward(weights: dict[str, Array], x: Array) -> Array:
    return jax.nn.gelu(x @ weights["up"]) @ weights["down"]


@jax.named_scope("norm")
def _layer_norm(norm: dict[str, Array], x: Array) -> Array:
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * norm["scale"][None, None, :] + norm["bias"][None, None, :]


@jax.named_scope("attention")
def _attention(weights: dict[str, Array], x: Array, heads: int) -> Array:
    batch, time, width = x.shape
    query, key, value = ((x @ weights[name]).reshape(batch, time, heads, -1) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
    past = jnp.broadcast_to(jnp.tri(time, dtype=jnp.bool_)[None, None], scores.shape)
    # Not the usual -inf: formats without an infinity turn it into NaN. A row's least score never raises its maximum.
    floor = jnp.min(scores, axis=-1, keepdims=True)
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(past, scores, floor), axis=-1, keepdims=True))
    weight = jnp.where(past, jnp.exp(jnp.where(past, scores - peak, 0.0)), 0.0)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weight / jnp.sum(weight, axis=-1, keepdims=True), value)
    return mixed.reshape(batch, time, width) @ weights["output"]


def layer_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes as integers, or a sentence that says what is wrong with them."""
    numbers = tuple(whole("mlp: each of sizes", size, 1) for size in sizes)
    if len(numbers) < 2:
        raise ValueError(f"mlp: sizes must name at least inputs and outputs, such as (64, 32, 10); got {numbers}.")
    return numbers


def _matrix(key: PRNGKeyArray, inputs: int, outputs: int, variance: float) -> Array:
    return jax.random.normal(key, (inputs, outputs), jnp.float32) * np.float32(variance**0.5)
