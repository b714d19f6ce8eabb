"""What this backend does to numbers, counted.

A compiler may keep a value wider than it was declared, fuse a product into a sum, fold constants, or flush
subnormals. Each function here runs a few thousand numbers through `jax.jit` on the default device and compares bits
with numpy and ml_dtypes, which round where they are told. The answers are facts about the backend; nothing in
precisionlab depends on them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

__all__ = [
    "SAMPLES",
    "bfloat16_patterns",
    "contracted_products",
    "different",
    "elided_products",
    "elided_round_trips",
    "flushed_casts",
    "folded_constants",
    "jitted",
    "reduce_precision_errors",
    "stagnation_seen",
    "subnormal_arithmetic",
]

SAMPLES = 4096


def jitted(function: Callable[..., Any], *arguments: np.ndarray) -> np.ndarray:
    """The result of a function of arrays under jit, as numpy."""
    return np.asarray(jax.jit(function)(*map(jnp.asarray, arguments)))


def different(found: np.ndarray, expected: np.ndarray) -> int:
    """Entries whose bits differ, any NaN counting as equal to any other.

    Example:
        >>> different(np.array([0.0, 1.0, np.nan]), np.array([-0.0, 1.0, -np.nan]))
        1
    """
    unsigned = np.dtype(f"u{found.itemsize}")
    both = np.isnan(found) & np.isnan(expected)
    return int(np.sum((found.view(unsigned) != expected.view(unsigned)) & ~both))


def bfloat16_patterns() -> np.ndarray:
    """All 65,536 bfloat16 values, infinities, NaNs and subnormals included, as float32."""
    return (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)


def elided_products() -> int:
    """How many of 4,096 bfloat16 products are widened to float32 without having been rounded."""
    a, b = _normal(0, ml_dtypes.bfloat16), _normal(1, ml_dtypes.bfloat16)
    return different(jitted(lambda a, b: (a * b).astype(jnp.float32), a, b), (a * b).astype(np.float32))


def elided_round_trips() -> int:
    """How many of 4,096 casts float32 -> bfloat16 -> float32 do not round."""
    x = _normal(2)
    found = jitted(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), x)
    return different(found, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def stagnation_seen() -> tuple[int, int]:
    """How many of 4,096 bfloat16 parameters f32(p + u) - f32(p) shows as unchanged, and how many are."""
    p, u = _normal(3, ml_dtypes.bfloat16), _normal(4, ml_dtypes.bfloat16, scale=2.0**-9)
    found = jitted(lambda p, u: (p + u).astype(jnp.float32) - p.astype(jnp.float32), p, u)
    return int(np.sum(found == 0)), int(np.sum((p + u) == p))


def subnormal_arithmetic() -> dict[str, tuple[bool, bool]]:
    """By dtype, for a subnormal x: whether x + x is flushed to zero, and whether x == 0 holds."""
    facts = {}
    for dtype, tiny in ((np.float32, 1e-40), (ml_dtypes.bfloat16, 1e-40), (np.float16, 1e-6)):
        x = np.full(8, tiny, dtype)
        flushed = not np.any(jitted(lambda x: x + x, x).astype(np.float64))
        facts[np.dtype(dtype).name] = (flushed, bool(np.any(jitted(lambda x: x == 0, x))))
    return facts


def flushed_casts() -> dict[str, bool]:
    """By pair of dtypes: whether a cast flushes a number that is subnormal in one of them to zero."""
    casts = (
        (np.float32, ml_dtypes.bfloat16, 1e-40),
        (np.float32, np.float16, 1e-6),
        (np.float32, np.float64, 1e-40),
        (np.float16, np.float32, 1e-6),
        (ml_dtypes.bfloat16, np.float32, 1e-40),
    )
    facts = {}
    with jax.enable_x64(True):
        for source, target, tiny in casts:
            found = jitted(lambda x, target=target: x.astype(target), np.full(8, tiny, source))
            # numpy looks at the bits, whatever the backend thinks of them
            facts[f"{np.dtype(source).name} to {np.dtype(target).name}"] = not np.any(found.astype(np.float64))
    return facts


def contracted_products() -> int:
    """How many of 4,096 float32 a * b + c are not a product and a sum, rounded one after the other."""
    a, b, c = _normal(5), _normal(6), _normal(7)
    return different(jitted(lambda a, b, c: a * b + c, a, b, c), a * b + c)


def folded_constants() -> int:
    """How many of 4,096 float32 (|x| + C) - C, with C = 2^16, come out unrounded or otherwise wrong.

    Compiled for CPUs all of them do up to jaxlib 0.11, and none in 0.12.
    """
    x, big = np.abs(_normal(8)), np.float32(2.0**16)
    return different(jitted(lambda x: (jnp.abs(x) + big) - big, x), (x + big) - big)


def reduce_precision_errors() -> tuple[int, int]:
    """How many of the 65,536 bfloat16 patterns `lax.reduce_precision` rounds wrong to float16, and how many to zero."""
    x = bfloat16_patterns()
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16).astype(np.float32)
    found = jitted(lambda x: lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10), x)
    return different(found, expected), int(np.sum((found == 0) & (expected != 0)))


def _normal(seed: int, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(SAMPLES)).astype(dtype)
