"""Reductions over windows, as reductions over an axis: every window gathered, then its entries one after the other.

The entries of a window come in row-major order, after the initial value; padding and the holes of a dilated operand are
entries too, and hold the initial value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from precisionlab._typing import Array

__all__ = ["reduced_windows", "summed_windows", "windows"]


def windows(
    x: Array,
    fill: Any,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Array:
    """Shape (places of axis 0, ..., places of axis n, entries of axis 0, ..., entries of axis n)."""
    holes: list[Any] = [(low, high, gap - 1) for (low, high), gap in zip(padding, base_dilation, strict=True)]
    x, rank = lax.pad(x, fill, holes), x.ndim
    for axis in range(rank):
        reach = (window_dimensions[axis] - 1) * window_dilation[axis]
        places = max(0, (x.shape[2 * axis] - reach - 1) // window_strides[axis] + 1)
        entries = np.arange(window_dimensions[axis])[None, :] * window_dilation[axis]
        x = jnp.take(x, np.arange(places)[:, None] * window_strides[axis] + entries, axis=2 * axis)
    return jnp.transpose(x, (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)))


_SHAPES = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")


def reduced_windows(eqn: Any) -> Callable[..., Any]:
    """A reduction over windows by any function, applied again and again from the initial value on, in row-major order."""
    params = eqn.params
    program = params["jaxpr"]
    combine = jaxpr_as_fun(program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, params["consts"]))
    shape = [params[name] for name in _SHAPES]

    def reduced(*arrays: Array) -> Any:
        operands, starts = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
        gathered = [windows(x, start, *shape) for x, start in zip(operands, starts, strict=True)]
        rank = operands[0].ndim
        # A function of its own is none that `reduce` would take for a sum or a product.
        return lax.reduce(gathered, list(starts), lambda x, y: combine(*x, *y), tuple(range(rank, 2 * rank)))

    return reduced


def summed_windows(eqn: Any) -> Callable[[Array], Array]:
    """Sums over windows, as sums over an axis."""
    shape = [eqn.params[name] for name in _SHAPES]
    return lambda x: jnp.sum(windows(x, np.zeros((), x.dtype), *shape), axis=tuple(range(x.ndim, 2 * x.ndim)))
