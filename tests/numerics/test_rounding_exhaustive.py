"""Every one of the 2^32 float32 patterns, rounded to every format that ml_dtypes has.

One command does it all, with a line for each format:

    python -m tests.numerics.test_rounding_exhaustive
    python -m tests.numerics.test_rounding_exhaustive --formats bfloat16 float8_e4m3fn --stride 1

`pytest -m slow` runs two of them; the default run takes one pattern in 1021, a prime, which meets every exponent, both signs
and all low bits.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

import precisionlab as pl
from tests import cases

CHUNK = 2**20  # pieces that stay in the cache
TOTAL = 2**32


def chunks(stride: int) -> Iterator[np.ndarray]:
    """Every `stride`-th pattern from zero up, in pieces of one size (the last pattern is repeated to fill the last)."""
    count = -(-TOTAL // stride)
    size = min(CHUNK, count)
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        yield (index * stride).astype(np.uint32).view(np.float32)


# The two programs that a format gives: compiled in, and passed as numbers.
constant = jax.jit(lambda x, fmt: pl.round_to(x, fmt), static_argnums=1)
traced = jax.jit(lambda x, fmt: pl.round_to(x, fmt))


def mismatches(name: str, stride: int, rounding: Callable[..., jax.Array] = constant) -> tuple[int, float | None]:
    """How many patterns differ from ml_dtypes, and the first that does."""
    wrong, first = 0, None
    for x in chunks(stride):
        ours, theirs = np.asarray(rounding(x, pl.FORMATS[name])), cases.ml_round(x, name)
        differ = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
        differ = differ[~(np.isnan(ours[differ]) & np.isnan(theirs[differ]))]
        if differ.size:
            wrong += differ.size
            first = float(x[differ[0]]) if first is None else first
    return wrong, first


@pytest.mark.sampled(9)
@pytest.mark.parametrize("rounding", [constant, traced], ids=["constant", "traced"])
@pytest.mark.parametrize("name", cases.ML_DTYPES)
def test_one_pattern_in_1021(name: str, rounding: Callable[..., jax.Array]) -> None:
    assert mismatches(name, 1021, rounding) == (0, None)


EVERY = {"float8_e4m3fn": pytest.mark.slow}  # a minute each; the command above takes all formats


@pytest.mark.parametrize("name", [pytest.param(n, marks=EVERY.get(n, pytest.mark.thorough)) for n in cases.ML_DTYPES])
def test_every_pattern(name: str) -> None:
    assert mismatches(name, 1) == (0, None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare round_to with ml_dtypes over all float32 patterns.")
    parser.add_argument("--formats", nargs="+", choices=cases.ML_DTYPES, default=cases.ML_DTYPES, metavar="NAME")
    parser.add_argument("--stride", type=int, default=1, help="take every STRIDE-th pattern (default: all)")
    options = parser.parse_args(arguments)
    failed = 0
    for name in options.formats:
        start = time.perf_counter()
        wrong, first = mismatches(name, options.stride)
        failed += wrong > 0
        tail = "" if first is None else f", first at {first.hex()}"
        seconds = time.perf_counter() - start
        print(
            f"{name:20s} {-(-TOTAL // options.stride):>13,} patterns {wrong:>13,} wrong{tail}  {seconds:.0f} s",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
