"""How often the decision gives which answer, where the answer is known: its operating characteristics, from simulation.

Many seeds of every planted world, and of rings of which a part is the format's, are counted once; then seeds are drawn from
them, some of them spoiled (a spoiled seed has no share, as if it had not come to rest), and the decision is asked what it makes
of those. A rule that said anything of worlds with nothing flat, or that fell to one bad seed, would show it here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from precisionlab.experiments.manifold import planted
from precisionlab.experiments.manifold.decision import decide
from precisionlab.experiments.manifold.directions import counted, samples
from precisionlab.experiments.manifold.worlds import World

__all__ = ["Characteristic", "operating_characteristics"]


class Characteristic(NamedTuple):
    """What the decision says of one world.

    Attributes:
        world: its name.
        expected: the right answer; empty between the bounds and where none is right.
        seeds: of a decision.
        spoiled: the chance of a seed to be spoiled.
        answers: the share of decisions with each answer that was given.
    """

    world: str
    expected: str
    seeds: int
    spoiled: float
    answers: dict[str, float]


def operating_characteristics(
    simulated: Iterable[int] = range(1000, 1032),
    *,
    seeds: Sequence[int] = (8, 16),
    spoiled: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    draws: int = 1000,
    bits: int = 8,
) -> list[Characteristic]:
    """Decide many times.

    Args:
        simulated: seeds that are counted once, others than those of a run; a minute for 32.
        seeds: how many a decision has.
        spoiled: chances of a seed to be spoiled.
        draws: decisions of each kind.
        bits: of the format.

    Returns:
        One for each world, number of seeds and chance.
    """
    numbers = [int(seed) for seed in simulated]
    shared = {f"{planted.PAIRS - weak} of {planted.PAIRS} real": planted.mixed(numbers, weak, bits) for weak in (1, 2, 4, 5)}
    worlds: dict[str, World] = {**planted.worlds(numbers, bits), **shared}
    measured = counted("planted", worlds, numbers, (bits,), (bits,), 64 * 2**bits, 16 * 2**bits)
    found = []
    for world in worlds:
        shares = samples(measured, "planted", world, bits)
        for count in seeds:
            for chance in spoiled:
                random = np.random.default_rng([count, int(100 * chance)])
                answers: Counter[str] = Counter()
                for _ in range(draws):
                    drawn, bad = random.integers(len(numbers), size=count), random.random(count) < chance
                    compared = {name: np.where(bad, np.nan, values[drawn]) for name, values in shares.items()}
                    answers[decide(world, compared).answer] += 1
                told = {answer: times / draws for answer, times in answers.most_common()}
                expected = planted.EXPECTED.get(world, "mixture")
                found.append(Characteristic(world, expected, count, chance, told))
    return found
