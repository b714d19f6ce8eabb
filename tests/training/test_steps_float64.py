"""Steps whose parameters are float64: formats up to 53 bits and 11 exponent bits, at every site, as numpy and rationals say."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.arithmetic.rules import Rules
from precisionlab.numerics.blocks import MXFP8_E4M3, round_blocks
from precisionlab.training.loss_scaling import static_loss_scale
from precisionlab.training.steps import carrier_of_params
from tests import cases, oracle

RATE, CURVATURES = 0.3, np.exp2([-2.0, -1.0, 0.0, 0.0, -3.0, 1.0])
WIDE = oracle.Numbers(53, -1022, float(np.finfo(np.float64).max), math.inf)


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def fmt(p: int, exponent_bits: int = 8) -> pl.Format:
    bias = 2 ** (exponent_bits - 1) - 1
    return pl.Format(p, 1 - bias, math.ldexp(2.0 - math.ldexp(1.0, 1 - p), bias), math.inf, True)


def bowl(w: Any, batch: Any) -> Any:
    """Its gradient is h (w - m); h are powers of two, so that only the difference rounds."""
    distance = w["a"] - batch
    return 0.5 * jnp.sum(CURVATURES * distance * distance)


def begin_at(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(6) * 3


TARGET = np.random.default_rng(99).standard_normal(6)


def as_law(numbers: Any, mode: str) -> Any:
    return lambda x: x if numbers is None else oracle.round_array(x, numbers, mode)


def difference(w: np.ndarray, m: np.ndarray, numbers: Any, mode: str) -> np.ndarray:
    """w - m rounded once, in rationals."""
    exact = [Fraction(a) - Fraction(b) for a, b in zip(w.tolist(), m.tolist(), strict=True)]
    made = []
    for value in exact:
        if value == 0:
            made.append(0.0)
            continue
        around = oracle.bracket(abs(value), numbers)
        magnitude = around.above if oracle.goes_up(around, value < 0, mode) else around.below
        made.append(oracle.finish(magnitude, value < 0, numbers, True))
    return np.array(made)


def by_hand(w: np.ndarray, policy: pl.Policy, mode: str, steps: int) -> np.ndarray:
    """The bowl descended in numpy, each site rounded by the oracle."""
    w = as_law(policy.weights, "nearest_even")(w)
    gradients, updates, weights = (as_law(getattr(policy, site), mode) for site in ("gradients", "updates", "weights"))
    for _ in range(steps):
        here, there = w, TARGET
        if policy.compute is not None:
            here, there = (as_law(policy.compute, mode)(x) for x in (w, TARGET))
        g = CURVATURES * difference(here, there, policy.compute or WIDE, mode if policy.compute else "nearest_even")
        w = weights(w + updates(-RATE * gradients(g)))
    return w


POLICIES = {
    "weights 30": pl.Policy(weights=fmt(30)),
    "weights 24, range of 11 bits": pl.Policy(weights=fmt(24, 11)),
    "all but compute": pl.Policy(weights=fmt(40, 11), gradients=fmt(30), updates=fmt(35)),
    "compute 40": pl.Policy(compute=fmt(40, 11)),
    "everything": pl.Policy(weights=fmt(30), compute=fmt(28), gradients=fmt(9), updates=fmt(12)),
    "float64": pl.Policy(weights=pl.FLOAT64, compute=pl.FLOAT64, gradients=pl.FLOAT64, updates=pl.FLOAT64),
    "plain": pl.Policy(),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "nearest_even") for name in POLICIES), ("all but compute", "toward_zero"), ("everything", "toward_zero")],
)
def test_a_step_is_the_loop_by_hand(name: str, mode: str) -> None:
    policy, steps = POLICIES[name], 12
    with jax.enable_x64(True):
        step = pl.make_step(bowl, optax.sgd(RATE), modes=pl.MODES[mode])
        start = pl.start({"a": jnp.asarray(begin_at(1))}, optax.sgd(RATE), policy)
        cases.assert_same(start.params["a"], as_law(policy.weights, "nearest_even")(begin_at(1)), what="start")
        state, record = pl.run(step, start, lambda _: jnp.asarray(TARGET), policy, steps=steps)
        made = np.asarray(state.params["a"])
    assert record.loss.dtype == np.float64
    cases.assert_same(made, by_hand(begin_at(1), policy, mode, steps), what=name)


@pytest.mark.slow
def test_a_sweep_over_wide_formats_is_its_runs() -> None:
    policies = [pl.Policy(weights=fmt(p, e)) for p in (3, 24, 25, 53) for e in (5, 8, 11)] + [pl.Policy()]
    optimizer = optax.sgd(RATE)
    with jax.enable_x64(True):
        step = pl.make_step(bowl, optimizer)

        def begin(key: Any, policy: pl.Policy) -> Any:
            return pl.start({"a": jax.random.normal(key, (6,), jnp.float64)}, optimizer, policy, key=key)

        state, _ = pl.sweep(step, begin, lambda _: jnp.asarray(TARGET), policies, range(2), steps=9)
        for i, policy in enumerate(policies):
            for seed in range(2):
                first = np.asarray(jax.random.normal(jax.random.key(seed), (6,), jnp.float64))
                hand = by_hand(first, policy, "nearest_even", 9)
                cases.assert_same(np.asarray(state.params["a"])[i, seed], hand, what=f"{policy} {seed}")


def net(params: Any, batch: Any) -> Any:
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
    return 0.5 * jnp.sum((hidden @ params["out"] - targets) ** 2)


def net_at(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    params = {"in": rng.standard_normal((2, 5)), "bias": rng.standard_normal(5), "out": rng.standard_normal((5, 1))}
    return params, (rng.standard_normal((4, 2)), rng.standard_normal((4, 1)))


@pytest.mark.slow
def test_53_bits_are_plain_float64_descent() -> None:
    """Of a bowl bit for bit; a net's sums and fused products are taken in an order that each compilation chooses."""
    plain = begin_at(1)
    for _ in range(12):
        plain = plain + -RATE * (CURVATURES * (plain - TARGET))
    for sites in PLACEMENTS.values():
        policy = pl.Policy(**dict.fromkeys(sites, pl.FLOAT64))
        cases.assert_same(by_hand(begin_at(1), policy, "nearest_even", 12), plain)
    optimizer = optax.sgd(0.05)
    step = pl.make_step(net, optimizer)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, net_at(3))
        policies = [pl.Policy(weights=pl.FLOAT64, gradients=pl.FLOAT64), pl.Policy(), pl.Policy(weights=fmt(50))]
        begin = lambda key, policy: pl.start(params, optimizer, policy, key=key)  # noqa: E731
        state, record = pl.sweep(step, begin, lambda _: batch, policies, [0], steps=50)
    assert float(record.loss[0, 0, -1]) < 0.5 * float(record.loss[0, 0, 0])
    for name, leaf in state.params.items():
        cases.assert_same(leaf[0], leaf[1], what=name)
        assert name != "in" or (np.asarray(leaf[0]) != np.asarray(leaf[2])).any()


@pytest.mark.slow
def test_compute_in_53_bits_differs_from_24() -> None:
    optimizer = optax.sgd(0.05)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, net_at(3))
        step = pl.make_step(net, optimizer)
        losses = {}
        for p in (24, 53):
            policy = pl.Policy(compute=fmt(p, 11))
            losses[p] = float(pl.run(step, pl.start(params, optimizer, policy), lambda _: batch, policy, steps=1)[1].loss[0])
            # Closed over the numbers are known, and checked.
            known = jax.jit(partial(step, formats=policy))(pl.start(params, optimizer, policy), batch)[1].loss
            assert float(known) == pytest.approx(losses[p], rel=1e-15)
        exact = float(net(params, batch))
    assert losses[53] == pytest.approx(exact, rel=1e-15)
    assert 1e-12 < abs(losses[24] - exact) / exact < 1e-5


@pytest.mark.slow
def test_moments_and_blocks_are_rounded_in_float64() -> None:
    optimizer = optax.adam(1e-2)
    policy = pl.Policy(weights=MXFP8_E4M3, moments=fmt(30))
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, net_at(1))
        state, record = pl.run(
            pl.make_step(net, optimizer), pl.start(params, optimizer, policy), lambda _: batch, policy, steps=5
        )
        for leaf in jax.tree.leaves((state.optimizer[0].mu, state.optimizer[0].nu)):
            assert leaf.dtype == np.float64
            cases.assert_same(leaf, oracle.round_array(np.asarray(leaf), policy.moments, "nearest_even"))
            assert (np.asarray(leaf) != np.asarray(leaf).astype(np.float32)).any()
        for leaf in jax.tree.leaves(state.params):
            cases.assert_same(leaf, round_blocks(leaf, MXFP8_E4M3, -1))
    assert set(pl.by_path(record.tally)) == {"in", "bias", "out"}


@pytest.mark.slow
def test_loss_scaling_and_ages_take_float64() -> None:
    optimizer, policy = optax.sgd(0.05), pl.Policy(weights=fmt(40))
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, net_at(1))
        begun = [pl.start(params, optimizer, policy, ages=True, loss_scale=scale) for scale in (None, static_loss_scale(1024))]
        ends = [pl.run(pl.make_step(net, optimizer), state, lambda _: batch, policy, steps=6)[0] for state in begun]
    for one, two in zip(*(jax.tree.leaves(end.params) for end in ends), strict=True):
        cases.assert_same(one, two)


def test_what_float32_cannot_hold_is_refused_without_float64() -> None:
    wide = pl.Policy(weights=fmt(25))
    reached = pl.Policy(weights=fmt(8, 11))
    params, optimizer = {"a": jnp.ones(6)}, optax.sgd(RATE)
    step = pl.make_step(bowl, optimizer)
    for on in (False, True):
        with jax.enable_x64(on) if on else nullcontext():
            small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
            assert carrier_of_params(small).precision == 24
            for policy, words in ((wide, "it needs 25 significand bits"), (reached, r"its smallest normal is 2\^-1022")):
                with pytest.raises(ValueError, match=rf"start: Policy\.weights: .*carrier float32: {words}.*float64 carrier"):
                    pl.start(small, optimizer, policy)
                begun = pl.start(small, optimizer)
                with pytest.raises(ValueError, match=r"step: Policy\.weights: .*does not fit its carrier float32"):
                    step(begun, jnp.zeros(6, jnp.float32), policy)
                with pytest.raises(ValueError, match=r"run: Policy\.weights: .*does not fit its carrier float32"):
                    pl.run(step, begun, lambda _: jnp.zeros(6, jnp.float32), policy, steps=1)
                for passed in (policy, pl.Policy()):
                    with pytest.raises(ValueError, match=r"(sweep|start): Policy\.weights: .*does not fit its carrier float32"):
                        pl.sweep(
                            step,
                            lambda _, given, small=small, passed=passed: pl.start(small, optimizer, given and passed),
                            lambda _: jnp.zeros(6, jnp.float32),
                            [pl.Policy(weights=pl.BFLOAT16), policy],
                            [0],
                            steps=1,
                        )
    with pytest.raises(ValueError, match=r"start: Policy\.compute: .*does not fit its carrier float32"):
        pl.start(params, optimizer, pl.Policy(compute=Rules(pl.BFLOAT16, primitives={"exp": fmt(30)})))
    with jax.enable_x64(True):
        narrow_moments = optax.adam(1e-3, mu_dtype=jnp.float32)
        wide_params = {"a": jnp.ones(6, jnp.float64)}
        with pytest.raises(ValueError, match=r"start: Policy\.moments, in the dtype of the optimizer's state: .*float32"):
            pl.start(wide_params, narrow_moments, pl.Policy(moments=fmt(30)))
        with pytest.raises(ValueError, match=r"start: Policy\.moments, in the dtype of the optimizer's state: .*float32"):
            pl.sweep(
                pl.make_step(bowl, narrow_moments),
                lambda key, policy: pl.start(wide_params, narrow_moments, policy, key=key),
                lambda _: jnp.zeros(6),
                [pl.Policy(moments=pl.BFLOAT16), pl.Policy(moments=fmt(30))],
                [0],
                steps=1,
            )
        begun = pl.start(wide_params, optimizer, wide)
    assert carrier_of_params(begun.params).precision == 24, "where 64-bit JAX is off, float64 arrays are computed in float32"
    with pytest.raises(ValueError, match=r"step: Policy\.weights: .*float64 carrier \(jax\.enable_x64\)"):
        step(begun, jnp.zeros(6), wide)
