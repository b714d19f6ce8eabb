"""The cures against references written out here: rounded moments, Kahan's sums in rational arithmetic, float32 masters."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.arithmetic.exact.chances import round_sum
from precisionlab.optimizers import apply_updates, kahan, master_weights, round_params, round_state, stagnation, track
from tests import cases
from tests.oracle import round_array, round_exact

BF16 = pl.BFLOAT16
SATURATING = pl.saturating(pl.FLOAT8_E4M3FN)
FLUSHING = pl.FLOAT16._replace(subnormals=False)


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    """Optax itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        cases.assert_same(a, b)


def weights(fmt: Any = BF16, size: int = 40) -> dict[str, Any]:
    """Float32 leaves on the grid of a format."""
    random = np.random.default_rng(0)
    drawn = {"one": random.standard_normal(size), "two": random.uniform(0.5, 2, (3, 4))}
    return {name: jnp.asarray(round_array(leaf, fmt, "nearest_even").astype(np.float32)) for name, leaf in drawn.items()}


def gradients(params: Any, step: int) -> Any:
    random = np.random.default_rng(100 + step)
    return jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape).astype(leaf.dtype)), params)


def stepper(optimizer: Any, apply: Any = optax.apply_updates) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return apply(params, updates), state

    return step


def trained(optimizer: Any, params: Any, steps: int = 6, stop: int | None = None) -> Any:
    """Weights and state after some steps, on the way through the host at `stop`."""
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(steps):
        if number == stop:
            state, step = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state), stepper(optimizer)
        params, state = step(params, state, gradients(params, number))
    return params, state


def on_the_grid(tree: Any, fmt: Any) -> bool:
    leaves = [np.asarray(leaf).astype(float) for leaf in jax.tree.leaves(tree)]
    return all((leaf == round_array(leaf, fmt, "nearest_even")).all() for leaf in leaves)


# What all three have in common.


def exact() -> Any:
    """An optimizer with a memory whose products are exact, so that compilers may contract them as they like."""
    return optax.chain(optax.scale(-(2.0**-8)), optax.trace(0.5))


CURES: dict[str, Any] = {
    "round_state": lambda *how: round_state(exact(), BF16, *how),
    "round_state_and_params": lambda *how: optax.chain(round_state(exact(), BF16, *how), round_params(BF16, *how)),
    "kahan": lambda *how: optax.chain(exact(), kahan(BF16, *how)),
    "master_weights": lambda *how: master_weights(exact(), BF16, *how),
    "masters_of_rounded": lambda *how: master_weights(round_state(exact(), BF16, *how), BF16, *how),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("round_state_and_params", "kahan") else pytest.mark.thorough) for n in CURES]
)
def test_random_bits_derive_from_seed_and_step(name: str) -> None:
    """Resumed runs repeat bit for bit, other seeds differ, and a vmap over seeds is each of them alone."""
    params = weights()
    alone = [trained(CURES[name](pl.stochastic, seed), params) for seed in (1, 2)]
    same(alone[0], trained(CURES[name](pl.stochastic, 1), params, stop=3))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, alone), strict=True))

    def run(seed: Any) -> Any:
        optimizer, begin = CURES[name](pl.stochastic, seed), params
        state = optimizer.init(begin)
        for number in range(2):
            updates, state = optimizer.update(gradients(params, number), state, begin)
            begin = optax.apply_updates(begin, updates)
        return begin, state

    together = jax.vmap(run)(jnp.arange(2))
    for seed in range(2):
        same(jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), run(seed))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CURES)
def test_scans_and_donated_buffers_give_the_same(name: str) -> None:
    params, optimizer = weights(), CURES[name]()
    grads, step = gradients(params, 0), stepper(optimizer)
    begin = params, optimizer.init(params)
    now = begin
    for _ in range(4):
        now = step(*now, grads)
    scanned, _ = jax.lax.scan(lambda here, _: (step(*here, grads), None), begin, length=4)
    same(scanned, now)
    # No copies made here: the state itself must share no buffer with the parameters.
    fresh = weights()
    donated = fresh, optimizer.init(fresh)
    donating = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(4):
        donated = donating(*donated, grads)
    same(donated, now)


@pytest.mark.slow
def test_a_tracker_may_stand_inside_or_outside_of_rounded_moments() -> None:
    """And only moments are rounded, not the record."""
    params, ends = weights(), []
    adam = optax.adam(1e-3)
    for optimizer in (track(round_state(adam, BF16), ages=True), round_state(track(adam, ages=True), BF16)):
        after, state, step = params, optimizer.init(params), stepper(optimizer)
        for number in range(3):
            after, state = step(after, state, jax.tree.map(lambda w, n=number: jnp.sin(w * 3.7 + n), params))
        ends.append((after, optax.tree.get(state, "mu"), optax.tree.get(state, "nu"), stagnation(state).tally))
    same(*ends)
    assert all((round_array(leaf, BF16, "nearest_even") == leaf).all() for leaf in jax.tree.leaves(ends[0][1:3]))


@pytest.mark.parametrize("name", ["round_state", "kahan", "master_weights"])
def test_other_leaves_pass_through(name: str) -> None:
    cures = {
        "round_state": lambda: round_state(optax.trace(0.5), BF16),
        "kahan": lambda: kahan(BF16),
        "master_weights": lambda: master_weights(optax.identity(), BF16),
    }
    params = {"w": jnp.ones(3), "none": None, "count": jnp.arange(2), "masked": optax.MaskedNode()}
    grads = {"w": jnp.full(3, 2.0**-8), "none": None, "count": jnp.array([3, -1]), "masked": optax.MaskedNode()}
    optimizer = cures[name]()
    state, step = optimizer.init(params), stepper(optimizer)
    after = params
    for _ in range(2):
        after, state = step(after, state, grads)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    if name != "round_state":  # the trace accumulates integers too
        assert after["count"].tolist() == [6, -1]
        assert after["w"].tolist() == [1 + 2.0**-7] * 3
    _, empty = optimizer.update({}, optimizer.init({}), {})
    assert int(empty.count) == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("cure", ["kahan", "master_weights"])
def test_natively_stored_weights_go_where_simulated_ones_do(cure: str, name: str) -> None:
    fmt, dtype = getattr(pl, name.upper()), cases.ml_dtype(name)
    wide = weights(fmt)
    narrow = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), wide)
    optimizer = optax.chain(optax.scale(-(2.0**-9)), kahan(fmt)) if cure == "kahan" else master_weights(optax.sgd(2.0**-9), fmt)
    states, step = (optimizer.init(wide), optimizer.init(narrow)), stepper(optimizer, apply_updates)
    for number in range(12):
        grads = gradients(wide, number)
        wide, one = step(wide, states[0], grads)
        narrow, other = step(narrow, states[1], grads)
        states = one, other
        same(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow), wide)
    assert narrow["one"].dtype == dtype
    assert on_the_grid(wide, fmt)
    kept = states[1][1].compensation if cure == "kahan" else states[1].masters
    assert kept["one"].dtype == (dtype if cure == "kahan" else jnp.float32)


def test_wrong_requests_are_sentences() -> None:
    params, adam = {"a": jnp.ones(3)}, optax.adam(1e-3)
    makers: dict[str, Any] = {
        "round_state": lambda *how: round_state(adam, *how),
        "kahan": kahan,
        "master_weights": lambda *how: master_weights(adam, *how),
    }
    for name, make in makers.items():
        with pytest.raises(TypeError, match=rf"{name}: fmt must be a Format such as precisionlab\.BFLOAT16"):
            make("bfloat16")
        with pytest.raises(TypeError, match=rf"{name}: mode .*precisionlab\.upward"):
            make(BF16, "upward")
        with pytest.raises(ValueError, match="precision"):
            make(BF16._replace(precision=0))
        if name != "round_state":
            with pytest.raises(ValueError, match=rf"{name}: .*call update\(grads, state, params\)"):
                make(BF16).update(params, make(BF16).init(params))
    for name, wrap in (("round_state", round_state), ("master_weights", master_weights)):
        with pytest.raises(TypeError, match=f"{name}: expected an Optax gradient transformation"):
            wrap(optax.adam, BF16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kahan: a compensation starts at zero, and float8_e8m0fnu has none"):
        kahan(pl.FLOAT8_E8M0FNU)
    with pytest.raises(ValueError, match="does not fit its carrier float32"):
        round_state(adam, pl.FLOAT64).init(params)
    opaque = optax.GradientTransformation(lambda params: params["a"] * 0.0, lambda updates, state, _=None: (updates, state))
    with pytest.raises(ValueError, match=r"round_state: .* cannot tell .*; wrap the optimizer inside"):
        round_state(opaque, BF16).init(params)


# round_state

WRAPPED: dict[str, Any] = {
    "adam": lambda: optax.adam(1e-3),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.trace(0.9)),
    "masked": lambda: optax.masked(optax.adam(1e-3), {"one": True, "two": False}),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1, 0.9)}, {"one": "a", "two": "b"}
    ),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(1e-3),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-3), 3),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fmt", [BF16, SATURATING], ids=["bfloat16", "e4m3fn_saturating"])
@pytest.mark.parametrize("name", WRAPPED)
def test_every_moment_is_rounded_and_nothing_else(name: str, fmt: Any) -> None:
    plain, wrapped = WRAPPED[name](), round_state(WRAPPED[name](), fmt)
    params = weights(pl.FLOAT32)
    state, update = wrapped.init(params), jax.jit(plain.update)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    seen = 0
    for number in range(3):
        grads = gradients(params, number)
        expected_updates, expected = update(grads, state.inner, params)
        updates, state = wrapped.update(grads, state, params)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected_updates), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)  # fused by jit there
        assert jax.tree.structure(state.inner) == jax.tree.structure(expected)
        for found, unrounded in zip(jax.tree.leaves(state.inner), jax.tree.leaves(expected), strict=True):
            moment = found.shape in shapes and found.dtype == jnp.float32
            if moment:
                assert on_the_grid(found, fmt)
                near = round_array(np.asarray(unrounded), fmt, "nearest_even")
                assert (np.asarray(found) == near).mean() > 0.95  # jit contracts a product here and there
                seen += not on_the_grid(unrounded, fmt)
            else:
                np.testing.assert_allclose(found, unrounded, rtol=1e-5)
        params = optax.apply_updates(params, updates)
    assert seen >= 3


def test_moments_are_rounded_bit_for_bit_as_written_out() -> None:
    """A trace t <- g + t / 2 has no product to contract; under jit, in every mode, from a start that is rounded too."""
    start = optax.GradientTransformation(
        lambda params: optax.TraceState(jax.tree.map(lambda leaf: leaf * 0 + 0.3, params)), optax.trace(0.5).update
    )
    params = weights()
    for fmt in (BF16, SATURATING):
        for mode in (pl.nearest_even, pl.upward, pl.toward_zero):
            optimizer = round_state(start, fmt, mode)
            state, update = optimizer.init(params), jax.jit(optimizer.update)
            trace = {k: round_array(np.full(w.shape, np.float32(0.3)), fmt, pl.mode_name(mode)) for k, w in params.items()}
            for number in range(4):
                for name, leaf in state.inner.trace.items():
                    assert (np.asarray(leaf) == trace[name]).all()
                grads = gradients(params, number)
                updates, state = update(grads, state, params)
                unrounded = {k: np.asarray(grads[k]) + np.float32(0.5) * trace[k].astype(np.float32) for k in params}
                same(updates, unrounded)
                trace = {k: round_array(leaf, fmt, pl.mode_name(mode)) for k, leaf in unrounded.items()}


def test_a_moving_average_in_bfloat16_stalls_at_a_quarter() -> None:
    optimizer = round_state(optax.scale_by_adam(b2=0.999), BF16)
    w = jnp.ones(())
    state, _ = jax.lax.scan(lambda state, _: (optimizer.update(w, state, w)[1], None), optimizer.init(w), length=2000)
    assert float(state.inner.nu) == 0.25
    assert int(state.inner.count) == int(state.count) == 2000


@pytest.mark.slow
def test_rounded_moments_can_be_tracked() -> None:
    params, optimizer = weights(), track(round_state(optax.adam(1e-3), BF16))
    after, state = stepper(optimizer)(params, optimizer.init(params), gradients(params, 0))
    assert on_the_grid(state.inner.inner[0].nu, BF16)
    assert not on_the_grid(after, BF16)
    assert int(pl.total(stagnation(state).tally).landed) == 52


def test_moments_in_a_narrow_dtype_stay_in_it() -> None:
    optimizer = round_state(optax.adam(1e-3, mu_dtype=jnp.bfloat16), SATURATING)
    _, state = trained(optimizer, weights())
    mu, nu = state.inner[0].mu, state.inner[0].nu
    assert (mu["one"].dtype, nu["one"].dtype) == (jnp.bfloat16, jnp.float32)
    assert on_the_grid((mu, nu), SATURATING)


# kahan


def kahan_step(w: float, c: float, u: float, fmt: Any) -> tuple[float, float]:
    """The three sums and two roundings, in rational arithmetic with a float32 carrier."""

    def carried(x: Fraction) -> Fraction:
        return Fraction(round_exact(x, cases.REGISTERED["float32"], "nearest_even"))

    def stored(x: Fraction) -> Fraction:
        return Fraction(round_exact(x, fmt, "nearest_even"))

    wanted = carried(Fraction(u) + Fraction(c))
    after = stored(carried(Fraction(w) + wanted))
    return float(after), float(stored(carried(wanted - carried(after - Fraction(w)))))


@pytest.mark.parametrize("fmt", [BF16, pl.FLOAT16, FLUSHING, SATURATING], ids=["bf16", "f16", "f16_flushing", "e4m3fn"])
def test_every_entry_is_the_sum_written_out(fmt: Any) -> None:
    random = np.random.default_rng(1)
    w = round_array(np.clip(random.standard_normal(60) * 4.0 ** random.integers(-3, 3, 60), -100, 100), fmt, "nearest_even")
    w[:4] = [0, 1, -1, 2]
    optimizer = kahan(fmt)
    found = jnp.asarray(w.astype(np.float32))
    state, step = optimizer.init(found), stepper(optimizer)
    here, rest = w.tolist(), [0.0] * w.size
    for _ in range(12):
        scale = 2.0 ** -random.uniform(1, 2 * fmt.precision + 3, w.size)
        u = (random.standard_normal(w.size) * scale).astype(np.float32)
        found, state = step(found, state, u)
        pairs = [kahan_step(*each, fmt) for each in zip(here, rest, u.tolist(), strict=True)]
        here, rest = ([pair[side] for pair in pairs] for side in (0, 1))
        assert found.tolist() == here
        assert state.compensation.tolist() == rest


def floor_of(w: float, sign: int, fmt: Any) -> float:
    """The floor of the docstring: the largest equal update that is lost for ever."""
    p, emin = fmt.precision, fmt.emin
    e = math.frexp(w)[1] - 1
    below = sign < 0 and w == 2.0**e and e > emin  # towards zero from a power of two the gap is half as wide
    h = 2.0 ** (max(e - below, emin) - p)
    return min(h, max(h * 2.0 ** -(p + 1), 2.0 ** (emin - p if fmt.subnormals else emin - 1)))


FLOORS = [
    (BF16, [1.0, 1.5, 1.0078125]),
    (pl.FLOAT16, [1.0, 1024.0]),
    (FLUSHING, [1.0, 2.0**-12]),
    (SATURATING, [1.0, 1.125, 16.0, 2.0**-6, 2.0**-5]),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("fmt", "w"),
    [(fmt, w) for fmt, start in FLOORS for w in start],
)
def test_the_floor_has_two_sides(fmt: Any, w: float, sign: int) -> None:
    floor = floor_of(w, sign, fmt)
    # The next update that the float32 sum of u and a compensation of any size below half a gap can tell from the floor.
    above = floor * (1 + 2.0 ** (fmt.precision + 1 - 24))
    optimizer = kahan(fmt)
    steps = 2 ** (fmt.precision + 3)

    def ends(u: float) -> tuple[float, list[float]]:
        """The weight in the end, and the last two compensations."""

        def one(now: Any, _: Any) -> Any:
            updates, state = optimizer.update(jnp.float32(sign * u), now[1], now[0])
            return (optax.apply_updates(now[0], updates), state), state.compensation

        begin = jnp.float32(w)
        (after, _), rests = jax.jit(lambda: jax.lax.scan(one, (begin, optimizer.init(begin)), length=steps))()
        return float(after), rests[-2:].tolist()

    for lost in (floor, floor / 2):
        after, rests = ends(lost)
        assert after == w
        assert rests[0] == rests[1]  # nothing gathers any more
    moved, _ = ends(above)
    assert sign * (moved - w) > 0


def test_ten_thousand_updates_below_half_an_ulp_arrive() -> None:
    steps, size = 10_000, 50
    random = np.random.default_rng(2)
    u = random.uniform(0, 2.0**-8, (steps, size)).astype(np.float32) * random.choice([1, -1], size).astype(np.float32)
    w = jnp.asarray(np.where(u[0] > 0, 1.0, -1.0).astype(np.float32))

    def run(optimizer: Any) -> Any:
        def one(now: Any, step: Any) -> Any:
            updates, state = optimizer.update(step, now[1], now[0])
            after = optax.apply_updates(now[0], updates), state
            return after, after[0]

        (_, state), path = jax.jit(lambda: jax.lax.scan(one, (w, optimizer.init(w)), u))()
        return np.asarray(path).astype(float), state

    plain, _ = run(round_params(BF16))
    assert (plain[-1] == np.asarray(w)).all()
    path, state = run(kahan(BF16))
    intended = np.asarray(w).astype(float) + u.astype(float).sum(0)
    h = 2.0 ** (np.frexp(path)[1] - 1 - BF16.precision)
    # What a step adds: a rounding of the compensation, and float32 roundings of two sums no larger than 2 h.
    bound = (h * (2.0 ** -(BF16.precision + 1) + 2.0**-22)).sum(0)
    rest = np.asarray(state.compensation).astype(float)
    assert (np.abs(path[-1] + rest - intended) <= bound).all()
    assert (np.abs(rest) <= h[-1]).all()
    assert (np.abs(path[-1] - intended) < 0.1 * np.abs(intended - np.asarray(w))).all()


def test_stochastic_compensation_has_no_floor() -> None:
    w, u = jnp.ones(4000), 2.0**-20
    optimizer = kahan(BF16, pl.stochastic)

    def one(now: Any, _: Any) -> Any:
        updates, state = optimizer.update(jnp.full(w.shape, u, jnp.float32), now[1], now[0])
        return (optax.apply_updates(now[0], updates), state), None

    (after, state), _ = jax.lax.scan(one, (w, optimizer.init(w)), length=1000)
    mean = float(np.mean(np.asarray(after).astype(float) + np.asarray(state.compensation)) - 1)
    # One step rounds twice: the variance is at most |u| (an ulp of w, 2^-7) a step.
    assert abs(mean - 1000 * u) < 5 * math.sqrt(1000 * u * 2.0**-7 / 4000)


def test_a_weight_that_overflows_leaves_no_compensation() -> None:
    w, optimizer = jnp.array([3e38, 1.0, 1.0]), kahan(BF16)
    w, state = stepper(optimizer)(w, optimizer.init(w), jnp.array([3e38, jnp.inf, jnp.nan]))
    assert w.tolist()[:2] == [math.inf, math.inf]
    assert math.isnan(w[2])
    assert state.compensation.tolist() == [0, 0, 0]


MAKERS: dict[str, Any] = {
    "kahan": lambda: track(optax.chain(optax.sgd(1.0), kahan(BF16))),
    "kahan inside": lambda: optax.chain(optax.sgd(1.0), track(kahan(BF16))),
    "kahan masked": lambda: track(optax.chain(optax.sgd(1.0), optax.masked(kahan(BF16), {"w": True, "rest": False}))),
    "masters": lambda: track(master_weights(optax.sgd(1.0), BF16)),
    "masters in steps": lambda: optax.MultiSteps(track(master_weights(optax.sgd(1.0), BF16)), 1).gradient_transformation(),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", MAKERS)
def test_a_tracker_tells_what_is_under_way_from_what_is_lost(name: str) -> None:
    optimizer, params = MAKERS[name](), {"w": jnp.ones(4), "rest": jnp.ones(2)}
    state, step = optimizer.init(params), stepper(optimizer)
    # The compensation of the last entry stands at 2^-9, where 2^-20 is below its floor; a float32 master keeps 2^-20.
    ways = ([-1e-3, -1e-2, 0.0, -(2.0**-9)], [-1e-3, -1e-2, 0.0, -(2.0**-26)])
    for number, asked in enumerate(ways):
        before = params
        params, state = step(params, state, {"w": jnp.array(asked), "rest": jnp.zeros(2)})
        moved = np.asarray(params["w"]) != np.asarray(before["w"])
        fates = stagnation(state).tally["w"]
        assert int(fates.zero) == 1
        assert int(fates.landed) == moved.sum() == 1
        assert (int(fates.swamped), int(fates.invisible)) == (2, 2 - number)
        assert int(fates.lost) == number
        assert (float(fates.stagnated_fraction), float(fates.lost_fraction)) == (np.float32(2 / 3), np.float32(number / 3))
        rest = stagnation(state).tally["rest"]
        assert (int(rest.zero), int(rest.invisible)) == (2, 0)


# master_weights


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", [pl.nearest_even, pl.downward, pl.stochastic], ids=pl.mode_name)
@pytest.mark.parametrize("fmt", [BF16, pl.FLOAT16, SATURATING], ids=["bf16", "f16", "e4m3fn"])
def test_masters_are_plain_float32_training_seen_through_rounded_weights(fmt: Any, mode: Any) -> None:
    plain = exact()
    optimizer, raw = master_weights(plain, fmt, mode, seed=4), weights(pl.FLOAT32)
    masters, visible = raw, jax.tree.map(lambda leaf: pl.round_to(leaf, fmt), raw)
    other, state, step = plain.init(raw), optimizer.init(raw), stepper(optimizer)
    gradient = jax.jit(jax.grad(lambda tree: sum(jnp.sum((leaf - 0.7) ** 4) for leaf in tree.values())))
    invisible = 0
    for number in range(20):
        grads = gradient(visible)
        updates, other = plain.update(grads, other, masters)
        if mode is pl.stochastic:  # in which the masters are rounded so too
            root = jax.random.fold_in(jax.random.key(4), number)
            keys = {name: jax.random.fold_in(jax.random.fold_in(root, index), 1) for index, name in enumerate(masters)}
            masters = {n: round_sum(w, updates[n], pl.FLOAT32, mode, key=keys[n]) for n, w in masters.items()}
        else:
            masters = {name: np.asarray(masters[name]) + np.asarray(updates[name]) for name in masters}
        before = visible
        visible, state = step(visible, state, grads)
        same(state.masters, masters)
        same(state.inner, other)
        for index, (name, leaf) in enumerate(visible.items()):
            if mode is pl.stochastic:
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), number), index)
                expected = np.asarray(pl.round_to(jnp.asarray(masters[name]), fmt, mode, key=key))
            else:
                expected = round_array(masters[name], fmt, pl.mode_name(mode))
            assert (np.asarray(leaf) == expected).all()
            invisible += np.sum((np.asarray(leaf) == np.asarray(before[name])) & (np.asarray(updates[name]) != 0))
    assert invisible > 0 or fmt is pl.FLOAT16
    assert all((np.asarray(visible[name]) != np.asarray(raw[name])).any() for name in raw)


def test_what_is_invisible_arrives_in_the_end() -> None:
    params, optimizer = jnp.ones(()), master_weights(optax.sgd(1.0), BF16)
    state, step = optimizer.init(params), stepper(optimizer)
    seen = []
    for _ in range(5):
        params, state = step(params, state, jnp.float32(-(2.0**-9)))
        seen.append(float(params))
    assert seen == [1, 1, 1 + 2.0**-7, 1 + 2.0**-7, 1 + 2.0**-7]
    assert float(state.masters) == 1 + 5 * 2.0**-9
