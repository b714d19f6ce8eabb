"""What the last reads lost, counted: exactly, and over a number of reads that is known.

A running mean never forgets the whole of what was, and a list of the last hundred reads takes a hundred numbers a leaf. Six do:
the counts of the last whole block of `_BLOCK` reads, and those of the reads since.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, Bool, Float, Int, PyTree
from precisionlab.numerics.carriers import CARRIERS, to_bits, widened
from precisionlab.optimizers.tracking.alike import axes_of, of_each
from precisionlab.stagnation.fates import ratio
from precisionlab.stagnation.packing import PackedTallies, refilled

__all__ = ["Window", "counted", "is_nonzero", "nonzero_entries", "opened", "start_window"]

_BLOCK = 50


class Window(NamedTuple):
    """The updates of one leaf over its last reads: all of them up to a hundred, then 51 to 100.

    Attributes:
        lost: updates that did not land and that nothing has kept.
        kept: the others that were asked for, which landed or are kept.
        reads: how many reads these are.
    """

    lost: Any
    kept: Any
    reads: Any

    @property
    def share(self) -> Any:
        """Lost updates as a share of those that were asked for; NaN if none was."""
        return ratio(self.lost, self.lost + self.kept)


def start_window(rows: int) -> Float[Array, "rows 2 3"]:
    """No reads yet, for so many rows of packed tallies."""
    return jnp.zeros((rows, 2, 3), jnp.float32)


def counted(window: Array, packed: PackedTallies) -> Float[Array, "rows 2 3"]:
    """The window after one more read.

    Counts are exact up to 2^24 updates in a block, and beyond as exact as float32; what is nothing or all stays so.
    """
    fates = packed.fates
    landed, swamped, underflowed = (fates[:, index] for index in range(3))
    kept = 0 if packed.invisible is None else packed.invisible
    read = jnp.stack([swamped + underflowed - kept, landed + kept, jnp.ones_like(landed)], 1).astype(jnp.float32)
    earlier, now = window[:, 0], window[:, 1]
    full = now[:, 2:] == _BLOCK
    return jnp.stack([jnp.where(full, now, earlier), jnp.where(full, 0, now) + read], 1)


def opened(window: Array | None, packed: PackedTallies) -> PyTree[Window]:
    """The windows of the leaves in their tree, of arrays with any axes in front; nothing read where there are none."""
    count = packed.fates.shape[-2]
    window = start_window(count) if window is None else jnp.asarray(window)
    sums = jnp.moveaxis(jnp.sum(window, -2), -1, 0)
    rows = [Window(*(column[..., index] for column in sums)) for index in range(count)]
    return refilled(packed.tree, rows)


def nonzero_entries(leaves: list[Any]) -> Int[Array, " rows"]:
    """How many entries of each array are not zero, over all shards; a row of 0 where there is no array."""
    if not leaves:
        return jnp.zeros(1, jnp.int32)
    return of_each(_nonzero, [(leaf,) for leaf in leaves])


def is_nonzero(values: Array) -> Bool[Array, "..."]:
    """Where values are not zero, by bits: a comparison may take subnormal numbers for zeros."""
    wide = widened(values)
    carrier = CARRIERS[wide.dtype.name]
    return (to_bits(wide, carrier) & carrier.word(carrier.sign - 1)) != 0


def _nonzero(leaf: Array) -> Array:
    count = jnp.sum(is_nonzero(leaf), dtype=jnp.int32)
    axes = axes_of(count)
    return jax.lax.psum(count, axes) if axes else count
