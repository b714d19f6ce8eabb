"""Convolutions as contractions: every window of the input against every kernel.

Gathering the windows moves numbers and changes none, so that a convolution is rounded as `contract` rounds a product. Its terms
run over the input channels of a group, outermost, then over the taps of the kernel in row-major order. Padding and the holes of
a dilated input are terms too: products with +0.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.arithmetic.sums.accumulation import Accumulation, contract
from precisionlab.numerics.derivatives import constant, with_exact_derivative
from precisionlab.numerics.modes import Mode

__all__ = ["rounded_convolution"]


def rounded_convolution(
    lhs: Float[Array, "..."],
    rhs: Float[Array, "..."],
    how: Accumulation,
    mode: Mode,
    key: PRNGKeyArray | None,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
) -> Float[Array, "..."]:
    """`lax.conv_general_dilated` with every product and every partial sum rounded.

    It holds all windows at once: as many copies of the input as the kernel has taps, over the strides. The derivative is that
    of the exact convolution.

    Args:
        lhs: the input, float32 or float64.
        rhs: the kernel, the same dtype.
        how: formats and order.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.
        window_strides: with all that follows, the parameters of the equation of `lax.conv_general_dilated`.
        padding: pairs (low, high), which may be negative.
        lhs_dilation: the distance of neighbours in the dilated input.
        rhs_dilation: the distance of neighbouring taps.
        dimension_numbers: the positions of batch or output channels, channels, and spatial dimensions.
        feature_group_count: groups of input channels, each with its own kernels.
        batch_group_count: groups of the batch, each with its own kernels.

    Returns:
        The convolution, in the layout that `dimension_numbers` asks for.
    """
    exact = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=lax.Precision.HIGHEST,
    )
    given, kernel = constant(lhs), constant(rhs)
    kernel = jnp.transpose(kernel, dimension_numbers.rhs_spec)  # output channels, channels of a group, taps
    windows = _windows(
        jnp.transpose(given, dimension_numbers.lhs_spec), kernel.shape[2:], window_strides, padding, lhs_dilation, rhs_dilation
    )
    batch, channels, rank = windows.shape[0], windows.shape[1], kernel.ndim - 2
    places = windows.shape[2 : 2 + rank]
    groups = feature_group_count * batch_group_count  # of which one is 1
    # (batch groups, batch, channel groups, channels, places, taps) -> (groups, batch and places, channels and taps)
    split = windows.reshape(
        batch_group_count,
        batch // batch_group_count,
        feature_group_count,
        channels // feature_group_count,
        prod(places),
        prod(kernel.shape[2:]),
    )
    terms = prod(kernel.shape[1:])
    left = jnp.transpose(split, (0, 2, 1, 4, 3, 5)).reshape(groups, batch // batch_group_count * prod(places), terms)
    right = jnp.swapaxes(kernel.reshape(groups, kernel.shape[0] // groups, terms), 1, 2)
    product = contract(left, right, how, mode, key).reshape(
        groups, batch // batch_group_count, prod(places), kernel.shape[0] // groups
    )
    result = jnp.transpose(product, (1, 0, 3, 2)).reshape(batch // batch_group_count, kernel.shape[0], *places)
    order = np.argsort(np.asarray(dimension_numbers.out_spec))
    return with_exact_derivative(exact, jnp.transpose(result, tuple(int(axis) for axis in order)), lhs, rhs)


def _windows(
    x: Array,
    taps: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
) -> Array:
    """Shape (batch, channels, *spatial) to (batch, channels, *places, *taps)."""
    holes: list[Any] = [(low, high, gap - 1) for (low, high), gap in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *holes])
    rank = len(taps)
    for axis in range(rank):
        reach = (taps[axis] - 1) * rhs_dilation[axis]
        places = max(0, (x.shape[2 + 2 * axis] - reach - 1) // strides[axis] + 1)
        index = np.arange(places)[:, None] * strides[axis] + np.arange(taps[axis])[None, :] * rhs_dilation[axis]
        x = jnp.take(x, index, axis=2 + 2 * axis)
    order = (0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2))
    return jnp.transpose(x, order[: 2 + 2 * rank])
