"""The record of the optimizer's own state is a recount in numpy: the update that was meant, against what was stored."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import Record, kahan, master_weights, round_state, stagnation, track
from precisionlab.optimizers.meaning.meant import meant_state
from precisionlab.stagnation.fates import NO_GAP
from precisionlab.stagnation.packing import PackedTallies
from tests import cases
from tests.optimizers.test_track import gradients, parameters, same, stepper
from tests.recount import COUNTS, exponents, recount, wide

STEPS = 4


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_recounted(found: pl.Tally, old: Any, meant: Any, new: Any, numbers: Any = None) -> None:
    """Fates, gaps and directions of one leaf of the state, from what was meant."""
    numbers = cases.REGISTERED[np.asarray(old).dtype.name] if numbers is None else numbers
    step = wide(meant) - wide(old)
    expected = recount(old, step, new, numbers=numbers)
    assert {name: int(getattr(found, name)) for name in COUNTS} == {name: int(expected[name]) for name in COUNTS}
    assert (found.update_mass, found.histogram) == (None, None)
    finite = np.isfinite(wide(old)) & np.isfinite(step) & np.isfinite(wide(new))
    stuck = finite & (step != 0) & (wide(old) == wide(new))
    ulps = np.maximum(exponents(wide(old)[stuck]), int(numbers.emin)) - int(numbers.precision) + 1
    assert int(found.finest) == min(ulps, default=NO_GAP)
    assert int(found.coarsest) == max(ulps, default=-NO_GAP)
    falling = finite & (step < 0)
    assert (int(found.falling), int(found.fell)) == (falling.sum(), (falling & (wide(old) != wide(new))).sum())


def leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


# What optimizers mean, written out: from a gradient and the old moments of one leaf, in one wide dtype. The constants are those
# of float32, in which the program is written even where it is made again in float64.


def times(constant: float, x: Any) -> Any:
    return x.dtype.type(np.float32(constant)) * x


def adam_means(g: Any, mu: Any, nu: Any, b1: float = 0.9, b2: float = 0.999) -> dict[str, Any]:
    return {"mu": times(1 - b1, g) + times(b1, mu), "nu": times(1 - b2, g * g) + times(b2, nu)}


def trace_means(g: Any, trace: Any) -> dict[str, Any]:
    return {"trace": g + times(0.9, trace)}


def ema_means(g: Any, ema: Any) -> dict[str, Any]:
    return {"ema": times(1 - 0.99, g) + times(0.99, ema)}


def adagrad_means(g: Any, sum_of_squares: Any) -> dict[str, Any]:
    return {"sum_of_squares": g * g + sum_of_squares}


class Made:
    """An optimizer, where in its state the moments are, what they mean, and the format of what is rounded."""

    def __init__(self, make: Callable[[], Any], means: Any, fields: str, where: str, fmt: Any = None, **options: Any) -> None:
        self.make, self.means, self.fields, self.where = make, means, fields.split(), where
        self.fmt, self.options = fmt, options


def adam(**options: Any) -> Any:
    return optax.adam(lambda _: jnp.float32(1e-3), **options)


SCALE = optax.scale(-1e-3)
MADE: dict[str, Made] = {
    "adam": Made(adam, adam_means, "mu nu", "0"),
    "adam_narrow_mu": Made(lambda: adam(mu_dtype=jnp.bfloat16), adam_means, "mu nu", "0"),
    "trace": Made(lambda: optax.sgd(1e-3, momentum=0.9), trace_means, "trace", "0"),
    "ema": Made(lambda: optax.chain(optax.ema(0.99, debias=False), SCALE), ema_means, "ema", "0"),
    "adagrad": Made(lambda: optax.adagrad(1e-3), adagrad_means, "sum_of_squares", "0"),
    "rounded": Made(lambda: round_state(adam(), pl.BFLOAT16), adam_means, "mu nu", "inner/0", pl.BFLOAT16),
    "rounded_e5m2": Made(lambda: round_state(adam(), pl.FLOAT8_E5M2), adam_means, "mu nu", "inner/0", pl.FLOAT8_E5M2),
    "rounded_by_chance": Made(
        lambda: round_state(adam(), pl.FLOAT16, pl.stochastic), adam_means, "mu nu", "inner/0", pl.FLOAT16
    ),
    "in_a_chain": Made(
        lambda: optax.chain(optax.identity(), round_state(optax.scale_by_adam(), pl.BFLOAT16), SCALE),
        adam_means, "mu nu", "1/inner", pl.BFLOAT16,
    ),
    "under_masters": Made(
        lambda: master_weights(round_state(adam(), pl.BFLOAT16), pl.BFLOAT16), adam_means, "mu nu", "inner/inner/0", pl.BFLOAT16
    ),
    "around_masters": Made(
        lambda: round_state(master_weights(adam(), pl.BFLOAT16), pl.FLOAT16), adam_means, "mu nu", "inner/inner/0", pl.FLOAT16
    ),
    "before_kahan": Made(lambda: optax.chain(adam(), kahan(pl.BFLOAT16)), adam_means, "mu nu", "0/0"),
    "in_full": Made(adam, adam_means, "mu nu", "0", state=True),
    "trace_in_full": Made(lambda: optax.sgd(1e-3, momentum=0.9), trace_means, "trace", "0", state=True),
    "rounded_in_full": Made(lambda: round_state(adam(), pl.BFLOAT16), adam_means, "mu nu", "inner/0", pl.BFLOAT16, state=True),
}  # fmt: skip


FIRST = ("adam", "rounded_by_chance", "in_a_chain", "under_masters", "in_full", "rounded_in_full")
"""What every run of the tests takes; the others are further combinations of the same."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.thorough) for n in MADE])
def test_every_record_of_the_state_is_a_recount_of_what_was_meant(name: str) -> None:
    made = MADE[name]
    params = parameters(["bfloat16", "float16", "float32"])
    optimizer = track(made.make(), **made.options)
    state, step = optimizer.init(params), stepper(optimizer)
    assert int(stagnation(state).step) == 0
    narrow = [key for key in params if made.options or made.fmt or key != "float32" or "narrow" in name]
    stuck = 0
    for number in range(STEPS):
        before, grads = leaves(state.inner), gradients(params, number)
        params, state, _ = step(params, state, grads)
        after, found = leaves(state.inner), pl.by_path(stagnation(state).state.tally)
        expected = [f"{made.where}/{field}/{key}" for field in made.fields for key in narrow]
        if name == "adam_narrow_mu":
            expected.remove("0/nu/float32")
        assert sorted(path for path in found if "/masters" not in path) == sorted(expected)
        for path in expected:
            field, key = path.split("/")[-2:]
            # Float32 is what narrow state is judged by, and float64 all of it.
            wider = np.float64 if made.options else np.float32
            held = [wide(before[f"{made.where}/{each}/{key}"]).astype(wider) for each in made.fields]
            meant = made.means(wide(grads[key]).astype(wider), *held)[field]
            assert_recounted(found[path], before[path], meant, after[path], made.fmt)
            stuck += int(found[path].stagnated)
    assert stuck > 0 or name in ("trace", "trace_in_full")


PAIRED = [("adam", None), ("adam", True), ("around_masters", True), ("rounded_by_chance", None), ("adam_narrow_mu", False)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state"),
    [
        pytest.param(name, state, marks=[] if (name, state) in PAIRED else pytest.mark.thorough)
        for name in ("adam", "adam_narrow_mu", "around_masters", "rounded_by_chance")
        for state in (None, True, False)
    ],
)
def test_training_and_its_state_are_those_without_a_record(name: str, state: bool | None) -> None:
    params = parameters()
    plain, tracked = MADE[name].make(), track(MADE[name].make(), [pl.FLOAT16], state=state, ages=True)
    one, other = (params, plain.init(params)), (params, tracked.init(params))
    steps = stepper(plain), stepper(tracked)
    same(one[1], other[1].inner)
    for number in range(3):
        one, other = (step(*now, gradients(params, number))[:2] for step, now in zip(steps, (one, other), strict=True))
        same(one, (other[0], other[1].inner))
    assert (stagnation(other[1]).state is None) is (state is False)


def kept_of(optimizer: Any, params: Any, **options: Any) -> dict[str, tuple[float, float]]:
    record = stagnation(track(optimizer, **options).init(params))
    assert record.state is not None
    pairs = jax.tree_util.tree_leaves_with_path(record.state.kept, is_leaf=lambda node: hasattr(node, "meant"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (float(kept.meant), float(kept.stored)) for path, kept in pairs
    }


def float32(x: float) -> float:
    return float(np.float32(x))


@pytest.mark.slow
def test_what_an_update_without_gradient_keeps_as_meant_and_as_stored() -> None:
    narrow, single = {"w": jnp.ones(5, jnp.bfloat16)}, {"w": jnp.ones(5)}
    unknown = pytest.approx((np.nan, np.nan), nan_ok=True)
    slow, fast = float32(0.999), float32(0.9)
    adam_narrow = kept_of(adam(), narrow)
    assert adam_narrow["0/nu/w"] == (slow, 1.0)
    assert adam_narrow["0/mu/w"] == (fast, 0.8984375)
    assert adam_narrow["0/count"] == unknown
    assert kept_of(adam(), single)["0/nu/w"] == (slow, slow)
    assert kept_of(adam(), {"w": jnp.ones(5, jnp.float16)})["0/nu/w"] == (slow, 0.9990234375)
    assert kept_of(adam(mu_dtype=jnp.bfloat16), single)["0/mu/w"] == (fast, 0.8984375)
    assert kept_of(round_state(adam(), pl.FLOAT8_E5M2), single)["inner/0/mu/w"] == (fast, 0.875)
    assert kept_of(round_state(adam(), pl.BFLOAT16), single)["inner/0/nu/w"] == (slow, 1.0)
    assert kept_of(optax.adagrad(1e-3), narrow)["0/sum_of_squares/w"] == (1.0, 1.0)
    assert kept_of(optax.sgd(1e-3, momentum=0.999), narrow)["0/trace/w"] == (slow, 1.0)
    assert kept_of(adam(), {"w": jnp.ones((), jnp.bfloat16)})["0/nu/w"] == (slow, 1.0)
    # Optimizers that need more than gradients tell nothing.
    plateau = optax.chain(adam(), optax.contrib.reduce_on_plateau())
    assert kept_of(plateau, narrow)["0/0/nu/w"] == unknown
    masters = kept_of(master_weights(adam(), pl.BFLOAT16), single)
    assert masters["masters/w"] == unknown
    assert masters["inner/0/nu/w"] == (slow, slow)


@pytest.mark.slow
def test_a_second_moment_in_bfloat16_never_falls_and_one_in_float32_does() -> None:
    params = {"w": jnp.ones(32, jnp.bfloat16)}
    random = np.random.default_rng(3)
    big = {"w": jnp.asarray(random.standard_normal(32), jnp.bfloat16)}
    small = {"w": jnp.asarray(1e-3 * random.standard_normal(32), jnp.bfloat16)}
    for make, fell in ((adam, 0), (lambda: round_state(adam(), pl.FLOAT32), 32)):
        optimizer, here = track(make()), params if fell == 0 else {"w": jnp.ones(32)}
        state, step = optimizer.init(here), stepper(optimizer)
        for grads in (big, small):
            here, state, _ = step(here, state, jax.tree.map(lambda g, w: g.astype(w.dtype), grads, here))
        found = optax.tree.get(stagnation(state).state.tally, "nu")["w"]
        assert (int(found.falling), int(found.fell)) == (32, fell)
        assert (int(found.swamped), int(found.landed)) == (32 - fell, fell)


def test_infinite_gradients_are_counted_apart() -> None:
    params = parameters(["bfloat16"])
    grads = gradients(params, 0)
    grads["bfloat16"][2, :3] = [np.inf, -np.inf, np.nan]
    optimizer = track(adam())
    _, state, _ = stepper(optimizer)(params, optimizer.init(params), grads)
    for field in ("mu", "nu"):
        found = optax.tree.get(stagnation(state).state.tally, field)["bfloat16"]
        assert (int(found.nonfinite), int(found.asked)) == (3, 51)


@pytest.mark.slow
def test_every_keeps_the_last_record_of_the_state() -> None:
    params = parameters(["bfloat16"])
    often, rarely = (track(adam(), [pl.FLOAT16], every, state=True) for every in (1, 3))
    (one, two), steps = (often.init(params), rarely.init(params)), (stepper(often), stepper(rarely))
    here = there = params
    last = stagnation(two).state
    for number in range(1, 8):
        grads = gradients(params, number)
        here, one, _ = steps[0](here, one, grads)
        there, two, _ = steps[1](there, two, grads)
        if number % 3 == 0:
            last = stagnation(one).state
        # What is read elsewhere is drawn elsewhere only with the number of the update, and the windows count reads.
        same(stagnation(two).state._replace(recent=None, window=None), last._replace(recent=None, window=None))
    assert int(stagnation(two).reads) == 2
    assert int(stagnation(one).reads) == 7


def windows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (reads, leaves, lost and kept) the sums over the last reads, all up to a hundred, then 51 to 100; and how many."""
    reads = np.arange(1, len(counts) + 1)
    many = np.where(reads <= 100, reads, 51 + (reads - 1) % 50)
    return np.stack([counts[read - much : read].sum(0) for read, much in zip(reads, many, strict=True)]), many


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_recent_is_the_share_lost_of_the_updates_of_the_last_reads(every: int) -> None:
    """Reads in which a leaf is asked nothing change nothing of it but how many they are; those never asked have no share."""
    params = {"a": jnp.ones(40, jnp.bfloat16), "late": jnp.ones(40, jnp.bfloat16), "never": jnp.ones(3, jnp.bfloat16)}
    pauses = optax.stateless(lambda u, _: u | {"late": jnp.where(u["late"][0] > 0, 0, u["late"])})
    optimizer = track(optax.chain(optax.sgd(1.0, momentum=0.5), pauses), every=every, detail=False)

    def one(now: Any, number: Any) -> Any:
        here, state = now
        draw = 0.02 * jax.random.normal(jax.random.key(number), (40,)) * 10.0 ** -(number % 4)
        late = jnp.where((number > 10) & (number % 3 > 0), draw, 0)
        grads = {"a": draw, "late": late, "never": jnp.zeros(3)}
        grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads)
        updates, state = optimizer.update(grads, state, here)
        record = stagnation(state)
        trace = [optax.tree.get(tree, "trace") for tree in (record.state.recent, record.state.window, record.state.tally)]
        shown = [(record.recent, record.window, record.tally), trace]
        return (optax.apply_updates(here, updates), state), [
            (recent, window, {key: (tally[key].lost, tally[key].asked - tally[key].lost) for key in params})
            for recent, window, tally in shown
        ]

    _, seen = jax.jit(lambda: jax.lax.scan(one, (params, optimizer.init(params)), jnp.arange(260)))()
    for recent, window, counts in seen:
        found = {key: [np.asarray(held)[every - 1 :: every] for held in window[key]] for key in params}
        wanted = np.stack([np.stack(counts[key], 1) for key in params], 1)[every - 1 :: every]
        sums, many = windows(wanted.astype(float))
        assert len(many) == 260 // every
        for index, key in enumerate(params):
            np.testing.assert_array_equal(np.stack(found[key][:2], 1), sums[:, index])
            np.testing.assert_array_equal(found[key][2], many)
        with np.errstate(invalid="ignore"):
            shares = sums[..., 0] / sums.sum(-1)
        table = np.stack([np.asarray(recent[key])[every - 1 :: every] for key in params], 1)
        np.testing.assert_allclose(table, shares, rtol=1e-6)
        assert 0 < np.nanmean(shares[:, 0]) < 1
        assert np.isnan(table[:, 2]).all()


def of_state(record: Record) -> dict[str, pl.Tally]:
    assert record.state is not None
    return {"/".join(path.split("/")[-2:]): tally for path, tally in pl.by_path(record.state.tally).items()}


WRAPPED: dict[str, Any] = {
    "multi_steps_outside": lambda: optax.MultiSteps(track(adam()), 2).gradient_transformation(),
    "multi_steps_inside": lambda: track(optax.MultiSteps(adam(), 2).gradient_transformation()),
    "inject_outside": lambda: optax.inject_hyperparams(lambda learning_rate: track(optax.adam(learning_rate)))(1e-3),
    "inject_inside": lambda: track(optax.inject_hyperparams(optax.adam)(1e-3)),
    "masked_outside": lambda: optax.masked(track(adam()), {"bfloat16": True, "float32": False}),
    "masked_inside": lambda: track(optax.masked(adam(), {"bfloat16": True, "float32": False})),
    "apply_if_finite": lambda: track(optax.apply_if_finite(adam(), 3)),
    "multi_transform": lambda: track(
        optax.multi_transform({"one": adam(), "two": optax.sgd(1e-3)}, {"bfloat16": "one", "float32": "two"})
    ),
    "schedule_free": lambda: track(optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2, b1=0.9)),
    "adafactor": lambda: track(optax.adafactor(1e-3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_moments_are_recounted_inside_any_wrapper(name: str) -> None:
    """The moments of what optimizers of optimizers hold; each is found once, and its fates are those of its own bits."""
    params = parameters(["bfloat16"]) if name == "inject_inside" else parameters()
    optimizer = WRAPPED[name]()
    state, step = optimizer.init(params), stepper(optimizer)
    moved = 0
    for number in range(2):
        inner = state
        grads = gradients(params, number)
        params, state, _ = step(params, state, grads)
        record = stagnation(state)
        held = [{k: v for k, v in leaves(tree).items() if "/record/" not in f"/{k}/"} for tree in (inner, state)]
        for path, tally in pl.by_path(record.state.tally).items():
            before, after = ([leaf for where, leaf in side.items() if where.endswith(path)] for side in held)
            assert len(before) == len(after) == 1, path
            assert before[0].dtype == jnp.bfloat16
            if int(record.step):
                landed = (wide(before[0]) != wide(after[0])).sum()
                assert int(tally.entries) == before[0].size
                # What should have stayed and was moved by rounding alone is a zero update, not a landed one.
                assert int(tally.landed) <= landed <= int(tally.landed) + int(tally.zero)
                moved += landed
    assert moved > 0


@pytest.mark.slow
def test_moments_that_are_given_gradients_as_the_mean_of_two_are_recounted() -> None:
    params = parameters(["bfloat16"])
    optimizer = optax.MultiSteps(track(adam()), 2).gradient_transformation()
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(2):
        before, given = state, gradients(params, number)
        params, state, _ = step(params, state, given)
    found = of_state(stagnation(state))
    old, new = (optax.tree.get(each, "mu")["bfloat16"] for each in (before, state))
    # The mean of two gradients in bfloat16 is what the moments were given.
    first = wide(optax.tree.get(before, "acc_grads")["bfloat16"])
    mean = np.asarray(first + (wide(given["bfloat16"]) - first) / 2)
    u = wide(np.float32(0.1)) * mean
    assert int(found["mu/bfloat16"].landed) == ((wide(old) != wide(new)) & (u != 0)).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state"), [("lbfgs", None), ("plateau", None), pytest.param("plateau", True, marks=pytest.mark.thorough)]
)
def test_optimizers_that_need_more_than_gradients_can_be_tracked(name: str, state: bool | None) -> None:
    here = {"w": jnp.full(4, 0.5, jnp.float32 if name == "lbfgs" else jnp.bfloat16), "v": jnp.full(4, 0.5)}

    def loss(p: Any) -> Any:
        return jnp.sum(p["w"].astype(jnp.float32) ** 2) + jnp.sum(p["v"] ** 2)

    optimizer = optax.lbfgs() if name == "lbfgs" else optax.chain(adam(), optax.contrib.reduce_on_plateau())
    tracked = track(optimizer, state=state)
    plain, with_record = optimizer.init(here), tracked.init(here)
    for _ in range(2):
        value, grads = jax.value_and_grad(loss)(here)
        more = {"value": value} | ({"grad": grads, "value_fn": loss} if name == "lbfgs" else {})
        expected, plain = optimizer.update(grads, plain, here, **more)
        updates, with_record = tracked.update(grads, with_record, here, **more)
        same(updates, expected)
        same(with_record.inner, plain)
        here = optax.apply_updates(here, updates)
    record = stagnation(with_record)
    assert (int(record.step), record.state is None) == (2, False)
    seen = pl.by_path(record.state.tally)
    assert (len(seen) > 0) is (name == "plateau" or state is True)
    assert all(int(tally.entries) > 0 for tally in seen.values())


@pytest.mark.slow
def test_the_moments_of_an_optimizer_are_found_once() -> None:
    params = parameters()
    for options in ({}, {"state": True, "ages": True}, {"formats": [pl.BFLOAT16]}):
        optimizer = track(adam(), **options)
        _, state, _ = stepper(optimizer)(params, optimizer.init(params), gradients(params, 0))
        for name in ("mu", "nu"):
            same(optax.tree.get(state, name), getattr(state.inner[0], name))
        replaced = optax.tree.set(state, mu=jax.tree.map(jnp.zeros_like, params))
        same(replaced.inner[0].mu, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.slow
def test_what_is_remembered_of_the_state_grows_with_its_leaves_alone() -> None:
    def added(size: int, count: int, **options: Any) -> int:
        params = [jnp.ones(size, jnp.bfloat16)] * count
        plain = adam().init(params)
        wrapped = jax.eval_shape(track(adam(), **options).init, params)
        one, two = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (plain, wrapped))
        return two - one

    formats = [pl.FLOAT16, pl.FLOAT8_E4M3FN]
    for options in ({"state": None}, {"state": True}, {"state": True, "formats": formats}):
        assert added(10, 2, **options) == added(100_000, 2, **options)
        assert added(10, 4, **options) - added(10, 3, **options) == added(10, 3, **options) - added(10, 2, **options)
        assert added(10, 2, **options) > added(10, 2, **(options | {"state": False}))
        # A weight and its two moments: a hundred numbers each for the storage and for each way to round.
        ways = 1 + 3 * len(options.get("formats", []))
        assert added(10, 2, **options) < 2 * 3 * 50 * ways + 100


@pytest.mark.slow
def test_donated_and_scanned_records_of_the_state_are_the_same() -> None:
    params = parameters()
    optimizer = track(adam(), [pl.FLOAT16], every=2, state=True)
    grads, step = gradients(params, 0), stepper(optimizer)
    now = begin = params, optimizer.init(params)
    for _ in range(4):
        now = step(*now, grads)[:2]
    donated = jax.tree.map(jnp.copy, begin)
    donating = jax.jit(lambda *given: step(*given)[:2], donate_argnums=(0, 1))
    for _ in range(4):
        donated = donating(*donated, grads)
    same(donated, now)
    scanned, _ = jax.jit(lambda: jax.lax.scan(lambda here, _: (step(*here, grads)[:2], None), begin, length=4))()
    counts = [tree for tree in (scanned[1].record.state.tally.fates, now[1].record.state.tally.fates)]
    assert int(stagnation(scanned[1]).step) == 4
    np.testing.assert_allclose(counts[0], counts[1], atol=2)  # a scan may fuse a product otherwise
    assert isinstance(scanned[1].record.state.tally, PackedTallies)


@pytest.mark.slow
def test_state_that_changes_its_dtype_is_placed_where_it_was() -> None:
    """inject_hyperparams keeps decays in float32 arrays, beside which moments in bfloat16 become float32 at once."""
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3)}
    optimizer = track(optax.inject_hyperparams(optax.adam)(1e-3))
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert of_state(stagnation(state))


@pytest.mark.slow
def test_what_cannot_be_made_again_is_made_in_float64() -> None:
    """A factorization has no program to run in another arithmetic; on float64 values its own tells what float32 lost."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda w: jnp.full_like(w, 2.0**20), params)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        del params
        state = jax.tree.map(lambda s, g: s + jnp.linalg.cholesky(g @ g.T + jnp.eye(4, dtype=g.dtype)), state, grads)
        return grads, state

    params, grads = {"w": jnp.ones((4, 4))}, {"w": 2.0**-8 * jax.random.normal(jax.random.key(0), (4, 4))}
    optimizer = track(optax.GradientTransformation(init, update), state=True)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    found = pl.by_path(stagnation(state).state.tally)["w"]
    # Above the diagonal nothing is added, on it about 1, below it what 2^20 does not see.
    assert (int(found.zero), int(found.landed), int(found.swamped)) == (6, 4, 6)


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_noise_is_meant_as_it_was_drawn(double: bool) -> None:
    """Normal numbers of bfloat16 are not those of float32 rounded, so a wider draw would be another update."""
    eta, key = 0.25, jax.random.key(3)
    optimizer = optax.with_extra_args_support(optax.chain(optax.add_noise(eta, 0.5, key), optax.trace(0.5)))
    params = {"w": jnp.full(64, 0.375, jnp.bfloat16)}
    *_, meant = meant_state(optimizer, params, optimizer.init(params), params, {}, double=double)
    # The first update adds normal numbers of variance eta, from the second of two keys and then one for each leaf.
    drawn = optax.tree.random_like(jax.random.split(key)[1], params, jax.random.normal)["w"]
    assert drawn.dtype == jnp.bfloat16
    expected = 0.375 + eta**0.5 * np.asarray(drawn, np.float64)
    assert meant.dtype == (jnp.float64 if double else jnp.float32)
    np.testing.assert_allclose(np.asarray(meant, np.float64), expected, rtol=0, atol=2.0**-22)
