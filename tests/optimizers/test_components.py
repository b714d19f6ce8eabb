"""Two components against rational arithmetic, against Collage's own operations natively, and against their derived floor."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import apply_updates, round_params, stagnation, track
from precisionlab.optimizers.cures.components import two_components
from tests import cases
from tests.oracle import round_array, round_exact, ulp_exact

BF16 = pl.BFLOAT16
SATURATING = pl.saturating(pl.FLOAT8_E4M3FN)
FLUSHING = pl.FLOAT16._replace(subnormals=False)
FORMATS = {
    "bfloat16": BF16,
    "float16": pl.FLOAT16,
    "float16_flushing": FLUSHING,
    "e4m3fn_saturating": SATURATING,
    "float8_e4m3fn": pl.FLOAT8_E4M3FN,
    "float8_e5m2": pl.FLOAT8_E5M2,
    "float6_e3m2fn": pl.FLOAT6_E3M2FN,
}


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    """Optax itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        cases.assert_same(a, b)


def stepper(optimizer: Any, apply: Any = optax.apply_updates) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return apply(params, updates), state

    return step


def grown(w: float, c: float, u: float, fmt: Any, carrier: str = "float32") -> tuple[float, float]:
    """The docstring in rational arithmetic: exact sums, each rounded to the carrier and to the format."""

    def stored(x: Fraction) -> Fraction:
        carried = round_exact(x, cases.REGISTERED[carrier], "nearest_even")
        return Fraction(round_exact(carried, fmt, "nearest_even"))

    high, low, step = map(Fraction, (w, c, u))
    near = stored(high + step)
    total = stored(low + stored(high + step - near))
    after = stored(near + total)
    return float(after), float(stored(near + total - after))


def landed(w: float, after: float) -> float:
    """Where the update leads: not quite there if float32 has no number for it."""

    def carried(x: Fraction) -> float:
        return round_exact(x, cases.REGISTERED["float32"], "nearest_even")

    return carried(Fraction(w) + Fraction(carried(Fraction(after) - Fraction(w))))


def drawn(fmt: Any, size: int, seed: int) -> np.ndarray:
    """Values of a format of many sizes, subnormals, zeros and powers of two among them."""
    random = np.random.default_rng(seed)
    low = max(fmt.emin - fmt.precision, -40)
    top = min(math.log2(fmt.largest) - 2, 20)
    w = random.choice([-1, 1], size) * 2.0 ** random.uniform(low, top, size)
    tiny = 2.0 ** max(fmt.emin - fmt.precision + 1 if fmt.subnormals else fmt.emin, -60)
    w[:8] = [0, 1, -1, 2, tiny, -tiny, 3 * tiny, fmt.largest / 4]
    return round_array(w, fmt, "nearest_even")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_entry_is_the_sum_written_out(name: str, jitted: bool) -> None:
    """Updates from far below half a gap to far beyond the weight, among them some that cancel it."""
    fmt, size = FORMATS[name], 80
    random = np.random.default_rng(1)
    w = drawn(fmt, size, 0)
    optimizer = two_components(fmt)
    found = jnp.asarray(w.astype(np.float32))
    state = optimizer.init(found)
    step = stepper(optimizer)
    here, rest, busy = w.tolist(), [0.0] * size, 0
    short = 0
    for number in range(16):
        scale = 2.0 ** -random.uniform(-6, 2 * fmt.precision + 3, size)
        u = (random.standard_normal(size) * scale * np.where(np.array(here) == 0, 1.0, np.abs(here))).clip(
            -fmt.largest / 8, fmt.largest / 8
        )
        if number % 4 == 3:
            u = -np.array(here) * (1 + random.choice([0, 2.0**-20, -(2.0**-9)], size))
        u = u.astype(np.float32)
        with jax.disable_jit(not jitted):
            found, state = step(found, state, u)
        pairs = [grown(*each, fmt) for each in zip(here, rest, u.tolist(), strict=True)]
        here = [landed(w, pair[0]) for w, pair in zip(here, pairs, strict=True)]
        short += sum(w != pair[0] for w, pair in zip(here, pairs, strict=True))
        rest = [pair[1] for pair in pairs]
        assert found.tolist() == here
        assert state.low.tolist() == rest
        busy += sum(low != 0 for low in rest)
    assert busy > 100
    assert short <= 12  # the exception that the docstring names, for what cancels


def test_subnormals_and_float64_in_a_float64_carrier() -> None:
    """Float32 arithmetic flushes what is subnormal in it; float64 holds the subnormals of bfloat16 as normal numbers."""
    with jax.enable_x64(True):
        random = np.random.default_rng(5)
        units = 2.0 ** (BF16.emin - BF16.precision + 1)
        w = round_array(random.integers(-300, 300, 60) * units, BF16, "nearest_even")
        optimizer = two_components(BF16)
        found, here, rest = jnp.asarray(w), w.tolist(), [0.0] * 60
        state, step = optimizer.init(found), stepper(optimizer)
        for _ in range(8):
            u = random.standard_normal(60) * 40 * units
            found, state = step(found, state, u)
            pairs = [grown(*each, BF16, "float64") for each in zip(here, rest, u.tolist(), strict=True)]
            here, rest = ([pair[side] for pair in pairs] for side in (0, 1))
            assert found.tolist() == here
            assert state.low.tolist() == rest
        # Wide updates of narrow weights: the carrier is the wider of the two.
        narrow = jnp.float32([1.0, -2.0])
        updates, _ = optimizer.update(jnp.float64([2.0**-40, 1.0]), optimizer.init(narrow), narrow)
        assert updates.dtype == jnp.float64
        assert updates.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_it_is_grow_in_the_format_s_own_arithmetic(name: str) -> None:
    """Collage, operation by operation, as ml_dtypes rounds them: updates of the format no larger than the weights."""
    fmt, dtype = FORMATS[name], cases.ml_dtype(name)
    random = np.random.default_rng(3)
    w = (random.choice([-1, 1], 400) * 2.0 ** random.uniform(-3, 3, 400)).astype(np.float32).astype(dtype)
    params, optimizer = jnp.asarray(w), two_components(fmt)
    state, step = optimizer.init(params), stepper(optimizer, apply_updates)
    c = np.zeros_like(w)
    for _ in range(20):
        u = (np.abs(w.astype(np.float32)) * 2.0 ** -random.uniform(1, 2 * fmt.precision, 400)).astype(np.float32)
        u = (u * random.choice([-1, 1], 400).astype(np.float32)).astype(dtype)
        s = w + u
        t = c + (u - (s - w))
        w = s + t
        c = t - (w - s)
        params, state = step(params, state, jnp.asarray(u))
        assert params.dtype == state.low.dtype == dtype
        assert (np.asarray(params) == w).all()
        assert (np.asarray(state.low) == c).all()
    assert (c != 0).mean() > 0.3


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_natively_stored_weights_go_where_simulated_ones_do(name: str) -> None:
    fmt, dtype = FORMATS[name], cases.ml_dtype(name)
    random = np.random.default_rng(4)
    wide = jnp.asarray(drawn(fmt, 40, 1).astype(np.float32))
    narrow = jnp.asarray(np.asarray(wide).astype(dtype))
    optimizer = optax.chain(optax.scale(0.1), two_components(fmt))  # a product for compilers to contract
    states, step = (optimizer.init(wide), optimizer.init(narrow)), stepper(optimizer, apply_updates)
    for _ in range(10):
        grads = jnp.asarray((random.standard_normal(40) * 2.0**-6).astype(np.float32))
        with jax.disable_jit():
            eager = step(wide, states[0], grads)
        wide, one = step(wide, states[0], grads)
        same((wide, one), eager)
        narrow, other = step(narrow, states[1], grads)
        states = one, other
        same(narrow.astype(jnp.float32), wide)
        same(other[1].low.astype(jnp.float32), one[1].low)
    assert narrow.dtype == other[1].low.dtype == dtype


def half_gap(w: float, sign: int, fmt: Any) -> Fraction:
    """Half the gap from |w| outward (sign 1) or towards zero."""
    gap = ulp_exact(w, fmt)
    if sign < 0 and w == 2.0**fmt.emin and not fmt.subnormals:
        return Fraction(w) / 2  # the next value is zero
    towards_zero_from_a_power = sign < 0 and math.frexp(w)[0] == 0.5 and w > 2.0**fmt.emin and w != 0
    return gap / 4 if towards_zero_from_a_power else gap / 2


def lost_and_moving(w: float, sign: int, fmt: Any) -> tuple[float, float]:
    """The floor of the docstring: the largest float32 update that is lost for ever, and the smallest that is not."""
    h = half_gap(w, sign, fmt)
    odd = Fraction(w) / ulp_exact(w, fmt) % 2 == 1 or h == Fraction(w) / 2 == Fraction(2) ** (fmt.emin - 1)
    bound = h * Fraction(2) ** -(fmt.precision + odd)
    # The largest number that rounds to the bound or to less.
    step = ulp_exact(float(bound), fmt)
    base = bound // step * step
    middle = float(base + step / 2)
    below = lambda x: float(np.nextafter(np.float32(x), np.float32(0)))  # noqa: E731
    largest = middle if round_exact(middle, fmt, "nearest_even") <= bound else below(middle)
    if largest < h or (largest == h and not odd):
        return largest, float(np.nextafter(np.float32(largest), np.float32(math.inf)))
    # What moves w at once, as far as the carrier can tell w + u from the middle between two values.
    h = float(h)
    return (h * (1 - 2.0**-8), h) if odd else (h, h * (1 + 2.0**-8))


FLOORS = [
    (BF16, [1.0, 1.5, 1.0078125, 1.9921875, 3.0 * 2.0**-60]),
    (pl.FLOAT16, [1.0, 1024.0, 1 + 2.0**-10, 2.0**-14, 3 * 2.0**-24, 2.0**-24]),
    (FLUSHING, [1.0, 1 + 2.0**-10, 2.0**-12, 2.0**-14, 2.0**-3]),
    (SATURATING, [1.0, 1.125, 16.0, 18.0, 256.0, 2.0**-6, 2.0**-5, 2.0**-9, 3 * 2.0**-9]),
    (pl.FLOAT8_E5M2, [1.0, 1.25, 1.75, 2.0**-16, 2.0**-13]),
]


@pytest.mark.sampled(5, slow=20)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("fmt", "w"), [(fmt, w) for fmt, start in FLOORS for w in start])
def test_the_floor_has_two_sides(fmt: Any, w: float, sign: int) -> None:
    floor, above = lost_and_moving(w, sign, fmt)
    optimizer = two_components(fmt)

    def one(now: Any, _: Any, u: Any) -> Any:
        updates, state = optimizer.update(sign * u, now[1], now[0])
        return (optax.apply_updates(now[0], updates), state), state.low

    @jax.jit
    def ends(u: Any) -> Any:
        """The weight in the end, and the last two of what gathers."""
        begin = jnp.float32(w)
        (after, _), lows = jax.lax.scan(
            lambda now, x: one(now, x, u), (begin, optimizer.init(begin)), length=2 ** (fmt.precision + 3)
        )
        return after, lows[-2:]

    for lost in (floor, floor / 2, floor * 0.9):
        after, lows = ends(jnp.float32(lost))
        assert float(after) == w
        assert float(lows[0]) == float(lows[1])  # nothing gathers any more
    assert sign * (float(ends(jnp.float32(above))[0]) - w) > 0


def test_the_floor_in_bfloat16_by_numbers() -> None:
    """At 1.0 half a gap is 2^-8 and the last bit even; a relative 2^-8 more is rounded away, on a tie to the power of two."""
    assert lost_and_moving(1.0, 1, BF16)[0] == 2.0**-16 * (1 + 2.0**-8)
    assert lost_and_moving(1.0, -1, BF16)[0] == 2.0**-17 * (1 + 2.0**-8)
    assert lost_and_moving(1.0078125, 1, BF16)[0] == 2.0**-17 * (1 + 2.0**-8)


@pytest.mark.parametrize("on_grid", [True, False])
def test_what_one_step_adds_to_the_error_is_bounded(on_grid: bool) -> None:
    steps, size, p = 2000, 50, BF16.precision
    random = np.random.default_rng(2)
    u = random.standard_normal((steps, size)).astype(np.float32) * np.float32(2.0**-9)
    if on_grid:
        u = round_array(u, BF16, "nearest_even").astype(np.float32)
    w = jnp.asarray(drawn(BF16, size, 6).astype(np.float32)).clip(-4, 4)
    optimizer = two_components(BF16)

    def one(now: Any, step: Any) -> Any:
        updates, state = optimizer.update(step, now[1], now[0])
        after = optax.apply_updates(now[0], updates), state
        return after, (after[0], state.low)

    _, (high, low) = jax.jit(lambda: jax.lax.scan(one, (w, optimizer.init(w)), u))()
    high, low = (
        np.concatenate([first[None], np.asarray(rest).astype(float)]) for first, rest in ((np.asarray(w), high), (w * 0, low))
    )
    error = np.abs((high[1:] + low[1:]) - (high[:-1] + low[:-1] + u.astype(float)))

    def half(x: np.ndarray) -> np.ndarray:
        return 2.0 ** (np.frexp(np.maximum(np.abs(x), 2.0**-126))[1] - 1 - p)

    near = round_array(high[:-1] + u, BF16, "nearest_even")
    h = np.maximum(np.maximum(half(high[:-1]), half(near)), half(high[1:]))
    assert (error <= h * (2.0**-p + (0 if on_grid else 2.0 ** -(p + 1)) + 2.0**-20)).all()
    assert (np.abs(low) <= half(high)).all()  # normalized
    assert error.max() > 0


def test_a_small_learning_rate_reaches_the_minimum_that_rounded_weights_do_not() -> None:
    minimum, rate = jnp.float32([1.5, -1.23, 0.7, 0.013]), 1e-3
    begin = jnp.float32([1.0, -1.0, 1.0, 1.0])

    def ends(last: Any) -> tuple[np.ndarray, np.ndarray]:
        optimizer = optax.chain(optax.sgd(rate), last)

        def one(now: Any, _: Any) -> Any:
            updates, state = optimizer.update(now[0] - minimum, now[1], now[0])
            return (optax.apply_updates(now[0], updates), state), None

        (after, state), _ = jax.jit(lambda: jax.lax.scan(one, (begin, optimizer.init(begin)), length=40_000))()
        low = getattr(state[1], "low", jnp.zeros(4))
        return np.asarray(after, float), np.asarray(low, float)

    plain, _ = ends(round_params(BF16))
    assert plain.tolist() == begin.tolist()
    high, low = ends(two_components(BF16))
    goal = np.asarray(minimum, float)
    # It may rest only where a step is lost: rate |w - w*| <= 2^-p h (1 + 2^-p), with h half the gap of w.
    h = 2.0 ** (np.frexp(high)[1] - 1 - BF16.precision)
    assert (np.abs(high - goal) <= 2.0**-8 * h * (1 + 2.0**-8) / rate).all()
    assert (np.abs(high + low - goal) < 0.1 * np.abs(plain - goal)).all()


def test_stochastic_components_have_no_floor() -> None:
    w, u, steps = jnp.ones(4000), 2.0**-20, 1000

    def ends(optimizer: Any) -> Any:
        def one(now: Any, _: Any) -> Any:
            updates, state = optimizer.update(jnp.full(w.shape, u, jnp.float32), now[1], now[0])
            return (optax.apply_updates(now[0], updates), state), None

        (after, state), _ = jax.lax.scan(one, (w, optimizer.init(w)), length=steps)
        return np.asarray(after, float), np.asarray(state.low, float)

    high, low = ends(two_components(BF16))
    assert (high == 1).all()
    assert (low == low[0]).all()
    assert low[0] < 0.5 * steps * u
    high, low = ends(two_components(BF16, pl.stochastic))
    # Each step rounds c + u stochastically, with a variance of at most u times the gap of c below 2^-8.
    deviation = math.sqrt(steps * u * 2.0**-15 / w.size)
    assert abs(float(np.mean(high + low)) - 1 - steps * u) < 5 * deviation
    assert 50 * deviation < steps * u
    assert (np.abs(low) <= 2.0**-8).all()  # normalized: only what is lost anyway is random
    assert len(set(low.tolist())) > 10


@pytest.mark.slow
def test_one_stochastic_step_has_the_right_mean() -> None:
    """Both roundings at once, for an update wider than the format, above and below zero."""
    for fmt, u in ((BF16, 0.00123), (SATURATING, -0.0123), (pl.FLOAT16, 0.000123)):
        w = jnp.full(20_000, 1.25, jnp.float32)
        low = round_exact(-0.0011, fmt, "nearest_even")
        optimizer = two_components(fmt, pl.stochastic, seed=3)
        state = optimizer.init(w)._replace(low=jnp.full(w.shape, low, jnp.float32))
        updates, state = optimizer.update(jnp.full(w.shape, u, jnp.float32), state, w)
        total = np.asarray(w + updates, float) + np.asarray(state.low, float)
        wanted = 1.25 + float(np.float32(u)) + low
        # The error of a stochastic rounding lies within one gap, its variance within a quarter of its square.
        bound = float(ulp_exact(1.25, fmt) * Fraction(2) ** -fmt.precision)
        assert abs(total.mean() - wanted) < 5 * 2 * bound / math.sqrt(w.size)
        assert np.abs(total - wanted).max() > 0
        assert np.abs(total - wanted).max() <= 3 * bound + 2 * 2.0 ** (fmt.emin - fmt.precision + 1)


@pytest.mark.slow
def test_random_bits_derive_from_seed_and_step() -> None:
    params = {"a": jnp.ones(30), "b": jnp.ones(30)}

    def trained(seed: Any, stop: int | None = None) -> Any:
        optimizer, now = two_components(BF16, pl.stochastic, seed), params
        state, step = optimizer.init(now), stepper(optimizer)
        for number in range(6):
            if number == stop:
                state, step = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state), stepper(optimizer)
            now, state = step(now, state, jax.tree.map(lambda leaf: leaf * jnp.float32(0.000123), now))
        return now, state

    one = trained(1)
    same(one, trained(1, stop=3))
    assert (np.asarray(one[1].low["a"]) != np.asarray(one[1].low["b"])).any()
    assert (np.asarray(one[1].low["a"]) != np.asarray(trained(2)[1].low["a"])).any()
    assert int(one[1].count) == 6
    together = jax.vmap(trained)(jnp.arange(2))
    same(jax.tree.map(lambda leaf: leaf[1], together), one)


def test_an_update_far_larger_than_the_weight_keeps_the_weight() -> None:
    """The larger operand goes first: 1 - 2^-30 is no float32."""
    w, optimizer = jnp.float32([2.0**-30, -(2.0**-26) * 1.5]), two_components(BF16)
    after, state = stepper(optimizer)(w, optimizer.init(w), jnp.float32([1.0, 2.0]))
    assert (after.tolist(), state.low.tolist()) == ([1.0, 2.0], w.tolist())


def test_products_are_not_contracted_into_the_sums() -> None:
    """In float32 itself every bit of an update arrives in the second component, so that a fused product would show."""
    random = np.random.default_rng(8)
    w, g = (jnp.asarray(random.standard_normal(4096).astype(np.float32)) for _ in range(2))
    optimizer = optax.chain(optax.scale(-0.0123), two_components(pl.FLOAT32))
    state, step = optimizer.init(w), stepper(optimizer)
    with jax.disable_jit():
        eager = step(w, state, g)
    same(step(w, state, g), eager)


def test_other_modes_round_what_is_lost() -> None:
    w, u = jnp.ones(1), jnp.float32([2.0**-20 * (1 + 2.0**-12)])
    for mode, low in ((pl.upward, 2.0**-20 * (1 + 2.0**-7)), (pl.toward_zero, 2.0**-20)):
        optimizer = two_components(BF16, mode)
        updates, state = optimizer.update(u, optimizer.init(w), w)
        assert (updates.tolist(), state.low.tolist()) == ([0.0], [low])


def test_what_is_not_finite_leaves_nothing_behind() -> None:
    w = jnp.float32([3e38, 1.0, 1.0, 1.0, -3e38])
    optimizer = two_components(BF16)
    state = optimizer.init(w)._replace(low=jnp.float32([1e35, 2.0**-10, 2.0**-10, 2.0**-10, 0]))
    after, state = stepper(optimizer)(w, state, jnp.float32([3e38, jnp.inf, jnp.nan, -jnp.inf, -3e38]))
    assert [after.tolist()[i] for i in (0, 1, 3, 4)] == [math.inf, math.inf, -math.inf, -math.inf]
    assert math.isnan(after[2])
    assert state.low.tolist() == [0, 0, 0, 0, 0]
    optimizer = two_components(pl.FLOAT8_E4M3FN)
    after, state = stepper(optimizer)(jnp.float32([448.0]), optimizer.init(jnp.ones(1)), jnp.float32([100.0]))
    assert math.isnan(after[0])
    assert state.low.tolist() == [0]
    # What saturates owes what is beyond.
    optimizer = two_components(SATURATING)
    after, state = stepper(optimizer)(jnp.float32([448.0]), optimizer.init(jnp.ones(1)), jnp.float32([96.0]))
    assert (after.tolist(), state.low.tolist()) == ([448.0], [96.0])
    after, state = stepper(optimizer)(after, state, jnp.float32([-96.0]))
    assert (after.tolist(), state.low.tolist()) == ([448.0], [0.0])


def test_other_leaves_pass_through() -> None:
    params = {"w": jnp.ones(3), "none": None, "count": jnp.arange(2), "masked": optax.MaskedNode()}
    grads = {"w": jnp.full(3, 2.0**-8), "none": None, "count": jnp.array([3, -1]), "masked": optax.MaskedNode()}
    optimizer = two_components(BF16)
    state, step = optimizer.init(params), stepper(optimizer)
    assert state.low["count"] is None
    after = params
    for _ in range(2):
        after, state = step(after, state, grads)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert after["count"].tolist() == [6, -1]
    assert after["w"].tolist() == [1 + 2.0**-7] * 3
    _, empty = optimizer.update({}, optimizer.init({}), {})
    assert int(empty.count) == 1


def test_scans_and_donated_buffers_give_the_same() -> None:
    optimizer = optax.chain(optax.trace(0.5), two_components(BF16))
    params, grads = jnp.asarray(drawn(BF16, 30, 3).astype(np.float32)), jnp.full(30, 1e-3)
    step = stepper(optimizer)
    now = params, optimizer.init(params)
    for _ in range(4):
        now = step(*now, grads)
    scanned, _ = jax.lax.scan(lambda here, _: (step(*here, grads), None), (params, optimizer.init(params)), length=4)
    same(scanned, now)
    donated = jnp.copy(params), optimizer.init(jnp.copy(params))
    donating = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(4):
        donated = donating(*donated, grads)
    same(donated, now)


def test_a_tracker_tells_what_waits_from_what_is_lost() -> None:
    """Up from 1.0: one lands, one gathers in the second component, one is below its floor, one is zero."""
    params = jnp.ones(4)
    optimizer = track(optax.chain(optax.sgd(1.0), two_components(BF16)))
    low = jnp.float32([0, 0, 2.0**-8, 0])
    state = optimizer.init(params)
    has_low = lambda node: hasattr(node, "low")  # noqa: E731
    state = jax.tree.map(lambda node: node._replace(low=low) if has_low(node) else node, state, is_leaf=has_low)
    _, state = stepper(optimizer)(params, state, -jnp.float32([0.01, 0.001, 2.0**-17, 0.0]))
    fates = stagnation(state).tally
    # Of two that did not move one is invisible, the other lost.
    assert (int(fates.landed), int(fates.invisible), int(fates.swamped), int(fates.zero)) == (1, 1, 2, 1)


def test_wrong_requests_are_sentences() -> None:
    with pytest.raises(TypeError, match=r"two_components: fmt must be a Format such as precisionlab\.BFLOAT16"):
        two_components("bfloat16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"two_components: mode .*precisionlab\.upward"):
        two_components(BF16, "upward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision"):
        two_components(BF16._replace(precision=0))
    with pytest.raises(ValueError, match="two_components: the second starts at zero, and float8_e8m0fnu has none"):
        two_components(pl.FLOAT8_E8M0FNU)
    optimizer = two_components(BF16)
    with pytest.raises(ValueError, match=r"two_components: .*call update\(grads, state, params\)"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
