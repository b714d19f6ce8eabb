"""Between the dtypes that a program names and the carriers that hold its values.

Every float of a simulated program lives in float32 or float64. Where the program says bfloat16, the carrier holds a bfloat16
number; the name of the dtype is only a rule for rounding, and a rule of the user's replaces it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from precisionlab._typing import Array
from precisionlab.arithmetic.complexes import is_complex, joined, parts, real_dtype
from precisionlab.numerics.carriers import FLOAT32_CARRIER, FLOAT64_CARRIER, Carrier, as_float64, from_bits, to_bits
from precisionlab.numerics.derivatives import constant, with_exact_derivative
from precisionlab.numerics.formats import FORMATS, Format

__all__ = [
    "as_typed", "bound", "carried", "carrier_dtype", "carrier_for", "double", "dtype_of", "format_of_dtype", "is_float",
    "is_inexact", "is_on_host", "native", "on_its_side",
]  # fmt: skip

_SMALLEST_NORMAL = 2.0**-126


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a real floating-point one."""
    return jnp.issubdtype(dtype, jnp.floating)


def is_inexact(dtype: Any) -> bool:
    """Whether a dtype is a floating-point one, real or complex."""
    return jnp.issubdtype(dtype, jnp.inexact)


def carrier_dtype(dtype: Any, carrier: Any) -> Any:
    """The dtype that carries values of a float dtype; other dtypes carry themselves."""
    if is_complex(dtype):
        wide = carrier_dtype(real_dtype(dtype), carrier) == np.float64
        return np.dtype(np.complex128 if wide else np.complex64)
    if not is_float(dtype):
        return dtype
    return np.dtype(carrier or (jnp.float64 if dtype == jnp.float64 else jnp.float32))


def dtype_of(var: Any) -> Any:
    """The dtype of a variable or literal of a program."""
    return var.aval.dtype


def format_of_dtype(dtype: Any) -> Format:
    """The format that a float dtype is, or that of the parts of a complex one."""
    return FORMATS[np.dtype(real_dtype(dtype) if is_complex(dtype) else dtype).name]


def carried(x: Any, dtype: Any, carrier: Any) -> Any:
    """A value of a dtype in its carrier, exactly; on the host if it was there."""
    wide = carrier_dtype(dtype, carrier)
    if not isinstance(x, jax.Array):
        return np.asarray(x, dtype).astype(wide)
    if x.dtype == wide:
        return x
    if is_complex(dtype):
        return joined(*(carried(part, real_dtype(dtype), carrier) for part in parts(x)))
    if wide == np.float64:
        x = x if x.dtype == jnp.float32 else x.astype(jnp.float32)
        return with_exact_derivative(lambda x: x.astype(jnp.float64), _as_float64(constant(x)), x)
    return x.astype(wide)


def is_on_host(*arrays: Any) -> bool:
    """Whether these are numbers that there are already, rather than traced ones, in dtypes that NumPy itself has."""
    return not any(isinstance(array, Tracer) for array in arrays) and all(
        isinstance(array.dtype, np.dtype) and array.dtype.kind in "biufc" for array in arrays
    )


def double(x: Any) -> Any:
    """A carried value in float64 (complex128), exactly, by NumPy if it is not traced; integers as they are."""
    if not is_inexact(x.dtype):
        return x
    return (
        np.asarray(x).astype(np.complex128 if is_complex(x.dtype) else np.float64)
        if is_on_host(x)
        else carried(x, x.dtype, jnp.float64)
    )


def as_typed(x: Array, dtype: Any) -> Array:
    """A carried value in the dtype that the program names; exact where that dtype has the value."""
    if x.dtype == dtype or not is_inexact(dtype):
        return x
    if is_complex(dtype):
        return joined(*(as_typed(part, real_dtype(dtype)) for part in parts(x)))
    if x.dtype == jnp.float64 and dtype != jnp.float64:
        x = with_exact_derivative(lambda x: x.astype(jnp.float32), _narrowed(constant(x)), x)
    return x if x.dtype == dtype else x.astype(dtype)


_as_float64 = jax.jit(as_float64)


@jax.jit
def _narrowed(x: Array) -> Array:
    """Float64 as float32, subnormals included: casts flush those on CPUs, an integer count of the smallest one does not."""
    units = (x * 2.0**149).astype(jnp.int32).astype(jnp.uint32)
    small = jnp.abs(x) < _SMALLEST_NORMAL
    sign = (to_bits(x, FLOAT64_CARRIER) >> FLOAT64_CARRIER.word(32)).astype(jnp.uint32) & FLOAT32_CARRIER.word(
        FLOAT32_CARRIER.sign
    )
    magnitude = jnp.where(sign != 0, jnp.uint32(0) - units, units)
    return jnp.where(small, from_bits(magnitude | sign, FLOAT32_CARRIER), x.astype(jnp.float32))


def on_its_side(x: np.ndarray) -> np.ndarray:
    """NumPy's float64 rounded to odd in float32: one more rounding, to two bits less at least, is one of the number itself."""
    with np.errstate(all="ignore"):
        near = np.asarray(x.astype(np.float32))
    wide, bits = near.astype(np.float64), near.view(np.uint32)
    inexact = (wide != x) & ~np.isnan(x)
    return np.asarray((bits - (np.abs(wide) > np.abs(x))) | inexact, np.uint32).view(np.float32)


def bound(eqn: JaxprEqn, arrays: list[Any], carrier: Any, **changes: Any) -> list[Array]:
    """The results of an equation on carried values, in their carrier."""
    name, params = eqn.primitive.name, dict(eqn.params)
    if params.get("update_jaxpr") is not None:
        # The function that combines entries is typed; made anew, it has the type of the carrier.
        del params["update_jaxpr"], params["update_consts"]
        operand, indices, updates = map(jnp.asarray, arrays)
        return [_SCATTER[name](operand, indices, updates, **params)]
    for option, value in params.items():
        is_dtype = isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
        if is_dtype:
            params[option] = carrier_dtype(value, carrier)
    results = eqn.primitive.bind(*arrays, **params | changes)
    return list(results) if eqn.primitive.multiple_results else [results]


_SCATTER = {
    "scatter-add": lax.scatter_add,
    "scatter-sub": lax.scatter_sub,
    "scatter-mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
}


def carrier_for(array: Array) -> Carrier:
    """The carrier that an array is in."""
    return FLOAT64_CARRIER if array.dtype == jnp.float64 else FLOAT32_CARRIER


def native(eqn: JaxprEqn, arrays: list[Any], carrier: Any) -> list[Array]:
    """An equation as the program wrote it, in the dtypes it names, on carried values."""
    held = {var: array for var, array in zip(eqn.invars, arrays, strict=True) if not isinstance(var, Literal)}
    typed = [as_typed(array, dtype_of(var)) for var, array in held.items()]
    names = DebugInfo("simulate", eqn.primitive.name, ("",) * len(held), ("",) * len(eqn.outvars))
    alone = Jaxpr((), list(held), eqn.outvars, [eqn], eqn.effects, names)
    return [carried(result, result.dtype, carrier) for result in jaxpr_as_fun(ClosedJaxpr(alone, ()))(*typed)]
