"""How many directions does a format see in a net of thousands of weights, when the data become many?

With d points and r outputs real arithmetic holds min(d r, n) of n directions: curvature lambda > 0, however small. A format of p bits
sees a direction where one step at a distance comparable to the weights changes them,

    seen at p bits  =  n - N_p  =  #{i : lr lambda_i > 2^-p}        (`landscape.flatness`).

*Geometry* says that what is held is min(d r, n), whatever p: it grows with d one for one, and as n is swept through d r the flat directions
n - min(d r, n) have a kink there. *Representation* says that it is a function of p and lr, and asks neither for d nor for where n passes
d r. Each is right somewhere, and the counts say where: at lr = 1 / lambda_1 (the largest power of two below it, `wide.largest_lr`) the
spectrum of real images falls so fast that a few dozen of a thousand directions lie above 2^-8.

Since lr lambda alone is compared with 2^-p, 64 times smaller steps cost six bits: the count at p bits and lr / 64 is that at p - 6 bits
and lr. In `seen` that is algebra; `answered` counts by pushes and real rounding (`answers`) and need not have known.

Three nets: n = 66 x 128 + 1 = 8,449 for the spectra, taken at random weights and at the zero of the loss that is nearest; n = 4,225 for
pushes and training; and nets of three inputs and d = 20, whose width passes through n = d, at random weights, to which the targets
are fitted: so that there is a zero on either side. What the two explanations predict of the
training: geometry, as many directions reduced as by float64 in the same steps; representation, as many as are seen.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import answers
from precisionlab.experiments.manifold.settings import first_weights, float_arms
from precisionlab.experiments.manifold.wide import curvatures, directions, largest_lr, widened, zero_near
from precisionlab.problems.fitting import Fit, parity_fit
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Claim, Labelled

__all__ = ["SLOWER", "claims", "kink", "measure"]

SLOWER = (1, 64)
"""The learning rates: the largest one, divided by these."""

_PUSH = 1 / 8  # of the norm of the weights
_NULL = 16  # directions without curvature that are pushed beside those that have some
_SWEPT_INPUTS = 3
_SWEPT_POINTS = 20
_SWEPT_HIDDEN = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
_SLOPE = 0.15
_SHIFT = 6  # log2 of 64


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
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Count the directions that formats see, answer and reduce, on digits.

    Args:
        seeds: at least one; each draws images and first weights of its own.
        points: numbers of images d for the spectra, ascending, at most 1,797; at least two.
        hidden: units of that net; n = 66 hidden + 1.
        bits: significand bits p of the counts, 53 for float64; 8 exponent bits where weights are rounded.
        pushed: numbers of images of the nets that are pushed, ascending; at least two.
        trained: numbers of images of those that are trained, in the same way.
        pushed_hidden: units of both.
        batch_size: of the minibatches.
        trained_bits: significand bits of the training; 53 must be among them, as what real arithmetic does.
        steps: of the training.
        swept_bits: significand bits for the sweep of n through d = 20.
        progress: called with a few words and the share that is done.

    Returns:
        Over seed last and, before it, these axes:

        `sizes_seen` (sizes_place, sizes_points, sizes_slower, sizes_bits): n - N_p, at random weights ("start") and at the zero
        of the loss ("zero"); `sizes_rms` (sizes_points), the root mean square of the residuals there.
        `sizes_answered`, `sizes_wrong` (sizes_pushed, sizes_slower, sizes_bits): directions whose pushes are answered, and those
        answered the wrong way by as much; `sizes_pushed_seen`, the closed form for the same nets; `sizes_moved`,
        `sizes_moved_null`: the share of the directions with and without curvature along which any weight moves;
        `sizes_rests` whether none does without a push.
        `sizes_reduced`, `sizes_lost` (sizes_batch, sizes_rounding, sizes_trained, sizes_trained_bits): directions that training
        reduced, and the share of updates lost in its last step.
        `sizes_swept_seen`, `sizes_swept_answered` (sizes_swept, sizes_swept_bits), of n weights.
        Scalars `sizes_n`, `sizes_pushed_n`, `sizes_swept_points`.

    Raises:
        ValueError: for no seeds, numbers that do not ascend, or what makes no net or format.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise ValueError("sizes: got no seeds; give at least one, such as range(3).")
    for name, given in (("points", points), ("bits", bits), ("pushed", pushed), ("trained", trained), ("swept_bits", swept_bits)):
        if len(given) < 2 or list(given) != sorted(set(given)):
            raise ValueError(f"sizes: {name} are whole numbers, ascending, at least two; got {list(given)}.")
    if 53 not in trained_bits:
        raise ValueError(f"sizes: trained_bits must hold 53, the training of real arithmetic; got {list(trained_bits)}.")
    tell = progress or (lambda *_: None)
    arrays: dict[str, Labelled] = {}
    for share, name, work in (
        (0.4, "pushes", lambda: _by_push(seeds, pushed, pushed_hidden, bits)),
        (0.6, "training", lambda: _by_training(seeds, trained, pushed_hidden, trained_bits, batch_size, steps)),
        (0.7, "n through d", lambda: _swept(seeds, swept_bits)),
        (1.0, "spectra", lambda: _spectra(seeds, points, hidden, bits)),
    ):
        arrays |= {f"sizes_{key}": value for key, value in work().items()}
        tell(f"sizes: {name}", share)
    coords = {
        "seed": seeds,
        "sizes_place": ["start", "zero"],
        "sizes_points": list(points),
        "sizes_slower": list(SLOWER),
        "sizes_bits": list(bits),
        "sizes_pushed": list(pushed),
        "sizes_trained": list(trained),
        "sizes_batch": ["all", f"{batch_size}"],
        "sizes_rounding": list(answers.ROUNDINGS),
        "sizes_trained_bits": list(trained_bits),
        "sizes_swept": [_swept_fit(0, units).n for units in _SWEPT_HIDDEN],
        "sizes_swept_bits": list(swept_bits),
    }
    return Measured(coords, arrays)


def _count(values: np.ndarray, bits: Sequence[int], lr: float) -> np.ndarray:
    """n - N_p for each p; eigenvalues that are zero need not be given."""
    return (lr * values[:, None] > np.exp2(-np.asarray(bits, np.float64))).sum(axis=0)


def _spectra(seeds: Sequence[int], points: Sequence[int], hidden: int, bits: Sequence[int]) -> dict[str, Labelled]:
    seen = np.empty((2, len(points), len(SLOWER), len(bits), len(seeds)))
    rms = np.empty((len(points), len(seeds)))
    for s, seed in enumerate(seeds):
        for k, d in enumerate(points):
            fit = parity_fit(d, hidden=hidden, seed=seed)
            first = first_weights(fit, seed)
            zero = zero_near(fit, first)
            rms[k, s] = np.sqrt(2 * zero.loss / d)
            for place, theta in enumerate((first, zero.theta)):
                values = curvatures(fit, theta)
                seen[place, k, :, :, s] = [_count(values, bits, largest_lr(values) / slower) for slower in SLOWER]
    dims = ("sizes_place", "sizes_points", "sizes_slower", "sizes_bits", "seed")
    return {
        "seen": Labelled(dims, seen),
        "rms": Labelled(("sizes_points", "seed"), rms),
        "n": Labelled((), np.array(66 * hidden + 1)),
    }


def _by_push(seeds: Sequence[int], pushed: Sequence[int], hidden: int, bits: Sequence[int]) -> dict[str, Labelled]:
    names = ("answered", "wrong", "pushed_seen", "moved", "moved_null", "rests")
    found = {name: np.empty((len(pushed), len(SLOWER), len(bits), len(seeds))) for name in names}
    for s, seed in enumerate(seeds):
        for k, d in enumerate(pushed):
            fit = parity_fit(d, hidden=hidden, seed=seed)
            zero = zero_near(fit, first_weights(fit, seed)).theta
            known = directions(fit, zero)
            rows = np.concatenate([known.right, _without_curvature(known.right, seed)])
            distance, lr = _PUSH * float(np.linalg.norm(zero)), largest_lr(known.values)
            for i, slower in enumerate(SLOWER):
                found["pushed_seen"][k, i, :, s] = _count(known.values, bits, lr / slower)
                for j, fmt in enumerate(float_arms(bits).values()):
                    pushes = answers.push(fit.residuals_at, zero, rows, distance, lr / slower, fmt)
                    mine = pushes._replace(back=pushes.back[:d])
                    found["answered"][k, i, j, s], found["wrong"][k, i, j, s] = answers.answers_of(
                        mine, known.values, distance, lr / slower
                    )
                    moved = pushes.moved > 0
                    found["moved"][k, i, j, s], found["moved_null"][k, i, j, s] = moved[:d].mean(), moved[d:].mean()
                    found["rests"][k, i, j, s] = pushes.rests
    dims = ("sizes_pushed", "sizes_slower", "sizes_bits", "seed")
    return {name: Labelled(dims, values) for name, values in found.items()} | {
        "pushed_n": Labelled((), np.array(66 * hidden + 1))
    }


def _without_curvature(rows: np.ndarray, seed: int) -> np.ndarray:
    """Random unit vectors orthogonal to rows."""
    random = np.random.default_rng([seed, len(rows)]).standard_normal((_NULL, rows.shape[1]))
    for _ in range(2):
        random = random - (random @ rows.T) @ rows
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def _by_training(
    seeds: Sequence[int], points: Sequence[int], hidden: int, bits: Sequence[int], batch_size: int, steps: int
) -> dict[str, Labelled]:
    shape = (2, len(answers.ROUNDINGS), len(points), len(bits), len(seeds))
    reduced, lost = np.empty(shape), np.empty(shape)
    for k, d in enumerate(points):
        given, before, vectors = _all_pushed([parity_fit(d, hidden=hidden, seed=seed) for seed in seeds], seeds)
        for b, size in enumerate((None, batch_size)):
            for i, rounding in enumerate(answers.ROUNDINGS):
                left, lost[b, i, k] = answers.train_pushed(
                    given, float_arms(bits), rounding=rounding, batch_size=size, steps=steps
                )
                for j, s in np.ndindex(len(bits), len(seeds)):
                    reduced[b, i, k, j, s] = answers.reduced(left[j, s], before[s], vectors[s])
    dims = ("sizes_batch", "sizes_rounding", "sizes_trained", "sizes_trained_bits", "seed")
    return {"reduced": Labelled(dims, reduced), "lost": Labelled(dims, lost)}


def _all_pushed(fits: Sequence[Fit], seeds: Sequence[int]) -> tuple[answers.Pushed, list[np.ndarray], list[np.ndarray]]:
    """Nets at a distance from their zeros, their residuals there to first order, and the directions in the space of the data."""
    starts, lr, before, vectors = [], [], [], []
    for fit, seed in zip(fits, seeds, strict=True):
        zero = zero_near(fit, first_weights(fit, seed)).theta
        known = directions(fit, zero)
        signs = np.random.default_rng([seed, fit.n]).choice([-1.0, 1.0], len(known.values))
        # A decomposition may give a vector or its opposite: the one whose entries have a positive sum counts.
        signs = signs * np.where(known.right.sum(axis=1) < 0, -1.0, 1.0)
        step = _PUSH * np.linalg.norm(zero) / np.sqrt(len(signs))
        starts.append(zero + step * signs @ known.right)
        lr.append(largest_lr(known.values))
        before.append(step * (signs * np.sqrt(known.values)) @ known.left)
        vectors.append(known.left)
    data, targets = (np.stack([fit.residuals_at.args[i] for fit in fits]) for i in range(2))
    residuals = Partial(fits[0].residuals_at.func, data, targets)
    return answers.Pushed(residuals, np.stack(starts), np.array(lr)), before, vectors


def _swept_fit(seed: int, hidden: int) -> Fit:
    return parity_fit(_SWEPT_POINTS, inputs=_SWEPT_INPUTS, hidden=hidden, seed=seed)


def _swept(seeds: Sequence[int], bits: Sequence[int]) -> dict[str, Labelled]:
    shape = (len(_SWEPT_HIDDEN), len(bits), len(seeds))
    seen, answered, widest = np.empty(shape), np.empty(shape), max(_SWEPT_HIDDEN)
    for (k, hidden), (s, seed) in product(enumerate(_SWEPT_HIDDEN), enumerate(seeds)):
        fit, wide = _swept_fit(seed, hidden), _swept_fit(seed, widest)
        theta = first_weights(fit, seed)  # `answers.push` moves the targets so that these fit: a zero whether n < d or not
        known = directions(fit, theta)
        lr, distance = largest_lr(known.values), _PUSH * float(np.linalg.norm(theta))
        seen[k, :, s] = _count(curvatures(fit, theta), bits, lr)
        rows = np.zeros((_SWEPT_POINTS, wide.n))
        rows[: len(known.right)] = widened(fit, widest, known.right)
        values = np.append(known.values, np.full(_SWEPT_POINTS - len(known.values), np.inf))  # no push, no answer
        for j, fmt in enumerate(float_arms(bits).values()):
            pushes = answers.push(wide.residuals_at, widened(fit, widest, theta), rows, distance, lr, fmt)
            answered[k, j, s] = answers.answers_of(pushes, values, distance, lr)[0]
    dims = ("sizes_swept", "sizes_swept_bits", "seed")
    return {
        "swept_seen": Labelled(dims, seen),
        "swept_answered": Labelled(dims, answered),
        "swept_points": Labelled((), np.array(_SWEPT_POINTS)),
    }
