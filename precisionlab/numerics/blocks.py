"""Block formats: narrow elements that share a scale.

Cut an axis into blocks. A block of values v_i is stored as one scale X and elements P_i, and means the numbers X P_i. The
scale moves the largest value of the block to the top of the element format; the elements are v_i / X, rounded. Two laws say
what X is:

    a scale of bare powers of two (MX)    X = 2^(floor(log2 max|v|) - emax)        emax: exponent of the largest element;
                                          or another law of `scale_laws`, such as the round-up of most libraries
    any other scale format (NVFP4)        X = round(max|v| / (M g)) g              M: the largest element

where g is 1 or, in NVFP4, one float32 scale of the whole tensor, max|tensor| / (M S) with S the largest block scale, so that
the block scales use their whole range. Elements beyond M are clamped to it. What cannot be stored with a scale makes it NaN:
an infinity or a NaN turns its block into NaN (in NVFP4 the tensor, whose scale it shares).

Multiplying by powers of two is integer arithmetic here, because the products pass through numbers that float32 arithmetic
flushes to zero: a value of 2^-140 shares a block whose scale is 2^-127. What is dropped on the way to the elements is kept as
one odd last bit, so that rounding afterwards is as right as rounding the exact quotient.
"""

import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.numerics.block_formats import (
    BLOCK_FORMATS,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    check_block_format,
)
from precisionlab.numerics.block_rounding import round_parts, scale_parts
from precisionlab.numerics.carriers import CARRIERS, FLOAT32_CARRIER, Carrier, from_bits, to_bits
from precisionlab.numerics.cutting import by_blocks, cut
from precisionlab.numerics.derivatives import constant, straight_through
from precisionlab.numerics.formats import Format, saturating
from precisionlab.numerics.grids import as_carrier
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, mode_name, nearest_even
from precisionlab.numerics.randomness import check_key
from precisionlab.numerics.scaling import times_power
from precisionlab.numerics.wide import in_float64, unheld
from precisionlab.numerics.words import is_number

__all__ = [
    "BLOCK_FORMATS",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "BlockFormat",
    "block_scales",
    "round_blocks",
]


def round_blocks(
    x: Float[Array, "..."],
    block_format: BlockFormat,
    axis: int = -1,
    mode: Mode = nearest_even,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "..."]:
    """Round every entry of x to what its block can store, with blocks along one axis.

    The mode rounds the elements; scales follow their law (powers of two) or round to nearest even (fractions). The
    last block of an axis that is no multiple of the size is short, as if zeros followed. Under `jax.vmap` each example is a
    tensor of its own. Works under jit, vmap, scan and differentiation: the derivative is one everywhere (straight-through).

    The MX formats follow the OCP Microscaling Formats (MX) Specification 1.0, section 6.3, and B. Rouhani et al.,
    "Microscaling Data Formats for Deep Learning" (arXiv:2310.10537), algorithm 1, but keep the subnormals of float32. Where
    they leave a choice: a scale stays within 2^-127 and 2^127, an all-zero block has the smallest one, and an infinity or NaN
    makes its whole block NaN, since four of the six element formats have neither.

    NVFP4 follows NVIDIA's "Pretraining Large Language Models with NVFP4" (arXiv:2509.25149) in the order of operations of
    Transformer Engine's documentation and of torchao, in the arithmetic of x but for exponents without bounds:

        g = max|tensor| / (6 * 448)        to float32; 1 for a tensor of zeros
        s = (max|block| / 6) / g           to E4M3, at most 448
        P = x / (s * g)                    to E2M1, clamped to 6
        P * (s * g)                        0 where s is 0

    Implementations differ in the last bit of float32, for instance by multiplying with 1/6 or 1/g, and so at ties. Results are
    reproducible bit for bit where the device divides with correct rounding, as CPUs do; the MX formats are so everywhere.

    Args:
        x: at least one axis, float32 or float64. What float32 does not hold, of NumPy or Python, is rounded from the float64
            it is, outside of 64-bit JAX too; the result then is float32.
        block_format: such as `MXFP8_E4M3` or `NVFP4`, or one of your own.
        axis: which axis is cut into blocks, from -ndim to ndim - 1.
        mode: a rounding mode such as `nearest_even`, `upward`, `stochastic`.
        key: a JAX random key, needed by stochastic modes and ignored by the others.

    Returns:
        The values that the blocks mean (scale times element), same shape and dtype as x, at most its largest finite number.

    Raises:
        TypeError: if x is not float32 or float64, if block_format is not a BlockFormat or holds no formats, if axis is not
            a whole number, or mode not a function.
        ValueError: if x has no such axis, if block_format makes no sense or does not fit the dtype of x, or a stochastic mode
            has no key.

    Example:
        >>> x = jnp.array([[1.0, 0.3, -0.04], [100.0, 7.1, -0.04]])
        >>> round_blocks(x, MXFP8_E4M3).tolist()
        [[1.0, 0.3125, -0.0390625], [96.0, 7.0, -0.0390625]]
        >>> round_blocks(x, MXFP4).tolist()
        [[1.0, 0.25, -0.0], [96.0, 8.0, -0.0]]
        >>> from precisionlab import scale_floor, scale_round_up
        >>> [round_blocks(jnp.array([7.0, 0.4]), MXFP4._replace(law=law)).tolist() for law in (scale_floor, scale_round_up)]
        [[6.0, 0.5], [8.0, 0.0]]
    """
    where = "round_blocks"
    array, carrier, axis = _check(x, block_format, axis, where)
    check_mode(mode, where)
    if isinstance(mode, Stochastic) and key is None:
        raise ValueError(f"{where}: {mode_name(mode)} rounding needs random bits; pass key=jax.random.key(seed).")
    if isinstance(array, np.ndarray):
        most = float(np.finfo(np.float32).max)
        return in_float64(lambda: jnp.clip(round_blocks(jnp.asarray(array), block_format, axis, mode, key=key), -most, most))
    random = mode.generator(check_key(key, where), array.shape, carrier.uint) if isinstance(mode, Stochastic) else None
    fixed, traced = _apart(block_format)
    rounded = _round(constant(array), random, traced, fixed=fixed, axis=axis, mode=mode)
    return straight_through(array, rounded)


def block_scales(x: Float[Array, "..."], block_format: BlockFormat, axis: int = -1) -> Float[Array, "..."]:
    """The scales that `round_blocks` gives the blocks of x: what a block's elements are multiplied by.

    Args:
        x: at least one axis, float32 or float64.
        block_format: such as `MXFP8_E4M3` or `NVFP4`, or one of your own.
        axis: which axis is cut into blocks, from -ndim to ndim - 1.

    Returns:
        The scales in the units of x, of its dtype and its shape but for that axis, which has ceil(length / size) entries. In a
        format with a tensor scale they are the products of the block's scale with it. NaN where a block has no scale.

    Raises:
        TypeError: as `round_blocks`.
        ValueError: as `round_blocks`.

    Example:
        >>> block_scales(jnp.array([[1.0, 0.3, -0.04], [100.0, 7.1, -0.04]]), MXFP4).tolist()
        [[0.25], [16.0]]
        >>> block_scales(jnp.array([2688.0] * 16 + [5.1] * 16), NVFP4).tolist()
        [448.0, 0.875]
    """
    array, _, axis = _check(x, block_format, axis, "block_scales")
    if isinstance(array, np.ndarray):
        return in_float64(lambda: block_scales(jnp.asarray(array), block_format, axis))
    fixed, traced = _apart(block_format)
    return _scales(constant(array), traced, fixed=fixed, axis=axis)


@partial(jax.jit, static_argnames=("fixed", "axis", "mode"))
def _round(x: Array, random: Array | None, traced: Format, *, fixed: BlockFormat, axis: int, mode: Mode) -> Array:
    carrier, block_format = CARRIERS[x.dtype.name], _together(fixed, traced)
    parts = partial(round_parts, block_format=block_format, axis=axis + 1, mode=mode, carrier=carrier)
    return by_blocks(parts, x, random, fixed.size, axis)


@partial(jax.jit, static_argnames=("fixed", "axis"))
def _scales(x: Array, traced: Format, *, fixed: BlockFormat, axis: int) -> Array:
    carrier, block_format = CARRIERS[x.dtype.name], _together(fixed, traced)
    magnitude = to_bits(cut(x, fixed.size, axis), carrier) & carrier.word(carrier.sign - 1)
    factor, exponent = scale_parts(magnitude, block_format, axis + 1, carrier)
    scales = from_bits(times_power(to_bits(factor, carrier), exponent, nearest_even, carrier), carrier)
    return jnp.squeeze(jnp.where(jnp.isnan(factor), factor, scales), axis + 1)


def _apart(block_format: BlockFormat) -> tuple[BlockFormat, Format]:
    """What is known of a block format before tracing, and the traced numbers of its elements, None elsewhere."""
    element = saturating(block_format.element)
    fixed = Format(*(field if is_number(field) else None for field in element))
    return block_format._replace(element=fixed), Format(*(None if is_number(field) else field for field in element))


def _together(fixed: BlockFormat, traced: Format) -> BlockFormat:
    pairs = zip(traced, fixed.element, strict=True)
    return fixed._replace(element=Format(*(known if number is None else number for number, known in pairs)))


def _check(x: Any, block_format: BlockFormat, axis: int, where: str) -> tuple[Array | np.ndarray, Carrier, int]:
    """The array (of NumPy where float32 does not hold it), its carrier and the axis from the front, or a sentence."""
    if not isinstance(block_format, BlockFormat):
        raise TypeError(
            f"{where}: block_format must be a BlockFormat such as precisionlab.MXFP8_E4M3; got {block_format!r}; for a "
            f"format without shared scales call round_to."
        )
    wide = unheld(x)
    array, carrier = as_carrier(x, where) if wide is None else (wide, FLOAT32_CARRIER)
    check_block_format(block_format, carrier, where)
    try:
        index = operator.index(axis)
    except TypeError:
        raise TypeError(f"{where}: axis must be a whole number, one axis alone; got {axis!r}.") from None
    if array.ndim == 0:
        raise ValueError(f"{where}: x is a single number and has no axis to cut into blocks; pass x.reshape(1) if you mean it.")
    if not -array.ndim <= index < array.ndim:
        raise ValueError(
            f"{where}: axis={index} is out of range for x of shape {array.shape}; allowed are {-array.ndim} to "
            f"{array.ndim - 1}."
        )
    return array, carrier, index % array.ndim
