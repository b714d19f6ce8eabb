"""Where a number enters a format: constants and arguments, and operands of another format.

Results are rounded where they are computed; what was not computed, or in another format, is rounded where it is read. What lies
on the right grid already is not rounded again.
"""

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import carrier_for, format_of_dtype, is_float, on_its_side
from precisionlab.arithmetic.complexes import is_complex, joined, parts, real_dtype
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Frame, Grid, Held
from precisionlab.arithmetic.primitives import EXACT
from precisionlab.numerics.blocks import BlockFormat
from precisionlab.numerics.carriers import CARRIERS, Carrier
from precisionlab.numerics.formats import Format, is_concrete
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import Mode, Stochastic, nearest_even
from precisionlab.numerics.rounding import round_result, round_to

__all__ = ["entered", "format_of", "holds_all", "rounded", "rounded_argument"]


def entered(value: Held, name: str, dtype: Any, frame: Frame, place: int = 0) -> Any:
    """An operand in the format of the operation that reads it (no name: what only passes on, and is moved as it is)."""
    array = _read(value, name, dtype, frame)
    if frame.noticed is not None and array is not value.array:
        what = "constant" if value.grid == RAW else f"operand of {name}"
        frame.noticed(value, array, what, dtype, frame.place(place), frame)
    return array


def _read(value: Held, name: str, dtype: Any, frame: Frame) -> Any:
    if is_complex(dtype):
        both = parts(value.array)
        read = [_read(value._replace(array=part), name, real_dtype(dtype), frame) for part in both]
        return value.array if all(one is other for one, other in zip(read, both, strict=True)) else joined(*read)
    rule = frame.arithmetic.format_of(name, frame.path)
    if not is_float(dtype) or ((name in EXACT or not name) and value.grid != RAW):
        return value.array
    if isinstance(rule, BlockFormat):
        return value.array  # the blocks run along the contraction, which the product itself knows
    if rule is None and value.grid != RAW:
        return value.array  # the program's own dtypes: it converts where it means to
    fmt = rule or format_of_dtype(dtype)
    if _same(value.grid, fmt) or (frame.arithmetic.uniform and value.grid != RAW) or holds_all(fmt, carrier_for(value.array)):
        return value.array
    mode = frame.arithmetic.mode_of(name, frame.path)
    if value.grid == RAW:
        return _constant(value.array, dtype, fmt, nearest_even if isinstance(mode, Stochastic) else mode)
    return rounded(value.array, fmt, mode, frame)


def rounded_argument(value: Held, given: Any, dtype: Any, path: tuple[str, ...], frame: Frame) -> Held:
    """An argument of the function, in the format in which it enters.

    Args:
        value: the argument in its carrier.
        given: as it was given: NumPy's float64 has more to say than the carrier, unless 64-bit JAX is enabled.
        dtype: its dtype in the function.
        path: where among the arguments it is.
        frame: the rules.
    """
    if is_complex(dtype):
        pairs = zip(parts(value.array), parts(given), strict=True)
        both = [rounded_argument(value._replace(array=x), y, real_dtype(dtype), path, frame) for x, y in pairs]
        return both[0]._replace(array=joined(*(part.array for part in both)), exact=value.exact)
    rule = frame.arithmetic.argument_format(path)
    fmt, grid = rule or format_of_dtype(dtype), rule if isinstance(rule, Format) else UNKNOWN
    carrier, array = carrier_for(value.array), value.array
    if holds_all(fmt, carrier):
        return value._replace(grid=grid)
    wider = carrier.width == 32 and not isinstance(given, jax.Array) and given.dtype == np.float64
    if wider and is_concrete(fmt) and fmt.precision <= carrier.precision - 2:
        array = jnp.asarray(on_its_side(np.asarray(given)))
    return value._replace(array=rounded(array, fmt, frame.arithmetic.argument_mode(path), frame), grid=grid)


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
    return np.asarray(_round_scalar(jnp.asarray(value, carrier), fmt, mode))


@partial(jax.jit, static_argnums=(1, 2))  # one compilation for all numbers in a program
def _round_scalar(value: Array, fmt: Format, mode: Mode) -> Array:
    return round_carrier(value, fmt, mode, None, CARRIERS[value.dtype.name])


def format_of(name: str, dtype: Any, frame: Frame) -> Format:
    """The format of an operation's results."""
    rule = frame.arithmetic.format_of(name, frame.path)
    if isinstance(rule, BlockFormat):
        rule = frame.arithmetic.format_of("", frame.path)
    return rule or format_of_dtype(dtype)


def rounded(x: Array, fmt: Format, mode: Mode, frame: Frame) -> Array:
    """A value rounded to a format, with the next random bits where the mode needs some."""
    random = frame.next_words() if isinstance(mode, Stochastic) else None
    return round_result(x, fmt, mode, random, frame.words_of(fmt, carrier_for(x)))


def _same(grid: Grid, fmt: Format) -> bool:
    return grid is fmt or (isinstance(grid, Format) and is_concrete(grid) and is_concrete(fmt) and grid == fmt)


def holds_all(fmt: Format, carrier: Carrier) -> bool:
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
