"""Counts of directions: by curvature, by push, by training, and as n passes d r; `sizes` says what they are for."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.manifold import answers
from precisionlab.experiments.manifold.settings import first_weights, float_arms
from precisionlab.experiments.manifold.wide import largest_lr, linearized, widened, zero_near
from precisionlab.problems.fitting import Fit, parity_fit
from precisionlab.runs.results import Labelled

__all__ = ["PUSH", "PUSHED", "SLOWER", "SWEPT_HIDDEN", "by_push", "by_spectrum", "by_training", "swept_fit", "through_n"]

SLOWER = (1, 64)
"""The learning rates: the largest one, divided by these."""

PUSH = 1 / 32
"""How far a single direction is pushed, in norms of the weights; all of them together are pushed `PUSHED` before training."""
PUSHED = 1 / 8
SWEPT_HIDDEN = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
"""Units of the nets whose n passes d r."""

_SWEPT_INPUTS = 3
_SWEPT_POINTS = 20
_NULL = 16  # directions without curvature that are pushed beside those that have some


def _count(values: np.ndarray, bits: Sequence[int], lr: float) -> np.ndarray:
    """What is seen, n - N_p, for each p; eigenvalues that are zero need not be given."""
    return (lr * values[:, None] > np.exp2(-np.asarray(bits, np.float64))).sum(axis=0)


def by_spectrum(seeds: Sequence[int], points: Sequence[int], hidden: int, bits: Sequence[int]) -> dict[str, Labelled]:
    """Directions seen, lr lambda > 2^-p, against the number of images, at random weights and at a zero of the loss near them.

    Args:
        seeds: of images and first weights.
        points: numbers of images.
        hidden: units of the net.
        bits: significand bits.

    Returns:
        `seen`, `rms` and `n`, as in `sizes.measure`.
    """
    seen = np.empty((2, len(points), len(SLOWER), len(bits), len(seeds)))
    rms = np.empty((len(points), len(seeds)))
    for s, seed in enumerate(seeds):
        for k, d in enumerate(points):
            fit = parity_fit(d, hidden=hidden, seed=seed)
            first = first_weights(fit, seed)
            zero = zero_near(fit, first)
            rms[k, s] = np.sqrt(2 * zero.loss / d)
            for place, theta in enumerate((first, zero.theta)):
                values = linearized(fit, theta).curvatures()
                seen[place, k, :, :, s] = [_count(values, bits, largest_lr(values) / slower) for slower in SLOWER]
    dims = ("sizes_place", "sizes_points", "sizes_slower", "sizes_bits", "sizes_seed")
    return {
        "seen": Labelled(dims, seen),
        "rms": Labelled(("sizes_points", "sizes_seed"), rms),
        "n": Labelled((), np.array(66 * hidden + 1)),
    }


def by_push(seeds: Sequence[int], pushed: Sequence[int], hidden: int, bits: Sequence[int]) -> dict[str, Labelled]:
    """Pushes answered by rounded steps against the number of images.

    Args:
        seeds: as in `by_spectrum`.
        pushed: numbers of images.
        hidden: units of the net.
        bits: significand bits.

    Returns:
        `answered`, `wrong`, `pushed_seen`, `moved`, `moved_null`, `rests` and `pushed_n`, as in `sizes.measure`.
    """
    names = ("answered", "wrong", "pushed_seen", "moved", "moved_null", "rests")
    found = {name: np.empty((len(pushed), len(SLOWER), len(bits), len(seeds))) for name in names}
    for s, seed in enumerate(seeds):
        for k, d in enumerate(pushed):
            fit = parity_fit(d, hidden=hidden, seed=seed)
            zero = zero_near(fit, first_weights(fit, seed)).theta
            known = linearized(fit, zero).directions()
            rows = np.concatenate([known.right, _without_curvature(known.right, seed)])
            distance, lr = PUSH * float(np.linalg.norm(zero)), largest_lr(known.values)
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
    dims = ("sizes_pushed", "sizes_slower", "sizes_bits", "sizes_seed")
    return {name: Labelled(dims, values) for name, values in found.items()} | {
        "pushed_n": Labelled((), np.array(66 * hidden + 1))
    }


def _without_curvature(rows: np.ndarray, seed: int) -> np.ndarray:
    """Random unit vectors orthogonal to rows."""
    random = np.random.default_rng([seed, len(rows)]).standard_normal((_NULL, rows.shape[1]))
    for _ in range(2):
        random = random - (random @ rows.T) @ rows
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def by_training(
    seeds: Sequence[int], points: Sequence[int], hidden: int, bits: Sequence[int], batch_size: int, steps: int
) -> dict[str, Labelled]:
    """Directions that training in each format reduces.

    Args:
        seeds: as in `by_spectrum`.
        points: numbers of images.
        hidden: units of the net.
        bits: significand bits.
        batch_size: of the minibatches; full batches are the other arm.
        steps: of descent.

    Returns:
        `reduced` and `lost`, as in `sizes.measure`.
    """
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
    dims = ("sizes_batch", "sizes_rounding", "sizes_trained", "sizes_trained_bits", "sizes_seed")
    return {"reduced": Labelled(dims, reduced), "lost": Labelled(dims, lost)}


def _all_pushed(fits: Sequence[Fit], seeds: Sequence[int]) -> tuple[answers.Pushed, list[np.ndarray], list[np.ndarray]]:
    """Nets at a distance from their zeros, their residuals there to first order, and the directions among the data."""
    starts, lr, before, vectors = [], [], [], []
    for fit, seed in zip(fits, seeds, strict=True):
        zero = zero_near(fit, first_weights(fit, seed)).theta
        known = linearized(fit, zero).directions()
        signs = np.random.default_rng([seed, fit.n]).choice([-1.0, 1.0], len(known.values))
        # A decomposition may give a vector or its opposite: the one whose entries have a positive sum counts.
        signs = signs * np.where(known.right.sum(axis=1) < 0, -1.0, 1.0)
        step = PUSHED * np.linalg.norm(zero) / np.sqrt(len(signs))
        starts.append(zero + step * signs @ known.right)
        lr.append(largest_lr(known.values))
        before.append(step * (signs * np.sqrt(known.values)) @ known.left)
        vectors.append(known.left)
    data, targets = (np.stack([fit.residuals_at.args[i] for fit in fits]) for i in range(2))
    residuals = Partial(fits[0].residuals_at.func, data, targets)
    return answers.Pushed(residuals, np.stack(starts), np.array(lr)), before, vectors


def swept_fit(seed: int, hidden: int) -> Fit:
    """A net of three inputs that is to fit the first 20 images.

    Args:
        seed: of the images.
        hidden: units.

    Example:
        >>> swept_fit(0, 4).n
        21
    """
    return parity_fit(_SWEPT_POINTS, inputs=_SWEPT_INPUTS, hidden=hidden, seed=seed)


def through_n(seeds: Sequence[int], bits: Sequence[int], widths: Sequence[int]) -> dict[str, Labelled]:
    """Directions seen and answered as n passes d = 20, at random weights which the targets fit.

    Args:
        seeds: as in `by_spectrum`.
        bits: significand bits.
        widths: units of the nets.

    Returns:
        `swept_seen`, `swept_answered` and `swept_points`, as in `sizes.measure`.
    """
    shape = (len(widths), len(bits), len(seeds))
    seen, answered, widest = np.empty(shape), np.empty(shape), max(widths)
    for (k, hidden), (s, seed) in product(enumerate(widths), enumerate(seeds)):
        fit, wide = swept_fit(seed, hidden), swept_fit(seed, widest)
        theta = first_weights(fit, seed)  # `answers.push` moves the targets so that these fit: a zero whether n < d or not
        here = linearized(fit, theta)
        known = here.directions()
        lr, distance = largest_lr(known.values), PUSH * float(np.linalg.norm(theta))
        seen[k, :, s] = _count(here.curvatures(), bits, lr)
        rows = np.zeros((_SWEPT_POINTS, wide.n))
        rows[: len(known.right)] = widened(fit, widest, known.right)
        values = np.append(known.values, np.full(_SWEPT_POINTS - len(known.values), np.inf))  # no push, no answer
        for j, fmt in enumerate(float_arms(bits).values()):
            pushes = answers.push(wide.residuals_at, widened(fit, widest, theta), rows, distance, lr, fmt)
            answered[k, j, s] = answers.answers_of(pushes, values, distance, lr)[0]
    dims = ("sizes_swept", "sizes_swept_bits", "sizes_seed")
    return {
        "swept_seen": Labelled(dims, seen),
        "swept_answered": Labelled(dims, answered),
        "swept_points": Labelled((), np.array(_SWEPT_POINTS)),
    }
