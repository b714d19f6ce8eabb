"""A noisy sine: the smallest problem that can be overfitted, with a known right answer.

y = sin(pi cycles x) + noise, x in [-1, 1]: the clean function has exactly one frequency, so whatever a network puts above it
was learned from the noise. Places are drawn one in each of `points` equal cells, which leaves no wide gaps for a network to do
as it pleases in. `evaluate` compares with the clean function: its test loss is the excess risk, without the noise that nothing
can predict.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.problems.base import Problem, whole
from precisionlab.problems.networks import layer_sizes, mlp_apply, mlp_init

__all__ = ["WavesData", "clean_wave", "draw_waves", "waves"]

_GRID = 256
_REACH = 4.0  # of the input that the first layer sees: weights of the usual size then make features of the width of a period


class WavesData(NamedTuple):
    """Noisy points of the sine.

    Attributes:
        inputs: (points, 1) float32, rising, from -1 to 1.
        targets: (points, 1) float32.
        clean: (points, 1) float32, the targets without their noise.
    """

    inputs: Any
    targets: Any
    clean: Any


def clean_wave(x: Float[Array, "..."], cycles: float = 2.0) -> Float[Array, "..."]:
    """sin(pi cycles x): `cycles` full periods over [-1, 1].

    Example:
        >>> round(float(clean_wave(jnp.float32(0.25))), 6)
        1.0
    """
    return jnp.sin(x * jnp.asarray(math.pi * cycles, x.dtype))


def draw_waves(key: PRNGKeyArray, points: int = 20, noise: float = 0.5, cycles: float = 2.0) -> WavesData:
    """A data set; jittable, so that each seed of a sweep can have its own.

    Args:
        key: a JAX random key.
        points: how many.
        noise: standard deviation of the Gaussian noise; the sine's amplitude is 1.
        cycles: periods over [-1, 1].

    Example:
        >>> draw_waves(jax.random.key(0), points=8).inputs.shape
        (8, 1)
    """
    places, errors = jax.random.split(key)
    cells = jnp.arange(points, dtype=jnp.float32) + jax.random.uniform(places, (points,), jnp.float32)
    inputs = (cells * np.float32(2 / points) - np.float32(1))[:, None]
    clean = clean_wave(inputs, cycles)
    return WavesData(inputs, clean + np.float32(noise) * jax.random.normal(errors, (points, 1), jnp.float32), clean)


def wave_network(
    params: dict[str, Any], x: Float[Array, "batch 1"], activation: Callable[[Any], Any] = jnp.tanh
) -> Float[Array, "batch 1"]:
    """The network of `waves`: a multilayer perceptron of 4 x, in the dtype of its parameters."""
    return mlp_apply(params, x * np.asarray(_REACH, x.dtype), activation)


def waves(
    sizes: Sequence[int] = (1, 32, 32, 1),
    points: int = 20,
    noise: float = 0.5,
    cycles: float = 2.0,
    data_seed: int = 0,
    activation: Callable[[Any], Any] = jnp.tanh,
) -> Problem:
    """Regression of a noisy sine by a multilayer perceptron that can learn the noise too.

    A batch is all of the data, `(inputs, targets)`. Metrics: `train_loss`, the mean square against the noisy targets, and
    `test_loss`, that against the clean sine on a grid.

    Args:
        sizes: units of each layer; the first and the last must be 1.
        points: of data.
        noise: standard deviation of the noise, 0 or more.
        cycles: periods over [-1, 1], above 0.
        data_seed: which data.
        activation: applied between the layers.

    Raises:
        ValueError: if a number makes no sense.

    Example:
        >>> problem = waves()
        >>> params = problem.init(jax.random.key(0))
        >>> problem.loss(params, problem.batch(jax.random.key(1))).shape, sorted(problem.evaluate(params))
        ((), ['test_loss', 'train_loss'])
    """
    sizes = layer_sizes(sizes)
    if (sizes[0], sizes[-1]) != (1, 1):
        raise ValueError(f"waves: sizes must begin and end with 1; got {sizes}.")
    points, data_seed = whole("waves: points", points, 2), whole("waves: data_seed", data_seed, 0)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"waves: noise must be a finite number of at least 0; got {noise}.")
    if not (math.isfinite(cycles) and cycles > 0):
        raise ValueError(f"waves: cycles must be a positive finite number; got {cycles}.")
    data = draw_waves(jax.random.key(data_seed), points, noise, cycles)
    train, grid = (data.inputs, data.targets), wave_grid()

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        return mean_square(wave_network(params, batch[0], activation), batch[1])

    def evaluate(params: Any) -> dict[str, Array]:
        learned = wave_network(params, grid, activation)
        return {"train_loss": loss(params, train), "test_loss": mean_square(learned, clean_wave(grid, cycles))}

    return Problem("waves", lambda key: mlp_init(key, sizes), loss, lambda _key: train, evaluate, train)


def wave_grid(points: int = _GRID) -> Float[Array, "points 1"]:
    """Even places from -1 up to, and without, 1."""
    return (jnp.arange(points, dtype=jnp.float32) * np.float32(2 / points) - np.float32(1))[:, None]


@jax.named_scope("loss")
def mean_square(outputs: Array, targets: Array) -> Array:
    """The mean square of a difference, in the dtype of the outputs."""
    return jnp.mean(jnp.square(outputs - targets.astype(outputs.dtype)))
