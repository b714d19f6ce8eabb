"""Every number in a piece of advice is worked out here from the record or from the data, and what it says is true."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import Record, advise, apply_updates, kahan, master_weights, round_state, stagnation, track
from tests import cases
from tests.oracle import all_values, round_array
from tests.recount import wide


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


BF16 = jnp.bfloat16


def after(params: Any, grads: Any, optimizer: Any = None, steps: int = 1, formats: Any = None, **options: Any) -> Record:
    optimizer = track(optax.identity() if optimizer is None else optimizer, formats, **options)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        params = apply_updates(params, updates)
    return stagnation(state)


def only(record: Record, kind: str, **options: Any) -> Any:
    (found,) = [advice for advice in advise(record, **options) if advice.kind == kind]
    assert str(found) == found.sentence
    return found


def kinds(record: Record, **options: Any) -> list[str]:
    return [advice.kind for advice in advise(record, **options)]


# Weights that are frozen


@pytest.mark.slow
def test_frozen_weights_are_told_in_numbers_of_the_run() -> None:
    random = np.random.default_rng(0)
    w = jnp.asarray(random.uniform(0.3, 3, 1000), BF16)
    u = (random.choice([-1, 1], 1000) * 10.0 ** random.uniform(-5, -2, 1000)).astype(np.float32)
    advice = only(after({"w": w}, {"w": u}), "frozen")
    stuck = wide(apply_updates(w, u)) == wide(w)
    ulps = 2.0 ** (np.frexp(wide(w)[stuck])[1] - 8)
    smallest, largest = ulps.min() / 2, ulps.max() / 2
    assert f"w (bfloat16): {100 * stuck.mean():.2g} % of the updates of 1,000 entries lost in the last read." in advice.sentence
    steps = f"To land a step must exceed {smallest:.1e} for the smallest of them to {largest:.1e} for the largest"
    assert f"{steps} (half of it from a power of two down); yours is {np.abs(u).mean():.1e} on average." in advice.sentence
    assert "would keep at least" in advice.sentence
    assert "for 2.0 kB." in advice.sentence  # two bytes a weight for a compensation
    assert "float32 costs 2.0 kB more. That is little: do that." in advice.sentence
    assert (advice.site, advice.path, advice.cure) == ("weights", "w", "float32")
    assert advice.share == pytest.approx(stuck.mean(), rel=1e-6)
    ratio = np.abs(u) / 2.0 ** (np.frexp(wide(w))[1] - 8)
    by_chance = float(advice.sentence.split("would land about ")[1].split(" %")[0])
    exact = 100 * np.minimum(ratio, 1).mean()
    assert by_chance == pytest.approx(exact, rel=0.1)  # from bins that are an octave wide


@pytest.mark.slow
def test_what_stochastic_rounding_would_land_is_counted_where_it_was_asked() -> None:
    w, u = {"w": jnp.full(4000, 1.25, BF16)}, {"w": jnp.full(4000, 2.0**-9, jnp.float32)}
    record = after(w, u, formats=[pl.BFLOAT16])
    advice = only(record, "frozen")
    landed = 100 * int(record.stochastic["bfloat16"]["w"].landed) / 4000
    assert abs(landed - 25) < 5 * 100 * math.sqrt(0.25 * 0.75 / 4000)
    assert f"Stochastic rounding would have landed {landed:.2g} % of steps" in advice.sentence


@pytest.mark.parametrize(("stuck", "told"), [(64, True), (32, True), (4, True), (3, False), (0, False)])
def test_a_twentieth_that_is_lost_is_worth_a_word(stuck: int, told: bool) -> None:
    w = {"w": jnp.asarray(np.where(np.arange(64) < stuck, 1.0, 2.0**-9), BF16)}
    record = after(w, {"w": jnp.full(64, 2.0**-10, jnp.float32)})
    assert ("frozen" in kinds(record)) == told
    if told:
        assert only(record, "frozen").share == stuck / 64


def test_below_every_floor_no_cure_is_named() -> None:
    """In float32 a compensation has a floor too; under it the sentence says so, and above it the compensation is the cure."""
    w = {"w": jnp.ones(64)}
    for size, cure in ((2.0**-30, "kahan"), (2.0**-60, None)):
        advice = only(after(w, {"w": jnp.full(64, size)}), "frozen")
        assert advice.cure == cure, size
        assert ("only larger steps help" in advice.sentence) == (cure is None)


@pytest.mark.slow
def test_large_weights_are_given_other_cures_than_small_ones() -> None:
    """Float32 for what takes a megabyte or a hundredth of all; else chance if it lands anything, else a compensation."""
    size = 2**19 + 1
    big = {"w": jnp.ones(size, BF16)}
    advice = only(after(big, {"w": jnp.full(size, 1e-3)}), "frozen")
    assert advice.cure == "round_params"
    assert "Storing these weights in float32 costs 1.0 MB more." in advice.sentence
    assert advice.sentence.endswith("Try stochastic rounding first (round_params).")
    both = {"norm": jnp.ones(2**18 + 1, BF16), "w": jnp.ones((2**18 + 1) * 99, BF16)}
    small = 1e-3
    record = after(both, {"norm": jnp.full(2**18 + 1, small), "w": jnp.full((2**18 + 1) * 99, 0.5)}, detail=True)
    assert only(record, "frozen").cure == "float32"


@pytest.mark.slow
def test_a_compensation_keeps_at_least_what_it_is_said_to() -> None:
    """In float16 and fp8 small weights have a floor far above 2^-(p+2) of an ulp: half of the smallest number of all."""
    random = np.random.default_rng(1)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
        fmt, dtype = pl.FORMATS[name], cases.ml_dtype(name)
        for size in (0.01, 1.0):
            w = {"w": jnp.asarray((size * random.uniform(1, 2, 400)).astype(dtype))}
            gap = 2.0 ** (np.maximum(np.frexp(wide(w["w"]))[1] - 1, fmt.emin) - fmt.precision + 1)
            u = {"w": (gap * 2.0 ** random.uniform(-fmt.precision - 6, -1.5, 400)).astype(np.float32)}
            record = after(w, u, formats={name: fmt})
            kept = record.compensated[name]["w"]
            keeps = 100 * (int(kept.landed) + int(kept.invisible)) / 400
            said = only(record, "frozen").sentence.split("(kahan) would keep ")[1].split(" of them")[0]
            said = float({"all": "100", "perhaps none": "0"}.get(said, said.removeprefix("at least ").removesuffix(" %")))
            assert said <= keeps + 0.5, (name, size)  # two digits are shown
            if name == "bfloat16":
                assert said >= keeps - 25  # two bins of an octave, of fourteen


def test_no_step_below_the_one_that_must_be_exceeded_lands() -> None:
    """Half of it, towards zero from a power of two."""
    for start, divisor in ((1.0, 2), (1.5, 1)):
        w = jnp.full(64, start, BF16)
        sentence = only(after({"w": w}, {"w": jnp.full(64, -(2.0**-10))}), "frozen").sentence
        assert f"To land a step must exceed {2.0**-8:.1e} (half of it from a power of two down); yours is" in sentence
        for u, lands in ((0.99, False), (1.01, True)):
            assert ((wide(apply_updates(w, jnp.full(64, -u * 2.0**-8 / divisor))) != start) == lands).all()
            assert ((wide(apply_updates(w, jnp.full(64, u * 2.0**-8))) != start) == lands).all()


def test_without_detail_the_distance_is_said_to_be_unknown() -> None:
    advice = only(after({"w": jnp.ones(8, BF16)}, {"w": jnp.full(8, 1e-4)}, detail=False), "frozen")
    assert advice.sentence == (
        "w (bfloat16): 100 % of the updates of 8 entries lost in the last read. How far they are from landing is not known: "
        "track with detail=True."
    )
    assert advice.cure is None


@pytest.mark.slow
def test_the_share_is_the_mean_of_the_last_reads() -> None:
    optimizer, w = track(optax.identity()), {"w": jnp.ones(8, BF16)}
    state = optimizer.init(w)
    for size in (1e-4, 1e-4, 0.5, 1e-4):
        updates, state = optimizer.update({"w": jnp.full(8, size)}, state, w)
        w = apply_updates(w, updates)
    advice = only(stagnation(state), "frozen")
    assert advice.share == pytest.approx(0.75)
    assert advice.sentence.startswith("w (bfloat16): 75 % of the updates of 8 entries lost in the last 4 reads.")


@pytest.mark.slow
def test_updates_in_reach_are_fine() -> None:
    (advice,) = advise(after({"w": jnp.ones(1000, BF16)}, {"w": jnp.full(1000, 0.5)}))
    assert advice.kind == "fine"
    assert advice.sentence == "Updates land: 0 % of 1,000 lost in the last read; nothing to do."
    u = np.full(1000, 0.5, np.float32)
    u[:49] = 1e-6
    assert kinds(after({"w": jnp.ones(1000, BF16)}, {"w": u})) == ["fine"]
    u[:50] = 1e-6
    assert kinds(after({"w": jnp.ones(1000, BF16)}, {"w": u})) == ["frozen"]


# Paths


@pytest.mark.slow
def test_paths_that_differ_in_numbers_alone_are_one_finding() -> None:
    layers = [{"norm": {"scale": jnp.ones(4, BF16)}, "w": jnp.ones((4, 4), BF16)} for _ in range(3)]
    small = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-4), layers)
    found = advise(after({"layers": layers}, {"layers": small}))
    assert [advice.path for advice in found] == ["layers/*/norm/scale", "layers/*/w"]
    assert found[0].sentence.startswith("layers/*/norm/scale (3 leaves, bfloat16): 100 % of the updates of 12 entries lost")
    assert found[1].sentence.startswith("layers/*/w (3 leaves, bfloat16): 100 % of the updates of 48 entries lost")
    # What agrees is kept, what loses otherwise or is stored otherwise is told apart.
    two = {"block2": [{"w": jnp.ones(4, dtype)} for dtype in (BF16, BF16, BF16, jnp.float16)]}
    u = {"block2": [{"w": jnp.full(4, size)} for size in (1e-5, 1e-5, 0.5, 1e-5)]}
    assert [advice.path for advice in advise(after(two, u))] == ["block2/*/w", "block2/3/w"]
    assert "(2 leaves, bfloat16): 100 % of the updates of 8 entries" in advise(after(two, u))[0].sentence
    bare = advise(after(jnp.ones(4, BF16), jnp.full(4, 1e-5)))
    assert bare[0].sentence.startswith("the array (bfloat16): 100 % of the updates of 4 entries")


# What keeps updates


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["kahan", "masters"])
def test_what_is_kept_is_invisible_and_not_lost(name: str) -> None:
    optimizer = {
        "kahan": lambda: optax.chain(optax.sgd(1.0), kahan(pl.BFLOAT16)),
        "masters": lambda: master_weights(optax.sgd(1.0), pl.BFLOAT16),
    }[name]()
    record = after({"w": jnp.ones(50)}, {"w": jnp.full(50, 1e-3)}, optimizer)
    advice = only(record, "invisible", learning_rate=1e-3, weight_decay=0.1)
    assert advice.sentence == (
        "w (bfloat16): 100 % of 50 updates do not show in the weights, and all are kept (by a master or a "
        "compensation) and land once enough has gathered: invisible, not lost; nothing to do."
    )
    # Neither does weight decay get lost: it gathers too.
    assert kinds(record, learning_rate=1e-3, weight_decay=0.1) == ["invisible"]


# Weight decay


def test_weight_decay_that_does_nothing_is_told_if_its_rate_is() -> None:
    w = {"a": jnp.ones(30, BF16), "b": jnp.ones(70, jnp.float32)}
    record = after(w, {"a": jnp.full(30, 0.5), "b": jnp.full(70, 0.5)})
    assert kinds(record) == kinds(record, learning_rate=1e-3) == kinds(record, weight_decay=0.1) == ["fine"]
    advice = only(record, "decay", learning_rate=1e-3, weight_decay=0.1)
    assert advice.sentence.startswith(
        "Weight decay alone does nothing to 30 of 100 weights: it asks for 1.0e-04 of each in a step, and none moves towards "
        "zero by 2.0e-03 of itself or less."
    )
    assert (advice.path, advice.share, advice.cure) == ("a", 1.0, "round_params")
    assert kinds(record, learning_rate=2.0**-9, weight_decay=1.0) == ["decay"]
    assert kinds(record, learning_rate=2.0**-9 * 1.001, weight_decay=1.0) == ["fine"]
    assert only(record, "decay", learning_rate=1e-9, weight_decay=0.1).sentence.startswith(
        "Weight decay alone does nothing to 100 of 100 weights: it asks for 1.0e-10 of each in a step, and none moves towards "
        "zero by 3.0e-08 of itself"
    )
    assert kinds(record, learning_rate=1e-3, weight_decay=0.0) == ["fine"]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_no_weight_moves_towards_zero_by_a_half_unit_roundoff_of_itself(name: str) -> None:
    """All values of the format, subnormals included, in exact sums; a bit more moves some, the powers of two."""
    fmt = pl.FORMATS[name]
    w = cases.ml_values(name)
    if name in ("float8_e4m3fn", "float4_e2m1fn"):
        assert w.tolist() == all_values(cases.REGISTERED[name]).tolist()
    share = 2.0 ** -(fmt.precision + 1)
    for part in (share, share / 2, share * 0.999):
        assert (round_array(w - w * part, cases.REGISTERED[name], "nearest_even") == w).all()
    more = round_array(w - w * (share * (1 + share)), cases.REGISTERED[name], "nearest_even")
    moved = np.abs(w[more != w])
    assert moved.size > 0
    assert (np.frexp(moved)[0] == 0.5).all()


# What if


@pytest.mark.slow
def test_what_other_formats_would_lose_is_that_of_the_record() -> None:
    random = np.random.default_rng(3)
    w = {"a": random.uniform(1, 2, 500).astype(np.float32), "b": random.uniform(1, 2, 500).astype(np.float32)}
    u = {"a": (10.0 ** random.uniform(-6, -1, 500)).astype(np.float32), "b": np.full(500, 1e-5, np.float32)}
    record = after(w, u, formats={"bfloat16": pl.BFLOAT16, "mine": pl.fixed_point(4, 8)})
    found = [advice for advice in advise(record) if advice.kind == "what_if"]
    assert sorted(advice.path for advice in found) == ["bfloat16", "mine"]
    assert found[0].share >= found[1].share
    for advice in found:
        fmt = {"bfloat16": pl.BFLOAT16, "mine": pl.fixed_point(4, 8)}[advice.path]
        lost = {}
        for key in w:
            before = round_array(w[key], fmt, "nearest_even").astype(np.float32)
            lost[key] = (round_array(before + u[key], fmt, "nearest_even") == before).mean()
        chance, kept = pl.total(record.stochastic[advice.path]), pl.total(record.compensated[advice.path])
        numbers = [np.mean(list(lost.values())), lost["b"], int(chance.landed) / 1000, int(kept.lost) / 1000]
        shown = [f"{share:.0%}".replace("%", " %") if share in (0, 1) else f"{100 * share:.2g} %" for share in numbers]
        assert advice.sentence == (
            f"If the weights were stored in {advice.path}: {shown[0]} of 1,000 updates would be lost (the worst in b: "
            f"{shown[1]}); stochastic rounding would land {shown[2]}, a compensation would lose {shown[3]}."
        )
        assert advice.share == pytest.approx(numbers[0], rel=1e-6)


# The optimizer's own state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")
def test_an_average_that_forgets_nothing_is_told() -> None:
    w, g = {"w": jnp.ones(200, BF16)}, {"w": jnp.full(200, 0.1, BF16)}
    optimizer = track(optax.adam(1e-1))
    state, update = optimizer.init(w), jax.jit(optimizer.update)
    for grads in (g, jax.tree.map(lambda leaf: leaf * 0.01, g)):
        _, state = update(grads, state, w)
    advice = only(stagnation(state), "forgetful")
    assert advice.sentence == (
        "0/nu/w (bfloat16) in the optimizer's state: in an update without gradient it is multiplied by 0.999 as meant, by 1 as "
        "stored, so it forgets nothing; of 200 entries that should have fallen in the last read 0 did. Store it in "
        "float32, for 400 bytes more, or round it stochastically (round_state, which makes the update in float32): then it "
        "forgets on average."
    )
    assert (advice.site, advice.path, advice.cure) == ("state", "0/nu/w", "float32")
    assert "forgetful" not in kinds(after({"w": jnp.ones(200)}, {"w": jnp.ones(200)}, optax.adam(1e-3), state=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")
def test_an_average_is_a_ratchet_only_where_nothing_can_fall() -> None:
    """With 0.996 a power of two falls in bfloat16, though none of these entries did; with 0.9981 none ever does."""
    random = np.random.default_rng(4)
    w, big = {"w": jnp.ones(300)}, {"w": jnp.asarray(random.uniform(1, 1.9, 300), jnp.float32)}
    for decay, kind in ((0.996, "stalled"), (0.9981, "forgetful")):
        ema = optax.chain(optax.ema(decay, debias=False), optax.scale(-1.0))
        optimizer = track(round_state(ema, pl.BFLOAT16))
        state, update = optimizer.init(w), jax.jit(optimizer.update)
        for size in (1.0, 0.9 * (1 - decay)):
            _, state = update(jax.tree.map(lambda leaf, size=size: leaf * size, big), state, w)
        record = stagnation(state)
        seen = record.state.tally.inner[0].ema["w"]
        assert int(seen.falling) > 200
        assert pl.is_ratchet(decay, pl.BFLOAT16) is (kind == "forgetful")
        advice = only(record, kind)
        assert ("forgets nothing" in advice.sentence) is (kind == "forgetful")
        if kind == "forgetful":
            assert f"of {int(seen.falling)} entries that should have fallen in the last read 0 did" in advice.sentence
        else:
            mean = 0.5 * float(seen.lost_fraction)
            assert advice.share == pytest.approx(mean, rel=1e-5)
            assert f"{100 * mean:.2g} % of the updates of 300 entries lost in the last 2 reads. Store it" in advice.sentence


@pytest.mark.slow
def test_a_stalled_average_is_told_without_a_level_that_it_may_not_reach() -> None:
    """Where an average rests depends on how its program rounds constants and products, which a record does not know."""
    average = round_state(optax.ema(0.97, debias=False), pl.BFLOAT16)
    record = after({"w": jnp.ones(100)}, {"w": jnp.ones(100)}, average, steps=250)
    advice = only(record, "stalled")
    assert advice.sentence == (
        "inner/ema/w (bfloat16) in the optimizer's state: 100 % of the updates of 100 entries lost in the last 100 reads. "
        "Store it in float32, for 200 bytes more, or round it stochastically (round_state, which makes the update in "
        "float32): then each counts on average."
    )


def test_a_counter_that_stands_still_says_where() -> None:
    count = optax.GradientTransformation(
        lambda _: {"count": jnp.zeros((), BF16)}, lambda u, state, _=None: (u, {"count": state["count"] + 1})
    )
    record = after({"w": jnp.ones(10)}, {"w": jnp.full(10, 0.1)}, count, steps=300)
    advice = only(record, "counter")
    assert "a sum that stands still at 256 or above: 44 % of its updates lost in the last 100 reads" in advice.sentence
    assert "(with 8 significand bits a count by ones stops at 2^8 = 256). Store it in float32, or as an int" in advice.sentence
    assert advice.share == pytest.approx(float(jax.tree.leaves(record.state.recent)[0])) == pytest.approx(0.44)


# Updates that are all zero, and rates that are schedules


@pytest.mark.sampled(1)
@pytest.mark.parametrize("jitted", [False, True])
def test_a_sum_is_told_from_a_maximum(jitted: bool) -> None:
    """Both lose their updates in bfloat16; of a maximum nothing is lost that another update would add to."""

    def update(u: Any, held: Any, params: Any = None) -> Any:
        del params
        return u, {"sum": held["sum"] + 2.0**-12, "most": jnp.maximum(held["most"], 1.001)}

    def init(_: Any) -> Any:
        return {name: jnp.ones((), BF16) for name in ("sum", "most")}

    def narrow(u: Any, held: Any, params: Any = None) -> Any:
        u, held = update(u, held, params)
        return u, jax.tree.map(lambda leaf: leaf.astype(BF16), held)

    optimizer, w = track(optax.GradientTransformation(init, narrow)), {"w": jnp.ones(4)}
    start = (jax.jit(optimizer.init) if jitted else optimizer.init)(w)
    _, state = optimizer.update(w, start, w)
    lost = {name: float(tally.lost_fraction) for name, tally in pl.by_path(stagnation(state).state.tally).items()}
    assert lost == {"sum": 1, "most": 1}
    assert [(a.kind, a.path) for a in advise(stagnation(state)) if a.site == "state"] == [("counter", "sum")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")
@pytest.mark.parametrize("jitted", [False, True])
def test_rounding_by_chance_of_what_is_rounded_already_is_no_all_clear(jitted: bool) -> None:
    w = {"w": jnp.ones(64)}
    for own, kind in ((jnp.float32, "unbiased"), (BF16, "stalled")):
        optimizer = track(round_state(optax.trace(0.99, accumulator_dtype=own), pl.BFLOAT16, pl.stochastic))
        start = (jax.jit(optimizer.init) if jitted else optimizer.init)(w)
        _, state = optimizer.update({"w": jnp.ones(64)}, start, w)
        _, state = optimizer.update({"w": jnp.full(64, 0.011)}, state, w)
        (advice,) = [a for a in advise(stagnation(state)) if a.site == "state"]
        assert advice.kind == kind
        assert ("of what the optimizer has rounded by itself before" in advice.sentence) is (kind == "stalled")


def test_updates_that_are_all_zero_though_gradients_are_not_are_told() -> None:
    """1e-7 of the smaller half is below what float16 holds; the larger half of the gradient is zero as it is."""
    tiny = {"w": jnp.where(jnp.arange(8) < 3, 1e-3, 0).astype(jnp.float16)}
    record = after({"w": jnp.ones(8, jnp.float16)}, tiny, optax.sgd(1e-5))
    advice = only(record, "zero")
    assert advice.sentence == (
        "w (float16): every update of 8 entries was exactly zero in the last read, though 3 entries of the gradient were not. "
        "That may be meant (a learning rate of 0 as in the first step of a warm-up, a mask, gradients that are gathered "
        "first); if not, the optimizer's own arithmetic lost them (in float16 whatever is below 3.0e-08 is 0): make its update "
        "in float32."
    )
    assert np.float16(2.9e-8) == 0 < np.float16(3.1e-8)
    assert "learning rate" not in only(record, "zero", learning_rate=1e-5).sentence
    assert kinds(record, learning_rate=0.0) == ["unknown"]
    # Nothing is said where gradients are zero too, and nothing of a masked leaf beside others that move.
    assert kinds(after({"w": jnp.ones(8, jnp.float16)}, {"w": jnp.zeros(8)}, optax.sgd(1e-5))) == ["unknown"]
    two = {"w": jnp.ones(8), "still": jnp.ones(8)}
    masked = optax.masked(optax.set_to_zero(), {"w": False, "still": True})
    assert kinds(after(two, two, masked)) == ["fine"]


def test_rates_may_be_schedules_of_the_steps_before() -> None:
    w = {"w": jnp.ones(8, BF16)}
    record = after(w, {"w": jnp.full(8, 0.5)}, steps=3)
    warm = optax.linear_schedule(0.0, 1e-3, 2)
    by_schedule = advise(record, learning_rate=warm, weight_decay=0.1)
    assert by_schedule == advise(record, learning_rate=float(warm(2)), weight_decay=np.float32(0.1))
    assert "asks for 1.0e-04 of each" in by_schedule[0].sentence
    first = after(w, {"w": jnp.full(8, 0.5)})
    assert kinds(first, learning_rate=warm, weight_decay=0.1) == kinds(first, learning_rate=0, weight_decay=0.1) == ["fine"]
    for rate in (jnp.float32(1e-3), np.float64(1e-3), jnp.bfloat16(1e-3)):
        assert kinds(first, learning_rate=rate, weight_decay=0.1) == ["decay"]
    for rate, error, words in (
        ("1e-3", TypeError, "must be a number, or a schedule such as"),
        (np.full(3, 1e-3), TypeError, "must be a number, or a schedule such as"),
        (True, TypeError, "must be one real number"),
        (lambda count: np.full(2, count), TypeError, "must be one real number; got .* from the schedule at 0"),
        (-1e-3, ValueError, "must be finite and at least 0; got -0.001"),
        (math.nan, ValueError, "must be finite and at least 0; got nan"),
    ):
        for name in ("learning_rate", "weight_decay"):
            with pytest.raises(error, match=f"advise: {name} {words}"):
                advise(first, **{name: rate})


# Ranks and refusals


@pytest.mark.slow
def test_findings_are_ranked_by_kind_and_then_by_share() -> None:
    w = {"bad": jnp.array([1.0, jnp.nan], BF16), "half": jnp.ones(8, BF16), "whole": jnp.ones(8, BF16)}
    half = jnp.where(jnp.arange(8) < 4, 1e-4, 0.5)
    u = {"bad": jnp.full(2, 0.5), "half": half, "whole": jnp.full(8, 1e-4)}
    record = after(w, u, formats=[pl.FLOAT8_E4M3FN])
    found = advise(record, learning_rate=1e-3, weight_decay=1e-2)
    assert [advice.kind for advice in found] == ["nonfinite", "frozen", "frozen", "decay", "what_if"]
    assert [advice.path for advice in found] == ["bad", "whole", "half", "*", "float8_e4m3fn"]
    assert [advice.share for advice in found][:3] == [0.5, 1.0, 0.5]
    assert found[0].sentence.startswith("bad (bfloat16): 1 of 2 entries or their updates are infinite or NaN; all other counts")


@pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")
def test_a_misplaced_record_comes_first() -> None:
    optimizer = optax.chain(track(optax.scale_by_adam()), optax.scale(-1e-3))
    w = {"w": jnp.ones(8, BF16)}
    state = optimizer.init(w)
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.full(8, 0.3, BF16)}, state, w)
        w = optax.apply_updates(w, updates)
    found = advise(stagnation(state))
    assert (found[0].kind, found[0].share, found[0].cure) == ("misplaced", 1.0, "track")
    assert found[0].sentence.startswith("After 2 of the 2 updates whose outcome was seen, the weights had not gone where")


def test_nothing_known_is_said_to_be_unknown() -> None:
    w = {"w": jnp.ones(8, BF16)}
    for detail in (True, False):
        start = stagnation(track(optax.sgd(1e-3), [pl.FLOAT16], detail=detail).init(w))
        (advice,) = advise(start, learning_rate=1e-3, weight_decay=0.1)
        assert advice.kind == "unknown"
        assert advice.sentence == "Nothing is known yet: track has looked at 0 updates; ask again after one."
    (advice,) = advise(after(w, {"w": jnp.zeros(8)}, formats=[pl.FLOAT16]))
    assert advice.kind == "unknown"
    assert advice.sentence == "Nothing was asked of 8 entries in the last read: every update was zero."
    (advice,) = advise(after({"n": jnp.arange(3)}, {"n": jnp.arange(3)}))
    assert (advice.kind, advice.sentence) == ("fine", "There are 0 floating weights, so nothing can be lost.")


@pytest.mark.slow
def test_weights_that_are_all_nan_are_the_one_finding() -> None:
    w = {"w": jnp.full(8, jnp.nan, BF16)}
    record = after(w, {"w": jnp.ones(8)}, optax.adam(1e-3), formats=[pl.FLOAT16])
    found = advise(record)
    assert found[0].kind == "nonfinite"
    assert "8 of 8 entries or their updates" in found[0].sentence
    assert all("nan" not in advice.sentence for advice in found)
    floats = {"is_leaf": lambda leaf: hasattr(leaf, "dtype")}
    everywhere = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.dtype == jnp.float32 else leaf, record, **floats)
    assert kinds(everywhere)[0] == "nonfinite"


@pytest.mark.slow
def test_what_is_no_record_is_refused_in_a_sentence() -> None:
    w = {"w": jnp.ones(8, BF16)}
    optimizer = track(optax.sgd(1e-3))
    state = optimizer.init(w)
    with pytest.raises(TypeError, match=r"advise: expected the Record of stagnation\(opt_state\); got TrackState"):
        advise(state)
    with pytest.raises(TypeError, match="advise: the record is being traced; call it outside of jit"):
        jax.jit(lambda state: advise(stagnation(state)) and 0)(state)
    record = after(w, w)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), record)
    with pytest.raises(TypeError, match=r"advise: this is a stack of records, of shape \(2,\); take one"):
        advise(stacked)
    one = jax.tree.map(lambda leaf: leaf[0], stacked)
    assert advise(one) == advise(record) == advise(jax.device_get(record))
