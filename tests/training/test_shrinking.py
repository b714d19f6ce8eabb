"""Shrinking is one correct rounding of each product, and what a register keeps of it is arithmetic."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from precisionlab.numerics.formats import BFLOAT16, FLOAT16, FORMATS, fixed_point
from precisionlab.numerics.rounding import round_to
from precisionlab.problems.networks import mlp_apply, mlp_init
from precisionlab.training.shrinking import shrink

NARROW = [
    "bfloat16", "float16", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e4m3fn", "float8_e4m3fnuz",
    "float8_e4m3b11fnuz", "float8_e5m2fnuz",
]  # fmt: skip


def every_value(name: str) -> np.ndarray:
    kind = np.dtype(name)
    return np.arange(2 ** (8 * kind.itemsize)).astype(f"u{kind.itemsize}").view(kind)


def finite(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return values[np.isfinite(values.astype(np.float64))]


def nearest(exact: Fraction, fmt) -> float:
    """The value of a format nearest to an exact number, ties to even, from the definition."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    unit = Fraction(2) ** (max(exponent, int(fmt.emin)) - int(fmt.precision) + 1)
    found = round(size / unit) * unit  # Fraction rounds ties to even
    value = float(fmt.overflow) if found > Fraction(fmt.largest) else float(found)
    return math.copysign(value, float(exact)) if exact < 0 else value


@pytest.mark.parametrize("name", [*NARROW, "float32"])
@pytest.mark.parametrize("factor", [0.2, 0.25, 1 / 3, 5.0, 0.9999999999999999, 2.0**-20 * 1.1])
def test_products_are_rounded_once(name, factor):
    rng = np.random.default_rng(0)
    if name == "float32":
        values = rng.integers(0, 2**32, 3000, np.uint32).view(np.float32)
        values[:500] = rng.integers(0, 2**24, 500, np.uint32).view(np.float32)  # near and below the smallest normal
    else:
        values = every_value(name)
        values = values if len(values) < 1000 else rng.choice(values, 3000, replace=False)
    values = finite(values)
    found = shrink(values, factor)
    assert found.dtype == values.dtype
    wide = values.astype(np.float64)
    expected = np.array([nearest(Fraction(float(w)) * Fraction(factor), FORMATS[name]) for w in wide])
    assert np.array_equal(found.astype(np.float64), expected, equal_nan=True)


def test_hard_cases_where_two_roundings_would_err():
    """Products that lie within a float64 rounding of a tie."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        w = np.array([rng.integers(2**7, 2**8)], np.float32).astype(ml_dtypes.bfloat16)
        tie = Fraction(2 * int(rng.integers(2**7, 2**8)) + 1, 2)  # between two neighbours of eight bits
        factor = float(tie / Fraction(float(w[0])))
        factor = math.nextafter(factor, math.inf if rng.random() < 0.5 else 0)
        expected = nearest(Fraction(float(w[0])) * Fraction(factor), BFLOAT16)
        assert float(shrink(w, factor)[0]) == expected
        naive = np.asarray(w.astype(np.float64) * factor).astype(np.float32).astype(ml_dtypes.bfloat16)
        wrong += float(naive[0]) != expected
    assert wrong > 0  # the cases are hard: two roundings do err


@pytest.mark.parametrize("name", NARROW)
def test_a_quarter_comes_back_bit_for_bit_unless_it_underflows(name):
    values = finite(every_value(name))
    back = shrink(shrink(values, 0.25), 4.0)
    wide, fmt = values.astype(np.float64), FORMATS[name]
    spacing = 2.0 ** (fmt.emin - fmt.precision + 1)
    # A quarter is a value as long as it is a multiple of the least spacing: always above 4 * 2^emin, below if two bits are
    # zero.
    kept = np.mod(wide / 4, spacing) == 0
    assert np.all(kept[np.abs(wide) >= 4 * 2.0**fmt.emin])
    unsigned = f"u{values.dtype.itemsize}"
    same = (back.view(unsigned) == values.view(unsigned)) | (wide == 0)
    assert np.array_equal(same, kept)
    # A multiplication in the dtype itself does the same.
    assert np.array_equal((values * values.dtype.type(0.25)).view(unsigned), shrink(values, 0.25).view(unsigned))


def test_a_fifth_moves_a_weight_by_at_most_half_an_ulp():
    values = finite(every_value("bfloat16"))
    wide = values.astype(np.float64)
    chosen = np.abs(wide) > 2.0**-100
    exact, found = wide[chosen] * 0.2, shrink(values, 0.2)[chosen].astype(np.float64)
    ulp = 2.0 ** (np.frexp(exact)[1] - 8)
    assert np.max(np.abs(found - exact) / ulp) <= 0.5


@pytest.mark.parametrize(("integer_bits", "fraction_bits"), [(2, 5), (0, 7), (3, 8), (1, 1)])
def test_a_quarter_costs_two_bits_in_fixed_point(integer_bits, fraction_bits):
    fmt, bits = fixed_point(integer_bits, fraction_bits), integer_bits + fraction_bits
    step = 2.0**-fraction_bits
    grid = (np.arange(1 - 2**bits, 2**bits) * step).astype(np.float32)
    shrunk = shrink(grid, 0.25, fmt=fmt)
    # round(k / 4) for k up to 2^bits - 1 takes the values -2^(bits-2) .. 2^(bits-2): the top one by rounding up.
    assert len(np.unique(shrunk)) == 2 * 2 ** (bits - 2) + 1
    back = shrink(shrunk, 4.0, fmt=fmt)
    # The multiples of four steps come back, and the two ends, which rounding up and saturation bring back together.
    ends = (np.abs(grid) == fmt.largest) & (shrunk != 0)
    assert np.array_equal(back == grid, (np.mod(grid / step, 4) == 0) | ends)
    assert np.sum(back == grid) == 2 * (2 ** (bits - 2) - 1) + 1 + 2
    coarse = round_to(jnp.asarray(grid), fixed_point(integer_bits + 1, fraction_bits - 2))
    inside = np.abs(grid) < 2**integer_bits - 2 * step  # beyond, the multiple of four steps above is out of range
    assert np.array_equal(back[inside], np.asarray(coarse)[inside])
    # With two bits more nothing falls off.
    wider = fixed_point(integer_bits, fraction_bits + 2)
    assert np.array_equal(shrink(shrink(grid, 0.25, fmt=wider), 4.0, fmt=wider), grid)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("power", [-3, -1, 2])
def test_relu_networks_without_biases_are_homogeneous_bit_for_bit(layers, power):
    params = mlp_init(jax.random.key(layers), (8, *[16] * (layers - 1), 3))
    x = jax.random.normal(jax.random.key(7), (32, 8))
    a = 2.0**power
    assert not any(np.any(np.asarray(layer["bias"])) for layer in params.values())
    before, after = mlp_apply(params, x), mlp_apply(shrink(params, a), x)
    assert np.array_equal(np.asarray(after), np.asarray(before) * np.float32(a**layers))
    assert np.any(np.asarray(before))


def test_relu_networks_with_biases_are_not_homogeneous():
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.1), mlp_init(jax.random.key(0), (8, 16, 3)))
    x = jax.random.normal(jax.random.key(7), (32, 8))
    before, after = mlp_apply(params, x), mlp_apply(shrink(params, 0.25), x)
    assert np.abs(np.asarray(after) - np.asarray(before) / 16).max() > 0.01


def test_trees_keep_their_structure_and_what_is_no_float():
    key = jax.random.key(0)
    tree = {"w": jnp.ones(3, jnp.float16), "n": np.arange(2), "key": key, "x": 2.0, "b": True, "d": np.float64(3.0)}
    found = shrink(tree, 0.5)
    assert isinstance(found["w"], jax.Array)
    assert found["w"].dtype == jnp.float16
    assert found["w"].tolist() == [0.5] * 3
    assert (found["n"] is tree["n"], found["key"] is key, found["b"]) == (True, True, True)
    assert (found["x"], found["d"]) == (1.0, 1.5)


def test_extremes():
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.0e38, 1e-45], np.float32)
    assert np.array_equal(shrink(values, 1.0).view(np.uint32), values.view(np.uint32))
    assert shrink(values, 2.0)[5] == np.inf
    assert shrink(values, 5e-324).tolist()[5:] == [0.0, 0.0]
    assert shrink(values, 1.7e308).tolist()[5:] == [np.inf, np.inf]
    assert shrink(np.array([1e-45], np.float32), 2.0)[0] == np.float32(2.8e-45)  # subnormals are not flushed
    assert shrink(np.array([100.0], np.float32), 0.5, fmt=fixed_point(2, 5)).tolist() == [4 - 2.0**-5]  # saturates


@pytest.mark.parametrize("factor", [0, -0.5, float("nan"), float("inf"), True, "0.2", 10**400, None])
def test_wrong_factors_are_sentences(factor):
    with pytest.raises(ValueError, match=r"shrink: factor is .*, allowed is a positive finite number, such as 0.2\."):
        shrink({"w": jnp.ones(2)}, factor)


def test_wrong_leaves_are_sentences():
    with pytest.raises(TypeError, match=r"layer/w has dtype complex64, allowed are real floats"):
        shrink({"layer": {"w": jnp.ones(2, jnp.complex64)}}, 0.5)
    with pytest.raises(TypeError, match="w is traced; scale the weights between jitted steps"):
        jax.jit(lambda w: shrink({"w": w}, 0.5))(jnp.ones(2))
    with pytest.raises(TypeError, match="the array has dtype float16; values of a simulated format must be float32"):
        shrink(jnp.ones(2, jnp.float16), 0.5, fmt=FLOAT16)
    with pytest.raises(ValueError, match=r"shrink: .*float64.* does not fit its carrier float32"):
        shrink(jnp.ones(2), 0.5, fmt=FORMATS["float64"])
