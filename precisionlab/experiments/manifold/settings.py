"""Where the measurements train: formats by name, and nets that start near a minimum, each seed with data of its own.

Gradient descent in float64 ends where time runs out, in a narrow format where every update is lost. To see the second and not
the first, each seed starts at a fixed distance from a minimum that Levenberg and Marquardt's method found (`distance`), in a
random direction: near enough for descent to take thousands of steps and not millions, and far enough for every format to have
something to do.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from precisionlab.experiments.common.requests import some_seeds
from precisionlab.experiments.manifold.nets import Net
from precisionlab.landscape import jacobian_spectrum, reach_minima, split_spaces
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import Format, fixed_point, ieee_format
from precisionlab.problems.fitting import Fit

__all__ = [
    "EXPONENTS",
    "FIXED",
    "NAMED",
    "PRECISIONS",
    "Minima",
    "Setting",
    "exact_minima",
    "first_weights",
    "float_arms",
    "half_square",
    "losses_at",
    "minima_of",
    "residuals_of",
    "setting",
]

PRECISIONS = (3, 4, 5, 6, 8, 10, 11, 14, 16, 24, 53)
EXPONENTS = (5, 8, 11)
NAMED = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "tfloat32", "float32")
FIXED = {f"fixed{bits}": fixed_point(4, bits) for bits in (4, 8, 12, 16)}
"""Multiples of 2^-bits below 16 in magnitude."""


def float_arms(precisions: Iterable[int] = PRECISIONS, exponents: Iterable[int] = (8,)) -> dict[str, Format]:
    """Floating-point formats by name, `p8e8` for 8 significand bits with the hidden one and 8 exponent bits.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT64
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
        lr: (seeds,) the step size of each, the largest power of two with lr lambda <= 1 for the largest eigenvalue at its
            minimum and start: what a format cannot see depends on lr, and no seed's on what other seeds there are.
        n: parameters.
        constraints: d r, the number of residuals.
    """

    residuals: Partial
    minima: np.ndarray
    starts: np.ndarray
    reached: np.ndarray
    lr: np.ndarray
    n: int
    constraints: int


def setting(net: Net, seeds: Sequence[int], *, distance: float = 0.5) -> Setting:
    """Find a minimum for each seed, and a start at a distance from it.

    Args:
        net: what is trained.
        seeds: of the points, of the first weights and of the signs of the start's modes.
        distance: |start - minimum|, of weights whose root mean square is about 0.6.

    Raises:
        ValueError: if there is no seed, or what makes no fit.
    """
    seeds = some_seeds("setting", seeds)
    if not (np.isfinite(distance) and distance >= 0):
        raise ValueError(f"setting: distance must be a number, not negative; got {distance!r}.")
    residuals, found = minima_of(net, seeds)
    starts = found.theta + distance * np.stack(
        [_direction(residuals_of(residuals, s), found.theta[s], seed) for s, seed in enumerate(seeds)]
    )
    largest = np.array(
        [
            jacobian_spectrum(residuals_of(residuals, s), points).values[..., 0].max()
            for s, points in enumerate(np.stack([found.theta, starts], axis=1))
        ]
    )
    lr = 2.0 ** -np.ceil(2 * np.log2(largest))
    n, constraints = found.theta.shape[1], net.points * net.outputs
    return Setting(residuals, found.theta, starts, found.reached, lr, n, constraints)


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


def minima_of(net: Net, seeds: Sequence[int]) -> tuple[Partial, Minima]:
    """The residuals of all seeds, as in a `Setting`, and a minimum near random weights of each.

    Args:
        net: what is to fit.
        seeds: of the points and of the first weights; at least one.
    """
    fits = net.fits(seeds)
    residuals = jax.tree.map(lambda *data: np.stack(data), *[fit.residuals_at for fit in fits])
    return residuals, exact_minima(residuals, [first_weights(fit, seed) for fit, seed in zip(fits, seeds, strict=True)])


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
    return jax.vmap(jax.vmap(half_square), in_axes=(None, 0))(residuals, thetas)


def half_square(residuals: Any, theta: Any) -> Any:
    """The loss: half the sum of the squared residuals at these weights."""
    return 0.5 * jnp.sum(jnp.square(residuals(theta)))


@in_float64
def first_weights(fit: Fit, seed: int) -> np.ndarray:
    """Random weights of a net, as a vector (n,)."""
    return np.asarray(ravel_pytree(fit.init(jax.random.key(seed)))[0])
