"""Descent of many weights of many seeds at once, in one arithmetic: float64, or a format with a way of rounding."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.manifold.worlds import World
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import FLOAT64, ieee_format
from precisionlab.numerics.modes import Mode, nearest_even
from precisionlab.training.steps import make_step, start

__all__ = ["REAL", "descended"]

REAL = FLOAT64.precision
"""The significand bits that stand for real arithmetic."""
_CHUNK = 512
_GROUP = 8
_NARROW = 11  # bits that float32 has to spare


@in_float64
def descended(
    world: World, theta: np.ndarray, bits: int, mode: Mode, steps: int, *, key: int = 0, still: float = 0.0
) -> np.ndarray:
    """Where weights are after some steps of descent.

    Args:
        world: of these seeds.
        theta: (seeds, rows, n) where they begin; rounded to the format first.
        bits: significand bits of the stored weights, with eight exponent bits; `REAL` is float64, not rounded at all.
        mode: how they are rounded.
        steps: how many.
        key: of stochastic rounding.
        still: without noise, seeds of which no weight moves farther than this in 512 steps are not followed any more. At 0
            nothing is lost: where a map without memory moved nothing it is at rest, or goes round and ends here again.

    Returns:
        (seeds, rows, n) float64.

    Example:
        >>> bowl = World(lambda theta, c: 0.5 * jnp.sum(c * theta**2), np.array([[2.0**-9]]), np.ones((1, 1)), np.ones(1))
        >>> [float(descended(bowl, np.ones((1, 1, 1)), bits, nearest_even, 1024)[0, 0, 0].round(3)) for bits in (8, REAL)]
        [1.0, 0.135]
    """
    # What a few bits store is computed in float32, as it is where such weights are trained; float64 is not rounded at all.
    dtype = np.float32 if bits <= _NARROW else np.float64
    fmt = None if bits >= REAL else ieee_format(8, bits - 1)
    rows = jnp.arange(theta.shape[0] * theta.shape[1]).reshape(theta.shape[:2])
    keys = jax.vmap(jax.vmap(lambda row: jax.random.fold_in(jax.random.key(key), row)))(rows)
    ends = np.array(_grounded(jnp.asarray(theta, dtype), fmt))
    moving = np.arange(len(ends))
    for done in range(0, steps, _CHUNK):
        # Whole groups of seeds, so that few programs are compiled: some that have come to rest are asked again.
        asked = np.resize(moving, _GROUP * math.ceil(len(moving) / _GROUP)) if len(ends) > _GROUP else np.arange(len(ends))
        part = world.of(asked)
        data = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), part.data)
        before = ends[asked]
        length = min(_CHUNK, steps - done)
        after = np.asarray(_advance(part.loss, mode, length, before, data, part.lr.astype(dtype), fmt, keys[asked], done))
        ends[asked] = after
        if mode is nearest_even:
            moved = np.abs(after - before).max(axis=(1, 2))
            moving = np.unique(asked[~(moved <= still)])
            if not len(moving):
                break
    return ends.astype(np.float64)


@partial(jax.jit, static_argnames="fmt")
def _grounded(theta: Any, fmt: Any) -> Any:
    """Theta on the grid of the format."""
    return start(theta, optax.sgd(1.0), Policy(weights=fmt)).params


@partial(jax.jit, static_argnames=("loss", "mode", "steps", "fmt"))
def _advance(loss: Any, mode: Mode, steps: int, theta: Any, data: Any, lr: Any, fmt: Any, keys: Any, done: Any) -> Any:
    descent = optax.sgd(1.0)
    step = make_step(lambda at, batch: batch[1] * loss(at, batch[0]), descent, modes=mode, every=2**30, detail=False)

    def one(at: Any, data: Any, lr: Any, key: Any) -> Any:
        state = start(at, descent, key=key)._replace(step=jnp.int32(done))
        return jax.lax.fori_loop(0, steps, lambda _, now: step(now, (data, lr), Policy(weights=fmt))[0], state).params

    return jax.vmap(jax.vmap(one, (0, None, None, 0)))(theta, data, lr, keys)
