"""From how many bits on does weight decay move weights along the manifold that the data leave?

With decay the minima of the square loss are isolated, and from a zero of the loss descent goes along the old manifold towards
one of them. Each step pulls a weight by lr mu of itself, and nearest rounding loses that below p = -log2(lr mu), the dial, in
every weight; at p equal to it, only powers of two stay; so the end is predicted to a bit, without any constant to fit. How far
weights of p bits go, relative to float64, in the null space of J at the start, is 0 below it and most of the way above.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from precisionlab.experiments.common.claiming import estimate
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.descent import REAL, descended
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import residuals_of, setting
from precisionlab.experiments.manifold.worlds import networks, predicted_bits
from precisionlab.landscape import split_spaces
from precisionlab.numerics.modes import nearest_even
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.seeds import median_interval

__all__ = ["DIALS", "claims", "measure"]

DIALS = (7, 10)
_OFFSETS = (-2, -1, 0, 1, 2, 4)
_HALF = 0.5
_WITHIN = 1.0


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    dials: Sequence[int] = DIALS,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Descend from zeros of the square loss under decay, with bits around each dial.

    Args:
        seeds: at least one.
        net: what is trained.
        dials: -log2(lr mu), whole numbers from 5.
        progress: called with a few words and the share that is done.

    Returns:
        `decay_motion` over (decay_dial, decay_offset, seed): motion along the old manifold in 1 / (lr mu) steps, relative to
        float64's, with dial + offset bits. `decay_end` over (decay_dial, seed): the fewest bits from which on it is half or
        more; infinite if none.

    Raises:
        ValueError: for no seeds, or a dial out of range.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or not dials or min(dials) < 5 or max(dials) > 20:
        raise ValueError(f"decay: give at least one seed, and dials from 5 to 20; got {seeds}, {list(dials)}.")
    given = setting(net, seeds)
    null = [split_spaces(residuals_of(given.residuals, s), given.minima[s]).null for s in range(len(seeds))]
    motion = np.empty((len(dials), len(_OFFSETS), len(seeds)))
    for i, dial in enumerate(dials):
        world = networks(net, seeds, dial=dial)["square_with_decay"]
        lengths = []
        for bits in (REAL, *(dial + offset for offset in _OFFSETS)):
            # From where rounding puts the start itself, so that only what descent does counts.
            begun = descended(world, given.minima[:, None], bits, nearest_even, 0)
            moved = (descended(world, begun, bits, nearest_even, 2**dial) - begun)[:, 0]
            lengths.append([np.linalg.norm(vectors.T @ way) for vectors, way in zip(null, moved, strict=True)])
        motion[i] = np.array(lengths[1:]) / np.array(lengths[0])
        if progress is not None:
            progress("decay", (i + 1) / len(dials))
    lasting = np.logical_and.accumulate((motion >= _HALF)[:, ::-1], axis=1)[:, ::-1]
    ends = np.array(dials)[:, None] + np.array(_OFFSETS)[np.argmax(lasting, axis=1)]
    arrays = {
        "decay_motion": Labelled(("decay_dial", "decay_offset", "seed"), motion),
        "decay_end": Labelled(("decay_dial", "seed"), np.where(lasting.any(axis=1), ends, np.inf)),
    }
    return Measured({"seed": seeds, "decay_dial": list(dials), "decay_offset": list(_OFFSETS)}, arrays)


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Predicted bits beside measured bits.

    Args:
        measured: from `measure`.

    Returns:
        For each dial: the fewest bits that go half of float64's way, within one of the prediction where the interval of its
        median is; and the motion a bit below (representation: 0; geometry, whose motion asks for no bits: 1).
    """
    made = []
    offsets = list(measured.coords["decay_offset"])
    for i, dial in enumerate(measured.coords["decay_dial"]):
        ends, bits = measured.arrays["decay_end"].values[i], predicted_bits(dial)
        low, high = median_interval(ends, 0.9)
        # Of fewer than five seeds there is no interval, and nothing is decided.
        within = None if np.isnan(low) else bool(abs(low - bits) <= _WITHIN and abs(high - bits) <= _WITHIN)
        name = f"decay of lr mu = 2^-{dial}: bits from which on weights go half of float64's way"
        made.append(Claim(name, bits, float(np.median(ends)), low, high, within))
        motion = measured.arrays["decay_motion"].values[i, offsets.index(-1)]
        name = f"decay of lr mu = 2^-{dial}, {dial - 1} bits: motion along the old manifold beside float64's"
        mean, low, high = estimate(motion)
        says = "representation" if high < 0.1 else "geometry" if low > 0.9 else "neither"
        made.append(Claim(name, "geometry: 1; representation: 0", mean, low, high, None, says))
    return tuple(made)
