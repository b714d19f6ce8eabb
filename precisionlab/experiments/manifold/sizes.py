"""How many directions does a format see in a net of thousands of weights, when the data become many?

With d points and r outputs real arithmetic holds min(d r, n) of n directions: curvature lambda > 0, however small. A format of
p bits sees a direction where one step at a distance comparable to the weights changes them,

    seen at p bits  =  n - N_p  =  #{i : lr lambda_i > 2^-p}        (`landscape.flatness`).

*Geometry* says that what is held is min(d r, n), whatever p: it grows with d one for one, and as n is swept through d r the
flat directions n - min(d r, n) have a kink there. *Representation* says that it is a function of p and lr, and asks neither for
d nor for where n passes d r. Each is right somewhere, and the counts say where: at lr = 1 / lambda_1 (the largest power of two
below it, `wide.largest_lr`) the spectrum of real images falls so fast that a few dozen of a thousand directions lie above 2^-8.

Since lr lambda alone is compared with 2^-p, 64 times smaller steps cost six bits: the count at p bits and lr / 64 is that at p
- 6 bits and lr. In `seen` that is algebra; `answered` counts by pushes and real rounding (`answers`) and need not have known.

Three nets: n = 66 x 128 + 1 = 8,449 for the spectra, taken at random weights and at the zero of the loss that is nearest; n =
4,225 for pushes and training; and nets of three inputs and d = 20, whose width passes through n = d, at random weights, to
which the targets are fitted: so that there is a zero on either side. What the two explanations predict of the training:
geometry, as many directions reduced as by float64 in the same steps; representation, as many as are seen.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from precisionlab.experiments.common.claiming import equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.requests import some_seeds
from precisionlab.experiments.manifold.answers import ROUNDINGS
from precisionlab.experiments.manifold.counts import (
    SLOWER,
    SWEPT_HIDDEN,
    by_push,
    by_spectrum,
    by_training,
    swept_fit,
    through_n,
)
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Claim, Labelled

__all__ = ["QUICK", "claims", "kinks", "measure", "up_to"]

QUICK: dict[str, Any] = {
    "points": (5, 20, 100, 300), "hidden": 64, "bits": (8, 14, 53), "pushed": (50, 100), "trained": (),
    "swept_hidden": (1, 3, 4, 6, 8),
}  # fmt: skip
"""Arguments of `measure` for a run of some seconds, without training."""

_PUSHED, _TRAINED = (20, 100, 300, 1000), (100, 300, 1000)

_SLOPE = 0.15
_RATIO = 0.15
_MANY = 100  # points from which on slopes against d are taken: fewer than a format can see are all seen


def up_to(images: int) -> dict[str, Any]:
    """Arguments of `measure` for nets that are pushed and trained on at most so many images.

    Example:
        >>> up_to(300)
        {'pushed': (20, 100, 300), 'trained': (100, 300)}
    """
    counts = {"pushed": _PUSHED, "trained": _TRAINED}
    return {name: tuple(count for count in each if count <= images) for name, each in counts.items()}


def measure(
    seeds: Iterable[int],
    *,
    points: Sequence[int] = (5, 20, 50, 100, 200, 500, 1500),
    hidden: int = 128,
    bits: Sequence[int] = (8, 11, 14, 24, 53),
    pushed: Sequence[int] = (20, 100, 300),
    trained: Sequence[int] = (100, 300),
    pushed_hidden: int = 64,
    batch_size: int = 32,
    trained_bits: Sequence[int] = (8, 11, 53),
    steps: int = 1024,
    swept_bits: Sequence[int] = (8, 53),
    swept_hidden: Sequence[int] = SWEPT_HIDDEN,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count the directions that formats see, answer and reduce, on digits.

    Args:
        seeds: at least one; each draws images and first weights of its own.
        points: numbers of images d for the spectra, ascending, at most 1,797; at least two.
        hidden: units of that net; n = 66 hidden + 1.
        bits: significand bits p of the counts, 53 for float64; 8 exponent bits where weights are rounded.
        pushed: numbers of images of the nets that are pushed, ascending; at least two.
        trained: numbers of images of those that are trained, ascending; nothing is trained where there are none.
        pushed_hidden: units of both.
        batch_size: of the minibatches.
        trained_bits: significand bits of the training; 53 must be among them, as what real arithmetic does.
        steps: of the training.
        swept_bits: significand bits for the sweep of n through d = 20.
        swept_hidden: units of its nets, n = 5 units + 1; two or more with n up to 20, and two with 20 to 41.
        progress: called with a few words and the share that is done.

    Returns:
        Over seed last and, before it, these axes:

        `sizes_seen` (sizes_place, sizes_points, sizes_slower, sizes_bits): n - N_p, at random weights ("start") and at the zero
        of the loss ("zero"); `sizes_rms` (sizes_points), the root mean square of the residuals there. `sizes_answered`,
        `sizes_wrong` (sizes_pushed, sizes_slower, sizes_bits): directions whose pushes are answered, and those answered the
        wrong way by as much; `sizes_pushed_seen`, the closed form for the same nets; `sizes_moved`, `sizes_moved_null`: the
        share of the directions with and without curvature along which any weight moves; `sizes_rests` whether none does without
        a push. `sizes_reduced`, `sizes_lost` (sizes_batch, sizes_rounding, sizes_trained, sizes_trained_bits): directions that
        training reduced, and the share of updates lost in its last step. `sizes_swept_seen`, `sizes_swept_answered`
        (sizes_swept, sizes_swept_bits), of n weights. Scalars `sizes_n`, `sizes_pushed_n`, `sizes_swept_points`.

    Raises:
        ValueError: for no seeds, numbers that do not ascend, or what makes no net or format.
    """
    seeds = some_seeds("sizes", seeds)
    for name, given in (
        ("points", points),
        ("bits", bits),
        ("pushed", pushed),
        ("swept_bits", swept_bits),
        ("swept_hidden", swept_hidden),
    ):
        if len(given) < 2 or list(given) != sorted(set(given)):
            raise ValueError(f"sizes: {name} are whole numbers, ascending, at least two; got {list(given)}.")
    if 53 not in trained_bits:
        raise ValueError(f"sizes: trained_bits must hold 53, the training of real arithmetic; got {list(trained_bits)}.")
    tell = progress or (lambda *_: None)
    arrays: dict[str, Labelled] = {}
    for share, name, work in (
        (0.4, "pushes", lambda: by_push(seeds, pushed, pushed_hidden, bits)),
        (0.6, "training", lambda: by_training(seeds, trained, pushed_hidden, trained_bits, batch_size, steps)),
        (0.7, "n through d", lambda: through_n(seeds, swept_bits, swept_hidden)),
        (1.0, "spectra", lambda: by_spectrum(seeds, points, hidden, bits)),
    ):
        arrays |= {f"sizes_{key}": value for key, value in work().items()}
        tell(f"sizes: {name}", share)
    coords = {
        "sizes_seed": seeds,
        "sizes_place": ["start", "zero"],
        "sizes_points": list(points),
        "sizes_slower": list(SLOWER),
        "sizes_bits": list(bits),
        "sizes_pushed": list(pushed),
        "sizes_trained": list(trained),
        "sizes_batch": ["all", f"{batch_size}"],
        "sizes_rounding": list(ROUNDINGS),
        "sizes_trained_bits": list(trained_bits),
        "sizes_swept": [swept_fit(0, units).n for units in swept_hidden],
        "sizes_swept_bits": list(swept_bits),
    }
    return Measured(coords, arrays)


def kinks(flat: np.ndarray, weights: Sequence[int], points: int) -> np.ndarray:
    """How much steeper the flat directions grow with n from n = d r to 2 d r than below d r.

    Args:
        flat: (weights, ...) numbers of flat directions.
        weights: the numbers n, ascending; two or more on either side.
        points: d r.

    Returns:
        (...) differences of slopes; 1 where the flat directions are n - min(d r, n).

    Example:
        >>> kinks(np.array([0.0, 0.0, 0.0, 4.0, 8.0]), [4, 8, 12, 16, 20], 12).round(12).tolist()
        1.0
    """
    n = np.asarray(weights, np.float64)
    below, above = n <= points, (n >= points) & (n <= 2 * points + 1)
    columns = np.moveaxis(flat, 0, -1)
    return np.asarray(slopes(n[above], columns[..., above]) - slopes(n[below], columns[..., below]))


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What each explanation predicts of the counts, beside what they are.

    Args:
        measured: what `measure` returned.

    Returns:
        Claims whose names begin with the side whose prediction it is, at the fewest and at the most bits. Pushes answered are
        those answered the right way less those answered the wrong way, which chance does as often.
    """
    arrays = {name.removeprefix("sizes_"): array.values for name, array in measured.arrays.items()}
    coords = {name.removeprefix("sizes_"): list(labels) for name, labels in measured.coords.items()}
    answered = arrays["answered"] - arrays["wrong"]  # chance answers the right way as often as the wrong way
    n, pushed_n = int(arrays["n"]), int(arrays["pushed_n"])
    told: list[Claim] = []
    for which in (0, -1):
        p = coords["bits"][which]
        for what, points, counts in (
            (f"directions seen, n = {n:,}", coords["points"], arrays["seen"][1, :, 0, which]),
            (f"pushes answered, n = {pushed_n:,}", coords["pushed"], answered[:, 0, which]),
        ):
            far, found = _growth(points, counts)
            told += _both_sides(
                f"{p} bits, largest lr, d = {far[0]} to {far[-1]}: power of d in the {what}", found, 1.0, 0.0, _SLOPE
            )
    for which in (0, -1):
        p, weights, d = coords["swept_bits"][which], coords["swept"], int(arrays["swept_points"])
        for what in ("seen", "answered"):
            flat = np.asarray(weights, np.float64)[:, None] - arrays[f"swept_{what}"][:, which]
            name = f"{p} bits, directions not {what}: kink of their number where n passes d r = {d}"
            told += _both_sides(name, kinks(flat, weights, d), 1.0, 0.0, 2 * _SLOPE)
    told += _of_rates(coords, answered)
    return (*told, *_of_training(coords, arrays["reduced"])) if coords["trained"] else tuple(told)


def _growth(points: Sequence[int], counts: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The power of d with which counts (points, seeds) grow, and over which points."""
    start = min(int(np.searchsorted(points, _MANY)), len(points) - 2)
    return list(points[start:]), slopes(np.log2(points[start:]), np.log2(np.maximum(counts[start:], 1)).T)


def _both_sides(name: str, found: np.ndarray, geometry: float, representation: float, margin: float) -> list[Claim]:
    sides = (("geometry", geometry), ("representation", representation))
    return [equal(f"{side}: {name}", found, told, margin) for side, told in sides]


def _of_rates(coords: dict[str, list[Any]], answered: np.ndarray) -> list[Claim]:
    """That 64 times smaller steps cost six bits; of the widest p - 6 and p that were measured."""
    told = []
    shift = round(np.log2(SLOWER[1] / SLOWER[0]))
    for p in coords["bits"]:
        if p - shift in coords["bits"] and p < 53:
            fine, coarse = (answered[-1, i, coords["bits"].index(q)] for i, q in ((1, p), (0, p - shift)))
            d = coords["pushed"][-1]
            name = f"pushes answered at {p} bits and lr / {SLOWER[1]}, of those at {p - shift} bits and lr (d = {d})"
            told.append(equal(f"representation: {name}", fine / np.maximum(coarse, 1), 1.0, _RATIO))
    return told


def _of_training(coords: dict[str, list[Any]], reduced: np.ndarray) -> list[Claim]:
    """The share of the directions that float64 reduces which training with the fewest bits reduces too, at the most points."""
    told = []
    bits, d = coords["trained_bits"], coords["trained"][-1]
    for b, batch in enumerate(coords["batch"]):
        for i, rounding in enumerate(coords["rounding"]):
            exact = np.maximum(reduced[b, i, -1, bits.index(53)], 1)
            words = f"{'full batch' if batch == 'all' else f'minibatches of {batch}'}, {rounding}, {bits[0]} bits, d = {d}"
            name = f"geometry: directions reduced by training, of those that float64 reduces ({words})"
            told.append(equal(name, reduced[b, i, -1, 0] / exact, 1.0, _RATIO))
    return told
