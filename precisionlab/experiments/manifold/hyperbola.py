"""Life after zero loss in two weights: L = (x y - 1 - e)^2 / 2, whose minima without the noise e are a hyperbola.

With the noisy residual r = x y - 1 - e a step is x' = x - lr r y, y' = y - lr r x, and of Q = x^2 - y^2 the terms in lr cancel:

    Q' = x^2 - 2 lr r x y + lr^2 r^2 y^2 - (y^2 - 2 lr r x y + lr^2 r^2 x^2) = Q (1 - lr^2 r^2),

exactly, in every step, whatever the noise (Li, Wang and Arora, "What happens after SGD reaches zero loss?", 2021, have the
limit of small lr). Without noise Q stays. With it Q shrinks, and tr H = x^2 + y^2 = sqrt(Q^2 + 4) on the hyperbola falls to 2.

What is left of it in p bits? Let x > y, and g the gap at x. Between two steps y comes back to 1/x with an error n, of variance
lr^2 s^2 x^2 / (1 - (1 - lr x^2)^2), s^2 that of e; x moves by -lr r y, r = x n - e: by noise of size lr s / x, and by
-lr x Var n on average, which is the drift, of order lr^2. Three answers:

    geometry                             the drift is what it is in real arithmetic, at every p
    representation, of the drift alone   it is lost where it is below half a gap: below p = -log2(lr^2 s^2), about
    representation, of what is stored    what has to pass half a gap is the step, noise included. Of a normal one with standard
                                         deviation t there is left, on average, sum_k g phi_t((k + 1/2) g), half at t = .27 g:
                                         the noise dithers, down to p = -log2(lr s), about

Noise of two values is no dither: its steps, +-lr s / x and a little more or less, pass half a gap all or not at all. Where the
two spread about it, more of those pass that spread more, which are the downward ones (a step is lr (e - x n)(1/x + n)): just
below half a gap the drift is many times what it should be. Just above, more of them fail to, and it is reversed.
`left_of_drift` is the mean of the rounded step.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.special
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import above, below, equal, mean_where
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.requests import some_bits, some_seeds
from precisionlab.experiments.manifold.noisy import World, descend_noisily
from precisionlab.experiments.manifold.settings import float_arms
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.runs.results import Claim, Labelled

__all__ = ["NOISES", "claims", "left_of_drift", "measure", "sides", "thresholds"]

NOISES = ("gaussian", "two_valued")
_MODES = {"nearest_even": nearest_even, "stochastic": stochastic}
_SIZES = (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5)
_SCAN_BITS, _SCAN_X, _SCAN_STEPS, _WALKERS = 6, 1.5, 64, 4
_SIMILAR = 0.25
"""How far a share of the drift may be from its prediction; that of a threshold is one bit."""


def left_of_drift(x: float, size: float, gap: float, lr: float, noise: str) -> float:
    """The mean of the rounded steps of x beside that of the exact ones, y being where it is in the long run.

    Args:
        x: the larger weight, a value of the format.
        size: standard deviation of the noise e.
        gap: of the format at x; 0 for none.
        lr: the step size, below 2 / x^2.
        noise: one of `NOISES`.

    Example:
        >>> gap = 2.0**-5  # of six bits
        >>> sizes = [c * gap * 1.5 / 0.125 for c in (0.25, 0.55, 1.0)]
        >>> [round(left_of_drift(1.5, size, gap, 0.125, "gaussian"), 1) for size in sizes]
        [1.8, 1.0, 1.0]
        >>> [round(left_of_drift(1.5, size, gap, 0.125, "two_valued"), 1) for size in sizes]
        [1.2, -0.8, 1.1]
    """
    back = 1 - lr * x * x
    if noise == "gaussian":
        normal = scipy.special.ndtri((np.arange(512) + 0.5) / 512)
        normal /= normal.std()
        error, e = normal * lr * size * x / np.sqrt(1 - back * back), size * normal
    else:
        signs = 1.0 - 2.0 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)
        error, e = signs @ back ** np.arange(16) * lr * size * x, size * np.array([-1.0, 1.0])
    y = 1 / x + error[:, None]
    step = -lr * (x * y - 1 - e[None, :]) * y
    return float(np.rint(step / gap).mean() * gap / step.mean()) if gap else 1.0


def thresholds(x: Any, size: float, lr: float, bits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """From how many bits on half of the drift is left: by the step with its Gaussian noise, and by the drift alone.

    Args:
        x: (seeds,) the larger weights.
        size: standard deviation of the noise.
        lr: the step size.
        bits: ascending.

    Returns:
        Twice (seeds,), inf where no precision is enough.

    Example:
        >>> [bits.tolist() for bits in thresholds([1.7, 2.3], 0.25, 0.125, range(3, 15))]
        [[5.0, 6.0], [10.0, 11.0]]
    """
    x = np.asarray(x, np.float64)
    gaps = np.ldexp(2.0, np.frexp(x)[1][:, None] - 1 - np.asarray(bits)[None, :])
    dithered = [[left_of_drift(at, size, gap, lr, "gaussian") > 0.5 for gap in row] for at, row in zip(x, gaps, strict=True)]
    drift = lr**2 * size**2 * x / (2 - lr * x * x)
    return _first_lasting(np.array(dithered), bits), _first_lasting(drift[:, None] > 0.5 * gaps, bits)


def _first_lasting(free: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """(seeds,): the first of bits from which on all columns of (seeds, bits) are true."""
    lasting = np.logical_and.accumulate(free[:, ::-1], axis=1)[:, ::-1]
    return np.where(lasting.any(1), np.asarray(bits, np.float64)[np.argmax(lasting, axis=1)], np.inf)


def _residual(target: Any, weights: Any) -> Any:
    return weights[:1] * weights[1:] - target


def _hyperbola(count: int) -> Partial:
    return Partial(_residual, np.ones((count, 1)))


def measure(
    seeds: Iterable[int],
    *,
    bits: Sequence[int] = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 53),
    steps: int = 4096,
    lr: float = 2.0**-3,
    size: float = 2.0**-2,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Descend with noisy labels from points of the hyperbola, in every precision; and with noise of many sizes in one.

    Args:
        seeds: at least one; each is a start, x between 1.6 and 2.4, and noise.
        bits: significand bits of the stored weights, ascending, the last of them 53, with eight exponent bits.
        steps: a multiple of 4; tr H needs 4 / (lr size)^2 of them, 4,096 by default, to fall to 2.
        lr: the step size, at most 1/4.
        size: standard deviation of the labels' noise, which is also the size of that of two values.
        progress: called with a few words and the share that is done.

    Returns:
        `hyperbola_start` (seed), x. Over (hyperbola_mode, hyperbola_noise, hyperbola_bits, seed): `hyperbola_kept`, the fall
        of Q in the first quarter of the steps beside that in float64 with the same noise, and `hyperbola_trace`, tr H on the
        hyperbola with the Q of the end. Over (hyperbola_noise, seed): `hyperbola_error` of the law Q' = Q (1 - lr^2 r^2) after
        all steps, relative. Over seed: `hyperbola_predicted` and `hyperbola_alone` of `thresholds`. Over (hyperbola_noise,
        hyperbola_size, seed), sizes lr s / x in gaps of six bits at x = 1.5: `hyperbola_scan`, the drift to nearest beside the
        mean one in float64; its prediction `hyperbola_scan_law` (hyperbola_noise, hyperbola_size).

    Raises:
        ValueError: if there is no seed, or a number is out of range.
    """
    seeds, bits = some_seeds("hyperbola", seeds), some_bits("hyperbola", bits, real=True)
    tell = progress or (lambda *_: None)
    if steps < 4 or steps % 4 or not 0 < lr <= 0.25 or not (np.isfinite(size) and size > 0):
        raise ValueError(
            f"hyperbola: steps must be a positive multiple of 4, lr above 0 and at most 1/4 (with 1.6 < x < 2.4 descent "
            f"diverges from 2 / x^2 on), size a positive number; got {steps}, {lr}, {size}."
        )
    start = np.array([np.random.default_rng([seed, 15]).uniform(1.6, 2.4) for seed in seeds])
    points, rates = np.stack([start, 1 / start], axis=-1), np.full(len(seeds), lr)
    worlds, formats = [World(gaussian=size), World(two_valued=size)], list(float_arms(bits).values())
    paths = {}
    for name, mode in _MODES.items():
        tell(f"hyperbola: {name}", 0.4 * len(paths))
        paths[name] = descend_noisily(_hyperbola(len(seeds)), points, rates, worlds, seeds, formats, mode, steps=steps)
    # (modes, looks, bits, noises, seeds)
    q = np.stack([path.theta[..., 0] ** 2 - path.theta[..., 1] ** 2 for path in paths.values()])
    kept = (q[:, 0] - q[:, 1]) / (q[0, 0, -1] - q[0, 1, -1])
    law = np.prod(1 - lr * lr * paths["nearest_even"].squares, axis=-1)
    error = np.abs(q[0, -1, -1] / q[0, 0, -1] / law - 1)
    tell("hyperbola: sizes of the noise", 0.8)
    scan, scan_law = _scan(seeds, lr)
    predicted, alone = thresholds(start, size, lr, bits)
    every = ("hyperbola_mode", "hyperbola_noise", "hyperbola_bits", "seed")
    tell("hyperbola", 1.0)
    return Measured(
        {
            "seed": seeds,
            "hyperbola_mode": list(_MODES),
            "hyperbola_noise": NOISES,
            "hyperbola_bits": list(bits),
            "hyperbola_size": _SIZES,
        },
        {
            "hyperbola_start": Labelled(("seed",), start),
            "hyperbola_kept": Labelled(every, np.moveaxis(kept, 1, 2)),
            "hyperbola_trace": Labelled(every, np.moveaxis(np.sqrt(q[:, -1] ** 2 + 4), 1, 2)),
            "hyperbola_error": Labelled(("hyperbola_noise", "seed"), error),
            "hyperbola_predicted": Labelled(("seed",), predicted),
            "hyperbola_alone": Labelled(("seed",), alone),
            "hyperbola_scan": Labelled(("hyperbola_noise", "hyperbola_size", "seed"), scan),
            "hyperbola_scan_law": Labelled(("hyperbola_noise", "hyperbola_size"), scan_law),
        },
    )


def _scan(seeds: Sequence[int], lr: float) -> tuple[np.ndarray, np.ndarray]:
    """(noises, sizes, seeds) what is left of the drift of x after a few steps from one place, mean over walkers; its law."""
    gap, walkers = 2.0 ** (1 - _SCAN_BITS), [seed * _WALKERS + walker for seed in seeds for walker in range(_WALKERS)]
    noises = [c * gap * _SCAN_X / lr for c in _SIZES]
    worlds = [World(gaussian=s) for s in noises] + [World(two_valued=s) for s in noises]
    place, rates = np.tile([_SCAN_X, 1 / _SCAN_X], (len(walkers), 1)), np.full(len(walkers), lr)
    formats = list(float_arms((_SCAN_BITS, 53)).values())
    path = descend_noisily(
        _hyperbola(len(walkers)), place, rates, worlds, walkers, formats, nearest_even, steps=_SCAN_STEPS, looks=1
    )
    fall = (path.theta[0, ..., 0] - path.theta[-1, ..., 0]).reshape(2, len(NOISES), len(_SIZES), len(seeds), _WALKERS).mean(-1)
    law = np.array([[left_of_drift(_SCAN_X, s, gap, lr, noise) for s in noises] for noise in NOISES])
    return fall[0] / fall[1].mean(axis=-1, keepdims=True), law  # of a seed alone the fall in float64 may be next to nothing


def claims(measured: Measured) -> tuple[Claim, ...]:
    """The exact law, and which of the three answers is right, where they differ.

    Args:
        measured: what `measure` returned.

    Returns:
        The law and the fall of tr H, in float64. Under nearest rounding with Gaussian noise: what is left of the drift where
        only the drift alone would be lost, and where the step with its noise is lost too; by how much each law misses the
        precision at which half is left. Under stochastic rounding: what is left from there on. With noise of two values: how
        much less is left, and the reversal.
    """
    arrays = {name.removeprefix("hyperbola_"): array.values for name, array in measured.arrays.items()}
    bits = np.asarray(measured.coords["hyperbola_bits"], np.float64)
    nearest, random = (list(measured.coords["hyperbola_mode"]).index(mode) for mode in _MODES)
    dithered, alone = arrays["predicted"], arrays["alone"]
    normal, signs = (arrays["kept"][nearest, k].T for k in range(len(NOISES)))
    between = (bits >= dithered[:, None] + 1) & (bits < alone[:, None])
    coarse = bits < dithered[:, None] - 1
    made = [
        below(
            "hyperbola: Q_T beside Q_0 times all (1 - lr^2 r^2), float64 (relative error)", arrays["error"].max(axis=0), 1e-9
        ),
        equal("hyperbola: tr H at the end, float64, Gaussian noise", arrays["trace"][nearest, 0, -1], 2.0, 0.05),
    ]
    if between.any(axis=1).all():
        left, where = mean_where(normal, between, 1), "above the law of the step, below that of the drift alone"
        made += sides(f"hyperbola, nearest, Gaussian noise, bits {where}", left, alone=0.0, step=1.0)
    if coarse.any(axis=1).all():
        left = mean_where(normal, coarse, 1)
        made += sides("hyperbola, nearest, Gaussian noise, bits below the law of the step", left, alone=0.0, step=0.0)
    half = _first_lasting(normal > 0.5, bits.astype(int).tolist())
    for name, law in (("the step with its noise", dithered), ("the drift alone", alone)):
        # Where a law is beyond all bits asked about, it is further away than any that was.
        off = np.where(np.isfinite(half) & np.isfinite(law), half, np.nan) - np.where(np.isfinite(law), law, np.nan)
        made.append(equal(f"hyperbola, representation: bits that keep half, less those by the law of {name}", off, 0.0, 1.0))
    sampled = arrays["kept"][random, 0][bits >= dithered.max()].mean(axis=0)
    made.append(equal("hyperbola, stochastic, Gaussian noise, from the law's bits on: drift kept", sampled, 1.0, _SIMILAR))
    some = (bits >= dithered[:, None] - 1) & (bits < dithered[:, None] + 2)
    less = mean_where(normal, some, 1) - mean_where(signs, some, 1)
    made.append(
        above("hyperbola, nearest: drift kept with Gaussian noise less that with two values, near the law's bits", less, 0)
    )
    scan, law = arrays["scan"][1], arrays["scan_law"][1]
    reversed_ = law < -0.5
    made.append(
        below("hyperbola, nearest, two values just above half a gap: drift beside float64's", scan[reversed_].mean(0), 0)
    )
    return tuple(made)


def sides(where: str, left: np.ndarray, *, alone: float, step: float) -> list[Claim]:
    """What each answer says of a share of the drift that is left, in one place.

    Args:
        where: in which arm, at which bits.
        left: (seeds,) the share measured.
        alone: by representation, of the drift alone.
        step: by representation, of what is stored.
    """
    said = {"geometry": 1.0, "representation, of the drift alone": alone, "representation, of what is stored": step}
    return [equal(f"{where}: drift kept, by {name}", left, share, _SIMILAR) for name, share in said.items()]
