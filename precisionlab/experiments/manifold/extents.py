"""Row 2: the extent of the frozen set. How far from a minimum does no weight move, and how does that change with the bits?

At a minimum of the net f(x) = w3 tanh(w1 x + w2) on d data points, the set of weights that one step of gradient descent leaves
where they are has some width in each direction. With d < 3 the minima form a manifold, and with each bit of the lattice the
width falls by a factor of 2 along a normal direction, and of sqrt(2) along a straight tangent, because the manifold curves away
from it (derived in `landscape.extents`): slopes -1 and -1/2. If flatness were a matter of representation, it would be -1 in
every direction. With more points than weights there is an isolated minimum of positive loss: then both say -1, everywhere.
(Along the manifold itself the width is that of the manifold at any number of bits: a walk there in float64 finds it without any
format, so that it is not among what is measured.)

The tangent is the one along which the manifold curves most. A saddle-shaped manifold also has asymptotic directions, in which
the second derivative vanishes and the third takes over (slope -1/3); at a random tangent that happens to be near one, the slope
is in between.

Two lattices: fixed point of spacing h = 2^-bits, and floats of `bits` bits, whose gap is that of each weight's binade.
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
from precisionlab.landscape.extents import extents_along_line
from precisionlab.landscape.minima import reach_minimum
from precisionlab.landscape.spaces import split_spaces
from precisionlab.numerics.formats import Format
from precisionlab.runs.inference import slopes, tost
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.summary import interval

__all__ = ["DIRECTIONS", "LATTICES", "MARGIN", "example", "judge", "measure"]

MARGIN = 0.05
"""How far a slope may be from its prediction and still count as equal."""

LATTICES = ("fixed", "floating")
DIRECTIONS = {"normal": -1.0, "straight tangent": -0.5}
"""The directions, and the slope that geometry predicts for each."""

_BITS = (10, 13, 16, 19, 22, 25)
_LR = 0.1
_LONGEST = 1.0
_ISOLATED = 8  # data points of the under-parameterized net
_NOISE = 0.05


def example(seed: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A teacher, inputs, and targets: the teacher's, with noise where there are more points than the net can fit.

    Args:
        seed: which.
        d: data points, at least 1.

    Returns:
        `(theta, inputs, targets)`: (3,), (d,), (d,) in float64.

    Example:
        >>> theta, inputs, targets = example(0, 2)
        >>> bool(abs(_residuals(inputs, targets, theta)).max() < 1e-6)
        True
    """
    random = np.random.default_rng([seed, d, 2])
    theta = random.uniform(0.8, 1.6, 3) * random.choice([-1.0, 1.0], 3) * np.array([1.0, 0.5, 1.0])
    inputs = random.permutation(np.linspace(-1.5, 1.5, max(d, 3)))[:d] + random.uniform(-0.2, 0.2, d)
    noise = random.normal(0.0, _NOISE, d) if d > 3 else 0.0
    return theta, inputs, theta[2] * np.tanh(theta[0] * inputs + theta[1]) + noise


def _residuals(inputs: Any, targets: Any, theta: Any) -> Any:
    return theta[2] * jnp.tanh(theta[0] * inputs + theta[1]) - targets


def _loss(inputs: Any, targets: Any, theta: Any) -> Any:
    return 0.5 * jnp.sum(jnp.square(_residuals(inputs, targets, theta)))


def measure(
    seeds: Iterable[int],
    *,
    points: Sequence[int] = (1, 2),
    bits: Sequence[int] = _BITS,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Extents of the frozen set around minima, in units of distance between weights.

    Args:
        seeds: at least one.
        points: numbers of data points d, 1 or 2: fewer than weights.
        bits: of the lattices, at least two, from 8 to 30; fewer reach beyond the minimum's neighbourhood, more into the
            rounding of float64.
        progress: called with a few words and the share that is done.

    Returns:
        `extents_length` and `extents_censored` over (seed, extents_points, extents_direction, extents_lattice, extents_bits),
        and `extents_isolated` over (seed, extents_eigenvector, extents_lattice, extents_bits): along the eigenvectors of the
        Hessian at the isolated minimum for 8 points, the stiffest first. A minimum that was not reached leaves NaN.

    Raises:
        ValueError: if there is no seed, or a number is out of range.
    """
    seeds, bits = some_seeds("extents", seeds), [int(b) for b in bits]
    if not len(points) or not set(points) <= {1, 2}:
        raise ValueError(f"extents: points are 1, 2 or both, fewer than the three weights; got {list(points)}.")
    if len(set(bits)) < 2 or not all(8 <= b <= 30 for b in bits):
        raise ValueError(f"extents: bits are at least two whole numbers from 8 to 30; got {bits}.")
    shape = (len(LATTICES), len(bits))
    length = np.full((len(seeds), len(points), len(DIRECTIONS), *shape), np.nan)
    censored = np.zeros(length.shape, bool)
    isolated = np.full((len(seeds), 3, *shape), np.nan)
    grids = [2.0**-b for b in bits] + [Format(b, -126, 2.0**127, np.inf) for b in bits]
    for s, seed in enumerate(seeds):
        for j, d in enumerate(points):
            for k, found in enumerate(_around_manifold(seed, d, grids)):
                length[s, j, k], censored[s, j, k] = found.length.reshape(shape), found.censored.reshape(shape)
        for k, found in enumerate(_around_point(seed, grids)):
            isolated[s, k] = found.length.reshape(shape)
        if progress is not None:
            progress("frozen extents", (s + 1) / len(seeds))
    lattice = {"extents_lattice": list(LATTICES), "extents_bits": bits}
    one = {"seed": seeds, "extents_points": list(points), "extents_direction": list(DIRECTIONS), **lattice}
    other = {"seed": seeds, "extents_eigenvector": ["stiffest", "middle", "softest"], **lattice}
    arrays = {
        "extents_length": Labelled(tuple(one), length),
        "extents_censored": Labelled(tuple(one), censored),
        "extents_isolated": Labelled(tuple(other), isolated),
    }
    return Measured(one | other, arrays)


def _partials(inputs: np.ndarray, targets: np.ndarray) -> tuple[Partial, Partial]:
    with jax.enable_x64(True):
        data = jnp.asarray(inputs), jnp.asarray(targets)
    return Partial(_residuals, *data), Partial(_loss, *data)


def _around_manifold(seed: int, d: int, grids: list[Any]) -> list[Any]:
    theta, inputs, targets = example(seed, d)
    residuals, loss = _partials(inputs, targets)
    random = np.random.default_rng([seed, d, 3])
    # Off the teacher, so that the minimum is one that was reached.
    minimum = reach_minimum(residuals, theta + random.normal(0.0, 0.05, 3))
    if not minimum.reached:
        return []
    split = split_spaces(residuals, minimum.theta)
    normal = split.row @ random.normal(size=split.row.shape[1])
    tangent = split.null @ _most_curved(residuals, minimum.theta, split.null)
    return [extents_along_line(loss, minimum.theta, along, grids, lr=_LR, longest=_LONGEST) for along in (normal, tangent)]


def _most_curved(residuals: Partial, theta: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The tangent u, in coordinates of the null space, along which sum_k |A_k u|^2 is largest, A_k = d^2 r_k there."""
    with jax.enable_x64(True):
        second = null.T @ np.asarray(_second(residuals, jnp.asarray(theta))) @ null
    return np.linalg.eigh((second @ second).sum(axis=0))[1][:, -1]


@jax.jit
def _second(residuals: Any, theta: Any) -> Any:
    return jax.hessian(residuals)(theta)


def _around_point(seed: int, grids: list[Any]) -> list[Any]:
    theta, inputs, targets = example(seed, _ISOLATED)
    residuals, loss = _partials(inputs, targets)
    # From the teacher, whose noise is elsewhere, Newton's method alone runs away for one seed in sixty.
    near = reach_minimum(residuals, theta).theta
    with jax.enable_x64(True):
        reached, hessian = (np.asarray(found) for found in _newton(loss, jnp.asarray(near)))
        slope = np.asarray(jax.grad(loss)(jnp.asarray(reached)))
    if not np.isfinite(hessian).all():
        return []
    values, vectors = np.linalg.eigh(hessian)
    if not (values[0] > 0 and np.abs(slope).max() < 1e-13):
        return []
    return [extents_along_line(loss, reached, vectors[:, k], grids, lr=_LR, longest=_LONGEST) for k in (2, 1, 0)]


@jax.jit
def _newton(loss: Any, theta: Any) -> Any:
    """A minimum of positive loss, to rounding, by Newton's method from nearby."""

    def step(_: Any, at: Any) -> Any:
        return at - jnp.linalg.solve(jax.hessian(loss)(at), jax.grad(loss)(at))

    reached = jax.lax.fori_loop(0, 30, step, theta)
    return reached, jax.hessian(loss)(reached)


def judge(measured: Measured) -> tuple[Finding, ...]:
    """For each lattice, d and direction: is the slope that of geometry; is it -1?

    Args:
        measured: what `measure` returned.

    Returns:
        Findings for the manifold's directions, then one a lattice for the isolated minimum, the mean over whose eigenvectors is
        the control: there, and along a normal, both hypotheses predict -1.
    """
    bits = measured.coords["extents_bits"]
    found = _slopes(bits, measured.arrays["extents_length"].values)
    control = _slopes(bits, measured.arrays["extents_isolated"].values).mean(axis=1)
    findings = []
    for i, lattice in enumerate(measured.coords["extents_lattice"]):
        for j, d in enumerate(measured.coords["extents_points"]):
            for k, direction in enumerate(measured.coords["extents_direction"]):
                name = f"extent {direction}, {lattice} point, d = {d}"
                findings.append(_finding(name, found[:, j, k, i], DIRECTIONS[direction]))
        findings.append(_finding(f"extent at an isolated minimum, {lattice} point, d > n", control[:, i], -1.0))
    return tuple(findings)


def _slopes(bits: Sequence[int], lengths: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return slopes(bits, np.log2(lengths))  # an extent of 0 or none has no slope: NaN


def _finding(name: str, samples: np.ndarray, predicted: float) -> Finding:
    test, other = tost(samples, predicted, MARGIN), tost(samples, -1.0, MARGIN)
    bounds = interval(samples)
    geometry = Claim(f"{name}: slope of log2 against bits", predicted, test.estimate, *bounds, test.equal)
    representation = Claim(f"{name}: slope of log2 against bits", -1.0, test.estimate, *bounds, other.equal)
    if predicted == -1.0:
        return Finding(2, "square", geometry, None, float("nan"))  # both sides say so
    failed = [target for target, claim in ((-1.0, other), (predicted, test)) if claim.equal is False]
    p = p_of_equal(samples, failed[0], MARGIN) if failed else float("nan")
    return Finding(2, "square", geometry, representation, p)
