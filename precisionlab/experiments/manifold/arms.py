"""Training in many formats until updates are lost, and on from there in float64.

Whether an arm did stagnate, or ran out of steps, is part of what is returned.

Every seed has data of its own, which travel with it in the state; all formats and seeds are one compiled sweep. Weights are
one float64 vector, the carrier of every format. Full-batch descent has no noise but that of the format.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import PLACEMENTS, Policy
from precisionlab.experiments.manifold.settings import Setting, half_square, losses_at
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import Format
from precisionlab.numerics.grids import ulp
from precisionlab.numerics.modes import nearest_even, stochastic, toward_zero
from precisionlab.optimizers import kahan, master_weights
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import make_step, start

__all__ = ["ROUNDINGS", "Descent", "Trained", "descend", "train_arms", "train_masked", "visible"]

ROUNDINGS = ("nearest_even", "toward_zero", "stochastic", "kahan", "master")
"""How the weights' site rounds: three modes; nearest with compensated weights; nearest copies of float64 weights."""

_MODES = {"toward_zero": toward_zero, "stochastic": stochastic}


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
    descent = _descent()
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
    descent = _descent()

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
        >>> from precisionlab import BFLOAT16
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
    rows = given._replace(residuals=tiled, starts=points.reshape(-1, n), lr=np.tile(given.lr, arms))
    descent = _descent()
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


def _descent() -> optax.GradientTransformation:
    """Gradient descent whose learning rate is in its state: every seed has its own."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)


def _loss(theta: Any, residuals: Any) -> Any:
    return half_square(residuals, theta)


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
        data, theta, lr = jax.tree.map(lambda leaf: jnp.asarray(leaf)[seed], (given.residuals, given.starts, given.lr))
        state = start(theta, optimizer, policy if rounded else Policy(), key=key)
        return state._replace(optimizer=(data, optax.tree.set(state.optimizer, learning_rate=lr)))

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
