"""The wide floats that hold simulated values, seen as integers.

A *carrier* is float32 or float64. Reinterpreted as an unsigned integer, its magnitude (all bits but the sign) is a ladder:
the next integer is the next float, across binades and from the largest subnormal to the smallest normal. Everything that
this library decides about a number it decides on that ladder, because integer operations cannot be elided, contracted or
flushed to zero by a compiler, and float operations and comparisons are.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array

__all__ = [
    "CARRIERS",
    "FLOAT32_CARRIER",
    "FLOAT64_CARRIER",
    "Carrier",
    "as_float64",
    "carrier_of",
    "choose",
    "computed_once",
    "from_bits",
    "power_of_two",
    "to_bits",
    "uncontracted",
    "widened",
]


class Carrier(NamedTuple):
    """A wide float as a table of numbers.

    Attributes:
        dtype: the float type.
        uint: the unsigned integer type of the same width.
        fraction_bits: stored significand bits, t; the precision is t + 1.
        bias: exponent bias, so that the biased exponent of 1.0 is `bias`.
    """

    dtype: Any
    uint: Any
    fraction_bits: int
    bias: int

    @property
    def width(self) -> int:
        """Bits of storage."""
        return 8 * np.dtype(self.dtype).itemsize

    @property
    def precision(self) -> int:
        """Significand bits with the hidden one."""
        return self.fraction_bits + 1

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal."""
        return 1 - self.bias

    @property
    def infinity(self) -> int:
        """The magnitude bits of infinity; every larger magnitude is a NaN."""
        return (2 * self.bias + 1) << self.fraction_bits

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.width - 1)

    def word(self, value: Any) -> Array:
        """`value` as an unsigned integer as wide as the carrier (Python integers wrap modulo 2^width)."""
        if isinstance(value, int | np.integer):
            return self.uint(int(value) % (1 << self.width))  # of NumPy, so that sums of known words are known too
        return jnp.asarray(value).astype(self.uint)


FLOAT32_CARRIER = Carrier(np.float32, np.uint32, 23, 127)
FLOAT64_CARRIER = Carrier(np.float64, np.uint64, 52, 1023)
CARRIERS = {"float32": FLOAT32_CARRIER, "float64": FLOAT64_CARRIER}


def carrier_of(dtype: Any, where: str = "precisionlab") -> Carrier:
    """The carrier of a dtype.

    Args:
        dtype: anything `numpy.dtype` accepts.
        where: the name of the calling function, for the error message.

    Raises:
        TypeError: for any dtype but float32 and float64.

    Example:
        >>> carrier_of("float32").precision
        24
    """
    try:
        name = np.dtype(dtype).name
    except TypeError:
        raise TypeError(f"{where}: a carrier is a dtype, jnp.float32 or jnp.float64; got {dtype!r}.") from None
    if name not in CARRIERS:
        raise TypeError(
            f"{where}: values of dtype {name} cannot carry a simulated format; allowed are float32 and float64; "
            f"{_way_in(np.dtype(dtype))}."
        )
    return CARRIERS[name]


def _way_in(dtype: np.dtype[Any]) -> str:
    """How values of another dtype become those of a carrier without being rounded."""
    if dtype.kind == "c":
        return "take x.real and x.imag, one by one"
    if dtype.kind in "iu" and dtype.itemsize > 2:
        widest = "" if dtype.itemsize == 4 else ", which holds them up to 2^53 in magnitude"
        return (
            "widen them first with x.astype(jnp.float32) if none is beyond 2^24 in magnitude, since that would round them; "
            f"else with x.astype(jnp.float64) inside `with jax.enable_x64(True):`{widest}"
        )
    if dtype.kind in "fg" and dtype.itemsize > 8:
        return "narrow them first with x.astype(np.float64), which rounds them"
    if dtype.kind in "OSUMm":
        return "make them numbers first with np.asarray(x, np.float64)"
    return "widen them first with x.astype(jnp.float32)"


def to_bits(x: Array, carrier: Carrier) -> Array:
    """The bits of carrier values, as unsigned integers."""
    return lax.bitcast_convert_type(x, carrier.uint)


def from_bits(bits: Array, carrier: Carrier) -> Array:
    """Carrier values from their bits."""
    return lax.bitcast_convert_type(bits, carrier.dtype)


def widened(x: Array) -> Array:
    """Stored values as values of their carrier: float64 stays, everything narrower becomes float32, exactly."""
    if x.dtype.name in CARRIERS:
        return x
    # Behind a barrier the narrow value is what was stored; without it the compiler may see through the cast that made it.
    return lax.optimization_barrier(x).astype(jnp.float32)


def as_float64(x: Array) -> Array:
    """Float32 or float64 values as float64, exactly (float64 must be enabled).

    The cast itself flushes the subnormals of float32 on CPUs; as integers, in units of the smallest of them, they pass.
    """
    if x.dtype == jnp.float64:
        return x
    bits = to_bits(x, FLOAT32_CARRIER)
    size = bits & FLOAT32_CARRIER.word(FLOAT32_CARRIER.sign - 1)
    units = size.astype(jnp.float64) * 2.0**-149
    subnormal = size < FLOAT32_CARRIER.word(1 << FLOAT32_CARRIER.fraction_bits)
    return jnp.where(subnormal, jnp.where(bits == size, units, -units), x.astype(jnp.float64))


def choose(condition: Array, one: Any, other: Any) -> Array:
    """`jnp.where` of words, each of the condition's shape or a scalar; but one operation, not a function that is called."""
    shape = jnp.shape(condition)
    return lax.select(condition, *(lax.broadcast(x, shape) if jnp.ndim(x) < len(shape) else x for x in (one, other)))


def uncontracted(x: Array) -> Array:
    """x, kept apart from a sum that follows, so that a product in it is rounded before it is added.

    CPU compilers contract a * b + c into one rounding, through barriers and bitcasts; a select on NaN they leave alone.
    """
    return jnp.where(x == x, x, jnp.asarray(jnp.nan, x.dtype))


def computed_once(x: Array) -> Array:
    """x, as a value that XLA stores rather than computes anew for each of its uses.

    XLA duplicates what it thinks is cheap into every consumer, and a rounding is a dozen integer operations, all of them
    cheap: in a chain of roundings the work doubles at every fork. Divisions of floats it thinks dear, and leaves where they
    are. This one is by a one that only the last stage of the compiler sees through (an odd number of at most one), and removes;
    where none does, it is a division by one. Of words it would be the same, but for 5 to 7 % of a program's time.
    """
    whole = jnp.issubdtype(x.dtype, jnp.unsignedinteger)
    bits = x if whole else to_bits(x, CARRIERS[x.dtype.name])
    one = jnp.minimum(bits, bits.dtype.type(1)) | bits.dtype.type(1)
    return lax.div(x, one if whole else one.astype(x.dtype))


def power_of_two(exponent: Any, carrier: Carrier) -> Any:
    """The magnitude bits of 2^exponent, for exponents from the carrier's smallest subnormal up; 0 below it.

    `jnp.exp2` is inexact at most integers and flushes subnormals, hence the integers.

    Example:
        >>> x = power_of_two(jnp.array([-149, -1, 3]), FLOAT32_CARRIER)
        >>> [v.hex() for v in np.asarray(from_bits(x, FLOAT32_CARRIER)).tolist()]
        ['0x1.0000000000000p-149', '0x1.0000000000000p-1', '0x1.0000000000000p+3']
    """
    t = carrier.fraction_bits
    if isinstance(exponent, int):
        place = exponent - (carrier.emin - t)
        return carrier.word((exponent + carrier.bias) << t if exponent >= carrier.emin else 1 << place if place >= 0 else 0)
    exponent = jnp.asarray(exponent, jnp.int32)
    normal = carrier.word(exponent + carrier.bias) << carrier.word(t)
    below = exponent - (carrier.emin - t)  # position of the bit within the subnormal significand
    one = carrier.word(1)
    subnormal = jnp.where(below >= 0, one << carrier.word(jnp.maximum(below, 0)), carrier.word(0))
    return jnp.where(exponent >= carrier.emin, normal, subnormal)
