"""One operation, rounded.

An operation reads its operands in its own format, computes in the carrier, and rounds the result once. In a carrier of at least
2p + 2 bits that equals one correct rounding of the exact sum, difference, product, quotient or square root under a nearest
mode (Figueroa 1995); where it does not, sums are made exact first. Elementary functions are evaluated in the carrier.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import (
    as_typed,
    bound,
    carrier_dtype,
    carrier_for,
    is_float,
    is_inexact,
    native,
)
from precisionlab.arithmetic.complexes import is_complex, joined, parts, real_dtype
from precisionlab.arithmetic.entering import entered, format_of, holds_all, rounded
from precisionlab.arithmetic.exact.basic import BASIC, is_innocuous, rounded_exactly
from precisionlab.arithmetic.exact.exact_sums import round_once, sum_to_odd, two_sum
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Frame, Grid, Held
from precisionlab.arithmetic.primitives import EXACT, FLIPS_SIGN, PRODUCTS, ROUNDED
from precisionlab.arithmetic.sums import products
from precisionlab.arithmetic.sums.convolutions import rounded_convolution
from precisionlab.arithmetic.sums.reductions import rounded_cumprod, rounded_cumsum, rounded_prod, rounded_sum
from precisionlab.arithmetic.sums.scatters import rounded_scatter
from precisionlab.numerics.blocks import BlockFormat
from precisionlab.numerics.carriers import CARRIERS, FLOAT64_CARRIER, uncontracted
from precisionlab.numerics.derivatives import constant, straight_through, with_exact_derivative
from precisionlab.numerics.formats import is_concrete
from precisionlab.numerics.grids import neighbors
from precisionlab.numerics.modes import Mode, Stochastic, downward, nearest_even
from precisionlab.numerics.rounding import stored

__all__ = ["is_rounded", "operands_of", "operate", "results_of", "rounded_results"]


def operate(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """The values of one equation, rounded by the rules of its frame."""
    operands = operands_of(eqn, inputs, frame)
    return rounded_results(eqn, inputs, operands, results_of(eqn, operands, frame), frame)


def operands_of(eqn: Any, inputs: list[Held], frame: Frame) -> list[Any]:
    """The values of one equation's operands, as it reads them."""
    pairs = enumerate(zip(inputs, eqn.invars, strict=True))
    return [entered(value, eqn.primitive.name, var.aval.dtype, frame, place) for place, (value, var) in pairs]


def rounded_results(eqn: Any, inputs: list[Held], operands: list[Any], results: list[Any], frame: Frame) -> list[Held]:
    """The results of one equation, rounded by the rules of its frame."""
    if not is_rounded(eqn, frame):
        grid = _common_grid(eqn, inputs, frame)
        return [Held(result, grid) for result in results]
    return [
        settled(result, var.aval.dtype, eqn, operands, frame) if is_inexact(var.aval.dtype) else Held(result, UNKNOWN)
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
        fmt = format_of(name, eqn.outvars[0].aval.dtype, frame)
        return not (isinstance(fmt.zeros, int) and fmt.zeros == 2)
    return name not in EXACT


def settled(result: Array, dtype: Any, eqn: Any, arrays: list[Any], frame: Frame) -> Held:
    """A computed result, rounded to the format of its operation, in the carrier of its dtype; both parts, if it is complex.

    What was computed in a wider carrier (of float64 or 64-bit integers) is rounded there, once, before it moves.
    """
    if is_complex(dtype):
        both = [settled(part, real_dtype(dtype), eqn, arrays, frame) for part in parts(result)]
        return Held(joined(*(part.array for part in both)), both[0].grid)
    held = _settled(result, dtype, eqn, arrays, frame)
    return held._replace(array=as_typed(held.array, carrier_dtype(dtype, frame.arithmetic.carrier)))


def _settled(result: Array, dtype: Any, eqn: Any, arrays: list[Any], frame: Frame) -> Held:
    name = eqn.primitive.name
    fmt = format_of(name, dtype, frame)
    mode = frame.arithmetic.mode_of(name, frame.path)
    if name == "jit" and eqn.params["name"] == "_uniform":
        mode = downward  # a uniform number stays below its upper bound
    carrier = carrier_for(result)
    if name in BASIC and not is_innocuous(name, fmt, mode, carrier):
        operands = [jnp.broadcast_to(array, result.shape) for array in arrays]
        return Held(rounded_exactly(name, operands, result, fmt, mode), fmt)
    if holds_all(fmt, carrier):  # every mode keeps what it is given, and nothing keeps a product from the sum that follows
        if name in PRODUCTS:
            result = straight_through(result, _uncontracted(constant(result)))
        if mode is nearest_even:
            return Held(stored(result), fmt)
    return Held(rounded(result, fmt, mode, frame), fmt)


def _common_grid(eqn: Any, inputs: list[Held], frame: Frame) -> Grid:
    """What is known of values that an exact operation moved."""
    grids: list[Grid] = []
    for value, var in zip(inputs, eqn.invars, strict=True):
        if is_inexact(var.aval.dtype):
            raw = value.grid == RAW
            grids.append(format_of(eqn.primitive.name, var.aval.dtype, frame) if raw else value.grid)
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
                return _by_itself(lax.add, jnp.asarray(arrays[other]), jnp.asarray(arrays[zero]))
    return _plain(eqn, arrays, frame)


def _quotient(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """A division that divides: XLA turns x / broadcast(y) into x * (1 / y), which rounds twice, unless y depends on x."""
    x, y = map(jnp.asarray, arrays)
    return _by_itself(lax.div, x, y) if is_float(x.dtype) else _plain(eqn, [x, y], frame)


_uncontracted = jax.jit(uncontracted)


def _by_itself(operation: Callable[..., Array], x: Array, y: Array) -> Array:
    """One number with another that depends on it as far as compilers can tell."""
    return with_exact_derivative(operation, _dependent(operation, constant(x), constant(y)), x, y)


@partial(jax.jit, static_argnums=0)  # one compilation where it runs at once
def _dependent(operation: Callable[..., Array], x: Array, y: Array) -> Array:
    return operation(x, jnp.where(x == x, y, jnp.asarray(jnp.nan, y.dtype)))


def _converted(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """A conversion to floats, in a carrier that has the number: a float's own; an integer's, as the sum of its halves."""
    x, dtype = arrays[0], eqn.outvars[0].aval.dtype
    if not is_float(dtype):
        return _plain(eqn, arrays, frame)
    if is_float(x.dtype):
        return x if x.dtype == jnp.float64 else _plain(eqn, arrays, frame)
    bits = 8 * np.dtype(x.dtype).itemsize
    carrier = FLOAT64_CARRIER if bits == 64 else CARRIERS[np.dtype(carrier_dtype(dtype, frame.arithmetic.carrier)).name]
    fmt = format_of("convert_element_type", dtype, frame)
    mode = frame.arithmetic.mode_of("convert_element_type", frame.path)
    if not jnp.issubdtype(x.dtype, jnp.integer) or bits < carrier.precision:
        return _plain(eqn, arrays, frame)
    integer = jnp.asarray(x)
    if mode is nearest_even and holds_all(fmt, carrier):
        return integer.astype(carrier.dtype)
    low = integer & np.asarray((1 << bits // 2) - 1, integer.dtype)
    halves = (integer - low).astype(carrier.dtype), low.astype(carrier.dtype)
    if isinstance(mode, Stochastic) or (is_concrete(fmt) and fmt.precision <= carrier.precision - 2):
        return sum_to_odd(*halves)  # from which the rounding that follows is right
    return round_once(*two_sum(*halves, carrier), halves, fmt, mode, None, carrier)


def _next(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """The next value of the format, not of the carrier."""
    x, towards = jnp.broadcast_arrays(*arrays)
    below, above = neighbors(x, format_of("nextafter", eqn.outvars[0].aval.dtype, frame))
    return jnp.where(towards > x, above, jnp.where(towards < x, below, towards + (x - x)))


def _bits(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """The bits of the dtype that the program names."""
    return native(eqn, arrays, frame.arithmetic.carrier)[0]


def _matrix_product(eqn: Any, arrays: list[Any], frame: Frame) -> Array:
    """Exact products, float32 partial sums, one rounding; with an `accumulation`, in its formats and order."""
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
    """Exact products and float32 partial sums within a group, one rounding."""
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
