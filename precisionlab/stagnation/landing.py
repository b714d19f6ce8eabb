"""What would land, from the format alone.

**The half-gap law.** Under round-to-nearest-even, w + u rounds back to w exactly when |u| is below half the gap between w and
its neighbour on u's side, or equals it while w's last bit is even. (With a single significand bit only zero is even, and of two
powers of two the larger keeps the tie.) Towards zero from a power of two the gap, and so the threshold, is half as wide. No
training is needed to know which updates a format cannot see.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float
from precisionlab.numerics.carriers import Carrier, from_bits, to_bits
from precisionlab.numerics.formats import FLOAT32, Format
from precisionlab.numerics.grids import as_carrier, entered, locate, neighbors, spacing_exponent
from precisionlab.numerics.modes import to_odd, upward
from precisionlab.numerics.rounding import round_to
from precisionlab.numerics.wide import in_float64, lifted, unheld
from precisionlab.numerics.words import is_number, largest_bits

__all__ = ["expected_lost_fraction", "landing_threshold"]


def landing_threshold(w: Float[Array, "..."] | float, fmt: Format) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The smallest updates that move w under nearest_even: in exact arithmetic, w + u no longer rounds to w.

    Args:
        w: values of the format, any shape, float32 or float64 (a Python number counts as float32). A value between two
            values of the format is rounded nowhere: its thresholds are those of the nearest value below it in magnitude.
            What float32 does not hold, of NumPy or Python, is taken as it is, and the answer is float32.
        fmt: the format, which must fit the dtype of w.

    Returns:
        `(upward, downward)`: for each entry the smallest u > 0 in its dtype such that w + u, respectively w - u, rounds away
        from w. Half the gap where a tie moves w (its last bit is odd), the next number above half the gap where a tie stays.
        inf where nothing moves it (the largest value of a saturating format); NaN where w is not finite.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> up, down = landing_threshold(1.0, BFLOAT16)
        >>> float(up) > 2**-8, float(down) > 2**-9      # a tie would stay at 1.0, whose last bit is even
        (True, True)
        >>> abs(float(up) / 2**-8 - 1) < 1e-6, abs(float(down) / 2**-9 - 1) < 1e-6
        (True, True)
    """
    array, carrier = entered(w, fmt, "landing_threshold")
    if isinstance(array, np.ndarray):
        # The smallest number of float32 that is no smaller.
        return in_float64(lambda: tuple(round_to(u, FLOAT32, upward) for u in landing_threshold(jnp.asarray(array), fmt)))
    word, t = carrier.word, carrier.fraction_bits
    bits = to_bits(array, carrier)
    magnitude = bits & word(carrier.sign - 1)
    below, above = neighbors(array, fmt)

    def threshold(neighbor: Array) -> Array:
        # Beyond the largest value the grid goes on as if unbounded: the law puts the overflow boundary half a gap out.
        beside = to_bits(neighbor, carrier) & word(carrier.sign - 1)
        inner = jnp.minimum(magnitude, beside)
        half = spacing_exponent(inner, fmt, carrier) - 1
        # A tie goes to the value of larger magnitude exactly if the one of smaller magnitude is odd.
        place = locate(inner, fmt, carrier)
        odd = (place.significand & (word(1) << place.shift)) != 0
        stays = word(odd == (inner < magnitude))
        smallest = carrier.emin - t
        normal = word(jnp.maximum(half + carrier.bias, 0)) << word(t)
        subnormal = word(1) << word(jnp.clip(half - smallest, 0, t))
        exact = jnp.where(half >= carrier.emin, normal, subnormal)
        # Half a gap that the carrier cannot write is passed by its smallest number already.
        moved = jnp.where(half >= smallest, exact + stays, exact)
        # Without a zero the smallest value stays until nothing is left of it, and that is no number.
        return from_bits(jnp.where(beside > word(carrier.infinity), magnitude, moved), carrier)

    up, down = threshold(above), threshold(below)
    if not (is_number(fmt.overflow) and fmt.overflow != fmt.largest):
        stuck = (magnitude >= largest_bits(fmt, carrier)) & (jnp.asarray(fmt.overflow) == jnp.asarray(fmt.largest))
        up = jnp.where(stuck & (array > 0), jnp.inf, up)
        down = jnp.where(stuck & (array < 0), jnp.inf, down)
    nan = jnp.asarray(jnp.nan, array.dtype)
    finite = magnitude < word(carrier.infinity)
    return jnp.where(finite, up, nan), jnp.where(finite, down, nan)


def expected_lost_fraction(w: Float[Array, "..."], update_size: Float[Array, "..."] | float, fmt: Format) -> Float[Array, ""]:
    """The share of updates of a given size that nearest_even would lose, up and down being equally likely.

    Args:
        w: stored values, any shape; rounded to the format first.
        update_size: |u| in the units of w, a scalar or an array that broadcasts against w; entries must not be negative.
        fmt: the format the weights would be stored in.

    Returns:
        A scalar between 0 and 1; NaN for an empty w.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> w = jnp.array([1.0, 0.001])
        >>> float(expected_lost_fraction(w, 1e-4, BFLOAT16))
        0.5
    """
    entered(w, fmt, "expected_lost_fraction")
    stored, carrier = as_carrier(round_to(w, fmt), "expected_lost_fraction")
    up, down = landing_threshold(stored, fmt)
    size = to_bits(jnp.broadcast_to(_sizes(update_size, carrier), stored.shape), carrier)
    lost_up, lost_down = size < to_bits(up, carrier), size < to_bits(down, carrier)
    return jnp.mean((lost_up.astype(carrier.dtype) + lost_down.astype(carrier.dtype)) / 2)


def _sizes(update_size: Any, carrier: Carrier) -> Array:
    """Sizes in the carrier. Rounded to odd they stay on their side of half a gap, whose last bit is even, and of the next."""
    if carrier.width == 64:
        return jnp.asarray(lifted(update_size)).astype(carrier.dtype)
    if unheld(update_size) is not None:
        return round_to(update_size, FLOAT32, to_odd)
    sizes = jnp.asarray(update_size)
    return in_float64(lambda: round_to(sizes, FLOAT32, to_odd)) if sizes.dtype == jnp.float64 else sizes.astype(carrier.dtype)
