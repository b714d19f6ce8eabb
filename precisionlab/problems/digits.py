"""Handwritten digits: real data that train in seconds.

1,797 images of 8 x 8 pixels (UCI's optical recognition of handwritten digits, as shipped with scikit-learn). A pixel
is a whole number from 0 to 16, scaled here to k/16: a value of every float format of four or more significand bits,
so that what such a format does to training is never what it did to the data. The classifier is a multilayer
perceptron.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float, Int, PRNGKeyArray
from precisionlab.problems.base import Problem, cross_entropy, uniform_indices, whole
from precisionlab.problems.networks import layer_sizes, mlp_apply, mlp_init

__all__ = ["ACTIVATIONS", "DigitsData", "accuracy", "digits", "load_digits"]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class DigitsData(NamedTuple):
    """The split data, as read-only numpy arrays.

    Attributes:
        train_images: (1437, 64) float32, multiples of 1/16 from 0 to 1.
        train_labels: (1437,) int32, 0 to 9.
        test_images: (360, 64) float32.
        test_labels: (360,) int32.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@lru_cache(maxsize=8)
def load_digits(split_seed: int = 0) -> DigitsData:
    """The digits, split once and for all: a fifth of each class is for testing.

    The order comes from the raw words of PCG64, which NumPy promises never to change, so a seed means the same split on
    every machine and in every year.

    Args:
        split_seed: any whole number from 0.

    Returns:
        The split; 1,437 images for training and 360 for testing.

    Raises:
        ImportError: if scikit-learn is not installed.

    Example:
        >>> load_digits().test_images.shape
        (360, 64)
    """
    try:
        from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(
            "digits: the images come with scikit-learn, which is not installed; run pip install 'precisionlab[lab]'."
        ) from None
    pixels, labels = load(return_X_y=True)
    images, labels = (np.asarray(pixels) / 16).astype(np.float32), np.asarray(labels).astype(np.int32)
    words = np.random.PCG64(whole("digits: split_seed", split_seed, 0)).random_raw(len(labels))
    order = np.argsort(words, kind="stable")
    shuffled = labels[order]
    # Every fifth of the images of a class, in the shuffled order; the phase differs by class so that the fifths add up.
    rank = np.empty(len(labels), np.int64)
    for digit in range(10):
        members = np.flatnonzero(shuffled == digit)
        rank[members] = np.arange(len(members)) + digit
    testing = np.zeros(len(labels), bool)
    testing[order[rank % 5 == 0]] = True
    parts = DigitsData(images[~testing], labels[~testing], images[testing], labels[testing])
    for part in parts:
        part.setflags(write=False)
    return parts


def accuracy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """The share of rows whose largest logit is the label's, in float32.

    A NaN counts as the largest, as in `argmax`, so a network of NaNs predicts class 0 and scores a tenth.

    Example:
        >>> float(accuracy(jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([1, 1])))
        0.5
    """
    return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))


def digits(
    sizes: Sequence[int] = (64, 32, 10),
    batch_size: int = 32,
    split_seed: int = 0,
    activation: Callable[[Any], Any] = jax.nn.relu,
) -> Problem:
    """Digit classification by a multilayer perceptron.

    A batch is `(images, labels)`, drawn with replacement. Metrics: `train_loss`, `test_loss` (nats), `train_accuracy`
    and `test_accuracy` (0 to 1).

    Args:
        sizes: units of each layer; the first must be 64 (pixels), the last 10 (classes).
        batch_size: images in a minibatch.
        split_seed: which images are for testing.
        activation: a function such as `jax.nn.relu` or `jnp.tanh`; `ACTIVATIONS` has their names.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if the sizes do not fit the data.
        TypeError: if the activation is not a function.

    Example:
        >>> problem = digits()
        >>> params = problem.init(jax.random.key(0))
        >>> images, labels = problem.batch(jax.random.key(1))
        >>> images.shape, labels.shape, problem.loss(params, (images, labels)).shape
        ((32, 64), (32,), ())
    """
    sizes = layer_sizes(sizes)
    if (sizes[0], sizes[-1]) != (64, 10):
        raise ValueError(f"digits: sizes must begin with 64 (pixels) and end with 10 (classes); got {sizes}.")
    batch_size = whole("digits: batch_size", batch_size, 1)
    if not callable(activation):
        hint = f"pass ACTIVATIONS[{activation!r}]" if activation in ACTIVATIONS else f"named: {', '.join(ACTIVATIONS)}"
        raise TypeError(f"digits: activation must be a function such as jax.nn.relu; got {activation!r}; {hint}.")
    data = load_digits(split_seed)
    images, labels = train = (jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    test = (jnp.asarray(data.test_images), jnp.asarray(data.test_labels))

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        return cross_entropy(mlp_apply(params, batch[0], activation), batch[1])

    def batch(key: PRNGKeyArray) -> tuple[Array, Array]:
        rows = uniform_indices(key, (batch_size,), len(data.train_labels))
        # The default for an index out of range is a NaN and a mask; these are in range.
        return images.at[rows].get(mode="promise_in_bounds"), labels.at[rows].get(mode="promise_in_bounds")

    def evaluate(params: Any) -> dict[str, Array]:
        metrics = {}
        for part, (inputs, answers) in (("train", train), ("test", test)):
            logits = mlp_apply(params, inputs, activation)
            metrics[f"{part}_loss"] = cross_entropy(logits, answers)
            metrics[f"{part}_accuracy"] = accuracy(logits, answers)
        return metrics

    return Problem("digits", lambda key: mlp_init(key, sizes), loss, batch, evaluate, train)
