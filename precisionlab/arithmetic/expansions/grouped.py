"""Products of matrices whose rows come in groups, or whose entries come with scales, as plain products."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array

__all__ = ["ragged_product", "scaled_product"]


def ragged_product(eqn: Any) -> Callable[..., Array] | None:
    """The function that a `ragged_dot_general` stands for; None where groups lie in a batch dimension or differ in one.

    Rows of the left operand that come in groups meet, each, the matrix of their group; a contracted dimension in groups gives a
    product for each group, in which the terms of the others are +0. Rows beyond the last group give zero.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (left_inner, right_inner), (left_batch, right_batch) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    if len(eqn.invars[2].aval.shape) != 1 or ragged in left_batch:
        return None

    def groups_of(sizes: Array, length: int) -> Array:
        """The group of each row; as many as there are, beyond the last one."""
        ends = lax.cumsum(sizes)
        return jnp.sum(jnp.arange(length)[:, None] >= ends[None, :], axis=1, dtype=jnp.int32)

    def by_rows(left: Array, right: Array, sizes: Array) -> Array:
        (grouped,) = numbers.rhs_group_dimensions
        rows = groups_of(sizes, left.shape[ragged])
        own = jnp.take(right, rows, axis=grouped, mode="clip")
        batches = ((*left_batch, ragged), (*right_batch, grouped))
        product = lax.dot_general(left, own, ((left_inner, right_inner), batches))
        free = [axis for axis in range(left.ndim) if axis not in (*left_batch, *left_inner)]
        first = len(left_batch)
        beyond = jnp.expand_dims(rows >= sizes.shape[0], [axis for axis in range(product.ndim) if axis != first])
        product = jnp.where(beyond, jnp.zeros_like(product), product)
        return jnp.moveaxis(product, first, first + free.index(ragged))

    def by_terms(left: Array, right: Array, sizes: Array) -> Array:
        rows = groups_of(sizes, left.shape[ragged])
        mine = rows[None, :] == jnp.arange(sizes.shape[0])[:, None]
        mine = jnp.expand_dims(mine, [1 + axis for axis in range(left.ndim) if axis != ragged])
        apart = jnp.where(mine, left[None], jnp.zeros_like(left)[None])  # the group is a free dimension, the first of them
        inner, batch = (tuple(1 + axis for axis in axes) for axes in (left_inner, left_batch))
        product = lax.dot_general(apart, right, ((inner, right_inner), (batch, right_batch)))
        return jnp.moveaxis(product, len(left_batch), 0)

    return by_terms if ragged in left_inner else by_rows


def scaled_product(eqn: Any) -> Callable[..., Array]:
    """The function that a `scaled_matmul` stands for: each entry times the scale of its block, rounded; then the product."""
    dtype = eqn.params["preferred_element_type"]

    def scaled(x: Array, scales: Array) -> Array:
        x, scales = x.astype(dtype), scales.astype(dtype)
        blocks = x.reshape(*scales.shape, -1)
        return (blocks * jnp.broadcast_to(scales[..., None], blocks.shape)).reshape(x.shape)

    def product(a: Array, b: Array, a_scales: Array, b_scales: Array) -> Array:
        dimensions = (((2,), (2,)), ((0,), (0,)))
        return lax.dot_general(scaled(a, a_scales), scaled(b, b_scales), dimensions, preferred_element_type=dtype)

    return product
