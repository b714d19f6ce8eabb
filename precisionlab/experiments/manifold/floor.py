"""Row 8: the loss that a format leaves.

Along a mode of curvature lambda the updates die when lr lambda delta, spread over the weights, is below half a gap: at delta ~
2^-p |w| / (lr lambda), so at a loss lambda delta^2 / 2 ~ 2^-2p. That holds where the format saw the mode at the start,

    lr lambda delta_0 > 2^-p |w|,    delta_0 = distance / sqrt(d r),

for every mode of the row space; with fewer bits some are never touched, and the loss falls more slowly with p. The slope is
therefore taken over the formats that see them all, for each seed, and over the arms that lost nine tenths of their updates at
the end (a few seeds keep a weight near zero, where the lattice is fine, creeping on for longer than one would wait).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from precisionlab.experiments.common.claiming import equal
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.common.requests import some_seeds
from precisionlab.experiments.manifold.arms import train_arms
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import float_arms, residuals_of, setting
from precisionlab.landscape import jacobian_spectrum
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Labelled

__all__ = ["PRECISIONS", "judge", "measure", "saw_and_stagnated"]

PRECISIONS = (8, 10, 12, 14, 16, 18, 20, 22, 24)
_SLOPE = 0.15
_LOST = 0.9


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    precisions: Sequence[int] = PRECISIONS,
    distance: float = 0.5,
    steps: int = 32768,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Descend in many formats to where updates end.

    Args:
        seeds: at least one.
        net: what is trained.
        precisions: significand bits, with eight exponent bits.
        distance: of the start from the minimum.
        steps: at most.
        progress: called with a few words and the share that is done.

    Returns:
        Over (floor_precision, seed): `floor_loss`, and `floor_lost`, the share of the last updates that were. Over (seed):
        `floor_seen_from`, the bits beyond which a format sees every mode at the start.

    Raises:
        ValueError: for no seeds, or what makes no fit or format.
    """
    seeds = some_seeds("floor", seeds)
    given = setting(net, seeds, distance=distance)
    found = train_arms(given, float_arms(precisions), steps=steps)
    spectra = [jacobian_spectrum(residuals_of(given.residuals, seed), given.minima[seed]) for seed in range(len(seeds))]
    softest = np.array([spectrum.values.min() ** 2 for spectrum in spectra])
    with np.errstate(divide="ignore"):
        seen = np.log2(np.linalg.norm(given.minima, axis=1) * np.sqrt(given.constraints) / (given.lr * softest * distance))
    if progress is not None:
        progress("floor", 1.0)
    axes = ("floor_precision", "seed")
    arrays = {
        "floor_loss": Labelled(axes, found.loss),
        "floor_lost": Labelled(axes, found.lost),
        "floor_seen_from": Labelled(("seed",), seen),
    }
    return Measured({"seed": seeds, "floor_precision": list(precisions)}, arrays)


def judge(measured: Measured) -> tuple[Finding, ...]:
    """How does the loss fall with the bits? Representation predicts nothing of it.

    Args:
        measured: what `measure` returned.
    """
    found = _floor_slopes(measured)
    known = np.isfinite(found)
    # Which seeds have a slope is decided by where their start is seen, not by what came of it; with less than half it is open.
    seeds = f"{known.sum()} of {len(found)}"
    sloped = found[known] if 2 * known.sum() >= len(found) else found
    name = f"log2 of the loss that a format leaves, for each bit ({seeds} seeds)"
    return (Finding(8, "square", equal(name, sloped, -2.0, _SLOPE), None, float("nan")),)


def saw_and_stagnated(measured: Measured) -> np.ndarray:
    """Whether a format saw every mode at the start and lost nine tenths of the updates at the end.

    Args:
        measured: what `measure` returned.

    Returns:
        (floor precisions, seeds) booleans.
    """
    bits = np.asarray(measured.coords["floor_precision"], np.float64)
    saw = bits[:, None] > measured.arrays["floor_seen_from"].values
    return saw & (measured.arrays["floor_lost"].values >= _LOST)


def _floor_slopes(measured: Measured) -> np.ndarray:
    """(seeds,) over the formats that see every mode and stagnated; NaN for fewer than three."""
    arrays, found = measured.arrays, np.full(len(measured.coords["seed"]), np.nan)
    bits = np.asarray(measured.coords["floor_precision"], np.float64)
    loss = arrays["floor_loss"].values
    for seed, saw in enumerate(saw_and_stagnated(measured).T):
        used = saw & (loss[:, seed] > 0)
        if used.sum() >= 3:
            found[seed] = slopes(bits[used], np.log2(loss[used, seed]))
    return found
