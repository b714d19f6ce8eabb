"""Problems small enough to overfit, each with data of its own for every seed, and a way to look at what was learned.

A sine with noise, learned by regression, with tanh or with ReLU; and handwritten digits, of which some labels are wrong. All
know which part of their training data is noise, so that one can say how much of it a network has memorized, and both give
lines through their inputs along which a learned function has a spectrum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array
from precisionlab.problems import cross_entropy, load_digits, mlp_apply, mlp_init, uniform_indices
from precisionlab.problems.waves import clean_wave, draw_waves, mean_square, wave_grid, wave_network

__all__ = ["SHAPE_KEPT", "TASKS", "Task", "noisy_digits", "noisy_relu_wave", "noisy_wave"]


class Task(NamedTuple):
    """A problem whose data come from a key; all functions are jittable.

    Attributes:
        name: what it is called.
        points: of training data.
        init: `init(key) -> params`.
        network: `network(params, inputs) -> outputs`, in the dtype of the parameters.
        data: `data(key)`, the training data of a seed.
        batch: `batch(key, data)`, some of them.
        loss: `loss(params, batch) -> scalar`.
        evaluate: `evaluate(params, data) -> {"train_loss", "test_loss", "memorized"}`; `memorized` is the share of the noise
            that was learned, 1 for all of it.
        lines: `lines(data) -> inputs`, shape (lines, points, inputs).
        length: of a line, in units for which `frequency_unit` is one over them.
        frequency_unit: what frequencies along the lines are counted in.
        cut: above it a frequency is high: none that the right answer needs.
    """

    name: str
    points: int
    init: Callable[[Any], Any]
    network: Callable[[Any, Any], Any]
    data: Callable[[Any], Any]
    batch: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    evaluate: Callable[[Any, Any], dict[str, Any]]
    lines: Callable[[Any], Any]
    length: float
    frequency_unit: str
    cut: float


def noisy_wave(
    width: int = 32, points: int = 20, noise: float = 0.5, *, activation: Callable[[Any], Any] = jnp.tanh, name: str = "waves"
) -> Task:
    """Regression of a sine of two periods from noisy points.

    Its single line is the interval itself. The sine is on the second bin of it (one cycle per unit), a window smears that to
    the third, and "high" begins above the fourth: at twice the sine's frequency.

    Args:
        width: units of the two hidden layers.
        points: of training data, all in each batch.
        noise: its standard deviation; the sine's amplitude is 1.
        activation: of the hidden layers.
        name: what the task is called.
    """

    def network(params: Any, x: Array) -> Array:
        return wave_network(params, x, activation)

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        return mean_square(network(params, batch[0]), batch[1])

    def evaluate(params: Any, data: Any) -> dict[str, Array]:
        grid, train = wave_grid(), loss(params, (data.inputs, data.targets))
        test = mean_square(network(params, grid), clean_wave(grid))
        return {"train_loss": train, "test_loss": test, "memorized": 1 - train / mean_square(data.targets, data.clean)}

    return Task(
        name,
        points,
        lambda key: mlp_init(key, (1, width, width, 1)),
        network,
        lambda key: draw_waves(key, points, noise),
        lambda _key, data: (data.inputs, data.targets),
        loss,
        evaluate,
        lambda _data: wave_grid()[None],
        2.0,
        "cycles per unit of x",
        2.0,
    )


def noisy_relu_wave(width: int = 32, points: int = 20, noise: float = 0.5) -> Task:
    """The same with ReLU, whose networks are of degree one in their weights, but for the biases of all layers after the first.

    Args:
        width: units of the two hidden layers.
        points: of training data.
        noise: its standard deviation.
    """
    return noisy_wave(width, points, noise, activation=jax.nn.relu, name="relu_waves")


class _NoisyDigits(NamedTuple):
    images: Any
    labels: Any
    wrong: Any


def noisy_digits(width: int = 32, points: int = 128, noise: float = 0.3, batch_size: int = 32) -> Task:
    """Digits of which a share of the training labels is wrong; tested on the true labels of other images.

    A seed's training images are consecutive ones, from a place of its own, of the shuffled training split; its errors are its
    own too. All seeds share the 360 test images. What is learned is looked at along the lines between pairs of training images:
    a classifier of clean digits changes its mind about once on such a line, one that has memorized single images comes and
    goes, so the spectrum above three cycles per line is what memory costs (cf. N. Rahaman et al., "On the spectral bias of
    neural networks", ICML 2019, who look along such lines for the same reason: no grid fills 64 dimensions).

    Args:
        width: units of the hidden layer of ReLU.
        points: training images.
        noise: the share of wrong labels.
        batch_size: images in a minibatch.
    """
    found = load_digits()
    images, labels = jnp.asarray(found.train_images), jnp.asarray(found.train_labels)
    test = jnp.asarray(found.test_images), jnp.asarray(found.test_labels)
    lines, along = min(8, points // 2), jnp.asarray(np.arange(64) / 64, jnp.float32)

    def data(key: Any) -> _NoisyDigits:
        where, which, what = jax.random.split(key, 3)
        first = uniform_indices(where, (), len(found.train_labels))
        rows = (first + jnp.arange(points, dtype=jnp.int32)) % np.int32(len(found.train_labels))
        wrong = jax.random.uniform(which, (points,), jnp.float32) < np.float32(noise)
        other = np.int32(1) + uniform_indices(what, (points,), 9)
        true = labels.at[rows].get(mode="promise_in_bounds")
        given = jnp.where(wrong, (true + other) % np.int32(10), true)
        return _NoisyDigits(images.at[rows].get(mode="promise_in_bounds"), given, wrong)

    def batch(key: Any, data: _NoisyDigits) -> tuple[Array, Array]:
        rows = uniform_indices(key, (batch_size,), points)
        return data.images.at[rows].get(mode="promise_in_bounds"), data.labels.at[rows].get(mode="promise_in_bounds")

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        return cross_entropy(mlp_apply(params, batch[0]), batch[1])

    def evaluate(params: Any, data: _NoisyDigits) -> dict[str, Array]:
        logits = mlp_apply(params, data.images)
        learned = (jnp.argmax(logits, axis=-1) == data.labels) & data.wrong
        return {
            "train_loss": cross_entropy(logits, data.labels),
            "test_loss": cross_entropy(mlp_apply(params, test[0]), test[1]),
            "memorized": jnp.sum(learned.astype(jnp.float32)) / jnp.maximum(jnp.sum(data.wrong.astype(jnp.float32)), 1.0),
        }

    def between(data: _NoisyDigits) -> Array:
        start, end = data.images[:lines, None], data.images[lines : 2 * lines, None]
        return start + along[None, :, None] * (end - start)

    return Task(
        "digits",
        points,
        lambda key: mlp_init(key, (64, width, 10)),
        mlp_apply,
        data,
        batch,
        loss,
        evaluate,
        between,
        1.0,
        "cycles per line between two images",
        3.0,
    )


TASKS: dict[str, Callable[..., Task]] = {"waves": noisy_wave, "relu_waves": noisy_relu_wave, "digits": noisy_digits}
"""By name; called with the width of the hidden layers and, for other than the usual ones, the number of points."""

SHAPE_KEPT = ("digits",)
"""Where shrinking all weights by a only multiplies the function by a power of a and adds a constant: one hidden layer of
ReLU."""
