"""NumPy's float64 and Python's numbers, met outside of 64-bit JAX.

Without `jax.enable_x64` JAX makes float32 of them, a rounding that nobody asked for before the one that was: 1 + 2^-8 + 2^-40
becomes the tie 1 + 2^-8, which bfloat16 takes to 1, and 1e300 becomes infinity. So every function here that takes numbers asks
first whether float32 holds them (`unheld`). Where it does not, the function runs on the float64 that was meant, in a scope of
64-bit JAX of its own (`in_float64`), also inside jit, and answers in float32, which holds the values of every format that fits
it. What is a JAX array already is what it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.numerics.carriers import FLOAT32_CARRIER, FLOAT64_CARRIER, as_float64, from_bits, to_bits

__all__ = ["in_float64", "is_host_number", "lifted", "on_host", "unheld"]


def is_host_number(x: Any) -> bool:
    """Whether x is a Python number: it counts as float32, unlike the scalars of NumPy, which have a dtype."""
    return isinstance(x, bool | int | float) and not isinstance(x, np.generic)


def on_host(x: Any) -> np.ndarray | None:
    """X as an array of NumPy in native byte order, if it is one, a list of numbers, or a number; else None."""
    if is_host_number(x):
        return np.asarray(_nearest_float(x))
    if not isinstance(x, np.ndarray | np.generic | list | tuple):
        return None
    try:
        values = np.asarray(x)
    except (jax.errors.TracerArrayConversionError, ValueError):
        return None
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def unheld(x: Any) -> np.ndarray | None:
    """X as a float64 array of NumPy where JAX would make float32 of it and float32 does not hold it; else None.

    Args:
        x: anything; arrays of JAX, traced ones too, are never changed on their way in.

    Example:
        >>> unheld(0.5) is None, unheld(np.array([0.5, 0.1])).tolist()
        (True, [0.5, 0.1])
    """
    values = on_host(x)
    if values is None or values.dtype != np.float64:
        return None
    if not is_host_number(x) and jax.dtypes.canonicalize_dtype(np.float64) == np.float64:
        return None
    with np.errstate(all="ignore"):
        held = values.astype(np.float32).astype(np.float64)
    return None if np.array_equal(held, values, equal_nan=True) else values


def in_float64(compute: Callable[[], Any]) -> Any:
    """What a function of no arguments returns in a scope of 64-bit JAX, as the dtypes that JAX has outside of it.

    Float64 becomes float32: exactly where that holds the value, to nearest elsewhere.
    """
    with jax.enable_x64(True):
        return jax.tree.map(_narrowed, compute())


def lifted(x: Any) -> Any:
    """Float32 values as float64, and what NumPy has as it is there; inside of `in_float64`, and constants to derivatives.

    What is differentiated is transposed later, outside of that scope, where there is no float64.
    """
    values = on_host(x)
    if values is not None:
        return jnp.asarray(values.astype(np.float64) if values.dtype == np.float32 else values)
    array = lax.stop_gradient(jnp.asarray(x))
    return as_float64(array) if array.dtype == jnp.float32 else array


def _nearest_float(number: float) -> float:
    """The float64 that stands for a Python number: itself, or, of a whole number with more bits, one rounded to odd.

    Of 53 bits the last then tells whether more followed, so that a later rounding to 51 bits or fewer is that of the number.
    """
    if not isinstance(number, int) or abs(number) <= 1 << 53:
        return float(number)
    magnitude = abs(number)
    shift = magnitude.bit_length() - 53
    kept = magnitude >> shift
    kept |= int(kept << shift != magnitude)
    odd = float(kept) * 2.0**shift if shift <= 971 else float(np.finfo(np.float64).max)
    return odd if number > 0 else -odd


def _narrowed(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.dtype.itemsize < 8:
        return x
    if x.dtype != jnp.float64:
        return x.astype(np.dtype(f"{x.dtype.kind}4")) if x.dtype.kind in "iu" else x
    return _as_float32(x)


def _as_float32(x: Array) -> Array:
    """Float64 values as float32, to nearest, those that are subnormal there included, which the cast flushes on CPUs."""
    bits, word = to_bits(x, FLOAT64_CARRIER), FLOAT64_CARRIER.word
    size = bits & word(FLOAT64_CARRIER.sign - 1)
    small = size < word((FLOAT64_CARRIER.bias + FLOAT32_CARRIER.emin) << FLOAT64_CARRIER.fraction_bits)
    units = lax.round(from_bits(size, FLOAT64_CARRIER) * 2.0**149, lax.RoundingMethod.TO_NEAREST_EVEN)
    sign = (bits >> word(32)).astype(jnp.uint32) & FLOAT32_CARRIER.word(FLOAT32_CARRIER.sign)
    below = from_bits(jnp.where(small, units, 0.0).astype(jnp.uint32) | sign, FLOAT32_CARRIER)
    return jnp.where(small, below, x.astype(jnp.float32))
