"""Whether numbers make a format, and whether a carrier can hold it.

Mistakes raise before anything is traced, with a sentence; what is right but may surprise (double rounding) warns.
"""

import math
import warnings
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from precisionlab.numerics.carriers import Carrier, carrier_of
from precisionlab.numerics.formats import Format, is_concrete, name_of

__all__ = ["DoubleRoundingWarning", "check_format", "check_numbers", "require_fits"]


class DoubleRoundingWarning(UserWarning):
    """Arithmetic in the carrier followed by a rounding to the format may round twice."""


def check_format(fmt: Format, carrier: Any = None) -> None:
    """Whether the format makes sense and its values, and roundings to it, are exact in a carrier.

    Three answers: it raises (wrong), it warns (right, but `round_to(a + b)` in this carrier may round twice and so differ
    from one correct rounding, because the carrier has fewer than 2p + 2 bits), or it is silent (right).

    Args:
        fmt: a concrete format.
        carrier: float32 or float64, as a dtype or its name; None checks the numbers alone.

    Raises:
        ValueError: if the numbers are no format, or if the carrier cannot hold it.

    Warns:
        DoubleRoundingWarning: as above. Double rounding is innocuous for + - * / and sqrt when carrier bits >= 2p + 2
            (S. Figueroa, "When is double rounding innocuous?", 1995).

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT64
        >>> check_format(BFLOAT16, "float32")
        >>> check_format(FLOAT64, "float32")
        Traceback (most recent call last):
        ...
        ValueError: check_format: float64 does not fit its carrier float32: it needs 53 significand bits, ...
    """
    if not is_concrete(fmt):
        raise TypeError("check_format: the format holds arrays or traced numbers; check it before it is stacked or traced.")
    check_numbers(fmt)
    if carrier is None:
        return
    held = carrier_of(carrier, "check_format")
    require_fits(fmt, held, "check_format")
    p = int(fmt.precision)
    if held.precision < 2 * p + 2 and (p, fmt.emin) != (held.precision, held.emin):
        name = np.dtype(held.dtype).name
        advice = "use the float64 carrier" if name == "float32" and 2 * p + 2 <= 53 else "no wider carrier helps"
        warnings.warn(
            f"check_format: {name_of(fmt)} has {p} significand bits and its carrier {name} has {held.precision}; below "
            f"2p + 2 = {2 * p + 2} an operation in the carrier followed by a rounding may round twice; {advice}.",
            DoubleRoundingWarning,
            stacklevel=2,
        )


@lru_cache(maxsize=1024)
def require_fits(fmt: Format, carrier: Carrier, where: str, wider: str = "use the float64 carrier (jax.enable_x64)") -> None:
    """Raise unless every value of the concrete format is a value of the carrier; `wider` says how to have one that is wider."""
    check_numbers(fmt)
    p, emin, largest = int(fmt.precision), int(fmt.emin), float(fmt.largest)
    name = np.dtype(carrier.dtype).name
    bare = int(fmt.zeros == 0)  # e8m0 reaches one binade below the normals of float32, where one bit is still enough
    problems = []
    if p > carrier.precision:
        problems.append(f"it needs {p} significand bits, the carrier has {carrier.precision}")
    if emin < carrier.emin - bare:
        problems.append(f"its smallest normal is 2^{emin}, the carrier's 2^{carrier.emin}")
    if largest > float(np.finfo(carrier.dtype).max):
        problems.append(f"its largest value is {largest:g}, the carrier's {float(np.finfo(carrier.dtype).max):g}")
    grid = emin - p + 1 if fmt.subnormals else emin
    if grid < carrier.emin - carrier.fraction_bits:
        problems.append(f"its spacing is 2^{grid}, the carrier's 2^{carrier.emin - carrier.fraction_bits}")
    if problems:
        advice = wider if name == "float32" else "choose a smaller format"
        raise ValueError(f"{where}: {name_of(fmt)} does not fit its carrier {name}: {'; '.join(problems)}; {advice}.")


@lru_cache(maxsize=1024)
def check_numbers(fmt: Format) -> None:
    """Raise unless the numbers of a concrete format make sense together."""
    p, emin, largest, overflow, subnormals, zeros = fmt
    for field, value in (("largest", largest), ("overflow", overflow)):
        if not isinstance(value, int | float | np.number) or isinstance(value, bool):
            raise ValueError(f"Format: {field} must be a number; got {value!r}.")
    for field, value in (("precision", p), ("emin", emin), ("zeros", zeros)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"Format: {field} must be a whole number; got {value!r}.")
    if not 1 <= p <= 53:
        raise ValueError(f"Format: precision counts significand bits with the hidden one, 1 to 53; got {p}.")
    if zeros not in (0, 1, 2):
        raise ValueError(f"Format: zeros must be 2 (+0 and -0), 1 (+0 alone) or 0 (neither zero nor sign); got {zeros}.")
    if subnormals not in (True, False):
        raise ValueError(f"Format: subnormals must be True or False; got {subnormals!r}.")
    if zeros == 0 and (p != 1 or subnormals):
        raise ValueError("Format: zeros=0 means bare powers of two: it needs precision=1 and subnormals=False.")
    if not (math.isfinite(largest) and largest > 0):
        raise ValueError(f"Format: largest must be a finite positive number; got {largest!r}.")
    spacing = Fraction(2) ** (max(math.frexp(largest)[1] - 1, emin) - p + 1)
    if Fraction(largest) % spacing or (not subnormals and largest < Fraction(2) ** emin):
        raise ValueError(
            f"Format: largest={largest!r} is not a value of a format with precision={p} and emin={emin}, whose spacing "
            f"there is {float(spacing)!r}."
        )
    if not (math.isnan(overflow) or overflow in (math.inf, largest)):
        raise ValueError(f"Format: overflow must be inf, nan, or largest={largest!r} to saturate; got {overflow!r}.")
