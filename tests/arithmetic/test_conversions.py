"""A cast is one rounding of the exact number, from whatever dtype: against rational arithmetic."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic.rules import Rules
from tests.cases import FORMATS
from tests.oracle import DETERMINISTIC, round_exact

SOURCES = ("float64", "int64", "uint64", "int32", "uint32")
TARGETS = [name for name in pl.FORMATS if hasattr(jnp, name) and name != "float64"]
MODES = {name: getattr(pl, name) for name in DETERMINISTIC}


def numbers(source: str) -> np.ndarray:
    """Values and midpoints of every precision, and what lies a last bit beside them, as large and as small as the dtype has."""
    found: list[Any] = []
    if source == "float64":
        for precision in range(1, 25):
            for exponent in (0, 7, -13, -126, 5):
                for odd in (1, 3):
                    tie = 1 + Fraction(odd, 2**precision)
                    found += [float((tie + side * Fraction(1, 2**49)) * Fraction(2) ** exponent) for side in (-1, 0, 1)]
        found += [65520 - 2.0**-30, 448 + 16 - 2.0**-40, 1e300, 1e39, 2.0**-149 * (0.5 + 2.0**-40), 2.0**-150, 0.0, np.inf]
    else:
        info = np.iinfo(source)
        for precision in range(1, 54):
            for odd in (1, 3):
                for top in (precision, precision + 5, 63, 62, 31, 30):
                    low = max(top - precision, 0)
                    found += [(1 << top) + (odd << low) + side for side in (-1, 0, 1)]
        found = [value for value in found if value <= info.max] + [info.max, info.max - 1, 0, 1]
    values = np.asarray(found, source)
    return values if source.startswith("u") else np.concatenate([values, -values])


def exactly(x: np.ndarray, fmt: Any, mode: str = "nearest_even") -> np.ndarray:
    return np.asarray([round_exact(value, fmt, mode) for value in x.tolist()])


def assert_equal(actual: Any, expected: np.ndarray, x: np.ndarray, what: str) -> None:
    got = np.asarray(actual).astype(np.float64)
    wrong = np.flatnonzero((got != expected) & ~(np.isnan(got) & np.isnan(expected)))
    assert wrong.size == 0, f"{what}: {[(x[i], got[i], expected[i]) for i in wrong[:4]]}, {wrong.size} of {x.size}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("source", SOURCES)
def test_every_cast_to_a_dtype(source):
    with jax.enable_x64(True):
        x = numbers(source)
        found = jax.jit(pl.simulate(lambda x: {name: x.astype(name) for name in TARGETS}, None))(x)
        for name, cast in found.items():
            assert cast.dtype == name
            assert_equal(cast, exactly(x, pl.FORMATS[name]), x, f"{source} to {name}")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", ["upward", "to_odd", "nearest_away"])
@pytest.mark.parametrize("source", ["float64", "int64", "uint32"])
def test_every_mode_of_a_cast(source, mode):
    names = ["float32", "float16", "float8_e4m3fn"]
    with jax.enable_x64(True):
        x = numbers(source)
        found = jax.jit(pl.simulate(lambda x: [x.astype(name) for name in names], None, mode=MODES[mode]))(x)
        for name, cast in zip(names, found, strict=True):
            assert_equal(cast, exactly(x, pl.FORMATS[name], mode), x, f"{source} to {name} {mode}")


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_format_and_mode(source, mode):
    names = [name for name, fmt in FORMATS.items() if fmt.precision <= 24 and fmt != pl.FLOAT64]
    with jax.enable_x64(True):
        x = numbers(source)
        for name in names:
            cast = pl.simulate(lambda x: x.astype(jnp.float32), FORMATS[name], mode=MODES[mode])(x)
            assert_equal(cast, exactly(x, FORMATS[name], mode), x, f"{source} to {name} {mode}")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["int32", "uint32"])
def test_wide_integers_without_x64(source):
    """In float32 halves: every precision that float32 has, formats that are traced among them."""
    x = numbers(source)
    formats = [FORMATS[name] for name in ("bfloat16", "float16", "tfloat32", "float32")]
    formats += [pl.Format(22, -126, 2.0**127, np.inf), pl.Format(23, -126, 2.0**127, np.inf)]
    for mode in ("nearest_even", "upward"):
        cast = lambda fmt, x, mode=mode: pl.simulate(lambda x: x.astype(jnp.float32), fmt, mode=MODES[mode])(x)  # noqa: E731
        traced = jax.jit(jax.vmap(cast, (0, None)))(pl.stack_formats(formats), x)
        for fmt, found in zip(formats, traced, strict=True):
            assert_equal(found, exactly(x, fmt, mode), x, f"{fmt} {mode} traced")
            assert_equal(cast(fmt, x), exactly(x, fmt, mode), x, f"{fmt} {mode}")


def test_arguments_of_numpy_s_float64():
    """Outside of 64-bit JAX they would be float32 first; 1e300 would be infinite there."""
    x = numbers("float64")
    for name in ("bfloat16", "float16", "float8_e4m3fn"):
        found = pl.simulate(lambda x: x, pl.FORMATS[name])(x)
        assert found.dtype == jnp.float32
        assert_equal(found, exactly(x, pl.FORMATS[name]), x, name)
    stopped = pl.simulate(lambda x: x, pl.BFLOAT16, mode=pl.toward_zero)(np.float64(1e300))
    assert float(stopped) == pl.BFLOAT16.largest


def test_values_of_float64_that_enter_a_narrower_format():
    x = np.asarray([1 + 2**-8 + 2**-40, 1 + 3 * 2**-8 - 2**-40])
    with jax.enable_x64(True):
        rules = Rules(None, primitives={"mul": pl.BFLOAT16})
        for fmt in (pl.BFLOAT16, rules):
            found = pl.simulate(lambda x: x * 1.0, fmt)(x)
            assert found.dtype == jnp.float64
            assert found.tolist() == [1 + 2**-7, 1 + 2**-7]
        product = pl.simulate(lambda x: jnp.dot(x, jnp.ones_like(x), preferred_element_type=jnp.bfloat16), None)(x[:1])
        assert (product.dtype, float(product)) == (jnp.bfloat16, 1 + 2**-7)


@pytest.mark.slow
def test_casts_under_transformations():
    with jax.enable_x64(True):
        x = jnp.asarray([1 + 2**-8 + 2**-40, -(2.0**-130)])
        cast = pl.simulate(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) * 3, None)
        assert jax.grad(lambda x: jnp.sum(cast(x)))(x).tolist() == [3.0, 3.0]
        assert jax.jvp(cast, (x,), (jnp.ones_like(x),))[1].tolist() == [3.0, 3.0]
        assert jax.vmap(cast)(x).tolist() == cast(x).tolist() == jax.jit(cast)(x).tolist()
        looped = pl.simulate(lambda x: jax.lax.scan(lambda c, y: (c, y.astype(jnp.float16)), 0.0, x)[1], None)(x)
        assert looped.tolist() == [1 + 2**-8, -0.0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("source", ["float64", "int64"])
def test_stochastic_casts_see_the_exact_remainder(source):
    """A quarter of the gap above 2^30, and beside it what float32 would have dropped."""
    value = 2**40 + 2**31 if source == "int64" else 1 + 2**-9
    with jax.enable_x64(True):
        x = jnp.full(20_000, value, source)
        found = pl.simulate(lambda x: x.astype(jnp.bfloat16), None, mode=pl.stochastic)(x, key=jax.random.key(0))
        up = float(jnp.mean(found > value))
    assert abs(up - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5


def test_native_difference_shows_what_the_backend_rounds_twice():
    with jax.enable_x64(True):
        x = jnp.asarray([1 + 2**-8 + 2**-40, 1.5])
        difference = pl.native_difference(lambda x: x.astype(jnp.bfloat16))(x)
        native = jax.jit(lambda x: x.astype(jnp.bfloat16))(x).astype(jnp.float64).tolist()
    assert difference.different == (native[0] != 1 + 2**-7)
