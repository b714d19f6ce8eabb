"""Scaled gradients survive narrow formats, skipped steps leave no trace but their number, and the scale follows its rule."""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.training.loss_scaling import (
    LossScale,
    all_finite,
    dynamic_loss_scale,
    next_scale,
    scale_loss,
    select_step,
    static_loss_scale,
    unscale,
)
from precisionlab.training.steps import batch_key
from tests import cases


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@lru_cache
def digits() -> Any:
    from precisionlab.problems import digits

    return digits(sizes=(64, 8, 10), batch_size=16)


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if np.asarray(a).dtype.kind == "f":
            cases.assert_same(a, b, what=jax.tree_util.keystr(path))
        else:
            assert np.array_equal(a, b), path


def trained(loss: Any, optimizer: Any, formats: pl.Policy, scale: LossScale | None, steps: int = 40, **options: Any) -> Any:
    state = pl.start(digits().init(jax.random.key(0)), optimizer, formats, key=5, loss_scale=scale)
    return pl.run(pl.make_step(loss, optimizer, detail=False, **options), state, digits().batch, formats, steps=steps)


# The scale by itself


@pytest.mark.parametrize("growth", [2.0, 4.0])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_scale_follows_its_rule(growth: float, share: float) -> None:
    """Against a plain replay, through bounds on both sides."""
    state = dynamic_loss_scale(2.0**4, period=3, growth=growth, smallest=2.0**-2, largest=2.0**9)
    finite = np.random.default_rng(0).random(400) >= share

    def step(state: LossScale, good: Any) -> Any:
        state = next_scale(state, good)
        return state, (state.scale, state.good_steps, state.skipped)

    _, seen = jax.lax.scan(step, state, jnp.asarray(finite))
    scale, good, skipped, expected = 16.0, 0, 0, []
    for ok in finite:
        if not ok:
            scale, good, skipped = max(scale / growth, 0.25), 0, skipped + 1
        elif good + 1 == 3:
            scale, good = min(scale * growth, 512.0), 0
        else:
            good += 1
        expected.append((scale, good, skipped))
    assert list(zip(*(column.tolist() for column in seen), strict=True)) == expected
    assert {0.02: 512.0, 0.9: 0.25}.get(share, scale) in {row[0] for row in expected}


def test_a_static_scale_stays_and_counts() -> None:
    state = static_loss_scale(128)
    for finite in (True, False, True, True):
        state = next_scale(state, jnp.bool_(finite))
    assert (float(state.scale), int(state.good_steps), int(state.skipped)) == (128.0, 2, 1)


def test_scaling_and_unscaling_are_exact_in_float32() -> None:
    x = jnp.asarray(cases.random_bits(5000, seed=3))
    x = x[jnp.isfinite(x) & (jnp.abs(x) > 2.0**-90) & (jnp.abs(x) < 2.0**90)]
    for exponent in (-20, -1, 0, 10, 24):
        state = static_loss_scale(2.0**exponent)
        cases.assert_same(unscale(state, scale_loss(state, x)), x)
        narrow = jnp.asarray([1.5, 2.0**-24, 65504.0], jnp.float16)
        wide = unscale(state, {"a": narrow})["a"]
        assert wide.dtype == jnp.float32
        assert wide.tolist() == [value * 2.0**-exponent for value in narrow.tolist()]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e5m2])
def test_finite_or_not(dtype: Any) -> None:
    good, bad = jnp.ones(3, dtype), [jnp.array([1.0, value], dtype) for value in (jnp.inf, -jnp.inf, jnp.nan)]
    assert bool(all_finite({"a": good, "b": good}))
    assert bool(all_finite({}))
    for leaf in bad:
        assert not bool(all_finite({"a": good, "b": leaf}))
    # An overflow is that of the stored value, whatever the compiler makes of the cast.
    assert not bool(jax.jit(lambda x: all_finite(x.astype(jnp.float16)))(jnp.array([7e4, 1.0])))


def test_select_takes_one_whole_tree() -> None:
    new, old = {"a": jnp.ones(2), "k": jax.random.key(1)}, {"a": jnp.zeros(2), "k": jax.random.key(2)}
    for finite, chosen in ((True, new), (jnp.bool_(False), old)):
        same(select_step(finite, new, old), chosen)


def test_wrong_scales_are_sentences() -> None:
    for make in (static_loss_scale, dynamic_loss_scale):
        with pytest.raises(ValueError, match=r"scale must be a power of two, .*; got 1000; the nearest is 1024\."):
            make(1000)
        for wrong in (0, -2.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match=r"scale must be a power of two.*; got [-0-9infa.]+\.$"):
                make(wrong)
        for odd in ("1024", True, None):
            with pytest.raises(ValueError, match="scale must be a number, a power of two such as 1024; got"):
                make(odd)
        with pytest.raises(ValueError, match=r"scale must lie from 2\^-100 to 2\^100"):
            make(2.0**101)
    with pytest.raises(ValueError, match="dynamic_loss_scale: growth must be a power of two"):
        dynamic_loss_scale(growth=3)
    with pytest.raises(ValueError, match="dynamic_loss_scale: growth must be at least 2; got 1"):
        dynamic_loss_scale(growth=1)
    with pytest.raises(ValueError, match=r"the scale must lie between smallest and largest; got scale=0\.5, smallest=1\.0"):
        dynamic_loss_scale(0.5)
    for period in (0, 2.5, True):
        with pytest.raises(ValueError, match="period must be a whole number of steps, at least 1"):
            dynamic_loss_scale(period=period)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"start: loss_scale must be a LossScale, such as dynamic_loss_scale\(\).*; got 1024"):
        pl.start(jnp.ones(2), optax.sgd(0.1), loss_scale=1024)  # pyright: ignore[reportArgumentType]


# In a step


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.05), optax.adam(2e-3)], ids=["sgd", "adam"])
def test_a_power_of_two_changes_no_bit_in_float32(optimizer: Any) -> None:
    # One program with another number in it; another program may take its sums in another order.
    (one, record), (many, seen) = (trained(digits().loss, optimizer, pl.Policy(), static_loss_scale(s)) for s in (1, 1024))
    same((many.params, many.optimizer), (one.params, one.optimizer))
    same((seen.loss, seen.tally), (record.loss, record.tally))
    assert (seen.scale == 1024).all()
    assert not seen.skipped.any()
    assert int(many.loss_scale.good_steps) == 40
    # Operation by operation it is what it is without a scale.
    step, params = pl.make_step(digits().loss, optimizer, detail=False), digits().init(jax.random.key(0))
    plain, scaled = (pl.start(params, optimizer, loss_scale=scale) for scale in (None, static_loss_scale(2.0**-8)))
    for number in range(3):
        batch = digits().batch(jax.random.key(number))
        plain, scaled = step(plain, batch)[0], step(scaled, batch)[0]
    same((scaled.params, scaled.optimizer), (plain.params, plain.optimizer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("simulated", "float16"),
        ("native", "float8_e5m2"),
        pytest.param("simulated", "float8_e5m2", marks=pytest.mark.thorough),
        pytest.param("native", "float16", marks=pytest.mark.thorough),
    ],
)
def test_gradients_that_underflow_train_with_a_scale(name: str, kind: str) -> None:
    """A loss 2^-24 times as large with a scale of 2^24 is, bit for bit, the loss itself without."""
    small = 2.0**-24

    def tiny(params: Any, batch: Any) -> Any:
        return digits().loss(params, batch) * small

    formats = pl.Policy(gradients=cases.FORMATS[name]) if kind == "simulated" else pl.Policy()
    options: Any = {} if kind == "simulated" else {"dtypes": pl.Policy(gradients=cases.ml_dtype(name))}
    lost, record = trained(tiny, optax.sgd(0.25 / small), formats, None, **options)
    same(lost.params, digits().init(jax.random.key(0)))
    assert int(np.asarray(pl.total(record.tally).zero).min()) == sum(leaf.size for leaf in jax.tree.leaves(lost.params))
    saved, record = trained(tiny, optax.sgd(0.25 / small), formats, static_loss_scale(2.0**24), **options)
    plain, expected = trained(digits().loss, optax.sgd(0.25), formats, None, **options)
    same(saved.params, plain.params)
    same(record.loss / small, expected.loss)
    assert float(expected.loss[-5:].mean()) < 0.9 * float(expected.loss[:5].mean())


def linear(w: Any, batch: Any) -> Any:
    """Its gradient is the batch."""
    return jnp.sum(w * batch)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["simulated", "native"])
@pytest.mark.parametrize("every", [1, 4])
def test_a_dynamic_scale_recovers_from_overflow(kind: str, every: int) -> None:
    """Every count of a replay in numpy, from a scale far too large and through gradients that vary by 2^12."""
    sizes = np.exp2(np.random.default_rng(1).integers(-6, 7, (60, 3))).astype(np.float32)
    sizes *= np.random.default_rng(2).uniform(1, 2, sizes.shape).astype(np.float32)
    simulated = kind == "simulated"
    formats = pl.Policy(gradients=pl.FLOAT16) if simulated else pl.Policy()
    dtypes = None if simulated else pl.Policy(gradients=jnp.float16)
    optimizer = optax.sgd(2.0**-6, momentum=0.5)
    step = pl.make_step(linear, optimizer, dtypes=dtypes, every=every, detail=False)
    scale = dynamic_loss_scale(2.0**20, period=5, largest=2.0**20)
    state = pl.start(jnp.zeros(3), optimizer, formats, key=3, ages=True, loss_scale=scale)
    step = jax.jit(step)
    scales, size, good, skipped, momentum, w = [], 2.0**20, 0, 0, np.zeros(3, np.float32), np.zeros(3, np.float32)
    moved, updates = 0, 0
    for number, batch in enumerate(sizes, 1):
        before = state
        state, record = step(state, jnp.asarray(batch), formats)
        with np.errstate(over="ignore"):
            gradient = (batch * np.float32(size)).astype(np.float16).astype(np.float32)
        finite = bool(np.isfinite(gradient).all())
        assert bool(record.skipped) is not finite
        assert (float(record.scale), int(state.step), int(record.step)) == (size, number, number)
        assert float(record.loss) == pytest.approx(float(np.sum(w * batch)), rel=1e-5)
        counted = pl.total(record.tally)
        assert int(counted.entries) == (3 if number % every == 0 else 0)
        if finite:
            momentum = gradient / np.float32(size) + np.float32(0.5) * momentum
            w = w - np.float32(2.0**-6) * momentum
            good, moved, updates = good + 1, moved + 1, updates + 1
            if good == 5:
                size, good = min(size * 2, 2.0**20), 0
        else:
            same((state.params, state.optimizer, state.ages), (before.params, before.optimizer, before.ages))
            assert int(counted.zero) == int(counted.entries)
            size, good, skipped = max(size / 2, 1.0), 0, skipped + 1
        np.testing.assert_allclose(state.params, w, rtol=1e-6)
        assert state.loss_scale is not None
        now = (float(state.loss_scale.scale), int(state.loss_scale.good_steps), int(state.loss_scale.skipped))
        assert now == (size, good, skipped)
        assert int(state.ages.updates) == updates
        scales.append(size)
    assert skipped > 8
    assert any(later > earlier for earlier, later in pairwise(scales))


@pytest.mark.slow
def test_batches_and_bits_go_on_after_a_skipped_step() -> None:
    optimizer, formats = optax.sgd(0.1), pl.Policy(gradients=pl.FLOAT16)
    step = pl.make_step(linear, optimizer)
    state = pl.start(jnp.zeros(2), optimizer, formats, loss_scale=dynamic_loss_scale(2.0**20))
    keys = []
    for _ in range(3):
        keys.append(jax.random.key_data(batch_key(state)).tolist())
        state, record = step(state, jnp.ones(2), formats)
        assert bool(record.skipped)
    assert len(set(map(tuple, keys))) == 3


def test_a_zero_keeps_its_sign_in_a_skipped_step() -> None:
    optimizer, formats = optax.sgd(0.1), pl.Policy(weights=pl.BFLOAT16, gradients=pl.FLOAT16)
    step = jax.jit(pl.make_step(linear, optimizer))
    state = pl.start(jnp.array([-0.0, 1.0]), optimizer, formats, loss_scale=static_loss_scale(2.0**20))
    after, record = step(state, jnp.ones(2), formats)
    assert bool(record.skipped)
    cases.assert_same(after.params, state.params)


def test_without_a_scale_nothing_is_kept_or_computed() -> None:
    optimizer = optax.sgd(0.1)
    step = pl.make_step(linear, optimizer)
    texts = {}
    for scale in (None, static_loss_scale(2)):
        state = pl.start(jnp.ones(2), optimizer, loss_scale=scale)
        _, record = step(state, jnp.ones(2))
        assert (record.skipped is None) is (record.scale is None) is (scale is None)
        texts[scale is None] = jax.jit(step).lower(state, jnp.ones(2)).as_text()
        assert len(jax.tree.leaves(state)) == 3 + (0 if scale is None else len(LossScale._fields))
    assert "is_finite" in texts[False]
    assert "is_finite" not in texts[True]


def begin(scale: Any, optimizer: Any) -> Any:
    def start(key: Any, policy: pl.Policy) -> pl.State:
        return pl.start(digits().init(jax.random.fold_in(key, 0)), optimizer, policy, key=key, loss_scale=scale)

    return start


@pytest.mark.thorough
def test_sweeps_runs_chunks_and_resumption_agree() -> None:
    optimizer, seeds = optax.adam(2e-3), [3, 8]
    policies = [pl.Policy(weights=fmt, gradients=fmt) for fmt in (pl.FLOAT16, pl.FLOAT8_E4M3FN)]
    scale = dynamic_loss_scale(2.0**20, period=4)
    step = pl.make_step(digits().loss, optimizer, modes=pl.stochastic, detail=False)
    swept, record = pl.sweep(step, begin(scale, optimizer), digits().batch, policies, seeds, steps=24, chunk=8)
    assert record.skipped.shape == record.scale.shape == record.loss.shape == (2, 2, 24)
    assert swept.loss_scale.skipped.shape == (2, 2)
    assert np.array_equal(swept.loss_scale.skipped, record.skipped.sum(-1))
    # What overflows in e4m3fn, whose largest value is 448, is 2^7 times smaller than in float16.
    assert (np.asarray(swept.loss_scale.skipped[1]) > np.asarray(swept.loss_scale.skipped[0])).all()
    for row, policy in enumerate(policies):
        state = begin(scale, optimizer)(jax.random.key(seeds[1]), policy)
        (half, _), (alone, _) = pl.chunks(step, state, digits().batch, policy, steps=24, chunk=12)
        here = jax.tree.map(lambda leaf, i=row: leaf[i, 1], (swept.params, swept.loss_scale))
        same(here, (alone.params, alone.loss_scale))
        saved = [np.asarray(jax.random.key_data(x) if x is half.key else x) for x in jax.tree.leaves(half)]
        restored = jax.tree.unflatten(jax.tree.structure(half), list(map(jnp.asarray, saved)))
        restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
        same(pl.run(step, restored, digits().batch, policy, steps=12)[0], alone)
    assert float(record.loss[0, :, -4:].mean()) < float(record.loss[0, :, :4].mean())
