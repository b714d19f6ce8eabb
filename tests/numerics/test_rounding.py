"""Rounding against two oracles: ml_dtypes, where it has the format, and exact rational arithmetic everywhere."""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import precisionlab as pl
from tests import cases
from tests.cases import FORMATS, assert_same, boundaries, oracle, padded, scope
from tests.oracle import DETERMINISTIC, Numbers, all_values, round_array, round_exact, ulp_exact

MODES = {name: pl.MODES[name] for name in DETERMINISTIC}
ALL_MODES = {**pl.MODES, "stochastic_4": pl.stochastic_bits(4)}


@cache
def rounding(fmt: pl.Format) -> Callable[..., Any]:
    """All deterministic modes at once with the format compiled in."""
    return jax.jit(lambda x: {name: pl.round_to(x, fmt, mode) for name, mode in MODES.items()})


@cache
def traced(mode: str) -> Callable[..., Any]:
    """One mode with the format as an argument: compiled once for all formats."""
    return jax.jit(lambda x, fmt, key: pl.round_to(x, fmt, ALL_MODES[mode], key=key))


def stack(formats: list[pl.Format]) -> pl.Format:
    return jax.tree.map(lambda *numbers: jnp.stack([jnp.asarray(n) for n in numbers]), *formats)


# The oracle itself.


@pytest.mark.sampled(33)
@pytest.mark.parametrize("name", FORMATS)
def test_array_oracle_is_the_scalar_law(name: str) -> None:
    fmt = FORMATS[name]
    x = boundaries(fmt, "float64")
    x = np.concatenate([x[:: max(1, x.size // 300)], cases.random_bits(50, 1, "float64")])
    for mode in DETERMINISTIC:
        scalar = np.array([round_exact(float(v), fmt, mode) for v in x])
        assert_same(round_array(x, fmt, mode), scalar, x, mode)


def test_oracle_knows_worked_examples() -> None:
    half = Numbers(11, -14, 65504.0, math.inf)
    assert round_exact(1 + 2**-11, half, "nearest_even") == 1.0
    assert round_exact(1 + 2**-11, half, "nearest_away") == 1 + 2**-10
    assert round_exact(65520.0, half, "nearest_even") == math.inf
    assert round_exact(65520.0, half, "to_odd") == 65504.0
    assert round_exact(2.0**-25, half, "nearest_even") == 0.0
    assert round_exact(2.0**-25, half, "to_odd") == 2.0**-24
    assert round_exact(-1e-9, half, "downward") == -(2.0**-24)
    assert math.copysign(1, round_exact(-1e-9, half, "upward")) == -1
    e8m0 = cases.REGISTERED["float8_e8m0fnu"]
    assert [round_exact(v, e8m0, "nearest_even") for v in (0.75, 1.5, 3.0, 6.0)] == [1.0, 2.0, 4.0, 8.0]


# First oracle: ml_dtypes.


@pytest.mark.parametrize("name", cases.ML_DTYPES)
def test_nearest_even_is_the_cast_of_ml_dtypes(name: str) -> None:
    fmt = pl.FORMATS[name]
    values = cases.ml_values(name)
    midpoints = ((values[1:] + values[:-1]) / 2).astype(np.float32)  # exact: one more bit than the values
    edges = np.concatenate([midpoints, np.nextafter(midpoints, -np.inf), np.nextafter(midpoints, np.inf)])
    x = [cases.patterns(), edges, boundaries(fmt, "float32"), cases.random_bits(2**18, 0)]
    x = padded(np.concatenate(x, dtype=np.float32), 2**19 + 2**17)
    assert_same(nearest_even(x, fmt), cases.ml_round(x, name), x)


nearest_even = jax.jit(lambda x, fmt: pl.round_to(x, fmt))


# Second oracle: the law.


CONSTANT = [case for case in cases.format_cases() if case[1] == "float32" or case[0] in cases.REGISTERED]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "carrier"), CONSTANT)
def test_every_mode_is_the_law_at_the_boundaries(name: str, carrier: str) -> None:
    fmt = FORMATS[name]
    x = padded(boundaries(fmt, carrier), 4096)
    with scope(carrier):
        for mode, actual in rounding(fmt)(x).items():
            assert_same(actual, oracle(x, fmt, mode), x, mode)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("carrier", cases.CARRIERS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_law_with_the_format_traced(mode: str, carrier: str) -> None:
    with scope(carrier):
        for seed, (name, fmt) in enumerate(FORMATS.items()):
            if not cases.fits(fmt, carrier):
                continue
            scale = 2.0 ** np.random.default_rng(seed).integers(-12, 12, 4096)
            near = (np.random.default_rng(seed).normal(size=4096) * scale).astype(carrier)
            x = np.concatenate([padded(boundaries(fmt, carrier), 4096), near, cases.random_bits(4096, seed, carrier)])
            assert_same(traced(mode)(x, fmt, None), oracle(x, fmt, mode), x, f"{name} {mode}")


@st.composite
def formats(draw: st.DrawFn) -> pl.Format:
    """Any format that float32 can carry."""
    p = draw(st.integers(1, 24))
    emin = draw(st.one_of(st.sampled_from([-126, -125, -124]), st.integers(-126, 120)))
    top = draw(st.integers(emin, 127))
    subnormals = draw(st.booleans())
    lowest = 2 ** (p - 1)
    largest = math.ldexp(draw(st.integers(lowest, 2 * lowest - 1)), top - p + 1)
    overflow = draw(st.sampled_from([math.inf, math.nan, largest]))
    return pl.Format(p, emin, largest, overflow, subnormals, draw(st.sampled_from([1, 2])))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(fmt=formats())
def test_every_mode_is_the_law_for_any_format(mode: str, fmt: pl.Format) -> None:
    x = padded(cases.boundary_vector(fmt, "float32"), 4096)
    assert_same(traced(mode)(x, fmt, None), oracle(x, fmt, mode), x, f"{mode} {fmt}")


GFLOAT = {
    "float32": gfloat.formats.format_info_binary32,
    "bfloat16": gfloat.formats.format_info_bfloat16,
    "float16": gfloat.formats.format_info_binary16,
    "float8_e4m3fn": gfloat.formats.format_info_ocp_e4m3,
    "float8_e5m2": gfloat.formats.format_info_ocp_e5m2,
    "float8_e8m0fnu": gfloat.formats.format_info_ocp_e8m0,
    "float6_e2m3fn": gfloat.formats.format_info_ocp_e2m3,
    "float6_e3m2fn": gfloat.formats.format_info_ocp_e3m2,
    "float4_e2m1fn": gfloat.formats.format_info_ocp_e2m1,
}
GFLOAT_MODES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "upward": gfloat.RoundMode.TowardPositive,
    "downward": gfloat.RoundMode.TowardNegative,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", GFLOAT)
def test_every_mode_agrees_with_gfloat(name: str) -> None:
    info, fmt = GFLOAT[name], pl.FORMATS[name]
    saturates = fmt.overflow == fmt.largest
    x = boundaries(fmt, "float32")
    x = x[~np.isnan(x)]
    if name == "float8_e8m0fnu":  # gfloat leaves open what a format without zero makes of zero and of negative values
        x = x[(x >= 2.0**-127) & np.isfinite(x)]
        x = x[np.frexp(x)[0] != 0.75]  # and breaks ties by the code, where IEEE 754 goes to the larger of two odd values
    x = x[:: max(1, x.size // 500)]
    rounded = rounding(fmt)(padded(x, 4096))
    for mode, theirs in GFLOAT_MODES.items():
        expected = np.array([gfloat.round_float(info, float(v), theirs, sat=saturates) for v in x])
        assert_same(rounded[mode][: x.size], expected.astype(np.float32), x, mode)


# The exact law of stagnation: w + u rounds to w iff |u| is below half the gap on u's side, or equal to it with w even.


SIGNED = [name for name in cases.ML_DTYPES if name != "float8_e8m0fnu"]


@pytest.mark.parametrize("name", [*SIGNED, "ieee_3_2", "fixed_2_5", "one_bit"])
def test_half_gap_law_for_every_value(name: str) -> None:
    fmt = FORMATS[name]
    w = pl.finite_values(fmt)
    inner = np.diff(w)
    outer = float(ulp_exact(float(fmt.largest), fmt))  # beyond the largest value rounding goes on as if it did not end
    gap_up, gap_down = np.append(inner, outer), np.insert(inner, 0, outer)
    odd = np.abs(np.arange(w.size) - w.size // 2) % 2 == 1  # codes count up from zero
    assert w[w.size // 2] == 0
    ties = {1.0: ~odd, -1.0: ~odd}
    if fmt.precision == 1:  # every value but zero is odd: a tie goes to the larger magnitude
        for sign in ties:
            ties[sign] = np.where(sign * w < 0, np.abs(w) != np.abs(w[w != 0]).min(), w == 0)
    with jax.enable_x64(True):
        for sign, gap in ((1.0, gap_up), (-1.0, gap_down)):
            # One part in 2^30 to either side of half a gap: w + u is still exact in float64.
            for share, unchanged in (
                (1.0, ties[sign]),
                (1 - 2.0**-30, np.ones_like(odd)),
                (1 + 2.0**-30, np.zeros_like(odd)),
                (0.5, np.ones_like(odd)),
                (2.0**-10, np.ones_like(odd)),
                (1.5, np.zeros_like(odd)),
            ):
                u = sign * share * gap / 2
                total = w + u
                assert np.array_equal((total - w) + 0.0, u + 0.0)
                kept = np.asarray(nearest_even(total, fmt)) == w
                expected = unchanged
                if fmt.overflow == fmt.largest:  # nothing leads out of a format that saturates
                    expected = unchanged | (w == sign * fmt.largest)
                assert np.array_equal(kept, expected), (sign, share, w[kept != expected][:5])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [*cases.ML_DTYPES, "ieee_3_2", "fixed_2_5", "one_bit", "e4m3fnuz_no_subnormals"])
def test_values_of_a_format_stay_in_every_mode(name: str) -> None:
    fmt = FORMATS[name]
    w = pl.finite_values(fmt).astype(np.float32)
    w = padded(w, 4096 if w.size <= 4096 else 2**16)
    for mode in ALL_MODES:
        assert_same(traced(mode)(w, fmt, jax.random.key(0)), w, w, mode)


# Special values, said once more in plain words.


def test_infinities_become_the_overflow_value_in_every_mode() -> None:
    x = np.array([np.inf, -np.inf], np.float32)
    for name, fmt in FORMATS.items():
        if not cases.fits(fmt, "float32"):
            continue
        expected = np.array([fmt.overflow, np.nan if fmt.zeros == 0 else -fmt.overflow], np.float32)
        for mode in ALL_MODES:
            assert_same(traced(mode)(x, fmt, jax.random.key(0)), expected, x, f"{name} {mode}")


def test_nan_of_any_sign_and_payload_stays_nan() -> None:
    payloads = [1, 0x1000, 0x2000, 0x3FFFFF, 0x400000, 0x7FFFFF]
    bits = np.array([0x7F800000 | n for n in payloads] + [0xFF800000 | n for n in payloads], np.uint32)
    wide = [0x7FF0000000000000 | n for n in (1, 1 << 28, 1 << 29, 1 << 51, (1 << 52) - 1)]
    wide_bits = np.array(wide + [n | 1 << 63 for n in wide], np.uint64)
    for carrier, x in (("float32", bits.view(np.float32)), ("float64", wide_bits.view(np.float64))):
        with scope(carrier):
            for name, fmt in FORMATS.items():
                if cases.fits(fmt, carrier):
                    for mode in ALL_MODES:
                        assert np.isnan(traced(mode)(x, fmt, jax.random.key(0))).all(), (name, mode)


def test_zeros_keep_their_sign_only_where_the_format_has_two() -> None:
    x = np.array([0.0, -0.0, 1e-30, -1e-30], np.float32)
    expected = {2: [0.0, -0.0, 0.0, -0.0], 1: [0.0] * 4}
    for fmt in (pl.FLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT8_E4M3FNUZ, pl.fixed_point(2, 3)):
        assert_same(pl.round_to(x, fmt), np.array(expected[fmt.zeros], np.float32), x)


def test_e8m0_has_neither_zero_nor_sign() -> None:
    x = np.array([0.0, -0.0, -1.0, -np.inf, 1e-45, 2.0**-128, 2.0**-127, 1.25 * 2.0**-127, 1.0, 2.0**127], np.float32)
    tiny = 2.0**-127
    expected = np.array([np.nan] * 4 + [tiny] * 4 + [1.0, 2.0**127], np.float32)
    for mode in ("nearest_even", "nearest_away", "toward_zero", "downward"):
        assert_same(pl.round_to(x, pl.FLOAT8_E8M0FNU, pl.MODES[mode]), expected, x, mode)


def test_directed_modes_overflow_only_in_their_direction() -> None:
    x = np.array([1e9, -1e9], np.float32)
    inf, top = np.inf, 65504.0
    expected = {
        "nearest_even": [inf, -inf],
        "nearest_away": [inf, -inf],
        "toward_zero": [top, -top],
        "upward": [inf, -top],
        "downward": [top, -inf],
        "to_odd": [top, -top],
        "stochastic": [inf, -inf],
        "stochastic_4": [inf, -inf],
    }
    for mode, values in expected.items():
        actual = pl.round_to(x, pl.FLOAT16, ALL_MODES[mode], key=jax.random.key(0))
        assert_same(actual, np.array(values, np.float32), x, mode)


@pytest.mark.parametrize("wide", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_rounding_to_odd_first_makes_double_rounding_innocuous(wide: str) -> None:
    narrow = pl.FORMATS[wide]
    between = narrow._replace(precision=narrow.precision + 2, emin=narrow.emin, overflow=narrow.largest)
    between = between._replace(largest=4 * narrow.largest, overflow=math.inf)
    x = np.concatenate([boundaries(narrow, "float32"), cases.random_bits(4096, 5)])
    twice = pl.round_to(pl.round_to(x, between, pl.to_odd), narrow) if narrow != pl.BFLOAT16 else None
    if twice is None:  # 4 * largest does not fit float32; stay below it
        x = np.where(np.abs(x) < 2.0**126, x, np.float32(1))
        between = between._replace(largest=2.0**126)
        twice = pl.round_to(pl.round_to(x, between, pl.to_odd), narrow)
    assert_same(twice, pl.round_to(x, narrow), x)


# One law under every transformation.

TRANSFORMED = [
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "fixed_2_5",
    "one_bit",
    "one_bit_no_subnormals",
    "float16_no_subnormals",
    "e8m0_saturating",
    "emin_positive",
]


def transform_inputs() -> np.ndarray:
    parts = [boundaries(FORMATS[name], "float32")[::11] for name in TRANSFORMED]
    return padded(np.concatenate([*parts, cases.random_bits(512, 9)]), 4096)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", ALL_MODES)
def test_jit_and_vmap_over_stacked_formats_agree(mode: str) -> None:
    x, key = transform_inputs(), jax.random.key(3)
    formats = [FORMATS[name] for name in TRANSFORMED]
    mapped = jax.jit(jax.vmap(lambda f: pl.round_to(x, f, ALL_MODES[mode], key=key)))(stack(formats))
    for name, fmt, row in zip(TRANSFORMED, formats, mapped, strict=True):
        assert_same(row, traced(mode)(x, fmt, key), x, f"traced, {name}")
        if mode in DETERMINISTIC:
            assert_same(row, oracle(x, fmt, mode), x, f"law, {name}")
        else:
            constant = jax.jit(lambda v, f=fmt: pl.round_to(v, f, ALL_MODES[mode], key=key))(x)
            assert_same(row, constant, x, f"constant, {name}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "one_bit_no_subnormals"])
def test_jit_and_eager_agree(name: str) -> None:
    x, key, fmt = transform_inputs()[:1024], jax.random.key(4), FORMATS[name]
    for mode, function in ALL_MODES.items():
        with jax.disable_jit():
            by_hand = pl.round_to(x, fmt, function, key=key)
        assert_same(by_hand, traced(mode)(x, fmt, key), x, f"disable_jit, {mode}")
        assert_same(pl.round_to(x, fmt, function, key=key), by_hand, x, f"eager, {mode}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ALL_MODES)
def test_vmap_over_values_and_keys_is_a_loop(mode: str) -> None:
    x = transform_inputs().reshape(4, -1)
    keys = jax.random.split(jax.random.key(1), 4)
    mapped = jax.vmap(lambda row, key: pl.round_to(row, pl.FLOAT8_E5M2, ALL_MODES[mode], key=key))(x, keys)
    looped = [pl.round_to(row, pl.FLOAT8_E5M2, ALL_MODES[mode], key=key) for row, key in zip(x, keys, strict=True)]
    assert_same(mapped, np.stack(looped))


def test_formats_as_arguments_compile_once() -> None:
    count = 0

    @jax.jit
    def counted(x: jax.Array, fmt: pl.Format) -> jax.Array:
        nonlocal count
        count += 1
        return pl.round_to(x, fmt)

    x = jnp.linspace(-4.0, 4.0, 32)
    for fmt in FORMATS.values():
        if cases.fits(fmt, "float32"):
            counted(x, fmt)
    assert count == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 1, 2)])
def test_any_shape_and_kind_of_input(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.1, np.float32)
    for given_x in (x, jnp.asarray(x)):
        for mode in ALL_MODES.values():
            rounded = pl.round_to(given_x, pl.BFLOAT16, mode, key=jax.random.key(0))
            assert rounded.shape == shape
            assert rounded.dtype == jnp.float32
    assert float(pl.round_to(0.1, pl.BFLOAT16)) == 0.10009765625


def test_a_scan_is_a_loop() -> None:
    def step(carry: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = pl.round_to(carry + 0.001, pl.BFLOAT16, pl.stochastic, key=key)
        return carry, carry

    keys = jax.random.split(jax.random.key(0), 5)
    _, scanned = jax.lax.scan(step, jnp.float32(1), keys)
    carry, looped = jnp.float32(1), []
    for key in keys:
        carry, _ = step(carry, key)
        looped.append(carry)
    assert_same(scanned, np.stack(looped))


# Derivatives.


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", ALL_MODES)
def test_gradient_is_straight_through(mode: str) -> None:
    x = jnp.array([0.1, -300.0, 1e-20, 500.0, 1e9, -1e-9, 0.0, jnp.inf], jnp.float32)
    for fmt in (pl.FLOAT8_E4M3FN, pl.FLOAT16, pl.FLOAT8_E8M0FNU, pl.fixed_point(1, 3)):

        def rounded(v: jax.Array, fmt: pl.Format = fmt) -> jax.Array:
            return pl.round_to(v, fmt, ALL_MODES[mode], key=jax.random.key(0))

        primal, pullback = jax.vjp(rounded, x)
        assert_same(primal, rounded(x), x)
        cotangent = jnp.linspace(-1.0, 1.0, x.size)
        assert_same(pullback(cotangent)[0], cotangent, x)
        tangent = jax.jvp(rounded, (x,), (cotangent,))
        assert_same(tangent[0], rounded(x), x)
        assert_same(tangent[1], cotangent, x)
        finite = jnp.array([0.1, 0.2])
        assert_same(jax.jit(jax.grad(lambda v: rounded(v).sum()))(finite), np.ones(2, np.float32))


def test_gradient_through_a_traced_format_and_twice() -> None:
    x = jnp.array([0.3, 2.7])
    value = jax.jit(jax.grad(lambda v, f: (pl.round_to(v, f) ** 2).sum()))(x, pl.FLOAT8_E5M2)
    assert_same(value, 2 * pl.round_to(x, pl.FLOAT8_E5M2))
    hessian = jax.hessian(lambda v: (pl.round_to(v, pl.FLOAT8_E5M2) ** 2).sum())(x)
    assert_same(hessian, 2 * np.eye(2, dtype=np.float32))


def test_a_rounding_is_transposed() -> None:
    """JAX takes what is computed from the argument to be linear in it, the operations on bits as well."""
    x, cotangent, traced = jnp.arange(1.0, 6.0), jnp.linspace(-1.0, 1.0, 5), jax.tree.map(jnp.asarray, pl.BFLOAT16)
    functions: list[Any] = [
        lambda v: pl.round_to(3 * v, pl.BFLOAT16),
        lambda v: pl.round_to(3 * v, pl.FLOAT8_E4M3FN, pl.stochastic, key=jax.random.key(0)),
        lambda v: pl.round_to(3 * v, traced, pl.upward),
        lambda v: pl.round_blocks(3 * v, pl.NVFP4),
    ]
    for function in functions:
        for call in (function, jax.jit(function)):
            assert_same(jax.linear_transpose(call, x)(cotangent)[0], 3 * cotangent)


def test_backward_format_rounds_the_cotangent() -> None:
    x = jnp.array([0.1, 3.3, -7.7, 1e-3, 5.0])
    cotangent = jnp.array([5e-4, 1000.0, 0.3, -0.1, 2.0])

    def pulled(forward: pl.Format, backward: pl.Format) -> Any:
        primal, pullback = jax.vjp(lambda v: pl.round_to(v, forward, backward=backward), x)
        return primal, pullback(cotangent)[0]

    for backward in (pl.FLOAT8_E5M2, pl.FLOAT8_E4M3FN, pl.FLOAT16, pl.saturating(pl.FLOAT8_E4M3FN)):
        expected = oracle(np.asarray(cotangent), backward, "nearest_even")
        for call in (pulled, jax.jit(pulled)):  # both formats constant, both traced
            primal, pulled_back = call(pl.BFLOAT16, backward)
            assert_same(primal, pl.round_to(x, pl.BFLOAT16), x)
            assert_same(pulled_back, expected, cotangent)
    assert float(pulled(pl.BFLOAT16, pl.FLOAT8_E4M3FN)[1][0]) == 0.0
    stacked = stack([pl.FLOAT8_E5M2, pl.FLOAT16])
    rows = jax.vmap(lambda f: pulled(pl.BFLOAT16, f)[1])(stacked)
    assert_same(rows[1], oracle(np.asarray(cotangent), pl.FLOAT16, "nearest_even"))


# Mistakes raise before tracing, in one sentence.


def assert_says(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), (word, message)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn", "complex64"])
def test_refuses_other_dtypes(dtype: str) -> None:
    for call in (pl.round_to, pl.ulp, pl.neighbors):
        with pytest.raises(TypeError) as error:
            call(jnp.ones(3, dtype), pl.BFLOAT16)
        assert_says(error, dtype, "float32", "float64")


def test_refuses_a_stochastic_mode_without_a_key() -> None:
    for mode in (pl.stochastic, pl.stochastic_bits(3)):
        with pytest.raises(ValueError, match="key") as error:
            pl.round_to(jnp.ones(3), pl.BFLOAT16, mode)
        assert_says(error, "stochastic", "bfloat16", r"jax\.random\.key")


def test_a_key_that_is_not_needed_is_ignored() -> None:
    x = transform_inputs()
    assert_same(pl.round_to(x, pl.BFLOAT16, pl.upward, key=jax.random.key(0)), pl.round_to(x, pl.BFLOAT16, pl.upward))


@pytest.mark.parametrize(
    "fmt",
    [
        pl.FLOAT64,
        pl.Format(25, -10, 1.0, math.inf),
        pl.Format(4, -140, 1.0, math.inf),
        pl.Format(4, -10, 2.0**200, math.inf),
    ],
)
def test_refuses_a_format_that_does_not_fit_the_carrier(fmt: pl.Format) -> None:
    for call in (pl.round_to, pl.ulp, pl.neighbors):
        with pytest.raises(ValueError, match="does not fit") as error:
            call(jnp.ones(3, jnp.float32), fmt)
        assert_says(error, "float32", "float64")
    with pytest.raises(ValueError, match="does not fit"):
        pl.round_to(jnp.ones(3), pl.BFLOAT16, backward=fmt)
    with jax.enable_x64(True):
        pl.round_to(jnp.ones(3, jnp.float64), fmt)


NONSENSE = {
    "precision 0": pl.Format(0, -10, 1.0, math.inf),
    "precision 54": pl.Format(54, -10, 1.0, math.inf),
    "half a bit": pl.Format(3.5, -10, 1.0, math.inf),
    "largest between values": pl.Format(3, -10, 1.1, math.inf),
    "largest infinite": pl.Format(3, -10, math.inf, math.inf),
    "largest nan": pl.Format(3, -10, math.nan, math.inf),
    "largest negative": pl.Format(3, -10, -1.0, math.inf),
    "largest zero": pl.Format(3, -10, 0.0, math.inf),
    "largest below the smallest": pl.Format(3, -10, 2.0**-11, math.inf, subnormals=False),
    "overflow somewhere": pl.Format(3, -10, 1.0, 0.5),
    "overflow negative": pl.Format(3, -10, 1.0, -math.inf),
    "three zeros": pl.Format(3, -10, 1.0, math.inf, zeros=3),
    "no zero, two bits": pl.Format(2, -10, 1.0, math.inf, subnormals=False, zeros=0),
    "subnormals maybe": pl.Format(3, -10, 1.0, math.inf, subnormals=2),
    "a name for a number": pl.Format("3", -10, 1.0, math.inf),
    "a name for the largest": pl.Format(3, -10, "1", math.inf),
    "largest missing": pl.Format(3, -10, None, math.inf),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_refuses_numbers_that_are_no_format(what: str) -> None:
    for call in (lambda fmt: pl.round_to(jnp.ones(3), fmt), pl.check_format):
        with pytest.raises((ValueError, TypeError)) as error:
            call(NONSENSE[what])  # the message names Format and the field
        assert_says(error, "Format|format")


def test_refuses_names_where_values_belong() -> None:
    with pytest.raises(TypeError) as error:
        pl.round_to(jnp.ones(3), "bfloat16")  # type: ignore[arg-type]
    assert_says(error, "'bfloat16'", "Format")
    with pytest.raises(TypeError) as error:
        pl.round_to(jnp.ones(3), pl.BFLOAT16, "upward")  # type: ignore[arg-type]
    assert_says(error, "'upward'", "mode")
    with pytest.raises(TypeError) as error:
        pl.round_to(jnp.ones(3), jnp.bfloat16)  # type: ignore[arg-type]
    assert_says(error, "Format")


def test_mistakes_raise_inside_jit_too() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        jax.jit(lambda x: pl.round_to(x, pl.FLOAT64))(jnp.ones(3))
    with pytest.raises(ValueError, match="key"):
        jax.jit(lambda x: pl.round_to(x, pl.FLOAT16, pl.stochastic))(jnp.ones(3))


def test_all_values_of_the_oracle_are_those_of_ml_dtypes() -> None:
    for name in cases.ML_DTYPES:
        assert np.array_equal(all_values(cases.REGISTERED[name]), cases.ml_values(name)), name
