"""Cures in trees of several dtypes, and what they promise on average: each leaf in its own format, each sum in proportion."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import (
    advise,
    in_float32,
    kahan,
    master_weights,
    round_params,
    round_state,
    stagnation,
    track,
    two_components,
)
from precisionlab.optimizers.choosing import formats_of, held_by
from tests.oracle import all_values, round_array

BF16, F16, F32 = pl.BFLOAT16, pl.FLOAT16, pl.FLOAT32


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


LAST: dict[str, Any] = {"round_params": round_params, "kahan": kahan, "two_components": two_components}


def cured(name: str, *how: Any) -> Any:
    return master_weights(optax.sgd(1.0), *how) if name == "master_weights" else optax.chain(optax.sgd(1.0), LAST[name](*how))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAST, "master_weights"])
def test_each_leaf_keeps_its_own_dtype_s_values(name: str) -> None:
    """A float32 norm beside a bfloat16 kernel stays put without gradient; record and advice say how each is stored."""
    params = {"kernel": jnp.full(4, 0.25, jnp.bfloat16), "norm": jnp.full(4, 1.003), "head": {"bias": jnp.full(2, 1.003)}}
    grads = {"kernel": jnp.full(4, 1e-4, jnp.bfloat16), "norm": jnp.zeros(4), "head": {"bias": jnp.zeros(2)}}
    ways = (
        ((BF16,), ("float32", "bfloat16", "float32")),
        ((), ("float32", "bfloat16", "float32")),
        (({"norm": BF16},), ("float32", "bfloat16", "bfloat16")),
        (({"head": F16, "kernel": None},), ("float16", "bfloat16", "float32")),
    )
    for how, stored in ways if name == "kahan" else ways[:1]:
        optimizer = track(cured(name, *how))
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        after = optax.apply_updates(params, updates)
        record = stagnation(state)
        assert record.storage is not None
        assert tuple(seen.name for _, seen in record.storage.weights) == stored
        assert float(after["norm"][0]) == float(np.float32(1.003) if stored[2] == "float32" else pl.round_to(1.003, BF16))
        assert float(after["head"]["bias"][0]) == float(
            np.float32(1.003) if stored[0] == "float32" else pl.round_to(1.003, F16)
        )
        assert {found.path for found in advise(record)} <= {"kernel"} or stored != ("float32", "bfloat16", "float32")


def test_one_format_is_that_of_all_leaves_unless_some_are_stored_in_it() -> None:
    leaves = [jnp.zeros(1, dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32)]
    paths = [(jax.tree_util.DictKey(name),) for name in "abcd"]

    def chosen(fmt: Any, *which: int) -> list[Any]:
        return formats_of(fmt, [paths[i] for i in which], [leaves[i] for i in which], "kahan")

    assert chosen(None, 0, 1, 2, 3) == [F32, BF16, F16, None]
    assert chosen(BF16, 0, 3) == [BF16, None]
    assert chosen(BF16, 0, 1, 2) == [F32, BF16, F16]
    assert chosen(pl.saturating(BF16), 0, 1) == [F32, pl.saturating(BF16)]
    assert chosen(pl.FLOAT8_E5M2, 0, 1, 2) == [pl.FLOAT8_E5M2] * 3
    assert chosen({"a": BF16, "*": pl.FLOAT8_E5M2}, 0, 1) == [BF16, pl.FLOAT8_E5M2]
    with pytest.raises(ValueError, match="kahan: b is stored in bfloat16, which does not hold the values of float16"):
        chosen(F16, 0, 1)


def test_what_two_dtypes_hold_is_a_format() -> None:
    common = held_by(jnp.bfloat16, F16)
    values = all_values(F16)
    both = set(values[round_array(values, BF16, "nearest_even") == values].tolist())
    assert set(all_values(common).tolist()) == both
    assert held_by(jnp.float32, F16) == F16
    assert held_by(jnp.float16, pl.FLOAT8_E5M2) == pl.FLOAT8_E5M2


def test_wrong_formats_by_path_are_sentences() -> None:
    params = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r'round_params: a format is for "norm", which is the path of no floating leaf here'):
        round_params({"norm": F32}).init(params)
    with pytest.raises(TypeError, match=r'kahan: the format for "dense" must be a Format'):
        kahan({"dense": "bfloat16"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"kahan: a compensation starts at zero, and float8_e8m0fnu has none"):
        kahan({"dense": pl.FLOAT8_E8M0FNU})
    with pytest.raises(ValueError, match=r"two_components: the second starts at zero, and float8_e8m0fnu has none"):
        two_components().init(jnp.ones(2, jnp.float8_e8m0fnu))
    with pytest.raises(ValueError, match=r'round_state: a format is for "rho"'):
        round_state(optax.adam(1.0), {"rho": F32}).init(params)


PROMISED = [
    ("round_params", jnp.bfloat16, BF16, 2.0**-20),
    ("round_params", jnp.float32, F32, 2.0**-32),
    ("kahan", jnp.bfloat16, BF16, 2.0**-40),
    ("kahan", jnp.float32, F32, 2.0**-60),
    ("two_components", jnp.bfloat16, BF16, 2.0**-40),
    ("two_components", jnp.float32, F32, 2.0**-60),
    ("master_weights", jnp.bfloat16, BF16, 2.0**-32),
    ("round_params", jnp.float16, F16, 2.0**-20),
    ("round_params", jnp.float8_e4m3fn, pl.FLOAT8_E4M3FN, 2.0**-18),
    ("kahan", jnp.float16, F16, 2.0**-30),
    ("kahan", jnp.float32, BF16, 2.0**-40),
    ("master_weights", jnp.float32, F32, 2.0**-32),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "dtype", "fmt", "u"),
    [pytest.param(*row, marks=[] if n < 7 else pytest.mark.slow) for n, row in enumerate(PROMISED)],
)
def test_an_update_that_the_carrier_drops_arrives_on_average(name: str, dtype: Any, fmt: Any, u: float) -> None:
    """Decay of one entry in many, each step below what w + u shows in float32; the bound is 5 standard deviations.

    What is kept (w, and c or its master) makes steps of at most gap; moves of m each have a variance of at most m gap.
    """
    entries, steps = 2**17, 16
    optimizer, w = cured(name, fmt, pl.stochastic), jnp.ones(entries, dtype)

    def one(now: Any, _: Any) -> Any:
        updates, state = optimizer.update(jnp.full(entries, u, jnp.float32), now[1], now[0])
        return (pl.optimizers.apply_updates(now[0], updates), state), None

    after, state = jax.jit(lambda: jax.lax.scan(one, (w, optimizer.init(w)), length=steps)[0])()
    wide = np.asarray(state.masters if name == "master_weights" else after).astype(float)
    keeps = {"kahan": "compensation", "two_components": "low"}.get(name)
    kept = np.asarray(optax.tree.get(state, keeps)).astype(float) if keeps else 0.0
    fallen = float(np.mean(1 - wide) - np.mean(kept))  # each alone: float64 has no number for the small beside one
    gap = 2.0**-24 if name == "master_weights" else 2.0**-fmt.precision  # downwards from one
    gap = 16 * u * 2.0 ** (1 - fmt.precision) if keeps else gap  # of what has gathered in the second number
    asked = steps * u
    assert abs(fallen - asked) <= 5 * math.sqrt(asked * gap / entries)
    assert asked > 10 * math.sqrt(asked * gap / entries)


SUMS: dict[str, Any] = {
    "adagrad": (lambda: optax.scale_by_rss(1.0), "sum_of_squares"),
    "trace": (lambda: optax.trace(1.0), "trace"),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_in_the_state_takes_what_float32_would_drop(name: str, dtype: Any) -> None:
    make, field = SUMS[name]
    entries, steps, fmt = 2**17, 16, pl.FORMATS[jnp.dtype(dtype).name]
    g = 2.0 ** -(20 if dtype == jnp.bfloat16 else 32) if name == "trace" else 2.0 ** -(10 if dtype == jnp.bfloat16 else 16)
    added = g if name == "trace" else g * g
    optimizer, w = round_state(make(), None, pl.stochastic), jnp.ones(entries, dtype)
    state = optimizer.init(w)
    state = state._replace(inner=state.inner._replace(**{field: jnp.ones(entries, dtype)}))

    def one(state: Any, _: Any) -> Any:
        return optimizer.update(jnp.full(entries, g, dtype), state, w)[1], None

    found = jax.jit(lambda: jax.lax.scan(one, state, length=steps)[0])()
    mean = float(np.mean(np.asarray(getattr(found.inner, field)).astype(float) - 1))
    bound = 5 * math.sqrt(steps * added * 2.0 ** (1 - fmt.precision) / entries)
    assert abs(mean - steps * added) <= bound < steps * added


@pytest.mark.slow
def test_moments_that_optax_rounds_itself_follow_the_law() -> None:
    """Adam's nu in bfloat16 after ones and zeros, resumed on the way, with the dtypes that it has without a cure."""
    params = {"w": jnp.full(2000, 0.5, jnp.bfloat16)}
    optimizer = round_state(optax.adam(1e-3), BF16, pl.stochastic)

    @jax.jit
    def steps(state: Any, g: Any, count: Any) -> Any:
        def one(_: Any, state: Any) -> Any:
            return optimizer.update({"w": jnp.full(2000, g, jnp.bfloat16)}, state, params)[1]

        return jax.lax.fori_loop(0, count, one, state)

    begun = steps(optimizer.init(params), 1.0, 100)
    state = steps(begun, 0.0, 300)
    resumed = steps(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), steps(begun, 0.0, 120)), 0.0, 180)
    nu = state.inner[0].nu["w"]
    assert nu.dtype == jnp.bfloat16
    assert nu.tolist() == resumed.inner[0].nu["w"].tolist()
    assert int(state.inner[0].count) == int(state.count) == 400
    law = (1 - 0.999**100) * 0.999**300
    # Moves of a thousandth of at most 0.1 each, and one of a thousandth of 1 at the start, between values 2^-11 apart.
    assert abs(float(nu.astype(jnp.float32).mean()) - law) < 5 * math.sqrt((100 * 1e-3 + 300 * 1e-4) * 2.0**-11 / 2000)
    updates, _ = optimizer.update({"w": jnp.ones(2000, jnp.bfloat16)}, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    outer = round_state(in_float32(optax.adam(1e-3)), BF16)
    wide, _ = outer.update(params, outer.init(params))
    assert wide["w"].dtype == jnp.float32


@pytest.mark.slow
def test_constants_and_inner_dtypes_are_wide_too() -> None:
    """Hyperparameters in the state, moments that Optax casts by itself, and eight bits, where Optax cannot add at all."""
    w = jnp.full(512, 0.5, jnp.bfloat16)
    injected = round_state(optax.inject_hyperparams(optax.adam)(1e-3), BF16, pl.stochastic)
    state = injected.init(w)
    assert float(state.inner.hyperparams["b2"]) == float(np.float32(0.999))
    for optimizer in (round_state(optax.adam(1e-3, mu_dtype=jnp.bfloat16), None, pl.stochastic),):
        begun = optimizer.init(jnp.zeros(512))
        begun = begun._replace(inner=(begun.inner[0]._replace(mu=jnp.ones(512, jnp.bfloat16)), *begun.inner[1:]))
        mu = optimizer.update(jnp.full(512, 0.99), begun, jnp.zeros(512))[1].inner[0].mu
        assert mu.dtype == jnp.bfloat16
        assert {1 - 2.0**-8, 1.0} == set(np.asarray(mu).astype(float).tolist())  # 0.999, a quarter of the gap below 1
        assert 64 < int(jnp.sum(mu != 1)) < 192


def test_in_float32_keeps_moments_and_updates_wide() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16), "count": jnp.arange(2), "none": None}
    optimizer = in_float32(optax.sgd(1e-3, momentum=0.9))
    state = optimizer.init(params)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(state)] == ["int32", "float32"]
    grads = {"w": jnp.ones(3, jnp.bfloat16), "count": jnp.zeros(2, jnp.int32), "none": None}
    updates, state = optimizer.update(grads, state, params)
    assert updates["w"].tolist() == [-float(np.float32(1e-3))] * 3
    with pytest.raises(TypeError, match="in_float32: expected an Optax gradient transformation"):
        in_float32(optax.adam)  # type: ignore[arg-type]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [*LAST, "master_weights", "round_state"])
def test_what_maps_over_parameters_leaves_grids_alone(name: str) -> None:
    """As who puts a sharding on each array of a state does: a specification for each parameter, another for the rest."""
    params = {"kernel": jnp.ones((2, 3), jnp.bfloat16), "norm": jnp.ones(3)}
    optimizer = round_state(optax.adam(1.0), BF16) if name == "round_state" else cured(name, BF16)
    state, specs = optimizer.init(params), {"kernel": "two axes", "norm": "one axis"}
    found = optax.tree.map_params(optimizer, lambda _, spec: spec, state, specs, transform_non_params=lambda _: "none")
    assert jax.tree.structure(found) == jax.tree.structure(state)
    ranks = {"two axes": (2, 3), "one axis": (3,)}
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert spec == "none" or leaf.shape == ranks[spec]
    nested = round_state(optimizer, BF16)
    updates, _ = nested.update(params, nested.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
