"""Steps are pure, runs repeat bit for bit however they are cut, and simulated storage is native storage."""

import logging
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.arithmetic import Accumulation, simulate
from precisionlab.arithmetic.rules import Rules
from precisionlab.numerics.blocks import MXFP4, MXFP8_E4M3, MXFP8_E5M2, NVFP4, round_blocks
from precisionlab.training.loss_scaling import dynamic_loss_scale
from precisionlab.training.steps import batch_key
from tests import cases
from tests.oracle import round_array
from tests.recount import COUNTS, assert_tally, recount

SITES = ("weights", "gradients", "updates")
RATES: dict[str, Any] = {"sgd": lambda: optax.sgd(0.05), "adam": lambda: optax.adam(2e-3)}


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@lru_cache
def digits() -> Any:
    from precisionlab.problems import digits

    return digits(sizes=(64, 12, 10), batch_size=16)


def first(seed: int = 0) -> Any:
    return digits().init(jax.random.key(seed))


def trained(optimizer: Any, formats: pl.Policy = pl.Policy(), *, steps: int = 60, **options: Any) -> Any:
    """(state, record) after some steps on digits."""
    modes, every, chunk, state, detail = (options.pop(k, None) for k in ("modes", "every", "chunk", "state", "detail"))
    dtypes = options.pop("dtypes", None)
    step = pl.make_step(
        digits().loss, optimizer, modes=modes or pl.nearest_even, every=every or 1, detail=bool(detail), dtypes=dtypes
    )
    state = pl.start(first(), optimizer, formats, key=5, dtypes=dtypes) if state is None else state
    return pl.run(step, state, digits().batch, formats, steps=steps, chunk=chunk)


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), tree)


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if np.asarray(a).dtype.kind == "f":
            cases.assert_same(a, b, what=jax.tree_util.keystr(path))
        else:
            assert np.array_equal(a, b), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "optimizer", "sites"),
    [
        pytest.param("float32", "sgd", ("weights",), marks=pytest.mark.thorough),
        pytest.param("bfloat16", "sgd", SITES, marks=pytest.mark.thorough),
        pytest.param("bfloat16", "adam", ("weights",), marks=pytest.mark.thorough),
        ("float16", "adam", ("weights", "updates")),
        ("float8_e5m2", "adam", SITES),
        ("float8_e4m3fn", "sgd", SITES),
    ],
)
def test_native_and_simulated_agree_bit_for_bit(name: str, optimizer: str, sites: tuple[str, ...]) -> None:
    formats = pl.Policy(**dict.fromkeys(sites, cases.FORMATS[name]))
    dtypes = pl.Policy(**dict.fromkeys(sites, cases.ml_dtype(name)))
    detail = (name, optimizer) == ("float8_e5m2", "adam")
    simulated, one = trained(RATES[optimizer](), formats, detail=detail)
    native, two = trained(RATES[optimizer](), dtypes=dtypes, detail=detail)
    assert {leaf.dtype for leaf in jax.tree.leaves(native.params)} == {cases.ml_dtype(name)}
    same(widened(simulated.params), widened(native.params))
    # Moments are sums of two products, of which compilers contract one or the other.
    for moment, other in zip(jax.tree.leaves(simulated.optimizer), jax.tree.leaves(native.optimizer), strict=True):
        np.testing.assert_allclose(moment, other, rtol=0, atol=2.0**-22 * float(jnp.max(jnp.abs(moment))))
    # The loss is a float32 sum that no site rounds; fused with other neighbours it may be taken in another order.
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-6)
    for leaf, counted in pl.by_path(one.tally).items():
        other = pl.by_path(two.tally)[leaf]
        for field in (*COUNTS, *["histogram"] * detail):
            assert np.array_equal(getattr(counted, field), getattr(other, field)), (leaf, field)
    together = pl.total(one.tally)
    assert (np.asarray(together.entries) == 64 * 12 + 12 + 120 + 10).all()
    assert name == "float32" or (np.asarray(together.swamped) > 0).any()
    # Weights are on their grid from the start, and training does something.
    for leaf in jax.tree.leaves(simulated.params):
        cases.assert_same(pl.round_to(leaf, cases.FORMATS[name]), leaf)
    assert name.startswith("float8") or float(one.loss[-10:].mean()) < float(one.loss[:10].mean())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["simulated", "native"])
def test_a_record_is_a_recount_of_the_step(kind: str) -> None:
    fmt, problem = pl.FLOAT8_E5M2, pl.problems.digits(sizes=(64, 10), batch_size=16)
    formats = pl.Policy(weights=fmt, gradients=fmt, updates=fmt) if kind == "simulated" else pl.Policy()
    dtypes = None if kind == "simulated" else pl.Policy(**dict.fromkeys(SITES, jnp.float8_e5m2))
    optimizer = optax.sgd(0.02)
    step = jax.jit(pl.make_step(problem.loss, optimizer, dtypes=dtypes))
    state = pl.start(problem.init(jax.random.key(0)), optimizer, formats, dtypes=dtypes)
    gradient = jax.jit(jax.grad(problem.loss))
    for number in range(3):
        batch = problem.batch(jax.random.key(number))
        before = widened(state.params)
        grads = jax.tree.map(lambda g: round_array(np.asarray(g), fmt, "nearest_even"), gradient(before, batch))
        updates = jax.tree.map(lambda g: np.float32(-0.02) * g.astype(np.float32), grads)
        kept = jax.tree.map(lambda u: round_array(u, fmt, "nearest_even").astype(np.float32), updates)
        state, record = step(state, batch, formats)
        after = jax.tree.map(lambda w, u: round_array(w + u, fmt, "nearest_even"), before, kept)
        same(widened(state.params), widened(after))
        assert int(record.step) == number + 1
        for layer, parts in before.items():
            for part, w in parts.items():
                trees = (tree[layer][part] for tree in (updates, after, kept))
                assert_tally(record.tally[layer][part], recount(w, *trees, numbers=fmt), rtol=1e-4)
    assert int(pl.total(record.tally).underflowed) > 0


TWELVE = ["bfloat16", "float16", "tfloat32", "float8_e4m3fn", "float8_e5m2", "float8_e3m4", "float6_e3m2fn"]
TWELVE += ["float4_e2m1fn", "float8_e4m3fnuz", "float16_no_subnormals", "fixed_2_5", "float32"]


@pytest.mark.slow
def test_twelve_formats_are_one_compilation(caplog: pytest.LogCaptureFixture) -> None:
    traced = []

    def loss(params: Any, batch: Any) -> Any:
        traced.append(1)
        return digits().loss(params, batch)

    def compiled(formats: list[str]) -> tuple[int, int]:
        traced.clear()
        caplog.clear()
        optimizer = optax.sgd(0.1)
        policies = [pl.Policy(weights=cases.FORMATS[name]) for name in formats]
        step = pl.make_step(loss, optimizer, detail=False)
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            state, record = pl.sweep(step, begin(optimizer), digits().batch, policies, range(2), steps=4, chunk=2)
        assert record.loss.shape == (len(formats), 2, 4)
        assert state.params["layer1"]["weight"].shape == (len(formats), 2, 64, 12)
        done = [text for text in caplog.messages if text.startswith("Finished XLA compilation of jit(advance)")]
        return len(traced), len(done)

    assert len(TWELVE) == 12
    assert compiled(TWELVE) == compiled(TWELVE[:1]) == (1, 1)


def begin(optimizer: Any) -> Any:
    return lambda key, policy: pl.start(digits().init(jax.random.fold_in(key, 0)), optimizer, policy, key=key)


def loop(step: Any, state: pl.State, formats: pl.Policy, steps: int) -> tuple[pl.State, Any]:
    """One compiled step at a time, for any policy of the same sites."""
    records = []
    for _ in range(steps):
        state, record = step(state, BATCH(batch_key(state)), formats)
        records.append(record)
    return state, jax.tree.map(lambda *each: jnp.stack(each), *records)


BATCH = jax.jit(lambda key: digits().batch(key))


@pytest.mark.slow
def test_a_sweep_is_its_runs() -> None:
    """Bit for bit: on CPU even the batched matrix products are the single ones."""
    optimizer, names, seeds = optax.adam(2e-3), ["bfloat16", "float16", "float8_e4m3fn"], [3, 8]
    policies = [pl.Policy(weights=cases.FORMATS[name], updates=pl.BFLOAT16) for name in names]
    options: Any = {"modes": pl.Policy(weights=pl.stochastic), "detail": False}
    step = pl.make_step(digits().loss, optimizer, every=2, **options)
    swept, record = pl.sweep(step, begin(optimizer), digits().batch, policies, seeds, steps=12)
    assert np.asarray(record.step).tolist() == list(range(2, 13, 2))
    assert int(swept.step) == 12
    single = jax.jit(pl.make_step(digits().loss, optimizer, **options))
    for row, policy in enumerate(policies):
        for column, seed in enumerate(seeds):
            alone, seen = loop(single, begin(optimizer)(jax.random.key(seed), policy), policy, 12)
            here = jax.tree.map(lambda leaf, i=row, j=column: leaf[i, j], (swept.params, record.tally, record.loss))
            same(here, (alone.params, *jax.tree.map(lambda leaf: leaf[1::2], (seen.tally, seen.loss))))


@pytest.mark.slow
def test_a_run_is_the_loop_is_its_chunks_is_its_resumption() -> None:
    optimizer, formats = optax.adam(2e-3), pl.Policy(weights=pl.FLOAT8_E5M2, gradients=pl.BFLOAT16)
    whole, record = trained(optimizer, formats, modes=pl.stochastic, steps=12)
    step = pl.make_step(digits().loss, optimizer, modes=pl.stochastic, detail=False)
    begun = pl.start(first(), optimizer, formats, key=5)
    (half, one), (cut, two) = pl.chunks(step, begun, digits().batch, formats, steps=12, chunk=6)
    same(cut, whole)
    same(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, two), record)
    # As if from a file.
    saved = [np.asarray(jax.random.key_data(x) if x is half.key else x) for x in jax.tree.leaves(half)]
    restored = jax.tree.unflatten(jax.tree.structure(half), list(map(jnp.asarray, saved)))
    restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
    rest, again = pl.run(step, restored, digits().batch, formats, steps=6)
    same(rest, whole)
    same(again, two)
    looped, seen = loop(jax.jit(step), begun, formats, 12)
    same(looped, whole)
    same(seen, record)


@pytest.mark.slow
def test_every_reads_those_steps_alone() -> None:
    formats = pl.Policy(weights=pl.BFLOAT16)
    whole, record = trained(optax.sgd(0.05), formats, steps=10)
    state, seen = trained(optax.sgd(0.05), formats, steps=10, every=3, chunk=5)
    same(state, whole)
    assert np.asarray(seen.step).tolist() == [3, 6, 9]
    same(seen.tally, jax.tree.map(lambda leaf: leaf[2::3], record.tally))
    step = pl.make_step(lambda w, _: jnp.sum(w**2), optax.sgd(0.1), every=3)
    begun = pl.start(jnp.ones(2), optax.sgd(0.1))
    _, unread = step(begun, None)
    assert not bool(unread.read)
    assert int(pl.total(unread.tally).entries) == 0
    assert pl.run(step, begun, lambda key: key, steps=2)[1].loss.shape == (0,)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", RATES)
def test_float32_is_plain_optax(name: str) -> None:
    optimizer = RATES[name]()

    @jax.jit
    def plain(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(digits().loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        # The select keeps the compiler from contracting the product in the update into the sum.
        apart = jax.tree.map(lambda u: jnp.where(u == u, u, jnp.nan), updates)
        return optax.apply_updates(params, apart), state, value

    params = first()
    state, losses = optimizer.init(params), []
    ours, key = pl.start(params, optimizer, key=5), jax.random.key(5)
    del key
    step = jax.jit(pl.make_step(digits().loss, optimizer, detail=False))
    for number in range(30):
        batch = digits().batch(jax.random.key(number))
        params, state, value = plain(params, state, batch)
        ours, record = step(ours, batch)
        same(record.loss, value)
        losses.append(float(value))
    same(ours.params, params)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_what_is_given_is_not_consumed() -> None:
    params, key, optimizer = first(), jax.random.key(1), optax.adam(1e-3)
    state = pl.start(params, optimizer, key=key)
    step = pl.make_step(digits().loss, optimizer, detail=False)
    seen = []
    for now, _ in pl.chunks(step, state, digits().batch, steps=2, chunk=1):
        seen.append(now)
    again, _ = pl.run(step, seen[0], digits().batch, steps=1)
    same(again, seen[1])
    assert np.isfinite(np.asarray(params["layer1"]["weight"])).all()
    jax.random.split(key)


def bowl(w: Any, batch: Any) -> Any:
    return jnp.sum(w**2)


def test_optimizers_that_hold_the_parameters_themselves() -> None:
    optimizer, formats = optax.contrib.schedule_free_sgd(0.05), pl.Policy(weights=pl.BFLOAT16)
    step = pl.make_step(bowl, optimizer, detail=False)
    state, record = pl.run(step, pl.start(jnp.ones(3), optimizer, formats), lambda key: key, formats, steps=3)
    assert np.isfinite(record.loss).all()
    assert int(state.step) == 3


def test_moments_are_stored_in_their_format() -> None:
    optimizer, formats = optax.adam(2e-3), pl.Policy(moments=pl.FLOAT8_E5M2)
    step, w = jax.jit(pl.make_step(bowl, optimizer, detail=False)), jnp.linspace(0.1, 1.1, 50)
    state = free = pl.start(w, optimizer, formats)
    for _ in range(5):
        state, free = step(state, None, formats)[0], step(free, None, pl.Policy())[0]
    adam = state.optimizer[0]
    assert int(adam.count) == 5
    for moment in (adam.mu, adam.nu):
        cases.assert_same(pl.round_to(moment, pl.FLOAT8_E5M2), moment)
    assert (np.asarray(adam.mu) != np.asarray(free.optimizer[0].mu)).any()


def test_each_site_has_its_mode() -> None:
    w, grads = jnp.array([1.0, -1.0, 3.0]), jnp.array([0.3, 0.3, -0.7])
    formats = pl.Policy(weights=pl.FLOAT8_E4M3FN, gradients=pl.FLOAT8_E5M2, updates=pl.BFLOAT16)
    modes = pl.Policy(weights=pl.toward_zero, gradients=pl.upward)
    step = jax.jit(pl.make_step(lambda w, g: jnp.sum(w * g), optax.sgd(0.1), modes=modes))
    state, _ = step(pl.start(w, optax.sgd(0.1), formats), grads, formats)
    gradient = round_array(np.asarray(grads), pl.FLOAT8_E5M2, "upward").astype(np.float32)
    update = round_array(np.float32(-0.1) * gradient, pl.BFLOAT16, "nearest_even").astype(np.float32)
    expected = round_array(np.asarray(w) + update, pl.FLOAT8_E4M3FN, "toward_zero")
    assert state.params.tolist() == expected.tolist()


def test_every_step_site_and_leaf_draws_its_own_bits() -> None:
    optimizer, fmt = optax.sgd(2.0**-8), pl.BFLOAT16
    formats = pl.Policy(weights=fmt, gradients=fmt)
    step = jax.jit(pl.make_step(lambda w, g: jnp.sum((w["a"] + w["b"]) * g), optimizer, modes=pl.stochastic))
    # Gradients and updated weights both end half a gap above a value: bits decide.
    state = pl.start({"a": jnp.ones(64), "b": jnp.ones(64)}, optimizer, formats, key=1)
    grads = jnp.full(64, -1 - 2.0**-8)
    seen = []
    for number in range(3):
        for key in (1, 2):
            now = state._replace(step=jnp.int32(number), key=jax.random.key(key))
            same(step(now, grads, formats)[0].params, step(now, grads, formats)[0].params)
            seen += jax.tree.leaves(step(now, grads, formats)[0].params)
    assert len({leaf.tobytes() for leaf in map(np.asarray, seen)}) == len(seen) == 12


@pytest.mark.slow
def test_ages_follow_the_stored_weights() -> None:
    optimizer, formats = optax.sgd(1e-3), pl.Policy(weights=pl.BFLOAT16)
    step = jax.jit(pl.make_step(digits().loss, optimizer, detail=False))
    state = pl.start(first(), optimizer, formats, ages=True)
    last = jax.tree.map(lambda leaf: np.zeros(leaf.shape, int), state.params)
    for number in range(1, 5):
        before = widened(state.params)
        state, _ = step(state, digits().batch(jax.random.key(number)), formats)
        last = jax.tree.map(lambda a, b, c, n=number: np.where(a != b, n, c), before, widened(state.params), last)
    for a, b in zip(jax.tree.leaves(state.ages.last_moved), jax.tree.leaves(last), strict=True):
        assert np.array_equal(a, b)


def test_progress_is_told_after_each_chunk() -> None:
    told: list[tuple[int, int]] = []
    step = pl.make_step(lambda w, _: jnp.sum(w**2), optax.sgd(0.1), detail=False)
    state = pl.start(jnp.ones(2), optax.sgd(0.1))
    pl.run(step, state, lambda key: key, steps=7, chunk=3, progress=lambda *each: told.append(each))
    assert told == [(3, 7), (6, 7), (7, 7)]


def test_wrong_requests_are_sentences() -> None:
    optimizer, w = optax.sgd(0.1), jnp.ones(3)

    def loss(w: Any, batch: Any) -> Any:
        return jnp.sum(w)

    step = pl.make_step(loss, optimizer)
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="make_step: every must be a whole number of at least 1"):
            pl.make_step(loss, optimizer, every=every)
    with pytest.raises(TypeError, match=r"make_step: mode .*precisionlab\.upward"):
        pl.make_step(loss, optimizer, modes="upward")
    with pytest.raises(TypeError, match="make_step: mode"):
        pl.make_step(loss, optimizer, modes=pl.Policy(weights="nearest"))
    with pytest.raises(TypeError, match=r"start: got a Format where a Policy is expected; .*Policy\(weights="):
        pl.start(w, optimizer, pl.BFLOAT16)
    with pytest.raises(TypeError, match="step: expected a Policy"):
        step(pl.start(w, optimizer), None, {"weights": pl.BFLOAT16})
    with pytest.raises(TypeError, match=r"start: Policy\.weights must be a Format, a BlockFormat or None; got 'bfloat16'"):
        pl.start(w, optimizer, pl.Policy(weights="bfloat16"))
    with pytest.raises(ValueError, match=r"start: Policy\.gradients.*float32"):
        pl.start(w, optimizer, pl.Policy(gradients=pl.FLOAT64))
    with pytest.raises(TypeError, match=r"start: Policy\.compute: a rule must be a Format"):
        pl.start(w, optimizer, pl.Policy(compute="bfloat16"))
    with pytest.raises(TypeError, match="make_step: mode"):
        pl.make_step(loss, optimizer, modes=pl.Policy(compute=Rules(pl.upward, {"exp": "nearest"})))
    with pytest.raises(TypeError, match="make_step: dtypes must be a Policy of dtypes"):
        pl.make_step(loss, optimizer, dtypes=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"leave dtypes\.moments at None"):
        pl.make_step(loss, optimizer, dtypes=pl.Policy(moments=jnp.bfloat16))
    for wrong in (jnp.int8, jnp.float64):
        with pytest.raises(ValueError, match=r"dtypes\.weights must be float32 or a narrower float; got"):
            pl.start(w, optimizer, dtypes=pl.Policy(weights=wrong))
    native = pl.make_step(loss, optimizer, dtypes=pl.Policy(weights=jnp.bfloat16))
    with pytest.raises(ValueError, match=r"step: this step stores native dtypes; .*leave them at Policy\(\)"):
        native(pl.start(w, optimizer), None, pl.Policy(weights=pl.BFLOAT16))
    with pytest.raises(ValueError, match="steps and chunk must be at least 1; got steps=0"):
        pl.run(step, pl.start(w, optimizer), lambda key: key, steps=0)
    with pytest.raises(ValueError, match="at least 1"):
        pl.run(step, pl.start(w, optimizer), lambda key: key, steps=3, chunk=0)

    def start(key: Any, policy: pl.Policy) -> pl.State:
        return pl.start(w, optimizer, policy, key=key)

    with pytest.raises(ValueError, match="sweep: got no seeds"):
        pl.sweep(step, start, lambda key: key, [pl.Policy()], [], steps=1)
    with pytest.raises(ValueError, match="got no policies"):
        pl.sweep(step, start, lambda key: key, [], [0], steps=1)
    with pytest.raises(TypeError, match="sweep: got a Format"):
        pl.sweep(step, start, lambda key: key, [pl.BFLOAT16], [0], steps=1)


# Arithmetic


RULED = Rules(pl.FLOAT8_E5M2, primitives={"exp": pl.FLOAT32})


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("rules", "options"),
    [(pl.BFLOAT16, {}), (RULED, {}), (pl.FLOAT8_E5M2, {"modes": pl.Policy(compute=pl.toward_zero)})],
    ids=["bfloat16", "rules", "toward_zero"],
)
def test_compute_is_the_simulated_gradient(rules: Any, options: Any) -> None:
    optimizer, formats = optax.sgd(0.25), pl.Policy(compute=rules)
    step = jax.jit(pl.make_step(digits().loss, optimizer, detail=False, **options))
    mode = options["modes"].compute if options else pl.nearest_even
    gradient = jax.jit(simulate(jax.value_and_grad(digits().loss), rules, mode=mode))
    state, params = pl.start(first(), optimizer, formats), first()
    losses = []
    for number in range(3):
        batch = digits().batch(jax.random.key(number))
        state, record = step(state, batch, formats)
        value, grads = gradient(params, batch)
        params = jax.tree.map(lambda w, g: w - np.float32(0.25) * np.asarray(g), params, grads)
        cases.assert_same(record.loss, value)
        same(state.params, jax.tree.map(jnp.asarray, params))
        losses.append(float(value))
    assert len(set(losses)) > 1
    plain = float(digits().loss(first(), digits().batch(jax.random.key(0))))
    assert 0 < abs(losses[0] - plain) < 0.75


@pytest.mark.slow
def test_compute_accumulates_as_told() -> None:
    """Ones added one by one in bfloat16 stop at 256."""
    formats = pl.Policy(compute=pl.BFLOAT16)

    def loss(w: Any, x: Any) -> Any:
        return jnp.dot(w, x)

    seen = []
    for accumulation in (None, Accumulation(accumulate=pl.BFLOAT16)):
        step = pl.make_step(loss, optax.sgd(0.0), accumulation=accumulation)
        _, record = step(pl.start(jnp.ones(1024), optax.sgd(0.0)), jnp.ones(1024), formats)
        seen.append(float(record.loss))
    assert seen == [1024.0, 256.0]


@pytest.mark.slow
def test_stochastic_compute_draws_its_own_bits() -> None:
    optimizer, formats = optax.sgd(1.0), pl.Policy(compute=pl.FLOAT8_E5M2)
    step = jax.jit(pl.make_step(bowl, optimizer, modes=pl.Policy(compute=pl.stochastic)))
    state = pl.start(jnp.full(256, 1.1), optimizer, formats, key=4)
    (one, _), (again, _) = step(state, None, formats), step(state, None, formats)
    later, _ = step(state._replace(step=state.step + 1), None, formats)
    same(one.params, again.params)
    assert len(np.unique(np.asarray(one.params))) > 1
    assert (np.asarray(one.params) != np.asarray(later.params)).any()
    # The weights are read on the grid, unbiased: 1.1 is 1 or 1.25.
    gradient = 1.1 - np.asarray(one.params)
    assert {round(float(g), 5) for g in gradient} <= {2.0, 2.5}
    assert 2.0 + 0.5 * 0.4 - 0.12 < gradient.mean() < 2.0 + 0.5 * 0.4 + 0.12
    ruled = jax.jit(pl.make_step(bowl, optimizer, modes=pl.Policy(compute=Rules(pl.nearest_even, {"mul": pl.stochastic}))))
    assert np.isfinite(ruled(state, None, formats)[1].loss)


@pytest.mark.slow
def test_a_sweep_with_compute_is_its_runs_in_one_compilation(caplog: pytest.LogCaptureFixture) -> None:
    optimizer, seeds = optax.sgd(0.1), [3, 8]
    formats = [cases.FORMATS[name] for name in ("bfloat16", "float8_e5m2", "float8_e4m3fnuz")]
    policies = [pl.Policy(weights=fmt, compute=fmt, gradients=fmt) for fmt in formats]
    ruled = [pl.Policy(weights=fmt, compute=Rules(fmt, primitives={"exp": pl.FLOAT32})) for fmt in formats]
    traced = []

    def loss(params: Any, batch: Any) -> Any:
        traced.append(1)
        return digits().loss(params, batch)

    for arms in (policies, ruled):
        traced.clear()
        caplog.clear()
        step = pl.make_step(loss, optimizer, modes=pl.stochastic, detail=False)
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            swept, record = pl.sweep(step, begin(optimizer), digits().batch, arms, seeds, steps=4, chunk=2)
        done = [text for text in caplog.messages if text.startswith("Finished XLA compilation of jit(advance)")]
        assert (len(traced), len(done)) == (1, 1)
        assert record.loss.shape == (3, 2, 4)
        alone, seen = pl.run(step, begin(optimizer)(jax.random.key(8), arms[1]), digits().batch, arms[1], steps=4)
        same(jax.tree.map(lambda leaf: leaf[1, 1], (swept.params, record.loss)), (alone.params, seen.loss))


@pytest.mark.slow
def test_a_scale_beyond_the_arithmetic_is_found_out() -> None:
    """448 is the largest value of e4m3fn: a scale of 1024 cannot enter it, and is halved until it can."""
    formats = pl.Policy(compute=pl.FLOAT8_E4M3FN)
    step = jax.jit(pl.make_step(bowl, optax.sgd(0.0625)))
    state = pl.start(jnp.full(3, 0.25), optax.sgd(0.0625), formats, loss_scale=dynamic_loss_scale(1024.0))
    scales = []
    for _ in range(4):
        state, record = step(state, None, formats)
        scales.append((float(record.scale), bool(record.skipped)))
        if record.skipped:
            assert (float(record.loss), state.params.tolist()) == (0.1875, [0.25] * 3)
    assert scales == [(1024, True), (512, True), (256, False), (256, False)]
    assert (state.params < 0.25).all()


# Blocks


@pytest.mark.slow
def test_sites_take_block_formats() -> None:
    optimizer, scalar = optax.sgd(0.1), jnp.float32(0.3)
    params = {"matrix": jnp.linspace(-3, 3, 80).reshape(2, 40) ** 3, "scalar": scalar}
    formats = pl.Policy(weights=MXFP8_E4M3, gradients=MXFP4, updates=NVFP4)

    def loss(w: Any, batch: Any) -> Any:
        return jnp.sum(w["matrix"] * batch) + w["scalar"] * 0.7

    step = jax.jit(partial(pl.make_step(loss, optimizer), formats=formats))
    state, batch = pl.start(params, optimizer, formats), jnp.cos(jnp.arange(80.0)).reshape(2, 40)
    same(state.params["matrix"], round_blocks(params["matrix"], MXFP8_E4M3))
    same(state.params["scalar"], round_blocks(scalar[None], MXFP8_E4M3)[0])
    after, record = step(state, batch)
    for name, gradient in (("matrix", batch), ("scalar", jnp.full(1, 0.7))):
        update = round_blocks(-0.1 * round_blocks(gradient, MXFP4), NVFP4)
        before = jnp.atleast_1d(state.params[name])
        moved = round_blocks(before + update, MXFP8_E4M3)
        same(after.params[name], moved.reshape(params[name].shape))
        assert int(record.tally[name].landed) == int(((moved != before) & (update != 0)).sum())
    assert int(pl.total(record.tally).entries) == 81
    with pytest.raises(TypeError, match="must be plain numbers"):
        jax.jit(pl.make_step(loss, optimizer))(state, batch, formats)


@pytest.mark.slow
def test_runs_and_sweeps_with_block_formats() -> None:
    optimizer, key = optax.sgd(0.1), jax.random.key(3)
    policies = [pl.Policy(weights=fmt, gradients=MXFP8_E5M2) for fmt in (pl.BFLOAT16, pl.FLOAT16)]
    step = pl.make_step(digits().loss, optimizer, modes=pl.stochastic, detail=False)
    swept, record = pl.sweep(step, begin(optimizer), digits().batch, policies, [3], steps=5)
    alone, seen = pl.run(step, begin(optimizer)(key, policies[1]), digits().batch, policies[1], steps=5)
    same(jax.tree.map(lambda leaf: leaf[1, 0], (swept.params, record.loss)), (alone.params, seen.loss))
    with pytest.raises(ValueError, match=r"stack_policies: weights differ in a block format.*\(bfloat16, mxfp4\)"):
        pl.sweep(step, begin(optimizer), digits().batch, [policies[0], pl.Policy(weights=MXFP4)], [3], steps=1)
