"""Block formats against the specification in exact rationals, gfloat, and the formula of the specification's authors."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.numerics import blocks
from precisionlab.numerics.blocks import BLOCK_FORMATS, BlockFormat, block_scales, round_blocks
from tests import cases
from tests.cases import CARRIERS, assert_same, random_bits, scope
from tests.oracle import DETERMINISTIC, Numbers, all_values, exponent, round_array, round_exact

MODES = {name: pl.MODES[name] for name in DETERMINISTIC}


class Spec(NamedTuple):
    """A row of table 1 of the OCP Microscaling Formats specification 1.0: elements, and their largest exponent."""

    numbers: Numbers
    emax: int


# Written out by hand, apart from the library's own table. In blocks of 32, with a scale in E8M0. INT8 is a number of 8 bits in
# two's complement times 2^-6; its -2 stays unused here.
MX: dict[str, Spec] = {
    "mxfp8_e4m3": Spec(Numbers(4, -6, 448.0, 448.0), 8),
    "mxfp8_e5m2": Spec(Numbers(3, -14, 57344.0, 57344.0), 15),
    "mxfp6_e2m3": Spec(Numbers(4, 0, 7.5, 7.5), 2),
    "mxfp6_e3m2": Spec(Numbers(3, -2, 28.0, 28.0), 4),
    "mxfp4": Spec(Numbers(2, 0, 6.0, 6.0), 2),
    "mxint8": Spec(Numbers(8, 1, 127 / 64, 127 / 64, zeros=1), 0),
}
E2M1, E4M3 = MX["mxfp4"].numbers, MX["mxfp8_e4m3"].numbers
MXFP4_SIZE_2 = blocks.MXFP4._replace(size=2)


# The specification, section 6.3, one block at a time.


def spec_scale(block: list[float], spec: Spec) -> Fraction | None:
    """The shared scale; None for NaN."""
    if not all(map(math.isfinite, block)):
        return None
    largest = max(abs(Fraction(v)) for v in block)
    shared = exponent(largest) - spec.emax if largest else -127
    return Fraction(2) ** min(max(shared, -127), 127)


def spec_block(block: list[float], spec: Spec, mode: str = "nearest_even") -> list[float]:
    """The values that a block means."""
    scale = spec_scale(block, spec)
    if scale is None:
        return [math.nan] * len(block)
    elements = [round_exact(Fraction(v) / scale if v else v, spec.numbers, mode) for v in block]  # type: ignore[arg-type]
    return [float(Fraction(p) * scale) if p else p for p in elements]


# The same for an array of blocks of float32 values, where every step is exact in float64.


def spec_scales(x: np.ndarray, spec: Spec) -> np.ndarray:
    largest = np.abs(x.astype(np.float64)).max(axis=-1)
    finite = np.isfinite(largest)
    shared = np.frexp(np.where(finite, largest, 1.0))[1] - 1 - spec.emax
    return np.where(finite, np.ldexp(1.0, np.clip(np.where(largest == 0, -127, shared), -127, 127)), np.nan)


def spec_blocks(x: np.ndarray, spec: Spec, mode: str = "nearest_even") -> np.ndarray:
    scale = spec_scales(x, spec)[..., None]
    with np.errstate(invalid="ignore"):
        elements = round_array(x.astype(np.float64) / scale, spec.numbers, mode)
        return np.where(np.isnan(scale), np.nan, elements * scale).astype(x.dtype)


def in_blocks(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """An axis of x last, filled up with zeros and cut into blocks."""
    x = np.moveaxis(x, axis, -1)
    x = np.concatenate([x, np.zeros((*x.shape[:-1], -x.shape[-1] % size), x.dtype)], axis=-1)
    return x.reshape(*x.shape[:-1], -1, size)


def out_of_blocks(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    return np.moveaxis(x.reshape(*x.shape[:-2], -1)[..., :length], -1, axis)


def boundary_blocks(spec: Spec, carrier: str = "float32") -> np.ndarray:
    """Blocks of 32 in which some mode changes its mind: element boundaries times scales, and the carrier's extremes."""
    tiny, huge = -127, 127 - spec.emax  # the scales that float32 can ask for
    if carrier == "float64":
        huge = 127
    values = all_values(spec.numbers)
    values = values[values > 0]
    values = np.unique(np.concatenate([values[:40], values[-40:]]))
    middles = (values[1:] + values[:-1]) / 2
    points = np.concatenate([values, middles, (values[1:] + 3 * values[:-1]) / 4, values[:3] / 2, values[:3] / 4])
    points = np.concatenate([points, np.nextafter(points, 0, dtype=np.float32), np.nextafter(points, 9e9, dtype=np.float32)])
    top = 2.0**spec.emax
    points = np.concatenate([points, np.linspace(spec.numbers.largest, 2 * top, 9)[:-1]])
    points = np.resize(points[points < 2 * top], -(-points.size // 31) * 31).reshape(-1, 31)
    signs = np.where(np.arange(31) % 2, -1.0, 1.0)
    rows = []
    for pin in (top, -spec.numbers.largest, 2 * top * (1 - 2.0**-24)):
        block = np.concatenate([points * signs, np.full((points.shape[0], 1), pin)], axis=1)
        rows += [np.ldexp(block, k) for k in (tiny - 9, tiny, tiny + 1, -1, 0, 3, huge)]
    smallest = float(np.finfo(carrier).smallest_subnormal)
    special = np.zeros((12, 32))
    special[1] = -0.0
    special[2:10, ::3] = np.array([np.inf, -np.inf, np.nan, smallest, -3 * smallest, 1, 2.0**-126, 3.4e38])[:, None]
    special[10, 5], special[10, 6] = 1e-3, np.nan
    special[11] = smallest * np.arange(32)
    with np.errstate(over="ignore"):
        return np.concatenate([*rows, special]).astype(carrier)


def quiet(x: np.ndarray) -> np.ndarray:
    """The same with every NaN a quiet one, which numpy casts without a warning."""
    return np.where(np.isnan(x), x.dtype.type(np.nan), x)


def random_blocks() -> np.ndarray:
    """Random blocks: every binade, a narrow range as in a trained layer, and float32 subnormals alone."""
    rng = np.random.default_rng(0)
    wild = quiet(random_bits(64 * 32, 1)).reshape(64, 32)
    calm = rng.normal(size=(512, 32)) * 2.0 ** rng.integers(-20, 20, (512, 1))
    coarse = rng.integers(-64, 64, (256, 32)) * 2.0 ** rng.integers(-9, 9, (256, 1))
    flushed = rng.integers(0, 2 ** rng.integers(1, 24, (64, 1)), (64, 32)).astype(np.uint32).view(np.float32)
    return np.concatenate([wild, calm.astype(np.float32), coarse.astype(np.float32), flushed])


@cache
def all_modes() -> Callable[..., Any]:
    """All deterministic modes at once, elements traced: compiled once for all formats of one size."""

    def modes(x: Any, element: pl.Format) -> dict[str, Any]:
        block_format = blocks.MXFP4._replace(element=element)
        return {name: round_blocks(x, block_format, mode=mode) for name, mode in MODES.items()}

    return jax.jit(modes)


def padded_rows(x: np.ndarray, rows: int) -> np.ndarray:
    assert x.shape[0] <= rows, x.shape
    return np.concatenate([x, np.ones((rows - x.shape[0], x.shape[1]), x.dtype)])


# The oracle itself.


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", MX)
def test_array_oracle_is_the_scalar_law(name: str) -> None:
    spec = MX[name]
    x = np.concatenate([boundary_blocks(spec)[::17], random_blocks()[::31]])
    for mode in DETERMINISTIC:
        scalar = np.array([spec_block(row.tolist(), spec, mode) for row in x]).astype(np.float32)
        assert_same(spec_blocks(x, spec, mode), scalar, x, mode)


def test_oracle_knows_worked_examples() -> None:
    # Scale 2^(9-8) = 2: 511/2 = 255.5 rounds to 256; 1000 = 2^9 * 1.95 is clamped to 448 * 2; 3e-3 / 2 to a subnormal.
    assert spec_block([511.0, 512.0, 1000.0, 3e-3], MX["mxfp8_e4m3"]) == [512.0, 512.0, 896.0, 2 * 2.0**-9]
    # Scale 2^(1-2) = 1/2: the elements are 6, -2, 0.5 and a tie between 0 and 0.5.
    assert spec_block([3.0, -1.0, 0.25, 0.125], MX["mxfp4"]) == [3.0, -1.0, 0.25, 0.0]
    assert spec_block([-1.999, 1.0, 1 / 128], MX["mxint8"]) == [-127 / 64, 1.0, 0.0]


# The MX formats are the specification.


@pytest.mark.parametrize("name", MX)
def test_constants_are_the_table_of_the_specification(name: str) -> None:
    block_format, numbers = BLOCK_FORMATS[name], MX[name].numbers
    assert tuple(block_format.element) == tuple(numbers)
    assert block_format.scale == pl.Format(1, -127, 2.0**127, 2.0**127, subnormals=False, zeros=0)
    assert (block_format.size, block_format.tensor_scale) == (32, False)
    assert getattr(blocks, name.upper()) is block_format


@pytest.mark.parametrize("name", MX)
def test_every_mode_is_the_law_at_the_boundaries(name: str) -> None:
    spec, element = MX[name], BLOCK_FORMATS[name].element
    x = padded_rows(np.concatenate([boundary_blocks(spec), random_blocks()]), 2048)
    for mode, actual in all_modes()(x, element).items():
        assert_same(actual, spec_blocks(x, spec, mode), x, mode)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MX)
def test_constant_formats_are_the_law(name: str) -> None:
    spec, block_format = MX[name], BLOCK_FORMATS[name]
    x = padded_rows(np.concatenate([boundary_blocks(spec), random_blocks()]), 2048)
    assert_same(jax.jit(lambda v: round_blocks(v, block_format))(x), spec_blocks(x, spec), x)
    scales = jax.jit(lambda v: block_scales(v, block_format))(x)
    assert_same(scales, spec_scales(x, spec).astype(np.float32)[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("name", MX)
def test_every_mode_is_the_law_in_float64(name: str) -> None:
    spec, element = MX[name], BLOCK_FORMATS[name].element
    wide = np.ldexp(
        np.random.default_rng(2).normal(size=(8, 32)), np.array([-1070, -1022, -140, -127, 0, 126, 140, 1000])[:, None]
    )
    x = np.concatenate([boundary_blocks(spec, "float64")[::13], quiet(random_bits(4 * 32, 3, "float64")).reshape(4, 32), wide])
    x = padded_rows(x, 128)
    with scope("float64"):
        for mode, actual in all_modes()(x, element).items():
            expected = np.array([spec_block(row.tolist(), spec, mode) for row in x])
            assert_same(actual, expected, x, mode)


def test_a_subnormal_survives_beside_its_scale() -> None:
    x = np.float32(2.0**-149) * np.arange(1, 5, dtype=np.float32)
    assert_same(round_blocks(x, blocks.MXFP8_E5M2), np.float32(2.0**-143) * np.zeros(4, np.float32))
    assert_same(round_blocks(x, blocks.MXFP8_E5M2, mode=pl.upward), np.full(4, 2.0**-143, np.float32))
    x = np.float32(2.0**-120) * np.array([1, 2.0**-18], np.float32)
    assert_same(round_blocks(x, blocks.MXFP8_E5M2), x)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shape", [(1,), (70,), (2, 33, 16)])
def test_any_axis(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32) * np.float32(9)
    spec = MX["mxfp4"]
    for axis in range(-len(shape), len(shape)):
        blocked = in_blocks(x, 32, axis)
        expected = out_of_blocks(spec_blocks(blocked, spec), shape[axis], axis)
        assert_same(round_blocks(x, blocks.MXFP4, axis), expected, x, f"axis {axis}")
        scales = np.moveaxis(spec_scales(blocked, spec), -1, axis).astype(np.float32)
        assert_same(block_scales(x, blocks.MXFP4, axis), scales)
        expected = out_of_blocks(nvfp4(in_blocks(x, 16, axis)), shape[axis], axis)
        assert_same(round_blocks(x, blocks.NVFP4, axis), expected, x, f"axis {axis}")


def test_an_axis_of_length_zero_has_no_blocks() -> None:
    for block_format in (blocks.MXFP4, blocks.NVFP4):
        assert round_blocks(jnp.zeros((2, 0)), block_format).shape == (2, 0)
        assert block_scales(jnp.zeros((2, 0)), block_format).shape == (2, 0)
        assert round_blocks(jnp.zeros((0, 3)), block_format).shape == (0, 3)


# gfloat.

# Where gfloat 0.5 is not the specification: (a) it takes the floor of a float log2, which for the numbers just below a power of
# two is that power, so that the scale is twice as large; (b) in INT8 it uses the code of -2; (c) its block of infinities and
# NaNs raises, in formats that have neither.
GFLOAT = {
    "mxfp8_e4m3": gfloat.formats.format_info_mxfp8_e4m3,
    "mxfp8_e5m2": gfloat.formats.format_info_mxfp8_e5m2,
    "mxfp6_e2m3": gfloat.formats.format_info_mxfp6_e2m3,
    "mxfp6_e3m2": gfloat.formats.format_info_mxfp6_e3m2,
    "mxfp4": gfloat.formats.format_info_mxfp4_e2m1,
    "mxint8": gfloat.formats.format_info_mxint8,
}
GFLOAT_MODES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "upward": gfloat.RoundMode.TowardPositive,
}


def gfloat_block(row: np.ndarray, name: str, mode: str = "nearest_even") -> np.ndarray:
    scale = gfloat.block.compute_scale_amax
    return gfloat.quantize_block(GFLOAT[name], row.astype(np.float64), scale, GFLOAT_MODES[mode]).astype(row.dtype)


@pytest.mark.parametrize("name", MX)
def test_gfloat_agrees(name: str) -> None:
    x = np.concatenate([boundary_blocks(MX[name])[:60:7], random_blocks()[64::90]])
    x = x[np.isfinite(x).all(axis=-1)]
    if name == "mxint8":
        # (b): what would become -2 in two's complement is left out.
        with np.errstate(invalid="ignore"):
            x = x[(x / spec_scales(x, MX[name])[:, None] > -1.98).all(axis=-1)]
    assert x.shape[0] > 10
    for mode in GFLOAT_MODES:
        expected = np.array([gfloat_block(row, name, mode) for row in x])
        actual = np.array(all_modes()(padded_rows(x, 2048), BLOCK_FORMATS[name].element)[mode])[: x.shape[0]]
        assert_same(actual, expected, x, mode)


def test_gfloat_doubles_the_scale_below_a_power_of_two() -> None:
    below = np.nextafter(np.float32(2.0**20), np.float32(0))
    assert gfloat.block.compute_scale_amax(2, np.array([below])) == 2.0**18
    assert block_scales(np.array([below]), blocks.MXFP4).tolist() == [2.0**17]


# The formula of the specification's authors: microsoft/microxcaling, mx/mx_ops.py and mx/elemwise_ops.py, here in numpy with
# round="even". It departs from the law above where the floor of a float32 log2 is off, where a scale above 2^127 (which float32
# cannot ask for) becomes NaN instead of staying at 2^127, and in its default round="nearest", which takes ties away from zero.


def authors_formula(x: np.ndarray, ebits: int, bits: int, emax: int, largest: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        magnitude = np.abs(x).max(axis=-1, keepdims=True)
        shared = np.floor(np.log2(np.where(magnitude == 0, 2.0**-126, magnitude))) - emax
        shared = np.where(shared > 127, np.nan, np.maximum(shared, -127))
        scaled = x / 2.0**shared
        own = np.maximum(np.floor(np.log2(np.abs(scaled) + (scaled == 0))), 2 - 2.0 ** (ebits - 1)) if ebits else 0.0
        steps = np.abs(scaled) / 2.0**own * 2.0 ** (bits - 2)
        even = np.floor(steps + 0.5) - ((steps - 0.5) % 2 == 0)
        rounded = np.clip(np.sign(scaled) * even / 2.0 ** (bits - 2) * 2.0**own, -largest, largest)
        return rounded * 2.0**shared


AUTHORS = {
    "mxfp8_e4m3": (4, 5, 8, 448.0),
    "mxfp8_e5m2": (5, 4, 15, 57344.0),
    "mxfp6_e2m3": (2, 5, 2, 7.5),
    "mxfp6_e3m2": (3, 4, 4, 28.0),
    "mxfp4": (2, 3, 2, 6.0),
    "mxint8": (0, 8, 0, 127 / 64),
}


@pytest.mark.parametrize("name", MX)
def test_the_formula_of_the_authors_agrees(name: str) -> None:
    x = padded_rows(np.concatenate([boundary_blocks(MX[name]), random_blocks()]), 2048)
    # In float64 its log2 is right for every float32 number, and its infinities and NaNs make a NaN of the block as here.
    expected = authors_formula(x.astype(np.float64), *AUTHORS[name]).astype(np.float32)
    actual = np.array(all_modes()(x, BLOCK_FORMATS[name].element)["nearest_even"])
    assert_same(actual + np.float32(0), expected + np.float32(0), x)  # its sign(x) * 0 loses the sign of -0


# NVFP4.


def to_bits(value: Fraction, precision: int) -> Fraction:
    """To nearest even with so many significand bits and any exponent."""
    if value == 0:
        return value
    step = Fraction(2) ** (exponent(abs(value)) - precision + 1)
    return round(value / step) * step  # Python rounds ties to even


def nvfp4_scales(tensor: np.ndarray, precision: int, tensor_scale: bool = True) -> list[Fraction]:
    """The product of block scale and tensor scale for each block of a finite tensor of shape (blocks, size)."""
    largest = [max(abs(Fraction(float(v))) for v in row) for row in tensor]
    whole = max(largest)
    shared = to_bits(to_bits(whole / 2688, precision), 24) if whole and tensor_scale else Fraction(1)
    relative = [to_bits(to_bits(v / 6, precision) / shared, precision) for v in largest]
    scales = [Fraction(round_exact(v, E4M3, "nearest_even")) for v in relative]  # type: ignore[arg-type]
    return [to_bits(s * shared, precision) for s in scales]


def nvfp4(x: np.ndarray, mode: str = "nearest_even", tensor_scale: bool = True) -> np.ndarray:
    """What a tensor of shape (..., size) means in NVFP4, its last axis the blocks."""
    if not np.isfinite(x).all():
        return np.full_like(x, np.nan)
    carrier = cases.REGISTERED[x.dtype.name]
    tensor, rows = x.reshape(-1, x.shape[-1]), []
    for row, scale in zip(tensor, nvfp4_scales(tensor, carrier.precision, tensor_scale), strict=True):
        values = []
        for v in row.tolist():
            if scale == 0 or v == 0:
                values.append(math.copysign(0.0, v))
                continue
            element = round_exact(to_bits(Fraction(v) / scale, carrier.precision), E2M1, mode)  # type: ignore[arg-type]
            product = to_bits(Fraction(element) * scale, carrier.precision)
            product = max(min(product, Fraction(carrier.largest)), -Fraction(carrier.largest))
            values.append(round_exact(product, carrier, "nearest_even") if product else element)  # type: ignore[arg-type]
        rows.append(values)
    return np.array(rows).astype(x.dtype).reshape(x.shape)


def nvfp4_tensors(carrier: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    ties = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], (8, 16)) * rng.choice([-1, 1], (8, 16))
    ties[:, 0] = 6
    fading = rng.normal(size=(12, 16)) * 10.0 ** -np.arange(12)[:, None]
    smallest = float(np.finfo(carrier).smallest_subnormal)
    subnormal = rng.integers(-40, 40, (8, 16)) * smallest
    mixed = np.where(rng.uniform(size=(8, 16)) < 0.5, subnormal, rng.normal(size=(8, 16)))
    zeros = np.where(np.arange(128).reshape(8, 16) % 3, 0.0, -0.0)
    huge = rng.uniform(-1, 1, (8, 16)) * float(np.finfo(carrier).max)
    huge[0, 0] = np.finfo(carrier).max
    tensors = {
        "normal": rng.normal(size=(8, 16)),
        "ties": ties * 448 * 2.0**-20,
        "fading": fading,
        "subnormal": subnormal,
        "mixed": mixed,
        "zeros": zeros,
        "huge": huge,
        "tiny": rng.normal(size=(8, 16)) * 2.0**-118,
    }
    return {name: tensor.astype(carrier) for name, tensor in tensors.items()}


@cache
def nvfp4_modes() -> Callable[..., Any]:
    return jax.jit(lambda x: {name: round_blocks(x, blocks.NVFP4, mode=mode) for name, mode in MODES.items()})


def test_nvfp4_is_the_table() -> None:
    assert tuple(blocks.NVFP4.element) == tuple(E2M1)
    assert tuple(blocks.NVFP4.scale) == tuple(E4M3)
    assert (blocks.NVFP4.size, blocks.NVFP4.tensor_scale) == (16, True)
    assert BLOCK_FORMATS["nvfp4"] is blocks.NVFP4
    assert set(BLOCK_FORMATS) == {*MX, "nvfp4"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", nvfp4_tensors("float32"))
def test_nvfp4_is_the_published_formula(name: str, carrier: str) -> None:
    x = cases.padded(nvfp4_tensors(carrier)[name], 12 * 16).reshape(12, 16)
    with scope(carrier):
        for mode, actual in nvfp4_modes()(x).items():
            assert_same(actual, nvfp4(x, mode), x, mode)
        scales = np.array(
            [
                round_exact(s, cases.REGISTERED[carrier], "nearest_even")
                for s in nvfp4_scales(x, 24 if carrier == "float32" else 53)
            ]
        )  # type: ignore[arg-type]
        assert_same(block_scales(x, blocks.NVFP4), scales.astype(carrier)[:, None])


def test_nvfp4_on_many_tensors() -> None:
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(40, 4, 16)) * 2.0 ** rng.integers(-6, 6, (40, 4, 1))).astype(np.float32)
    x[20:] = np.asarray(x[20:], jnp.bfloat16).astype(np.float32)
    actual = jax.jit(jax.vmap(lambda v: round_blocks(v, blocks.NVFP4)))(x)
    assert_same(actual, np.stack([nvfp4(v) for v in x]), x)


def test_nvfp4_scales_round_as_the_formula_does_where_the_last_bit_decides() -> None:
    rng = np.random.default_rng(10)
    values = all_values(E4M3)[all_values(E4M3) >= 0]
    for whole in rng.uniform(1, 2, 4).astype(np.float32):
        near = (6 * (whole / 2688) * (values[1:] + values[:-1]) / 2).astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(9)), [whole]])
        x = np.where(np.arange(16) == 3, near.astype(np.float32)[:, None], np.float32(0))
        expected = np.array([float(s) for s in nvfp4_scales(x, 24)]).astype(np.float32)
        assert_same(jax.jit(lambda v: block_scales(v, blocks.NVFP4))(x)[:, 0], expected)


def test_nvfp4_by_hand() -> None:
    # g = 2688/2688 = 1. The second block: 3/6 = 0.5 is in E4M3; its elements are 6, 1 and a tie of 0.25, which goes to 0. The
    # third: 0.001/6 is below half of 2^-9 and its scale is 0.
    x = np.zeros((3, 16), np.float32)
    x[0, 0], x[1, :3], x[2, :2] = 2688.0, (3.0, 0.5, -0.125), (0.001, -0.001)
    expected = np.zeros((3, 16), np.float32)
    expected[0, 0], expected[1, :3], expected[2, :2] = 2688.0, (3.0, 0.5, -0.0), (0.0, -0.0)
    assert_same(round_blocks(x, blocks.NVFP4), expected)
    assert block_scales(x, blocks.NVFP4).tolist() == [[448.0], [0.5], [0.0]]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_spoils_what_it_shares_a_scale_with(bad: float) -> None:
    x = np.ones((2, 64), np.float32)
    x[0, 3] = bad
    spoiled = np.asarray(round_blocks(x, blocks.MXFP4))
    assert np.isnan(spoiled[0, :32]).all()
    assert (spoiled[0, 32:] == 1).all()
    assert (spoiled[1] == 1).all()
    assert np.isnan(round_blocks(x, blocks.NVFP4)).all()
    assert np.isnan(block_scales(x, blocks.NVFP4)).all()


# Formats of one's own.


def test_one_level_of_fractional_scales() -> None:
    block_format = blocks.NVFP4._replace(tensor_scale=False)
    x = np.concatenate([nvfp4_tensors("float32")[name] for name in ("normal", "fading", "zeros", "subnormal")])
    assert_same(round_blocks(x, block_format), nvfp4(x, tensor_scale=False), x)
    # With a scale of float32's range nothing is out of reach, and 8 bits of scale put the largest value within 2^-8 of itself.
    x = random_bits(16 * 64, 7).reshape(64, 16)
    x = x[np.isfinite(x).all(axis=-1)]
    rounded = round_blocks(x, BlockFormat(element=pl.fixed_point(0, 7), scale=pl.BFLOAT16, size=16))
    at = np.abs(x).argmax(axis=-1)[:, None]
    largest = np.take_along_axis(x, at, -1).astype(np.float64)
    error = np.abs(np.take_along_axis(np.asarray(rounded), at, -1) - largest) / np.abs(largest)
    assert error.max() <= 2.0**-8 + 2.0**-7


def test_a_scale_format_that_does_not_saturate_gives_nan() -> None:
    narrow = pl.Format(1, -2, 4.0, 4.0, subnormals=False, zeros=0)
    x = np.array([[1.0, 0.5], [17.0, -100.0], [0.001, 0.0]], np.float32)
    block_format = MXFP4_SIZE_2._replace(scale=narrow)
    assert block_scales(x, block_format).tolist() == [[0.25], [4.0], [0.25]]
    assert round_blocks(x, block_format).tolist() == [[1.0, 0.5], [16.0, -24.0], [0.0, 0.0]]
    strict = block_format._replace(scale=narrow._replace(overflow=math.nan))
    assert_same(block_scales(x, strict), np.array([[0.25], [np.nan], [0.25]], np.float32))
    assert_same(round_blocks(x, strict)[1], np.full(2, np.nan, np.float32))
    fractions = BlockFormat(element=pl.FLOAT4_E2M1FN, scale=pl.FLOAT8_E4M3FN, size=2)
    for scale in (pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2):  # which overflow to NaN and to infinity
        overflowing = fractions._replace(scale=scale)
        assert np.isnan(round_blocks(np.array([6.0, 9e9], np.float32), overflowing, mode=pl.upward)).all()
        assert np.isnan(block_scales(np.array([6.0, 9e9], np.float32), overflowing)).all()


def test_elements_are_clamped_whatever_their_format_says() -> None:
    x = random_blocks()
    plain = blocks.MXFP8_E4M3._replace(element=pl.FLOAT8_E4M3FN)
    assert_same(round_blocks(x, plain), round_blocks(x, blocks.MXFP8_E4M3), x)


def test_block_formats_are_values() -> None:
    again = BlockFormat(element=pl.saturating(pl.FLOAT8_E4M3FN), scale=pl.saturating(pl.FLOAT8_E8M0FNU), size=32)
    assert again == blocks.MXFP8_E4M3
    assert hash(again) == hash(blocks.MXFP8_E4M3)
    assert len({*BLOCK_FORMATS.values(), again}) == len(BLOCK_FORMATS)
    unlike = again._replace(element=pl.FLOAT8_E4M3FN)
    assert unlike == again._replace(element=pl.FLOAT8_E4M3FN)
    assert unlike != again
    rounding = jax.jit(round_blocks, static_argnums=1)
    x = random_blocks()
    assert_same(rounding(x, again), rounding(x, blocks.MXFP8_E4M3))
    assert rounding._cache_size() == 1  # type: ignore[attr-defined]


# Transformations.


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "nvfp4"])
def test_jit_and_vmap_change_nothing(name: str) -> None:
    block_format = BLOCK_FORMATS[name]
    x = np.concatenate([boundary_blocks(MX.get(name, MX["mxfp4"]))[::9], random_blocks()[64:]])[:96].reshape(12, 8, 32)
    x = np.where(np.isfinite(x), x, np.float32(1)) if name == "nvfp4" else x
    eager = np.stack([round_blocks(v, block_format, 0) for v in x[:3]])
    assert_same(jax.jit(jax.vmap(lambda v: round_blocks(v, block_format, 0)))(x)[:3], eager, x[:3])
    assert_same(jax.vmap(lambda v: round_blocks(v, block_format, 0))(x)[:3], eager, x[:3])
    if name != "nvfp4":
        assert_same(round_blocks(x, block_format, 1)[:3], eager, x[:3])
    inside = jax.jit(lambda v: round_blocks(v * 3, block_format) / 6)(x)
    outside = np.asarray(round_blocks(np.asarray(jnp.asarray(x) * 3), block_format))
    assert_same(inside, np.asarray(jnp.asarray(outside) / 6), x)


WAYS = ("nearest_even", "upward", "stochastic")


@pytest.mark.sampled("mxfp8_e4m3", "mxfp4", "nvfp4")
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_known_elements_round_as_traced_ones_do(name: str) -> None:
    """Two laws: v / X rounded and multiplied by X, whatever the elements; and where they are known, v where it is."""
    block_format, key = BLOCK_FORMATS[name], jax.random.key(3)

    @jax.jit
    def every(x: Any, element: Any) -> dict[str, Any]:
        given = block_format._replace(element=element or block_format.element)
        return {way: round_blocks(x, given, mode=pl.MODES[way], key=key) for way in WAYS}

    tiny = np.ldexp(np.random.default_rng(1).normal(size=(64, 32)), np.arange(-149, -85)[:, None]).astype(np.float32)
    x = np.concatenate([random_blocks(), tiny]).reshape(-1)[:30_700].reshape(10, 3070)  # a loop, with short last blocks
    traced = every(x, jax.tree.map(jnp.asarray, block_format.element))
    for way, actual in every(x, None).items():
        assert_same(actual, traced[way], x, f"{name}, {way}")


def test_known_elements_of_tensors_of_every_size() -> None:
    """As above in NVFP4, whose products with the power of two of a whole tensor are special where elements are known."""

    @jax.jit
    def every(tensors: Any, element: Any) -> dict[str, Any]:
        given = blocks.NVFP4._replace(element=element or blocks.NVFP4.element)
        modes = {way: partial(round_blocks, block_format=given, mode=pl.MODES[way]) for way in ("nearest_even", "upward")}
        return {way: jax.vmap(rounding)(tensors) for way, rounding in modes.items()}

    rng = np.random.default_rng(1)
    wide = rng.normal(size=(277, 48)) * 2.0 ** -rng.integers(0, 30, (277, 48))
    x = np.ldexp(wide, np.arange(-151, 126)[:, None]).astype(np.float32)
    traced = every(x, jax.tree.map(jnp.asarray, blocks.NVFP4.element))
    for way, actual in every(x, None).items():
        assert_same(actual, traced[way], x, way)


def test_one_compilation_serves_many_element_formats() -> None:
    count = 0

    @jax.jit
    def rounding(x: Any, element: pl.Format) -> Any:
        nonlocal count
        count += 1
        return jax.vmap(lambda e: round_blocks(x, blocks.NVFP4._replace(element=e)))(element)

    names = ("mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")
    x = random_blocks()[64:]
    stacked = rounding(x, pl.stack_formats([BLOCK_FORMATS[name].element for name in names]))
    for name, actual in zip(names, stacked, strict=True):
        assert_same(actual, round_blocks(x, blocks.NVFP4._replace(element=BLOCK_FORMATS[name].element)), x, name)
    assert count == 1


def test_the_gradient_is_one() -> None:
    name = "nvfp4"
    x = jnp.asarray(random_blocks()[64:80])

    def loss(v: Any) -> Any:
        return jnp.sum(round_blocks(v, BLOCK_FORMATS[name], mode=pl.stochastic, key=jax.random.key(0)))

    assert_same(jax.jit(jax.grad(loss))(x), np.ones(x.shape, np.float32))
    rounded, tangent = jax.jvp(lambda v: round_blocks(v, BLOCK_FORMATS[name]), (x,), (3 * x,))
    assert_same(tangent, 3 * x)
    assert_same(rounded, round_blocks(x, BLOCK_FORMATS[name]))
    # Through the square the value that was rounded appears, and its own derivative is the identity again.
    second = jax.jit(jax.hessian(lambda v: jnp.sum(round_blocks(v, BLOCK_FORMATS[name]) ** 2)))(x[0, :3])
    assert_same(second, 2 * np.eye(3, dtype=np.float32))


# Stochastic rounding of the elements.


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["mxfp8_e5m2", "nvfp4"])
def test_stochastic_rounding_is_fair(name: str) -> None:
    draws, block_format = 4096, BLOCK_FORMATS[name]
    x = np.random.default_rng(8).normal(size=16).astype(np.float32)
    below = np.minimum(*(np.asarray(round_blocks(x, block_format, mode=mode)) for mode in (pl.downward, pl.upward)))
    above = np.maximum(*(np.asarray(round_blocks(x, block_format, mode=mode)) for mode in (pl.downward, pl.upward)))
    rows = np.tile(x, (draws, 1))
    rounded = np.asarray(round_blocks(rows, block_format, mode=pl.stochastic, key=jax.random.key(1)))
    assert ((rounded == below) | (rounded == above)).all()
    inside = (below < x) & (x < above)
    chance = (x - below)[inside] / (above - below)[inside]
    # Six standard deviations of a binomial share; one in 10^8 tests of 16 entries would fail by chance.
    bound = 6 * np.sqrt(chance * (1 - chance) / draws) + 1e-6
    assert (np.abs((rounded == above)[:, inside].mean(axis=0) - chance) <= bound).all()


def test_one_key_gives_one_result() -> None:
    x = np.random.default_rng(9).normal(size=(64, 40)).astype(np.float32)

    def rounded(seed: int) -> np.ndarray:
        return np.asarray(round_blocks(x, blocks.MXFP4, mode=pl.stochastic, key=jax.random.key(seed)))

    assert_same(rounded(0), rounded(0))
    assert (rounded(0) != rounded(1)).any()


# Mistakes.

X = jnp.ones((3, 4))
TRACED = blocks.NVFP4._replace(scale=pl.Format(*map(jnp.asarray, pl.FLOAT8_E4M3FN)))
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "format": (lambda: round_blocks(X, pl.FLOAT8_E4M3FN), TypeError, "must be a BlockFormat such as precisionlab.MXFP8_E4M3"),  # type: ignore[arg-type]
    "name": (lambda: block_scales(X, "mxfp4"), TypeError, "block_scales: block_format must be a BlockFormat"),  # type: ignore[arg-type]
    "axis": (
        lambda: round_blocks(X, blocks.MXFP4, 2),
        ValueError,
        "axis=2 is out of range for x of shape (3, 4); allowed are -2 to 1",
    ),
    "negative": (lambda: block_scales(X, blocks.MXFP4, -3), ValueError, "block_scales: axis=-3 is out of range"),
    "axes": (
        lambda: round_blocks(X, blocks.MXFP4, (0, 1)),
        TypeError,
        "axis must be a whole number, one axis alone; got (0, 1)",
    ),  # type: ignore[arg-type]
    "scalar": (lambda: round_blocks(jnp.float32(1), blocks.MXFP4), ValueError, "has no axis to cut into blocks"),
    "number": (lambda: round_blocks(1.0, blocks.MXFP4), ValueError, "has no axis to cut into blocks"),  # type: ignore[arg-type]
    "dtype": (lambda: round_blocks(X.astype(jnp.bfloat16), blocks.MXFP4), TypeError, "round_blocks: values of dtype bfloat16"),
    "mode": (lambda: round_blocks(X, blocks.MXFP4, mode="upward"), TypeError, "round_blocks: mode must be a rounding function"),  # type: ignore[arg-type]
    "no key": (lambda: round_blocks(X, blocks.MXFP4, mode=pl.stochastic), ValueError, "pass key=jax.random.key(seed)"),
    "key": (lambda: round_blocks(X, blocks.MXFP4, mode=pl.stochastic, key=3), TypeError, "key must be a JAX random key"),  # type: ignore[arg-type]
    "size": (lambda: round_blocks(X, blocks.MXFP4._replace(size=0)), ValueError, "1 or more; got 0"),
    "element": (
        lambda: round_blocks(X, blocks.MXFP4._replace(element=4)),
        TypeError,
        "element of a BlockFormat must be a Format",
    ),  # type: ignore[arg-type]
    "bare": (
        lambda: round_blocks(X, blocks.MXFP4._replace(element=pl.FLOAT8_E8M0FNU)),
        ValueError,
        "must have a zero and a sign",
    ),
    "wide": (
        lambda: round_blocks(X, blocks.MXFP4._replace(element=pl.FLOAT64)),
        ValueError,
        "does not fit its carrier float32",
    ),
    "traced": (lambda: round_blocks(X, TRACED), TypeError, "must be plain numbers"),
    "levels": (lambda: round_blocks(X, blocks.MXFP4._replace(tensor_scale=True)), ValueError, "2 or more significand bits"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_raise_before_tracing(name: str) -> None:
    call, error, sentence = MISTAKES[name]
    with pytest.raises(error, match=re.escape(sentence)):
        call()


# The laws of a scale that is a power of two, from what each is defined by.


def law_exponent(largest: Fraction, spec: Spec, law: str) -> int:
    """The exponent that a law gives a largest value above zero."""
    top = Fraction(spec.numbers.largest)
    floor = exponent(largest) - spec.emax
    if law == "floor":
        return floor
    if law == "round_up":  # the smallest power of two with which nothing is clamped
        return next(k for k in range(floor - 1, floor + 3) if top * Fraction(2) ** k >= largest)
    if law == "ceil":  # ceil(log2 max|v|) - emax
        return next(k for k in range(floor - 1, floor + 3) if Fraction(2) ** (k + spec.emax) >= largest)
    # even: the elements' grid beside their largest, going on; ties at the binade's end go up
    values = all_values(spec.numbers)
    step = top - Fraction(float(values[-2]))
    scaled = largest / Fraction(2) ** floor
    return exponent((scaled / step + Fraction(1, 2)).__floor__() * step) - spec.emax + floor


def law_block(block: list[float], spec: Spec, law: str) -> tuple[float, list[float]]:
    """The scale of a block and the values it means."""
    if not all(map(math.isfinite, block)):
        return math.nan, [math.nan] * len(block)
    largest = max(abs(Fraction(v)) for v in block)
    scale = Fraction(2) ** min(max(law_exponent(largest, spec, law) if largest else -127, -127), 127)
    elements = [round_exact(Fraction(v) / scale if v else v, spec.numbers, "nearest_even") for v in block]  # type: ignore[arg-type]
    return float(scale), [float(Fraction(p) * scale) if p else p for p in elements]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("law", pl.SCALE_LAWS)
@pytest.mark.parametrize("name", MX)
def test_every_scale_law_is_its_definition(name: str, law: str) -> None:
    spec, block_format = MX[name], BLOCK_FORMATS[name]._replace(law=pl.SCALE_LAWS[law])
    top, emax = spec.numbers.largest, spec.emax
    step = top - float(all_values(spec.numbers)[-2])
    edges = np.array([2.0**emax, top, top + step / 2, top + step / 4, 2.0 ** (emax + 1), top / 2, 1.1 * 2.0**emax])
    edges = np.concatenate([edges, np.nextafter(edges, 0, dtype=np.float32), np.nextafter(edges, 9e9, dtype=np.float32)])
    scales = np.array([-140, -127, -1, 0, 20, 119 - emax])[:, None]
    largest = np.concatenate([np.ldexp(edges, scales).ravel(), [0.0, np.inf, np.nan, 3.4e38, 2.0**-149, 2.0**-126]])
    x = np.stack([largest, -largest / 3, largest / 64, np.zeros_like(largest)], axis=1).astype(np.float32)
    x = np.concatenate([x, random_blocks()[::40, :4]])
    right = [law_block(row.tolist(), spec, law) for row in x]
    with np.errstate(over="ignore"):
        values = np.array([block for _, block in right])
        clipped = np.clip(values, -np.finfo(np.float32).max, np.finfo(np.float32).max).astype(np.float32)
    assert_same(jax.jit(lambda v: round_blocks(v, block_format))(x), clipped, x)
    assert_same(block_scales(x, block_format), np.array([[scale] for scale, _ in right], np.float32))


def test_rounding_up_clamps_nothing_and_the_specification_a_quarter() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 32)).astype(np.float32)
    most = np.abs(x).max(axis=1)
    clamped = {
        law: float(np.mean(most > 6 * np.asarray(block_scales(x, blocks.MXFP4._replace(law=pl.SCALE_LAWS[law])))[:, 0]))
        for law in pl.SCALE_LAWS
    }
    assert clamped["round_up"] == clamped["ceil"] == 0
    assert clamped["even"] < clamped["floor"]
    # An issue of microsoft/microxcaling: 957 of a block in E4M3 becomes 896, since 2 * 448 is the end of it.
    pair = [
        round_blocks(jnp.array([957.0, 1.0]), blocks.MXFP8_E4M3._replace(law=law))[0]
        for law in (pl.scale_floor, pl.scale_round_up)
    ]
    assert [float(v) for v in pair] == [896.0, 960.0]


def test_round_up_is_the_law_of_jax() -> None:
    """`jax.nn.scaled_matmul`'s quantizer: max|v| / M in float32, to E8M0 rounding up."""
    from jax._src.cudnn import scaled_matmul_stablehlo

    x = np.random.default_rng(5).normal(size=(256, 32)).astype(np.float32)
    theirs = scaled_matmul_stablehlo.cast_to_e8m0_with_rounding_up(np.abs(x).max(axis=1) / np.float32(448))
    ours = np.asarray(block_scales(x, blocks.MXFP8_E4M3._replace(law=pl.scale_round_up)))[:, 0]
    assert (np.asarray(theirs).view(np.uint8).astype(int) - 127 == np.log2(ours)).all()


def test_a_law_may_be_traced_over_element_formats_and_has_a_name() -> None:
    x = np.float32([[7.0, 0.4], [957.0, 3.0]])
    up = MXFP4_SIZE_2._replace(law=pl.scale_round_up)
    rounded = jax.vmap(lambda element: round_blocks(x, up._replace(element=element)))(
        pl.stack_formats([pl.FLOAT4_E2M1FN, pl.saturating(pl.FLOAT8_E4M3FN)])
    )
    assert_same(rounded[0], round_blocks(x, up))
    assert_same(rounded[1], round_blocks(x, blocks.MXFP8_E4M3._replace(size=2, law=pl.scale_round_up)))
    from precisionlab.arithmetic.policy import describe

    assert describe(pl.Policy(weights=pl.MXFP4._replace(law=pl.scale_round_up))) == "weights mxfp4 (scales: round_up)"


def test_wrong_laws_are_sentences() -> None:
    x = jnp.ones(4)
    with pytest.raises(TypeError, match=r"pass the function: precisionlab\.scale_round_up"):
        round_blocks(x, blocks.MXFP4._replace(law="round_up"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the laws are floor, even, round_up, ceil"):
        block_scales(x, blocks.MXFP4._replace(law=None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this one's scales are fractions"):
        round_blocks(x, blocks.NVFP4._replace(law=pl.scale_round_up))
