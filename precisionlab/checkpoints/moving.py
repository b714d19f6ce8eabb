"""What moved between two arrays, and how far: in one dtype by the bits, in two by the values.

The values of a dtype are numbered in their order, so that neighbours are one apart: whole numbers are their own numbers, floats
the integers of their magnitudes, with the sign of the value (E8M0 has none). Between two dtypes of floats the values themselves
are compared, exactly, since every one of them is a float64; the neighbours are then those of the coarser dtype.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["Moved", "are_comparable", "moved", "wild"]


class Moved(NamedTuple):
    """Of each entry of two arrays, as booleans.

    Attributes:
        nonfinite: it is NaN or infinite in either.
        changed: its bits, between two dtypes its value or sign, differ.
        one: it changed, is finite in both, and is no further away than the next value of the (coarser) dtype.
    """

    nonfinite: np.ndarray
    changed: np.ndarray
    one: np.ndarray


def are_comparable(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    """Whether entries of two dtypes can be told apart: one dtype, or two of floats."""
    return a == b or (_is_float(a) and _is_float(b))


def moved(x: np.ndarray, y: np.ndarray) -> Moved:
    """What moved from x to y, arrays of rank 1 and of comparable dtypes.

    Example:
        >>> moved(np.array([1.0, 2.0], np.float16), np.array([1.0, 2.002], np.float16)).one.tolist()
        [False, True]
        >>> x, y = np.ones(3, ml_dtypes.bfloat16), np.array([1.0, 1.001, 1.01], np.float32)
        >>> moved(x, y).changed.tolist(), moved(x, y).one.tolist()     # the next value of bfloat16 is 1.0078125
        ([False, True, True], [False, True, False])
    """
    nonfinite = wild(x) | wild(y)
    if x.dtype != y.dtype:
        with np.errstate(invalid="ignore"):
            one, other = x.astype(np.float64), y.astype(np.float64)
        changed = (one.view(np.uint64) != other.view(np.uint64)) & ~(np.isnan(one) & np.isnan(other))
        coarse, fine = (x, other) if _precision(x.dtype) <= _precision(y.dtype) else (y, one)
        low, high = _neighbors(coarse)
        return Moved(nonfinite, changed, changed & ~nonfinite & (low <= fine) & (fine <= high))
    word = np.dtype(f"u{x.dtype.itemsize}")
    p, q = x.view(word), y.view(word)
    changed, near = p != q, np.zeros(p.shape, np.bool_)
    at = np.flatnonzero(changed & ~nonfinite)
    p, q = p[at], q[at]
    if (sign := _sign(x.dtype)) is not None:
        one, other = p & ~sign, q & ~sign
        apart = np.where((p ^ q) & sign != 0, one + other, np.maximum(one, other) - np.minimum(one, other))
    else:
        one, other = (side.view(x.dtype) if x.dtype.kind == "i" else side for side in (p, q))
        apart = np.where(one > other, p - q, q - p)  # modulo 2^width, where it is right
    near[at] = apart == 1
    return Moved(nonfinite, changed, near)


def wild(x: np.ndarray) -> np.ndarray:
    """Which entries are NaN or infinite."""
    if not _is_float(x.dtype):
        return np.zeros(x.shape, np.bool_)
    word, info = np.dtype(f"u{x.dtype.itemsize}"), ml_dtypes.finfo(x.dtype)
    sign, bits = _sign(x.dtype) or word.type(0), x.view(word)
    largest = np.array([info.max], x.dtype).view(word)[0]
    beyond = (bits & ~sign) > largest
    if x.dtype.name.endswith("uz"):  # their NaN is where -0 would be
        beyond |= bits == sign
    return beyond


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind not in "biu"


def _precision(dtype: np.dtype[Any]) -> int:
    return int(ml_dtypes.finfo(dtype).nmant)


def _sign(dtype: np.dtype[Any]) -> Any:
    """The bit that is the sign of a float; None for whole numbers and for E8M0."""
    if not _is_float(dtype) or dtype == ml_dtypes.float8_e8m0fnu:
        return None
    return np.dtype(f"u{dtype.itemsize}").type(1 << (int(ml_dtypes.finfo(dtype).bits) - 1))


def _neighbors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next lower and the next higher finite value of the dtype of x, as float64; the largest itself has none above."""
    word = np.dtype(f"u{x.dtype.itemsize}")
    sign, bits = _sign(x.dtype) or word.type(0), x.view(word)
    size = bits & ~sign
    largest = np.array([ml_dtypes.finfo(x.dtype).max], x.dtype).view(word)[0]
    with np.errstate(all="ignore"):
        outward = np.minimum(size + word.type(1), largest).view(x.dtype).astype(np.float64)
        smallest = -np.array([1], word).view(x.dtype).astype(np.float64) if sign else -np.inf
        inward = np.where(size == 0, smallest, (size - word.type(1)).view(x.dtype).astype(np.float64))
    negative = (bits & sign) != 0
    return np.where(negative, -outward, inward), np.where(negative, -inward, outward)
