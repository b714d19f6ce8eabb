"""Stochastic rounding as a probe: in how many directions do walkers still spread?

Many copies of a net go on from where it came to rest, in the same format, each with random bits of its own. What rounding adds
is without preference, and no update is lost on average, so that along a held direction they spread as far as the pull allows,
and along a flat one like Brownian motion: their variance at 4 T is that at T in the first case and four times that in the
second. A direction counts as flat if it is more than twice. T must be long enough for the pulls in question (1 / (lr lambda),
or with decay 1 / (lr mu)), and short enough for walkers not to go round the bends of a manifold, where what is flat at one
place is held at another: with 8 bits and T = 1,024 two or three of the five held directions pass for flat, with T = 4,096 all.
Where a bowl is so steep that hardly anything is left to be rounded, a few rare steps are all the spread there is, and one
direction in ten passes for flat.

In real arithmetic n - d r directions are flat, one fewer for each data point, whatever the bits, and none with decay. If
flatness came from lost updates alone there would be none without them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from precisionlab.experiments.common.claiming import equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.descent import descended
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.worlds import World, networks
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Claim, Labelled

__all__ = ["claims", "measure", "spreading"]

WALKERS = 64
_TWICE = 2.0
_MARGIN = 2.0  # directions: what 64 walkers and the bends of the manifold leave uncertain
_SLOPE = 0.35


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(hidden=10),
    points: Sequence[int] = (2, 4, 6, 8),
    bits: Sequence[int] = (8, 11),
    dial: float = 9.0,
    time: int = 256,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count the directions in which walkers spread, against the number of data points and the bits, and with decay.

    Args:
        seeds: at least one.
        net: what is trained, with more units than points.
        points: numbers of data points d that it gets, ascending, at least two.
        bits: significand bits of the stored weights.
        dial: -log2(lr mu) with decay.
        time: T in steps without decay; with it, T is 8 / (lr mu).
        progress: called with a few words and the share that is done.

    Returns:
        `walkers_flat` over (walkers_points, walkers_bits, walkers_seed); `walkers_decayed` over (walkers_bits, walkers_seed),
        at the last but one number of points; `walkers_size` is n.

    Raises:
        ValueError: for no seeds, fewer than two numbers of points, or what makes no fit.
    """
    seeds, points = [int(seed) for seed in seeds], [int(d) for d in points]
    if not seeds or len(points) < 2 or points != sorted(set(points)):
        raise ValueError(f"walkers: give at least one seed and two ascending numbers of points; got {seeds}, {points}.")
    tell = progress or (lambda *_: None)
    flat = np.empty((len(points), len(bits), len(seeds)))
    decayed, n = np.empty((len(bits), len(seeds))), 0
    for i, d in enumerate(points):
        worlds = networks(replace(net, points=d), seeds, dial=dial)
        n = worlds["square"].starts.shape[1]
        for k, p in enumerate(bits):
            flat[i, k] = spreading(worlds["square"], p, time)
            tell("walkers", (i + (k + 1) / len(bits)) / (len(points) + 1))
        if i == len(points) - 2:
            decayed[:] = [spreading(worlds["square_with_decay"], p, int(8 * 2**dial)) for p in bits]
    arrays = {
        "walkers_flat": Labelled(("walkers_points", "walkers_bits", "walkers_seed"), flat),
        "walkers_decayed": Labelled(("walkers_bits", "walkers_seed"), decayed),
        "walkers_size": Labelled((), np.array(n)),
    }
    return Measured({"walkers_seed": seeds, "walkers_points": points, "walkers_bits": list(bits)}, arrays)


@in_float64
def spreading(world: World, bits: int, time: int, *, train: int = 16384) -> np.ndarray:
    """The directions in which the variance of walkers more than doubles between T and 4 T.

    Args:
        world: from `worlds` or `planted`.
        bits: significand bits of the stored weights.
        time: T, in steps.
        train: steps of descent to nearest before, and at most as many with stochastic rounding.

    Returns:
        (seeds,).
    """
    place = descended(world, world.starts[:, None], bits, nearest_even, train)
    # On to where stochastic rounding rests: lost updates had stopped the weights on the way.
    place = descended(world, place, bits, stochastic, min(train, 4 * time), key=1)
    with jax.enable_x64(True):
        hessians = np.asarray(jax.vmap(jax.hessian(world.loss))(place[:, 0], world.data))
    vectors = np.linalg.eigh(hessians)[1]
    walk = np.repeat(place, WALKERS, axis=1)
    first = descended(world, walk, bits, stochastic, time, key=2)
    last = descended(world, first, bits, stochastic, 3 * time, key=3)
    early, late = (np.einsum("swn,snk->swk", end - place, vectors).var(axis=1) for end in (first, last))
    return (late > _TWICE * early).sum(axis=-1).astype(np.float64)


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What each side predicts of the count, beside it.

    Args:
        measured: from `measure`.

    Returns:
        For each number of bits: the count at each number of points (geometry: n - d; representation: none, as no update is
        lost), how it changes with each point, and the count with decay, where both predict none.
    """
    n, points = int(measured.arrays["walkers_size"].values), measured.coords["walkers_points"]
    made = []
    for k, p in enumerate(measured.coords["walkers_bits"]):
        counts = measured.arrays["walkers_flat"].values[:, k]
        for d, samples in zip(points, counts, strict=True):
            name = f"walkers, {p} bits, d = {d}: directions in which they still spread"
            made.append(_between(name, samples, float(n - d), _MARGIN))
        made.append(
            _between(f"walkers, {p} bits: change of the count with each data point", slopes(points, counts.T), -1.0, _SLOPE)
        )
        name = f"walkers, {p} bits, with decay: directions in which they still spread"
        made.append(equal(name, measured.arrays["walkers_decayed"].values[k], 0.0, _MARGIN))
    return tuple(made)


def _between(name: str, samples: np.ndarray, geometry: float, margin: float) -> Claim:
    here, there = equal(name, samples, geometry, margin), equal(name, samples, 0.0, margin)
    says = (
        "geometry" if here.held else "representation" if there.held else "neither" if here.held is there.held is False else ""
    )
    predicted = f"geometry: {geometry:g}; representation: 0"
    return here._replace(predicted=predicted, held=None, says=says or "undecided")
