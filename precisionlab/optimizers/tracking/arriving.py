"""Did the weights arrive where the record says?

Whoever wraps a part of an optimizer, before the learning rate say, gets a record of updates that are never made. A few entries
of each leaf, remembered from one update to the next, tell: the weights of the next update should be the sums that were judged.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Float, Int
from precisionlab.numerics.carriers import widened
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.grids import ulp
from precisionlab.optimizers.tracking.looking import axes_of

__all__ = ["Arrival", "arrived", "departed", "misplacement", "start_arrival"]

_ENTRIES = 8
"""Entries of a leaf that are remembered."""


class Arrival(NamedTuple):
    """What was expected of the next weights, and how often it came true.

    Attributes:
        before, update, expected: of some entries of each leaf, in float32, in one row; a single zero if there are none.
        pending: whether they wait to be compared.
        checked: updates whose outcome was seen in the next one.
        missed: those of them after which the weights were elsewhere.
        ratio: in the last that was missed, how far the weights had moved along the update, as a multiple of it.
    """

    before: Float[Array, "..."]
    update: Float[Array, "..."]
    expected: Float[Array, "..."]
    pending: Bool[Array, ""]
    checked: Int[Array, ""]
    missed: Int[Array, ""]
    ratio: Float[Array, ""]


def start_arrival(weights: list[Array]) -> Arrival:
    """Before the first update."""
    count = max(1, sum(map(_count, weights)))
    before, update, expected = (jnp.zeros(count, jnp.float32) for _ in range(3))  # apart: a buffer is donated once
    return Arrival(before, update, expected, jnp.bool_(False), jnp.int32(0), jnp.int32(0), jnp.float32(1))


def departed(arrival: Arrival, weights: list[Array], updates: list[Array], sums: list[Array]) -> Arrival:
    """Remember where these updates should lead."""
    return arrival._replace(
        before=_sampled(weights), update=_sampled(updates), expected=_sampled(sums), pending=jnp.bool_(True)
    )


def arrived(arrival: Arrival, weights: list[Array]) -> Arrival:
    """Compare the weights with what was remembered, if anything was."""
    weights = [leaf for leaf in weights if leaf.size]
    if not weights:
        return arrival
    now = _sampled(weights)
    # Compilers may contract a product into the sum, or leave out a rounding before it: one unit in the last place of the
    # largest number that took part is no other place.
    sizes = jnp.maximum(jnp.abs(arrival.before), jnp.maximum(jnp.abs(arrival.update), jnp.abs(arrival.expected)))
    largest = jnp.where(jnp.isfinite(sizes), sizes, 0)
    slack = jnp.concatenate(
        [_slack(part, leaf.dtype) for leaf, part in zip(weights, _parts(largest, weights), strict=True)]
    ).astype(jnp.float32)
    seen = jnp.isfinite(now) & jnp.isfinite(arrival.expected) & jnp.isfinite(arrival.update)
    elsewhere = seen & (jnp.abs(now - arrival.expected) > slack)
    missed = arrival.pending & jnp.any(elsewhere)
    moved = jnp.where(seen, (now - arrival.before) * arrival.update, 0)
    square = jnp.sum(jnp.where(seen, arrival.update * arrival.update, 0))
    ratio = jnp.where(square > 0, jnp.sum(moved) / jnp.where(square > 0, square, 1), 1)
    return arrival._replace(
        pending=jnp.bool_(False),
        checked=arrival.checked + arrival.pending.astype(jnp.int32),
        missed=arrival.missed + missed.astype(jnp.int32),
        ratio=jnp.where(missed, ratio, arrival.ratio).astype(jnp.float32),
    )


def misplacement(arrival: Arrival) -> str | None:
    """A sentence if in most updates the weights were elsewhere, else None."""
    checked, missed = int(arrival.checked), int(arrival.missed)
    if 2 * missed <= checked:
        return None
    return (
        f"after {missed} of the {checked} updates whose outcome was seen, the weights had not gone where this record says (the "
        f"last time they moved by {float(arrival.ratio):.3g} of the update). `track` sees only what it wraps: put it around "
        f"the whole optimizer, learning rate included, track(chain(...)), and add what it returns to the weights unchanged."
    )


def _slack(sizes: Array, dtype: Any) -> Array:
    """One unit in the last place of numbers stored in a dtype."""
    if dtype.itemsize > 4:
        return sizes * np.float32(2.0**-22)
    return ulp(sizes, FORMATS[dtype.name])


def _count(leaf: Any) -> int:
    return min(_ENTRIES, leaf.shape[-1] if leaf.ndim else 1) if leaf.size else 0


def _parts(row: Array, weights: list[Array]) -> list[Array]:
    ends = [0]
    for leaf in weights:
        ends.append(ends[-1] + _count(leaf))
    return [row[begin:end] for begin, end in pairwise(ends)]


def _sampled(leaves: list[Array]) -> Array:
    """The first entries of the first row of each leaf, from the first shard."""
    corners = [_corner(leaf) for leaf in leaves if leaf.size]
    return jnp.concatenate(corners) if corners else jnp.zeros(1, jnp.float32)


def _corner(leaf: Array) -> Array:
    count = _count(leaf)
    if leaf.ndim:
        row = (0,) * (leaf.ndim - 1)
        if jax.device_count() > 1:
            # Of a sharded leaf a gather brings these entries, a slice all of it.
            typed = jax.typeof(leaf).sharding
            explicit = any(axis is not None for axis in typed.spec)
            place = jax.NamedSharding(typed.mesh, jax.P(None)) if explicit else None
            leaf = leaf.at[(*row, jnp.arange(count))].get(out_sharding=place)
        else:
            leaf = leaf[row][:count]
    values = widened(leaf.reshape(-1)).astype(jnp.float32)
    axes = axes_of(values)
    if not axes:
        return values
    first = sum((jax.lax.axis_index(axis) for axis in axes), jnp.int32(0)) == 0
    return jax.lax.psum(jnp.where(first, values, 0), axes)
