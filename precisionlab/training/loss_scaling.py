"""Loss scaling: small gradients are moved into the range of a narrow format before they are stored in it.

What float16 or e5m2 rounds to zero survives if the loss is multiplied by a scale before the backward pass, since every
gradient is then as many times larger, and is divided by it afterwards, in float32 (P. Micikevicius et al., "Mixed precision
training", 2018). The scale is a number in the state:

    static     it never changes
    dynamic    a step whose gradients are not finite is skipped and the scale halved; after `period` good steps it is doubled

Scales are powers of two, by which multiplying and dividing only move the exponent. Any other scale would round each gradient
twice more, which is why no other is taken.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Float, Int, PyTree
from precisionlab.numerics.carriers import widened

__all__ = [
    "LossScale",
    "all_finite",
    "dynamic_loss_scale",
    "next_scale",
    "scale_loss",
    "select_step",
    "static_loss_scale",
    "unscale",
]

_LARGEST = 100  # of the exponents: the inverse of a scale must be a normal number too, with room for the gradients


class LossScale(NamedTuple):
    """The scale, the rule by which it changes, and what has happened so far.

    Attributes:
        scale: what the next loss is multiplied by.
        good_steps: steps with finite gradients since the scale last changed, or was last due to.
        skipped: steps skipped so far, because their gradients were not finite.
        period: good steps in a row after which the scale grows.
        growth: the factor by which it then grows.
        backoff: the factor by which it shrinks when a step is skipped.
        smallest: it shrinks no further.
        largest: it grows no further.
    """

    scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    skipped: Int[Array, ""]
    period: Int[Array, ""]
    growth: Float[Array, ""]
    backoff: Float[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]


def static_loss_scale(scale: float) -> LossScale:
    """A scale that never changes; steps whose gradients are not finite are skipped all the same.

    Args:
        scale: a power of two.

    Raises:
        ValueError: if it is none, or lies beyond 2^-100 to 2^100.

    Example:
        >>> float(next_scale(static_loss_scale(1024), False).scale)
        1024.0
    """
    return _loss_scale("static_loss_scale", scale, 1, period=2**31 - 1, growth=1.0, smallest=scale, largest=scale)


def dynamic_loss_scale(
    scale: float = 2.0**15,
    period: int = 2000,
    *,
    growth: float = 2.0,
    smallest: float = 1.0,
    largest: float = 2.0**24,
) -> LossScale:
    """A scale that looks for the largest value at which gradients stay finite.

    Args:
        scale: where to begin, a power of two.
        period: after so many good steps in a row it grows.
        growth: the factor by which it grows, and by whose inverse it shrinks when a step is skipped; a power of two.
        smallest: it shrinks no further; a power of two.
        largest: it grows no further; a power of two.

    Raises:
        ValueError: for a factor or a scale that is no power of two, bounds that do not enclose it, or a period below 1.

    Example:
        >>> state = dynamic_loss_scale(2.0**15, period=2)
        >>> scales = []
        >>> for finite in (True, True, False, True):
        ...     state = next_scale(state, finite)
        ...     scales.append(float(state.scale))
        >>> scales, int(state.skipped)
        ([32768.0, 65536.0, 32768.0, 32768.0], 1)
    """
    return _loss_scale("dynamic_loss_scale", scale, 2, period=period, growth=growth, smallest=smallest, largest=largest)


def _loss_scale(
    where: str, scale: float, least_growth: int, *, period: int, growth: float, smallest: float, largest: float
) -> LossScale:
    numbers = {"scale": scale, "growth": growth, "smallest": smallest, "largest": largest}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ValueError(f"{where}: {name} must be a number, a power of two such as 1024; got {value!r}.")
        if not (math.isfinite(value) and value > 0) or math.frexp(value)[0] != 0.5:
            nearest = f"; the nearest is {2.0 ** round(math.log2(value)):g}" if math.isfinite(value) and value > 0 else ""
            raise ValueError(f"{where}: {name} must be a power of two, so that scaling rounds nothing; got {value!r}{nearest}.")
        if not -_LARGEST <= math.log2(value) <= _LARGEST:
            raise ValueError(f"{where}: {name} must lie from 2^-{_LARGEST} to 2^{_LARGEST}; got {value!r}.")
    if growth < least_growth:
        raise ValueError(f"{where}: growth must be at least {least_growth}; got {growth!r}.")
    if not smallest <= scale <= largest:
        raise ValueError(
            f"{where}: the scale must lie between smallest and largest; got scale={scale!r}, smallest={smallest!r}, "
            f"largest={largest!r}."
        )
    if isinstance(period, bool) or not isinstance(period, int | np.integer) or not 1 <= period < 2**31:
        raise ValueError(f"{where}: period must be a whole number of steps, at least 1; got {period!r}.")
    factors = (growth, 1 / growth, smallest, largest)
    return LossScale(jnp.float32(scale), jnp.int32(0), jnp.int32(0), jnp.int32(period), *map(jnp.float32, factors))


def scale_loss(state: LossScale, loss: Float[Array, ""]) -> Float[Array, ""]:
    """The loss times the scale, to be differentiated in place of the loss.

    With `unscale`, `next_scale` and `select_step` this is loss scaling in any training loop:

    Example:
        >>> import optax
        >>> optimizer = optax.sgd(2.0**20)
        >>> def loss(w, x):
        ...     return x * (x * w.astype(jnp.float16))
        >>> @jax.jit
        ... def step(params, opt_state, scale, x):
        ...     gradient = unscale(scale, jax.grad(lambda w: scale_loss(scale, loss(w, x)))(params))
        ...     finite = all_finite(gradient)
        ...     updates, new_state = optimizer.update(gradient, opt_state, params)
        ...     new = (optax.apply_updates(params, updates), new_state)
        ...     return *select_step(finite, new, (params, opt_state)), next_scale(scale, finite)
        >>> params = jnp.float32(1.0)
        >>> x = jnp.float16(2.0**-13)  # the gradient, 2^-26, is zero in float16
        >>> new, opt_state, scale = step(params, optimizer.init(params), static_loss_scale(1), x)
        >>> scaled, opt_state, scale = step(params, optimizer.init(params), dynamic_loss_scale(2.0**10), x)
        >>> float(new), float(scaled) == 1 - 2.0**-6
        (1.0, True)
    """
    return loss * state.scale.astype(loss.dtype)


def unscale(state: LossScale, gradients: PyTree[Array]) -> PyTree[Array]:
    """The gradients divided by the scale, in float32 (float64 stays): exact down to the smallest normal number."""

    def leaf(gradient: Array) -> Array:
        wide = widened(gradient)
        return wide * (1 / state.scale).astype(wide.dtype)

    return jax.tree.map(leaf, gradients)


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite.

    Example:
        >>> bool(all_finite({"a": jnp.ones(3), "b": jnp.array([1.0, jnp.inf])}))
        False
    """
    # Of what was stored: widened, no compiler may judge the value that was to be.
    finite = [jnp.all(jnp.isfinite(widened(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.bool_(True)


def next_scale(state: LossScale, finite: Bool[Array, ""] | bool) -> LossScale:
    """The state after a step whose gradients were all finite, or after one that was skipped because they were not."""
    good = state.good_steps + 1
    due = good >= state.period
    grown = jnp.where(due, jnp.minimum(state.scale * state.growth, state.largest), state.scale)
    shrunk = jnp.maximum(state.scale * state.backoff, state.smallest)
    return state._replace(
        scale=jnp.where(finite, grown, shrunk),
        good_steps=jnp.where(finite & ~due, good, 0),
        skipped=state.skipped + jnp.where(finite, 0, 1),
    )


def select_step(finite: Bool[Array, ""] | bool, new: Any, old: Any) -> Any:
    """`new` where the gradients were finite, `old` where the step is skipped; any two trees of one structure.

    Example:
        >>> select_step(False, {"w": jnp.ones(2)}, {"w": jnp.zeros(2)})["w"].tolist()
        [0.0, 0.0]
    """
    return jax.tree.map(lambda ours, theirs: jnp.where(finite, ours, theirs), new, old)
