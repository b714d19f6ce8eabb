"""The numbers of a format, and what follows from them alone."""

import copy
import math
import pickle
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import precisionlab as pl
from tests import cases
from tests.cases import CUSTOM, FORMATS, assert_same, scope
from tests.oracle import all_values, ulp_exact

TINY = ("ieee_3", "ieee_2", "fixed_2", "fixed_0", "fixed_-3", "fixed_6", "one_bit", "e4m3", "e5m2", "only")
SMALL = [*cases.ML_DTYPES, *(name for name in CUSTOM if name.startswith(TINY))]


def same_numbers(fmt: pl.Format, numbers: Any) -> bool:
    pairs = zip(fmt, numbers, strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def test_the_registry_holds_exactly_these_numbers() -> None:
    assert set(pl.FORMATS) == set(cases.REGISTERED)
    for name, numbers in cases.REGISTERED.items():
        assert same_numbers(pl.FORMATS[name], numbers), name
        assert getattr(pl, name.upper()) is pl.FORMATS[name]


@pytest.mark.parametrize("name", cases.NATIVE)
def test_numbers_agree_with_finfo(name: str) -> None:
    fmt = pl.FORMATS[name]
    info = ml_dtypes.finfo(cases.ml_dtype(name))
    smallest = math.ldexp(1.0, fmt.emin - fmt.precision + 1) if fmt.subnormals else math.ldexp(1.0, fmt.emin)
    assert float(info.max) == fmt.largest
    assert float(info.smallest_normal) == math.ldexp(1.0, fmt.emin)
    assert float(info.smallest_subnormal) == smallest
    assert int(info.nmant) + 1 == fmt.precision


def test_fields_and_their_defaults() -> None:
    assert pl.Format._fields == ("precision", "emin", "largest", "overflow", "subnormals", "zeros")
    assert pl.Format(11, -14, 65504.0, math.inf, True) == pl.FLOAT16
    assert pl.Format(11, -14, 65504.0, math.inf, True).zeros == 2
    assert pl.FLOAT8_E4M3FNUZ.zeros == pl.fixed_point(1, 2).zeros == 1
    assert pl.FLOAT8_E8M0FNU.zeros == 0


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        ((11, 52), "float64"),
        ((8, 23), "float32"),
        ((8, 10), "tfloat32"),
        ((8, 7), "bfloat16"),
        ((5, 10), "float16"),
        ((5, 2), "float8_e5m2"),
        ((4, 3), "float8_e4m3"),
        ((3, 4), "float8_e3m4"),
    ],
)
def test_ieee_format_is_the_named_one(bits: tuple[int, int], name: str) -> None:
    assert same_numbers(pl.ieee_format(*bits), cases.REGISTERED[name])
    assert pl.ieee_format(*bits) == pl.FORMATS[name]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("integer_bits", "fraction_bits"), [(0, 1), (0, 4), (2, 5), (3, 0), (6, -2), (-3, 8), (1, 1)])
def test_fixed_point_is_a_symmetric_uniform_grid(integer_bits: int, fraction_bits: int) -> None:
    fmt = pl.fixed_point(integer_bits, fraction_bits)
    count = 2 ** (integer_bits + fraction_bits) - 1
    assert np.array_equal(pl.finite_values(fmt), np.arange(-count, count + 1) * 2.0**-fraction_bits)
    assert fmt.overflow == fmt.largest == 2.0**integer_bits - 2.0**-fraction_bits
    x = np.linspace(-0.99 * fmt.largest, 0.99 * fmt.largest, 37, dtype=np.float32)
    assert (np.asarray(pl.ulp(x, fmt)) == 2.0**-fraction_bits).all()
    far = np.array([1e30, -1e30, np.inf, -np.inf], np.float32)
    assert_same(pl.round_to(far, fmt), np.array([1, -1, 1, -1], np.float32) * np.float32(fmt.largest))


def test_saturating_changes_the_overflow_alone() -> None:
    for fmt in FORMATS.values():
        saturated = pl.saturating(fmt)
        assert saturated.overflow == saturated.largest == fmt.largest
        assert same_numbers(saturated._replace(overflow=fmt.overflow), fmt)
        assert pl.saturating(saturated) == saturated


def test_unit_roundoff() -> None:
    for fmt in FORMATS.values():
        assert pl.unit_roundoff(fmt) == 2.0**-fmt.precision
    assert pl.unit_roundoff(pl.FLOAT32) * 2 == np.finfo(np.float32).eps


# Values.


@pytest.mark.parametrize("name", cases.ML_DTYPES)
def test_finite_values_are_the_codes_of_ml_dtypes(name: str) -> None:
    values = pl.finite_values(pl.FORMATS[name])
    assert values.dtype == np.float64
    assert np.array_equal(values, cases.ml_values(name))


@pytest.mark.parametrize("name", SMALL)
def test_finite_values_are_those_of_the_law(name: str) -> None:
    values = pl.finite_values(FORMATS[name])
    assert np.array_equal(values, all_values(FORMATS[name]))
    assert (np.diff(values) > 0).all()
    assert not np.signbit(values[values == 0]).any()


def test_finite_values_refuses_huge_formats() -> None:
    for name in ("float32", "float64"):
        with pytest.raises(ValueError, match="values") as error:
            pl.finite_values(pl.FORMATS[name])
        assert "\n" not in str(error.value)


traced_ulp, traced_neighbors = jax.jit(pl.ulp), jax.jit(pl.neighbors)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "carrier"), cases.format_cases())
def test_ulp_is_the_gap_of_the_binade(name: str, carrier: str) -> None:
    fmt = FORMATS[name]
    x = cases.boundaries(fmt, carrier)
    plain = np.array([1.0, -2.5, 0.0, -0.0, np.inf, -np.inf, np.nan], carrier)
    x = np.concatenate([plain, x[:: max(1, x.size // 400)]])
    x = cases.padded(x[:1024], 1024)
    with np.errstate(invalid="ignore"):
        expected = np.array([float(ulp_exact(float(v), fmt)) if np.isfinite(v) else np.nan for v in x], carrier)
    with scope(carrier):
        assert_same(pl.ulp(x, fmt), expected, x)
        # The same with the format as an argument.
        assert_same(traced_ulp(x, fmt), expected, x)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("carrier", cases.CARRIERS)
@pytest.mark.parametrize("name", SMALL)
def test_neighbors_are_the_values_below_and_above(name: str, carrier: str) -> None:
    fmt = FORMATS[name]
    values = pl.finite_values(fmt)
    middle = values.size // 2
    sample = np.unique(np.concatenate([values[:128], values[max(middle - 64, 0) : middle + 64], values[-128:]]))
    x = cases.boundaries(fmt, carrier)
    x = np.concatenate([sample.astype(carrier), x[:: max(1, x.size // 600)]])
    x = cases.padded(x[np.isfinite(x)], 2048)
    wide = x.astype(np.float64)
    ladder = np.concatenate([[np.nan if fmt.zeros == 0 else -np.inf], values, [np.inf]])
    expected_below = ladder[np.searchsorted(values, wide, "left")]
    expected_above = ladder[np.searchsorted(values, wide, "right") + 1]
    with scope(carrier):
        for function in (pl.neighbors, traced_neighbors):
            below, above = (np.asarray(side) for side in function(x, fmt))
            assert below.dtype == above.dtype == carrier
            assert_same(below + below.dtype.type(0), expected_below.astype(carrier), x, "below")
            assert_same(above + above.dtype.type(0), expected_above.astype(carrier), x, "above")


def test_neighbors_at_the_ends() -> None:
    x = np.array([448.0, 1e9, -448.0, np.inf, -np.inf, np.nan, 0.0], np.float32)
    below, above = pl.neighbors(x, pl.FLOAT8_E4M3FN)
    tiny = 2.0**-9
    assert_same(below, np.array([416, 448, -np.inf, 448, -np.inf, np.nan, -tiny], np.float32), x)
    assert_same(above, np.array([np.inf, np.inf, -416, np.inf, -448, np.nan, tiny], np.float32), x)


def test_neighbors_of_float32_are_nextafter() -> None:
    x = cases.random_bits(4096, 3)
    x = x[np.isfinite(x)]
    below, above = pl.neighbors(x, pl.FLOAT32)
    with np.errstate(over="ignore", under="ignore"):
        assert_same(below, np.nextafter(x, np.float32(-np.inf)), x)
        assert_same(above, np.nextafter(x, np.float32(np.inf)), x)


# A format as a value: equality, hashing, static arguments, trees.


def twin(fmt: pl.Format) -> pl.Format:
    """The same numbers, no object shared, a fresh NaN included."""
    precision, emin = int(str(fmt.precision)), int(str(fmt.emin))
    return pl.Format(precision, emin, float(str(fmt.largest)), float(str(fmt.overflow)), fmt.subnormals, fmt.zeros)


@pytest.mark.parametrize("name", FORMATS)
def test_equal_numbers_are_equal_formats(name: str) -> None:
    fmt = FORMATS[name]
    for other in (twin(fmt), copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt)), fmt._replace()):
        assert fmt == other
        assert not fmt != other  # noqa: SIM202  (both operators are written by hand)
        assert hash(fmt) == hash(other)
        assert {fmt: 1}[other] == 1
    others = [known for known in FORMATS.values() if known is not fmt and not same_numbers(known, fmt)]
    assert all(fmt != other for other in others)
    assert fmt != "bfloat16"


def test_numpy_numbers_make_equal_formats() -> None:
    made = pl.Format(np.int64(4), np.int32(-6), np.float64(448), np.float32("nan"), np.bool_(True), np.int8(2))
    assert made == pl.FLOAT8_E4M3FN
    assert hash(made) == hash(pl.FLOAT8_E4M3FN)
    assert_same(pl.round_to(np.float32([0.3, 1e9]), made), pl.round_to(np.float32([0.3, 1e9]), pl.FLOAT8_E4M3FN))


def test_static_arguments_do_not_retrace() -> None:
    traces = []

    def rounding(x: jax.Array, fmt: pl.Format) -> jax.Array:
        traces.append(fmt)
        return pl.round_to(x, fmt)

    static = jax.jit(rounding, static_argnums=1)
    for fmt in (pl.FLOAT8_E4M3FN, twin(pl.FLOAT8_E4M3FN), pl.FLOAT16, twin(pl.FLOAT16), pl.FLOAT8_E4M3FN):
        static(jnp.ones(3), fmt)
    assert len(traces) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_tree_round_trip(name: str) -> None:
    fmt = FORMATS[name]
    leaves, structure = jax.tree.flatten(fmt)
    assert len(leaves) == 6
    assert jax.tree.unflatten(structure, leaves) == fmt
    assert jax.tree.map(lambda number: number, fmt) == fmt
    if cases.fits(fmt, "float32"):
        out = jax.jit(lambda f: f)(fmt)
        assert isinstance(out, pl.Format)
        assert same_numbers(pl.Format(*(number.item() for number in out)), fmt)


def test_stacked_formats_unstack() -> None:
    names = [name for name, fmt in FORMATS.items() if cases.fits(fmt, "float32")]
    stacked = pl.stack_formats([FORMATS[name] for name in names])
    for row, name in enumerate(names):
        one = jax.tree.map(lambda column, row=row: column[row].item(), stacked)
        assert same_numbers(one, FORMATS[name]), name
    with pytest.raises(ValueError, match="stack_formats"):
        pl.stack_formats([])


# Validation: wrong, doubtful, right.


@pytest.mark.parametrize(("name", "carrier"), cases.format_cases())
def test_check_format_warns_exactly_where_two_roundings_may_differ_from_one(name: str, carrier: str) -> None:
    fmt = FORMATS[name]
    held = {"float32": 24, "float64": 53}[carrier]
    is_carrier = fmt == pl.FORMATS[carrier] or (fmt.precision == held and fmt.emin == pl.FORMATS[carrier].emin)
    for spelling in (carrier, np.dtype(carrier), jnp.dtype(carrier).type):
        if held < 2 * fmt.precision + 2 and not is_carrier:
            with pytest.warns(UserWarning, match="twice"):
                pl.check_format(fmt, spelling)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pl.check_format(fmt, spelling)


@pytest.mark.parametrize(
    ("fmt", "why"),
    [
        (pl.FLOAT64, "53"),
        (pl.ieee_format(8, 24), "25"),
        (pl.ieee_format(9, 3), "range|normal|largest"),
        (pl.Format(4, -10, 2.0**128, math.inf), "largest"),
        (pl.Format(4, -127, 1.0, math.inf), "2\\^-127"),
    ],
)
def test_check_format_raises_where_the_carrier_is_too_small(fmt: pl.Format, why: str) -> None:
    with pytest.raises(ValueError, match="float32") as error:
        pl.check_format(fmt, "float32")
    assert re.search(why, str(error.value))
    assert "\n" not in str(error.value)


def test_check_format_refuses_narrow_carriers_and_arrays() -> None:
    for carrier in ("float16", jnp.bfloat16, "int32"):
        with pytest.raises(TypeError, match="float32 and float64"):
            pl.check_format(pl.FLOAT8_E5M2, carrier)
    with pytest.raises(TypeError, match="arrays"):
        pl.check_format(pl.stack_formats([pl.FLOAT16, pl.BFLOAT16]), "float32")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pl.ieee_format(0, 3), "exponent_bits.*0"),
        (lambda: pl.ieee_format(1, 3), "exponent_bits.*1"),
        (lambda: pl.ieee_format(12, 3), "exponent_bits.*12"),
        (lambda: pl.ieee_format(5, -1), "significand_bits.*-1"),
        (lambda: pl.ieee_format(5, 53), "significand_bits.*53"),
        (lambda: pl.ieee_format(5.5, 3), "exponent_bits.*5.5"),
        (lambda: pl.ieee_format("5", 3), "exponent_bits.*'5'"),
        (lambda: pl.fixed_point(0, 0), "integer_bits=0.*fraction_bits=0"),
        (lambda: pl.fixed_point(3, -3), "integer_bits=3.*fraction_bits=-3"),
        (lambda: pl.fixed_point(1.5, 2), "integer_bits.*1.5"),
        (lambda: pl.fixed_point(30, 30), "bits.*(30|60|61)"),
    ],
)
def test_constructors_refuse_nonsense(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
