"""Sums and products along axes, and running ones, in which every partial result is rounded."""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.arithmetic.sums.accumulation import Accumulation, checked_key, compiled_run
from precisionlab.arithmetic.sums.orders import Operations, reduced, running
from precisionlab.numerics.derivatives import with_exact_derivative
from precisionlab.numerics.modes import Mode

__all__ = ["rounded_cumprod", "rounded_cumsum", "rounded_prod", "rounded_sum"]


def rounded_sum(
    x: Float[Array, "..."], axes: tuple[int, ...], how: Accumulation, mode: Mode, key: PRNGKeyArray | None
) -> Float[Array, "..."]:
    """A sum over some axes with every partial sum rounded, in the row-major order of the axes as given.

    Args:
        x: float32 or float64, any shape; its entries are not rounded before they are added.
        axes: the axes to sum over, which the result lacks.
        how: formats and order; `multiply` means nothing here.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.

    Example:
        >>> from precisionlab import BFLOAT16, nearest_even
        >>> float(rounded_sum(jnp.ones((30, 30)), (0, 1), Accumulation(accumulate=BFLOAT16), nearest_even, None))
        256.0
    """
    key = checked_key(how, mode, key, "rounded_sum")
    axes = _normal(axes, x.ndim)
    return with_exact_derivative(partial(jnp.sum, axis=axes), compiled_run((x,), how, mode, key, _sum, axes), x)


def rounded_cumsum(
    x: Float[Array, "..."], axis: int, reverse: bool, how: Accumulation, mode: Mode, key: PRNGKeyArray | None
) -> Float[Array, "..."]:
    """Running sums along an axis, each rounded.

    All partial sums are wanted, so that they are formed one after the other whatever `order` and `chunk` say.

    Args:
        x: float32 or float64, any shape.
        axis: the axis along which to add.
        reverse: whether to begin at its end.
        how: the format of the sums, and whether they are compensated.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.
    """
    key = checked_key(how, mode, key, "rounded_cumsum")
    return _accumulated(lax.cumsum, x, axis, reverse, how, mode, key)


def rounded_prod(
    x: Float[Array, "..."], axes: tuple[int, ...], how: Accumulation, mode: Mode, key: PRNGKeyArray | None
) -> Float[Array, "..."]:
    """A product over some axes with every partial product rounded to `accumulate`, one after the other from 1.

    The other fields of `how` mean nothing here. The arguments are those of `rounded_sum`.
    """
    key = checked_key(how, mode, key, "rounded_prod")
    axes = _normal(axes, x.ndim)
    return with_exact_derivative(partial(jnp.prod, axis=axes), compiled_run((x,), how, mode, key, _product, axes), x)


def rounded_cumprod(
    x: Float[Array, "..."], axis: int, reverse: bool, how: Accumulation, mode: Mode, key: PRNGKeyArray | None
) -> Float[Array, "..."]:
    """Running products along an axis, each rounded to `accumulate`. The arguments are those of `rounded_cumsum`."""
    key = checked_key(how, mode, key, "rounded_cumprod")
    return _accumulated(lax.cumprod, x, axis, reverse, how, mode, key)


def _accumulated(exact: Any, x: Array, axis: int, reverse: bool, how: Accumulation, mode: Mode, key: Any) -> Array:
    axis = axis % x.ndim
    rounded = compiled_run((x,), how, mode, key, _running, axis, reverse, exact is lax.cumprod)
    return with_exact_derivative(partial(exact, axis=axis, reverse=reverse), rounded, x)


def _normal(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return tuple(axis % ndim for axis in axes)


def _sum(operations: Operations, x: Array, axes: tuple[int, ...]) -> Array:
    terms = _terms(x, axes)
    return reduced(operations, (terms,), terms.shape[1:])


def _product(operations: Operations, x: Array, axes: tuple[int, ...]) -> Array:
    terms = _terms(x, axes)

    def step(partial: Array, numbered: tuple[Array, Array]) -> tuple[Array, None]:
        return _times(operations, partial, (numbered[0],), numbered[1]), None

    return lax.scan(step, jnp.ones(terms.shape[1:], x.dtype), (terms, jnp.arange(terms.shape[0])))[0]


def _running(operations: Operations, x: Array, axis: int, reverse: bool, multiplied: bool) -> Array:
    terms = jnp.moveaxis(x, axis, 0)
    terms = jnp.flip(terms, 0) if reverse else terms
    if multiplied:
        partials = running(operations, (terms,), jnp.ones(terms.shape[1:], x.dtype), partial(_times, operations))
    else:
        zero = lax.optimization_barrier(jnp.zeros(terms.shape[1:], x.dtype))
        partials = running(operations, (terms,), zero)
    return jnp.moveaxis(jnp.flip(partials, 0) if reverse else partials, 0, axis)


def _times(operations: Operations, so_far: Array, term: tuple[Array, ...], index: Any) -> Array:
    return operations.multiply(so_far, term[0], operations.how.accumulate, (0, index))


def _terms(x: Array, axes: tuple[int, ...]) -> Array:
    """All entries over the axes, in their row-major order, as a leading axis."""
    moved = jnp.moveaxis(x, axes, range(len(axes)))
    return moved.reshape(math.prod(moved.shape[: len(axes)]), *moved.shape[len(axes) :])
