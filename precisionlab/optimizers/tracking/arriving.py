"""Did the weights arrive where the record says?

Whoever wraps a part of an optimizer, before the learning rate say, gets a record of updates that are never made. A few entries
of each leaf, remembered from one update to the next, tell: the weights of the next update should be the sums that were judged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Float, Int
from precisionlab.numerics.carriers import widened
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.grids import ulp
from precisionlab.optimizers.sums import stored_sum
from precisionlab.optimizers.tracking.alike import axes_of

__all__ = [
    "CORNER",
    "Arrival",
    "arrived",
    "chosen_corners",
    "corners",
    "corners_now",
    "departed",
    "misplacement",
    "start_arrival",
]

CORNER = 8
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


def corners(weights: list[Array], updates: list[Array]) -> Float[Array, "3 entries"]:
    """The first entries of the first row of each leaf: what is stored, what is added, and their sum."""
    rows = [(_corner(leaf), _corner(step)) for leaf, step in zip(weights, updates, strict=True) if leaf.size]
    return jnp.stack([_together(fun, rows) for fun in (lambda w, _: w, lambda _, u: u, stored_sum)])


def chosen_corners(weights: list[Array], first: Float[Array, "leaves 3 entries"]) -> Float[Array, "3 entries"]:
    """The same, of the first `CORNER` entries of each leaf."""
    places = [number * CORNER + entry for number, leaf in enumerate(weights) for entry in range(_count(leaf))]
    return jnp.moveaxis(first, 1, 0).reshape(3, -1)[:, np.array(places, np.int32)]


def corners_now(weights: list[Array]) -> Float[Array, " entries"]:
    """The first entries of the first row of each leaf."""
    return _together(lambda corner: corner, [(_corner(leaf),) for leaf in weights if leaf.size])


def departed(arrival: Arrival, found: Float[Array, "3 entries"]) -> Arrival:
    """Remember where these updates should lead."""
    before, update, expected = found
    return arrival._replace(before=before, update=update, expected=expected, pending=jnp.bool_(True))


def arrived(arrival: Arrival, weights: list[Array], now: Float[Array, " entries"]) -> Arrival:
    """Compare the weights with what was remembered, if anything was.

    Args:
        arrival: what was remembered.
        weights: the weights, of which only shapes and dtypes matter.
        now: their first entries.
    """
    weights = [leaf for leaf in weights if leaf.size]
    if not weights:
        return arrival
    # Compilers may contract a product into the sum, or leave out a rounding before it: one unit in the last place of the
    # largest number that took part is no other place.
    sizes = jnp.maximum(jnp.abs(arrival.before), jnp.maximum(jnp.abs(arrival.update), jnp.abs(arrival.expected)))
    largest = jnp.where(jnp.isfinite(sizes), sizes, 0)
    slack = _slack(largest, weights)
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


def _slack(sizes: Array, weights: list[Array]) -> Array:
    """One unit in the last place of numbers stored as these weights are."""
    dtypes = np.repeat([leaf.dtype.name for leaf in weights], [_count(leaf) for leaf in weights])
    slack = sizes * np.float32(2.0**-22)
    for name in sorted(set(dtypes)):
        if jnp.dtype(name).itemsize <= 4:
            slack = jnp.where(dtypes == name, ulp(sizes, FORMATS[name]), slack)
    return slack


def _count(leaf: Any) -> int:
    return min(CORNER, leaf.shape[-1] if leaf.ndim else 1) if leaf.size else 0


def _corner(leaf: Array) -> Array:
    """The first entries of the first row of a leaf."""
    count = _count(leaf)
    if leaf.ndim == 0 or jax.device_count() == 1:
        return jax.lax.slice(leaf, (0,) * leaf.ndim, (*(1,) * (leaf.ndim - 1), count)[: leaf.ndim]).reshape(-1)
    # Of a sharded leaf a gather brings these entries, a slice all of it.
    typed = jax.typeof(leaf).sharding
    explicit = any(axis is not None for axis in typed.spec)
    place = jax.NamedSharding(typed.mesh, jax.P(None)) if explicit else None
    return leaf.at[(*(0,) * (leaf.ndim - 1), jnp.arange(count))].get(out_sharding=place)


def _together(fun: Callable[..., Array], rows: list[tuple[Array, ...]]) -> Array:
    """A function of each row of corners, one after the other in float32: those of the first shard; a zero if there are none."""
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(tuple((corner.dtype, axes_of(corner)) for corner in row), []).append(index)
    if not rows:
        return jnp.zeros(1, jnp.float32)
    made = [
        _first(fun(*map(jnp.concatenate, zip(*(rows[index] for index in group), strict=True)))) for group in groups.values()
    ]
    lengths = [row[0].size for row in rows]
    places = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    order = np.argsort(np.concatenate([places[index] for group in groups.values() for index in group]))
    return made[0] if len(made) == 1 else jnp.concatenate(made)[order]


def _first(values: Array) -> Array:
    """What the first shard holds, in float32."""
    values = widened(values).astype(jnp.float32)
    axes = axes_of(values)
    if not axes:
        return values
    first = sum((jax.lax.axis_index(axis) for axis in axes), jnp.int32(0)) == 0
    return jax.lax.psum(jnp.where(first, values, 0), axes)
