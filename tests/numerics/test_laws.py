"""Laws of rounded sums that have exact answers, at several settings each."""

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import apply_updates, stagnation, track
from tests import cases
from tests.oracle import all_values, round_array, round_exact

FORMATS = {"bfloat16": 8, "float16": 11, "tfloat32": 11, "float8_e4m3fn": 4, "float8_e5m2": 3, "float6_e3m2fn": 3}


def traced(name: str) -> pl.Format:
    """A format as an argument, so that all of them share a compilation."""
    return pl.Format(*map(jnp.asarray, cases.FORMATS[name]))


APPLY = jax.jit(apply_updates)
ROUND = jax.jit(pl.round_to, static_argnames="mode")


@jax.jit
def summed(terms: jax.Array, fmt: pl.Format) -> jax.Array:
    """All partial sums, each rounded."""
    return jax.lax.scan(lambda s, x: (pl.round_to(s + x, fmt),) * 2, jnp.float32(0), pl.round_to(terms, fmt))[1]


@pytest.mark.parametrize("name", FORMATS)
def test_adding_ones_stops_at_two_to_the_precision(name: str) -> None:
    sums = np.asarray(summed(np.ones(4000, np.float32), traced(name)))
    top = 2 ** FORMATS[name]
    assert sums.tolist() == np.minimum(np.arange(1, 4001), top).tolist()


@pytest.mark.parametrize(("dtype", "top"), [(jnp.bfloat16, 256), (jnp.float16, 2048), (jnp.float8_e5m2, 8)])
def test_native_counters_stop_there_too(dtype: Any, top: int) -> None:
    one = jnp.ones((), dtype)
    last, _ = jax.lax.scan(lambda s, _: (apply_updates(s, one), None), jnp.zeros((), dtype), length=3000)
    assert float(last) == top
    counted = pl.tally(last, one, apply_updates(last, one))
    assert int(counted.swamped) == 1


@pytest.mark.parametrize("name", [*FORMATS, "float8_e4m3"])
def test_the_harmonic_series_stops(name: str) -> None:
    """Counting the first term that changes nothing (N. Higham: 5.0625 at 65 in bfloat16, 7.0859 at 513 in float16)."""
    numbers, s, n = cases.REGISTERED[name], 0.0, 0
    while True:
        n += 1
        term = round_exact(Fraction(1, n), numbers, "nearest_even")  # type: ignore[arg-type]
        after = round_exact(s + term, numbers, "nearest_even")
        if after == s:
            break
        s = after
    sums = np.asarray(summed((1 / np.arange(1, 4001, dtype=np.float32)), traced(name)))
    assert (int(np.argmax(sums[1:] == sums[:-1])) + 2, float(sums[n - 1])) == (n, s)
    known = {"bfloat16": (65, 5.0625), "float16": (513, 7.0859375)}
    assert (n, s) == known.get(name, (n, s))


@jax.jit
def descended(start: jax.Array, rate: jax.Array, fmt: pl.Format) -> tuple[jax.Array, jax.Array]:
    """Gradient descent on (w - 1)^2 / 2 until long after nothing moves: the last two weights."""

    def step(w: jax.Array, _: None) -> tuple[jax.Array, None]:
        return pl.round_to(w - rate * (w - 1), fmt), None

    last = jax.lax.scan(step, start, None, length=4000)[0]
    return last, step(last, None)[0]


@pytest.mark.parametrize("side", [1.75, 0.25])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_descent_stalls_at_half_a_gap_and_farther_away_at_smaller_rates(name: str, side: float) -> None:
    p, distances = FORMATS[name], []
    gap = 2.0 ** (1 - p)
    for shift in range(1, p - 1):
        rate = 2.0**-shift
        last, again = map(float, descended(jnp.float32(side), jnp.float32(rate), traced(name)))
        assert last == again
        up, down = (float(t) for t in pl.landing_threshold(last, cases.FORMATS[name]))
        force, threshold = rate * abs(last - 1), down if last > 1 else up
        assert force < threshold
        distances.append(abs(last - 1))
        if last > 1:
            # The gap is the same all the way from 2 to 1: it stops within one gap of where the force is half a gap.
            assert gap / 2 / rate - gap < distances[-1] <= gap / 2 / rate
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]


@pytest.mark.parametrize("exponent", [-8, -9, -10])
def test_norm_weights_at_one_are_frozen_by_small_rates(exponent: int) -> None:
    lr = np.float32(2.0**exponent)
    rates = np.array([np.nextafter(lr, np.float32(0)), lr, np.nextafter(lr, np.float32(1))])
    ones = jnp.ones(3, jnp.bfloat16)
    for sign, limit in ((1, 2.0**-8), (-1, 2.0**-9)):
        frozen = (rates <= limit).tolist()
        found = np.asarray(apply_updates(ones, jnp.asarray(sign * rates))).astype(float)
        assert (found == 1).tolist() == frozen
        up, down = pl.landing_threshold(1.0, pl.BFLOAT16)
        assert (rates < float(up if sign > 0 else down)).tolist() == frozen
        # What Optax stores agrees but for the update whose float32 sum is a tie already.
        with jax.numpy_dtype_promotion("standard"):
            stored = optax.apply_updates(ones, jnp.asarray(sign * rates))
        assert (np.asarray(stored).astype(float) == 1).tolist() == [*frozen[:2], frozen[2] or rates[1] == limit]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_weight_decay_does_nothing_below_its_bound(name: str) -> None:
    p, values = FORMATS[name], normal_values(name)
    for factor, frozen in ((1.0, True), (0.7, True), (1 + 2.0**-12, False)):
        decay = np.float32(factor * 2.0 ** -(p + 1))
        found = ROUND(values - decay * values, traced(name))
        assert (np.asarray(found) == values).all() == frozen
    moved = values[np.asarray(found) != values]
    assert (np.abs(np.frexp(moved)[0]) == 0.5).all()  # the powers of two are the first to go


@lru_cache
def normal_values(name: str) -> np.ndarray:
    """The normal values of a format in the middle of its range, where nothing over- or underflows."""
    values = all_values(cases.FORMATS[name])
    low, high = 2.0 ** max(cases.FORMATS[name].emin + 1, -40), min(cases.FORMATS[name].largest / 4, 2.0**40)
    return values[(np.abs(values) >= low) & (np.abs(values) < high)].astype(np.float32)


@jax.jit
def averaged(rest: jax.Array, fmt: pl.Format) -> jax.Array:
    """s <- beta s + (1 - beta), from zero, until long after it stalls."""
    step = lambda s, _: (pl.round_to(s + rest * (1 - s), fmt), None)  # noqa: E731
    return jax.lax.scan(step, jnp.float32(0), None, length=20_000)[0]


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_averages_stall_at_half_a_gap(name: str, beta: float) -> None:
    rest = float(np.float32(1 - beta))
    fmt, last = cases.FORMATS[name], float(averaged(jnp.float32(rest), traced(name)))
    if (name, beta) == ("bfloat16", 0.999):
        assert last == 0.25
    assert last < 1
    assert rest * (1 - last) < float(pl.landing_threshold(last, fmt)[0])
    if last > 0:
        before = float(pl.neighbors(last, fmt)[0])
        assert rest * (1 - before) >= float(pl.landing_threshold(before, fmt)[0]) * (1 - 1e-6)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_non_negative_averages_are_a_ratchet(name: str) -> None:
    values = normal_values(name)
    values = values[values > 0]
    for rest, stuck in ((2.0 ** -(FORMATS[name] + 1), True), (2.0 ** -(FORMATS[name] + 1) * (1 + 2.0**-7), False)):
        for x in (0.0, 0.5):
            falling = values[values > x]
            found = np.asarray(ROUND(falling + np.float32(rest) * (np.float32(x) - falling), traced(name)))
            assert (found <= falling).all()
            assert (found == falling).all() or not stuck
        assert (np.asarray(ROUND(values - np.float32(rest) * values, traced(name))) == values).all() == stuck


@pytest.mark.slow
def test_beta_of_adam_is_one_in_bfloat16() -> None:
    assert float(ml_dtypes.bfloat16(0.999)) == float(pl.round_to(0.999, pl.BFLOAT16)) == 1.0
    # Hyperparameters kept in the dtype of the parameters: the second moment stays zero and steps are no numbers.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = jnp.ones(8, jnp.bfloat16)
        optimizer = track(optax.inject_hyperparams(optax.adam)(1e-3))
        _, state = optimizer.update(params, optimizer.init(params), params)
        assert int(stagnation(state).tally.nonfinite) == 8


TIES = [("float16", -25), ("float8_e4m3fn", -10), ("float8_e5m2", -17), ("bfloat16", -134)]


@pytest.mark.parametrize(("name", "tie"), TIES)
def test_the_tie_with_zero_goes_to_zero(name: str, tie: int) -> None:
    half = np.float32(2.0**tie)
    x = np.array([half, np.nextafter(half, np.float32(1)), -half, 3 * half, np.nextafter(half, np.float32(0))])
    expected = np.array([0, 2 * half, -0.0, 4 * half, 0], np.float32)
    simulated = np.asarray(ROUND(x, traced(name)))
    cases.assert_same(simulated, expected)
    native = x.astype(cases.ml_dtype(name))
    cases.assert_same(native.astype(np.float32), expected)
    w = np.ones(5, np.float32)
    for stored in (simulated, native):
        counted = pl.tally(w, x, w, stored_update=stored)
        assert (int(counted.underflowed), int(counted.swamped)) == (3, 2)


SR = jax.jit(lambda x, fmt, key: pl.round_to(x, fmt, pl.stochastic, key=key))


@pytest.mark.parametrize("share", [0.03, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("name", "w"), [("bfloat16", 1.25), ("float8_e4m3fn", -0.0078125), ("float16", 0.0)])
def test_stochastic_rounding_has_the_exact_mean_and_variance(name: str, w: float, share: float) -> None:
    """Per step: mean u, variance |u| ulp - u^2; within 5 standard deviations of the estimates."""
    count, fmt = 1 << 16, cases.FORMATS[name]
    ulp = float(pl.ulp(w, fmt))
    u = float(np.float32(w + share * ulp)) - w
    steps = np.asarray(SR(jnp.full(count, w + u, jnp.float32), traced(name), jax.random.key(9)), np.float64) - w
    variance = abs(u) * ulp - u**2
    assert abs(steps.mean() - u) < 5 * math.sqrt(variance / count)
    fourth = (u / ulp) * (ulp - u) ** 4 + (1 - u / ulp) * u**4
    assert abs(np.mean((steps - u) ** 2) - variance) < 5 * math.sqrt((fourth - variance**2) / count) + 1e-9 * variance


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_random_bits_lose_what_is_below_them(bits: int) -> None:
    count, ulp = 1 << 16, 2.0**-7
    rounded = jax.jit(lambda x: pl.round_to(x, pl.BFLOAT16, pl.stochastic_bits(bits), key=jax.random.key(1)))
    below = rounded(jnp.full(count, 1 + ulp * 2.0**-bits * 0.99, jnp.float32))
    assert (np.asarray(below) == 1).all()
    for multiple in (1, 3):
        probability = multiple * 2.0**-bits
        found = (np.asarray(rounded(jnp.full(count, 1 + ulp * probability, jnp.float32))) > 1).mean()
        assert abs(found - probability) < 5 * math.sqrt(probability * (1 - probability) / count)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_how_much_larger_a_weight_may_be(name: str) -> None:
    """|w/u| >= 2^(p+1) always loses; |w/u| < 2^p never does; in between it depends."""
    p, w, fmt = FORMATS[name], normal_values(name), cases.FORMATS[name]
    stored, shares = w.astype(cases.ml_dtype(name)), []
    for ratio in (2.0 ** (p + 1), 2.0 ** (p + 1) * 1.3, 2.0**p * 1.3, 2.0**p * (1 - 2.0**-9), 2.0**p / 3):
        stays = []
        for sign in (1, -1):
            u = (sign * np.abs(w) / ratio).astype(np.float32)
            stays.append(round_array(w.astype(np.float64) + u, fmt, "nearest_even") == w)
            assert ((np.asarray(APPLY(stored, u)).astype(np.float32) == w) == stays[-1]).all()
        shares.append(np.mean(stays))
    assert shares[:2] == [1, 1]
    assert 0 < shares[2] < 1
    assert shares[3:] == [0, 0]


@pytest.mark.parametrize("size", [3e-3, 0.02, 1.1e-5])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_constant_update_is_lost_from_one_binade_on(name: str, size: float) -> None:
    """Away from zero: lost exactly where |w| >= 2^(ceil(log2 |u|) + p). Towards it, all but the bound itself."""
    w, u = normal_values(name), np.float32(size)
    bound = 2.0 ** (math.ceil(math.log2(u)) + FORMATS[name])
    for inward in (False, True):
        sign = np.where((w > 0) != inward, np.float32(1), np.float32(-1))
        lost = np.asarray(APPLY(w.astype(cases.ml_dtype(name)), sign * u)).astype(np.float32) == w
        expected = np.abs(w) > bound if inward else np.abs(w) >= bound
        assert (lost == expected).all()
        assert 0 < lost.mean() < 1
