"""What would have happened in other formats, by chance and with a compensation; what is kept; and where the weights went."""

import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import MisplacedWarning, apply_updates, kahan, stagnation, track
from precisionlab.stagnation.counting import Case, tally_cases
from precisionlab.stagnation.fates import NO_GAP
from precisionlab.stagnation.packing import pack, unpack
from tests import cases
from tests.optimizers.test_track import gradients, parameters, same, stepper
from tests.oracle import bracket, bracket_array, round_array
from tests.recount import COUNTS, exponents, recount, wide


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


ASKED = {
    "bfloat16": pl.BFLOAT16,
    "float16": pl.FLOAT16,
    "float8_e4m3fn": pl.FLOAT8_E4M3FN,
    "float8_e5m2": pl.FLOAT8_E5M2,
    "fixed": pl.fixed_point(3, 6),
    "flushing": pl.FLOAT16._replace(subnormals=False),
    "flushing_e4m3fn": pl.FLOAT8_E4M3FN._replace(subnormals=False),
}


def half_gap(w: float, sign: float, fmt: Any) -> Fraction:
    """Half the distance from a value of the format to its neighbour on one side, from the definition of the set."""
    m, bit = abs(Fraction(w)), Fraction(1, 2**2000)
    if m == 0 or sign * w > 0:
        around = bracket(m + bit, fmt)
        return (around.above - m) / 2
    return (m - bracket(m - bit, fmt).below) / 2


def floor_of(w: float, sign: float, fmt: Any) -> float:
    """The largest equal update that a compensation in the format loses, as the docstring of `kahan` has it."""
    h, p, emin = half_gap(w, sign, fmt), int(fmt.precision), int(fmt.emin)
    least = Fraction(2) ** (emin - p) if fmt.subnormals else min(Fraction(2) ** (emin - 1), h)
    return float(max(h / 2 ** (p + 1), least))


def drawn(fmt: Any, size: int, seed: int, *, low: float = -6.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights near a format, powers of two, zeros and its smallest values among them; updates from below a floor to an ulp."""
    random = np.random.default_rng(seed)
    w = 2.0 ** random.uniform(low, 2, size) * random.choice([-1, 1], size)
    w[: size // 4] = 2.0 ** random.integers(math.ceil(low), 3, size // 4) * random.choice([-1, 1], size // 4)
    smallest = 2.0 ** (int(fmt.emin) - (int(fmt.precision) - 1 if fmt.subnormals else 0))
    # Zeros and the smallest numbers, unless float32 itself, which flushes its subnormals, carries no update as small as theirs.
    few = random.integers(-4, 5, size // 3 - size // 4) * smallest if smallest > 2.0**-100 else 2.0**-90
    w[size // 4 : size // 3] = few
    near = round_array(w.astype(np.float32), fmt, "nearest_even")
    gap = 2.0 ** (np.maximum(exponents(near), int(fmt.emin)) - int(fmt.precision) + 1.0)
    u = gap * 2.0 ** random.uniform(-int(fmt.precision) - 5, 1, size) * random.choice([-1, 1], size)
    ties = gap * 2.0 ** random.integers(-int(fmt.precision) - 4, 1, size)
    u = np.where(random.random(size) < 0.4, ties * np.sign(u), u)
    return w.astype(np.float32), u.astype(np.float32)


def assert_counts(found: pl.Tally, expected: Any) -> None:
    assert {name: int(getattr(found, name)) for name in COUNTS} == {name: int(expected[name]) for name in COUNTS}
    assert (found.update_mass, found.histogram, found.falling) == (None, None, None)


def looked(w: Any, u: Any, formats: Any, **options: Any) -> Any:
    optimizer = track(optax.identity(), formats, **options)
    _, state, _ = stepper(optimizer)(w, optimizer.init(w), u)
    return stagnation(state)


# To nearest, with a compensation


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ASKED)
def test_invisible_is_what_lies_above_the_floor_of_a_compensation(name: str) -> None:
    fmt = ASKED[name]
    w, u = drawn(fmt, 1500, 1)
    record = looked({"w": w}, {"w": u}, {name: fmt})
    before = round_array(w, fmt, "nearest_even").astype(np.float32)
    after = round_array(before + u, fmt, "nearest_even")
    expected = recount(before, u, after, numbers=fmt)
    pairs = zip(before.tolist(), u.tolist(), strict=True)
    above = np.array([abs(x) > floor_of(at, x, fmt) for at, x in pairs])
    stuck = (before == after) & (u != 0)
    if name != "fixed":  # there every gap is the smallest: what is stuck is lost
        assert 50 < (stuck & above).sum() < stuck.sum() - 50
    found = record.compensated[name]["w"]
    assert_counts(found, expected)
    assert int(found.invisible) == (stuck & above).sum()
    assert int(found.lost) == (stuck & ~above).sum()
    nearest = record.what_if[name]["w"]
    assert nearest.invisible is None
    same(nearest, found._replace(invisible=None))


KAHAN = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "fixed", "flushing_e4m3fn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KAHAN)
def test_what_is_invisible_moves_in_the_end_and_what_is_lost_never_does(name: str) -> None:
    """Equal updates for long, through `kahan` itself, from random weights; each leaf holds one multiple of the floor."""
    fmt, random, size = ASKED[name], np.random.default_rng(2), 60
    steps = 2 ** (int(fmt.precision) + 3)
    # From the floor itself to the least that the float32 sum with a compensation tells from it, and beyond.
    factors = {"half": 0.5, "floor": 1.0, "above": 1 + 2.0 ** (fmt.precision + 2 - 24), "twice": 2.0}
    weights, updates = {}, {}
    for key, factor in factors.items():
        w = round_array(drawn(fmt, size, 3, low=-3.0)[0], fmt, "nearest_even")
        sign = random.choice([-1.0, 1.0], size)
        weights[key] = w.astype(np.float32)
        floors = np.array([floor_of(*pair, fmt) for pair in zip(w, sign, strict=True)])
        updates[key] = (sign * factor * floors).astype(np.float32)
    found = looked(weights, updates, {name: fmt}).compensated[name]
    optimizer = kahan(fmt)

    def one(now: Any, _: Any) -> Any:
        moves, state = optimizer.update(updates, now[1], now[0])
        return (optax.apply_updates(now[0], moves), state), None

    begin = jax.tree.map(jnp.asarray, weights)
    (after, _), _ = jax.jit(lambda: jax.lax.scan(one, (begin, optimizer.init(begin)), length=steps))()
    for key in factors:
        ever = np.asarray(after[key]) != weights[key]
        tally = found[key]
        assert int(tally.landed) + int(tally.invisible) == ever.sum(), key
        assert int(tally.lost) == (~ever).sum(), key
    assert int(found["above"].lost) == int(found["twice"].lost) == 0
    assert int(found["half"].invisible) == int(found["half"].landed) == 0


# By chance


def chances(before: np.ndarray, u: np.ndarray, fmt: Any) -> np.ndarray:
    """The probability that the stochastically rounded sum is another value than before."""
    wanted = (before + u).astype(np.float64)  # in float32, as the carrier has it
    safe = np.where(wanted == 0, 1.0, np.abs(wanted))
    around = bracket_array(safe, fmt)
    sign = np.where(wanted < 0, -1.0, 1.0)
    down, up = sign * around.below, sign * around.above
    stays = np.where(before == down, 1 - around.fraction, 0) + np.where(before == up, around.fraction, 0)
    stays = np.where(wanted == 0, before == 0, stays)
    return np.where(u == 0, 0, 1 - stays)


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore::precisionlab.optimizers.MisplacedWarning")
@pytest.mark.parametrize("name", ASKED)
def test_by_chance_an_update_lands_with_the_probability_of_its_size(name: str) -> None:
    fmt = ASKED[name]
    w, u = drawn(fmt, 3000, 4)
    before = round_array(w, fmt, "nearest_even").astype(np.float32)
    law = chances(before, u, fmt)
    parts = {
        "never": law == 0,
        "always": law == 1,
        "seldom": (law > 0) & (law < 0.05),
        "rest": (law >= 0.05) & (law < 1),
    }
    assert all(part.sum() > 10 for key, part in parts.items() if key not in ("never", "always"))
    optimizer = track(optax.identity(), {name: fmt}, detail=False)
    weights, updates = ({key: jnp.asarray(x[part]) for key, part in parts.items()} for x in (before, u))
    state, step, counts = optimizer.init(weights), stepper(optimizer, lambda params, _: params), []
    for _ in range(12):
        _, state, _ = step(weights, state, updates)
        counts.append({key: int(tally.landed) for key, tally in stagnation(state).stochastic[name].items()})
    for key, part in parts.items():
        each = np.array([count[key] for count in counts])
        mean, spread = law[part].sum() * len(each), math.sqrt((law[part] * (1 - law[part])).sum() * len(each))
        assert abs(each.sum() - mean) <= 5 * spread, key
        if spread > 2:
            assert len(set(each.tolist())) > 3  # every update is drawn for itself
    again, fresh = [], optimizer.init(weights)
    for _ in range(3):
        _, fresh, _ = step(weights, fresh, updates)
        again.append({key: int(tally.landed) for key, tally in stagnation(fresh).stochastic[name].items()})
    assert again == counts[:3]


@pytest.mark.slow
def test_leaves_and_formats_are_drawn_for_themselves() -> None:
    """Sixteen equal leaves of one coin each thousand entries: equal counts throughout would be equal bits."""
    w = {str(index): jnp.ones(1000) for index in range(8)}
    u = jax.tree.map(lambda leaf: leaf * 2.0**-8, w)
    record = looked(w, u, {"one": pl.BFLOAT16, "two": pl.BFLOAT16}, state=False)
    counts = [int(tally.landed) for tree in record.stochastic.values() for tally in tree.values()]
    assert len(set(counts)) > 8
    assert abs(sum(counts) - 8000) < 5 * math.sqrt(16_000 / 4)
    assert record.stochastic["one"]["0"].histogram is None


# The same of the optimizer's own state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "flushing"])
def test_the_moments_are_asked_the_same_questions(name: str) -> None:
    fmt, params = ASKED[name], {"w": jnp.asarray(np.random.default_rng(5).standard_normal(2000).astype(np.float32))}
    decay = 1 - 2.0**-8
    optimizer = track(optax.chain(optax.ema(decay, debias=False), optax.scale(-1e-3)), {name: fmt}, state=True)
    state = optimizer.init(params)
    first = state.inner[0]._replace(ema=params)
    grads, before = {"w": params["w"] + gradients(params, 0)["w"] * 2.0 ** -(jnp.arange(2000) % 12)}, wide(params["w"])
    _, state, _ = stepper(optimizer)(params, state._replace(inner=(first, state.inner[1])), grads)
    u = (1 - decay) * wide(grads["w"]) + decay * before - before  # exact in float64, or nearly
    start = round_array(before, fmt, "nearest_even")
    after = round_array(start + u, fmt, "nearest_even")
    seen = stagnation(state).state
    found = seen.compensated[name][0].ema["w"]
    for tally in (found, seen.what_if[name][0].ema["w"]):
        assert_counts(tally, recount(start, u, after, numbers=fmt))
    stuck = (start == after) & (u != 0)
    floors = np.array([floor_of(at, x, fmt) for at, x in zip(start.tolist(), u.tolist(), strict=True)])
    assert int(found.invisible) == (stuck & (np.abs(u) > floors)).sum() > 0
    law, by_chance = chances64(start, u, fmt), seen.stochastic[name][0].ema["w"]
    assert abs(int(by_chance.landed) - law.sum()) <= 5 * math.sqrt((law * (1 - law)).sum())


def chances64(before: np.ndarray, u: np.ndarray, fmt: Any) -> np.ndarray:
    wanted = before + u
    around, sign = bracket_array(np.abs(wanted), fmt), np.sign(wanted)
    stays = (before == sign * around.below) * (1 - around.fraction) + (before == sign * around.above) * around.fraction
    return np.where(u == 0, 0, 1 - stays)


# Tallies of what is kept, of directions and of gaps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float32"])
def test_kept_entries_directions_and_gaps_are_those_of_numpy(dtype: str) -> None:
    random, numbers = np.random.default_rng(6), cases.REGISTERED[dtype]
    w = (random.standard_normal(700) * 2.0 ** random.integers(-5, 5, 700)).astype(cases.ml_dtype(dtype))
    u = (random.standard_normal(700) * (random.random(700) < 0.8)).astype(np.float32)
    u[:4] = [-0.0, np.nan, np.inf, -np.inf]
    after = np.where(random.random(700) < 0.5, w, (w.astype(np.float32) * 1.5).astype(w.dtype))
    kept = random.random(700) < 0.4
    narrow = np.where(random.random(700) < 0.5, u, np.float32(0))
    old, new, finite = wide(w), wide(after), np.isfinite(u)
    asked = finite & (u != 0)
    stuck = asked & (old == new)
    ulps = np.maximum(exponents(old[stuck]), numbers.emin) - numbers.precision + 1
    for detail in (True, False):
        options = {"kept": kept, "directions": True, "detail": detail}
        found = jax.jit(lambda *given, o=options: pl.tally(*given[:3], stored_update=given[3], **o))(w, u, after, narrow)
        assert (int(found.stagnated), int(found.invisible)) == (stuck.sum(), (stuck & kept).sum())
        assert int(found.lost) == (stuck & ~kept).sum()
        assert float(found.lost_fraction) == np.float32((stuck & ~kept).sum() / np.float32(asked.sum()))
        assert (int(found.falling), int(found.fell)) == ((asked & (u < 0)).sum(), (asked & (u < 0) & (old != new)).sum())
        assert int(found.underflowed) == (stuck & (narrow == 0)).sum()
        gaps = (int(found.finest), int(found.coarsest)) if detail else (found.finest, found.coarsest)
        assert gaps == ((ulps.min(), ulps.max()) if detail else (None, None))
    plain = pl.tally(w, u, after)
    assert (plain.invisible, plain.falling, plain.fell) == (None, None, None)
    nothing = pl.tally(w, u, np.where(old == 0, 1, -old).astype(w.dtype))
    assert (int(nothing.finest), int(nothing.coarsest)) == (NO_GAP, -NO_GAP)


@pytest.mark.slow
def test_a_step_just_above_half_the_finest_gap_moves_the_first_and_half_the_coarsest_the_last() -> None:
    w = jnp.asarray(np.random.default_rng(7).uniform(0.1, 9, 500), jnp.bfloat16)
    found = pl.tally(w, jnp.full(500, 1e-9), w)
    finest, coarsest = (2.0 ** (int(gap) - 1) for gap in (found.finest, found.coarsest))
    moved = [(wide(apply_updates(w, jnp.full(500, np.float32(u)))) != wide(w)).sum() for u in
             (finest * 0.999, finest * 1.001, coarsest * 0.999, coarsest * 1.001)]  # fmt: skip
    assert moved[0] == 0 < moved[1] < moved[2] < moved[3] == 500


def some_tallies(**options: Any) -> dict[str, Any]:
    random, found = np.random.default_rng(8), {}
    for name in ("a", "b", "c"):
        w = random.standard_normal(64).astype(np.float32)
        u = random.standard_normal(64).astype(np.float32)
        after = np.where(random.random(64) < 0.5, w, -w)
        found[name] = pl.tally(w, u, after, kept=random.random(64) < 0.5, **options)
    return found


@pytest.mark.slow
def test_totals_add_up_everything() -> None:
    tallies = some_tallies(directions=True)
    together = pl.total(tallies)
    for field in pl.Tally._fields:
        parts = [np.asarray(getattr(tally, field)) for tally in tallies.values()]
        expected = {"finest": np.min, "coarsest": np.max}.get(field, np.sum)(np.stack(parts), axis=0)
        np.testing.assert_allclose(np.asarray(getattr(together, field)), expected, rtol=1e-6, err_msg=field)
    same(pl.total({"one": tallies["a"]}), tallies["a"])
    # Where only some keep anything, what the others lost is not kept; where not all tell directions, none is told.
    mixed = {"a": tallies["a"], "b": tallies["b"]._replace(invisible=None, falling=None)}
    assert int(pl.total(mixed).invisible) == int(tallies["a"].invisible)
    assert pl.total(mixed).falling is None
    assert int(pl.total(mixed).fell) == int(tallies["a"].fell) + int(tallies["b"].fell)
    host = jax.device_get(tallies)
    assert isinstance(pl.total(host).finest, np.generic | np.ndarray)
    with pytest.raises(ValueError, match="total: there is no tally to add up"):
        pl.total({})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("detail", [True, False])
def test_packed_tallies_come_back_as_they_were(detail: bool) -> None:
    tallies = some_tallies(directions=True, detail=detail)
    packed = pack(tallies, directions=True, kept=True)
    same(unpack(packed), tallies)
    bare = unpack(pack(tallies))
    same(bare, jax.tree.map(
        lambda tally: tally._replace(invisible=None, falling=None, fell=None), tallies, is_leaf=lambda x: hasattr(x, "landed")
    ))  # fmt: skip
    none = jax.tree.map(lambda tally: tally._replace(invisible=None), tallies, is_leaf=lambda x: hasattr(x, "landed"))
    assert [int(tally.invisible) for tally in unpack(pack(none, kept=True)).values()] == [0, 0, 0]
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), packed)
    same(jax.tree.map(lambda leaf: leaf[1], unpack(stacked)), unpack(jax.tree.map(lambda leaf: 2 * leaf, packed)))


@pytest.mark.slow
def test_several_cases_in_one_pass_are_each_of_them_alone() -> None:
    random = np.random.default_rng(9)
    for shape in ((), (50,), (40, 30), (3, 20, 30)):
        w = random.standard_normal(shape).astype(np.float32)
        u = (random.standard_normal(shape) * 2.0**-6).astype(np.float32)
        rounds = [np.asarray(pl.round_to(jnp.asarray(w), fmt)) for fmt in (pl.BFLOAT16, pl.FLOAT8_E5M2)]
        kept = np.asarray(random.random(shape) < 0.5)
        together = [
            Case(w, u, w + u),
            Case(rounds[0], u, np.asarray(pl.round_to(rounds[0] + u, pl.BFLOAT16)), None, kept, (8, -126), True, True),
            Case(rounds[1], u, rounds[1], np.zeros_like(u), None, (3, -14), False, True),
        ]
        found = jax.jit(lambda given=together: tally_cases(given))()
        for case, tally in zip(together, found, strict=True):
            alone = pl.tally(
                case.old, case.update, case.new, stored_update=case.stored_update, kept=case.kept, grid=case.grid,
                detail=case.detail, directions=case.directions,
            )  # fmt: skip
            assert jax.tree.structure(alone) == jax.tree.structure(tally)
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(tally), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)


# Where the weights went


ARRIVING: dict[str, Any] = {
    "bfloat16": (["bfloat16"], lambda: optax.adamw(1e-3, weight_decay=0.1), optax.apply_updates),
    "float32": (["float32"], lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), optax.apply_updates),
    "float8": (["float8_e4m3fn", "float8_e5m2"], lambda: optax.scale(-1.0), apply_updates),
    "kahan": (["float32"], lambda: optax.chain(optax.sgd(1e-3), kahan(pl.BFLOAT16)), optax.apply_updates),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ARRIVING)
def test_weights_that_go_where_the_record_says_are_never_missed(name: str) -> None:
    dtypes, make, apply = ARRIVING[name]
    params, optimizer = parameters(dtypes), track(make())
    params = jax.tree.map(lambda w: jnp.asarray(np.where(wide(w) == 0, 0.75, wide(w)).astype(w.dtype)), params)
    state, step = optimizer.init(params), stepper(optimizer, apply)
    for number in range(12):
        params, state, _ = step(params, state, gradients(params, number))
    arrival = stagnation(state).arrival
    assert (int(arrival.checked), int(arrival.missed), float(arrival.ratio)) == (11, 0, 1.0)


def test_the_last_bit_of_an_update_is_no_misplacement_where_it_cancels_the_weight() -> None:
    """A compiler may keep float16 updates in float32 on their way to the weights; the sum is off by half an ulp of them."""
    w = jnp.asarray(-(2.0**-10) * (1 + np.arange(8) / 64), jnp.float16)
    optimizer = track(optax.scale(0.001))
    state, step = optimizer.init(w), stepper(optimizer)
    grads = jnp.asarray(2.0**-10 * (1 + (np.arange(8) + 0.4) / 64) / 0.001, jnp.float16)
    here, state, _ = step(w, state, grads)
    _, state, _ = step(here, state, grads)
    assert int(state.record.arrival.missed) == 0


@pytest.mark.parametrize("rate", [0.5, 1e-3])
def test_a_record_inside_a_chain_is_told_by_how_far_the_weights_went(rate: float) -> None:
    params = parameters(["float32"])
    optimizer = optax.chain(track(optax.scale_by_adam()), optax.scale(-rate))
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(4):
        params, state, _ = step(params, state, gradients(params, number))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            record = stagnation(state)
        assert [warning.category for warning in seen] == [MisplacedWarning] * (number > 0)
        assert seen == [] or seen[0].filename == __file__
    assert (int(record.arrival.checked), int(record.arrival.missed)) == (3, 3)
    np.testing.assert_allclose(record.arrival.ratio, -rate, rtol=1e-3)
    with pytest.warns(MisplacedWarning) as told:
        stagnation(state)
    (text,) = (str(warning.message) for warning in told)
    assert text.startswith("stagnation: after 3 of the 3 updates whose outcome was seen, the weights had not gone where this")
    assert f"moved by {float(record.arrival.ratio):.3g} of the update" in text
    assert "learning rate included, track(chain(...))" in text


def test_updates_that_are_not_looked_at_are_not_checked() -> None:
    params, optimizer = parameters(["float32"]), track(optax.sgd(1e-2), every=3)
    state, step = optimizer.init(params), stepper(optimizer)
    checked = []
    for number in range(10):
        params, state, _ = step(params, state, gradients(params, number))
        checked.append(int(stagnation(state).arrival.checked))
    assert checked == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert int(stagnation(state).arrival.missed) == 0


def test_weights_that_are_edited_outside_for_once_are_no_misplacement() -> None:
    params, optimizer = parameters(["float32"]), track(optax.sgd(1e-2))
    state, step = optimizer.init(params), stepper(optimizer)
    for number in range(6):
        params, state, _ = step(params, state, gradients(params, number))
        if number == 3:
            params = jax.tree.map(lambda w: w * 0.5, params)
        stagnation(state)  # a warning would be an error here
    arrival = stagnation(state).arrival
    assert (int(arrival.checked), int(arrival.missed)) == (5, 1)


def test_weights_that_are_no_numbers_are_nowhere_else() -> None:
    params = {"w": jnp.array([1.0, jnp.nan, jnp.inf, 2.0]), "empty": jnp.zeros((0, 3)), "one": jnp.ones(())}
    optimizer = track(optax.sgd(0.1))
    state, step = optimizer.init(params), stepper(optimizer)
    for _ in range(3):
        params, state, _ = step(params, state, jax.tree.map(jnp.ones_like, params))
    arrival = stagnation(state).arrival
    assert (int(arrival.checked), int(arrival.missed)) == (2, 0)
    assert arrival.expected.shape == (5,)
