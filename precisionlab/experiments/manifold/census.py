"""Row 1: the lattice census. How does the number of lattice points that fit the data grow with the bits of the lattice?

The net f(x) = w3 tanh(w1 x + w2) has three weights, few enough to look at every point of a lattice. With d data points that it
can fit, the minima form a manifold of dimension 3 - d, and the points with loss <= c h^2 are a tube around it, h the spacing:
their number grows as h^-(3 - d), so that its logarithm rises by 3 - d for each bit (derived in `landscape.lattice`). If
flatness were a matter of representation, the slope would be the same for every d.

Two lattices: fixed point, multiples of 2^-bits in [-2, 2); and floating point, significands of `bits` bits and exponents from
-3 to 0, where h is the spacing in the top binade, 2^(1 - bits). Seeds draw the inputs and a teacher; the targets are the
teacher's. The lattice gets finer with d: more data leave fewer points to count, and what disturbs their number dies out with
the spacing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import p_of_equal
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.common.requests import some_seeds
from precisionlab.landscape.lattice import census, fixed_axis, float_axis
from precisionlab.runs.inference import slopes, tost
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.summary import interval

__all__ = ["LATTICES", "MARGIN", "WEIGHTS", "example", "judge", "measure"]

WEIGHTS = 3
MARGIN = 0.15
"""How far a slope may be from its prediction and still count as equal."""

LATTICES = ("fixed", "floating")
_LEVELS = {1: (4, 5, 6), 2: (5, 6, 7, 8), 3: (6, 7, 8, 9)}
_REACH = 2.0  # the tube is |residuals| <= _REACH h: c = _REACH^2 / 2
_BOX = 2.0


def example(seed: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A teacher with weights of moderate size, and data that it explains.

    Args:
        seed: which.
        d: data points, 1 to 3.

    Returns:
        `(theta, inputs, targets)`: (3,), (d,), (d,) in float64; `loss(theta, inputs, targets)` is 0 to rounding.

    Example:
        >>> theta, inputs, targets = example(0, 2)
        >>> bool(_loss(inputs, targets, theta) < 1e-12)
        True
    """
    random = np.random.default_rng([seed, d])
    theta = random.uniform(0.8, 1.6, 3) * random.choice([-1.0, 1.0], 3) * np.array([1.0, 0.5, 1.0])
    inputs = random.permutation([-1.0, 0.0, 1.0])[:d] + random.uniform(-0.2, 0.2, d)
    return theta, inputs, theta[2] * np.tanh(theta[0] * inputs + theta[1])


def _loss(inputs: Any, targets: Any, theta: Any) -> Any:
    return 0.5 * jnp.sum(jnp.square(theta[2] * jnp.tanh(theta[0] * inputs + theta[1]) - targets))


def measure(
    seeds: Iterable[int],
    *,
    points: Sequence[int] = (1, 2, 3),
    coarser: int = 0,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count, for each seed, lattice, number of data points and bits.

    Args:
        seeds: at least one.
        points: the numbers of data points d, ascending, from 1 to 3.
        coarser: bits to take off every level, 0 to 2, for a quick look; one bit makes the census up to four times cheaper.
        progress: called with a few words and the share that is done.

    Returns:
        `census_count` over (seed, census_lattice, census_points, census_bits), NaN where nothing was counted.

    Raises:
        ValueError: if there is no seed, or a number is out of range.
    """
    seeds = some_seeds("census", seeds)
    if not len(points) or list(points) != sorted(set(points)) or not set(points) <= set(_LEVELS):
        raise ValueError(f"census: points are numbers of data, ascending, from {sorted(_LEVELS)}; got {list(points)}.")
    if coarser not in (0, 1, 2):
        raise ValueError(f"census: coarser must be 0, 1 or 2; got {coarser!r}.")
    bits = sorted({level - coarser for d in points for level in _LEVELS[d]})
    counts = np.full((len(seeds), len(LATTICES), len(points), len(bits)), np.nan)
    for s, seed in enumerate(seeds):
        for j, d in enumerate(points):
            for i, lattice in enumerate(LATTICES):
                for level in _LEVELS[d]:
                    counts[s, i, j, bits.index(level - coarser)] = _count(seed, d, lattice, level - coarser)
        if progress is not None:
            progress("lattice census", (s + 1) / len(seeds))
    coords = {"seed": seeds, "census_lattice": list(LATTICES), "census_points": list(points), "census_bits": bits}
    return Measured(coords, {"census_count": Labelled(tuple(coords), counts)})


def _count(seed: int, d: int, lattice: str, bits: int) -> int:
    _, inputs, targets = example(seed, d)
    if lattice == "fixed":
        axis, spacing = fixed_axis(-_BOX, _BOX, bits), 2.0**-bits
    else:
        axis, spacing = float_axis(bits, -3, 0), 2.0 ** (1 - bits)
    # In the box |w3| <= 2 and the slope of tanh is at most 1: a bound on the Frobenius norm of the Jacobian.
    slope_bound = float(np.sqrt(np.sum(_BOX**2 * (inputs**2 + 1) + 1)))
    with jax.enable_x64(True):
        loss = Partial(_loss, jnp.asarray(inputs), jnp.asarray(targets))
    threshold = 0.5 * (_REACH * spacing) ** 2
    return census(loss, [axis] * WEIGHTS, threshold, slope_bound=slope_bound, most_points=1 << 40).hits


def _slopes(measured: Measured) -> np.ndarray:
    """(seed, lattice, points): least squares over the bits that were counted. An empty census has no slope."""
    counts = measured.arrays["census_count"].values
    bits = np.asarray(measured.coords["census_bits"], np.float64)
    found = np.full(counts.shape[:3], np.nan)
    for j in range(counts.shape[2]):
        used = np.isfinite(counts[:, :, j]).any(axis=(0, 1))
        with np.errstate(divide="ignore"):
            logs = np.log2(counts[:, :, j][..., used])
        full = np.isfinite(logs).all(axis=-1)
        found[:, :, j][full] = slopes(bits[used], logs[full])
    return found


def judge(measured: Measured) -> tuple[Finding, ...]:
    """For each lattice and d: is the slope 3 - d (geometry); is it that of the least d (representation)?

    Args:
        measured: what `measure` returned.

    Returns:
        A finding for each lattice and number of points; representation predicts nothing of the first, which it takes for its
        measure.
    """
    found = _slopes(measured)
    points = [int(d) for d in measured.coords["census_points"]]
    findings = []
    for i, lattice in enumerate(measured.coords["census_lattice"]):
        for j, d in enumerate(points):
            samples, predicted = found[:, i, j], float(WEIGHTS - d)
            test = tost(samples, predicted, MARGIN)
            geometry = Claim(
                f"census on {lattice} point, d = {d}: log2 count rises with the bits by n - d",
                predicted,
                test.estimate,
                *interval(samples),
                test.equal,
            )
            representation, p = None, float("nan")
            if j:
                change = samples - found[:, i, 0]
                same = tost(change, 0.0, MARGIN)
                representation = Claim(
                    f"census on {lattice} point, d = {d}: it rises as it does for d = {points[0]}; the difference",
                    0.0,
                    same.estimate,
                    *interval(change),
                    same.equal,
                )
                # Whichever of the two claims fails: how likely the samples are if it were true, margin included.
                if same.equal is False:
                    p = p_of_equal(change, 0.0, MARGIN)
                elif test.equal is False:
                    p = p_of_equal(samples, predicted, MARGIN)
            findings.append(Finding(1, "square", geometry, representation, p))
    return tuple(findings)
