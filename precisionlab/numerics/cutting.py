"""Blocks along an axis: cut, looked at as wholes, and put together again at the speed of memory.

A function of blocks sees them as (..., blocks, size, ...): a reduction along the size and what is broadcast back along it are
then loops of one shape, which a GPU's compiler makes one kernel of. On CPU two things cost more than the rounding itself:

    the shape of the last loop    fused with the reshape that puts blocks together again, it finds each entry's block by a
                                  division, entry by entry, and is not vectorized: 3 ns an entry, for 1
    the reduction of one row      of integers is made one at a time; of four rows side by side, as many as a row has
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array
from precisionlab.numerics.carriers import computed_once

__all__ = ["by_blocks", "cut", "largest_of_block"]

_LARGE = 1 << 14
_ROWS = 4


def by_blocks(function: Callable[..., Array], x: Array, random: Array | None, size: int, axis: int) -> Array:
    """`function(blocks, words)` for x cut along an axis into blocks of a size, the last one filled up with zeros.

    Args:
        function: of an array of shape (..., blocks, size, ...), the blocks along `axis`, and random words cut alike or None;
            gives an array of that shape.
        x: the array to cut.
        random: words of its shape, or None.
        size: entries of a block.
        axis: from 0.
    """
    if x.size == 0:
        return x
    shape, length = x.shape, x.shape[axis]
    blocks, words = cut(x, size, axis), None if random is None else cut(random, size, axis)
    last = axis == len(shape) - 1
    alone = last and x.size >= _LARGE and jax.default_backend() == "cpu"
    done = _alone(lambda part: function(part, words), blocks) if alone else function(blocks, words)
    whole = done.reshape(*shape[:axis], blocks.shape[axis] * size, *shape[axis + 1 :])
    return lax.slice_in_dim(whole, 0, length, axis=axis) if length % size else whole


def cut(x: Array, size: int, axis: int) -> Array:
    """X with an axis cut into blocks along two, the last one filled up with zeros."""
    shape, length = x.shape, x.shape[axis]
    padding = [(0, -length % size if at == axis else 0) for at in range(len(shape))]
    filled = jnp.pad(x, padding) if length % size else x
    return filled.reshape(*shape[:axis], -(-length // size), size, *shape[axis + 1 :])


def _alone(function: Callable[[Array], Array], x: Array) -> Array:
    """The function of x as a loop of one turn, whose result nothing that follows is fused with.

    XLA on CPU knows no other boundary: barriers are gone before it fuses, and what is called is inlined, or not fused at all.
    That there is one turn it must not know, and it makes single-threaded kernels of loops that it thinks small; a scatter keeps
    it from both.
    """
    turns = lax.optimization_barrier(jnp.zeros(2, jnp.int32))

    def turn(carried: tuple[Array, Array]) -> tuple[Array, Array]:
        turns, value = carried
        return turns.at[turns].add(1), function(value)

    return lax.while_loop(lambda carried: carried[0][0] < 1, turn, (turns, x))[1]


def largest_of_block(magnitude: Array, axis: int) -> Array:
    """The largest of the words along an axis, which stays, of length one."""
    size = magnitude.shape[axis]
    if axis == magnitude.ndim - 1 and size % _ROWS == 0 and size > _ROWS and jax.default_backend() == "cpu":
        lanes = jnp.max(magnitude.reshape(*magnitude.shape[:-1], _ROWS, size // _ROWS), axis=-2)
        magnitude = computed_once(lanes)  # else the two reductions would be merged into one again
    return jnp.max(magnitude, axis=axis, keepdims=True)
