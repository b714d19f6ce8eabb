"""The half-gap law for every value of every small format, in exact arithmetic; lost fractions against counting."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr, ndtri

import precisionlab as pl
from tests import cases
from tests.oracle import all_values, round_array, round_exact

WIDE = {"float64", "float32", "tfloat32", "ieee_8_22", "float32_no_subnormals", "fixed_1_22"}
WIDE |= {"float32_subnormals_small_range"}
# No value of these lies among the numbers of float32, or the largest is not a float32.
BEYOND = {"emin_beyond_float32"}
SMALL = [name for name in cases.FORMATS if name not in WIDE | BEYOND]
SOME = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "e4m3fn_saturating", "fixed_2_5"]
LANDING = jax.jit(pl.landing_threshold)
VMAPPED = jax.jit(jax.vmap(pl.landing_threshold, in_axes=(None, 0)))
LOST = jax.jit(pl.expected_lost_fraction)


def assert_smallest(w: np.ndarray, thresholds: np.ndarray, sign: int, fmt: pl.Format) -> None:
    """w + sign * u rounds away from w, and for the carrier number before u it does not.

    Sums are exact in float64: w has at most 11 bits, u at most 24, and u is half a gap or the number after it.
    """
    w, u = w.astype(np.float64), thresholds.astype(np.float64)
    before = np.nextafter(thresholds, np.float32(0)).astype(np.float64)
    assert (u > 0).all()
    some = np.isfinite(u)
    moved, kept = w[some] + sign * u[some], w + sign * before
    for total, part in ((moved, u[some]), (kept, before)):
        base = w[some] if part.shape == moved.shape else w
        assert np.array_equal(np.abs(total - base), part), "the check itself must be exact"
    assert (round_array(moved, fmt, "nearest_even") != w[some]).all()
    assert (round_array(kept, fmt, "nearest_even") == w).all()


@pytest.mark.parametrize("name", SMALL)
def test_half_gap_law_holds_for_every_value(name: str) -> None:
    fmt = cases.FORMATS[name]
    values = all_values(fmt).astype(np.float32)
    assert (values.astype(np.float64) == all_values(fmt)).all()
    padded = cases.padded(values, 1 << max(10, math.ceil(math.log2(values.size))))
    traced = pl.Format(*map(jnp.asarray, fmt))
    up, down = (np.asarray(part)[: values.size] for part in LANDING(padded, traced))
    assert_smallest(values, up, +1, fmt)
    assert_smallest(values, down, -1, fmt)
    saturates = float(fmt.overflow) == float(fmt.largest)
    assert values[np.isinf(up)].tolist() == [fmt.largest] * saturates
    assert values[np.isinf(down)].tolist() == [-fmt.largest] * (saturates and int(fmt.zeros) > 0)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float8_e4m3fn", "e4m3fn_saturating", "fixed_2_5"])
def test_half_gap_law_in_float64_by_fractions(name: str) -> None:
    fmt = cases.FORMATS[name]
    p, emin = fmt.precision, fmt.emin
    tiny = math.ldexp(1.0, emin - p + 1)
    values = [0.0, tiny, 3 * tiny, math.ldexp(1.0, emin), 1.0, 1 + 2.0 ** (1 - p), 1.5, 2 - 2.0 ** (1 - p), fmt.largest]
    values = [v for v in values if round_exact(v, fmt, "nearest_even") == v]
    values += [-v for v in values]
    with jax.enable_x64(True):
        thresholds = LANDING(jnp.asarray(cases.padded(np.array(values), 32)), pl.Format(*map(jnp.asarray, fmt)))
    for sign, found in zip((1, -1), np.asarray(thresholds), strict=True):
        for w, u in zip(values, found[: len(values)].tolist(), strict=True):
            if math.isinf(u):
                assert fmt.overflow == fmt.largest == sign * w
                continue
            assert u > 0
            assert rounds_to_itself(w, sign * Fraction(math.nextafter(u, 0)), fmt)
            assert not rounds_to_itself(w, sign * Fraction(u), fmt)


def rounds_to_itself(w: float, u: Fraction, fmt: pl.Format) -> bool:
    return round_exact(Fraction(w) + u, fmt, "nearest_even") == w


@pytest.mark.slow
def test_edges() -> None:
    up, down = pl.landing_threshold(jnp.array([math.inf, -math.inf, math.nan, 0.0, -0.0]), pl.FLOAT16)
    assert np.isnan(up[:3]).all()
    assert np.isnan(down[:3]).all()
    # Zero is even, so that half the smallest number stays; the carrier's next number moves it.
    after = float(np.nextafter(np.float32(2.0**-25), np.float32(1)))
    assert up[3:].tolist() == down[3:].tolist() == [after, after]
    up, down = pl.landing_threshold(jnp.float32(57344.0), pl.saturating(pl.FLOAT8_E5M2))
    assert float(up) == math.inf
    assert float(down) == 4096.0  # the last bit of the largest value is odd
    next_up = 1 + 2.0**-23
    assert [float(t) for t in pl.landing_threshold(1.0, pl.FLOAT32)] == [2.0**-24 * next_up, 2.0**-25 * next_up]
    # Half of float32's smallest gap is no float32; the smallest number is beyond it.
    assert [float(t).hex() for t in pl.landing_threshold(0.0, pl.FLOAT32)] == ["0x1.0000000000000p-149"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn_saturating", "float16_no_subnormals"])
def test_jit_and_vmap_over_formats_agree_with_eager(name: str) -> None:
    fmt = cases.FORMATS[name]
    w = cases.random_bits(1024, seed=3)
    w = np.where(np.isfinite(w), w, np.float32(1))
    eager = pl.landing_threshold(w, fmt)
    jitted = jax.jit(lambda x: pl.landing_threshold(x, fmt))(w)
    over = VMAPPED(w, pl.stack_formats([pl.FLOAT16, fmt]))
    for side in (0, 1):
        cases.assert_same(eager[side], jitted[side], w, name)
        cases.assert_same(eager[side], over[side][1], w, name)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("size", [0.0, 2.0**-9, 3e-3, 0.02, 1.0, 1e4])
def test_expected_lost_fraction_is_what_rounding_does(name: str, size: float) -> None:
    fmt, size = cases.FORMATS[name], float(np.float32(size))
    draw = np.random.default_rng(1).standard_normal(4000) * 10.0 ** np.random.default_rng(2).integers(-3, 3, 4000)
    limit = float(fmt.largest)
    w = round_array(np.clip(draw, -limit, limit), fmt, "nearest_even")
    lost = [round_array(w + sign * size, fmt, "nearest_even") == w for sign in (1, -1)]
    found = LOST(jnp.asarray(draw.clip(-limit, limit), jnp.float32), size, pl.Format(*map(jnp.asarray, fmt)))
    assert math.isclose(float(found), np.mean(lost), rel_tol=1e-6)


def test_expected_lost_fraction_takes_a_size_for_each_entry_and_rounds_the_weights() -> None:
    w = jnp.array([1.001, 1.0, 100.0, 0.0])  # the first is 1.0 in bfloat16
    sizes = jnp.array([2.0**-8, 2.0**-9, 1e-3, 1e-3])  # lost upward; lost both ways (a tie); lost both ways; never
    assert float(pl.expected_lost_fraction(w, sizes, pl.BFLOAT16)) == (0.5 + 1 + 1 + 0) / 4
    assert math.isnan(float(pl.expected_lost_fraction(jnp.zeros(0), 1.0, pl.BFLOAT16)))


@pytest.mark.parametrize("name", ["bfloat16", "float16", "tfloat32"])
@pytest.mark.parametrize(("sigma", "size"), [(0.02, 1e-6), (0.02, 1e-5), (1.0, 3e-3), (1.0, 2.0**-9), (0.1, 1e-7)])
def test_expected_lost_fraction_of_gaussian_weights_has_a_closed_form(name: str, sigma: float, size: float) -> None:
    """2 Phi(-2^(ceil(log2 a) + p) / s); where a is itself a power of two it ties in one binade, and half is lost."""
    fmt, size = cases.FORMATS[name], float(np.float32(size))
    quantiles = (np.arange(100_000) + 0.5) / 100_000
    w = (sigma * ndtri(quantiles)).astype(np.float32)
    bound = 2.0 ** (math.ceil(math.log2(size)) + fmt.precision)
    expected = 2 * ndtr(-bound / sigma)
    if size == 2.0 ** math.ceil(math.log2(size)):
        expected = (expected + 2 * ndtr(-2 * bound / sigma)) / 2
    found = float(LOST(w, size, pl.Format(*map(jnp.asarray, fmt))))
    assert math.isclose(found, expected, rel_tol=1e-2, abs_tol=1e-3)


def test_wrong_arguments_are_sentences() -> None:
    with pytest.raises(TypeError, match=r"landing_threshold: values of dtype bfloat16 .*widen"):
        pl.landing_threshold(jnp.ones(3, jnp.bfloat16), pl.BFLOAT16)
    with pytest.raises(ValueError, match=r"landing_threshold: .*float32"):
        pl.landing_threshold(jnp.ones(3), pl.FLOAT64)
    with pytest.raises(TypeError, match=r"expected_lost_fraction: .*int32"):
        pl.expected_lost_fraction(jnp.ones(3, jnp.int32), 1.0, pl.BFLOAT16)
