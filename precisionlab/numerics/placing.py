"""Rounding at a place on a grid (`grids.Place`): what a mode adds to the significand, and what is kept of the sum."""

from typing import Any

import jax.numpy as jnp

from precisionlab._typing import Array
from precisionlab.numerics.carriers import Carrier, choose
from precisionlab.numerics.grids import Place, keep
from precisionlab.numerics.modes import Mode, nearest_away, nearest_even

__all__ = ["happens", "round_place", "scaled"]


def round_place(
    place: Place,
    magnitude: Array,
    negative: Array,
    smallest: Any,
    mode: Mode,
    random: Array | None,
    carrier: Carrier,
    more: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Round magnitudes at a place on a grid whose smallest positive value is known.

    Returns:
        As `keep`: the kept significand, and the magnitude bits, valid where it is nonzero.
    """
    word, far_below = carrier.word, None
    if mode not in (nearest_even, nearest_away) and place.significand is not magnitude:
        # More than the whole significand is dropped: the result is zero or the smallest value, and a carry has no binade
        # to go to. The nearest modes never carry from there.
        far_below = place.shift > word(carrier.precision)
        shift = jnp.minimum(place.shift, word(carrier.width - 1))
        excess = place.shift - shift
        shifted = place.significand >> excess
        if more is not None:
            dropped = place.significand & ((word(1) << jnp.minimum(excess, word(carrier.width - 1))) - word(1))
            shifted = shifted + word(happens(dropped, excess, *more, carrier))
        if random is None:
            shifted = jnp.maximum(shifted, jnp.minimum(place.significand, word(1)))  # what was dropped is not zero
        place = place._replace(significand=shifted, shift=shift)
    odd, tail = (place.significand >> place.shift) & word(1), place.tail(carrier)
    increment = mode(tail, odd, negative) if random is None else mode(tail, odd, negative, random)
    kept, result = keep(place, increment, carrier)
    if far_below is None:
        return kept, result
    return kept, (jnp.where if jnp.ndim(smallest) else choose)(far_below, smallest, result)


def happens(significand: Array, excess: Array, high: Array, low: Array, carrier: Carrier) -> Array:
    """True with the probability significand * 2^-excess, which is below 1, to two words of random bits."""
    width = carrier.width
    first, second = (scaled(significand, excess, places, carrier) for places in (width, 2 * width))
    return (high < first) | ((high == first) & (low < second))


def scaled(significand: Array, excess: Array, places: int, carrier: Carrier) -> Array:
    """The last word of the whole part of significand * 2^(places - excess)."""
    word, last = carrier.word, carrier.word(carrier.width - 1)
    left = word(places) - jnp.minimum(excess, word(places))
    right = jnp.maximum(excess, word(places)) - word(places)
    shifted = (significand << jnp.minimum(left, last)) >> jnp.minimum(right, last)
    return jnp.where(left > last, word(0), jnp.where(right > last, word(0), shifted))
