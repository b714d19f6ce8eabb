"""Rows 3 and 5: what lies beneath a stagnated net? Nothing, or a minimum that its format could not go on to.

Every arm descends in its format until no update lands (`arms.train_arms`). Then the same weights, now float64, descend on with
the same step size. That the loss then falls by orders of magnitude tells nothing of the two sides: where only the format makes
a manifold (`ring`) it does too, and the essay says so. If the minima are there in real arithmetic, the net moves in the row
space of J: a gradient is J^T r and points nowhere else,
and the manifold is so nearly straight on the way that the row space at the end, of d r dimensions, still holds nearly all of
the motion (what it does not hold grows as the square of the length: rounding toward zero to three bits leads farthest away,
and leaves up to a third). Of a motion in no preferred direction it would hold d r / n.

The Hessian there is J^T J + sum_k r_k A_k, with A_k the second derivatives of residual k. The first part has d r eigenvalues
and the second is as large as r. To first order the others are those of the second part in the null space of J, so that
lambda_(d r + 1), by magnitude, is

    sqrt(2 loss) |N^T (sum_k r_k A_k / |r|) N|,

and signs are mixed: no null space, and no minimum. The coefficient depends on the direction of r alone, and it must be divided
out before a slope is taken: with more bits what is left of r turns into the softest mode (from 8% to 91% of |r|^2 between 3
and 24 bits, in the mean over 16 seeds of random points), and where that is very soft the bare slope against the loss comes out
too steep, 0.66 on digits. At the float64 minimum r = 0, and below eigenvalue d r there is nothing but rounding. (Trap: J itself
has a null space of n - d r dimensions at any point, in any format. The Hessian does not.)

Only seeds whose updates were all lost count: the others ran out of steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import above, against, agreement, below, equal, finding, mean_where
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.common.requests import some_seeds
from precisionlab.experiments.manifold.arms import descend, train_arms
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import (
    FIXED,
    NAMED,
    Setting,
    exact_minima,
    float_arms,
    half_square,
    residuals_of,
    setting,
)
from precisionlab.landscape import hessian_spectrum, jacobian, jacobian_spectrum, rank, split_spaces
from precisionlab.numerics.formats import FORMATS
from precisionlab.runs.inference import slopes
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.seeds import sign_test_above

__all__ = ["PRECISIONS", "judge", "measure"]

PRECISIONS = (3, 4, 5, 6, 8, 10, 11, 14, 16, 24)
_DROP = 2.0
"""Orders of magnitude that the loss must fall by to count as falling."""
_NOTHING = 0.3
"""A fall by less than a factor of two is nothing."""
_CLEAN = 10.0
"""Orders of magnitude between the last eigenvalue that counts and the noise, for a null space to be clean."""
_SHARE = 0.9
"""The share of the squared motion that the row space must hold."""
_CHANCE = 0.1
_NO_GAP = 1.5
"""Orders of magnitude between neighbouring eigenvalues that are no gap."""
_SLOPE = 0.05
_COARSE = 6
"""Up to so many bits the second part of the Hessian should be as large as the first: no gap."""


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    precisions: Sequence[int] = PRECISIONS,
    others: bool = True,
    placements: Sequence[str] = ("weights", "gradients", "all"),
    steps: int = 16384,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Stagnate in many arms, unfreeze, and look at the Hessian.

    Args:
        seeds: at least one.
        net: what is trained.
        precisions: significand bits, with eight exponent bits.
        others: whether the named formats, fixed point, and rounding toward zero (weights alone) are arms too.
        placements: which sites are rounded, each an arm of every precision.
        steps: of the descent in the format, at most, and of that in float64; a power of two of at least 2048.
        progress: called with a few words and the share that is done.

    Returns:
        Over (stagnation_arm, seed): `stagnation_loss`, `_lost`, `_stagnated` at the end in the format; `_loss_after` as it
        descends in float64 (and stagnation_time); `_loss_minimum` and `_reached` by Levenberg and Marquardt from there;
        `_motion`, its length in float64, and `_row_share`. Over (stagnation_format, seed), rounded weights: `_eigenvalues`
        (and stagnation_index), `_floor` and `_coefficient` where it stagnated; `_minimum_eigenvalues` and `_minimum_floor`
        over seed at the minimum, reached from the finest. `stagnation_constraints` is d r.

    Raises:
        ValueError: for no seeds, or what makes no fit or arm.
    """
    seeds = some_seeds("stagnation", seeds)
    if not placements or placements[0] != "weights":
        raise ValueError(f'stagnation: placements must begin with "weights", whose spectra are taken; got {list(placements)}.')
    tell = progress or (lambda *_: None)
    given = setting(net, seeds)
    tell("minima", 0.1)
    floats = float_arms(precisions)
    runs = [(floats, "nearest_even", placement) for placement in placements]
    if others:
        runs += [({name: FORMATS[name] for name in NAMED if name != "float32"} | FIXED, "nearest_even", "weights")]
        runs += [(floats, "toward_zero", "weights")]
    made, names = [], []
    for number, (formats, rounding, placement) in enumerate(runs):
        made.append(train_arms(given, formats, rounding=rounding, placement=placement, steps=steps))
        names += [f"{name} {placement}" + (" RTZ" if rounding == "toward_zero" else "") for name in formats]
        tell(f"stagnating: {placement}", 0.1 + 0.5 * (number + 1) / len(runs))
    theta, loss, lost, stagnated = (np.concatenate([getattr(one, field) for one in made]) for field in _ENDS)
    after = descend(given, theta, steps=steps)
    tell("unfreezing", 0.85)
    minima = exact_minima(given.residuals, theta)
    arm_seed = ("stagnation_arm", "seed")
    arrays = {
        "stagnation_loss": Labelled(arm_seed, loss),
        "stagnation_lost": Labelled(arm_seed, lost),
        "stagnation_stagnated": Labelled(arm_seed, stagnated),
        "stagnation_loss_after": Labelled((*arm_seed, "stagnation_time"), after.loss),
        "stagnation_loss_minimum": Labelled(arm_seed, minima.loss),
        "stagnation_reached": Labelled(arm_seed, minima.reached),
        "stagnation_row_share": Labelled(arm_seed, _row_share(given, after.theta - theta, after.theta)),
        "stagnation_motion": Labelled(arm_seed, np.linalg.norm(after.theta - theta, axis=-1)),
        "stagnation_constraints": Labelled((), np.array(given.constraints)),
    }
    first, everyone = slice(len(floats)), range(len(seeds))
    spectra = [_spectrum(given, theta[first, seed], seed) for seed in everyone]
    at_minimum = [_spectrum(given, minima.theta[len(floats) - 1, seed], seed) for seed in everyone]
    turned = [_coefficients(given, theta[first, seed], minima.theta[first, seed], seed) for seed in everyone]
    of_format = ("stagnation_format", "seed")
    arrays |= {
        "stagnation_eigenvalues": Labelled((*of_format, "stagnation_index"), np.stack([one.values for one in spectra], axis=1)),
        "stagnation_floor": Labelled(of_format, np.stack([one.floor for one in spectra], axis=1)),
        "stagnation_coefficient": Labelled(of_format, np.stack(turned, axis=1)),
        "stagnation_minimum_eigenvalues": Labelled(("seed", "stagnation_index"), np.stack([one.values for one in at_minimum])),
        "stagnation_minimum_floor": Labelled(("seed",), np.stack([one.floor for one in at_minimum])),
    }
    tell("spectra", 1.0)
    coords = {
        "seed": seeds,
        "stagnation_arm": names,
        "stagnation_time": after.times.tolist(),
        "stagnation_format": list(precisions),
        "stagnation_index": list(range(1, given.n + 1)),
    }
    return Measured(coords, arrays)


_ENDS = ("theta", "loss", "lost", "stagnated")


def _row_share(given: Setting, motion: np.ndarray, at: np.ndarray) -> np.ndarray:
    """|part of the motion in the row space of J|^2 / |motion|^2, (arms, seeds); NaN where nothing moved."""
    shares = np.full(motion.shape[:2], np.nan)
    for seed in range(motion.shape[1]):
        data, moved = residuals_of(given.residuals, seed), motion[:, seed]
        ranks = np.asarray(rank(jacobian_spectrum(data, at[:, seed])))
        rows = np.linalg.svd(jacobian(data, at[:, seed]), full_matrices=False)[2]
        along = np.square(rows @ moved[..., None])[..., 0] * (np.arange(rows.shape[1]) < ranks[:, None])
        lengths = np.sum(np.square(moved), axis=-1)
        shares[:, seed] = np.where(lengths > 0, along.sum(axis=-1) / np.where(lengths > 0, lengths, 1.0), np.nan)
    return shares


def _spectrum(given: Setting, thetas: np.ndarray, seed: int) -> Any:
    return hessian_spectrum(Partial(half_square, residuals_of(given.residuals, seed)), thetas)


def _coefficients(given: Setting, thetas: np.ndarray, minima: np.ndarray, seed: int) -> np.ndarray:
    """|N^T (sum_k r_k A_k / |r|) N| with r where it stagnated, and A and the null space N at the minimum nearby; (formats,)."""
    residuals = residuals_of(given.residuals, seed)
    with jax.enable_x64(True):
        made = [
            np.asarray(_second_part(residuals, jnp.asarray(a), jnp.asarray(b))) for a, b in zip(thetas, minima, strict=True)
        ]
    inside = [split_spaces(residuals, point).null for point in minima]
    return np.array([np.linalg.norm(null.T @ part @ null, 2) for null, part in zip(inside, made, strict=True)])


@jax.jit
def _second_part(residuals: Any, theta: Any, minimum: Any) -> Any:
    r = residuals(theta)
    return jax.hessian(lambda at: jnp.sum(r / jnp.linalg.norm(r) * residuals(at)))(minimum)


def judge(measured: Measured) -> tuple[Finding, ...]:
    """Does the loss fall, and in the row space; is the stagnated point a minimum?

    Args:
        measured: what `measure` returned.

    Returns:
        Two findings of row 3: on the fall of the loss in the arm of each seed where it falls least, which both sides predict,
        and on the motion in the mean over a seed's arms that did fall. Three of row 5, where there is an eigenvalue d r + 1
        (n > d r); of seeds without a zero of the loss they say nothing.
    """
    arrays = {name.removeprefix("stagnation_"): array.values for name, array in measured.arrays.items()}
    settled = arrays["stagnated"].astype(bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        fallen = np.log10(arrays["loss"] / arrays["loss_after"][..., -1])
    n, constraints = len(measured.coords["stagnation_index"]), int(arrays["constraints"])
    drop, share = _least(fallen, settled), mean_where(arrays["row_share"], settled & (fallen > _NOTHING), 0)
    chance = min(1.0, constraints / n)
    findings = (
        Finding(
            3,
            "square",
            above("unfrozen in float64, the loss falls by orders of magnitude (log10)", drop, _DROP),
            None,
            float("nan"),
        ),
        finding(
            3,
            above("share of the squared motion that lies in the row space", share, _SHARE),
            equal("share of the motion in the row space is that of any direction, d r / n", share, chance, _CHANCE),
            sign_test_above(-share, -_SHARE),
            sign_test_above(share, chance + _CHANCE),
        ),
    )
    return findings if constraints >= n else (*findings, *_of_spectra(measured, arrays, constraints))


def _of_spectra(measured: Measured, arrays: dict[str, np.ndarray], constraints: int) -> tuple[Finding, ...]:
    """Row 5, of the formats whose weights alone are rounded."""
    bits = np.asarray(measured.coords["stagnation_format"])
    values, floor = arrays["eigenvalues"], arrays["floor"]
    loss, reached = arrays["loss"][: len(bits)], np.asarray(arrays["reached"][: len(bits)].all(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log2([loss, _magnitudes(values, constraints)[1] / arrays["coefficient"]])
        powers = [slopes(*both[:, :, seed]) if reached[seed] else np.nan for seed in range(len(reached))]
        gaps = np.log10(_gap(values, floor, constraints))
        clean = np.log10(_gap(arrays["minimum_eigenvalues"], arrays["minimum_floor"], constraints))
    found = np.array(powers, np.float64)
    coarse = bits <= max(_COARSE, bits.min())
    widest = np.where(reached, gaps[coarse].max(axis=0), np.nan)
    negative = (values < -floor[..., None]).sum(axis=-1)[coarse].min(axis=0)
    at_minimum = above("at the float64 minimum the gap after eigenvalue d r is ten orders or more (log10)", clean, _CLEAN)
    none = below("no gap after eigenvalue d r where it stagnates with few bits; at the minimum ten orders (log10)", widest, 1.5)
    last = "eigenvalue d r + 1"
    return (
        finding(
            5,
            equal(f"{last} where it stagnates, of residuals of one direction, is a power of the loss", found, 0.5, _SLOPE),
            equal(f"{last} is zero whatever the loss: a power of", found, 0.0, _SLOPE),
            sign_test_above(-found, _SLOPE - 0.5),
            sign_test_above(found, _SLOPE),
        ),
        finding(
            5,
            none if at_minimum.held else at_minimum,
            above("a clean null space where it stagnates: a gap of ten orders (log10)", widest, _CLEAN),
            sign_test_above(widest, _NO_GAP) if at_minimum.held else sign_test_above(-clean, -_CLEAN),
            sign_test_above(-widest, -_CLEAN),
        ),
        finding(
            5,
            agreement("negative eigenvalues beyond the noise where it stagnates with few bits", reached & (negative > 0)),
            _share_of_none(negative == 0),
            against(reached & (negative > 0)),
            against(negative == 0),
        ),
    )


def _share_of_none(none: np.ndarray) -> Claim:
    """That no seed has one: what the other side predicts of the share of seeds that have."""
    claim = agreement("negative eigenvalues beyond the noise where it stagnates with few bits", none)
    return claim._replace(predicted=0.0, measured=1 - claim.measured, low=1 - claim.high, high=1 - claim.low)


def _least(values: np.ndarray, settled: np.ndarray) -> np.ndarray:
    """The least over the settled arms of each seed; NaN where there is none."""
    kept = np.where(settled, values, np.inf).min(axis=0)
    return np.where(settled.any(axis=0), kept, np.nan)


def _magnitudes(values: np.ndarray, constraints: int) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues number d r and d r + 1 by magnitude."""
    sizes = -np.sort(-np.abs(values), axis=-1)
    return sizes[..., constraints - 1], sizes[..., constraints]


def _gap(values: np.ndarray, floor: np.ndarray, constraints: int) -> np.ndarray:
    last, following = _magnitudes(values, constraints)
    return last / np.maximum(following, floor)
