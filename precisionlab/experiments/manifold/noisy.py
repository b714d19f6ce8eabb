"""Minibatch descent with noisy labels and weight decay, in many formats: what a net does once its loss is zero.

Each step takes one data point i, drawn anew, and a label that is off by e:

    w' = round(w - lr d (f_i(w) - y_i - e) grad f_i(w) - lr mu w)

d the number of points, so that without e and mu it is on average a step on 1/2 |residuals|^2. All formats see the same points
and the same noise. The rows of a sweep are worlds times seeds; a world is three numbers, `World`, so that all are one program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from precisionlab.arithmetic.policy import Policy
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode
from precisionlab.numerics.rounding import round_to
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import make_step, start

__all__ = ["Path", "World", "descend_noisily"]


class World(NamedTuple):
    """What acts on a net at its minimum.

    Attributes:
        gaussian: standard deviation of the labels' Gaussian noise, in the units of the labels.
        two_valued: size of their noise of two values, plus or minus that.
        decay: lr mu, the share of itself that a weight loses in a step.
    """

    gaussian: float = 0.0
    two_valued: float = 0.0
    decay: float = 0.0


class Path(NamedTuple):
    """Where the weights were.

    Attributes:
        theta: (looks + 1, formats, worlds, seeds, n) in float64, at the start, as it was stored, and at every look.
        squares: (worlds, seeds, steps) of the last format: the squared residual, noise included, of each step's point.
    """

    theta: np.ndarray
    squares: np.ndarray


@in_float64
def descend_noisily(
    residuals: Partial,
    starts: np.ndarray,
    lr: np.ndarray,
    worlds: Sequence[World],
    seeds: Sequence[int],
    formats: Sequence[Format],
    mode: Mode,
    *,
    steps: int,
    looks: int = 4,
) -> Path:
    """Descend from the starts in every world and format.

    Args:
        residuals: a `Partial` with leaves (seeds, points, ...), one residual for each point.
        starts: (seeds, n) weights, which are rounded to nearest to begin with.
        lr: (seeds,) step sizes.
        worlds: at least one.
        seeds: (seeds,) of points and noise.
        formats: of the stored weights, at least one.
        mode: how these are rounded.
        steps: a multiple of looks, at least one for each.
        looks: how often the weights are seen, evenly.

    Raises:
        ValueError: for steps that are no multiple of looks.

    Example:
        >>> from precisionlab import BFLOAT16, nearest_even
        >>> line = Partial(lambda data, w: w * data[:, 0] - 1.0, np.ones((1, 1, 1)))
        >>> made = [np.ones((1, 1)), np.array([0.25]), [World(), World(decay=2.0**-4)], [0], [BFLOAT16], nearest_even]
        >>> descend_noisily(line, *made, steps=8, looks=2).theta[:, 0, :, 0, 0].tolist()  # bfloat16, from 1
        [[1.0, 1.0], [1.0, 0.84375], [1.0, 0.80859375]]
    """
    if looks < 1 or steps < looks or steps % looks:
        raise ValueError(f"descend_noisily: steps must be a multiple of the {looks} looks; got {steps}.")
    points = jax.tree.leaves(residuals)[0].shape[1]
    optimizer = optax.sgd(1.0)  # the step size is in the loss: every seed has its own
    plain = make_step(_loss, optimizer, modes=mode, every=steps // looks, detail=False)

    def step(state: Any, drawn: Any, policy: Policy) -> Any:
        row, inner = state.optimizer
        after, record = plain(state._replace(optimizer=inner), (*row, *drawn), policy)
        return after._replace(optimizer=(row, after.optimizer)), record

    def draw(key: Any) -> Any:
        which, normal, sign = jax.random.split(key, 3)
        noise = jax.random.normal(normal, (), jnp.float64), jax.random.rademacher(sign, (), jnp.float64)
        return jax.random.randint(which, (), 0, points), jnp.stack(noise)

    rows = [np.tile(np.arange(len(seeds)), len(worlds)), np.repeat(np.asarray(worlds, np.float64), len(seeds), axis=0)]
    policies = [Policy(weights=fmt) for fmt in formats]
    begin = _beginning(residuals, np.asarray(starts, np.float64), lr, rows, seeds, optimizer)
    thetas = [np.stack([np.asarray(jax.jit(round_to)(jnp.asarray(starts), fmt)) for fmt in formats])[:, rows[0]]]
    squares = []
    for state, record in sweep_chunks(step, begin, draw, policies, range(len(rows[0])), steps=steps, chunk=steps // looks):
        thetas.append(np.asarray(state.params))
        squares.append(np.asarray(record.loss)[:, -1])
    shape = (len(worlds), len(seeds))
    theta = np.stack(thetas)
    return Path(theta.reshape(*theta.shape[:2], *shape, -1), np.moveaxis(np.concatenate(squares), 0, -1).reshape(*shape, -1))


def _loss(theta: Any, row: Any) -> Any:
    """Its value is the squared residual; its gradient lr times that of the loss (a step of one)."""
    data, lr, world, which, noise = row
    one = jax.tree.map(lambda leaf: leaf[which][None], data)
    points = jax.tree.leaves(data)[0].shape[0]
    residual = one(theta)[0] - jnp.dot(world[:2], noise)
    lost = 0.5 * lr * points * jnp.square(residual) + 0.5 * world[2] * jnp.sum(jnp.square(theta))
    return jax.lax.stop_gradient(jnp.square(residual) - lost) + lost


def _beginning(
    residuals: Partial, starts: np.ndarray, lr: np.ndarray, rows: Sequence[np.ndarray], seeds: Sequence[int], optimizer: Any
) -> Callable[[Any, Policy], Any]:
    """`begin` of a sweep whose seeds are the numbers of rows."""
    of_seed, world = rows

    def begin(key: Any, policy: Policy) -> Any:
        row = jax.random.key_data(key)[-1]  # a key made from a small number ends in it
        seed = jnp.asarray(of_seed)[row]
        data, theta, size, number = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[seed], (residuals, starts, np.asarray(lr, np.float64), np.asarray(seeds))
        )
        state = start(theta, optimizer, policy, key=jax.random.key(number))
        return state._replace(optimizer=((data, size, jnp.asarray(world)[row]), state.optimizer))

    return begin
