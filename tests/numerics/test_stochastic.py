"""Stochastic rounding: its law exactly, by enumerating random words; its generators, by statistics with stated bounds.

Every key is fixed, so that a test passes always or never. Bounds are in standard deviations, 5 unless said: a single
comparison would fail about once in two million choices of the key.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.numerics.randomness import first_row, key_rows, next_row
from tests import cases
from tests.cases import FORMATS, assert_same, scope
from tests.oracle import round_chance, ulp_exact

SIGMAS = 5.0
GENERATORS: dict[str, Callable[..., Any]] = {"counter_hash": pl.Stochastic().generator, "threefry": jax.random.bits}


WINDOW = 8


def every_window(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Words in which every run of 8 neighbouring bits takes each of its 256 values once: a byte, repeated."""
    del key
    byte = np.arange(2**WINDOW, dtype=np.uint8)
    return jnp.broadcast_to(jnp.asarray(np.repeat(byte, np.dtype(dtype).itemsize).view(dtype)), shape)


def assert_law(fmt: pl.Format, bits: int | None, carrier: str) -> None:
    """The share of all random words for which |x| goes up is the law's probability, to the last bit."""
    inputs = np.array(sample_inputs(fmt, carrier), carrier)
    assert inputs.size > 12
    mode = pl.Stochastic(bits, every_window)
    given = np.broadcast_to(inputs[:, None], (inputs.size, 2**WINDOW))
    for x, row in zip(inputs, np.asarray(pl.round_to(given, fmt, mode, key=jax.random.key(0))), strict=True):
        chance = round_chance(float(x), fmt, bits)
        up = cases.words(row) == cases.words(np.array(chance.up, carrier))
        down = cases.words(row) == cases.words(np.array(chance.down, carrier))
        assert (up | down).all(), (x, chance, np.unique(row))
        if chance.up == chance.down:
            assert up.all(), (x, chance)
        elif chance.probability:
            assert Fraction(int(up.sum()), 2**WINDOW) == chance.probability, (x, chance)
        else:
            assert down.all(), (x, chance)


def sample_inputs(fmt: pl.Format, carrier: str) -> list[float]:
    """Values whose discarded fractions have at most 8 bits: near one, at both ends of the range, below 2^emin."""
    tops = [1.0, 2.0 ** int(fmt.emin), 2.0 ** (int(fmt.emin) + 1), float(fmt.largest)]
    inputs = []
    for base in [b for b in tops if abs(b) <= fmt.largest]:
        ulp = float(ulp_exact(base, fmt))
        inputs += [base + k / 16 * ulp for k in (0, 1, 3, 7, 8, 9, 15)]
        inputs += [-(base - k / 32 * ulp) for k in (1, 5, 16, 31)]
    smallest = 2.0 ** (int(fmt.emin) - (int(fmt.precision) - 1 if fmt.subnormals else 0))
    inputs += [k / 16 * smallest for k in (1, 2, 9, 15, 17, 31)] + [-3 / 64 * smallest]
    held = [v for v in inputs if float(np.array(v, carrier)) == v]
    return [v for v in held if (round_chance(v, fmt).probability * 2**WINDOW).denominator == 1]


LOW = ["float16", "float8_e4m3fn", "float8_e5m2", "fixed_2_5", "float16_no_subnormals", "emin_positive"]
NAMES = [*LOW[:-1], "bfloat16", "float8_e5m2fnuz", "float6_e3m2fn", "one_bit"]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("carrier", cases.CARRIERS)
@pytest.mark.parametrize("name", NAMES)
def test_probability_is_the_discarded_fraction_exactly(name: str, carrier: str) -> None:
    with scope(carrier):
        assert_law(FORMATS[name], None, carrier)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", NAMES)
def test_r_bits_round_the_probability_down(name: str, bits: int) -> None:
    assert_law(FORMATS[name], bits, "float32")


def test_below_one_part_in_two_to_the_r_everything_is_lost() -> None:
    key = jax.random.key(0)
    for bits in (1, 4, 8):
        for ulp in (2.0**-7, 2.0**-7 * 2.0**20):
            one = np.float32(ulp * 2**7)
            below = one + np.float32(ulp * 2.0**-bits * (1 - 2.0**-6))
            at = np.full(4096, one + np.float32(ulp * 2.0**-bits), np.float32)
            lost = pl.round_to(np.full(4096, below, np.float32), pl.BFLOAT16, pl.stochastic_bits(bits), key=key)
            assert (np.asarray(lost) == one).all()
            assert (np.asarray(pl.round_to(at, pl.BFLOAT16, pl.stochastic_bits(bits), key=key)) != one).any()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", LOW)
def test_far_below_the_smallest_value_the_chance_is_resolved_to_31_bits(name: str) -> None:
    """P = |x| / smallest, for words on both sides of where the decision must turn; the low 31 bits of a word decide."""
    fmt = FORMATS[name]
    smallest = float(ulp_exact(0.0, fmt))
    for exponent in (-8, -10, -17, -24, -30):
        for share in (2.0**exponent, 1.5 * 2.0**exponent):
            turn = round(share * 2**31)

            def generator(key: Any, shape: tuple[int, ...], dtype: Any, turn: int = turn) -> jax.Array:
                del key, shape
                return jnp.asarray([2**31 - turn - 1, 2**31 - turn, 2**31 - 1, 0], dtype)

            x = np.full(4, share * smallest, np.float32)
            rounded = pl.round_to(x, fmt, pl.Stochastic(None, generator), key=jax.random.key(0))
            assert_same(rounded, np.array([0, smallest, smallest, 0], np.float32), what=f"{name} {share}")


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2fnuz"])
def test_mean_and_variance(name: str, generator: str) -> None:
    """E = x, Var = |u| ulp - u^2 with u the distance to the neighbour below: within 5 standard errors."""
    fmt, count = FORMATS[name], 2**16
    mode = pl.Stochastic(generator=GENERATORS[generator])
    rounding = jax.jit(lambda x, key: pl.round_to(jnp.broadcast_to(x, (count,)), fmt, mode, key=key))
    smallest = 2.0 ** (fmt.emin - fmt.precision + 1)
    inputs = [1 + 0.3 * float(ulp_exact(1.0, fmt)), -3.1, 0.999 * float(fmt.largest)]
    inputs += [0.7 * smallest, 1e-3 * smallest, -2.6 * smallest]
    for seed, x in enumerate(np.array(inputs, np.float32)):
        down, up, probability = round_chance(float(x), fmt)
        p, gap = float(probability), abs(up - down)
        ups = (np.asarray(rounding(x, jax.random.key(seed)), np.float64) - down) / (up - down)
        assert set(np.unique(ups)) <= {0.0, 1.0}
        standard = math.sqrt(p * (1 - p) / count)
        assert abs(ups.mean() - p) <= SIGMAS * standard, (x, ups.mean(), p)
        u = abs(float(x) - down)
        variance = u * gap - u * u
        measured = ups.var() * gap**2
        fourth = p * (1 - p) * (1 - 3 * p * (1 - p)) * gap**4
        error = math.sqrt(max(fourth - variance**2, 0) / count) + variance / count
        assert abs(measured - variance) <= SIGMAS * error, (x, measured, variance)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("generator", GENERATORS)
def test_sums_of_many_different_values_are_unbiased(generator: str) -> None:
    """Among normals, subnormals and values far below, at once: the total error stays within 5 standard deviations."""
    mode = pl.Stochastic(generator=GENERATORS[generator])
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"):
        fmt = FORMATS[name]
        smallest = 2.0 ** (fmt.emin - fmt.precision + 1)
        for scale in (1.0, 3 * smallest, 0.1 * smallest, 2.0**-12 * smallest):
            draw = np.random.default_rng(7).normal(size=2**17)
            x = np.clip(draw * scale, -fmt.largest, fmt.largest).astype(np.float32)
            error = np.asarray(pl.round_to(x, fmt, mode, key=jax.random.key(11)), np.float64) - x
            magnitude = np.abs(x.astype(np.float64))
            ulp = np.asarray(pl.ulp(x, fmt), np.float64)
            u = np.fmod(magnitude, ulp)
            bound = SIGMAS * math.sqrt(np.sum(u * ulp - u * u))
            assert abs(error.sum()) <= bound, (name, scale)
            assert abs((error * np.sign(x)).sum()) <= bound, (name, scale)


def test_same_key_same_bits_and_different_keys_differ() -> None:
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    for mode in (pl.stochastic, pl.stochastic_bits(5), pl.Stochastic(generator=jax.random.bits)):
        rounded = [np.asarray(pl.round_to(x, pl.FLOAT8_E5M2, mode, key=jax.random.key(seed))) for seed in (0, 0, 1)]
        assert_same(rounded[0], rounded[1])
        share = np.mean(rounded[0] != rounded[2])
        assert 0.1 < share < 0.5


def test_typed_and_raw_keys_agree() -> None:
    x = np.random.default_rng(0).normal(size=512).astype(np.float32)
    typed = pl.round_to(x, pl.FLOAT8_E5M2, pl.stochastic, key=jax.random.key(5))
    assert_same(pl.round_to(x, pl.FLOAT8_E5M2, pl.stochastic, key=jax.random.PRNGKey(5)), typed)


# The generators: each bit fair, bytes uniform, neighbours, keys and rows unrelated.


@partial(jax.jit, static_argnums=(0, 2, 3))
def compiled_draw(generator: str, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return GENERATORS[generator](key, shape, dtype)


def draw(generator: str, key: jax.Array, shape: tuple[int, ...], dtype: Any = np.uint32) -> np.ndarray:
    return np.asarray(compiled_draw(generator, key, shape, dtype))


def bit_matrix(words: np.ndarray) -> np.ndarray:
    """One row of 0 and 1 for each bit position, the lowest first."""
    width = words.dtype.type(8 * words.dtype.itemsize)
    positions = np.arange(width, dtype=words.dtype)[:, None]
    return (words.reshape(1, -1) >> positions & words.dtype.type(1)).astype(np.int8)


def assert_uncorrelated(a: np.ndarray, b: np.ndarray, what: str) -> None:
    """Every bit position of a against every one of b: agreement within 6 standard deviations of one half."""
    signs_a, signs_b = (1.0 - 2.0 * bit_matrix(w).astype(np.float32) for w in (a, b))
    scores = np.abs(signs_a @ signs_b.T) / math.sqrt(a.size)
    assert scores.max() < 6, (what, scores.max(), np.unravel_index(scores.argmax(), scores.shape))


def assert_flat(counts: np.ndarray, what: str) -> None:
    """Chi-square of equal expectations, within 5 standard deviations of its own mean on either side."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    score = (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)
    assert abs(score) < SIGMAS, (what, score)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("carrier", ["uint32", "uint64"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_every_bit_is_fair_and_every_byte_uniform(generator: str, carrier: str) -> None:
    with jax.enable_x64(carrier == "uint64"):
        for seed in (0, 1, 2**31 - 1):
            words = draw(generator, jax.random.key(seed), (2**18,), np.dtype(carrier))
            assert words.dtype == carrier
            ones = bit_matrix(words).sum(axis=1, dtype=np.int64)
            assert (np.abs(ones - words.size / 2) < SIGMAS * math.sqrt(words.size) / 2).all(), (seed, ones)
            for position, byte in enumerate(words.view(np.uint8).reshape(words.size, -1).T):
                assert_flat(np.bincount(byte, minlength=256), f"byte {position}, seed {seed}")


@pytest.mark.parametrize("generator", GENERATORS)
def test_pairs_of_neighbours_are_uniform(generator: str) -> None:
    words = draw(generator, jax.random.key(42), (2**19,))
    for shift in (0, 8, 24):
        byte = (words >> np.uint32(shift) & np.uint32(0xFF)).astype(np.int64)
        assert_flat(np.bincount(byte[:-1:2] * 256 + byte[1::2], minlength=2**16), f"pairs of bytes at bit {shift}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("generator", GENERATORS)
def test_counters_keys_and_rows_are_unrelated(generator: str) -> None:
    size = 2**16
    for seed in (0, 12345):
        words = draw(generator, jax.random.key(seed), (size,))
        for lag in (1, 2, 3, 64, 1000):
            assert_uncorrelated(words[:-lag], words[lag:], f"lag {lag}")
        following = draw(generator, jax.random.key(seed + 1), (size,))
        assert_uncorrelated(words, following, "consecutive seeds")
        assert_uncorrelated(words[1:], following[:-1], "consecutive seeds, one step apart")
        folded = [draw(generator, jax.random.fold_in(jax.random.key(seed), step), (size,)) for step in (0, 1)]
        assert_uncorrelated(*folded, "consecutive steps")
        rows = draw(generator, jax.random.key(seed), (2, size))
        assert_uncorrelated(rows[0], rows[1], "rows")
        halves = np.asarray(bit_matrix(words).sum(axis=0, dtype=np.int64))
        assert abs(np.corrcoef(halves[:-1], halves[1:])[0, 1]) < SIGMAS / math.sqrt(size)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("generator", GENERATORS)
def test_the_first_words_of_many_keys_are_uniform(generator: str) -> None:
    """A layer of one entry, rounded at many steps, sees one word of each key."""
    keys = jax.vmap(jax.random.key)(jnp.arange(2**16))
    words = np.asarray(jax.vmap(lambda key: GENERATORS[generator](key, (2,), np.uint32))(keys))
    for column in words.T:
        ones = bit_matrix(column).sum(axis=1, dtype=np.int64)
        assert (np.abs(ones - column.size / 2) < SIGMAS * math.sqrt(column.size) / 2).all(), ones
        for shift in (0, 12, 24):
            assert_flat(np.bincount(column >> np.uint32(shift) & np.uint32(0xFF), minlength=256), f"bits from {shift}")
        assert_uncorrelated(column[:-1], column[1:], "consecutive keys")
    assert_uncorrelated(words[:, 0], words[:, 1], "first and second word")


@pytest.mark.slow
def test_counter_hash_depends_on_position_alone() -> None:
    hashed = pl.Stochastic().generator
    key = jax.random.key(9)
    flat = np.asarray(hashed(key, (24,), np.uint32))
    for shape in ((24,), (4, 6), (2, 3, 4), (1, 24)):
        assert np.array_equal(np.asarray(hashed(key, shape, np.uint32)).reshape(-1), flat)
    assert np.array_equal(np.asarray(jax.jit(lambda k: hashed(k, (24,), np.uint32))(key)), flat)
    assert np.asarray(hashed(key, (), np.uint32)) == flat[0]
    assert np.unique(np.asarray(hashed(key, (2**20,), np.uint32))).size == 2**20


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_rows_of_a_table_come_one_after_the_other(run: Callable[..., Any]) -> None:
    rows = key_rows(jax.random.key(5), 128, 4)

    def all_of(rows: Any) -> list[Any]:
        number, found = first_row(), []
        for _ in range(4):
            words, number = next_row(rows, number)
            found.append(words)
        return found

    assert np.array_equal(np.stack(run(all_of)(rows)), rows)


def test_modes_are_frozen_values() -> None:
    assert pl.stochastic == pl.Stochastic()
    assert pl.stochastic_bits(3) == pl.stochastic_bits(3) != pl.stochastic_bits(4)
    assert hash(pl.stochastic_bits(3)) == hash(pl.stochastic_bits(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        pl.stochastic.bits = 3  # type: ignore[misc]


def test_r_bits_do_not_retrace() -> None:
    count = 0

    def rounding(x: jax.Array, mode: pl.Stochastic) -> jax.Array:
        nonlocal count
        count += 1
        return pl.round_to(x, pl.BFLOAT16, mode, key=jax.random.key(0))

    compiled = jax.jit(rounding, static_argnums=1)
    for _ in range(3):
        compiled(jnp.ones(4), pl.stochastic_bits(3))
    assert count == 1


@pytest.mark.parametrize("bits", [0, -1, 64, 2.5, "3", None, True])
def test_refuses_a_senseless_number_of_bits(bits: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="bits") as error:
        pl.stochastic_bits(bits)
    assert repr(bits) in str(error.value)
