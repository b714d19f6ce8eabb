"""Block formats as tables of numbers: what the elements are, what the scales are, how many share one.

What they do to a tensor is in `blocks`, and which power of two a scale is in `scale_laws`.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from precisionlab.numerics.carriers import Carrier
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import (
    FLOAT4_E2M1FN,
    FLOAT6_E2M3FN,
    FLOAT6_E3M2FN,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    FLOAT8_E8M0FNU,
    Format,
    fixed_point,
    is_concrete,
    saturating,
)
from precisionlab.numerics.scale_laws import SCALE_LAWS, ScaleLaw, scale_floor

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
    "check_block_format",
    "name_of_blocks",
    "powers_of_two",
]


class BlockFormat(NamedTuple):
    """A block format as a table: what the elements are, what the scales are, how many elements share one.

    Attributes:
        element: the format of the elements; beyond its largest value they are clamped, whatever its `overflow` says. Its
            numbers may be traced.
        scale: the format of the scales. With one significand bit they are powers of two and follow the MX law, otherwise they
            are fractions of the largest value. A scale beyond `scale.largest` stops there if the format saturates, else it
            is NaN, and with it the block. Its numbers must be plain.
        size: how many elements share a scale.
        tensor_scale: whether the block scales are relative to one float32 scale of the whole tensor.
        law: which power of two a scale is: `scale_floor`, that of the specification, `scale_even`, `scale_round_up` or
            `scale_ceil`; see `scale_laws`.

    Example:
        >>> MXFP4 == BlockFormat(element=FLOAT4_E2M1FN, scale=saturating(FLOAT8_E8M0FNU), size=32)
        True
        >>> MXFP4._replace(law=scale_floor) == MXFP4          # the law of the specification
        True
    """

    element: Format
    scale: Format
    size: int
    tensor_scale: bool = False
    law: ScaleLaw = scale_floor


def _from_numbers(law: ScaleLaw, numbers: Any) -> BlockFormat:
    element, scale, size, tensor_scale = numbers
    return BlockFormat(element, scale, size, tensor_scale, law)


# The law is no number: it must not be traced with the formats.
jax.tree_util.register_pytree_node(BlockFormat, lambda blocks: (tuple(blocks[:-1]), blocks.law), _from_numbers)


def powers_of_two(block_format: BlockFormat) -> bool:
    """Whether the scales of a block format are bare powers of two."""
    return block_format.scale.precision == 1


def name_of_blocks(block_format: BlockFormat) -> str:
    """The name in `BLOCK_FORMATS` with the law of the scales where that is another one, or the numbers written out.

    Example:
        >>> from precisionlab import scale_even
        >>> name_of_blocks(MXFP4._replace(law=scale_even))
        'mxfp4 (scales: even)'
    """
    *numbers, law = block_format
    name = next((name for name, known in BLOCK_FORMATS.items() if [*known[:-1]] == numbers), str(block_format))
    laws = {known: f" (scales: {called})" for called, known in SCALE_LAWS.items() if known is not scale_floor}
    return name + laws.get(law, "")


def check_block_format(block_format: BlockFormat, carrier: Carrier, where: str) -> None:
    """Raise unless a block format makes sense and fits a carrier."""
    element, scale, size, tensor_scale, law = block_format
    for name, given in (("element", element), ("scale", scale)):
        if not isinstance(given, Format):
            raise TypeError(f"{where}: {name} of a BlockFormat must be a Format such as FLOAT4_E2M1FN; got {given!r}.")
    if not is_concrete(scale):
        raise TypeError(f"{where}: the scale format of a BlockFormat decides its law and must be plain numbers; got {scale!r}.")
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{where}: size of a BlockFormat counts the elements that share a scale, 1 or more; got {size!r}.")
    if not callable(law):
        hint = (
            f"pass the function: precisionlab.scale_{law}"
            if isinstance(law, str) and law in SCALE_LAWS
            else f"the laws are {', '.join(SCALE_LAWS)}"
        )
        raise TypeError(f"{where}: law of a BlockFormat must be a function such as scale_round_up; got {law!r}; {hint}.")
    if law is not scale_floor and not powers_of_two(block_format):
        raise ValueError(
            f"{where}: law of a BlockFormat chooses among powers of two, and this one's scales are fractions, which round to "
            f"nearest even; leave it out, or take scales of one significand bit, such as saturating(FLOAT8_E8M0FNU)."
        )
    if tensor_scale and powers_of_two(block_format):
        raise ValueError(
            f"{where}: a BlockFormat with tensor_scale=True needs a scale format of 2 or more significand bits, such as "
            f"saturating(FLOAT8_E4M3FN); scales that are powers of two need no second one."
        )
    require_fits(scale, carrier, where)
    if is_concrete(element):
        require_fits(element, carrier, where)
        if element.zeros == 0:
            raise ValueError(f"{where}: element of a BlockFormat must have a zero and a sign; got {element!r}.")


_POWERS = saturating(FLOAT8_E8M0FNU)
MXFP8_E4M3 = BlockFormat(saturating(FLOAT8_E4M3FN), _POWERS, 32)
MXFP8_E5M2 = BlockFormat(saturating(FLOAT8_E5M2), _POWERS, 32)
MXFP6_E2M3 = BlockFormat(FLOAT6_E2M3FN, _POWERS, 32)
MXFP6_E3M2 = BlockFormat(FLOAT6_E3M2FN, _POWERS, 32)
MXFP4 = BlockFormat(FLOAT4_E2M1FN, _POWERS, 32)
# Multiples of 2^-6 up to 1 + 63/64 on either side. The code of two's complement that is left over would mean -2; it stays
# unused, so that rounding is symmetric and free of bias, as in the reference emulation of the specification's authors.
MXINT8 = BlockFormat(fixed_point(1, 6), _POWERS, 32)
NVFP4 = BlockFormat(FLOAT4_E2M1FN, saturating(FLOAT8_E4M3FN), 16, tensor_scale=True)

BLOCK_FORMATS: dict[str, BlockFormat] = {
    "mxfp8_e4m3": MXFP8_E4M3,
    "mxfp8_e5m2": MXFP8_E5M2,
    "mxfp6_e2m3": MXFP6_E2M3,
    "mxfp6_e3m2": MXFP6_E3M2,
    "mxfp4": MXFP4,
    "mxint8": MXINT8,
    "nvfp4": NVFP4,
}
