"""Matrix products of any number of dimensions, as batches of plain ones.

`dot_general` contracts and batches arbitrary dimensions. Moved to (batch, free, contracted) x (batch, contracted, free), and
moving is exact, it is what `contract` sums in a stated order, and what a format with shared scales takes its blocks along.
"""

from typing import Any

import jax.numpy as jnp

from precisionlab._typing import Array
from precisionlab.arithmetic.sums.accumulation import Accumulation, contract
from precisionlab.numerics.blocks import BlockFormat, round_blocks
from precisionlab.numerics.modes import Mode

__all__ = ["in_blocks", "multiply_matrices"]

Numbers = tuple[tuple[Any, Any], tuple[Any, Any]]


def multiply_matrices(left: Array, right: Array, numbers: Numbers, how: Accumulation, mode: Mode, key: Any) -> Array:
    """A general product with every product and partial sum rounded.

    Args:
        left: any shape.
        right: any shape.
        numbers: the `dimension_numbers` of `lax.dot_general`.
        how: the order and formats of the sums.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.

    Returns:
        The product, in the shape that `lax.dot_general` gives: batch, then the free dimensions of left and of right.
    """
    (left_inner, right_inner), (left_batch, right_batch) = numbers
    a, left_shape = _matrices(left, left_batch, left_inner)
    b, right_shape = _matrices(right, right_batch, right_inner)
    batch = tuple(left.shape[axis] for axis in left_batch)
    product = contract(a, jnp.swapaxes(b, 1, 2), how, mode, key)
    return product.reshape(*batch, *left_shape, *right_shape)


def in_blocks(
    left: Array, right: Array, numbers: Numbers, fmt: BlockFormat, mode: Mode, keys: list[Any]
) -> tuple[Array, Array]:
    """Operands in a block format, the blocks along the contracted dimensions (in row-major order, if there are several)."""
    (left_inner, right_inner), (left_batch, right_batch) = numbers
    rounded = []
    for operand, batch, inner, key in ((left, left_batch, left_inner, keys[0]), (right, right_batch, right_inner, keys[1])):
        free = _free(operand, batch, inner)
        order = (*batch, *free, *inner)
        matrices, _ = _matrices(operand, batch, inner)
        blocks = round_blocks(matrices, fmt, -1, mode, key=key)
        moved = blocks.reshape(tuple(operand.shape[axis] for axis in order))
        rounded.append(jnp.transpose(moved, tuple(order.index(axis) for axis in range(operand.ndim))))
    return rounded[0], rounded[1]


def _free(operand: Array, batch: Any, inner: Any) -> tuple[int, ...]:
    return tuple(axis for axis in range(operand.ndim) if axis not in (*batch, *inner))


def _matrices(operand: Array, batch: Any, inner: Any) -> tuple[Array, tuple[int, ...]]:
    """(batch, free, contracted), and the shape of the free dimensions."""
    free = _free(operand, batch, inner)
    sizes = [_size(operand, axes) for axes in (batch, free, inner)]
    return jnp.transpose(operand, (*batch, *free, *inner)).reshape(sizes), tuple(operand.shape[axis] for axis in free)


def _size(operand: Array, axes: Any) -> int:
    size = 1
    for axis in axes:
        size *= operand.shape[axis]
    return size
