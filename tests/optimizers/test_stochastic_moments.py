"""Moments stored narrow: what nearest rounding loses for ever, stochastic rounding keeps in the mean.

A stochastic average s <- round(b s + (1 - b) x) has the exact average as its mean. One rounding that moves by m of a gap g
has the variance m (g - m) <= m g. On the way from 0 to 1 moves are (1 - b)(1 - s), and after k steps b^k is left of each, so
that an entry's variance is at most (1 - b) g / (1 - b^2) = g / (1 + b), with g the widest gap on the way.
"""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import round_state
from precisionlab.stagnation.averages import is_ratchet, stall_level
from tests import cases

B = 0.999
FORMATS = {"bfloat16": pl.BFLOAT16, "float8_e5m2": pl.FLOAT8_E5M2}
ENTRIES = 4096


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def moment(state: Any) -> Any:
    """The one average in a state: nu of Adam, or that of `ema` and `trace`."""
    inner = state.inner
    return next(getattr(inner, name) for name in ("nu", "ema", "trace") if hasattr(inner, name))


def set_moment(state: Any, value: Any) -> Any:
    name = next(name for name in ("nu", "ema", "trace") if hasattr(state.inner, name))
    return state._replace(inner=state.inner._replace(**{name: value}))


def run(optimizer: Any, gradient: float, steps: int, start: float = 0.0, entries: int = ENTRIES) -> np.ndarray:
    """The average after every step, for entries that are all fed the same gradient."""
    w = jnp.ones(entries)
    grads = jnp.full(entries, gradient, jnp.float32)

    def one(state: Any, _: Any) -> Any:
        state = optimizer.update(grads, state, w)[1]
        return state, moment(state)

    begin = set_moment(optimizer.init(w), jnp.full(entries, start, jnp.float32))
    return np.asarray(jax.jit(lambda: jax.lax.scan(one, begin, length=steps))()[1], float)


def expected(decay: float, target: float, start: float, steps: int) -> np.ndarray:
    return target + (start - target) * decay ** np.arange(1, steps + 1)


def widest_gap(fmt: pl.Format, top: float) -> float:
    """The widest gap below a power of two."""
    return float(pl.ulp(top / 2, fmt))


AVERAGES: dict[str, Any] = {
    "adam": lambda fmt, mode, seed=0: round_state(optax.scale_by_adam(b2=B), fmt, mode, seed),
    "ema": lambda fmt, mode, seed=0: round_state(optax.ema(B, debias=False), fmt, mode, seed),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_of_ones_arrives_in_the_mean_where_nearest_stalls(kind: str, name: str) -> None:
    fmt, steps = FORMATS[name], 3000
    nearest = run(AVERAGES[kind](fmt, pl.nearest_even), 1.0, steps, entries=2)
    assert (nearest[-1] == stall_level(B, fmt)).all()
    stochastic = run(AVERAGES[kind](fmt, pl.stochastic), 1.0, steps)
    variance = widest_gap(fmt, 1.0) / (1 + B)  # no average of ones from 0 passes 1, a value of the format
    # What float32 adds: two roundings a step of numbers below 1, and a decay rounded to 24 bits.
    carried = 2 * 2.0**-24 / (1 - B)
    apart = np.abs(stochastic.mean(1) - expected(B, 1.0, 0.0, steps))
    assert apart.max() < 5 * math.sqrt(variance / ENTRIES) + carried
    assert stochastic[-1].mean() > 0.9 > 2 * nearest[-1, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_the_mean_over_seeds_is_exact_too(name: str) -> None:
    fmt, steps, seeds = FORMATS[name], 400, 256

    def ends(seed: Any) -> Any:
        optimizer, w = AVERAGES["adam"](fmt, pl.stochastic, seed), jnp.ones(4)
        state, _ = jax.lax.scan(lambda state, _: (optimizer.update(w, state, w)[1], None), optimizer.init(w), length=steps)
        return moment(state)

    found = np.asarray(jax.jit(jax.vmap(ends))(jnp.arange(seeds)), float)
    deviation = math.sqrt(widest_gap(fmt, 1.0) / (1 + B) / found.size)
    assert abs(found.mean() - expected(B, 1.0, 0.0, steps)[-1]) < 5 * deviation + 2.0**-13


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", AVERAGES)
def test_the_ratchet_falls_again(kind: str, name: str) -> None:
    """Fed zeros from 1 on, nearest keeps it for ever; with stochastic rounding the mean forgets as it should."""
    fmt, steps = FORMATS[name], 3000
    assert is_ratchet(B, fmt)
    nearest = run(AVERAGES[kind](fmt, pl.nearest_even), 0.0, steps, start=1.0, entries=2)
    assert (nearest == 1).all()
    stochastic = run(AVERAGES[kind](fmt, pl.stochastic), 0.0, steps, start=1.0)
    assert (stochastic <= 1).all()
    variance = widest_gap(fmt, 1.0) / (1 + B)
    apart = np.abs(stochastic.mean(1) - expected(B, 0.0, 1.0, steps))
    assert apart.max() < 5 * math.sqrt(variance / ENTRIES) + 2 * 2.0**-24 / (1 - B)
    assert 0 < stochastic[-1].mean() < 0.1


@pytest.mark.parametrize("name", FORMATS)
def test_a_trace_is_an_average_of_what_it_should_reach(name: str) -> None:
    """A trace t <- g + b t rests where an average of g / (1 - b) does, unless it is stochastic. These products are exact."""
    fmt, steps, decay, goal = FORMATS[name], 400, 0.96875, 32.0
    nearest = run(round_state(optax.trace(decay), fmt), 1.0, steps, entries=2)
    assert (nearest[-1] == stall_level(decay, fmt, goal)).all()
    stochastic = run(round_state(optax.trace(decay), fmt, pl.stochastic), 1.0, steps)
    assert stochastic.max() <= goal  # a value of the format
    variance = widest_gap(fmt, goal) * goal / (1 + decay)  # moves are (1 - b)(goal - t) now
    apart = np.abs(stochastic.mean(1) - expected(decay, goal, 0.0, steps))
    assert apart.max() < 5 * math.sqrt(variance / ENTRIES)
    assert stochastic[-1].mean() > nearest[-1, 0] + 1


def test_a_step_that_float32_cannot_tell_from_a_tie_falls_as_a_tie() -> None:
    """In e4m3fn a thousandth of 1 - 12/512 is half a gap, 12 is even, and 1 - float(0.999) a little more than a thousandth."""
    fmt = pl.FLOAT8_E4M3FN
    assert stall_level(B, fmt) == 13 / 512
    assert stall_level(Fraction(999, 1000), fmt) == 12 / 512
    assert run(AVERAGES["ema"](fmt, pl.nearest_even), 1.0, 1000, entries=1)[-1] == 12 / 512


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_equal_seeds_give_equal_moments(name: str) -> None:
    """Another seed other bits; a run through the host in the middle the same."""
    fmt, w = FORMATS[name], jnp.ones(64)

    def after(seed: int, stop: int | None = None) -> Any:
        optimizer = round_state(optax.adam(1e-3), fmt, pl.stochastic, seed)
        state, update = optimizer.init(w), jax.jit(optimizer.update)
        for number in range(12):
            if number == stop:
                state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
                update = jax.jit(round_state(optax.adam(1e-3), fmt, pl.stochastic, seed).update)
            state = update(w, state, w)[1]
        return state

    one, again, resumed, other = after(7), after(7), after(7, stop=5), after(8)
    for a, b, c in zip(*map(jax.tree.leaves, (one, again, resumed)), strict=True):
        cases.assert_same(a, b)
        cases.assert_same(a, c)
    assert (np.asarray(one.inner[0].nu) != np.asarray(other.inner[0].nu)).any()
    assert len(set(np.asarray(one.inner[0].nu).tolist())) > 1
