"""Inside the arithmetic: in how many directions is a resting place flat?

A world (`worlds`) is descended in one of three arithmetics:

    nearest       weights of p bits, rounded to nearest: small updates are lost
    stochastic    the same bits, and no update is lost on average: the format without stagnation
    real          float64

Then the weights are pushed along each direction, and the same descent goes on. A direction is *held* if the push comes back by
half or more within a stated number of steps, and *flat* if it does not. The directions are the eigenvectors of the Hessian at
the resting place (in float64, like all diagnostics): they only say where to push; what counts as flat is answered by the
arithmetic itself. Pushes go both ways, and what is left is half the difference of the two ends along the direction, so that
what the curvature of a manifold and a common drift add to both drops out.

A place is flat only if it is one: weights have to rest there. They rest if in the second half of the descent they moved less
than half as far as in the quarter before (or not visibly), and if all pushes together leave them where they were. Descent on
cross-entropy never rests in real arithmetic: its weights move on by the same distance in every octave of time, so that no
direction of theirs is flat, though pushes stay. Under stochastic rounding it is the mean over walkers that has to rest,
beyond what their spread makes of it.

Every number here can come out either way. A manifold of real arithmetic is flat in all three; one of the format in the first
alone; weights that were never trained rest in none, and nothing is said of them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.manifold.worlds import World
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import FLOAT64, ieee_format
from precisionlab.numerics.modes import Mode, nearest_even, stochastic
from precisionlab.training.steps import make_step, start

__all__ = ["HOLD", "PUSH", "REAL", "TRAIN", "WALKERS", "Pushed", "pushed"]

REAL = FLOAT64.precision
"""The significand bits that stand for real arithmetic."""
PUSH = 0.25
"""The length of a push; the weights of a trained net of 41 have a length of about 4."""
TRAIN = 65536
"""Steps of descent before the pushes."""
HOLD = 16384
"""Steps in which a push has to come back."""
WALKERS = 16
"""How many descend beside each other under stochastic rounding, where the mean of them has to rest."""
_CHUNK = 512
_GROUP = 8
_NARROW = 11  # bits that float32 has to spare
_PUSHES = 3
_VISIBLE = PUSH / 16
_STILL = PUSH / 2**12  # in a chunk: in all chunks that may be left, a hundredth of a push
_BEYOND_NOISE = 3.0


class Pushed(NamedTuple):
    """What became of the pushes, over (bits, seeds).

    Attributes:
        flat: the directions along which pushes stay.
        rests: whether the weights rest there.
        kept: (bits, seeds, n) what is left of each push: 1 if it stays, 0 if it came back; steepest direction first.
        curvature: (bits, seeds, n) the eigenvalues of the Hessian in these directions.
    """

    flat: np.ndarray
    rests: np.ndarray
    kept: np.ndarray
    curvature: np.ndarray


@in_float64
def pushed(
    world: World, bits: Sequence[int], mode: Mode = nearest_even, *, train: int = TRAIN, hold: int = HOLD, push: float = PUSH
) -> Pushed:
    """Descend, push along every direction, and see what comes back.

    Args:
        world: from `worlds.networks` or `planted`.
        bits: significand bits of the stored weights, with eight exponent bits; 53 is float64 itself, `REAL`.
        mode: `nearest_even`, or `stochastic`, which float64 cannot have.
        train: steps of the descent, a multiple of 4; a quarter of them under stochastic rounding.
        hold: steps in which a push has to come back.
        push: its length.

    Raises:
        ValueError: for no bits, or 53 of them with stochastic rounding.

    Example:
        >>> bowl = World(lambda theta, c: 0.5 * jnp.sum(c * theta**2), np.array([[1.0, 2.0**-12]]), np.ones((1, 2)), np.ones(1))
        >>> pushed(bowl, (8, 53), train=64, hold=16384).flat.tolist()     # the format cannot follow the soft direction
        [[1.0], [0.0]]
    """
    if not bits or (mode is stochastic and max(bits) >= REAL):
        raise ValueError(f"pushed: bits must be at least one, and below {REAL} under stochastic rounding; got {list(bits)}.")
    return Pushed(*(np.stack(parts) for parts in zip(*[_pushed(world, p, mode, train, hold, push) for p in bits], strict=True)))


def _pushed(world: World, bits: int, mode: Mode, train: int, hold: int, push: float) -> Pushed:
    """`pushed` with one number of bits."""
    walkers, n = WALKERS if mode is stochastic else 1, world.starts.shape[1]
    place = np.broadcast_to(world.starts[:, None], (len(world.starts), walkers, n))
    rests = np.ones(len(world.starts), bool)
    if world.trained:
        quarter = train // 16 if mode is stochastic else train // 4
        path = [place]
        for number, steps in enumerate((quarter, quarter, 2 * quarter)):
            path.append(_descended(world, path[-1], bits, mode, steps, number))
        place, rests = path[-1], _settles(*path[1:])
    place = np.ascontiguousarray(place[:, 0])
    values, vectors = np.linalg.eigh(_hessians(world.loss, place, world.data))
    curvature, directions = values[:, ::-1], np.swapaxes(vectors, -1, -2)[:, ::-1]
    moves = push * np.concatenate([directions, -directions], axis=1)
    ends = np.full(moves.shape, np.nan)
    asked = np.flatnonzero(rests)  # where weights do not rest, no direction is flat, whatever becomes of pushes
    if len(asked):
        ends[asked] = _descended(world.of(asked), (place[:, None] + moves)[asked], bits, mode, hold, _PUSHES)
    kept = np.einsum("skn,skn->sk", ends[:, :n] - ends[:, n:], directions) / (2 * push)
    drift = np.linalg.norm((ends - place[:, None]).mean(axis=1), axis=-1)
    return Pushed((kept > 0.5).sum(axis=-1).astype(np.float64), rests & (drift < push / 2), kept, curvature)


def _settles(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """(seeds,): whether the mean walker's way from second to third is short beside that from first to second."""

    def way(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = after - before
        noise = np.sqrt(moved.var(axis=1).sum(axis=-1) / moved.shape[1])
        return np.linalg.norm(moved.mean(axis=1), axis=-1), noise

    (before, _), (last, noise) = way(first, second), way(second, third)
    return np.asarray(last <= np.maximum(np.maximum(before / 2, _VISIBLE), _BEYOND_NOISE * noise))


def _descended(world: World, theta: np.ndarray, bits: int, mode: Mode, steps: int, number: int) -> np.ndarray:
    """Where theta (seeds, rows, n) is after some steps of descent.

    Without noise, seeds that move no more are not asked again: where a map without memory moved nothing it is at rest, or goes
    round and ends here again; and pushes need not be followed where all chunks that are left would not add up to anything.
    """
    # What a few bits store is computed in float32, as it is where such weights are trained; float64 is not rounded at all.
    dtype = np.float32 if bits <= _NARROW else np.float64
    fmt = None if bits >= REAL else ieee_format(8, bits - 1)
    rows = jnp.arange(theta.shape[0] * theta.shape[1]).reshape(theta.shape[:2])
    keys = jax.vmap(jax.vmap(lambda row: jax.random.fold_in(jax.random.key(number), row)))(rows)
    ends = np.array(_grounded(jnp.asarray(theta, dtype), fmt))
    moving, still = np.arange(len(ends)), _STILL if number == _PUSHES else 0.0
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


@partial(jax.jit, static_argnames="loss")
def _hessian(loss: Any, places: Any, data: Any) -> Any:
    return jax.vmap(jax.hessian(loss))(places, data)


def _hessians(loss: Any, places: np.ndarray, data: Any) -> np.ndarray:
    return np.asarray(_hessian(loss, places, data))
