"""Averages and counters against running them: every step in exact rationals, every value of every small format."""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.stagnation.averages import counter_limit, is_ratchet, largest_decay, stall_level, stored_decay
from tests import cases
from tests.oracle import all_values, exponent, round_exact

HOLDS_ZERO = {name: fmt for name, fmt in cases.FORMATS.items() if fmt.zeros}
# Few enough values to look at each of them.
SMALL = [n for n, f in HOLDS_ZERO.items() if f.precision <= 8 and f.largest < 2.0**40 and len(all_values(f)) <= 600]
DECAYS = [0.0, 0.25, 0.5, 0.9, 0.96875, 0.99, 0.999]


def stepped(fmt: Any, move: Callable[[Fraction], Fraction]) -> dict[float, float]:
    """Where one step leads from every value of a format."""
    return {value: round_exact(move(Fraction(value)), fmt, "nearest_even") for value in all_values(fmt).tolist()}


def resting(step: dict[float, float], start: float) -> float:
    """Where steps from a start end, a fixed point or whatever is no value of the format."""
    now = start
    for _ in range(len(step) + 1):
        if now not in step or step[now] == now:
            return now
        now = step[now]
    raise AssertionError("a monotone average does not go round in circles")


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def averaging(decay: float, target: float) -> Callable[[Fraction], Fraction]:
    return lambda s: s + (1 - Fraction(decay)) * (Fraction(target) - s)


def critical_decays(fmt: Any) -> list[float]:
    """On both sides of where something ties: 1 - b = 2^-k exactly, and a little off it."""
    steps = [2.0**-k for k in (fmt.precision - 1, fmt.precision, fmt.precision + 1, fmt.precision + 2)]
    return [1 - step * off for step in steps for off in (1.0, 1 - 2.0**-20, 1 + 2.0**-20) if step * off <= 1]


def targets(fmt: Any) -> list[float]:
    """Values and what lies between them, tiny and beyond the largest."""
    values = all_values(fmt).tolist()
    draw = random.Random(1)
    some = draw.sample(values, min(3, len(values)))
    gap = values[len(values) // 2 + 1]
    return [*some, 0.0, 1.0, gap / 3, -gap / 2, 0.3 * fmt.largest, fmt.largest, 1.01 * fmt.largest, -3.0 * fmt.largest]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", SMALL)
def test_averages_rest_where_running_them_does(name: str) -> None:
    """Every start of the format, decays and targets that tie and that do not."""
    fmt = HOLDS_ZERO[name]
    draw = random.Random(2)
    decays = DECAYS + critical_decays(fmt)
    ties = rested = 0
    for target in targets(fmt):
        for decay in draw.sample(decays, 4):
            step = stepped(fmt, averaging(decay, target))
            starts = [0.0, *draw.sample(sorted(step), min(12, len(step)))]
            for start in starts:
                end = resting(step, start)
                assert same(stall_level(decay, fmt, target, start), end), (decay, target, start)
                rested += end != target and end in step
                pull = abs(averaging(decay, target)(Fraction(end)) - Fraction(end)) if end in step else None
                ties += pull is not None and pull > 0 and pull.denominator & (pull.denominator - 1) == 0
    assert rested > 10
    assert ties > 0


ONE_OF_EACH_KIND = ("float8_e4m3fn", "e4m3fnuz_no_subnormals", "fixed_2_5", "one_bit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ONE_OF_EACH_KIND else pytest.mark.thorough) for n in SMALL]
)
def test_averages_rest_where_running_them_does_from_everywhere(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    for target in targets(fmt):
        for decay in DECAYS + critical_decays(fmt):
            step = stepped(fmt, averaging(decay, target))
            for start in step:
                assert same(stall_level(decay, fmt, target, start), resting(step, start)), (decay, target, start)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "tfloat32", "bfloat16_no_subnormals", "float16_no_subnormals"])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.997, 0.999, 1 - 2.0**-9, 0.9999])
def test_wide_formats_rest_where_running_them_does(name: str, decay: float) -> None:
    fmt = HOLDS_ZERO[name]
    tiny = 2.0**fmt.emin
    for target, start in [(1.0, 0.0), (0.3, 0.0), (-1.7, 2.0), (0.1, 0.9), (1e-7, 0.0), (0.0, 50 * tiny), (5.0, -3.0)]:
        now = round_exact(start, fmt, "nearest_even")
        for _ in range(60_000):
            after = round_exact(averaging(decay, target)(Fraction(now)), fmt, "nearest_even")
            if after == now:
                break
            now = after
        else:
            raise AssertionError("still under way")
        assert stall_level(decay, fmt, target, start) == now, (target, start)


def test_known_levels() -> None:
    """The numbers that people meet, and their frameworks: float32 stepping, stored narrow."""
    assert stall_level(0.999, pl.BFLOAT16) == 0.25
    assert stall_level(0.9, pl.BFLOAT16) == 0.98046875
    assert stall_level(stored_decay(0.999, pl.BFLOAT16), pl.BFLOAT16) == 0.0  # bfloat16(0.999) is 1.0
    assert stall_level(largest_decay(pl.BFLOAT16), pl.BFLOAT16) == 0.5
    # 500 gaps below 1 a thousandth of the way is half a gap, and 1 - 500 * 2^-24 is even; 1 - float(0.999) is a little more.
    assert stall_level(Fraction(999, 1000), pl.FLOAT32) == 1 - 500 * 2.0**-24
    assert stall_level(0.999, pl.FLOAT32) == 1 - 499 * 2.0**-24
    assert stall_level(0.9999, pl.FLOAT64) < 1
    assert stall_level(0.999, pl.FLOAT16, target=1e6) == math.inf
    assert stall_level(0.999, pl.FLOAT16, target=-1e6) == -math.inf
    assert math.isnan(stall_level(0.5, pl.FLOAT8_E4M3FN, target=1e6))
    assert stall_level(0.5, pl.saturating(pl.FLOAT8_E4M3FN), target=-1e6) == -448
    # A trace t <- g + b t is an average of g / (1 - b).
    assert stall_level(0.9, pl.FLOAT8_E5M2, target=Fraction(1) / (1 - Fraction(0.9))) == 6.0
    assert stall_level(0.5, pl.BFLOAT16, 1.0, start=0.3001) == 1.0  # the tie at 1 - 2^-9 moves an odd value

    @jax.jit
    def run(s: Any) -> Any:
        step = lambda _, s: pl.round_to(s + jnp.float32(0.001) * (1 - s), pl.BFLOAT16)  # noqa: E731
        return jax.lax.fori_loop(0, 2000, step, s)

    assert float(run(jnp.float32(0))) == 0.25


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", SMALL)
def test_a_ratchet_keeps_every_value_and_anything_else_lets_one_fall(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    found = set()
    for decay in [*DECAYS, 1.0, *critical_decays(fmt)]:
        step = stepped(fmt, averaging(decay, 0.0))
        keeps = all(after == value for value, after in step.items() if value >= 0)
        assert is_ratchet(decay, fmt) == keeps, decay
        found.add(keeps)
        if keeps:  # no positive input makes one fall either: rounding is monotone
            more = stepped(fmt, averaging(decay, 0.7 * fmt.largest))
            assert all(not after < value for value, after in more.items() if 0 <= value <= 0.7 * fmt.largest)
    assert found == {True, False}


@pytest.mark.parametrize("name", [name for name, fmt in HOLDS_ZERO.items() if fmt.largest >= 2.0 ** (fmt.emin + 1)])
def test_the_ratchet_is_one_inequality(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    for decay in [*DECAYS, 1.0, *critical_decays(fmt)]:
        assert is_ratchet(decay, fmt) == (1 - Fraction(decay) <= Fraction(2) ** -(fmt.precision + 1))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", SMALL)
def test_counts_stop_where_counting_does(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    values = [value for value in all_values(fmt).tolist() if value > 0]
    scales = [values[0] / 4, values[0] / 2, values[0], 1.0, *random.Random(3).sample(values, min(6, len(values)))]
    for increment in sorted({scale * factor for scale in scales for factor in (1.0, 0.7, 1 + 2.0**-30, 1 - 2.0**-30)}):
        end = resting(stepped(fmt, lambda s, by=increment: s + Fraction(by)), 0.0)
        assert same(counter_limit(fmt, increment), end), increment


@pytest.mark.parametrize("name", [name for name, fmt in HOLDS_ZERO.items() if fmt.precision > 1 and fmt.emin <= 0])
def test_ones_stop_at_two_to_the_p(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    expected = 2.0**fmt.precision if 2.0**fmt.precision <= fmt.largest else float(fmt.overflow)
    assert same(counter_limit(fmt), expected)


def test_counts_in_bfloat16_by_running_them() -> None:
    draw = random.Random(4)
    for increment in [1.0, 0.75, 1e-3, 3.0, *(draw.uniform(0, 1) for _ in range(5))]:
        now = 0.0
        while (after := round_exact(Fraction(now) + Fraction(increment), pl.BFLOAT16, "nearest_even")) != now:
            now = after
        assert counter_limit(pl.BFLOAT16, increment) == now == 2.0 ** (8 + math.ceil(math.log2(increment)))


@pytest.mark.parametrize("name", HOLDS_ZERO)
def test_decays_as_stored(name: str) -> None:
    fmt = HOLDS_ZERO[name]
    for decay in [*DECAYS, 1.0, 0.95, *critical_decays(fmt)]:
        assert same(stored_decay(decay, fmt), round_exact(decay, fmt, "nearest_even"))
    if name in SMALL:
        values = all_values(fmt)
        assert largest_decay(fmt) == max(values[values < 1])
    elif fmt.emin < 0 and fmt.largest >= 1:
        assert largest_decay(fmt) == 1 - 2.0**-fmt.precision


def test_numbers_of_many_kinds() -> None:
    assert stored_decay(np.float32(0.999), pl.FLOAT32) == float(np.float32(0.999))
    assert stall_level(np.float64(0.999), pl.BFLOAT16, np.int64(1), 0) == 0.25
    assert is_ratchet(1 - Fraction(1, 512), pl.BFLOAT16)
    assert not is_ratchet(1 - Fraction(1, 512) - Fraction(1, 10**40), pl.BFLOAT16)
    assert counter_limit(pl.BFLOAT16, 2) == 512
    assert exponent(Fraction(stall_level(0.5, pl.FLOAT64, 1e300))) == exponent(Fraction(1e300))
    assert math.copysign(1, stall_level(0.5, pl.BFLOAT16, 0.0, -1.0)) in (1, -1)


def test_wrong_arguments_are_sentences() -> None:
    asks: list[Any] = [stored_decay, is_ratchet, stall_level]
    for ask in asks:
        where = ask.__name__
        for wrong in (-0.1, 1.0000001, 2):
            with pytest.raises(ValueError, match=rf"{where}: decay must be from 0 \(no memory\) to 1 .*got {wrong}"):
                ask(wrong, pl.BFLOAT16)
        for wrong in (math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"{where}: decay must be finite; got {wrong}"):
                ask(wrong, pl.BFLOAT16)
        for wrong in ("0.9", None, jnp.float32(0.9)):
            with pytest.raises(TypeError, match=rf"{where}: decay must be a Python number.* pass float\(decay\)"):
                ask(wrong, pl.BFLOAT16)
        with pytest.raises(TypeError, match=f"{where}: decay must be a Python number"):
            jax.jit(lambda b, ask=ask: ask(b, pl.BFLOAT16))(0.9)
        with pytest.raises(TypeError, match=rf"{where}: fmt must be a Format such as precisionlab\.BFLOAT16; got 'bfloat16'"):
            ask(0.9, "bfloat16")
        with pytest.raises(TypeError, match=f"{where}: the format holds arrays or traced numbers"):
            ask(0.9, pl.stack_formats([pl.BFLOAT16]))
        with pytest.raises(ValueError, match=f"{where}: averages and counts start at zero, and float8_e8m0fnu has none"):
            ask(0.9, pl.FLOAT8_E8M0FNU)
        with pytest.raises(ValueError, match="precision"):
            ask(0.9, pl.BFLOAT16._replace(precision=0))
    for ask in (largest_decay, counter_limit):
        with pytest.raises(TypeError, match=f"{ask.__name__}: fmt must be a Format"):
            ask(8)
        with pytest.raises(ValueError, match=f"{ask.__name__}: .*float8_e8m0fnu has none"):
            ask(pl.FLOAT8_E8M0FNU)
    for wrong in (0.0, -1):
        with pytest.raises(ValueError, match=f"counter_limit: increment must be positive; got {wrong}"):
            counter_limit(pl.BFLOAT16, wrong)
    with pytest.raises(ValueError, match="stall_level: target must be finite; got inf"):
        stall_level(0.9, pl.BFLOAT16, math.inf)
    with pytest.raises(TypeError, match="stall_level: start must be a Python number"):
        stall_level(0.9, pl.BFLOAT16, start=jnp.ones(2))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"stall_level: start must be at most 448\.0, the largest of float8_e4m3fn; got -10000"
    ):
        stall_level(0.9, pl.FLOAT8_E4M3FN, start=-1e4)
