"""Stochastic rounding of exact sums: the chance by counting random words in rational arithmetic, and what comes of it.

Given the first word, which decides below the last place of the format, the other two make a number R below 2^64; what is
counted is for how many R the sum goes up. The test finds both sides of the place where that changes.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic.exact.chances import carried_sum, round_sum
from tests import cases
from tests.oracle import round_exact

TOP = 2**64
FORMATS = {
    name: cases.FORMATS[name]
    for name in ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2fnuz", "float16_no_subnormals", "fixed_2_5")
}


def towards_zero(x: Fraction, fmt: Any) -> Fraction:
    return Fraction(round_exact(x, fmt._replace(largest=pl.FLOAT32.largest, overflow=math.inf), "toward_zero"))


def upward(x: Fraction, fmt: Any) -> Fraction:
    return Fraction(round_exact(x, fmt._replace(largest=pl.FLOAT32.largest, overflow=math.inf), "upward"))


def preset(*rows: Any) -> Any:
    """A generator that gives these words, one row a call."""
    left = [np.asarray(row, np.uint32) for row in rows]

    def generator(*_: Any) -> Any:
        return jnp.asarray(left.pop(0))

    return generator


def operands(fmt: Any) -> list[tuple[float, float]]:
    """Weights of the format, and updates from half a gap to far below the last place of float32."""
    random = np.random.default_rng(0)
    weights = [1.0, 1.5, 0.75, -1.0, -1.25, 2.0**-6, 3 * 2.0**-4]
    held = [w for w in weights if round_exact(w, fmt, "nearest_even") == w]
    sizes = [*range(3, 40, 3), 60, 90]
    pairs = [
        (w, math.copysign(1, random.uniform(-1, 1)) * random.uniform(1, 2) * 2.0**-k * abs(w)) for w in held for k in sizes
    ]
    return [(w, float(np.float32(u))) for w, u in pairs]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FORMATS)
def test_the_chance_is_the_exact_remainder_over_the_gap(name: str) -> None:
    fmt = FORMATS[name]
    a, b, first, words, expected = [], [], [], [], []
    for w, u in operands(fmt):
        exact = abs(Fraction(w) + Fraction(u))
        down, up = towards_zero(exact, fmt), upward(exact, fmt)
        if exact == down or exact > fmt.largest or abs(w) < 2.0**-60:
            continue
        low = towards_zero(exact, pl.FLOAT32)
        place = Fraction(2) ** (max(math.frexp(float(low))[1], -125) - 24)
        places = (up - down) / place  # of float32, in a gap of the format
        whole = (low - down) / place
        assert whole.denominator == places.denominator == 1
        # Of all first words this one leaves it to the others. Its places are the last of a word.
        last = places - 1 - whole
        share = (exact - low) / place * TOP  # of the R for which the others carry
        rounded = Fraction(float(np.float32(w) + np.float32(u)))
        above = abs(rounded) > exact
        edge = TOP - math.floor(TOP - share) if above else math.floor(share)
        for r, carries in ((TOP - edge - 1, False), (TOP - edge, True)) if above else ((edge - 1, True), (edge, False)):
            if 0 <= r < TOP and share:
                a.append(w), b.append(u), first.append(int(last)), words.append(divmod(r, 2**32))
                expected.append(math.copysign(float(up if carries else down), w))
        # One place less and it never goes up, one more and it always does.
        for more, goes in ((-1, False), (1, True)):
            if 0 <= last + more < places and share:
                a.append(w), b.append(u), first.append(int(last + more)), words.append((0x12345678, 0))
                expected.append(math.copysign(float(up if goes else down), w))
    assert len(a) > 60
    high, low_words = zip(*words, strict=True)
    mode = pl.Stochastic(None, preset(first, high, low_words))
    found = round_sum(jnp.float32(a), jnp.float32(b), fmt, mode, key=jax.random.key(0))
    wrong = [row for row in zip(a, b, first, words, expected, np.asarray(found).tolist(), strict=True) if row[-1] != row[-2]]
    assert not wrong


def test_far_below_the_smallest_value_the_other_words_decide() -> None:
    """From zero in e4m3fn, whose smallest value is 2^-9: 2^-9-k has the chance 2^-k, for k up to 95."""
    fmt = pl.FLOAT8_E4M3FN
    u = [2.0**-50, 1.5 * 2.0**-50, 2.0**-90, -(2.0**-70)]
    for size in u:
        share = Fraction(abs(size)) * 2**9 * 2**31 * TOP  # of the R, where the first word carries only if they do
        assert share.denominator == 1
        for r, up in ((int(share) - 1, True), (int(share), False)):
            high, low = divmod(r, 2**32)
            mode = pl.Stochastic(None, preset([0x7FFFFFFF], [low], [high]))  # in the other order than before
            found = round_sum(jnp.zeros(1), jnp.float32([size]), fmt, mode, key=jax.random.key(0))
            assert found.tolist() == [math.copysign(2.0**-9, size) * up]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_of_r_bits_the_chance_is_a_multiple_rounded_down(name: str, bits: int) -> None:
    fmt = FORMATS[name]
    gap = pl.unit_roundoff(fmt) * 2
    byte = np.arange(256, dtype=np.uint32) * np.uint32(0x01010101)
    for w, u in ((1.0, 0.3), (1.0, 0.01), (1.5, -0.7), (1.5, -0.02), (1.0, 1 / 3), (-1.25, 0.9)):
        step = float(np.float32(u * gap))
        exact = Fraction(w) + Fraction(step)
        share = (abs(exact) - towards_zero(abs(exact), fmt)) / Fraction(gap)
        mode = pl.Stochastic(bits, preset(byte, byte, byte))
        found = round_sum(jnp.full(256, w), jnp.full(256, step, jnp.float32), fmt, mode, key=jax.random.key(0))
        up = np.asarray(jnp.abs(found)) > float(towards_zero(abs(exact), fmt))
        assert Fraction(int(up.sum()), 256) == Fraction(math.floor(share * 2**bits), 2**bits), (w, u)


def test_what_ends_behind_the_word_is_rounded_down_too() -> None:
    """One less 2^-12 + 2^-34 of a gap is, in 31 bits, 1 - 2^-12 - 2^-31."""
    u = float(np.float32(-(2.0**-24) * (2.0**-12 + 2.0**-34)))
    for high, goes in ((2**32 - 2**20 - 4, True), (2**32 - 2**20 - 2, False)):
        mode = pl.Stochastic(31, preset([0], [high], [0]))
        found = round_sum(jnp.ones(1), jnp.float32([u]), pl.FLOAT32, mode, key=jax.random.key(0))
        assert found.tolist() == [1.0 if goes else 1 - 2.0**-24]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FORMATS)
def test_exact_sums_have_the_bits_of_round_to(name: str) -> None:
    fmt, key = FORMATS[name], jax.random.key(3)
    random = np.random.default_rng(1)
    a = jnp.asarray((random.integers(-256, 256, 4096) / 64).astype(np.float32))
    b = jnp.asarray((random.integers(-4096, 4096, 4096) * 2.0**-14).astype(np.float32))
    for mode in (pl.stochastic, pl.stochastic_bits(3), pl.nearest_even, pl.upward, pl.to_odd):
        found = jax.jit(lambda a, b, mode=mode: round_sum(a, b, fmt, mode, key=key))(a, b)
        cases.assert_same(found, pl.round_to(a + b, fmt, mode, key=key))


SMALL = [
    ("bfloat16", -(2.0**-26)),
    ("bfloat16", 2.0**-27),
    ("float32", -(2.0**-29)),
    ("float32", 2.0**-33),
    ("float16", 2.0**-26),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize(("name", "u"), SMALL)
def test_an_update_that_the_carrier_drops_arrives_in_the_mean(name: str, u: float, jitted: bool) -> None:
    """Products too, which a compiler would contract; the bound is 5 standard deviations of the number of moves."""
    fmt, entries = FORMATS[name], 2**18
    gap = 2.0 ** (1 - fmt.precision) / (2 if u < 0 else 1)
    if jitted:
        steps = 40

        def run(w: Any) -> Any:
            def one(w: Any, number: Any) -> Any:
                return round_sum(
                    w, w * jnp.float32(u), fmt, pl.stochastic, key=jax.random.fold_in(jax.random.key(5), number)
                ), None

            return jax.lax.scan(one, w, jnp.arange(steps))[0]

        end = jax.jit(run)(jnp.ones(entries))
    else:
        steps, end = (
            1,
            round_sum(jnp.ones(entries), jnp.full(entries, u, jnp.float32), fmt, pl.stochastic, key=jax.random.key(5)),
        )
    expected = entries * steps * abs(u) / gap
    gaps = float(np.sum((np.asarray(end, float) - 1) / math.copysign(gap, u)))
    assert abs(gaps - expected) <= 5 * math.sqrt(expected) + 1
    assert not jitted or gaps > 0


@pytest.mark.slow
def test_an_intermediate_of_a_few_bits_keeps_all_of_its_own() -> None:
    w, u = jnp.ones(2**16), jnp.full(2**16, 2.0**-26)
    key = jax.random.key(0)
    assert (carried_sum(w, u, pl.nearest_even, key=None) == 1).all()
    for mode in (pl.stochastic, pl.stochastic_bits(2)):
        moved = int(jnp.sum(carried_sum(w, u, mode, key=key) != 1))
        assert abs(moved - 2**13) < 5 * math.sqrt(2**13)
    assert (round_sum(w, u, pl.FLOAT32, pl.stochastic_bits(2), key=key) == 1).all()


@pytest.mark.slow
def test_the_derivative_is_that_of_the_sum() -> None:
    def f(a: Any, b: Any) -> Any:
        return jnp.sum(round_sum(a, b, pl.BFLOAT16, pl.stochastic, key=jax.random.key(0)) * jnp.float32([1.0, 2.0]))

    gradients = jax.grad(f, (0, 1))(jnp.ones(2), jnp.full(2, 1e-9))
    assert [g.tolist() for g in gradients] == [[1.0, 2.0]] * 2


@pytest.mark.slow
def test_what_is_not_finite_stays_so() -> None:
    a, b = jnp.float32([3e38, jnp.inf, jnp.nan, jnp.inf, 0.0]), jnp.float32([3e38, 1.0, 1.0, -jnp.inf, -0.0])
    found = round_sum(a, b, pl.FLOAT32, pl.stochastic, key=jax.random.key(0)).tolist()
    assert found[:2] == [math.inf, math.inf]
    assert math.isnan(found[2])
    assert math.isnan(found[3])
    assert found[4] == 0


@pytest.mark.slow
def test_in_float64_too() -> None:
    with jax.enable_x64(True):
        w, u = jnp.ones(2**16, jnp.float64), 2.0**-60
        for fmt, gap in ((pl.FLOAT64, 2.0**-52), (pl.TFLOAT32, 2.0**-10)):
            moved = int(jnp.sum(round_sum(w, w * u, fmt, pl.stochastic, key=jax.random.key(0)) != 1))
            expected = w.size * u / gap
            assert abs(moved - expected) <= 5 * math.sqrt(expected) + 1
