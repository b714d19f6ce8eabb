"""Every count is the one that numpy arrives at, entry by entry, whatever was stored and however it was compiled."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.optimizers import stored_sum
from tests import cases
from tests.recount import COUNTS, SUMS, assert_tally, exponents, recount, rounded

NATIVE = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn", "float32"]
SIMULATED = ["bfloat16", "float8_e4m3fn", "float16_no_subnormals", "fixed_2_5", "one_bit"]
TALLY = jax.jit(pl.tally, static_argnames="detail")
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 2.0**-149, 1.0, -1.0]


def codes(dtype: np.dtype, size: int, seed: int) -> np.ndarray:
    """Uniform bit patterns of a dtype."""
    width = ml_dtypes.finfo(dtype).bits
    unsigned = np.dtype(f"uint{max(width, 8)}")
    draw = np.random.default_rng(seed).integers(0, 2**width - 1, size, dtype=unsigned, endpoint=True)
    return draw.view(dtype)


def special_of(dtype: np.dtype) -> np.ndarray:
    values = np.array(SPECIAL, np.float32)
    with np.errstate(all="ignore"):
        return np.where(np.isnan(values) & ("float4" in dtype.name), np.float32(1), values).astype(dtype)


def hard_data(dtype: np.dtype, update_dtype: np.dtype, size: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bit patterns with every special pair in front: (w, u, w'), half of w' equal to w."""
    specials, updates = special_of(dtype), special_of(update_dtype)
    pairs = [(w, u, w if same else -w) for w in specials for u in updates for same in (True, False)]
    w, u, after = (np.array([pair[i] for pair in pairs]) for i in range(3))
    more = size - len(pairs)
    random = np.random.default_rng(0)
    old = codes(dtype, more, 1)
    step = codes(update_dtype, more, 2)
    step = np.where(random.random(more) < 0.2, np.zeros((), update_dtype), step)
    new = np.where(random.random(more) < 0.5, old, codes(dtype, more, 3))
    return np.concatenate([w, old]), np.concatenate([u, step]), np.concatenate([after, new])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("update", ["float32", "same"])
@pytest.mark.parametrize("name", NATIVE)
def test_counts_are_those_of_numpy_for_native_storage(name: str, update: str) -> None:
    dtype = cases.ml_dtype(name)
    w, u, after = hard_data(dtype, np.dtype(np.float32) if update == "float32" else dtype)
    expected = recount(w, u, after)
    # (w, u) pairs that include a -0, a NaN and a subnormal are there, and every fate occurs.
    assert all(expected[fate] > 0 for fate in ("landed", "swamped", "zero")), expected
    assert_tally(TALLY(w, u, after), expected, sums=False)
    short = TALLY(w, u, after, detail=False)
    assert [int(getattr(short, fate)) for fate in COUNTS] == [int(expected[fate]) for fate in COUNTS]


def test_counts_are_those_of_numpy_for_float64() -> None:
    w, u, after = hard_data(np.dtype(np.float64), np.dtype(np.float64))
    w[-1], u[-1], after[-1] = 2.0**-1060, 2.0**-1070, 2.0**-1060
    with jax.enable_x64(True):
        assert_tally(TALLY(w, u, after), recount(w, u, after), sums=False)
        with np.errstate(all="ignore"):
            w, after = w.astype(np.float32), after.astype(np.float32)
        assert_tally(TALLY(w, u, after), recount(w, u, after), sums=False)  # narrow weights, wide updates


@pytest.mark.parametrize("name", SIMULATED)
def test_counts_are_those_of_numpy_for_simulated_storage(name: str) -> None:
    fmt = cases.FORMATS[name]
    w, u, after = hard_data(np.dtype(np.float32), np.dtype(np.float32))
    w, after = (np.asarray(pl.round_to(x, fmt)) for x in (w, after))
    found = TALLY(w, u, after, grid=(fmt.precision, fmt.emin))
    assert_tally(found, recount(w, u, after, numbers=fmt), sums=False)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["float8_e5m2", "bfloat16"])
def test_underflowed_are_the_updates_that_vanish_in_their_own_format(name: str) -> None:
    fmt = cases.FORMATS[name]
    w, u, after = hard_data(np.dtype(np.float32), np.dtype(np.float32))
    stored = np.asarray(pl.round_to(u, fmt))
    expected = recount(w, u, after, stored)
    assert expected["underflowed"] > 5
    assert_tally(TALLY(w, u, after, stored_update=stored), expected, sums=False)
    with np.errstate(invalid="ignore"):
        narrow = u.astype(cases.ml_dtype(name))
    cases.assert_same(narrow.astype(np.float32), stored)
    assert_tally(TALLY(w, u, after, stored_update=narrow), expected, sums=False)
    short = TALLY(w, u, after, stored_update=narrow, detail=False)
    assert int(short.underflowed) == expected["underflowed"]


def fate(w: float, u: float, after: float, dtype: Any = np.float32, **options: Any) -> str:
    counted = TALLY(*(np.array([x], dtype) for x in (w, u, after)), **options)
    (name,) = [name for name in COUNTS if int(getattr(counted, name))]
    return name


def test_each_fate_by_hand() -> None:
    assert fate(1.0, 0.5, 1.5) == "landed"
    assert fate(1.0, 1e-9, 1.0) == "swamped"
    assert fate(1.0, 1e-9, 1.0, stored_update=np.zeros(1, np.float32)) == "underflowed"
    assert fate(1.0, 1e-9, 1.5, stored_update=np.zeros(1, np.float32)) == "landed"
    assert fate(1.0, 0.0, 1.0) == fate(1.0, -0.0, 1.0) == "zero"
    assert fate(1.0, 0.0, 2.0) == "zero"  # nothing was asked, whatever happened
    assert fate(0.0, 1.0, -0.0) == fate(-0.0, 1.0, 0.0) == "swamped"  # one value, two zeros
    for bad in (math.inf, -math.inf, math.nan):
        assert fate(bad, 0.0, 1.0) == fate(1.0, bad, 1.0) == fate(1.0, 0.0, bad) == "nonfinite"
    # What XLA's comparisons flush: all of these are 0 == 0 to them.
    assert fate(1e-40, 1e-40, 2e-40) == "landed"
    assert fate(1e-40, 1e-40, 1e-40) == "swamped"
    assert fate(0.0, 1e-45, 1e-45) == fate(1e-45, 1e-40, 0.0) == "landed"
    assert fate(1e-40, 1e-40, 1e-40, ml_dtypes.bfloat16) == "swamped"
    assert fate(1e-40, 1e-40, 2e-40, ml_dtypes.bfloat16) == "landed"
    assert fate(6e-8, 6e-8, 1.2e-7, np.float16) == "landed"


@pytest.mark.parametrize("name", ["float32", "float16", "float8_e4m3fn"])
def test_histogram_is_the_exponent_of_the_update_in_ulps(name: str) -> None:
    dtype = cases.ml_dtype(name)
    w = codes(dtype, 4000, 5)
    w = np.where(np.isfinite(w.astype(np.float32)), w, dtype.type(0))
    gap = np.maximum(exponents(w), cases.REGISTERED[name].emin) - cases.REGISTERED[name].precision + 1
    shift = np.random.default_rng(1).uniform(-20, 12, w.size)
    whole = np.floor(shift).astype(int)
    with np.errstate(over="ignore"):
        u = np.ldexp(2.0 ** (shift - whole), whole + gap).astype(np.float32)
        u[::7] = np.ldexp(1.0, (whole + gap)[::7])  # exact edges of bins
    expected = recount(w, u, w)["histogram"]
    assert expected.min() > 0
    assert np.asarray(TALLY(w, u, w).histogram).tolist() == expected.tolist()
    assert list(pl.HISTOGRAM_EDGES) == list(range(-16, 9))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (5000,), (64, 80), (3, 70, 41), (0,), (4, 0)])
def test_sums_are_those_of_float64(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(4)
    w = random.standard_normal(shape).astype(ml_dtypes.bfloat16)
    u = (random.standard_normal(shape) * 10.0 ** random.uniform(-5, 0, shape)).astype(np.float32)
    w, u = np.asarray(w), np.asarray(u)
    if w.size > 100:
        u.reshape(-1)[3], w.reshape(-1)[5] = math.nan, math.inf
    after = rounded(w.astype(np.float64) + u, ml_dtypes.bfloat16)
    found, expected = TALLY(w, u, after), recount(w, u, after)
    assert_tally(found, expected, rtol=2e-5)
    if w.size > 100:
        asked = expected["landed"] + expected["swamped"]
        assert math.isclose(float(found.stagnated_fraction), expected["swamped"] / asked, rel_tol=1e-6)
        assert math.isclose(float(found.lost_mass), expected["stagnated_mass"] / expected["update_mass"], rel_tol=1e-4)
        quality = expected["moved_along"] / expected["update_square"]
        assert math.isclose(float(found.descent_quality), quality, rel_tol=1e-4)
        assert int(found.stagnated) == expected["swamped"]
        assert int(found.asked) == asked


def test_rates_are_nan_without_a_denominator() -> None:
    nothing = pl.tally(jnp.ones(3), jnp.zeros(3), jnp.ones(3))
    rates = (nothing.stagnated_fraction, nothing.lost_mass, nothing.descent_quality)
    assert all(math.isnan(float(rate)) for rate in rates)
    host = jax.tree.map(np.asarray, nothing)
    assert math.isnan(float(host.stagnated_fraction))
    exact = pl.tally(jnp.ones(3), jnp.ones(3), jnp.full(3, 2.0))
    assert (float(exact.stagnated_fraction), float(exact.lost_mass), float(exact.descent_quality)) == (0, 0, 1)
    # A record read on the host is plain numpy, with axes of steps and seeds in front.
    stacked = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * 2), exact)
    assert stacked.descent_quality.tolist() == [1, 1]
    assert isinstance(stacked.descent_quality, np.ndarray)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float32"])
@pytest.mark.parametrize("detail", [True, False])
def test_jit_and_vmap_and_eager_agree(name: str, detail: bool) -> None:
    w, u, after = (x.reshape(3, 40, 25) for x in hard_data(cases.ml_dtype(name), np.dtype(np.float32)))
    vmapped = jax.vmap(lambda *each: pl.tally(*each, detail=detail))(w, u, after)
    for row in range(3):
        eager = pl.tally(w[row], u[row], after[row], detail=detail)
        jitted = TALLY(w[row], u[row], after[row], detail=detail)
        expected = recount(w[row], u[row], after[row])
        for found in (eager, jitted, jax.tree.map(lambda leaf, row=row: leaf[row], vmapped)):
            assert [int(getattr(found, count)) for count in COUNTS] == [int(expected[count]) for count in COUNTS]
            if detail:
                assert np.asarray(found.histogram).tolist() == expected["histogram"].tolist()
            else:
                assert [getattr(found, field) for field in (*SUMS, "histogram")] == [None] * 5


def test_without_detail_the_rates_that_need_sums_are_sentences() -> None:
    short = pl.tally(jnp.ones(2), jnp.array([1e-9, 1.0]), jnp.array([1.0, 2.0]), detail=False)
    assert float(short.stagnated_fraction) == 0.5
    for rate in ("lost_mass", "descent_quality"):
        with pytest.raises(ValueError, match="detail=True"):
            getattr(short, rate)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e5m2"])
def test_a_sum_inside_the_same_jit_is_counted_as_stored(name: str) -> None:
    """`f32(p + u) - f32(p)` lets the compiler skip the rounding of p + u, and then nothing seems to stagnate."""
    dtype = cases.ml_dtype(name)
    random = np.random.default_rng(6)
    p = random.uniform(1, 2, 4096).astype(dtype)
    u = (random.uniform(0.25, 0.75, 4096) * float(ml_dtypes.finfo(dtype).eps)).astype(dtype)

    @jax.jit
    def inside(p: jax.Array, u: jax.Array) -> tuple[pl.Tally, jax.Array]:
        new = p + u
        return pl.tally(p, u, new), new

    found, new = inside(p, u)
    right = rounded(p.astype(np.float64) + u.astype(np.float64), dtype)
    expected = recount(p, u, right)
    cases.assert_same(np.asarray(new).astype(np.float32), right.astype(np.float32))
    assert 0.4 < expected["swamped"] / p.size < 0.6
    assert_tally(found, expected)
    made = jax.jit(lambda p, u: pl.tally(p, u, stored_sum(p, u)))(p, u)
    assert_tally(made, expected)


def test_trees_keep_their_shape_and_add_up() -> None:
    w: Any = {"layer1": {"bias": np.ones(3, np.float32), "weight": np.ones((2, 2), ml_dtypes.bfloat16)}}
    w |= {"none": None, "list": [np.zeros(2, np.float32)]}
    u = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-9, np.float32), w)
    tree = pl.tally(w, u, w)
    found = pl.by_path(tree)
    assert list(found) == ["layer1/bias", "layer1/weight", "list/0"]
    assert [int(leaf.swamped) for leaf in found.values()] == [3, 4, 2]
    together = pl.total(tree)
    assert int(together.swamped) == int(together.entries) == 9
    assert int(together.histogram.sum()) == 9
    short = pl.total(pl.tally(w, u, w, detail=False))
    assert int(short.swamped) == 9
    assert short.histogram is None
    with pytest.raises(ValueError, match="no tally"):
        pl.total({})


def test_wrong_arguments_are_sentences() -> None:
    w = {"a": jnp.ones(3), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="tally: `update` is not the same tree as `old`"):
        pl.tally(w, {"a": jnp.ones(3)}, w)
    with pytest.raises(ValueError, match="tally: `new` is not the same tree"):
        pl.tally(w, w, [jnp.ones(3), jnp.ones(2)])
    with pytest.raises(ValueError, match=r"tally: at b, `new` has shape \(3,\) and `old` \(2,\)"):
        pl.tally(w, w, {"a": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"tally: at the array, `stored_update` has shape \(\)"):
        pl.tally(jnp.ones(2), jnp.ones(2), jnp.ones(2), stored_update=jnp.ones(()))
    with pytest.raises(TypeError, match=r"tally: at a, `old` has dtype int32; only floating leaves"):
        pl.tally({"a": jnp.ones(3, jnp.int32)}, {"a": jnp.ones(3)}, {"a": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"tally: at a, `update` has dtype int32"):
        pl.tally({"a": jnp.ones(3)}, {"a": jnp.ones(3, jnp.int32)}, {"a": jnp.ones(3)})


def test_ages_are_the_updates_since_an_entry_moved() -> None:
    random = np.random.default_rng(8)
    shapes = {"a": (5, 3), "b": (7,)}
    w = {"a": np.zeros(shapes["a"], ml_dtypes.bfloat16), "b": np.full(shapes["b"], 1e-40, np.float32)}
    ages, last = pl.start_ages(w), {name: np.zeros(shape, int) for name, shape in shapes.items()}
    update = jax.jit(pl.update_ages)
    assert float(pl.never_moved_fraction(ages)) == 1
    for number in range(1, 8):
        new = {}
        for name, leaf in w.items():
            moves = random.random(leaf.shape) < 0.2
            # A zero that changes its sign has not moved; a subnormal that doubles has.
            stays = np.where(leaf == 0, -leaf, leaf)
            moved = leaf + (leaf if name == "b" else np.asarray(1, leaf.dtype))
            new[name] = np.where(moves, moved, stays).astype(leaf.dtype)
            last[name] = np.where(moves, number, last[name])
        ages, w = update(ages, w, new), new
        for name in shapes:
            assert np.asarray(ages.last_moved[name]).tolist() == last[name].tolist()
        waited = np.concatenate([number - part.ravel() for part in last.values()])
        assert math.isclose(float(pl.mean_age(ages)), waited.mean(), rel_tol=1e-6)
        assert math.isclose(float(pl.never_moved_fraction(ages)), (waited == number).mean(), rel_tol=1e-6)
    assert int(ages.updates) == 7
