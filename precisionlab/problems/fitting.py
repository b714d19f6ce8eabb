"""Fitting a few points exactly: nets whose minima are known to form a manifold, and nets that fail a condition of that theorem.

A net with n parameters, d data points and r outputs has d r residuals. If the net is wide and smooth, the points are distinct
and the labels generic, its zero-loss set is a manifold of dimension n - d r (Y. Cooper, "The loss landscape of
overparameterized neural networks", 2018), and there the Hessian of the square loss is J^T J, of rank d r. The controls each
break one condition:

    activation "linear"     a deep linear net is a linear map: with d > inputs + 1 generic labels it cannot fit them
    hidden too small        n < d r: there are fewer parameters than residuals
    activation "relu"       smooth only within a region of constant signs

Data are numpy float64; where they are used they follow the dtype of the parameters.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab._typing import Array, Float, PRNGKeyArray, PyTree
from precisionlab.problems.base import whole
from precisionlab.problems.digits import load_digits

__all__ = ["SMOOTH", "Fit", "digits_fit", "generic_fit", "parity_fit"]


def _linear(x: Array) -> Array:
    return x


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": _gelu,
    "relu": jax.nn.relu,
    "linear": _linear,
}
SMOOTH = ("tanh", "softplus", "gelu")
"""The activations that satisfy the theorem."""


class Fit(NamedTuple):
    """A net and the points that it is to fit.

    Attributes:
        name: what it is, in a few words.
        n: how many parameters.
        d: how many data points.
        r: how many outputs.
        inputs: (d, k) float64.
        targets: (d, r) float64.
        init: `init(key) -> params`, `{"layer1": {"bias", "weight"}, ...}` in float64.
        predict: `predict(params, inputs) -> outputs`, (points, r) in the dtype of the parameters.
        residuals: `residuals(params) -> (d r,)`, prediction minus target, point by point.
        loss: `loss(params) -> ()`, half the sum of their squares.
        unflatten: `unflatten(theta) -> params`, from the vector (n,) that `jax.flatten_util.ravel_pytree` makes of them.
        residuals_at: `residuals_at(theta) -> (d r,)`. Its data are arguments to jit: fits of one shape share compiled programs.
    """

    name: str
    n: int
    d: int
    r: int
    inputs: np.ndarray
    targets: np.ndarray
    init: Callable[[PRNGKeyArray], PyTree[Array]]
    predict: Callable[[PyTree[Array], Any], Array]
    residuals: Callable[[PyTree[Array]], Array]
    loss: Callable[[PyTree[Array]], Array]
    unflatten: Callable[[Any], PyTree[Array]]
    residuals_at: Partial


def generic_fit(
    d: int,
    r: int = 1,
    inputs: int = 2,
    hidden: int = 8,
    activation: str = "tanh",
    layers: int = 1,
    seed: int = 0,
) -> Fit:
    """Generic points: independent standard normal inputs and targets.

    Of one seed, the points of a smaller d are the first of a larger one.

    Args:
        d: data points.
        r: outputs.
        inputs: coordinates of a point.
        hidden: units of each hidden layer; the theorem asks for more than d in the last.
        activation: "tanh", "softplus", "gelu" (the exact one), "relu" or "linear".
        layers: hidden layers.
        seed: of the points.

    Raises:
        ValueError: for a size that is no whole number of at least 1, or an unknown activation.

    Example:
        >>> fit = generic_fit(5)
        >>> fit.n, fit.d * fit.r, fit.inputs.shape, fit.targets.shape
        (33, 5, (5, 2), (5, 1))
        >>> with jax.enable_x64(True):
        ...     params = fit.init(jax.random.key(0))
        ...     fit.residuals(params).shape, fit.loss(params).dtype
        ((5,), dtype('float64'))
    """
    given = {"d": d, "r": r, "inputs": inputs, "hidden": hidden, "layers": layers}
    d, r, inputs, hidden, layers = (whole(f"generic_fit: {name}", value, 1) for name, value in given.items())
    seed = whole("generic_fit: seed", seed, 0)
    random = np.random.default_rng([seed, inputs, r])
    points = random.standard_normal((d, inputs + r))  # row by row, so that a smaller d has the first of them
    sizes = (inputs, *[hidden] * layers, r)
    return _fit(f"generic points, {activation}", sizes, activation, points[:, :inputs], points[:, inputs:], "generic_fit")


def digits_fit(
    d: int, r: int = 1, inputs: int = 4, hidden: int = 8, activation: str = "tanh", layers: int = 1, seed: int = 0
) -> Fit:
    """Real points: images of handwritten digits (scikit-learn), their leading principal components to be told apart exactly.

    Components are those of the training images of the digits in question, centred, and scaled together so that the first has
    variance 1. With one output the digits are 0 and 1 and the targets -1 and +1; with r outputs they are 0 to r - 1 and the
    targets one-hot. Digits take turns, so that each class has d / classes points, rounded up or down.

    Args:
        d: images, different ones.
        r: outputs: 1, or 2 to 10 for as many classes.
        inputs: principal components, 1 to 64.
        hidden: units of each hidden layer.
        activation: as in `generic_fit`.
        layers: hidden layers.
        seed: which images.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: for a size out of range, or an unknown activation.

    Example:
        >>> fit = digits_fit(6, r=3)
        >>> fit.inputs.shape, fit.targets.sum(axis=0).tolist(), fit.n
        ((6, 4), [2.0, 2.0, 2.0], 67)
    """
    d, hidden, layers = (whole(f"digits_fit: {n}", v, 1) for n, v in (("d", d), ("hidden", hidden), ("layers", layers)))
    r, inputs = whole("digits_fit: r", r, 1, 10), whole("digits_fit: inputs", inputs, 1, 64)
    seed = whole("digits_fit: seed", seed, 0)
    classes = max(r, 2)
    scores, labels = _components(classes)
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(classes)]
    available = classes * min(map(len, members))
    if d > available:
        raise ValueError(f"digits_fit: d must be at most {available}, the images of {classes} digits; got {d}.")
    rows = np.array([members[i % classes][i // classes] for i in range(d)])
    chosen = labels[rows]
    targets = np.eye(r)[chosen] if r > 1 else 2.0 * chosen[:, None] - 1.0
    sizes = (inputs, *[hidden] * layers, r)
    return _fit(f"digits, {activation}", sizes, activation, scores[rows, :inputs], targets, "digits_fit")


def parity_fit(d: int, inputs: int = 64, hidden: int = 128, activation: str = "tanh", layers: int = 1, seed: int = 0) -> Fit:
    """Real points in number: any of the 1,797 images of digits, and one output, whether the digit is odd (-1) or even (+1).

    Coordinates are made as in `digits_fit`, from all images. Of one seed, the points of a smaller d are the first of a larger
    one.

    Args:
        d: images, different ones, up to 1,797.
        inputs: principal components, 1 to 64.
        hidden: units of each hidden layer.
        activation: as in `generic_fit`.
        layers: hidden layers.
        seed: which images.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: for a size out of range, or an unknown activation.

    Example:
        >>> fit = parity_fit(1500)
        >>> fit.n, fit.inputs.shape, sorted(set(fit.targets.ravel().tolist()))
        (8449, (1500, 64), [-1.0, 1.0])
    """
    hidden, layers = (whole(f"parity_fit: {name}", value, 1) for name, value in (("hidden", hidden), ("layers", layers)))
    inputs, seed = whole("parity_fit: inputs", inputs, 1, 64), whole("parity_fit: seed", seed, 0)
    scores, labels = _components(10, every=True)
    rows = np.random.default_rng(seed).permutation(len(labels))[: whole("parity_fit: d", d, 1, len(labels))]
    targets = 1.0 - 2.0 * (labels[rows] % 2)[:, None]
    sizes = (inputs, *[hidden] * layers, 1)
    return _fit(f"parity of digits, {activation}", sizes, activation, scores[rows, :inputs], targets, "parity_fit")


@lru_cache(maxsize=16)
def _components(classes: int, *, every: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Principal components (images, 64) of the training images, or all, of the first digits, and their labels."""
    data = load_digits()
    labels = np.concatenate([data.train_labels, data.test_labels]) if every else data.train_labels
    pixels = np.concatenate([data.train_images, data.test_images]) if every else data.train_images
    kept = labels < classes
    images = pixels[kept].astype(np.float64)
    _, spreads, axes = np.linalg.svd(images - images.mean(axis=0), full_matrices=False)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]  # the sign of an axis is free
    scale = spreads[0] / math.sqrt(len(images))
    return (images - images.mean(axis=0)) @ axes.T / scale, labels[kept].astype(np.int64)


def _fit(name: str, sizes: tuple[int, ...], activation: str, inputs: np.ndarray, targets: np.ndarray, where: str) -> Fit:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{where}: activation must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}.")
    inputs, targets = np.ascontiguousarray(inputs), np.ascontiguousarray(targets)
    for array in (inputs, targets):
        array.setflags(write=False)
    init, predict, unflatten, from_vector = _network(sizes, activation)

    def residuals(params: PyTree[Array]) -> Float[Array, " residuals"]:
        return _difference(predict(params, inputs), targets)

    def loss(params: PyTree[Array]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.square(residuals(params)))

    n = sum((before + 1) * after for before, after in pairwise(sizes))
    at = Partial(from_vector, inputs, targets)
    d, r = targets.shape
    return Fit(name, n, d, r, inputs, targets, init, predict, residuals, loss, unflatten, at)


def _difference(outputs: Array, targets: Any) -> Array:
    return (outputs - jnp.asarray(targets, outputs.dtype)).reshape(-1)


@lru_cache(maxsize=256)
def _network(sizes: tuple[int, ...], activation: str) -> tuple[Callable[..., Any], ...]:
    """The functions of a shape; the same objects for every fit of it, so that compiled programs are found again."""
    act = _ACTIVATIONS[activation]
    shapes = {
        f"layer{number}": {"bias": (after,), "weight": (before, after)}
        for number, (before, after) in enumerate(pairwise(sizes), start=1)
    }

    def init(key: PRNGKeyArray) -> PyTree[Array]:
        keys = jax.random.split(key, 2 * len(shapes))
        made = {}
        for number, (name, leaves) in enumerate(shapes.items()):
            before, _ = leaves["weight"]
            weight = jax.random.normal(keys[2 * number], leaves["weight"], np.float64) / math.sqrt(before)
            # Biases that are not zero: at zero ones an odd activation is a special point.
            bias = 0.5 * jax.random.normal(keys[2 * number + 1], leaves["bias"], np.float64)
            made[name] = {"bias": bias, "weight": weight}
        return made

    def predict(params: PyTree[Array], inputs: Any) -> Float[Array, "points r"]:
        dtype = params["layer1"]["weight"].dtype
        values = jnp.asarray(inputs, dtype)
        for number in range(1, len(shapes) + 1):
            layer = params[f"layer{number}"]
            values = values @ layer["weight"] + layer["bias"][None, :]
            values = act(values) if number < len(shapes) else values
        return values

    def unflatten(theta: Any) -> PyTree[Array]:
        params, place = {}, 0
        for name, leaves in shapes.items():
            params[name] = {}
            for leaf, shape in leaves.items():
                size = math.prod(shape)
                params[name][leaf] = theta[place : place + size].reshape(shape)
                place += size
        return params

    def from_vector(inputs: Any, targets: Any, theta: Any) -> Float[Array, " residuals"]:
        return _difference(predict(unflatten(theta), inputs), targets)

    return init, predict, unflatten, from_vector
