"""A problem is five functions and a batch: what there is to minimize, and how to tell whether it went well.

`loss(params, batch)` is the function whose gradient training follows, `batch(key)` draws a random minibatch, `train`
is one fixed batch for everything deterministic (full-batch descent, Hessians, a curve without sampling noise), and
`evaluate` reports what a person wants to know. Data are closed over, so all of them can be jitted, vmapped over
parameters or keys, and scanned. Nothing here knows a number format: parameters may be float32, float64 or narrower,
and the data follow them.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, Float, Int, PRNGKeyArray

__all__ = ["Problem", "cross_entropy", "uniform_indices"]


class Problem(NamedTuple):
    """Something to minimize.

    Attributes:
        name: the name in `PROBLEMS`.
        init: `init(key) -> params`, nested dicts of float32 arrays with readable names.
        loss: `loss(params, batch) -> scalar`, in the dtype of the parameters.
        batch: `batch(key) -> batch`, a fresh random minibatch; jittable, and cheap under vmap.
        evaluate: `evaluate(params) -> {metric: scalar}`; jittable.
        train: a fixed batch, the one that `evaluate` calls the training loss: all training data where they are few.
        answers: what is known exactly, in float64, for a problem with a closed form; None for the others.
    """

    name: str
    init: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    batch: Callable[[Any], Any]
    evaluate: Callable[[Any], dict[str, Any]]
    train: Any
    answers: Any = None


@jax.named_scope("loss")
def cross_entropy(logits: Float[Array, "... classes"], labels: Int[Array, "..."]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the labels, in nats.

    The label's entry is selected rather than multiplied by zeros and ones, so that a log-probability of -inf elsewhere
    makes no NaN, and rather than gathered, so that the gradient needs no scatter. It runs in the named scope "loss".

    Args:
        logits: unnormalized log-probabilities.
        labels: integers from 0 to classes - 1.

    Example:
        >>> float(cross_entropy(jnp.array([[0.0, 0.0], [1000.0, 0.0]]), jnp.array([0, 0]))) * 2
        0.6931471824645996
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    chosen = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.bool_)
    return -jnp.sum(jnp.where(chosen, log_probabilities, 0.0)) / labels.size


def uniform_indices(key: PRNGKeyArray, shape: tuple[int, ...], stop: int) -> Int[Array, "..."]:
    """Random integers from 0 to stop - 1, each with probability 1/stop up to 2^-32.

    The high word of (32 random bits) * stop. `jax.random.randint` draws twice and divides: about twice the work, which
    shows in a sweep of small models.

    Args:
        key: a JAX random key.
        shape: shape of the result.
        stop: 1 to 2^31.

    Example:
        >>> [int(i) for i in uniform_indices(jax.random.key(0), (4,), 10)]
        [9, 9, 3, 4]
    """
    stop = whole("uniform_indices: stop", stop, 1, 1 << 31)
    bits = jax.random.bits(key, shape, jnp.uint32)
    half, low = jnp.uint32(16), jnp.uint32(0xFFFF)
    stop_high, stop_low = jnp.uint32(stop >> 16), jnp.uint32(stop & 0xFFFF)
    # Schoolbook multiplication in halves; neither middle sum exceeds 2^32 - 2^16.
    upper, lower = bits >> half, bits & low
    middle = upper * stop_low + ((lower * stop_low) >> half)
    carried = lower * stop_high + (middle & low)
    return (upper * stop_high + (middle >> half) + (carried >> half)).astype(jnp.int32)


def whole(what: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int, or a sentence that says what was given and what is allowed.

    Raises:
        ValueError: if it is not a whole number of that range.
    """
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be {allowed}; got {value!r}.") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{what} must be {allowed}; got {number}.")
    return number
