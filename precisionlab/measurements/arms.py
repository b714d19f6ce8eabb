"""What the measurements train: nets that start near a minimum, in many formats, until their updates are lost.

Gradient descent in float64 ends where time runs out, in a narrow format where every update is lost. To see the second and not
the first, each seed starts at a fixed distance from a minimum that Levenberg and Marquardt's method found (`distance`), in a
random direction: near enough for descent to take thousands of steps and not millions, and far enough for every format to have
something to do. Whether an arm did stagnate, or ran out of steps, is part of what is returned.

Every seed has data of its own, which travel with it in the state; all formats and seeds are one compiled sweep. Weights are
one float64 vector, the carrier of every format. Full-batch descent has no noise but that of the format.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from precisionlab.formats import Format, fixed_point, ieee_format
from precisionlab.grids import ulp
from precisionlab.landscape import jacobian_spectrum, reach_minima, split_spaces
from precisionlab.landscape.vectors import in_float64
from precisionlab.loops import sweep_chunks
from precisionlab.modes import nearest_even, stochastic, toward_zero
from precisionlab.optimizers import kahan, master_weights
from precisionlab.policy import PLACEMENTS, Policy
from precisionlab.problems.fitting import Fit, digits_fit, generic_fit
from precisionlab.training import make_step, start

__all__ = [
    "EXPONENTS",
    "FIXED",
    "NAMED",
    "PRECISIONS",
    "ROUNDINGS",
    "Descent",
    "Minima",
    "Setting",
    "Trained",
    "descend",
    "exact_minima",
    "first_weights",
    "float_arms",
    "losses_at",
    "make_fits",
    "residuals_of",
    "setting",
    "together",
    "train_arms",
    "train_masked",
    "visible",
]

PRECISIONS = (3, 4, 5, 6, 8, 10, 11, 14, 16, 24, 53)
EXPONENTS = (5, 8, 11)
NAMED = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "tfloat32", "float32")
FIXED = {f"fixed{bits}": fixed_point(4, bits) for bits in (4, 8, 12, 16)}
"""Multiples of 2^-bits below 16 in magnitude."""

ROUNDINGS = ("nearest_even", "toward_zero", "stochastic", "kahan", "master")
"""How the weights' site rounds: three modes; nearest with compensated weights; nearest copies of float64 weights."""

_MODES = {"toward_zero": toward_zero, "stochastic": stochastic}


def float_arms(precisions: Iterable[int] = PRECISIONS, exponents: Iterable[int] = (8,)) -> dict[str, Format]:
    """Floating-point formats by name, `p8e8` for 8 significand bits with the hidden one and 8 exponent bits.

    Example:
        >>> from precisionlab.formats import BFLOAT16, FLOAT64
        >>> arms = float_arms((8, 53), (8, 11))
        >>> list(arms), arms["p8e8"] == BFLOAT16, arms["p53e11"] == FLOAT64
        (['p8e8', 'p8e11', 'p53e8', 'p53e11'], True, True)
    """
    return {f"p{p}e{e}": ieee_format(e, p - 1) for p in precisions for e in exponents}


class Setting(NamedTuple):
    """A net, and for each seed its data, a minimum and a start.

    Attributes:
        residuals: a `Partial` with leaves (seeds, ...): the data of all seeds.
        minima: (seeds, n) where the loss is zero to float64, if `reached`.
        starts: (seeds, n).
        reached: (seeds,) whether it is zero.
        lr: the step size, a power of two with lr lambda <= 1 for the largest eigenvalue over the seeds.
        n: parameters.
        constraints: d r, the number of residuals.
    """

    residuals: Partial
    minima: np.ndarray
    starts: np.ndarray
    reached: np.ndarray
    lr: float
    n: int
    constraints: int


def make_fits(data: str, seeds: Sequence[int], **sizes: Any) -> list[Fit]:
    """A fit for each seed, of generic points or of digits.

    Args:
        data: "generic" or "digits".
        seeds: of the points.
        **sizes: of the net, see `generic_fit`.

    Raises:
        ValueError: for unknown data.
    """
    makers = {"generic": generic_fit, "digits": digits_fit}
    if data not in makers:
        raise ValueError(f"make_fits: data must be one of {', '.join(makers)}; got {data!r}.")
    return [makers[data](seed=int(seed), **sizes) for seed in seeds]


def setting(fits: Sequence[Fit], seeds: Sequence[int], *, distance: float = 0.5) -> Setting:
    """Find a minimum for each seed, and a start at a distance from it.

    Args:
        fits: one for each seed, of one shape.
        seeds: of the first weights and of the signs of the start's modes.
        distance: |start - minimum|, of weights whose root mean square is about 0.6.

    Raises:
        ValueError: if there is no seed, or not one fit for each.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(fits) != len(seeds) or len({(fit.n, fit.d, fit.r) for fit in fits}) > 1:
        raise ValueError(f"setting: give one fit for each seed, of one shape; got {len(fits)} for {len(seeds)} seeds.")
    if not (np.isfinite(distance) and distance >= 0):
        raise ValueError(f"setting: distance must be a number, not negative; got {distance!r}.")
    n, constraints = fits[0].n, fits[0].d * fits[0].r
    residuals = together(fits)
    found = exact_minima(residuals, [first_weights(fit, seed) for fit, seed in zip(fits, seeds, strict=True)])
    starts = found.theta + distance * np.stack(
        [_direction(residuals_of(residuals, s), found.theta[s], seed) for s, seed in enumerate(seeds)]
    )
    largest = max(
        float(jacobian_spectrum(residuals_of(residuals, s), points).values[..., 0].max())
        for s, points in enumerate(np.stack([found.theta, starts], axis=1))
    )
    return Setting(residuals, found.theta, starts, found.reached, 2.0 ** -np.ceil(2 * np.log2(largest)), n, constraints)


def _direction(residuals: Partial, minimum: np.ndarray, seed: int) -> np.ndarray:
    """A unit vector with parts of one size, and random signs, along the right singular vectors of J that are not null."""
    modes = split_spaces(residuals, minimum).row
    # A decomposition may give a vector or its opposite: the one whose entries have a positive sum counts.
    random = np.random.default_rng([seed, len(minimum)])
    signs = random.choice([-1.0, 1.0], modes.shape[1]) * np.where(modes.sum(axis=0) < 0, -1.0, 1.0)
    return modes @ signs / math.sqrt(modes.shape[1])


class Minima(NamedTuple):
    """Where Levenberg and Marquardt's method ended for every seed: theta (..., seeds, n); loss, reached (..., seeds)."""

    theta: np.ndarray
    loss: np.ndarray
    reached: np.ndarray


def exact_minima(residuals: Partial, thetas: Any) -> Minima:
    """A float64 minimum near each point.

    Args:
        residuals: of all seeds, as in a `Setting`.
        thetas: (..., seeds, n).
    """
    points = np.asarray(thetas, np.float64)
    ends = [reach_minima(residuals_of(residuals, seed), points[..., seed, :]) for seed in range(points.shape[-2])]
    axis = points.ndim - 2
    return Minima(*(np.stack([np.asarray(getattr(end, name)) for end in ends], axis=axis) for name in Minima._fields))


def together(fits: Sequence[Fit]) -> Partial:
    """The residuals of fits of one shape, their data stacked along a first axis of seeds."""
    return jax.tree.map(lambda *data: np.stack(data), *[fit.residuals_at for fit in fits])


def residuals_of(residuals: Partial, seed: int) -> Partial:
    """The residuals of one seed."""
    return jax.tree.map(lambda leaf: leaf[seed], residuals)


def losses_at(residuals: Partial, thetas: Any) -> np.ndarray:
    """The loss in float64 at (..., seeds, n), every seed by its own data; (..., seeds)."""
    points = np.asarray(thetas, np.float64)
    with jax.enable_x64(True):
        rows = _losses(residuals, jnp.asarray(points.reshape(-1, *points.shape[-2:])))
    return np.asarray(rows).reshape(points.shape[:-1])


@jax.jit
def _losses(residuals: Partial, thetas: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(lambda data, theta: _loss(theta, data)), in_axes=(None, 0))(residuals, thetas)


def _loss(theta: jax.Array, residuals: Any) -> jax.Array:
    return 0.5 * jnp.sum(jnp.square(residuals(theta)))


@in_float64
def first_weights(fit: Fit, seed: int) -> np.ndarray:
    """Random weights of a net, as a vector (n,)."""
    return np.asarray(ravel_pytree(fit.init(jax.random.key(seed)))[0])


class Trained(NamedTuple):
    """Where the arms ended.

    Attributes:
        theta: (arms, seeds, n) the stored weights, in float64; where they diverged, the start.
        loss: (arms, seeds) in float64 there; inf where they diverged.
        lost: (arms, seeds) the share of the nonzero updates that changed no weight when fates were last read.
        stagnated: (arms, seeds) whether that was every one of them; only under nearest_even and toward_zero, whose next step
            is then the same again for ever, is it an end.
        steps: made.
    """

    theta: np.ndarray
    loss: np.ndarray
    lost: np.ndarray
    stagnated: np.ndarray
    steps: int


@in_float64
def train_arms(
    given: Setting,
    formats: Mapping[str, Format],
    *,
    rounding: str = "nearest_even",
    placement: str = "weights",
    steps: int = 16384,
    chunk: int = 2048,
) -> Trained:
    """Descend from the starts in every format, to the end of the updates or of the steps.

    Args:
        given: from `setting`.
        formats: by name; the arms.
        rounding: one of `ROUNDINGS`.
        placement: one of `PLACEMENTS`: which sites are rounded.
        steps: at most; a multiple of chunk is made.
        chunk: steps between two looks; where every arm has stagnated the rest is left out.

    Raises:
        ValueError: for an unknown rounding or placement, or no formats.
    """
    if rounding not in ROUNDINGS or placement not in PLACEMENTS or not formats:
        raise ValueError(
            f"train_arms: rounding must be one of {', '.join(ROUNDINGS)}, placement one of {', '.join(PLACEMENTS)}, and there "
            f"must be formats; got {rounding!r}, {placement!r}, {len(formats)} formats."
        )
    descent = optax.sgd(given.lr)
    # Compensation and masters have their format compiled in: an arm is a program of its own.
    one_by_one = {"kahan": lambda fmt: optax.chain(descent, kahan(fmt)), "master": lambda fmt: master_weights(descent, fmt)}
    chosen = list(formats.values())
    groups = [[fmt] for fmt in chosen] if rounding in one_by_one else [chosen]
    parts = []
    for group in groups:
        made = one_by_one[rounding](group[0]) if rounding in one_by_one else descent
        sites = [Policy(**dict.fromkeys(PLACEMENTS[placement], fmt)) for fmt in group]
        mode = _MODES.get(rounding, nearest_even)
        plain = make_step(_loss, made, modes=mode, every=chunk, detail=False)
        parts.append(_train(given, sites, plain, made, steps, chunk, settles=rounding in ("nearest_even", "toward_zero")))
    return _joined(given, parts)


@in_float64
def train_masked(given: Setting, formats: Mapping[str, Format], *, steps: int = 16384, chunk: int = 2048) -> Trained:
    """Stagnation without a lattice: float64 weights, whose updates below half a gap of the format are left out.

    Args:
        given: from `setting`.
        formats: by name; the arms.
        steps: as in `train_arms`.
        chunk: as in `train_arms`.
    """
    descent = optax.sgd(given.lr)

    def step(state: Any, batch: Any, policy: Policy) -> Any:
        masked = optax.chain(descent, optax.stateless(partial(visible, fmt=policy.weights)))
        return make_step(_loss, masked, every=chunk, detail=False)(state, batch)

    # The policies say where the gaps are; their weights are rounded nowhere, not even at the start.
    sites = [Policy(weights=fmt) for fmt in formats.values()]
    inner = optax.chain(descent, optax.stateless(lambda updates, _: updates))
    return _joined(given, [_train(given, sites, step, inner, steps, chunk, settles=True, rounded=False)])


def visible(updates: Any, params: Any, fmt: Format) -> Any:
    """The updates that nearest rounding at these weights would not lose, the others zero.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> visible(jnp.array([2.0**-8, 2.0**-9]), jnp.array([1.0, 1.5]), BFLOAT16).tolist(), BFLOAT16.precision
        ([0.0, 0.0], 8)
    """
    return jnp.where(jnp.abs(updates) > 0.5 * ulp(params, fmt), updates, jnp.zeros_like(updates))


class Descent(NamedTuple):
    """A descent in float64.

    Attributes:
        theta: (arms, seeds, n) its end.
        times: (T,) steps: 0, powers of two, and the last.
        loss: (arms, seeds, T) at these times.
    """

    theta: np.ndarray
    times: np.ndarray
    loss: np.ndarray


@in_float64
def descend(given: Setting, thetas: Any, *, steps: int = 16384, chunk: int = 2048) -> Descent:
    """Go on from where arms ended, in plain float64 with the same step size.

    Args:
        given: from `setting`.
        thetas: (arms, seeds, n).
        steps: how many, a power of two of at least chunk.
        chunk: steps of one compiled call.
    """
    points = np.asarray(thetas, np.float64)
    arms, seeds, n = points.shape
    tiled = jax.tree.map(lambda leaf: np.tile(leaf, (arms, *[1] * (leaf.ndim - 1))), given.residuals)
    rows = given._replace(residuals=tiled, starts=points.reshape(-1, n))
    descent = optax.sgd(given.lr)
    plain = make_step(_loss, descent, every=chunk, detail=False)
    losses: list[np.ndarray] = []
    theta = _train(rows, [Policy()], plain, descent, steps, chunk, settles=False, losses=losses)[0]
    path = np.concatenate(losses)[:, 0].reshape(-1, arms, seeds)
    times = np.concatenate([[0], 2 ** np.arange(math.ceil(math.log2(len(path))))])
    theta = theta.reshape(points.shape)
    alive = np.asarray(np.isfinite(theta).all(axis=-1))
    theta = np.where(alive[..., None], theta, points)
    ends = np.where(alive, losses_at(given.residuals, theta), np.inf)
    found = np.concatenate([np.moveaxis(path[times], 0, -1), ends[..., None]], axis=-1)
    return Descent(theta, np.append(times, len(path)), found)


def _joined(given: Setting, parts: Sequence[Any]) -> Trained:
    theta, lost, stagnated = (np.concatenate([part[i] for part in parts]) for i in range(3))
    alive = np.asarray(np.isfinite(theta).all(axis=-1))
    theta = np.where(alive[..., None], theta, given.starts)
    loss = np.where(alive, losses_at(given.residuals, theta), np.inf)
    return Trained(theta, loss, np.where(alive, lost, 0.0), stagnated & alive, max(part[3] for part in parts))


def _train(
    given: Setting,
    policies: Sequence[Policy],
    plain: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    chunk: int,
    *,
    settles: bool,
    rounded: bool = True,
    losses: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    def step(state: Any, _: Any, policy: Policy) -> Any:
        data, inner = state.optimizer
        after, record = plain(state._replace(optimizer=inner), data, policy)
        return after._replace(optimizer=(data, after.optimizer)), record

    keys = jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(len(given.starts))))

    def begin(key: Any, policy: Policy) -> Any:
        seed = jnp.argmax(jnp.all(keys == jax.random.key_data(key)[None, :], axis=1))
        data, theta = jax.tree.map(lambda leaf: jnp.asarray(leaf)[seed], (given.residuals, given.starts))
        state = start(theta, optimizer, policy if rounded else Policy(), key=key)
        return state._replace(optimizer=(data, state.optimizer))

    rows, steps = range(len(given.starts)), chunk * math.ceil(steps / chunk)
    done, theta, lost, landed = 0, np.empty(0), np.empty(0), np.empty(0)
    for state, record in sweep_chunks(step, begin, lambda _: 0, policies, rows, steps=steps, chunk=chunk):
        done += chunk
        landed, lost = (np.asarray(value)[-1] for value in (record.tally.landed, record.tally.lost_fraction))
        theta = np.asarray(state.params)
        if losses is not None:
            losses.append(np.asarray(record.loss))
        if settles and not landed.any():
            break
    return theta, np.where(np.isnan(lost), 0.0, lost), np.asarray(landed == 0), done
