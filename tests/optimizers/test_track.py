"""The bridge to Optax: nothing changes but the record, the record is what happened, and sums are rounded once."""

import math
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import apply_updates, round_params, stagnation, track
from tests import cases
from tests.oracle import round_array, round_exact
from tests.recount import assert_tally, recount, rounded

STEPS = 20
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: optax.sgd(0.01),
    "adam_float32_rate": lambda: optax.adam(lambda _: jnp.float32(1e-3)),
    "adamw": lambda: optax.adamw(1e-3, weight_decay=0.1),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-4)),
    "clipped_adam": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)),
    "momentum": lambda: optax.sgd(0.01, momentum=0.9),
    "nadamw": lambda: optax.nadamw(1e-3),
    "muon": lambda: optax.contrib.muon(1e-2),
    "rounded_moments": lambda: pl.optimizers.round_state(optax.adam(1e-2), pl.BFLOAT16, pl.stochastic),
}


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    """Optax itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def parameters(dtypes: Any = ("bfloat16", "float32")) -> dict[str, Any]:
    """A leaf of normal weights in each dtype, with some zeros and ones among them."""
    random = np.random.default_rng(0)
    leaves = {}
    for name in dtypes:
        weights = random.standard_normal((6, 9))
        weights[0], weights[1] = 0, 1
        leaves[name] = jnp.asarray(weights.astype(cases.ml_dtype(name)))
    return leaves


def gradients(params: Any, step: int) -> Any:
    random = np.random.default_rng(100 + step)
    leaves, structure = jax.tree.flatten(params)
    sizes = [10.0 ** random.uniform(-3, 1, leaf.shape) * random.standard_normal(leaf.shape) for leaf in leaves]
    drawn = [np.asarray(size).astype(leaf.dtype) for size, leaf in zip(sizes, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def stepper(optimizer: Any, apply: Any = optax.apply_updates) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return apply(params, updates), state, updates

    return step


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        cases.assert_same(a, b)


@pytest.mark.sampled(1, slow=6)
@pytest.mark.parametrize(
    ("name", "every"), [*((name, 3) for name in OPTIMIZERS), *((name, 1) for name in ("sgd", "adamw", "clipped_adam"))]
)
def test_training_is_bit_identical_and_every_record_is_a_recount_of_what_was_stored(name: str, every: int) -> None:
    """With every=3 a look makes its update for itself."""
    plain, wrapped = OPTIMIZERS[name](), track(OPTIMIZERS[name](), every=every)
    here = there = parameters()
    state, other = plain.init(here), wrapped.init(here)
    without, with_track = stepper(plain), stepper(wrapped)
    for number in range(STEPS):
        grads, before = gradients(here, number), there
        here, state, updates = without(here, state, grads)
        there, other, tracked = with_track(there, other, grads)
        same(updates, tracked)
        same(here, there)
        record = stagnation(other)
        assert int(record.step) == (number + 1) // every * every
        for leaf in there if int(record.step) == number + 1 else ():
            assert_tally(record.tally[leaf], recount(before[leaf], tracked[leaf], there[leaf]), rtol=1e-4)
    same(state, other.inner)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("update", ["float32", "same"])
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_records_are_recounts_for_any_dtype_of_weights_and_updates(name: str, update: str) -> None:
    """With special values among weights and updates; the sum is the one that was stored."""
    dtype = cases.ml_dtype(name)
    kind = np.dtype(np.float32) if update == "float32" else dtype
    random = np.random.default_rng(7)
    apply = apply_updates if dtype.itemsize == 1 else optax.apply_updates
    optimizer = track(optax.identity())
    step = stepper(optimizer, apply)
    w = random.standard_normal((5, 100)).astype(dtype)
    w[0, :5] = [0, -0.0, 6, 1, 2.0**-5]
    if not name.startswith("float4"):
        w[0, 5:8] = [math.inf, math.nan, -math.inf]
    params, state = jnp.asarray(w), optimizer.init(w)
    for _ in range(4):
        u = 2.0 ** random.uniform(-14, 1, w.shape) * random.choice([-1, 1], w.shape)
        ties = np.ldexp(1.0, np.frexp(np.asarray(params).astype(float))[1] - 1 - cases.REGISTERED[name].precision)
        u = np.where(random.random(w.shape) < 0.3, np.where(np.isfinite(ties), ties, 0), u)
        u = (u * (random.random(w.shape) < 0.9)).astype(np.float32)
        near = np.nextafter(u, np.float32(0)) if update == "float32" else u
        u = np.where(random.random(w.shape) < 0.2, near, u).astype(kind)
        before = params
        params, state, updates = step(params, state, u)
        found = stagnation(state).tally
        assert_tally(found, recount(before, updates, params), rtol=1e-4, sums=name == "bfloat16")


WRAPPERS: dict[str, Any] = {
    "chain": lambda: optax.chain(optax.clip(1.0), track(optax.sgd(1e-3)), optax.identity()),
    "multi_steps": lambda: optax.MultiSteps(track(optax.sgd(1e-3)), 2).gradient_transformation(),
    "masked": lambda: optax.masked(track(optax.sgd(1e-3)), {"bfloat16": True, "float32": False}),
    "around_masked": lambda: track(optax.masked(optax.sgd(1e-3), {"bfloat16": True, "float32": False})),
    "inject": lambda: optax.inject_hyperparams(lambda learning_rate: track(optax.sgd(learning_rate)))(1e-3),
    "multi_transform": lambda: optax.multi_transform(
        {"one": track(optax.sgd(1e-3)), "two": optax.adam(1e-3)}, {"bfloat16": "one", "float32": "two"}
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(track(optax.sgd(1e-3)), 3),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_record_is_found_inside_any_wrapper(name: str) -> None:
    optimizer, params = WRAPPERS[name](), parameters()
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(2):
        grads = gradients(params, 0)
        before = params
        params, state, updates = step(params, state, grads)
        if name == "multi_steps":  # only the emitting step counts
            assert int(stagnation(state).step) == number
    record = stagnation(state)
    assert int(record.step) == (1 if name == "multi_steps" else 2)
    before, updates, after = (tree["bfloat16"] for tree in (before, updates, params))
    assert_tally(record.tally["bfloat16"], recount(before, updates, after), rtol=1e-4)
    seen = list(pl.by_path(record.tally))
    assert seen == ["bfloat16"] if name in ("masked", "multi_transform") else ["bfloat16", "float32"]


def test_every_looks_at_one_update_in_every_and_keeps_the_last_record() -> None:
    params = parameters(["bfloat16"])
    often, rarely = track(optax.sgd(1e-3)), track(optax.sgd(1e-3), every=3)
    (one, two), steps = (often.init(params), rarely.init(params)), (stepper(often), stepper(rarely))
    assert int(stagnation(two).step) == int(pl.total(stagnation(two).tally).entries) == 0
    last = stagnation(two)
    here = there = params
    for number in range(1, 8):
        grads = gradients(params, number)
        here, one, _ = steps[0](here, one, grads)
        there, two, _ = steps[1](there, two, grads)
        same(here, there)
        if number % 3 == 0:
            last = stagnation(one)
        same(stagnation(two).tally, last.tally)
        assert int(stagnation(two).step) == number // 3 * 3


@pytest.mark.slow
def test_what_if_formats_are_recounts() -> None:
    formats = {"float16": pl.FLOAT16, "mine": pl.fixed_point(3, 6), "float8_e4m3fn": pl.FLOAT8_E4M3FN}
    params = parameters(["float32"])
    params["float32"] = params["float32"] * jnp.float32(1.2345)
    grads = gradients(params, 1)
    optimizer = track(optax.sgd(0.05), formats)
    _, state, updates = stepper(optimizer)(params, optimizer.init(params), grads)
    w, u = np.asarray(params["float32"]), np.asarray(updates["float32"])
    record = stagnation(state)
    assert set(record.what_if) == set(formats)
    for name, fmt in formats.items():
        before = round_array(w, fmt, "nearest_even").astype(np.float32)
        after = round_array(before + u, fmt, "nearest_even")
        expected = recount(before, u, after, numbers=fmt)
        assert expected["swamped"] > 0
        assert_tally(record.what_if[name]["float32"], expected, detail=False)
    named = track(optax.sgd(0.05), [pl.BFLOAT16, pl.FLOAT16]).init(params)
    assert list(stagnation(named).what_if) == ["bfloat16", "float16"]
    assert list(stagnation(track(optax.sgd(0.05), pl.BFLOAT16).init(params)).what_if) == ["bfloat16"]


def test_what_if_of_narrow_weights_adds_the_updates_as_they_were_rounded() -> None:
    params = parameters(["bfloat16"])
    optimizer = track(optax.sgd(0.01), [pl.FLOAT16])
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(6):
        before = round_array(params["bfloat16"], pl.FLOAT16, "nearest_even").astype(np.float32)
        params, state, updates = step(params, state, gradients(params, number))
        u = np.asarray(updates["bfloat16"]).astype(np.float32)
        after = round_array(before + u, pl.FLOAT16, "nearest_even")
        expected = recount(before, u, after, numbers=pl.FLOAT16)
        assert_tally(stagnation(state).what_if["float16"]["bfloat16"], expected, detail=False)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", [pl.nearest_even, pl.stochastic], ids=pl.mode_name)
@pytest.mark.parametrize("outside", [True, False])
def test_a_tracked_rounding_is_judged_by_the_update_that_went_in(mode: Any, outside: bool) -> None:
    params = {"w": parameters(["bfloat16"])["bfloat16"].astype(jnp.float32)}
    optimizer = optax.chain(optax.sgd(0.01), round_params(pl.BFLOAT16, mode))
    optimizer = track(optimizer) if outside else optax.chain(optax.sgd(0.01), track(round_params(pl.BFLOAT16, mode)))
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(4):
        before, grads = params, gradients(params, number)
        params, state, _ = step(params, state, grads)
        intended = np.float32(-0.01) * grads["w"]
        expected = recount(before["w"], intended, params["w"], numbers=pl.BFLOAT16)
        assert expected["swamped"] > 5
        assert_tally(stagnation(state).tally["w"], expected, rtol=1e-4)


def test_ages_count_every_update_even_those_not_looked_at() -> None:
    params = parameters(["bfloat16"])
    optimizer = track(optax.sgd(3e-3), every=4, ages=True, detail=False)
    state, step = optimizer.init(params), stepper(optimizer)
    last = np.zeros(params["bfloat16"].shape, int)
    for number in range(1, 7):
        before = np.asarray(params["bfloat16"]).astype(float)
        params, state, _ = step(params, state, gradients(params, number))
        last = np.where(np.asarray(params["bfloat16"]).astype(float) != before, number, last)
    ages = stagnation(state).ages
    assert np.asarray(ages.last_moved["bfloat16"]).tolist() == last.tolist()
    assert int(ages.updates) == 6
    assert 0 < (last == 0).mean() < 1
    assert math.isclose(float(pl.never_moved_fraction(ages)), (last == 0).mean(), rel_tol=1e-6)


@pytest.mark.slow
def test_leaves_that_cannot_stagnate_pass_through() -> None:
    params = {"w": jnp.ones(3), "none": None, "count": jnp.arange(2), "masked": optax.MaskedNode()}
    grads = {"w": jnp.full(3, 1e-9), "none": None, "count": jnp.arange(2), "masked": optax.MaskedNode()}
    optimizer = track(optax.identity(), [pl.BFLOAT16], ages=True)
    state, step = optimizer.init(params), stepper(optimizer)
    after, state, updates = step(params, state, grads)
    same(updates, grads)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert list(pl.by_path(stagnation(state).tally)) == ["w"]
    assert int(stagnation(state).tally["w"].swamped) == 3
    empty = track(optax.identity())
    _, nothing = empty.update({}, empty.init({}), {})
    assert int(stagnation(nothing).step) == 1


@pytest.mark.slow
def test_buffers_may_be_donated_and_the_state_scanned() -> None:
    params = parameters()
    optimizer = track(optax.adam(1e-3), every=2)
    kept, step = stepper(optimizer), jax.jit(stepper(optimizer), donate_argnums=(0, 1))
    expected, state = params, optimizer.init(params)
    for number in range(4):
        expected, state, _ = kept(expected, state, gradients(expected, number))
    donated = jax.tree.map(jnp.copy, (params, optimizer.init(params)))
    for number in range(4):
        *donated, _ = step(*donated, gradients(params, number))
    same(donated[0], expected)
    same(donated[1], state)
    assert int(stagnation(donated[1]).step) == 4
    begin, grads = (params, optimizer.init(params)), gradients(params, 0)
    scanned, _ = jax.lax.scan(lambda now, _: (stepper(optimizer)(*now, grads)[:2], None), begin, length=4)
    assert int(stagnation(scanned[1]).step) == 4


@pytest.mark.slow
def test_an_equinox_model_trains() -> None:
    model = eqx.nn.MLP(2, "scalar", 4, 1, key=jax.random.key(0), dtype=jnp.bfloat16)
    optimizer = track(optax.adamw(1e-3))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        grads = eqx.filter_grad(lambda m: m(jnp.ones(2, jnp.bfloat16)) ** 2)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, updates

    before = model
    model, state, updates = step(model, state)
    leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)) for tree in (before, updates, model)]
    found = pl.by_path(stagnation(state).tally)
    assert len(found) == len(leaves[0]) == 4
    for tally, w, u, after in zip(found.values(), *leaves, strict=True):
        assert_tally(tally, recount(w, u, after), rtol=1e-4)
    assert "layers/0/weight" in found


@pytest.mark.slow
def test_the_state_grows_with_the_number_of_leaves_alone() -> None:
    def added(size: int, count: int, **options: Any) -> int:
        params = [jnp.ones(size)] * count
        plain, wrapped = optax.adam(1e-3).init(params), track(optax.adam(1e-3), **options).init(params)
        one, two = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (plain, wrapped))
        return two - one

    assert added(10, 2) == added(10_000, 2) < 180
    assert added(10, 6) - added(10, 4) == added(10, 4) - added(10, 2) > 0
    assert added(10_000, 2, ages=True) == added(10_000, 2) + 20_001


def test_wrong_requests_are_sentences() -> None:
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    optimizer = track(optax.identity())
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"track: .* depends on the weights; call update\(grads, state, params\)"):
        optimizer.update(params, state)
    for every in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="track: every must be a whole number of at least 1"):
            track(optax.sgd(1.0), every=every)
    with pytest.raises(TypeError, match="track: expected an Optax gradient transformation"):
        track(optax.sgd)  # type: ignore[arg-type]
    for formats in (["bfloat16"], {"a": "bfloat16"}, [None]):
        with pytest.raises(TypeError, match=r"track: formats must hold Format values such as precisionlab\.BFLOAT16"):
            track(optax.sgd(1.0), formats)
    with pytest.raises(ValueError, match="precision"):
        track(optax.sgd(1.0), [pl.BFLOAT16._replace(precision=0)])
    with pytest.raises(ValueError, match="track: the updates are not the same tree as the parameters"):
        optimizer.update({"a": jnp.ones(3)}, state, params)
    with pytest.raises(ValueError, match=r"track: at b, the update has shape \(5,\) and the parameter \(2,\)"):
        optimizer.update({"a": jnp.ones(3), "b": jnp.ones(5)}, state, params)
    with pytest.raises(ValueError, match=r"holds no record; wrap the optimizer first: track\(optimizer\)"):
        stagnation(optax.sgd(1.0).init(params))
    with pytest.raises(ValueError, match="holds 2 records"):
        stagnation(optax.chain(track(optax.sgd(1.0)), track(optax.sgd(1.0))).init(params))
    with pytest.raises(TypeError, match="round_params: fmt must be a Format"):
        round_params("bfloat16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"round_params: mode .*precisionlab\.upward"):
        round_params(pl.BFLOAT16, "upward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"round_params: .*call update\(grads, state, params\)"):
        round_params(pl.BFLOAT16).update(params, round_params(pl.BFLOAT16).init(params))
    with pytest.raises(ValueError, match="apply_updates: the updates are not the same tree"):
        apply_updates(params, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"apply_updates: at b, the update has shape \(3,\) and the parameter \(2,\)"):
        apply_updates(params, {"a": jnp.ones(3), "b": jnp.ones(3)})


APPLY = jax.jit(apply_updates)
NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn"]


def exact_sums(w: np.ndarray, u: np.ndarray, numbers: Any) -> Any:
    pairs = zip(w.astype(float).tolist(), u.astype(float).tolist(), strict=True)
    sums = [round_exact(Fraction(a) + Fraction(b), numbers, "nearest_even") for a, b in pairs]
    return pytest.approx(sums, rel=0, abs=0, nan_ok=True)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NARROW)
def test_apply_updates_rounds_the_exact_sum_once(name: str) -> None:
    """Ties, ties missed by one bit of float32 far below, and updates of any size; against rational arithmetic."""
    dtype, numbers = cases.ml_dtype(name), cases.REGISTERED[name]
    random = np.random.default_rng(3)
    largest = min(numbers.largest, 1e30)
    exponents = random.uniform(max(numbers.emin - 2, -60), math.log2(largest), 300)
    w = np.clip(2.0**exponents * random.choice([-1, 1], 300), -largest, largest).astype(dtype)
    wide = w.astype(np.float64)
    half = np.ldexp(1.0, np.maximum(np.frexp(wide)[1] - 1, numbers.emin) - numbers.precision)
    u = np.concatenate([half, -half, half / 2, 3 * half, wide * 2.0 ** random.uniform(-12, 30, 300), 0 * half])
    u = np.clip(u, -2e38, 2e38).astype(np.float32)
    u = np.concatenate([u, np.nextafter(u, np.float32(-1e38)), np.nextafter(u, np.float32(1e38))])
    u = np.where(np.abs(u) < 2.0**-100, np.float32(0), u)
    w = np.resize(w, u.size)
    found = np.asarray(APPLY(w, u))
    assert found.dtype == dtype
    assert found.astype(float).tolist() == exact_sums(w, u, numbers)
    narrow = np.resize(w[::-1], w.size)
    assert np.asarray(APPLY(w, narrow)).astype(float).tolist() == exact_sums(w, narrow, numbers)
    with jax.enable_x64(True):
        finer = u.astype(np.float64) * (1 + 2.0**-40)
        assert np.asarray(APPLY(w, finer)).astype(float).tolist() == exact_sums(w, finer, numbers)


def test_apply_updates_by_hand() -> None:
    w = jnp.array([1.0, 1.0, 1.0078125, 1.0078125, 1.0, jnp.inf, 1.0, -1.0], jnp.bfloat16)
    half = 2.0**-8
    u = jnp.array([half * (1 + 2.0**-22), half, half, half * (1 - 2.0**-23), 3e38, 1.0, jnp.nan, 1.0], jnp.float32)
    expected = [1.0078125, 1.0, 1.015625, 1.0078125, float(ml_dtypes.bfloat16(3e38)), math.inf]
    assert APPLY(w, u).tolist()[:6] == expected
    assert math.isnan(APPLY(w, u)[6])
    assert float(APPLY(w, u)[7]) == 0
    # Optax rounds the first sum twice, and loses it.
    assert optax.apply_updates(w, u).tolist()[0] == 1.0


def test_apply_updates_leaves_other_leaves_as_optax_does() -> None:
    params = {"int": jnp.array([-1, 5], jnp.int8), "long": jnp.array([3]), "none": None, "wide": jnp.ones(2)}
    updates = {"int": jnp.array([0.5, -0.5]), "long": jnp.array([-4]), "none": None, "wide": jnp.full(2, 1e-3)}
    same(apply_updates(params, updates), optax.apply_updates(params, updates))
    frozen = {"none": None, "wide": jnp.ones(2)}
    assert apply_updates({"wide": jnp.ones(2), "none": jnp.ones(1)}, frozen)["none"].tolist() == [1]
    eight = apply_updates(jnp.ones(2), jnp.array([0.5, -1.0], jnp.float8_e4m3fn))
    assert (eight.tolist(), eight.dtype) == ([1.5, 0.0], jnp.float32)


def test_apply_updates_under_jit_adds_what_was_rounded() -> None:
    """A product in the update is rounded before it is added: no contraction, no elided cast."""
    random = np.random.default_rng(0)
    w = random.uniform(1, 2, 20_000).astype(ml_dtypes.float8_e5m2)
    rate = random.uniform(0.1, 1, w.size).astype(np.float32)
    grads = np.float32(2.0**-3) / rate  # the product rounds to a tie, or beside one
    for kind in (np.float32, ml_dtypes.bfloat16):

        @jax.jit
        def inside(w: Any, rate: Any, grads: Any, kind: Any = kind) -> Any:
            u = (rate * grads).astype(kind)
            return apply_updates(w, u), u

        new, u = inside(w, rate, grads)
        exact = rounded(w.astype(np.float64) + np.asarray(u).astype(np.float64), w.dtype)
        cases.assert_same(np.asarray(new).astype(np.float32), exact.astype(np.float32))


ROUNDED = {
    "bfloat16": pl.BFLOAT16,
    "e4m3fn_saturating": pl.saturating(pl.FLOAT8_E4M3FN),
    "float16_no_subnormals": pl.FLOAT16._replace(subnormals=False),
    "fixed_4_8": pl.fixed_point(4, 8),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("mode", [pl.nearest_even, pl.upward, pl.toward_zero, pl.stochastic], ids=pl.mode_name)
@pytest.mark.parametrize("name", ROUNDED)
def test_round_params_lands_on_the_grid(name: str, mode: Any) -> None:
    fmt, random = ROUNDED[name], np.random.default_rng(5)
    raw = random.standard_normal(2000) * 10.0 ** random.uniform(-6, 3, 2000)
    w = round_array(np.clip(raw, -fmt.largest, fmt.largest), fmt, "nearest_even").astype(np.float32)
    u = (random.standard_normal(2000) * 10.0 ** random.uniform(-9, 9, 2000)).astype(np.float32)
    u[:200] = np.where(w[:200] == 0, 0, np.nextafter(-w[:200], np.float32(7)))  # cancellation to a single bit
    optimizer = round_params(fmt, mode, seed=3)
    after, _, _ = stepper(optimizer)(w, optimizer.init(w), u)
    total, found = w + u, np.asarray(after)
    if mode is not pl.stochastic:
        assert (found == round_array(total, fmt, pl.mode_name(mode))).all()
        return
    low, high = (round_array(total, fmt, side) for side in ("toward_zero", "upward"))
    low, high = np.where(total < 0, round_array(total, fmt, "downward"), low), np.where(total < 0, low, high)
    inside = np.abs(total) <= fmt.largest
    assert ((found == low) | (found == high))[inside].all()
    assert (found == round_array(found, fmt, "nearest_even")).all()
    away = (found == np.where(total < 0, low, high)) & inside & (low != high)
    assert 0.2 < away.sum() / ((low != high) & inside).sum() < 0.8


@pytest.mark.slow
def test_round_params_repeats_with_its_seed_and_resumes() -> None:
    params = parameters()

    def trained(seed: int, stop: int | None = None) -> Any:
        optimizer = optax.chain(optax.sgd(1e-3), round_params(pl.BFLOAT16, pl.stochastic, seed))
        here, state, step = params, optimizer.init(params), stepper(optimizer)
        for number in range(6):
            if number == stop:
                state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
                step = stepper(optimizer)
            here, state, _ = step(here, state, gradients(params, number))
        assert here["bfloat16"].dtype == jnp.bfloat16
        return here

    once = trained(1)
    same(once, trained(1, stop=3))
    other = trained(2)
    assert np.mean(np.asarray(once["float32"]) != np.asarray(other["float32"])) > 0.2
    # Leaves and updates draw different bits.
    twice = {"a": jnp.ones(64), "b": jnp.ones(64)}
    optimizer = round_params(pl.BFLOAT16, pl.stochastic)
    small = jax.tree.map(lambda leaf: leaf * 2.0**-8, twice)
    first, state = optimizer.update(small, optimizer.init(twice), twice)
    second, _ = optimizer.update(small, state, twice)
    drawn = [np.asarray(leaf) for leaf in (*first.values(), *second.values())]
    assert all((drawn[i] != drawn[j]).any() for i in range(4) for j in range(i))


@pytest.mark.slow
def test_stochastic_rounding_lands_in_proportion_also_below_the_gaps_of_its_carrier() -> None:
    """Half a gap of float32 is lost in a float32 sum; the exact one lands as often as it says."""
    optimizer, size = round_params(pl.BFLOAT16, pl.stochastic), 2**20
    for dtype in (jnp.float32, jnp.bfloat16):
        w = jnp.ones(size, dtype)
        for sign, half in ((1, 2.0**-24), (-1, 2.0**-25)):  # the gap below a power of two is half as wide
            for u in (half, 1.01 * half):
                lands = u / (2.0**-7 if sign > 0 else 2.0**-8)
                updates, _ = optimizer.update(jnp.full(size, sign * u), optimizer.init(w), w)
                moved = int((apply_updates(w, updates) != w).sum())
                assert abs(moved - size * lands) <= 5 * (size * lands) ** 0.5, (dtype, sign, u, moved)
    assert size * lands >= 4  # enough of them to tell from none


def test_round_params_in_a_native_narrow_dtype() -> None:
    params = parameters(["bfloat16", "float16"])
    updates = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(0, 0.01, leaf.shape).astype(np.float32), params)
    for name, fmt in (("bfloat16", pl.BFLOAT16), ("float16", pl.FLOAT16)):
        optimizer = round_params(fmt, pl.downward)
        after, _, _ = stepper(optimizer)(params[name], optimizer.init(params[name]), updates[name])
        total = np.asarray(params[name]).astype(np.float32) + np.asarray(updates[name])
        assert after.dtype == params[name].dtype
        assert (np.asarray(after).astype(float) == round_array(total, fmt, "downward")).all()
