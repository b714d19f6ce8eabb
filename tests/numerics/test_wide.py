"""What NumPy and Python hand over, outside of 64-bit JAX, against fractions: rounded once, at every door."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.numerics.wide import in_float64, unheld
from tests.cases import FORMATS, assert_same, fits
from tests.numerics.test_blocks import MX, spec_block, spec_scale
from tests.oracle import DETERMINISTIC, boundary_vector, round_array, round_exact

CONCRETE = {name: fmt for name, fmt in FORMATS.items() if fits(fmt, "float32")}


def hard_values(fmt: pl.Format) -> np.ndarray:
    """Float64 values one part in 2^40 beside those where some mode changes its mind, and what float32 cannot reach."""
    with np.errstate(all="ignore"):
        points = boundary_vector(fmt, "float64")
        points = points[np.isfinite(points)][:: max(1, points.size // 40)]
        beside = np.concatenate([points * (1 + 2.0**-40), points * (1 - 2.0**-40)])
    return np.concatenate([points, beside, [1e300, -1e300, 1e-300, -1e-300, 0.1, 2.0**-149, np.inf, -np.inf, np.nan, -0.0]])


def expected(x: np.ndarray, fmt: Any, mode: str = "nearest_even") -> np.ndarray:
    with np.errstate(all="ignore"):
        return round_array(x, fmt, mode).astype(np.float32)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CONCRETE)
def test_float64_of_numpy_is_rounded_once(name: str) -> None:
    fmt = CONCRETE[name]
    x = np.resize(hard_values(fmt), 256)
    modes = jax.jit(lambda: {mode: pl.round_to(x, fmt, pl.MODES[mode]) for mode in DETERMINISTIC})()
    for mode, rounded in modes.items():
        assert_same(rounded, expected(x, fmt, mode), x, mode)


def test_the_worked_examples() -> None:
    x = np.array([1 + 2**-8 + 2**-40, 1e300, -1e300])
    assert pl.round_to(x, pl.BFLOAT16).tolist() == [1.0078125, np.inf, -np.inf]
    most = float(pl.BFLOAT16.largest)
    assert pl.round_to(x, pl.BFLOAT16, pl.toward_zero).tolist() == [1.0, most, -most]
    assert np.isnan(pl.round_to(x, pl.FLOAT8_E4M3FN)[1:]).all()
    assert pl.round_to(x.tolist(), pl.BFLOAT16).tolist() == [1.0078125, np.inf, -np.inf]
    assert pl.round_to(x[0], pl.BFLOAT16) == pl.round_to(float(x[0]), pl.BFLOAT16) == 1.0078125
    assert pl.round_to(x.astype(">f8"), pl.BFLOAT16).tolist() == [1.0078125, np.inf, -np.inf]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [16842753, -16842753, 2**53 + 1, 2**60 + 2**52 + 1, 2**127 - 1, 3**70, 10**400, True, 7])
def test_python_numbers_of_any_size_are_rounded_once(number: int) -> None:
    for fmt in (pl.BFLOAT16, pl.FLOAT32, pl.FLOAT8_E5M2):
        for mode in DETERMINISTIC:
            right = round_exact(Fraction(min(number, 2**1000)), fmt, mode)  # both are beyond every format
            assert float(pl.round_to(number, fmt, pl.MODES[mode])) == right, (fmt, mode)


def test_formats_and_keys_may_be_traced() -> None:
    x = hard_values(pl.BFLOAT16)
    formats = [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT32]
    stacked = jax.vmap(lambda fmt: pl.round_to(x, fmt))(pl.stack_formats(formats))
    for row, fmt in zip(stacked, formats, strict=True):
        assert_same(row, expected(x, fmt), x)
    drawn = jax.jit(lambda key: pl.round_to(x, pl.BFLOAT16, pl.stochastic, key=key))(jax.random.key(0))
    assert_same(drawn, pl.round_to(x, pl.BFLOAT16, pl.stochastic, key=jax.random.key(0)))
    finite = np.abs(x) <= pl.BFLOAT16.largest
    down, up = expected(x, pl.BFLOAT16, "downward"), expected(x, pl.BFLOAT16, "upward")
    assert ((np.asarray(drawn) == down) | (np.asarray(drawn) == up))[finite].all()


def test_stochastic_rounding_sees_all_bits() -> None:
    # 2^-3 of a unit of bfloat16 above one, and as much less of one part in 2^30: never both 0 nor both 1/8 of the time.
    x = np.full(40_000, 1 + 2.0**-10 + 2.0**-40)
    share = np.mean(np.asarray(pl.round_to(x, pl.BFLOAT16, pl.stochastic, key=jax.random.key(3))) > 1)
    assert abs(share - 1 / 8) < 5 * np.sqrt(7 / 64 / x.size)


def test_what_float32_holds_is_float32() -> None:
    held = np.array([0.5, -3.0, np.nan, np.inf, 2.0**-149])
    assert unheld(held) is None
    assert unheld(jnp.ones(2)) is None
    with jax.enable_x64(True):
        assert unheld(np.array([0.1])) is None  # float64 there
        assert unheld(0.1) is not None  # and a Python number still counts as float32
        assert pl.round_to(0.1, pl.BFLOAT16).dtype == np.float32
        assert pl.round_to(np.float64(0.1), pl.FLOAT64).dtype == np.float64
    with pytest.raises(ValueError, match="float64 does not fit its carrier float32"):
        pl.round_to(np.array([0.1]), pl.FLOAT64)


def test_derivatives_pass_beside_a_constant() -> None:
    x = np.array([0.1, 0.2])
    slope = jax.grad(lambda w: jnp.sum(w * pl.round_to(x, pl.BFLOAT16)))(jnp.ones(2))
    assert slope.tolist() == expected(x, pl.BFLOAT16).tolist()
    slope = jax.grad(lambda w: pl.dot(w, x, multiply=pl.BFLOAT16, accumulate=pl.BFLOAT16))(jnp.ones(2))
    np.testing.assert_allclose(slope, x, rtol=1e-6)


def test_narrowing_is_exact_among_subnormals() -> None:
    x = np.array([2.0**-149, -(2.0**-127), 3 * 2.0**-148, -0.0, 1.5 * 2.0**-149, 2.0**-150, 1e39, -1e39])
    with np.errstate(all="ignore"):
        assert_same(in_float64(lambda: jnp.asarray(x)), x.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float32", "float8_e8m0fnu"])
def test_ulp_and_neighbors_are_those_of_the_float64(name: str) -> None:
    fmt = CONCRETE[name]
    x = hard_values(fmt)
    with jax.enable_x64(True):
        wide = [np.asarray(found) for found in (pl.ulp(x, fmt), *pl.neighbors(x, fmt))]
    with np.errstate(all="ignore"):
        for narrow, right in zip((pl.ulp(x, fmt), *pl.neighbors(x, fmt)), wide, strict=True):
            assert_same(narrow, right.astype(np.float32), x)
    assert [float(v) for v in pl.neighbors(1 + 2.0**-40, pl.BFLOAT16)] == [1.0, 1.0078125]
    assert float(pl.ulp(2 - 2.0**-40, pl.BFLOAT16)) == 2.0**-7


@pytest.mark.slow
def test_thresholds_are_the_smallest_float32_that_move() -> None:
    w = np.array([1 + 2.0**-40, 2 - 2.0**-40, 0.1])
    with jax.enable_x64(True):
        wide = [np.asarray(found) for found in pl.landing_threshold(w, pl.BFLOAT16)]
    for narrow, right in zip(pl.landing_threshold(w, pl.BFLOAT16), wide, strict=True):
        least = right.astype(np.float32)
        least = np.where(least.astype(np.float64) < right, np.nextafter(least, np.float32(np.inf)), least)
        assert_same(narrow, least)


@pytest.mark.slow
def test_lost_fractions_know_which_side_of_half_a_gap_a_size_is_on() -> None:
    w, half = np.ones(1, np.float32), 2.0**-8  # beside 1 a tie stays, and downwards half of this is enough
    sizes = [half * (1 - 2.0**-40), half, half * (1 + 2.0**-40)]
    assert [float(pl.expected_lost_fraction(w, size, pl.BFLOAT16)) for size in sizes] == [0.5, 0.5, 0.0]
    assert [float(pl.expected_lost_fraction(w, np.array([size]), pl.BFLOAT16)) for size in sizes] == [0.5, 0.5, 0.0]
    with jax.enable_x64(True):
        assert [float(pl.expected_lost_fraction(w, jnp.asarray(size), pl.BFLOAT16)) for size in sizes] == [0.5, 0.5, 0.0]
    tied = np.array([1 + 2.0**-8 + 2.0**-40])  # stored as 1.0078125, whose ties move
    assert float(pl.expected_lost_fraction(tied, half, pl.BFLOAT16)) == 0.0


@pytest.mark.slow
def test_tally_compares_the_float64_it_is_given() -> None:
    w, u = np.array([1.0, 1.0, 1.0]), np.array([2.0**-40, 2.0**-60, 0.0])
    found = pl.tally(w + 2.0**-41, u, w + 2.0**-41 + u)
    assert [int(found.landed), int(found.swamped), int(found.zero)] == [1, 1, 1]
    assert found.landed.dtype == np.int32
    assert found.update_mass.dtype == np.float32
    narrow = w.astype(ml_dtypes.bfloat16)
    held = pl.tally(narrow, u + 0.1, narrow)
    assert [int(held.landed), int(held.swamped)] == [0, 3]
    assert held.histogram.tolist() == pl.tally(narrow, (u + 0.1).astype(np.float32), narrow).histogram.tolist()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("mode", ["nearest_even", "upward"])
def test_blocks_are_rounded_from_the_float64(name: str, mode: str) -> None:
    spec, block_format = MX[name], pl.BLOCK_FORMATS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 32)) * np.array([1.0, 1e-300, 1e300, 1e38, 2.0**-130, 7.0] * 2)[:, None]
    x[0, :3] = 1.9999999999, 1 + 2.0**-4 + 2.0**-40, 1e-45
    most = float(np.finfo(np.float32).max)
    right = np.clip([spec_block(row.tolist(), spec, mode) for row in x], -most, most).astype(np.float32)
    assert_same(pl.round_blocks(x, block_format, mode=pl.MODES[mode]), right, x)
    assert_same(pl.block_scales(x, block_format), np.array([[spec_scale(row.tolist(), spec)] for row in x], np.float32))


def test_dot_takes_float64_as_it_is() -> None:
    a, b = np.array([1 + 2.0**-8 + 2.0**-40, 0.25]), np.ones(2, np.float32)
    formats = {"multiply": pl.BFLOAT16, "accumulate": pl.BFLOAT16}
    assert float(pl.dot(a, b, **formats)) == 1.2578125  # 1.0078125 + 0.25; by way of float32 1.25
    assert float(jax.jit(lambda b: pl.dot(a, b, **formats))(b)) == 1.2578125
    assert pl.dot(a, b, **formats).dtype == np.float32
    with pytest.raises(ValueError, match="float64 does not fit its carrier float32"):
        pl.dot(a, b, multiply=None, accumulate=pl.FLOAT64)
    with pytest.raises(TypeError, match="dot: values of dtype bfloat16 cannot carry"):
        pl.dot(a, jnp.ones(2, jnp.bfloat16), **formats)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float32", "float64"])
def test_apply_updates_rounds_the_sum_once(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    w = np.array([1.0, 1.0, 1.0, 0.1]).astype(kind)
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float8_e4m3fn": 2.0**-3}.get(dtype, 2.0**-23)
    u = np.array([unit / 2 * (1 + 2.0**-20), unit / 2, -unit / 4 * (1 + 2.0**-20), 1e-9])
    fmt = pl.FORMATS["float32" if dtype == "float64" else dtype]
    right = [round_exact(Fraction(float(a)) + Fraction(float(b)), fmt, "nearest_even") for a, b in zip(w, u, strict=True)]
    for weights in (w, jnp.asarray(w)):
        if weights is w or dtype != "float64":
            found = pl.optimizers.apply_updates({"w": weights}, {"w": u})["w"]
            assert found.dtype == jnp.asarray(w).dtype
            assert np.asarray(found).astype(np.float64).tolist() == right


def test_float32_weights_and_float64_updates_inside_64_bit_jax() -> None:
    w, u = np.float32(1), 2.0**-24 * (1 + 2.0**-40)  # the sum in float64 is a tie
    with jax.enable_x64(True):
        assert pl.optimizers.apply_updates(jnp.asarray(w), jnp.asarray(u)) == np.float32(1 + 2.0**-23)


WAYS_IN = {
    "int32": ("2\\^24", "float64", "enable_x64"),
    "int64": ("2\\^24", "float64", "2\\^53"),
    "int8": ("astype\\(jnp.float32\\)",),
    "float16": ("astype\\(jnp.float32\\)",),
    "complex64": ("x.real and x.imag",),
    "longdouble": ("astype\\(np.float64\\)",),
    "object": ("np.asarray\\(x, np.float64\\)",),
}


@pytest.mark.parametrize("dtype", WAYS_IN)
def test_refusals_say_how_to_get_in_without_being_rounded(dtype: str) -> None:
    for call in (pl.round_to, pl.ulp, pl.neighbors, pl.landing_threshold):
        for words in WAYS_IN[dtype]:
            with pytest.raises(TypeError, match=words):
                call(np.ones(2, dtype), pl.BFLOAT16)
    with pytest.raises(TypeError, match=WAYS_IN[dtype][0]):
        pl.round_blocks(np.ones(2, dtype), pl.MXFP4)


def test_following_the_advice_for_integers_is_right() -> None:
    with jax.enable_x64(True):
        assert float(pl.round_to(jnp.int32(16842753).astype(jnp.float64), pl.BFLOAT16)) == 16908288
    assert float(pl.round_to(np.int64(16842753).astype(np.float64), pl.BFLOAT16)) == 16908288
