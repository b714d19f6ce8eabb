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

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from precisionlab.experiments.manifold.descent import REAL, descended
from precisionlab.experiments.manifold.worlds import World
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.modes import Mode, nearest_even, stochastic

__all__ = ["HOLD", "PUSH", "REAL", "TRAIN", "WALKERS", "Pushed", "pushed"]

PUSH = 0.25
"""The length of a push; the weights of a trained net of 41 have a length of about 4."""
TRAIN = 65536
"""Steps of descent before the pushes."""
HOLD = 16384
"""Steps in which a push has to come back."""
WALKERS = 16
"""How many descend beside each other under stochastic rounding, where the mean of them has to rest."""
_PUSHES = 3  # the key of their noise, after those of the descent
_VISIBLE = PUSH / 16
_STILL = PUSH / 2**12  # in 512 steps: in all that may be left, a hundredth of a push
_BEYOND_NOISE = 3.0


class Pushed(NamedTuple):
    """What became of the pushes, over (bits, seeds).

    Attributes:
        flat: the directions along which pushes stay.
        rests: whether the weights rest there.
        kept: (bits, seeds, n) what is left of each push: 1 if it stays, 0 if it came back; steepest direction first.
        curvature: (bits, seeds, n) the eigenvalues of the Hessian in these directions.
        place: (bits, seeds, n) where they were pushed.
    """

    flat: np.ndarray
    rests: np.ndarray
    kept: np.ndarray
    curvature: np.ndarray
    place: np.ndarray


@in_float64
def pushed(
    world: World, bits: Sequence[int], mode: Mode = nearest_even, *, train: int = TRAIN, hold: int = HOLD, push: float = PUSH
) -> Pushed:
    """Descend, push along every direction, and see what comes back.

    Args:
        world: from `worlds.networks` or `planted`.
        bits: significand bits of the stored weights, with eight exponent bits; 53 is float64 itself, `REAL`.
        mode: `nearest_even`, or `stochastic`, which float64 cannot have.
        train: steps of the descent, a multiple of 4.
        hold: steps in which a push has to come back.
        push: its length.

    Raises:
        ValueError: for no bits, or 53 of them with stochastic rounding.

    Example:
        >>> bowl = World(lambda theta, c: 0.5 * (c * theta**2).sum(), np.array([[1.0, 2.0**-12]]), np.ones((1, 2)), np.ones(1))
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
        quarter = train // 4
        path = [place]
        for number, steps in enumerate((quarter, quarter, 2 * quarter)):
            path.append(descended(world, path[-1], bits, mode, steps, key=number))
        place, rests = path[-1], _settles(*path[1:])
    place = np.ascontiguousarray(place[:, 0])
    values, vectors = np.linalg.eigh(_hessians(world.loss, place, world.data))
    curvature, directions = values[:, ::-1], np.swapaxes(vectors, -1, -2)[:, ::-1]
    moves = push * np.concatenate([directions, -directions], axis=1)
    ends = np.full(moves.shape, np.nan)
    asked = np.flatnonzero(rests)  # where weights do not rest, no direction is flat, whatever becomes of pushes
    if len(asked):
        pushes = (place[:, None] + moves)[asked]
        ends[asked] = descended(world.of(asked), pushes, bits, mode, hold, key=_PUSHES, still=_STILL)
    kept = np.einsum("skn,skn->sk", ends[:, :n] - ends[:, n:], directions) / (2 * push)
    drift = np.linalg.norm((ends - place[:, None]).mean(axis=1), axis=-1)
    return Pushed((kept > 0.5).sum(axis=-1).astype(np.float64), rests & (drift < push / 2), kept, curvature, place)


def _settles(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """(seeds,): whether the mean walker's way from second to third is short beside that from first to second."""

    def way(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = after - before
        noise = np.sqrt(moved.var(axis=1).sum(axis=-1) / moved.shape[1])
        return np.linalg.norm(moved.mean(axis=1), axis=-1), noise

    (before, _), (last, noise) = way(first, second), way(second, third)
    return np.asarray(last <= np.maximum(np.maximum(before / 2, _VISIBLE), _BEYOND_NOISE * noise))


@partial(jax.jit, static_argnames="loss")
def _hessian(loss: Any, places: Any, data: Any) -> Any:
    return jax.vmap(jax.hessian(loss))(places, data)


def _hessians(loss: Any, places: np.ndarray, data: Any) -> np.ndarray:
    return np.asarray(_hessian(loss, places, data))
