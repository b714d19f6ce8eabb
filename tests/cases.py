"""The formats, modes and carriers that the tests cross with each other, and comparison by bits."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import ml_dtypes
import numpy as np

import precisionlab as pl
from tests.oracle import Numbers, boundary_vector, round_array

# Written out by hand, apart from the library's own table.
REGISTERED: dict[str, Numbers] = {
    "float64": Numbers(53, -1022, float.fromhex("0x1.fffffffffffffp1023"), math.inf),
    "float32": Numbers(24, -126, float.fromhex("0x1.fffffep127"), math.inf),
    "tfloat32": Numbers(11, -126, float.fromhex("0x1.ffcp127"), math.inf),
    "bfloat16": Numbers(8, -126, float.fromhex("0x1.fep127"), math.inf),
    "float16": Numbers(11, -14, 65504.0, math.inf),
    "float8_e3m4": Numbers(5, -2, 15.5, math.inf),
    "float8_e4m3": Numbers(4, -6, 240.0, math.inf),
    "float8_e5m2": Numbers(3, -14, 57344.0, math.inf),
    "float8_e4m3fn": Numbers(4, -6, 448.0, math.nan),
    "float8_e4m3fnuz": Numbers(4, -7, 240.0, math.nan, zeros=1),
    "float8_e4m3b11fnuz": Numbers(4, -10, 30.0, math.nan, zeros=1),
    "float8_e5m2fnuz": Numbers(3, -15, 57344.0, math.nan, zeros=1),
    "float8_e8m0fnu": Numbers(1, -127, 2.0**127, math.nan, subnormals=False, zeros=0),
    "float6_e2m3fn": Numbers(4, 0, 7.5, 7.5),
    "float6_e3m2fn": Numbers(3, -2, 28.0, 28.0),
    "float4_e2m1fn": Numbers(2, 0, 6.0, 6.0),
}

# Formats that nobody ships, at the corners of what five numbers can say.
CUSTOM: dict[str, pl.Format] = {
    "ieee_3_2": pl.ieee_format(3, 2),
    "ieee_2_1": pl.ieee_format(2, 1),
    "ieee_8_22": pl.ieee_format(8, 22),
    "fixed_2_5": pl.fixed_point(2, 5),
    "fixed_0_4": pl.fixed_point(0, 4),
    "fixed_-3_8": pl.fixed_point(-3, 8),
    "fixed_6_-2": pl.fixed_point(6, -2),
    "fixed_1_22": pl.fixed_point(1, 22),
    "one_bit": pl.ieee_format(5, 0),
    "one_bit_float32_range": pl.ieee_format(8, 0),
    "one_bit_no_subnormals": pl.Format(1, -3, 8.0, math.inf, subnormals=False),
    "one_bit_saturating_one_zero": pl.Format(1, -4, 8.0, 8.0, zeros=1),
    "float16_no_subnormals": pl.FLOAT16._replace(subnormals=False),
    "bfloat16_no_subnormals": pl.BFLOAT16._replace(subnormals=False),
    "float32_no_subnormals": pl.FLOAT32._replace(subnormals=False),
    "e4m3fn_no_subnormals_saturating": pl.saturating(pl.FLOAT8_E4M3FN._replace(subnormals=False)),
    "e4m3fnuz_no_subnormals": pl.FLOAT8_E4M3FNUZ._replace(subnormals=False),
    "e4m3fn_saturating": pl.saturating(pl.FLOAT8_E4M3FN),
    "e5m2_saturating": pl.saturating(pl.FLOAT8_E5M2),
    "float16_saturating": pl.saturating(pl.FLOAT16),
    "bfloat16_saturating": pl.saturating(pl.BFLOAT16),
    "e8m0_saturating": pl.saturating(pl.FLOAT8_E8M0FNU),
    "float16_one_zero": pl.FLOAT16._replace(zeros=1),
    "bfloat16_one_zero": pl.BFLOAT16._replace(zeros=1),
    "emin_of_float32_small_range": pl.Format(4, -126, 1.75 * 2.0**-100, math.nan),
    "emin_above_float32": pl.Format(5, -125, 1.9375 * 2.0**40, math.inf),
    "float32_subnormals_small_range": pl.Format(24, -126, 8.0, math.inf),
    "emin_positive": pl.Format(6, 10, 2.0**20, math.inf),
    "fixed_at_the_top_of_float32": pl.fixed_point(128, -127),
    "emin_beyond_float32": pl.Format(5, 130, 2.0**127, math.inf),
    "only_two_values": pl.Format(1, 0, 1.0, math.inf),
}

FORMATS: dict[str, pl.Format] = {**pl.FORMATS, **CUSTOM}
NATIVE = [name for name in REGISTERED if hasattr(ml_dtypes, name) or hasattr(np, name)]
ML_DTYPES = [name for name in NATIVE if name not in ("float64", "float32")]
EIGHT_BITS = [name for name in ML_DTYPES if name not in ("bfloat16", "float16")]
CARRIERS = ("float32", "float64")


def fits(fmt: pl.Format, carrier: str) -> bool:
    return carrier == "float64" or fmt != pl.FLOAT64


def format_cases() -> list[tuple[str, str]]:
    """Every (format name, carrier) pair that exists."""
    return [(name, carrier) for name, fmt in FORMATS.items() for carrier in CARRIERS if fits(fmt, carrier)]


def scope(carrier: str) -> AbstractContextManager[Any]:
    """Float64 only where it is asked for."""
    return jax.enable_x64(True) if carrier == "float64" else nullcontext()


def words(x: Any) -> np.ndarray:
    """The bits of a float array, every NaN as one word. NumPy on the host: no flushing, no elision."""
    x = np.asarray(x)
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    return np.where(np.isnan(x), unsigned.type(np.iinfo(unsigned).max), np.ascontiguousarray(x).view(unsigned))


def assert_same(actual: Any, expected: Any, x: Any = None, what: str = "") -> None:
    """Equal dtype, shape and bits (any NaN equals any NaN); a failure lists the first offenders in hexadecimal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    wrong = np.flatnonzero(words(actual).reshape(-1) != words(expected).reshape(-1))
    if wrong.size:
        shown = wrong[:6]
        given = np.broadcast_to(np.asarray(actual if x is None else x), actual.shape).reshape(-1)
        lines = [
            f"  x={float(given[i]).hex()}: got {float(got)!r}, expected {float(wanted)!r}"
            for i, got, wanted in zip(shown, actual.reshape(-1)[shown], expected.reshape(-1)[shown], strict=True)
        ]
        raise AssertionError(f"{what}: {wrong.size} of {actual.size} differ\n" + "\n".join(lines))


def oracle(x: np.ndarray, fmt: Any, mode: str) -> np.ndarray:
    """The law, in the dtype of x."""
    with np.errstate(invalid="ignore"):
        return round_array(x.astype(np.float64), fmt, mode).astype(x.dtype)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """x repeated up to a fixed size, so that all formats share one compilation."""
    assert x.size <= size, x.size
    return np.resize(x, size)


def boundaries(fmt: Any, carrier: str) -> np.ndarray:
    return boundary_vector(fmt, carrier)


def patterns() -> np.ndarray:
    """All bfloat16, float16, fp8, fp6 and fp4 patterns in float32."""
    codes = np.arange(2**16, dtype=np.uint16)
    sixteen = [codes.view(dtype).astype(np.float32) for dtype in (ml_dtypes.bfloat16, np.float16)]
    eight = [codes[: 2 ** bits_of(n)].astype(np.uint8).view(ml_dtype(n)).astype(np.float32) for n in EIGHT_BITS]
    return np.concatenate(sixteen + eight)


def random_bits(size: int, seed: int, carrier: str = "float32") -> np.ndarray:
    """Uniform bit patterns: every binade, both signs, NaNs included."""
    unsigned = np.uint32 if carrier == "float32" else np.uint64
    draw = np.random.default_rng(seed).integers(0, np.iinfo(unsigned).max, size, dtype=unsigned, endpoint=True)
    return draw.view(carrier)


def bits_of(name: str) -> int:
    return int(ml_dtypes.finfo(ml_dtype(name)).bits)


def ml_dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def ml_values(name: str) -> np.ndarray:
    """Every finite value of an ml_dtypes format, ascending, zero once, from its codes."""
    unsigned = np.uint8 if bits_of(name) <= 8 else np.uint16
    with np.errstate(invalid="ignore"):
        values = np.arange(2 ** bits_of(name), dtype=unsigned).view(ml_dtype(name)).astype(np.float64)
    return np.unique(values[np.isfinite(values)] + 0.0)


def ml_round(x: np.ndarray, name: str) -> np.ndarray:
    """float32 through an ml_dtypes format and back, with its known departures from the law put right.

    ml_dtypes 0.6 (a) turns NaN into zero in the formats that have none, fp6 and fp4; (b) sends float32 inputs strictly
    between 2^-127 and 1.5 * 2^-127, subnormals there, to 2^-126 in e8m0.
    """
    with np.errstate(all="ignore"):
        cast = x.astype(ml_dtype(name)).astype(np.float32)
    if name.startswith(("float6", "float4")):
        cast = np.where(np.isnan(x), x, cast)
    if name == "float8_e8m0fnu":
        bits = x.view(np.uint32)
        cast = np.where((bits > 1 << 22) & (bits < 3 << 21), np.float32(2.0**-127), cast)
    return cast
