"""Row 6, the positive control: minima that only look like a manifold, because the format cannot follow what leads off it.

The loss is (x^2 + y^2 - 1)^2 / 4 + eps x^2 y^2. Without its second term the minima are a ring; with it four points are left,
(+-1, 0) and (0, +-1), where the Hessian is diag(2, 2 eps). At the angle phi the floor of the valley has r^2 - 1 = -4 eps x^2
y^2, and descent drifts along it by -lr (eps/2) sin 4 phi a step, towards the nearest of the four: in real arithmetic every
start collapses. In a format of p bits the drift has to pass half the gap. With d = r^2 - 1, between 45 and 90 degrees (the rest
by symmetry) descent turns x towards zero and y away from it, and

    x stays   lr x (d + 2 eps y^2) <=  h(x)                y stays   lr y (d + 2 eps x^2) >= -h(y)

h half the gap on that side. There is a d that satisfies both, so that the point is frozen, exactly where

    2 eps lr |cos 2 phi|  <=  h(x)/x + h(y)/y,

and h(x)/x is between 2^-(p+1) and 2^-p: the ring ends at p = -log2(2 eps lr |cos 2 phi|), and up to one bit above. A start
collapses if that holds nowhere on its way to the minimum. Stochastic rounding drifts as it should on average: no ring at any p.

If this is not seen, where representation does make a ring out of four points, nothing that the other measurements say is worth
anything. The same ring goes through the whole decision as one of the planted worlds (`planted`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.common.claiming import estimate, mean_where
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.common.requests import some_bits, some_seeds
from precisionlab.numerics.formats import ieee_format
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.seeds import sign_test_above
from precisionlab.training.loops import sweep
from precisionlab.training.steps import make_step, start

__all__ = ["control_seen", "judge", "loss", "measure", "threshold_bits"]

ROW = 6
BITS_MARGIN = 1.0
"""How far a threshold may be from its prediction, in bits."""
EPS = 2.0**-6
LEARNING_RATE = 0.25

_EXPONENT_BITS = 8
_COLLAPSED = np.deg2rad(5.0)  # from the nearest of the four
_ARMS = {"nearest_even": nearest_even, "stochastic": stochastic}


def loss(place: Any, eps: float = EPS) -> Any:
    """The ring with its weak term: (x^2 + y^2 - 1)^2 / 4 + eps x^2 y^2.

    Example:
        >>> [float(loss(np.array(place))) for place in ([1.0, 0.0], [0.0, -1.0], [0.0, 0.0])]
        [0.0, 0.0, 0.25]
    """
    x, y = place[0] * place[0], place[1] * place[1]
    return (x + y - 1) ** 2 / 4 + eps * x * y


def _angle(key: Any) -> Any:
    """Where a seed starts on the ring, radians: 10 to 43 degrees from the nearest minimum (drift vanishes at 45)."""
    away = jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float64, 10.0, 43.0)
    side = jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 2)), 1.0, -1.0)
    quarter = jax.random.randint(jax.random.fold_in(key, 3), (), 0, 4).astype(jnp.float64)
    return (90.0 * quarter + side * away) * (np.pi / 180)


def _half_gap(value: np.ndarray, bits: int) -> np.ndarray:
    """Half the gap from positive values to their neighbours (on both sides: no power of two is asked about)."""
    return np.ldexp(1.0, np.frexp(value)[1] - 1 - bits)


def threshold_bits(
    phi: np.ndarray, bits: Sequence[int], *, eps: float = EPS, learning_rate: float = LEARNING_RATE
) -> np.ndarray:
    """The half-gap law: from which precision on each start collapses.

    Args:
        phi: (seeds,) angles of the starts, radians.
        bits: the precisions asked about, ascending.
        eps: of the loss.
        learning_rate: of the descent.

    Returns:
        (seeds,) the first of `bits` from which on no point of the way is frozen; inf if none.

    Example:
        >>> threshold_bits(np.deg2rad([50.0, 60.0, 80.0]), range(3, 15)).tolist()
        [11.0, 9.0, 8.0]
    """
    # By symmetry the way leads from the start to the x axis, falling short of it by what counts as collapsed.
    from_axis = np.abs((phi + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    way = _COLLAPSED + np.linspace(0.0, 1.0, 400)[:, None] * np.maximum(from_axis - _COLLAPSED, 0.0)
    large, small = np.cos(way), np.sin(way)
    drift = 2 * eps * learning_rate * np.cos(2 * way)
    free = [(drift > _half_gap(small, p) / small + _half_gap(large, p) / large).all(0) for p in bits]
    return _first_lasting(np.stack(free), bits)


def _first_lasting(free: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """(seeds,): the first of bits from which on all rows of (bits, seeds) are true."""
    lasting = np.logical_and.accumulate(free[::-1], axis=0)[::-1]
    return np.where(lasting.any(0), np.asarray(bits, np.float64)[np.argmax(lasting, axis=0)], np.inf)


def measure(
    seeds: Iterable[int],
    *,
    bits: Sequence[int] = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 53),
    steps: int = 6000,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Descend from points of the ring in every precision, rounding to nearest and at random.

    Args:
        seeds: at least one; each is an angle.
        bits: significand bits of the stored weights, at least two, ascending, from 3; 53 is float64 itself.
        steps: of descent; near the top of the barrier the drift needs 1 / (2 lr eps) = 128 of them for a factor e.
        progress: called with a few words and the share that is done.

    Returns:
        `ring_start` (seed, ring_xy); `ring_end` (seed, ring_mode, ring_bits, ring_xy); `ring_collapsed` (seed, ring_mode,
        ring_bits), whether the end is within 5 degrees of one of the four minima; `ring_predicted` and `ring_threshold`
        (seed), the first bits from which on the start collapses, by the half-gap law and under nearest_even, inf if none.

    Raises:
        ValueError: if there is no seed, or a number is out of range.
    """
    seeds, bits = some_seeds("ring", seeds), some_bits("ring", bits)
    if steps < 1:
        raise ValueError(f"ring: steps must be at least 1; got {steps}.")
    ends = np.empty((len(seeds), len(_ARMS), len(bits), 2))
    with jax.enable_x64(True):
        phi = np.array([float(_angle(jax.random.key(seed))) for seed in seeds])
        optimizer = optax.sgd(LEARNING_RATE)

        def begin(key: Any, policy: Policy) -> Any:
            angle = _angle(key)
            return start(jnp.stack([jnp.cos(angle), jnp.sin(angle)]), optimizer, policy, key=key)

        policies = [Policy(weights=ieee_format(_EXPONENT_BITS, p - 1)) for p in bits]
        for index, (name, mode) in enumerate(_ARMS.items()):
            if progress is not None:
                progress(f"ring: {name}", index / len(_ARMS))
            step = make_step(lambda place, _: loss(place), optimizer, modes=mode, every=steps, detail=False)
            state, _ = sweep(step, begin, lambda _: None, policies, seeds, steps=steps)
            ends[:, index] = np.moveaxis(np.asarray(state.params), 0, 1)
    off = np.abs((np.arctan2(ends[..., 1], ends[..., 0]) + np.pi / 4) % (np.pi / 2) - np.pi / 4)
    collapsed = off < _COLLAPSED
    coords = {"seed": seeds, "ring_mode": list(_ARMS), "ring_bits": list(bits), "ring_xy": ["x", "y"]}
    return Measured(
        coords,
        {
            "ring_start": Labelled(("seed", "ring_xy"), np.stack([np.cos(phi), np.sin(phi)], axis=-1)),
            "ring_end": Labelled(("seed", "ring_mode", "ring_bits", "ring_xy"), ends),
            "ring_collapsed": Labelled(("seed", "ring_mode", "ring_bits"), collapsed),
            "ring_predicted": Labelled(("seed",), threshold_bits(phi, bits)),
            "ring_threshold": Labelled(("seed",), _first_lasting(collapsed[:, 0].T, bits)),
        },
    )


def judge(measured: Measured) -> tuple[Finding, ...]:
    """What the arrays say: whether the control was seen.

    Args:
        measured: from `measure`.

    Returns:
        Findings of row 6. Here representation is right below the threshold and under nearest rounding, geometry elsewhere.
    """
    bits = np.asarray(measured.coords["ring_bits"], np.float64)
    names = ("collapsed", "predicted", "threshold")
    collapsed, predicted, threshold = (measured.arrays[f"ring_{name}"].values for name in names)
    nearest, random = (collapsed[:, list(_ARMS).index(name)].astype(np.float64) for name in _ARMS)
    coarse = bits < predicted[:, None] - BITS_MARGIN
    fine = bits >= predicted[:, None] + BITS_MARGIN
    below, above, dithered = mean_where(nearest, coarse, 1), mean_where(nearest, fine, 1), random.mean(1)
    known = np.isfinite(predicted) & np.isfinite(threshold)
    off = np.where(known, np.where(known, threshold, 0) - np.where(known, predicted, 0), np.nan)
    within = bool((np.abs(off) <= BITS_MARGIN).all()) if known.all() else False
    place = Claim("ring's end, measured - predicted (bits)", f"within {BITS_MARGIN:g} in each seed", *estimate(off), within)
    name = "collapsed to the four, more than a bit below the predicted p (share)"
    gone = Claim(name, "1", *estimate(below), _held(below, high=True))
    ring = Claim(name, "0", *estimate(below), _held(below, high=False))
    four = Claim("collapsed, a bit above it or more (share)", "1", *estimate(above), _held(above, high=True))
    free = Claim(
        "collapsed under stochastic rounding, at every p (share)", "1", *estimate(dithered), _held(dithered, high=True)
    )
    return (
        Finding(ROW, "square", gone, ring, sign_test_above(-below, -1.0)),
        Finding(ROW, "square", four, None, np.nan),
        Finding(ROW, "square", place, None, np.nan),
        Finding(ROW, "square", free, None, np.nan),
    )


def control_seen(measured: Measured) -> bool:
    """Whether the control was detected; if not, a run that contains it is invalid.

    Args:
        measured: from `measure`.

    Returns:
        True if below the predicted precision it looks like a ring, above it all collapse, each seed's threshold is within one
        bit, and nothing is left of the ring under stochastic rounding.
    """
    frozen, moving, where, dithered = judge(measured)
    claims = (frozen.representation, moving.geometry, where.geometry, dithered.geometry)
    return all(claim is not None and claim.held is True for claim in claims)


def _held(shares: np.ndarray, *, high: bool) -> bool | None:
    """Whether shares that were predicted to be 1 (or 0) are, to one in twenty; None if there is nothing to judge by."""
    if not np.isfinite(shares).all():
        return None
    return bool(shares.mean() >= 0.95 if high else shares.mean() <= 0.05)
