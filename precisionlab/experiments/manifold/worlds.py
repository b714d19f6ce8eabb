"""The worlds in which the question is asked: one kind of net, and what it is trained to.

    square                      half the squared residuals: the minima are a manifold, if the theorem's conditions hold
    square_with_decay           and mu |theta|^2 / 2: of the manifold a few points are left, where the Hessian is at least mu
    cross_entropy               labels that take turns: separable, so that there is no minimum at all
    cross_entropy_with_decay    and mu |theta|^2 / 2: a few points

All of them are one function of numbers (`objective`), and hence one compiled program. The dial of the two with decay is lr mu:
its pull on a weight of size |w| is lr mu |w| a step, half the gap of p bits between 2^-(p+1) |w| and 2^-p |w|, so nearest
rounding loses it for every weight below p = -log2(lr mu), and from there on for a part of them only: at p = -log2(lr mu) for
powers of two alone. The essay's premise is regularization; this is its simplest form.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import setting
from precisionlab.landscape.vectors import in_float64

__all__ = ["NETWORKS", "Objective", "World", "joined", "margins_at", "networks", "objective", "predicted_bits"]

NETWORKS = ("square", "square_with_decay", "cross_entropy", "cross_entropy_with_decay")
"""The names of the worlds of nets."""


class World(NamedTuple):
    """Something to descend, for a number of seeds.

    Attributes:
        loss: `loss(theta, data)` of one seed, theta (n,) float64; data are arguments, so that seeds share a program.
        data: leaves (seeds, ...).
        starts: (seeds, n) where descent begins.
        lr: (seeds,) its step size.
        trained: whether it does descend before anything is asked; if not, the starts are where it is asked.
    """

    loss: Callable[[Any, Any], Any]
    data: Any
    starts: np.ndarray
    lr: np.ndarray
    trained: bool = True

    def of(self, seeds: Any) -> "World":
        """The same with some of the seeds, by their places."""
        data = jax.tree.map(lambda leaf: np.asarray(leaf)[seeds], self.data)
        return self._replace(data=data, starts=self.starts[seeds], lr=self.lr[seeds])


class Objective(NamedTuple):
    """The numbers of `objective`: residuals of a net, its targets (d r,), signs (d r,), 1 or 0 for cross-entropy, mu."""

    residuals: Partial
    targets: Any
    signs: Any
    crossed: Any
    decay: Any


def objective(theta: Any, data: Objective) -> Any:
    """What a net is trained to: half its squared residuals or the cross-entropy of two classes, and a decay of its weights.

    Args:
        theta: (n,).
        data: of one seed.

    Example:
        >>> data = Objective(Partial(lambda theta: theta - 1.0), jnp.ones(1), jnp.ones(1), 0.0, 0.5)
        >>> [round(float(objective(jnp.array([3.0]), data._replace(crossed=crossed))), 4) for crossed in (0.0, 1.0)]
        [4.25, 2.2986]
    """
    residuals = data.residuals(theta)
    margins = data.signs * (residuals + data.targets)
    fit = jnp.where(data.crossed > 0, jnp.sum(jnp.logaddexp(0.0, -margins)), 0.5 * jnp.sum(jnp.square(residuals)))
    return fit + 0.5 * data.decay * jnp.sum(jnp.square(theta))


@in_float64
def margins_at(world: World, theta: np.ndarray) -> np.ndarray:
    """By how much the least sure point of each seed is on the right side: the least of sign times output.

    Args:
        world: from `networks`.
        theta: (seeds, n).

    Returns:
        (seeds,).
    """
    return np.asarray(_margins(theta, world.data)).min(axis=-1)


@jax.jit
def _margins(theta: Any, data: Objective) -> Any:
    return jax.vmap(lambda at, one: one.signs * (one.residuals(at) + one.targets))(theta, data)


def predicted_bits(dial: float) -> float:
    """The precision below which decay with lr mu = 2^-dial moves no weight: the half-gap law, p = -log2(lr mu) = dial."""
    return float(dial)


def networks(net: Net, seeds: Sequence[int], *, dial: float = 9.0) -> dict[str, World]:
    """The four worlds of one kind of net, each seed with data of its own.

    Args:
        net: what is trained.
        seeds: at least one.
        dial: -log2(lr mu) where there is decay.

    Returns:
        By name (`NETWORKS`). They start near a zero of the square loss (`settings.setting`). The step size is a power of two:
        the largest with lr lambda <= 1 at start and minimum for the square loss; with lr s^2 / 4 <= 1 for cross-entropy, s the
        largest singular value of J there, since its second derivative is at most 1/4 in each logit.

    Raises:
        ValueError: for no seeds, or what makes no fit.

    Example:
        >>> worlds = networks(Net(), [100])
        >>> world = worlds["square_with_decay"]
        >>> world.starts.shape, float(np.log2(world.lr * world.data.decay)[0])
        ((1, 41), -9.0)
    """
    given = setting(net, seeds)
    rates = {False: given.lr, True: 4 * given.lr}
    targets = given.residuals.args[1].reshape(len(seeds), -1)
    signs = np.broadcast_to(np.where(np.arange(targets.shape[1]) % 2, 1.0, -1.0), targets.shape)
    made = {}
    for name in NETWORKS:
        crossed = name.startswith("cross")
        decay = 2.0**-dial / rates[crossed] if name.endswith("decay") else np.zeros(len(seeds))
        numbers = Objective(given.residuals, targets, signs, np.full(len(seeds), float(crossed)), decay)
        made[name] = World(objective, numbers, given.starts, rates[crossed])
    return made


def joined(worlds: Sequence[World]) -> World:
    """Worlds of one loss and one shape as one, their seeds one after another.

    Args:
        worlds: at least one.
    """
    data = jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *[world.data for world in worlds]
    )
    starts, lr = (np.concatenate([getattr(world, name) for world in worlds]) for name in ("starts", "lr"))
    return worlds[0]._replace(data=data, starts=starts, lr=lr)
