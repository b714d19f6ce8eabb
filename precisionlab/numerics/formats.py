"""A number format is its numbers.

A `Format` says which reals can be stored: significands of `precision` bits (the hidden one included), exponents from `emin`
up, magnitudes up to `largest`, and what stands for anything beyond it. Names and encodings live elsewhere: the registry
`FORMATS` holds the usual ones under the spelling of ml_dtypes. Because a format is only numbers, it can be a compile-time
constant, a traced argument of a jitted function, or a stack of many under `jax.vmap`, and a sweep over formats is one
compiled program.

With p = precision and x in [2^e, 2^(e+1)), the spacing (ulp) of the format at x is 2^(max(e, emin) - p + 1). A fixed-point
grid is the same thing with every value below 2^emin, where that spacing is constant.
"""

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = [
    "BFLOAT16",
    "FLOAT4_E2M1FN",
    "FLOAT6_E2M3FN",
    "FLOAT6_E3M2FN",
    "FLOAT8_E3M4",
    "FLOAT8_E4M3",
    "FLOAT8_E4M3B11FNUZ",
    "FLOAT8_E4M3FN",
    "FLOAT8_E4M3FNUZ",
    "FLOAT8_E5M2",
    "FLOAT8_E5M2FNUZ",
    "FLOAT8_E8M0FNU",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FORMATS",
    "TFLOAT32",
    "Format",
    "describe_numbers",
    "fixed_point",
    "ieee_format",
    "is_concrete",
    "name_of",
    "saturating",
    "stack_formats",
    "unit_roundoff",
]


class Format(NamedTuple):
    """A number format as a table of numbers; each may be a Python number or a traced scalar.

    Attributes:
        precision: significand bits p, the hidden one included (float32: 24).
        emin: exponent of the smallest normal number, 2^emin (float32: -126).
        largest: the largest finite value.
        overflow: what a positive result beyond `largest` becomes: inf, nan, or `largest` itself (saturation).
        subnormals: whether there are values between 0 and 2^emin (gradual underflow).
        zeros: how many zeros there are: 2 (+0 and -0), 1 (no -0: the fnuz formats, fixed point), or 0 (neither zero nor
            sign, only bare powers of two: e8m0).

    Example:
        >>> FLOAT16
        Format(precision=11, emin=-14, largest=65504.0, overflow=inf, subnormals=True, zeros=2)
        >>> FLOAT16 == ieee_format(5, 10)
        True
    """

    precision: Any
    emin: Any
    largest: Any
    overflow: Any
    subnormals: Any = True
    zeros: Any = 2

    def __eq__(self, other: object) -> Any:
        """Equality of the numbers, with NaN equal to itself so that formats serve as keys and static arguments."""
        if not isinstance(other, Format):
            return NotImplemented
        return tuple(map(_key, self)) == tuple(map(_key, other))

    def __ne__(self, other: object) -> Any:
        """The negation of equality."""
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        """A hash that agrees with equality."""
        return hash(tuple(map(_key, self)))


def _key(field: Any) -> Any:
    return "nan" if isinstance(field, float | np.floating) and math.isnan(field) else field


def is_concrete(fmt: Format) -> bool:
    """Whether no number of the format is an array or traced, so that it can be checked and specialized on."""
    return not any(hasattr(field, "dtype") and not isinstance(field, np.generic) for field in fmt)


def ieee_format(exponent_bits: int, significand_bits: int) -> Format:
    """The format that IEEE 754 gives for these widths: infinities, NaNs, subnormals, bias 2^(exponent_bits-1) - 1.

    Args:
        exponent_bits: stored exponent bits, at least 2 (with 1 there would be no normal number).
        significand_bits: stored significand bits, without the hidden one, at least 0.

    Raises:
        ValueError: if a width is out of range.

    Example:
        >>> ieee_format(8, 7) == BFLOAT16
        True
    """
    exponent_bits = _whole("ieee_format: exponent_bits", exponent_bits, 2, 11)
    significand_bits = _whole("ieee_format: significand_bits", significand_bits, 0, 52)
    emax = 2 ** (exponent_bits - 1) - 1
    largest = math.ldexp(2.0 - math.ldexp(1.0, -significand_bits), emax)
    return Format(significand_bits + 1, 1 - emax, largest, math.inf)


def fixed_point(integer_bits: int, fraction_bits: int) -> Format:
    """The grid of multiples of 2^-fraction_bits up to 2^integer_bits - 2^-fraction_bits in magnitude, saturating.

    The sign is not counted, the range is symmetric, and there is a single zero. As a `Format` every value lies in the
    subnormal range, where the spacing is constant.

    Args:
        integer_bits: bits before the point; may be negative when the whole range is below one.
        fraction_bits: bits after the point; may be negative for a grid coarser than one.

    Raises:
        ValueError: if no bit is left, or if the numbers are not whole.

    Example:
        >>> fixed_point(1, 1)
        Format(precision=3, emin=1, largest=1.5, overflow=1.5, subnormals=True, zeros=1)
    """
    integer_bits = _whole("fixed_point: integer_bits", integer_bits, -1000, 1000)
    fraction_bits = _whole("fixed_point: fraction_bits", fraction_bits, -1000, 1000)
    if integer_bits + fraction_bits < 1:
        raise ValueError(
            f"fixed_point: integer_bits={integer_bits} and fraction_bits={fraction_bits} leave no bit for a value; "
            f"their sum must be at least 1."
        )
    if integer_bits + fraction_bits > 52:
        raise ValueError(
            f"fixed_point: integer_bits={integer_bits} and fraction_bits={fraction_bits} are "
            f"{integer_bits + fraction_bits} bits together; a float64 carrier holds at most 52."
        )
    largest = float(Fraction(2) ** integer_bits - Fraction(2) ** -fraction_bits)
    return Format(integer_bits + fraction_bits + 1, integer_bits, largest, largest, zeros=1)


def saturating(fmt: Format) -> Format:
    """The same format with overflow, and infinite inputs, going to plus or minus `largest`.

    Example:
        >>> saturating(FLOAT8_E4M3FN).overflow
        448.0
    """
    return fmt._replace(overflow=fmt.largest)


def unit_roundoff(fmt: Format) -> Any:
    """The unit roundoff u = 2^-p: the largest relative error of round-to-nearest among normal numbers.

    Example:
        >>> unit_roundoff(BFLOAT16)
        0.00390625
    """
    if isinstance(fmt.precision, int | np.integer):
        return math.ldexp(1.0, -int(fmt.precision))
    return jnp.ldexp(jnp.float32(1), -jnp.asarray(fmt.precision, jnp.int32))


def stack_formats(formats: Sequence[Format]) -> Format:
    """Many formats as one whose fields have a leading axis, for `jax.vmap`: one compilation for all.

    Args:
        formats: at least one concrete format.

    Returns:
        A `Format` of arrays of shape (len(formats),).

    Raises:
        ValueError: if there is nothing to stack.

    Example:
        >>> stack_formats([FLOAT16, BFLOAT16]).precision.tolist()
        [11, 8]
    """
    formats = list(formats)
    if not formats:
        raise ValueError("stack_formats: got no formats; give at least one, such as [FLOAT16, BFLOAT16].")
    kinds = Format(jnp.int32, jnp.int32, float, float, jnp.bool_, jnp.int32)
    return Format(*(jnp.asarray(column, kind) for kind, column in zip(kinds, zip(*formats, strict=True), strict=True)))


def name_of(fmt: Format) -> str:
    """The registered name of a format, or its numbers written out.

    Example:
        >>> name_of(ieee_format(5, 10))
        'float16'
    """
    return next((name for name, known in FORMATS.items() if known == fmt), describe_numbers(fmt))


def _whole(what: str, value: Any, low: int, high: int) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number from {low} to {high}; got {value!r}.") from None
    if not low <= whole <= high:
        raise ValueError(f"{what} must be from {low} to {high}; got {whole}.")
    return whole


def describe_numbers(fmt: Format) -> str:
    """The numbers of a format, written out."""
    return f"Format({', '.join(f'{field}={value}' for field, value in fmt._asdict().items())})"


FLOAT64 = ieee_format(11, 52)
FLOAT32 = ieee_format(8, 23)
TFLOAT32 = ieee_format(8, 10)
BFLOAT16 = ieee_format(8, 7)
FLOAT16 = ieee_format(5, 10)
FLOAT8_E5M2 = ieee_format(5, 2)
FLOAT8_E4M3 = ieee_format(4, 3)
FLOAT8_E3M4 = ieee_format(3, 4)
# "fn": finite values and NaN only. "uz": an unsigned zero, its place taken by the NaN. "b11": exponent bias 11.
FLOAT8_E4M3FN = Format(4, -6, 448.0, math.nan)
FLOAT8_E4M3FNUZ = Format(4, -7, 240.0, math.nan, zeros=1)
FLOAT8_E4M3B11FNUZ = Format(4, -10, 30.0, math.nan, zeros=1)
FLOAT8_E5M2FNUZ = Format(3, -15, 57344.0, math.nan, zeros=1)
FLOAT8_E8M0FNU = Format(1, -127, 2.0**127, math.nan, subnormals=False, zeros=0)
# Neither infinities nor NaN: they saturate.
FLOAT6_E2M3FN = Format(4, 0, 7.5, 7.5)
FLOAT6_E3M2FN = Format(3, -2, 28.0, 28.0)
FLOAT4_E2M1FN = Format(2, 0, 6.0, 6.0)

FORMATS: dict[str, Format] = {
    "float64": FLOAT64,
    "float32": FLOAT32,
    "tfloat32": TFLOAT32,
    "bfloat16": BFLOAT16,
    "float16": FLOAT16,
    "float8_e3m4": FLOAT8_E3M4,
    "float8_e4m3": FLOAT8_E4M3,
    "float8_e4m3b11fnuz": FLOAT8_E4M3B11FNUZ,
    "float8_e4m3fn": FLOAT8_E4M3FN,
    "float8_e4m3fnuz": FLOAT8_E4M3FNUZ,
    "float8_e5m2": FLOAT8_E5M2,
    "float8_e5m2fnuz": FLOAT8_E5M2FNUZ,
    "float8_e8m0fnu": FLOAT8_E8M0FNU,
    "float6_e2m3fn": FLOAT6_E2M3FN,
    "float6_e3m2fn": FLOAT6_E3M2FN,
    "float4_e2m1fn": FLOAT4_E2M1FN,
}
