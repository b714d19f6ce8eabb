"""The deciding measurement: flat directions counted in a format, in real arithmetic, and in the format without stagnation.

Nets and planted worlds go through the same lines. What follows from the counts is `decision`'s.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from precisionlab.experiments.common.claiming import below
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import planted
from precisionlab.experiments.manifold.decision import REFERENCES, Decision, decide, shares
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.pushes import HOLD, REAL, TRAIN, pushed
from precisionlab.experiments.manifold.worlds import NETWORKS, World, joined, margins_at, networks
from precisionlab.numerics.modes import stochastic
from precisionlab.runs.results import Claim, Labelled

__all__ = ["BITS", "claims", "counted", "decisions", "measure", "measure_planted", "samples"]

BITS = 8
"""The bits at which the question is decided: bfloat16's."""


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    worlds: Sequence[str] = NETWORKS,
    dial: float = 9.0,
    bits: Sequence[int] = (5, BITS, 11),
    free_bits: Sequence[int] = (BITS,),
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count the flat directions of nets.

    Args:
        seeds: at least one.
        net: what is trained.
        worlds: of `worlds.NETWORKS`.
        dial: -log2(lr mu) where there is decay.
        bits: significand bits under nearest rounding; real arithmetic is counted beside them.
        free_bits: those under stochastic rounding.
        progress: called with a few words and the share that is done.

    Returns:
        Over (directions_world, directions_bits, directions_seed): `directions_flat` and `_rests`, the last of the bits being
        `REAL`; over (directions_world, directions_free_bits, directions_seed): `_free_flat` and `_free_rests`; over
        (directions_world, directions_bits, directions_seed, directions_index): `_kept`, `_curvature` and
        `_place`, as in `pushes.Pushed`. `_margin` over (directions_world, directions_bits, directions_seed): the least margin
        of a point there. `_lr` over (directions_world, directions_seed); `_size` is n, `_dial` the dial.

    Raises:
        ValueError: for no seeds, unknown worlds, or what makes no fit or format.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or not worlds or not set(worlds) <= set(NETWORKS):
        raise ValueError(
            f"directions: give at least one seed and worlds from {', '.join(NETWORKS)}; got {seeds}, {list(worlds)}."
        )
    made = networks(net, seeds, dial=dial)
    # Decay pulls within 2^dial steps; where it is stronger than by default, or none, the soft modes of a net need as long.
    longer = 2 ** max(0, math.ceil(dial - 9))
    chosen = {name: made[name] for name in worlds}
    found = counted("directions", chosen, seeds, bits, free_bits, TRAIN * longer, HOLD * longer, progress)
    axes = ("directions_world", "directions_bits", "directions_seed")
    places = found.arrays["directions_place"].values
    margins = np.stack([[margins_at(world, place) for place in at] for world, at in zip(chosen.values(), places, strict=True)])
    found = Measured(found.coords, {**found.arrays, "directions_margin": Labelled(axes, margins)})
    return Measured(found.coords, {**found.arrays, "directions_dial": Labelled((), np.array(float(dial)))})


def measure_planted(
    seeds: Iterable[int],
    *,
    bits: int = BITS,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count those of the planted worlds.

    Args:
        seeds: at least one.
        bits: of the format. What pulls weakly there does so within 2^(bits + 1) steps: descent takes 32 times as many, and a
            push has 8 times as many to come back.
        progress: called with a few words and the share that is done.

    Returns:
        As `measure`, under the name "planted".
    """
    seeds = [int(seed) for seed in seeds]
    return counted("planted", planted.worlds(seeds, bits), seeds, (bits,), (bits,), 64 * 2**bits, 16 * 2**bits, progress)


def counted(
    name: str,
    worlds: Mapping[str, World],
    seeds: Sequence[int],
    bits: Sequence[int],
    free_bits: Sequence[int],
    train: int,
    hold: int,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """The counts of any worlds of one shape, as arrays that begin with a name.

    Args:
        name: of the measurement.
        worlds: by name, of one loss and shape, with the same seeds.
        seeds: their numbers.
        bits: under nearest rounding, without `REAL`.
        free_bits: under stochastic rounding.
        train: steps of the descent.
        hold: steps in which a push has to come back.
        progress: called with a few words and the share that is done.

    Returns:
        The arrays that `measure` describes.
    """
    tell = progress or (lambda *_: None)
    groups = [[n for n, world in worlds.items() if world.trained is trained] for trained in (True, False)]
    parts: dict[str, list[Any]] = {"nearest": [], "free": []}
    for number, names in enumerate(group for group in groups if group):
        together = joined([worlds[n] for n in names])
        tell(name, 0.5 * number)
        # Side by side: each is one long loop of small operations, which keeps one core busy.
        with ThreadPoolExecutor(2) as pool:
            nearest = pool.submit(pushed, together, (*bits, REAL), train=train, hold=hold)
            free = pool.submit(pushed, together, tuple(free_bits), stochastic, train=train, hold=hold)
            parts["nearest"].append(nearest.result())
            parts["free"].append(free.result())
    names = [n for group in groups for n in group]
    order = [names.index(n) for n in worlds]

    def array(arm: str, field: str) -> np.ndarray:
        """(worlds, bits, seeds, ...)."""
        each = np.concatenate([getattr(part, field) for part in parts[arm]], axis=1)
        split = each.reshape(each.shape[0], len(names), len(seeds), *each.shape[2:])
        return np.moveaxis(split, 1, 0)[order]

    world, seed, at, free = (f"{name}_{axis}" for axis in ("world", "seed", "bits", "free_bits"))
    rates = np.stack([world.lr for world in worlds.values()])
    arrays = {
        f"{name}_flat": Labelled((world, at, seed), array("nearest", "flat")),
        f"{name}_rests": Labelled((world, at, seed), array("nearest", "rests")),
        f"{name}_kept": Labelled((world, at, seed, f"{name}_index"), array("nearest", "kept")),
        f"{name}_curvature": Labelled((world, at, seed, f"{name}_index"), array("nearest", "curvature")),
        f"{name}_place": Labelled((world, at, seed, f"{name}_index"), array("nearest", "place")),
        f"{name}_free_flat": Labelled((world, free, seed), array("free", "flat")),
        f"{name}_free_rests": Labelled((world, free, seed), array("free", "rests")),
        f"{name}_lr": Labelled((world, seed), rates),
        f"{name}_size": Labelled((), np.array(next(iter(worlds.values())).starts.shape[1])),
    }
    size = int(arrays[f"{name}_size"].values)
    coords = {world: list(worlds), at: [*bits, REAL], free: list(free_bits), seed: list(seeds)}
    tell(name, 1.0)
    return Measured({**coords, f"{name}_index": list(range(1, size + 1))}, arrays)


def samples(measured: Measured, name: str, world: str, bits: int) -> dict[str, np.ndarray]:
    """The shares of all seeds of a world at some bits, by what they are compared with; only those that were measured.

    Args:
        measured: from `measure` or `measure_planted`.
        name: "directions" or "planted".
        world: its name.
        bits: of the format.
    """
    of = {key.removeprefix(f"{name}_"): array.values for key, array in measured.arrays.items()}
    w = list(measured.coords[f"{name}_world"]).index(world)
    every, free = (list(measured.coords[f"{name}_{axis}"]) for axis in ("bits", "free_bits"))
    here = of["flat"][w, every.index(bits)], of["rests"][w, every.index(bits)]
    there = {REFERENCES[0]: (of["flat"][w, every.index(REAL)], of["rests"][w, every.index(REAL)])}
    if bits in free:
        there[REFERENCES[1]] = of["free_flat"][w, free.index(bits)], of["free_rests"][w, free.index(bits)]
    return {reference: shares(*here, *counts) for reference, counts in there.items()}


def decisions(parts: Mapping[str, Measured], name: str, bits: int) -> dict[str, Decision]:
    """What is concluded of every world, on all data together.

    Args:
        parts: by the words for its data (empty where there is but one), from `measure` or `measure_planted`.
        name: "directions" or "planted".
        bits: of the format.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for data, part in parts.items():
        for world in part.coords[f"{name}_world"]:
            for reference, values in samples(part, name, world, bits).items():
                found.setdefault(world, {})[f"{reference}{f', {data}' if data else ''}"] = values
    return {world: decide(world, compared) for world, compared in found.items()}


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What each side predicts of the shares, at every number of bits, beside what was measured.

    Args:
        measured: from `measure`.

    Returns:
        A claim for each world, bits and reference: geometry predicts that the share is 1, representation that it is 0. What it
        says is by the rule of `decision`. Of cross-entropy also that weights rest, at a constant step size, at margins where
        the computed loss is not yet zero (p ln 2, see `margins`): it is lost updates that stop them, and not underflow.
    """
    made = []
    for world in measured.coords["directions_world"]:
        for bits in measured.coords["directions_bits"][:-1]:
            for reference, values in samples(measured, "directions", world, bits).items():
                share = decide(world, {reference: values}).shares[reference]
                name = f"{world.replace('_', ' ')}, {bits} bits: share of flat directions that are flat {reference}"
                predicted = "geometry: 1; representation: 0"
                made.append(Claim(name, predicted, share.median, share.low, share.high, None, share.answer))
    if "cross_entropy" in measured.coords["directions_world"]:
        world = list(measured.coords["directions_world"]).index("cross_entropy")
        for at, bits in enumerate(measured.coords["directions_bits"][:-1]):
            name = f"cross entropy, {bits} bits: least margin where weights rest; the computed loss vanishes from p ln 2 on"
            made.append(below(name, measured.arrays["directions_margin"].values[world, at], round(bits * math.log(2.0), 2)))
    return tuple(made)
