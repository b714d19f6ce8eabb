"""What a format does about a push: directions counted by real rounding, in single steps and in training.

Weights rest where the gradient is zero. A minimum of real arithmetic does not lie on a format's lattice; so it is rounded, and
the targets are moved by what that changes in the outputs. Then the rounded weights fit exactly, the gradient there is zero in
every arithmetic, and J, which knows nothing of targets, is what it was.

*By push.* From rest the weights are pushed by +s and by -s along a unit vector v, rounded to the lattice, and one step of
descent is made there: w' = round(w - lr g(w)). In real arithmetic it leads back by lr lambda s along v. The direction is
**answered** if the rounded step leads back by half of that or more, on average over both pushes. (What is even in s, the
curvature of the manifold itself, drops out of that average; a v without curvature has no answer to give.) Chance can answer
too: it answers the wrong way as often, so the directions answered by minus a half or less are counted as well, and the
difference is what a format answers: with 1,000 points the softest directions ask for less than the noise of the lattice, and
half of their answers are chance. With the wider count, *any* moved weight, directions in the null space are answered like all
the others: of thousands of weights some are near zero, where the lattice is as fine as one likes, and the lattice noise of the
push moves them. That count cannot come out against geometry, and it is only reported beside that of the null space.

Half of the weights that count along v have to move, so a direction is answered where about lr lambda s |v_j| > 2^-p |w_j| / 2.
Half the push or half of lr cost one bit; at s = |w| / 8 the count is near n - N_p (`landscape.flatness`). But there pushes are
no longer small for soft directions in formats of many bits: what is even in s moves the weights that the odd part then dithers
on. At |w| / 32 it is not so, and float64's own answer is within a few per cent of lr lambda s in every direction.

*By training.* All directions are pushed at once, each by s / sqrt(k) with a sign of its own, and trained in the format.
Residuals u_i . r over sigma_i are what is left of each push: **reduced** are those of which less than half is left. In real
arithmetic lr lambda steps > ln 2 is enough, so the same training in float64 stands beside it. Minibatches of b points have
gradients scaled by d / b.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.manifold.settings import half_square
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.numerics.rounding import round_to
from precisionlab.problems.base import uniform_indices
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import make_step, start

__all__ = ["ROUNDINGS", "Pushed", "Pushes", "answers_of", "push", "reduced", "train_pushed"]

ROUNDINGS = ("nearest_even", "stochastic")
_MODES = {"nearest_even": nearest_even, "stochastic": stochastic}


class Pushes(NamedTuple):
    """What single steps answered.

    Attributes:
        back: (k,) how far the step led back along each direction, on average over both pushes.
        moved: (k,) how many weights moved, on average over both.
        rests: whether no weight moves without a push.
    """

    back: np.ndarray
    moved: np.ndarray
    rests: bool


class Pushed(NamedTuple):
    """Nets of one shape, one for each seed, pushed along all of their directions at once.

    Attributes:
        residuals: a `Partial` with leaves (seeds, d, ...), zero at the weights at rest.
        starts: (seeds, n) float64, before they are rounded.
        lr: (seeds,).
    """

    residuals: Partial
    starts: np.ndarray
    lr: np.ndarray


@in_float64
def push(residuals: Partial, theta: Any, rows: Any, distance: float, lr: float, fmt: Format) -> Pushes:
    """Push rounded weights along directions, and look at one rounded step from each place.

    Args:
        residuals: of a float64 vector (n,), data (d, k) and targets (d, 1) in a `Partial`, as in a `Fit`.
        theta: (n,) weights, rounded here to the format; targets are moved so that these fit exactly.
        rows: (k, n) unit vectors.
        distance: s, how far each is pushed.
        lr: the step size.
        fmt: of the weights; the gradient is that of float64.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> def line(x, y, w):
        ...     return x @ w - y[:, 0]
        >>> steep = Partial(line, np.diag([1.0, 2.0**-6]), np.zeros((2, 1)))
        >>> found = push(steep, [1.0, 1.0], np.eye(2), 0.125, 0.5, BFLOAT16)   # curvatures 1 and 2^-12
        >>> found.back.tolist(), found.moved.tolist(), found.rests
        ([0.0625, 0.0], [1.0, 0.0], True)
    """
    back, moved, resting = _pushed(residuals, jnp.asarray(theta), jnp.asarray(rows), distance, lr, fmt)
    return Pushes(np.asarray(back), np.asarray(moved), bool(resting))


@jax.jit
def _pushed(residuals: Any, theta: Any, rows: Any, distance: Any, lr: Any, fmt: Format) -> Any:
    rest = round_to(theta, fmt)
    fitted = _fitted(residuals, rest)
    gradient = jax.grad(lambda w: half_square(fitted, w))

    def answered(row: Any) -> Any:
        there = round_to(rest + distance * row, fmt)
        step = round_to(there - lr * gradient(there), fmt) - there
        return -step @ row, jnp.sum(step != 0)

    # One program for all: both pushes of each direction, and none.
    rows = jnp.concatenate([rows, -rows, jnp.zeros_like(rows[:1])])
    back, moved = jax.lax.map(answered, rows, batch_size=8)
    return back[:-1].reshape(2, -1).mean(axis=0), moved[:-1].reshape(2, -1).mean(axis=0), moved[-1] == 0


def _fitted(residuals: Partial, rest: Any) -> Partial:
    """The same residuals with targets that the weights at rest fit."""
    data, targets = residuals.args
    return Partial(residuals.func, data, targets + residuals(rest)[:, None])


def answers_of(pushes: Pushes, values: Any, distance: float, lr: float) -> tuple[int, int]:
    """How many directions were answered by half or more of what real arithmetic does, and how many as much the wrong way.

    Args:
        pushes: from `push`.
        values: (k,) the curvature lambda of each direction; where it is zero there is no answer to give.
        distance: as given to `push`.
        lr: as given to `push`.

    Example:
        >>> answers_of(Pushes(np.array([0.06, 0.0, -0.01]), np.ones(3), True), [1.0, 0.1, 0.01], 0.125, 0.5)
        (1, 1)
    """
    half = 0.5 * lr * np.asarray(values) * distance
    curved = half > 0
    return int((curved & (pushes.back >= half)).sum()), int((curved & (pushes.back <= -half)).sum())


@in_float64
def train_pushed(
    given: Pushed,
    formats: Mapping[str, Format],
    *,
    rounding: str = "nearest_even",
    batch_size: int | None = None,
    steps: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """Train pushed nets in several formats, all seeds and formats in one compiled program.

    Args:
        given: the nets.
        formats: by name, of the weights.
        rounding: one of `ROUNDINGS`.
        batch_size: points in a minibatch, drawn with replacement; all of them once where None.
        steps: of descent.

    Returns:
        Residuals at the end, (formats, seeds, d) in float64, and the share of the nonzero updates that the last step lost,
        (formats, seeds).

    Raises:
        ValueError: for an unknown rounding, no formats, or a batch size or number of steps below 1.
    """
    if rounding not in ROUNDINGS or not formats or steps < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(
            f"train_pushed: rounding must be one of {', '.join(ROUNDINGS)}, there must be formats, and batch_size and steps "
            f"must be at least 1; got {rounding!r}, {len(formats)} formats, batch_size={batch_size}, steps={steps}."
        )
    seeds, d = given.residuals.args[0].shape[:2]
    descent = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    plain = make_step(_batch_loss, descent, modes=_MODES[rounding], every=steps, detail=False)
    keys = jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(seeds)))

    def begin(key: Any, policy: Policy) -> Any:
        seed = jnp.argmax(jnp.all(keys == jax.random.key_data(key)[None, :], axis=1))
        data, theta, lr = jax.tree.map(lambda leaf: jnp.asarray(leaf)[seed], given)
        state = start(theta, descent, policy, key=key)
        return state._replace(optimizer=(data, optax.tree.set(state.optimizer, learning_rate=lr)))

    def step(state: Any, rows: Any, policy: Policy) -> Any:
        data, inner = state.optimizer
        after, record = plain(state._replace(optimizer=inner), (data, rows), policy)
        return after._replace(optimizer=(data, after.optimizer)), record

    def batch(key: Any) -> Any:
        return None if batch_size is None else uniform_indices(key, (batch_size,), d)

    policies = [Policy(weights=fmt) for fmt in formats.values()]
    ((state, record),) = sweep_chunks(step, begin, batch, policies, range(seeds), steps=steps)
    left = jax.jit(jax.vmap(jax.vmap(lambda residuals, w: residuals(w)), in_axes=(None, 0)))(given.residuals, state.params)
    return np.asarray(left), np.nan_to_num(np.asarray(record.tally.lost_fraction)[-1])


def _batch_loss(theta: Any, batch: Any) -> Any:
    """The whole loss; or, of a minibatch, an estimate of it."""
    residuals, rows = batch
    if rows is None:
        return half_square(residuals, theta)
    d = residuals.args[0].shape[0]
    some = jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), residuals)
    return d / rows.size * half_square(some, theta)


def reduced(left: np.ndarray, before: np.ndarray, vectors: np.ndarray) -> int:
    """Along how many directions less than half of the residuals is left.

    Args:
        left: (d,) residuals after training; not finite if it diverged.
        before: (d,) those before.
        vectors: (k, d) the directions, in the space of the data.

    Example:
        >>> reduced(np.array([0.1, 0.9]), np.ones(2), np.eye(2))
        1
    """
    return int((np.abs(vectors @ left) < 0.5 * np.abs(vectors @ before)).sum())
