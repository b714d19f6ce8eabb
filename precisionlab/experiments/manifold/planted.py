"""Worlds whose answer is known, put through the whole decision in every run: if it does not name each, the run is invalid.

All are one function of numbers. A pair of weights (x, y) may have a ring of minima, a weak term that leaves four of them, and a
bowl around a point:

    a (r^2 - 1)^2 / 4 + eps x^2 y^2 + q ((x - b)^2 s_x + (y - c)^2 s_y) / 2,    r^2 = x^2 + y^2

    manifold           rings alone: one direction of every pair is flat in real arithmetic                geometry
    format's ring      rings with a weak term of lr 2 eps = 2^-(p+1), which p bits cannot follow (`ring`) representation
    soft modes         bowls with one soft axis, lr lambda = 2^-(p+1), minima at single points            representation
    half and half      half of the pairs are the first, half the second                                   mixture
    nothing flat       round bowls                                                                        undecided
    untrained          the first, asked before any training                                               undecided

The last two are no manifolds of anybody's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from precisionlab.experiments.manifold.worlds import World

__all__ = ["EXPECTED", "PAIRS", "Pairs", "mixed", "pairs", "worlds"]

PAIRS = 6
LEARNING_RATE = 0.25

EXPECTED = {
    "manifold": "geometry",
    "format's ring": "representation",
    "soft modes": "representation",
    "half and half": "mixture",
    "nothing flat": "undecided",
    "untrained": "undecided",
}
"""What the decision has to say of each."""


class Pairs(NamedTuple):
    """The numbers of `pairs`, (pairs,): a, eps, q, and (pairs, 2): b and c, the shares of q in x and y."""

    ring: Any
    weak: Any
    bowl: Any
    centre: Any
    axes: Any


def pairs(theta: Any, data: Pairs) -> Any:
    """The loss of all pairs.

    Args:
        theta: (2 pairs,): x, y, x, y, ...
        data: its numbers.

    Example:
        >>> ring = Pairs(jnp.ones(1), jnp.full(1, 0.5), jnp.zeros(1), jnp.zeros((1, 2)), jnp.ones((1, 2)))
        >>> [round(float(pairs(jnp.array(at), ring)), 4) for at in ([0.6, 0.8], [0.0, 2.0])]
        [0.1152, 2.25]
    """
    places = theta.reshape(-1, 2)
    squares = jnp.square(places)
    rings = data.ring * jnp.square(jnp.sum(squares, axis=1) - 1) / 4 + data.weak * jnp.prod(squares, axis=1)
    bowls = 0.5 * data.bowl * jnp.sum(data.axes * jnp.square(places - data.centre), axis=1)
    return jnp.sum(rings + bowls)


def worlds(seeds: Sequence[int], bits: int = 8) -> dict[str, World]:
    """The planted worlds by name (`EXPECTED`), each seed with starts and centres of its own.

    Args:
        seeds: at least one.
        bits: of the format that they are made for.
    """
    made = {
        "manifold": mixed(seeds, 0, bits),
        "format's ring": mixed(seeds, PAIRS, bits),
        "soft modes": _bowls(seeds, _weakest(bits)),
        "half and half": mixed(seeds, PAIRS // 2, bits),
        "nothing flat": _bowls(seeds, 1.0),
    }
    away = made["manifold"]._replace(starts=2 * made["manifold"].starts, trained=False)
    return {**made, "untrained": away}


def _weakest(bits: int) -> float:
    """The curvature that p bits cannot follow: lr lambda = 2^-(p+1), a bit below what they surely lose."""
    return 2.0 ** -(bits + 1) / LEARNING_RATE


def mixed(seeds: Sequence[int], weak: int, bits: int = 8) -> World:
    """Rings, of which some are the format's: the share of its flat directions that is there in real arithmetic is 1 - weak / 6.

    Args:
        seeds: at least one.
        weak: pairs with the weak term, 0 to `PAIRS`.
        bits: of the format that cannot follow it.

    Raises:
        ValueError: for no seeds, or a number of pairs out of range.
    """
    if not len(seeds) or not 0 <= weak <= PAIRS:
        raise ValueError(f"mixed: give at least one seed and 0 to {PAIRS} pairs with the weak term; got {len(seeds)}, {weak}.")
    random = [np.random.default_rng([int(seed), 6]) for seed in seeds]
    # 10 to 43 degrees from one of the four: at 45 nothing drifts.
    away = np.stack([one.uniform(10.0, 43.0, PAIRS) * one.choice([-1.0, 1.0], PAIRS) for one in random])
    angles = np.deg2rad(away + 90.0 * np.stack([one.integers(0, 4, PAIRS) for one in random]))
    starts = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(seeds), -1)
    each = np.ones((len(seeds), PAIRS))
    data = Pairs(
        each,
        0.5 * _weakest(bits) * (each * np.arange(PAIRS) < weak),
        0 * each,
        np.zeros((*each.shape, 2)),
        np.ones((*each.shape, 2)),
    )
    return World(pairs, data, starts, np.full(len(seeds), LEARNING_RATE))


def _bowls(seeds: Sequence[int], softness: float) -> World:
    """Bowls of curvature 1 along x and softness along y, around points with coordinates of 0.6 to 0.9."""
    random = [np.random.default_rng([int(seed), 7]) for seed in seeds]
    centre = np.stack([one.uniform(0.6, 0.9, (PAIRS, 2)) for one in random])
    starts = centre + 0.1 * np.stack([one.choice([-1.0, 1.0], (PAIRS, 2)) for one in random])
    each = np.ones((len(seeds), PAIRS))
    axes = np.broadcast_to([1.0, softness], centre.shape)
    data = Pairs(0 * each, 0 * each, each, centre, axes)
    return World(pairs, data, starts.reshape(len(seeds), -1), np.full(len(seeds), LEARNING_RATE))
