"""How long entries have not moved: one counter for each, compared by bits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, Float, Int, PyTree
from precisionlab.numerics.carriers import CARRIERS, to_bits, widened
from precisionlab.stagnation.fates import ratio

__all__ = ["Ages", "mean_age", "never_moved_fraction", "start_ages", "update_ages"]


class Ages(NamedTuple):
    """When each entry last moved: one int32 an entry, so as much memory as the parameters themselves.

    Attributes:
        last_moved: a tree like the parameters; the number of the update that last moved the entry, 0 for never.
        updates: how many updates have been seen.
    """

    last_moved: PyTree[Int[Array, "..."]]
    updates: Int[Array, ""]


def start_ages(params: PyTree[Array]) -> Ages:
    """Ages before the first update: nothing has moved yet."""
    return Ages(jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.int32), params), jnp.int32(0))


def update_ages(ages: Ages, old: PyTree[Array], new: PyTree[Array]) -> Ages:
    """Ages after one more update took `old` to `new`."""
    number = ages.updates + 1

    def leaf(last: Array, before: Array, after: Array) -> Array:
        before, after = widened(jnp.asarray(before)), widened(jnp.asarray(after))
        carrier = CARRIERS[before.dtype.name]
        a, b = to_bits(before, carrier), to_bits(after, carrier)
        same = (a == b) | (((a | b) & carrier.word(carrier.sign - 1)) == 0)
        return jnp.where(same, last, number)

    return Ages(jax.tree.map(leaf, ages.last_moved, old, new), number)


def never_moved_fraction(ages: Ages) -> Float[Array, ""]:
    """The share of entries that no update has moved yet.

    Example:
        >>> w = jnp.array([1.0, 2.0])
        >>> float(never_moved_fraction(update_ages(start_ages(w), w, jnp.array([1.5, 2.0]))))
        0.5
    """
    leaves = jax.tree.leaves(ages.last_moved)
    never = sum(jnp.sum(leaf == 0, dtype=jnp.int32) for leaf in leaves)
    return ratio(never, jnp.int32(sum(leaf.size for leaf in leaves)))


def mean_age(ages: Ages) -> Float[Array, ""]:
    """Updates since an entry last moved, averaged over entries; one that never moved counts from the start."""
    leaves = jax.tree.leaves(ages.last_moved)
    waited = sum(jnp.sum((ages.updates - leaf).astype(jnp.float32)) for leaf in leaves)
    return ratio(waited, jnp.int32(sum(leaf.size for leaf in leaves)))
