"""Rows 7 and 8: what does the dimension of the minima depend on: the data, or the format?

Every arm descends in its format, and from where it ends Levenberg and Marquardt's method goes on to a zero of the loss nearby.
Its nullity there is n minus the rank of J. In real arithmetic it is n - d r: with every data point it falls by r, and no
format changes it. If representation made it, it would grow as bits are taken away, and not ask how many data there are.

The loss that a format leaves. Along a mode of curvature lambda the updates die when lr lambda delta, spread over the weights,
is below half a gap: at delta ~ 2^-p |w| / (lr lambda), so at a loss lambda delta^2 / 2 ~ 2^-2p. That holds where the format
saw the mode at the start,

    lr lambda delta_0 > 2^-p |w|,    delta_0 = distance / sqrt(d r),

for every mode of the row space; with fewer bits some are never touched, and the loss falls more slowly with p. The slope is
therefore taken over the formats that see them all, for each seed, and over the arms that lost nine tenths of their updates at
the end (a few seeds keep a weight near zero, where the lattice is fine, creeping on for longer than one would wait).

What a format adds are soft modes: N_p - (n - d r) with N_p = #{i: lr lambda_i <= 2^-p} at the zero of the loss
(`landscape.flatness`). N_p depends on p through lr alone: with half the step size it is N_(p - 1).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import against, agreement, equal, finding
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.manifold.arms import train_arms
from precisionlab.experiments.manifold.settings import (
    EXPONENTS,
    PRECISIONS,
    Setting,
    exact_minima,
    float_arms,
    make_fits,
    residuals_of,
    setting,
)
from precisionlab.landscape import jacobian_spectrum, rank
from precisionlab.landscape.flatness import flat_dimension, representational_share
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Labelled
from precisionlab.runs.summary import interval

__all__ = ["FLOOR_PRECISIONS", "flat_counts", "judge", "measure", "saw_and_stagnated", "shares"]

FLOOR_PRECISIONS = (8, 10, 12, 14, 16, 18, 20, 22, 24)
_SLOPE = 0.15
_LOST = 0.9


def measure(
    seeds: Iterable[int],
    *,
    data: str = "generic",
    points: Sequence[int] = (2, 3, 4, 5, 6),
    outputs: int = 1,
    inputs: int = 3,
    hidden: int = 8,
    activation: str = "tanh",
    precisions: Sequence[int] = PRECISIONS,
    exponents: Sequence[int] = EXPONENTS,
    floor_precisions: Sequence[int] = FLOOR_PRECISIONS,
    bits: int = 8,
    distance: float = 0.5,
    steps: int = 32768,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Take the nullity for each number of points, and for each format at the last but one number of points.

    Args:
        seeds: at least one.
        data: "generic" or "digits".
        points: numbers of data points d, ascending, at least two; of one seed the fewer are the first of the more.
        outputs: r.
        inputs: coordinates of a point.
        hidden: units of the one hidden layer.
        activation: see `problems.fitting`.
        precisions: significand bits, crossed with `exponents`.
        exponents: exponent bits.
        floor_precisions: significand bits for the loss that formats leave, with eight exponent bits.
        bits: the format in which d varies, with eight exponent bits.
        distance: of the start from the minimum.
        steps: at most, for the loss that formats leave; a quarter of it elsewhere.
        progress: called with a few words and the share that is done.

    Returns:
        `dimension_by_points` over (dimension_points, seed), and the same by N_p, `dimension_flat_by_points`. Over
        (dimension_precision, dimension_exponent, seed): `dimension_nullity`, NaN where no zero was reached. Over
        (dimension_precision, seed, dimension_index): `dimension_eigenvalues` of J^T J that are not zero, at the zeros reached
        in the widest range. Over (dimension_floor_precision, seed): `dimension_loss`, `dimension_lost`; over seed
        `dimension_seen_from`, the bits that see every mode. Scalars `dimension_size`, `dimension_constraints`,
        `dimension_outputs`, `dimension_lr`.

    Raises:
        ValueError: for no seeds, points that do not ascend, or what makes no fit or format.
    """
    seeds = [int(seed) for seed in seeds]
    if len(points) < 2 or list(points) != sorted(set(points)):
        raise ValueError(f"dimension: points are numbers of data, ascending, at least two; got {list(points)}.")
    tell = progress or (lambda *_: None)
    sizes = {"r": outputs, "inputs": inputs, "hidden": hidden, "activation": activation}
    nullities, flat = _by_points(seeds, data, points, sizes, bits, distance, steps // 4)
    tell("dimension: by points", 0.4)

    given = setting(make_fits(data, seeds, d=points[-2], **sizes), seeds, distance=distance)
    formats = float_arms(precisions, exponents)
    ends = train_arms(given, formats, steps=steps // 4)
    minima = exact_minima(given.residuals, ends.theta)
    spectra = [jacobian_spectrum(residuals_of(given.residuals, s), minima.theta[:, s]) for s in range(len(seeds))]
    ranks = np.stack([rank(spectrum) for spectrum in spectra], axis=1)
    grid = (len(precisions), len(exponents), len(seeds))
    nullity = np.where(minima.reached, given.n - ranks, np.nan).reshape(grid)
    values = np.stack([spectrum.values**2 for spectrum in spectra], axis=1)
    values = values.reshape(*grid, -1)[:, int(np.argmax(exponents))]
    tell("dimension: by format", 0.6)

    floor = train_arms(given, float_arms(floor_precisions), steps=steps)
    softest = np.array([spectrum.values.min() ** 2 for spectrum in (_at(given, s) for s in range(len(seeds)))])
    with np.errstate(divide="ignore"):
        seen = np.log2(np.linalg.norm(given.minima, axis=1) * np.sqrt(given.constraints) / (given.lr * softest * distance))
    tell("dimension: loss", 1.0)
    by_format = ("dimension_precision", "dimension_exponent", "seed")
    by_floor = ("dimension_floor_precision", "seed")
    arrays = {
        "dimension_by_points": Labelled(("dimension_points", "seed"), nullities),
        "dimension_flat_by_points": Labelled(("dimension_points", "seed"), flat),
        "dimension_nullity": Labelled(by_format, nullity),
        "dimension_eigenvalues": Labelled(("dimension_precision", "seed", "dimension_index"), values),
        "dimension_loss": Labelled(by_floor, floor.loss),
        "dimension_lost": Labelled(by_floor, floor.lost),
        "dimension_seen_from": Labelled(("seed",), seen),
        "dimension_size": Labelled((), np.array(given.n)),
        "dimension_constraints": Labelled((), np.array(given.constraints)),
        "dimension_outputs": Labelled((), np.array(outputs)),
        "dimension_lr": Labelled(("seed",), given.lr),
    }
    coords = {
        "seed": seeds,
        "dimension_points": list(points),
        "dimension_precision": list(precisions),
        "dimension_exponent": list(exponents),
        "dimension_floor_precision": list(floor_precisions),
        "dimension_index": list(range(1, values.shape[-1] + 1)),
    }
    return Measured(coords, arrays)


def _at(given: Setting, seed: int) -> Any:
    return jacobian_spectrum(residuals_of(given.residuals, seed), given.minima[seed])


def _by_points(
    seeds: Sequence[int], data: str, points: Sequence[int], sizes: dict[str, Any], bits: int, distance: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nullities and N_p over (points, seeds), in one sweep: the first d points count, residuals of others are zero."""
    fits = [fit for _ in points for fit in make_fits(data, seeds, d=points[-1], **sizes)]
    masks = [np.repeat(np.arange(points[-1]) < d, sizes["r"]).astype(np.float64) for d in points for _ in seeds]
    counted = [
        fit._replace(residuals_at=Partial(_counted, mask, fit.residuals_at)) for fit, mask in zip(fits, masks, strict=True)
    ]
    given = setting(counted, [*seeds] * len(points), distance=distance)
    ends = train_arms(given, float_arms((bits,)), steps=steps)
    minima = exact_minima(given.residuals, ends.theta)
    nullities, flat = np.empty(len(masks)), np.empty(len(masks))
    for row in range(len(masks)):
        spectrum = jacobian_spectrum(residuals_of(given.residuals, row), minima.theta[0, row])
        nullities[row] = given.n - rank(spectrum) if minima.reached[0, row] else np.nan
        values = np.append(spectrum.values**2, np.zeros(max(0, given.n - spectrum.values.size)))
        flat[row] = flat_dimension(values, bits, given.lr[row])
    return nullities.reshape(len(points), -1), flat.reshape(len(points), -1)


def _counted(mask: Any, residuals: Any, theta: Any) -> Any:
    return mask * residuals(theta)


def shares(measured: Measured) -> dict[str, tuple[float, float, float]]:
    """The flat directions that each precision adds to n - d r: mean, and the ends of its interval over the seeds.

    Args:
        measured: what `measure` returned.
    """
    _, added = flat_counts(measured)
    bits = measured.coords["dimension_precision"]
    return {f"{p} bits": (float(row.mean()), *interval(row)) for p, row in zip(bits, added, strict=True)}


def flat_counts(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """N_p and its representational share, each with the spectrum that its own format led to.

    Args:
        measured: what `measure` returned.

    Returns:
        Both over (precision, seeds).
    """
    arrays = measured.arrays
    values, n = arrays["dimension_eigenvalues"].values, int(arrays["dimension_size"].values)
    lr, constraints = arrays["dimension_lr"].values, int(arrays["dimension_constraints"].values)
    full = np.concatenate([values, np.zeros((*values.shape[:2], n - values.shape[2]))], axis=-1)
    # The law knows lr lambda alone, so each seed's own lr may go with its eigenvalues.
    pairs = list(zip(lr[:, None] * full, measured.coords["dimension_precision"], strict=True))
    return (
        np.stack([flat_dimension(rows, p, 1.0) for rows, p in pairs]),
        np.stack([representational_share(rows, p, 1.0, constraints) for rows, p in pairs]),
    )


def judge(measured: Measured) -> tuple[Finding, ...]:
    """Does the nullity follow the data, and not the format; how does the loss fall with the bits?

    Args:
        measured: what `measure` returned.

    Returns:
        A finding of row 7; one of row 8 on the dimension, and one on the loss, of which representation predicts nothing.
    """
    arrays = {name.removeprefix("dimension_"): array.values for name, array in measured.arrays.items()}
    outputs, n, constraints = int(arrays["outputs"]), int(arrays["size"]), int(arrays["constraints"])
    points = np.asarray(measured.coords["dimension_points"])
    expected = n - outputs * points[:, None]
    one_for_one = (arrays["by_points"] == expected).all(axis=0)
    flat = (arrays["by_points"] == arrays["by_points"][:1]).all(axis=0)
    nullity, bits = arrays["nullity"], np.asarray(measured.coords["dimension_precision"])
    same = (nullity == n - constraints).all(axis=(0, 1))
    grows = (nullity[bits.argmin()] > nullity[bits.argmax()]).any(axis=0)
    found = _floor_slopes(measured)
    known = np.isfinite(found)
    # Which seeds have a slope is decided by where their start is seen, not by what came of it; with less than half it is open.
    seeds = f"{known.sum()} of {len(found)}"
    sloped = found[known] if 2 * known.sum() >= len(found) else found
    return (
        finding(
            7,
            agreement(f"with every data point the nullity falls by r = {outputs}, from n - r d", one_for_one),
            agreement("the nullity is the same for every number of points", flat),
            against(one_for_one),
            against(flat),
        ),
        finding(
            8,
            agreement(f"nullity n - d r = {n - constraints} whatever the precision and the range", same),
            agreement("the nullity is larger with the fewest bits than with the most", grows),
            against(same),
            against(grows),
        ),
        Finding(
            8,
            "square",
            equal(f"log2 of the loss that a format leaves, for each bit ({seeds} seeds)", sloped, -2.0, _SLOPE),
            None,
            float("nan"),
        ),
    )


def saw_and_stagnated(measured: Measured) -> np.ndarray:
    """Whether a format saw every mode at the start and lost nine tenths of the updates at the end.

    Args:
        measured: what `measure` returned.

    Returns:
        (floor precisions, seeds) booleans.
    """
    bits = np.asarray(measured.coords["dimension_floor_precision"], np.float64)
    saw = bits[:, None] > measured.arrays["dimension_seen_from"].values
    return saw & (measured.arrays["dimension_lost"].values >= _LOST)


def _floor_slopes(measured: Measured) -> np.ndarray:
    """(seeds,) over the formats that see every mode and stagnated; NaN for fewer than three."""
    arrays, found = measured.arrays, np.full(len(measured.coords["seed"]), np.nan)
    bits = np.asarray(measured.coords["dimension_floor_precision"], np.float64)
    loss = arrays["dimension_loss"].values
    for seed, saw in enumerate(saw_and_stagnated(measured).T):
        used = saw & (loss[:, seed] > 0)
        if used.sum() >= 3:
            found[seed] = slopes(bits[used], np.log2(loss[used, seed]))
    return found
