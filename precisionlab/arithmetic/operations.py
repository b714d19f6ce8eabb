"""One operation, rounded.

An operation reads its operands in its own format, computes in the carrier, and rounds the result once. In a carrier of at least
2p + 2 bits that equals one correct rounding of the exact sum, difference, product, quotient or square root under a nearest
mode (Figueroa 1995); where it does not, sums are made exact first. Elementary functions are evaluated in the carrier.

What lies on the right grid already is not rounded again.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.arithmetic import products
from precisionlab.arithmetic.accumulation import rounded_cumprod, rounded_cumsum, rounded_prod, rounded_sum
from precisionlab.arithmetic.basic import BASIC, is_innocuous, rounded_exactly
from precisionlab.arithmetic.carrying import bound, carrier_dtype, carrier_for, format_of_dtype, is_float, is_inexact, native
from precisionlab.arithmetic.complexes import is_complex, joined, parts, real_dtype
from precisionlab.arithmetic.convolutions import rounded_convolution
from precisionlab.arithmetic.exact_sums import sum_to_odd
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Frame, Grid, Held
from precisionlab.arithmetic.scatters import rounded_scatter
from precisionlab.blocks import BlockFormat
from precisionlab.carriers import CARRIERS, Carrier, uncontracted
from precisionlab.formats import Format, is_concrete
from precisionlab.grids import neighbors
from precisionlab.modes import Mode, Stochastic, downward, nearest_even
from precisionlab.primitives import EXACT, FLIPS_SIGN, PRODUCTS, ROUNDED
from precisionlab.rounding import round_carrier, round_result, round_to, stored

__all__ = ["entered", "is_rounded", "operate", "results_of", "rounded_argument", "settled"]


def operate(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """The values of one equation, rounded by the rules of its frame."""
    name = eqn.primitive.name
    arrays = [entered(value, name, var.aval.dtype, frame) for value, var in zip(inputs, eqn.invars, strict=True)]
    results = results_of(eqn, arrays, frame)
    if not is_rounded(eqn, frame):
        grid = _common_grid(eqn, inputs, frame)
        return [Held(result, grid) for result in results]
    return [
        settled(result, var.aval.dtype, eqn, arrays, frame) if is_inexact(var.aval.dtype) else Held(result, UNKNOWN)
        for result, var in zip(results, eqn.outvars, strict=True)
    ]


def is_rounded(eqn: Any, frame: Frame) -> bool:
    """Whether results of an equation may be off the grid."""
    name = eqn.primitive.name
    if not any(is_inexact(var.aval.dtype) for var in eqn.outvars):
        return False
    if name == "abs" and is_complex(eqn.invars[0].aval.dtype):
        return True
    if name in FLIPS_SIGN:
        fmt = _format(name, eqn.outvars[0].aval.dtype, frame)
        return not (isinstance(fmt.zeros, int) and fmt.zeros == 2)
    return name not in EXACT


def entered(value: Held, name: str, dtype: Any, frame: Frame) -> Any:
    """An operand in the format of the operation that reads it (no name: what only passes on, and is moved as it is)."""
    if is_complex(dtype):
        both = (value._replace(array=part) for part in parts(value.array))
        return joined(*(entered(part, name, real_dtype(dtype), frame) for part in both))
    rule = frame.arithmetic.format_of(name, frame.path)
    if not is_float(dtype) or ((name in EXACT or not name) and value.grid != RAW):
        return value.array
    if isinstance(rule, BlockFormat):
        return value.array  # the blocks run along the contraction, which the product itself knows
    if rule is None and value.grid != RAW:
        return value.array  # the program's own dtypes: it converts where it means to
    fmt = rule or format_of_dtype(dtype)
    if _same(value.grid, fmt) or (frame.arithmetic.uniform and value.grid != RAW) or _holds_all(fmt, carrier_for(value.array)):
        return value.array
    mode = frame.arithmetic.mode_of(name, frame.path)
    if value.grid == RAW:
        return _constant(value.array, dtype, fmt, nearest_even if isinstance(mode, Stochastic) else mode)
    return _rounded(value.array, fmt, mode, frame)


def rounded_argument(array: Array, dtype: Any, frame: Frame) -> Array:
    """An argument of the function, in the format that holds by default."""
    if is_complex(dtype):
        return joined(*(rounded_argument(part, real_dtype(dtype), frame) for part in parts(array)))
    fmt = _format("", dtype, frame)
    return array if _holds_all(fmt, carrier_for(array)) else _rounded(array, fmt, frame.arithmetic.mode_of("", ()), frame)


def _constant(value: Any, dtype: Any, fmt: Format, mode: Mode) -> Any:
    """A number written into the program, rounded once, by the compiler as it were: to nearest where rounding is random.

    The extremes of its dtype, where masks and maxima start, become those of the format: -inf is -448 in e4m3fn, which has no
    infinity, and so is `jnp.finfo(jnp.float32).min`.
    """
    if is_concrete(fmt) and not isinstance(value, jax.Array) and value.ndim == 0:
        with jax.ensure_compile_time_eval():
            return _scalar(float(value).hex(), value.dtype.name, np.dtype(dtype).name, fmt, mode)
    array, top = jnp.asarray(value), float(jnp.finfo(dtype).max)
    largest = jnp.asarray(fmt.largest).astype(array.dtype)
    infinity = jnp.where(jnp.asarray(fmt.overflow) == jnp.inf, jnp.asarray(jnp.inf, array.dtype), largest)
    size = jnp.where(jnp.abs(array) == jnp.inf, infinity, jnp.where(jnp.abs(array) == top, largest, jnp.abs(array)))
    return round_to(jnp.copysign(size, array), fmt, mode)


@lru_cache(maxsize=4096)
def _scalar(hexadecimal: str, carrier: str, dtype: str, fmt: Format, mode: Mode) -> np.ndarray:
    value = float.fromhex(hexadecimal)  # text, because 0.0 == -0.0
    if (abs(value) == float("inf") and fmt.overflow != float("inf")) or abs(value) == float(jnp.finfo(dtype).max):
        value = math.copysign(fmt.largest, value)
    # Without a derivative: a function that has one would join the transformations around, and not run at once.
    return np.asarray(round_carrier(jnp.asarray(value, carrier), fmt, mode, None, CARRIERS[carrier]))


def settled(result: Array, dtype: Any, eqn: Any, arrays: list[Any], frame: Frame) -> Held:
    """A computed result of the carrier, rounded to the format of its operation; both parts, if it is complex."""
    if is_complex(dtype):
        both = [settled(part, real_dtype(dtype), eqn, arrays, frame) for part in parts(result)]
        return Held(joined(*(part.array for part in both)), both[0].grid)
    name = eqn.primitive.name
    fmt = _format(name, dtype, frame)
    mode = frame.arithmetic.mode_of(name, frame.path)
    if name == "jit" and eqn.params["name"] == "_uniform":
        mode = downward  # a uniform number stays below its upper bound
    carrier = carrier_for(result)
    if name in BASIC and not is_innocuous(name, fmt, mode, carrier):
        operands = [jnp.broadcast_to(array, result.shape) for array in arrays]
        return Held(rounded_exactly(name, operands, result, fmt, mode, carrier), fmt)
    if _holds_all(fmt, carrier) and mode is nearest_even:
        return Held(stored(uncontracted(result) if name in PRODUCTS else result), fmt)
    return Held(_rounded(result, fmt, mode, frame), fmt)


def _format(name: str, dtype: Any, frame: Frame) -> Format:
    rule = frame.arithmetic.format_of(name, frame.path)
    if isinstance(rule, BlockFormat):
        rule = frame.arithmetic.format_of("", frame.path)
    return rule or format_of_dtype(dtype)


def _rounded(x: Array, fmt: Format, mode: Mode, frame: Frame) -> Array:
    return round_result(x, fmt, mode, frame.next_words() if isinstance(mode, Stochastic) else None)


def _same(grid: Grid, fmt: Format) -> bool:
    return grid is fmt or (isinstance(grid, Format) and is_concrete(grid) and is_concrete(fmt) and grid == fmt)


def _holds_all(fmt: Format, carrier: Carrier) -> bool:
    """Whether a format is its carrier, so that there is nothing to round."""
    if not is_concrete(fmt):
        return False
    return (fmt.precision, fmt.emin, fmt.largest, fmt.overflow, fmt.subnormals, fmt.zeros) == (
        carrier.precision,
        carrier.emin,
        float(np.finfo(carrier.dtype).max),
        float("inf"),
        True,
        2,
    )


def _common_grid(eqn: Any, inputs: list[Held], frame: Frame) -> Grid:
    """What is known of values that an exact operation moved."""
    grids: list[Grid] = []
    for value, var in zip(inputs, eqn.invars, strict=True):
        if is_inexact(var.aval.dtype):
            raw = value.grid == RAW
            grids.append(_format(eqn.primitive.name, var.aval.dtype, frame) if raw else value.grid)
    return grids[0] if grids and all(grid is grids[0] for grid in grids) else UNKNOWN


def results_of(eqn: Any, arrays: list[Any], frame: Frame) -> list[Array]:
    """The results of one equation in the carrier, not rounded yet."""
    name, carrier = eqn.primitive.name, frame.arithmetic.carrier
    if name in _SPECIAL:
        return [_SPECIAL[name](eqn, arrays, frame)]
    if name not in EXACT | ROUNDED and any(is_inexact(var.aval.dtype) for var in (*eqn.invars, *eqn.outvars)):
        return native(eqn, arrays, carrier)
    return bound(eqn, arrays, carrier)


def _plain(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    return bound(eqn, arrays, frame.arithmetic.carrier)[0]


def _sum(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """A sum, that of -0 and a constant 0 included: XLA takes x + 0 for x, unless the zero depends on x."""
    if is_float(eqn.outvars[0].aval.dtype):
        for zero, other in ((0, 1), (1, 0)):
            if not isinstance(arrays[zero], jax.Array) and not np.any(arrays[zero]):
                x = jnp.asarray(arrays[other])
                return lax.add(x, jnp.where(x == x, jnp.asarray(arrays[zero]), jnp.asarray(jnp.nan, x.dtype)))
    return _plain(eqn, arrays, frame)


def _quotient(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """A division that divides: XLA turns x / broadcast(y) into x * (1 / y), which rounds twice, unless y depends on x."""
    x, y = map(jnp.asarray, arrays)
    return lax.div(x, jnp.where(x == x, y, jnp.asarray(jnp.nan, y.dtype))) if is_float(x.dtype) else _plain(eqn, [x, y], frame)


def _converted(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """A conversion; of a 32-bit integer, one that keeps its side of the ties that its 24 leading bits alone may look like."""
    x, var = arrays[0], eqn.outvars[0]
    wide = np.dtype(x.dtype).itemsize == 4 and jnp.issubdtype(x.dtype, jnp.integer)
    if not (wide and is_float(var.aval.dtype)) or carrier_dtype(var.aval.dtype, frame.arithmetic.carrier) != jnp.float32:
        return _plain(eqn, arrays, frame)
    fmt = _format("convert_element_type", var.aval.dtype, frame)
    if is_concrete(fmt) and fmt.precision > 22:
        return _plain(eqn, arrays, frame)
    integer = jnp.asarray(x)
    low = integer & np.asarray(0xFFFF, integer.dtype)
    return sum_to_odd((integer - low).astype(jnp.float32), low.astype(jnp.float32))


def _next(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """The next value of the format, not of the carrier."""
    x, towards = jnp.broadcast_arrays(*arrays)
    below, above = neighbors(x, _format("nextafter", eqn.outvars[0].aval.dtype, frame))
    return jnp.where(towards > x, above, jnp.where(towards < x, below, towards + (x - x)))


def _bits(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """The bits of the dtype that the program names."""
    return native(eqn, arrays, frame.arithmetic.carrier)[0]


def _matrix_product(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """Exact products, float32 partial sums, one rounding; with an `accumulation`, its formats and order; block formats for operands."""
    name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
    if not is_float(dtype):
        return _plain(eqn, arrays, frame)
    arithmetic = frame.arithmetic
    mode, rule = arithmetic.mode_of(name, frame.path), arithmetic.format_of(name, frame.path)
    left, right = map(jnp.asarray, arrays)
    numbers = eqn.params["dimension_numbers"]
    if isinstance(rule, BlockFormat):
        keys = [frame.next_words() if isinstance(mode, Stochastic) else None for _ in range(2)]
        left, right = products.in_blocks(left, right, numbers, rule, mode, keys)
    if arithmetic.accumulation is None:
        # Exact products of narrow operands and float32 sums: on accelerators only the highest precision promises that.
        return bound(eqn, [left, right], arithmetic.carrier, precision=_HIGHEST, preferred_element_type=left.dtype)[0]
    return products.multiply_matrices(left, right, numbers, arithmetic.accumulation, mode, _key(mode, frame))


def _convolution(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """As a matrix product, window by window."""
    arithmetic = frame.arithmetic
    if not is_float(eqn.outvars[0].aval.dtype):
        return _plain(eqn, arrays, frame)
    left, right = map(jnp.asarray, arrays)
    if arithmetic.accumulation is None:
        return bound(eqn, [left, right], arithmetic.carrier, precision=_HIGHEST, preferred_element_type=left.dtype)[0]
    mode = arithmetic.mode_of(eqn.primitive.name, frame.path)
    geometry = {name: eqn.params[name] for name in _GEOMETRY}
    return rounded_convolution(left, right, arithmetic.accumulation, mode, _key(mode, frame), **geometry)


def _reduction(reduce: Callable[..., Array], keywords: tuple[str, ...]) -> Callable[..., Array]:
    def special(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
        """In float32, rounded once; with an `accumulation`, in its formats and order."""
        arithmetic = frame.arithmetic
        if arithmetic.accumulation is None or not is_float(eqn.outvars[0].aval.dtype):
            return _plain(eqn, arrays, frame)
        mode = arithmetic.mode_of(eqn.primitive.name, frame.path)
        options = [eqn.params[name] for name in keywords]
        return reduce(jnp.asarray(arrays[0]), *options, arithmetic.accumulation, mode, _key(mode, frame))

    return special


def _ragged_product(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """Exact products and float32 partial sums within a group, one rounding, whatever the `accumulation`."""
    left = jnp.asarray(arrays[0])
    if not is_float(eqn.outvars[0].aval.dtype):
        return _plain(eqn, arrays, frame)
    return bound(eqn, arrays, frame.arithmetic.carrier, precision=_HIGHEST, preferred_element_type=left.dtype)[0]


def _scatter(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """Float32 sums (products), rounded once; with an `accumulation`, one update after the other, each rounded."""
    arithmetic, name = frame.arithmetic, eqn.primitive.name
    if arithmetic.accumulation is None or not is_float(eqn.outvars[0].aval.dtype):
        return _plain(eqn, arrays, frame)
    mode = arithmetic.mode_of(name, frame.path)
    options = {option: eqn.params[option] for option in ("dimension_numbers", "indices_are_sorted", "unique_indices")}
    operand, indices, updates = map(jnp.asarray, arrays)
    return rounded_scatter(
        name, operand, indices, updates, arithmetic.accumulation, mode, _key(mode, frame),
        mode_of_indices=eqn.params["mode"], **options,
    )  # fmt: skip


def _key(mode: Mode, frame: Frame) -> Array | None:
    return frame.next_words() if isinstance(mode, Stochastic) else None


_HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
_GEOMETRY = (
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "batch_group_count"
)  # fmt: skip
_SPECIAL: dict[str, Callable[..., Array]] = {
    "add": _sum,
    "convert_element_type": _converted,
    "div": _quotient,
    "nextafter": _next,
    "bitcast_convert_type": _bits,
    "dot_general": _matrix_product,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged_product,
    "scatter-add": _scatter,
    "scatter-mul": _scatter,
    "scatter-sub": _scatter,
    "reduce_sum": _reduction(rounded_sum, ("axes",)),
    "reduce_prod": _reduction(rounded_prod, ("axes",)),
    "cumsum": _reduction(rounded_cumsum, ("axis", "reverse")),
    "cumprod": _reduction(rounded_cumprod, ("axis", "reverse")),
}
