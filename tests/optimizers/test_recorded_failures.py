"""Failures that others reported, in miniature: each happens, `track` finds it, `advise` names it, and a cure ends it.

The cure that an advice names must be among those that are shown to cure. Numbers come from the half-gap law, with p = 8 for
bfloat16: w + u rounds back to w where |u| is at most half the gap beside w (a tie stays where w is even). Weights and gradients
are such that ties and neighbouring binades do not matter, unless a test is about them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import (
    Advice,
    MisplacedWarning,
    Record,
    advise,
    kahan,
    master_weights,
    round_params,
    round_state,
    stagnation,
    track,
    two_components,
)
from precisionlab.stagnation.averages import counter_limit, is_ratchet, stall_level, stored_decay

BF16 = pl.BFLOAT16
SIGMAS = 5


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    """Optax itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# One way to train, one to ask.


class Trained(NamedTuple):
    """Weights and state at the end, and what was given and added on the way, one row for each step."""

    params: Any
    state: Any
    gradients: Any
    updates: Any


def train(optimizer: Any, params: Any, gradients: Callable[[Any, Any], Any], steps: int) -> Trained:
    """Training in one scan; gradients may depend on the weights and on the number of the step."""

    def step(now: Any, number: Any) -> Any:
        params, state = now
        grads = gradients(params, number)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (grads, updates)

    now, path = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps)))()
    return Trained(*now, *path)


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def in_float32(optimizer: Any) -> Any:
    """An optimizer that computes and remembers in float32, whatever the weights are stored in."""
    return optax.GradientTransformation(
        lambda params: optimizer.init(widened(params)),
        lambda updates, state, params=None: optimizer.update(widened(updates), state, widened(params)),
    )


def named(record: Record, kind: str, site: str, path: str, **known: float) -> Advice:
    """The only advice of a kind about a leaf; all of them speak in numbers."""
    advices = advise(record, **known)
    assert all(any(sign.isdigit() for sign in advice.sentence) for advice in advices)
    [found] = [advice for advice in advices if (advice.kind, advice.site, advice.path) == (kind, site, path)]
    assert found.path in found.sentence
    return found


def kinds(record: Record, site: str) -> set[str]:
    return {advice.kind for advice in advise(record) if advice.site == site}


def exact(leaf: Any) -> np.ndarray:
    return np.asarray(leaf).astype(np.float64)


def gap_above(size: np.ndarray) -> np.ndarray:
    """Between a magnitude and the next of bfloat16."""
    return np.ldexp(1.0, np.frexp(size)[1] - int(BF16.precision))


# The cures of weights: the same optimizer, with its weights stored as the cure has it.

CURES_OF_WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "round_params": lambda inner: optax.chain(in_float32(inner), round_params(BF16, pl.stochastic, seed=1)),
    "kahan": lambda inner: optax.chain(in_float32(inner), kahan(BF16)),
    "two_components": lambda inner: optax.chain(in_float32(inner), two_components(BF16)),
    "master_weights": lambda inner: master_weights(inner, BF16),
    "float32": lambda inner: inner,
}

LOST_AT_REST_AND_IN_A_STEP = {
    "kahan": (1, 2.0**-9),
    "two_components": (1, 2.0**-8 + 2.0**-9),
    "master_weights": (1, 0),
    "float32": (0, 0),
}
"""How far weights may be from float32, in halves of a gap: the rest that something keeps, and the floor of each step."""


def assert_weights_cured(cure: str, inner: Any, params: Any, gradients: Any, steps: int, *, feedback: float = 0.0) -> None:
    """With the cure weights go where float32 goes, nearer than where they would be frozen.

    Gradients must be the same for both; feedback is by how much of itself an update is smaller for weights larger by one.
    A weight stored to nearest differs from float32 by at most what `LOST_AT_REST_AND_IN_A_STEP` says. One that is rounded
    stochastically is right on average, with a variance of at most |u| gap a step; its entries are summed in the direction of
    their way, so that ways up and down do not cancel.
    """
    begin = widened(params) if cure == "float32" else params
    wide = train(in_float32(inner), widened(params), gradients, steps)
    cured = train(CURES_OF_WEIGHTS[cure](inner), begin, gradients, steps)
    rows = (widened(params), wide.params, cured.params, wide.updates)
    for w0, w32, w, u in zip(*map(jax.tree.leaves, rows), strict=True):
        w0, w32, w, u = map(exact, (w0, w32, w, u))
        gap = gap_above(np.maximum.reduce([abs(w0), abs(w32), abs(w)]))
        way, far = w32 - w0, np.abs(w - w32)
        slack = steps * 2.0**-23 * np.maximum(abs(w0), abs(w32))
        if cure == "round_params":
            bound = SIGMAS * math.sqrt(np.sum(np.abs(u).sum(0) * gap)) + slack.sum()
            assert np.sum(np.abs(way)) > bound
            assert abs(np.sum(np.sign(way) * (w - w32))) <= bound
        else:
            rest, floor = LOST_AT_REST_AND_IN_A_STEP[cure]
            bound = gap / 2 * (rest + steps * (floor + feedback)) + slack
            assert np.mean(np.abs(way) > bound) > 0.5
            assert (far <= bound).all()


# Norm weights.


def network(params: Any, x: Any) -> Any:
    for layer in params["layers"]:
        x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * layer["norm"]["scale"]
        x = x + jax.nn.gelu(x @ layer["weight"])
    return x


def layers(scale: float, dtype: Any = jnp.bfloat16, size: int = 32) -> Any:
    """Two layers with norm weights of one size."""
    random = np.random.default_rng(0)
    drawn = [random.uniform(-0.25, 0.25, (size, size)).astype(np.float32) for _ in range(2)]
    return {"layers": [{"norm": {"scale": jnp.full(size, scale, dtype)}, "weight": jnp.asarray(w, dtype)} for w in drawn]}


def network_gradients(params: Any, number: Any) -> Any:
    """Of the distance to a network whose norm weights are 3/2."""
    x = jax.random.normal(jax.random.key(3), (64, 32))
    target = network(layers(1.5, jnp.float32), x)
    grads = jax.grad(lambda p: jnp.mean((network(p, x) - target) ** 2))(widened(params))
    return jax.tree.map(lambda g, w: g.astype(w.dtype), grads, params)


def scales_of(params: Any) -> list[Any]:
    return [layer["norm"]["scale"] for layer in params["layers"]]


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["float32", "bfloat16"])
def test_norm_weights_stay_at_exactly_one(memory: str) -> None:
    """vllm-project/speculators#765 and #668, fla-org/flame#47, NVIDIA-NeMo/Automodel#3444.

    A step of Adam is at most lr (1 - b1) / sqrt(1 - b2) = 3.2e-4, and 1 loses up to 2^-9 downwards and 2^-8 upwards.
    """
    steps, adam = 200, optax.adam(1e-4)
    optimizer = track(in_float32(adam) if memory == "float32" else adam, ages=True)
    trained = train(optimizer, layers(1.0), network_gradients, steps)
    assert all((np.asarray(scale) == 1).all() for scale in scales_of(trained.params))
    assert max(float(jnp.abs(u).max()) for u in scales_of(trained.updates)) < 2.0**-9

    record = stagnation(trained.state)
    for tally, recent, moved in zip(*map(scales_of, (record.tally, record.recent, record.ages.last_moved)), strict=True):
        assert int(tally.swamped) == int(tally.lost) == int(tally.entries) == 32
        assert (int(tally.finest), int(tally.coarsest)) == (-7, -7)  # the gap above 1
        assert float(recent) == 1
        assert (np.asarray(moved) == 0).all()

    advice = named(record, "frozen", "weights", "layers/*/norm/scale")
    assert advice == advise(record)[0]
    assert (advice.share, advice.cure) == (1.0, "float32")
    assert "100 % of the updates of 64 entries" in advice.sentence
    assert "128 bytes more" in advice.sentence  # 64 entries, two bytes more for each
    assert advice.cure in CURES_OF_WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("cure", CURES_OF_WEIGHTS)
def test_norm_weights_move_with_each_cure(cure: str) -> None:
    """Fed the gradients that float32 training saw."""
    steps, adam = 200, optax.adam(1e-4)
    seen = train(adam, widened(layers(1.0)), network_gradients, steps).gradients

    def gradients(params: Any, number: Any) -> Any:
        return {"scales": [leaf[number] for leaf in scales_of(seen)]}

    assert_weights_cured(cure, adam, {"scales": scales_of(layers(1.0))}, gradients, steps)


@pytest.mark.slow
@pytest.mark.parametrize("cure", [name for name in CURES_OF_WEIGHTS if name != "round_params"])
def test_advice_falls_silent_where_something_keeps_every_update(cure: str) -> None:
    w = jnp.ones(64, jnp.float32 if cure == "float32" else jnp.bfloat16)
    trained = train(track(CURES_OF_WEIGHTS[cure](optax.adam(1e-4))), w, alternating, 3)
    record = stagnation(trained.state)
    assert int(record.tally.lost) == 0
    if cure == "float32":
        assert [advice.kind for advice in advise(record)] == ["fine"]
    else:
        assert int(record.tally.invisible) == 64
        assert named(record, "invisible", "weights", "").cure is None
        assert kinds(record, "weights") == {"invisible"}


def test_norm_weights_lose_steps_up_to_the_law() -> None:
    """Frozen downwards for steps up to 2^-9, upwards up to 2^-8, and not by one more."""
    sizes = np.array([2.0**-9, 2.0**-9 * (1 + 2.0**-7), 2.0**-8, 2.0**-8 * (1 + 2.0**-7)], np.float32)
    gradients = jnp.asarray(np.stack([sizes, -sizes]))  # sgd goes down, then up
    trained = train(track(in_float32(optax.sgd(1.0))), jnp.ones((2, 4), jnp.bfloat16), lambda *_: gradients, 1)
    assert (np.asarray(trained.params) != 1).tolist() == [[False, True, True, True], [False, False, False, True]]
    assert int(stagnation(trained.state).tally.landed) == 4


# Averages of weights.


class AverageState(NamedTuple):
    average: Any


def weight_average(decay: float) -> Any:
    """The exponential average of the weights, in their dtype; as a state, written s + (1 - decay)(w - s)."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda s, w: s + (1 - decay) * (w - s), state.average, after)
        return updates, AverageState(average)

    return optax.GradientTransformation(lambda params: AverageState(jax.tree.map(jnp.copy, params)), update)


CURES_OF_STATE: dict[str, Callable[[Any], Any]] = {
    "round_state": lambda inner: round_state(inner, BF16, pl.stochastic, seed=1),
    "float32": in_float32,
}


def assert_state_cured(cure: str, found: Any, wanted: float, begin: float, asked: float, largest: float, steps: int) -> None:
    """A leaf of the state, all of whose entries should be `wanted`, is; where it would stand still at `begin` is too far.

    Args:
        cure: how it is stored.
        found: the leaf.
        wanted: where exact arithmetic leads.
        begin: where it was left in the failure.
        asked: the sum of all |u| on the way.
        largest: the largest value on the way.
        steps: their number.
    """
    values = exact(found)
    bound = steps * 2.0**-23 * largest
    if cure == "round_state":
        bound += SIGMAS * math.sqrt(asked * float(gap_above(np.float64(largest))) / values.size)
    assert abs(wanted - begin) > 3 * bound
    assert abs(values.mean() - wanted) <= bound
    if cure == "float32":
        assert (np.abs(values - wanted) <= bound).all()


def leaving(params: Any, number: Any) -> Any:
    """Sixteen steps of 1/16, exact in bfloat16, and then rest."""
    return jnp.where(number < 16, jnp.full_like(params, -1), jnp.zeros_like(params))


def averages_of_weights(steps: int, decay: float, begin: float) -> tuple[float, float]:
    """Where the average of one weight should be after some steps, and the sum of all its steps."""
    w = s = begin
    asked = 0.0
    for number in range(steps):
        w += (number < 16) / 16
        asked += (1 - decay) * abs(w - s)
        s += (1 - decay) * (w - s)
    return s, asked


def test_averages_of_weights_never_move() -> None:
    """d8ahazard/sd_dreambooth_extension#1415: the weights go from w to w + 1, and 0.001 of that is less than half a gap."""
    steps, w = 500, jnp.asarray(1 + np.arange(64).reshape(4, 16) % 16 / 16, jnp.bfloat16)
    optimizer = track(optax.chain(optax.sgd(1 / 16), weight_average(0.999)))
    trained = train(optimizer, w, leaving, steps)
    average = trained.state.inner[1].average
    assert (exact(trained.params) == exact(w) + 1).all()
    assert (exact(average) == exact(w)).all()
    assert all(stall_level(0.999, BF16, target=value + 1, start=value) == value for value in exact(w).flat)

    record = stagnation(trained.state)
    tally, kept = record.state.tally[1].average, record.state.kept[1].average
    assert int(tally.swamped) == int(tally.entries) == 64
    assert float(record.state.recent[1].average) == 1
    assert (float(kept.meant), float(kept.stored)) == (np.float32(0.999), 1.0)

    advice = named(record, "forgetful", "state", "1/average")
    assert (advice.share, advice.cure) == (1.0, "float32")
    assert "by 0.999 as meant, by 1 as stored" in advice.sentence
    assert advice.cure in CURES_OF_STATE


@pytest.mark.parametrize("cure", CURES_OF_STATE)
def test_averages_of_weights_follow_with_each_cure(cure: str) -> None:
    steps, decay = 500, 0.999
    inner = optax.chain(optax.sgd(1 / 16), weight_average(decay))
    trained = train(CURES_OF_STATE[cure](inner), jnp.ones(1024, jnp.bfloat16), leaving, steps)
    wanted, asked = averages_of_weights(steps, decay, 1.0)
    assert_state_cured(cure, optax.tree.get(trained.state, "average"), wanted, 1.0, asked, wanted, steps)


# Weight decay.


def still(params: Any, number: Any) -> Any:
    return jnp.zeros_like(params)


def normal_weights(size: int, scale: float = 1.0) -> Any:
    return jnp.asarray(scale * np.random.default_rng(5).standard_normal(size), jnp.bfloat16)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("rate", "decay"), [(1e-2, 0.1), (2.0**-9, 1.0)])
def test_weight_decay_is_never_applied(rate: float, decay: float) -> None:
    """Nerogar/OneTrainer#996: weights without gradient stay for ever where lr wd is at most 2^-9."""
    steps, w = 100, normal_weights(4096)
    assert (exact(w) != 0).all()
    trained = train(track(in_float32(optax.adamw(rate, weight_decay=decay))), w, still, steps)
    assert (np.asarray(trained.params) == np.asarray(w)).all()

    record = stagnation(trained.state)
    assert (int(record.tally.swamped), int(record.tally.landed)) == (4096, 0)
    assert float(record.recent) == 1
    # Towards zero the gap of a power of two is half as wide; it is no exception only because a tie stays.
    sizes = np.frexp(np.abs(exact(w)))[1] - int(BF16.precision)
    assert (int(record.tally.finest), int(record.tally.coarsest)) == (sizes.min(), sizes.max())

    assert named(record, "frozen", "weights", "").share == 1
    advice = named(record, "decay", "weights", "", learning_rate=rate, weight_decay=decay)
    assert (advice.share, advice.cure) == (1.0, "round_params")
    assert "4,096 of 4,096 weights" in advice.sentence
    assert advice.cure in CURES_OF_WEIGHTS


def test_more_weight_decay_than_the_law_asks_for_is_applied() -> None:
    """Beyond 2^-8 every weight falls, whatever its significand."""
    w, rate = normal_weights(4096), 2.0**-8 * (1 + 2.0**-7)
    trained = train(track(in_float32(optax.adamw(rate, weight_decay=1.0))), w, still, 1)
    assert (np.abs(exact(trained.params)) < np.abs(exact(w))).all()
    record = stagnation(trained.state)
    assert int(record.tally.landed) == 4096
    assert [advice.kind for advice in advise(record, learning_rate=rate, weight_decay=1.0)] == ["fine"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cure", CURES_OF_WEIGHTS)
def test_weight_decay_is_applied_at_its_rate_with_each_cure(cure: str) -> None:
    """The update sees the rounded weight, so that lr wd of what rounding keeps back is missing in each step."""
    steps, rate = 400, 1e-3
    w = normal_weights(4096)
    inner = optax.adamw(1e-2, weight_decay=0.1)
    assert_weights_cured(cure, inner, w, still, steps, feedback=rate)
    wide = train(in_float32(inner), widened(w), still, steps).params
    np.testing.assert_allclose(exact(wide), exact(w) * (1 - rate) ** steps, rtol=steps * 2.0**-22)


# Counters and sums.


class CounterState(NamedTuple):
    step: Any


def bias_correction(b2: float) -> Any:
    """What Adam multiplies its step by for the moment that starts at zero; the counter takes the dtype of the weights."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step = state.step + 1
        factor = jnp.sqrt(1 - b2 ** step.astype(jnp.float32))
        return jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates), CounterState(step)

    return optax.GradientTransformation(lambda params: CounterState(jnp.zeros((), jax.tree.leaves(params)[0].dtype)), update)


def ones(params: Any, number: Any) -> Any:
    return jnp.ones_like(params)


@pytest.mark.slow
def test_a_step_counter_stops_at_256() -> None:
    """pytorch/ao#4915: the bias correction ends at sqrt(1 - 0.999^256), and every later step is too small without a warning."""
    steps, b2 = 300, 0.999
    inner = optax.chain(optax.sgd(1.0), bias_correction(b2))
    trained = train(track(inner), jnp.zeros(8, jnp.bfloat16), ones, steps)
    assert float(trained.state.inner[1].step) == counter_limit(BF16) == 256
    # Compilers may keep 256 + 1 for the factor, which is rounded to 2^-8 of itself, while they store 256.
    np.testing.assert_allclose(exact(trained.updates[256:]), -math.sqrt(1 - b2**256), rtol=2.0**-9 + 1 / 512)

    record = stagnation(trained.state)
    tally, recent = record.state.tally[1].step, record.state.recent[1].step
    assert (int(tally.swamped), int(tally.landed)) == (1, 0)
    assert int(tally.coarsest) == 1  # the gap above 256 is 2
    # Of 300 reads the last 44 lost it.
    assert math.isclose(float(recent), 0.44, rel_tol=1e-6)

    advice = named(record, "counter", "state", "1/step")
    assert advice.cure == "float32"
    assert "256" in advice.sentence

    cured = train(track(CURES_OF_STATE[advice.cure](inner)), jnp.zeros(8, jnp.bfloat16), ones, steps)
    assert float(cured.state.inner[1].step) == 300
    assert math.isclose(float(cured.updates[-1, 0]), -math.sqrt(1 - b2**steps), rel_tol=1e-5)
    assert "counter" not in kinds(stagnation(cured.state), "state")


class SumState(NamedTuple):
    count: Any
    total: Any


def accumulate(every: int) -> Any:
    """Gradients added up in the dtype of the weights, and handed on once in `every` micro-batches."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        count, total = state.count + 1, jax.tree.map(jnp.add, state.total, updates)
        emits = count % every == 0
        handed = jax.tree.map(lambda t: jnp.where(emits, t, jnp.zeros_like(t)), total)
        return handed, SumState(count, jax.tree.map(jnp.subtract, total, handed))

    return optax.GradientTransformation(lambda params: SumState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params)), update)


@pytest.mark.slow
def test_equal_micro_batches_beyond_256_are_not_accumulated() -> None:
    """The law of pytorch/ao#4915 for gradients: a sum of equal g in bfloat16 stops at 256 g."""
    steps, g, inner, w = 300, 2.0**-10, accumulate(512), jnp.ones(1024, jnp.bfloat16)

    def gradients(params: Any, number: Any) -> Any:
        return jnp.full_like(params, g)

    trained = train(track(inner), w, gradients, steps)
    stop = counter_limit(BF16, g)
    assert stop == 256 * g
    assert (exact(trained.state.inner.total) == stop).all()

    record = stagnation(trained.state)
    assert (int(record.state.tally.total.swamped), int(record.state.tally.total.landed)) == (1024, 0)
    assert (float(record.state.kept.total.meant), float(record.state.kept.total.stored)) == (1, 1)  # a sum forgets nothing
    advice = named(record, "stalled", "state", "total")
    assert math.isclose(advice.share, 44 / 100, rel_tol=1e-5)
    assert advice.cure == "round_state"

    for cure, build in CURES_OF_STATE.items():
        found = optax.tree.get(train(build(inner), w, gradients, steps).state, "total")
        assert_state_cured(cure, found, steps * g, stop, (steps - 256) * g, steps * g, steps)


# Small learning rates.


def alternating(params: Any, number: Any) -> Any:
    """So that every update of Adam is plus or minus the learning rate."""
    return jnp.where(jnp.arange(params.size) % 2 == 0, 1, -1).astype(params.dtype)


def policy_weights(size: int) -> Any:
    """Normal ones of size 1/20, none near 2^-11, where 1e-6 begins to be lost."""
    w = np.asarray(normal_weights(size, 0.05))
    near = np.abs(np.abs(exact(w)) - 2.0**-11) < 2.0**-14
    return jnp.asarray(np.where(near, np.asarray(0.03, w.dtype), w))


def test_reinforcement_learning_changes_one_weight_in_a_hundred() -> None:
    """areal-project/AReaL#1292 and #1634: at lr 1e-6 all of at least 2^(ceil(log2 lr) + 8) = 2^-11 are lost."""
    steps, w = 20, policy_weights(300_000)
    trained = train(track(in_float32(optax.adam(1e-6))), w, alternating, steps)
    lost = np.abs(exact(w)) >= 2.0**-11
    assert ((np.asarray(trained.params) == np.asarray(w)) == lost).all()
    assert 0.99 < lost.mean() < 1

    record = stagnation(trained.state)
    assert int(record.tally.lost) == int(record.tally.swamped) == lost.sum()
    assert int(record.tally.asked) == 300_000
    assert 2.0 ** int(record.tally.finest) == 2.0**-18  # the gap above 2^-11

    advice = named(record, "frozen", "weights", "")
    assert math.isclose(advice.share, lost.mean(), rel_tol=1e-5)
    assert advice.cure == "round_params"
    assert "the updates of 300,000 entries" in advice.sentence
    assert advice.cure in CURES_OF_WEIGHTS


def test_what_a_master_keeps_is_invisible_not_lost() -> None:
    """areal-project/AReaL#1634: over float32 masters just as few weights change, and nothing is wrong."""
    steps, w = 20, policy_weights(300_000)
    trained = train(track(master_weights(optax.adam(1e-6), BF16)), w, alternating, steps)
    unchanged = int((np.asarray(trained.updates[-1]) == 0).sum())
    assert unchanged > 0.95 * w.size

    record = stagnation(trained.state)
    assert int(record.tally.invisible) == int(record.tally.swamped) == unchanged
    assert int(record.tally.lost) == 0
    advice = named(record, "invisible", "weights", "")
    assert (advice.share, advice.cure) == (0.0, None)
    assert kinds(record, "weights") == {"invisible"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cure", CURES_OF_WEIGHTS)
def test_small_learning_rates_arrive_with_each_cure(cure: str) -> None:
    assert_weights_cured(cure, optax.adam(1e-6), policy_weights(4096), alternating, 1000)


# Second moments.


def falling(params: Any, number: Any) -> Any:
    """Ones, and from the 600th step on sixteenths."""
    return jnp.where(number < 600, jnp.ones_like(params), jnp.full_like(params, 2.0**-4))


def second_moments(steps: int, decay: float) -> tuple[float, float, float]:
    """Of these gradients: the last, the largest, and the sum of all steps."""
    nu = largest = asked = 0.0
    for number in range(steps):
        move = (1 - decay) * ((1.0 if number < 600 else 2.0**-8) - nu)
        nu, asked = nu + move, asked + abs(move)
        largest = max(largest, nu)
    return nu, largest, asked


@pytest.mark.slow
def test_adam_never_forgets_in_bfloat16() -> None:
    """google-research/big_vision#41, FluxML/Optimisers.jl#215: b2 = 0.999 is stored as 1, and steps shrink, here to 0.7."""
    steps, b2 = 1200, 0.999
    assert stored_decay(b2, BF16) == 1
    assert is_ratchet(b2, BF16)
    w = jnp.zeros(1024, jnp.bfloat16)
    trained = train(track(optax.adam(1e-3)), w, falling, steps)
    level = counter_limit(BF16, float(jnp.bfloat16(1 - b2)))  # what is never multiplied only counts
    assert level == 0.5
    assert (exact(trained.state.inner[0].nu) == level).all()
    right, _, _ = second_moments(steps, b2)
    wide = train(optax.adam(1e-3), widened(w), falling, steps)
    shrunk = exact(trained.updates[-1]) / exact(wide.updates[-1])
    # The first moments, near 1/16, are right up to the few hundredths at which 0.1 of the distance is half a gap.
    np.testing.assert_allclose(shrunk, math.sqrt(right / level), rtol=0.05)

    record = stagnation(trained.state)
    tally, kept = record.state.tally[0].nu, record.state.kept[0].nu
    assert (float(kept.meant), float(kept.stored)) == (np.float32(0.999), 1.0)
    assert (int(tally.falling), int(tally.fell), int(tally.landed)) == (1024, 0, 0)
    advice = named(record, "forgetful", "state", "0/nu")
    assert (advice.share, advice.cure) == (1.0, "float32")
    assert "1,024 entries" in advice.sentence
    assert advice.cure in CURES_OF_STATE


@pytest.mark.slow
@pytest.mark.parametrize("cure", CURES_OF_STATE)
def test_adam_forgets_with_each_cure(cure: str) -> None:
    """Further than to a quarter, where rounding to nearest would have left it."""
    steps, b2 = 2000, 0.999
    trained = train(CURES_OF_STATE[cure](optax.adam(1e-3)), jnp.zeros(1024, jnp.bfloat16), falling, steps)
    wanted, largest, asked = second_moments(steps, b2)
    assert_state_cured(cure, optax.tree.get(trained.state, "nu"), wanted, stall_level(b2, BF16), asked, largest, steps)


@pytest.mark.slow
def test_rounding_moments_that_optax_keeps_narrow_does_not_come_too_late() -> None:
    """`round_state` makes the update wide by itself: nothing is on the grid before it rounds."""
    steps, b2 = 1200, 0.999
    optimizer = round_state(optax.adam(1e-3), BF16, pl.stochastic)
    trained = train(optimizer, jnp.zeros(1024, jnp.bfloat16), falling, steps)
    wanted, largest, asked = second_moments(steps, b2)
    nu = trained.state.inner[0].nu
    assert nu.dtype == jnp.bfloat16
    assert_state_cured("round_state", nu, wanted, 0.5, asked, largest, steps)  # 0.5 is where nearest rounding leaves it


@pytest.mark.slow
@pytest.mark.parametrize(("b2", "kind", "cure"), [(0.999, "forgetful", "float32"), (0.997, "stalled", "round_state")])
def test_second_moments_stop_below_their_level(b2: float, kind: str, cure: str) -> None:
    """The same with the update in float32 and the moment alone in bfloat16, fed ones: it rests a quarter or half of the way."""
    steps, inner, w = 2000, optax.adam(1e-3, b2=b2), jnp.zeros(1024, jnp.bfloat16)
    trained = train(track(round_state(in_float32(inner), BF16)), w, ones, steps)
    level = stall_level(b2, BF16)
    assert level == {0.999: 0.25, 0.997: 0.5}[b2]
    assert (exact(optax.tree.get(trained.state.inner, "nu")) == level).all()

    record = stagnation(trained.state)
    tally, kept = record.state.tally.inner[0].nu, record.state.kept.inner[0].nu
    assert (int(tally.swamped), int(tally.falling)) == (1024, 0)
    assert (float(kept.meant), float(kept.stored)) == (np.float32(b2), stored_decay(b2, BF16))
    advice = named(record, kind, "state", "inner/0/nu")
    assert advice.share > 0.99
    assert advice.cure == cure

    found = optax.tree.get(train(CURES_OF_STATE[cure](inner), w, ones, steps).state, "nu")
    assert_state_cured(cure, found, 1 - b2**steps, level, 1.0, 1.0, steps)


@pytest.mark.slow
def test_second_moments_underflow_in_float16() -> None:
    """Below 2^-25 nothing is added to a moment in float16, nor is the eps of Adam anything: it divides by zero."""
    size, steps, w = 1024, 20, jnp.ones(1024, jnp.float16)

    def gradients(params: Any, number: Any) -> Any:
        return jnp.full_like(params, 1e-4)

    assert (1 - 0.999) * 1e-4**2 < 2.0**-25
    assert 1e-8 < 2.0**-25  # and so is the eps of Adam
    trained = train(track(optax.adam(1e-3)), w, gradients, 1)
    assert (exact(trained.state.inner[0].nu) == 0).all()
    assert not np.isfinite(exact(trained.params)).any()

    record = stagnation(trained.state)
    assert (int(record.state.tally[0].nu.swamped), int(record.tally.nonfinite)) == (size, size)
    advice = named(record, "nonfinite", "weights", "")
    assert advice == advise(record)[0]
    assert (advice.share, advice.cure) == (1.0, None)
    assert "1,024 of 1,024 entries" in advice.sentence
    assert named(record, "stalled", "state", "0/nu").share == 1

    # Adam with equal gradients g moves by lr g / (g + eps), and a sum lands within half a gap below 1, twenty times.
    cured = train(in_float32(optax.adam(1e-3)), w, gradients, steps)
    assert (np.abs(exact(cured.params) - (1 - steps * 1e-3)) <= steps * 2.0**-12).all()


# Trackers in the wrong place.


@pytest.mark.slow
def test_a_tracker_before_the_learning_rate_speaks_of_updates_never_made() -> None:
    """It finds that all updates land, of weights that never move."""
    steps, w, scale = 50, jnp.ones(64, jnp.bfloat16), in_float32(optax.scale_by_adam())
    trained = train(optax.chain(track(scale), optax.scale(-1e-4)), w, alternating, steps)
    assert (np.asarray(trained.params) == 1).all()
    with pytest.warns(MisplacedWarning, match="after 49 of the 49 updates"):
        record = stagnation(trained.state)
    assert int(record.tally.landed) == 64
    assert (int(record.arrival.checked), int(record.arrival.missed), float(record.arrival.ratio)) == (49, 49, 0.0)
    advice = named(record, "misplaced", "weights", "")
    assert advice == advise(record)[0]
    assert (advice.share, advice.cure) == (1.0, "track")

    cured = train(track(optax.chain(scale, optax.scale(-1e-4))), w, alternating, steps)
    record = stagnation(cured.state)  # warnings are errors here
    assert (int(record.tally.swamped), int(record.arrival.missed)) == (64, 0)
    assert kinds(record, "weights") == {"frozen"}
