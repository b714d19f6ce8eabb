"""Eight devices count as one: records of sharded training, in a process of its own with eight virtual devices.

Rates and gradients are small multiples of powers of two, so that sums over devices are exact, weights agree bit for bit, and
counts must agree exactly.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import precisionlab as pl
from precisionlab.optimizers import stagnation, track
from tests.optimizers.test_track import same
from tests.recount import COUNTS, SUMS, assert_tally, recount

SHAPES = {"heads": (8, 8, 64), "hidden": (64, 128), "scale": (128,), "gain": ()}
STEPS = 2
OPTIONS: dict[str, Any] = {"every": 2, "ages": True, "formats": (pl.FLOAT8_E4M3FN,)}
SHARDINGS: dict[str, dict[str, P]] = {
    "replicated": {"heads": P(), "hidden": P(), "scale": P(), "gain": P()},
    "fsdp": {"heads": P("data"), "hidden": P("data"), "scale": P("data"), "gain": P()},
    "both": {"heads": P("model", None, "data"), "hidden": P("data", "model"), "scale": P(("data", "model")), "gain": P()},
    "mixed": {"heads": P("data"), "hidden": P("data", "model"), "scale": P(), "gain": P()},
}
BY_HEADS = {"heads": P(None, "model"), "hidden": P("data"), "scale": P(), "gain": P()}


def mesh(kind: AxisType = AxisType.Auto) -> Any:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def parameters() -> dict[str, Any]:
    random = np.random.default_rng(0)
    drawn = {name: np.float32(random.standard_normal(shape)) for name, shape in SHAPES.items()}
    return {name: jnp.asarray(leaf, jnp.float32 if name == "scale" else jnp.bfloat16) for name, leaf in drawn.items()}


def batch() -> dict[str, Any]:
    """A gradient of every leaf for each of eight examples: small integers times a power of two for each entry."""
    random = np.random.default_rng(1)
    rows = {name: random.integers(-8, 9, (8, *shape)) for name, shape in SHAPES.items()}
    return {name: np.float32(np.ldexp(row, random.integers(-12, 2, SHAPES[name]))) for name, row in rows.items()}


def mean(batch: Any, params: Any, axes: Any = ()) -> Any:
    """The gradient: the mean over the rows here and, along `axes`, on other devices."""
    return jax.tree.map(lambda rows, leaf: jax.lax.pmean(jnp.mean(rows, axis=0), axes).astype(leaf.dtype), batch, params)


def optimizer(**options: Any) -> Any:
    return track(optax.sgd(2.0**-4, momentum=0.5), **options)


def one_step(optimizer: Any) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def trained(step: Any, params: Any, state: Any, grads: Any) -> Any:
    for _ in range(STEPS):  # one step at a time: collectives of two steps at once deadlock on few cores
        params, state = jax.block_until_ready(step(params, state, grads))
    return params, state


@cache
def on_one_device(**options: Any) -> Any:
    made, params = optimizer(**options), parameters()
    return trained(jax.jit(one_step(made)), params, made.init(params), mean(batch(), params))


def agree(found: Any, expected: Any, draws: bool = True) -> None:
    """The same weights, the same counts, sums up to their order; without `draws` those of chance within five sigma."""
    same(jax.tree.map(np.asarray, found[0]), jax.tree.map(np.asarray, expected[0]))
    ours, theirs = stagnation(found[1]), stagnation(expected[1])
    assert int(ours.step) == int(theirs.step)
    assert list(ours.what_if) == list(theirs.what_if)
    what_ifs = [
        (one, other, kind)
        for kind in ("what_if", "stochastic", "compensated")
        for one, other in zip(getattr(ours, kind).values(), getattr(theirs, kind).values(), strict=True)
    ]
    for one, other, kind in [(ours.tally, theirs.tally, "tally"), *what_ifs]:
        for name, tally in one.items():
            fates = {field: (int(getattr(tally, field)), int(getattr(other[name], field))) for field in COUNTS}
            if kind == "stochastic" and not draws:  # a shard under shard_map numbers its own entries from 0
                landed, asked = fates.pop("landed"), int(tally.asked)
                stuck = [sum(pair) for pair in zip(fates.pop("swamped"), fates.pop("underflowed"), strict=True)]
                assert landed[0] + stuck[0] == landed[1] + stuck[1], (kind, name)
                assert abs(landed[0] - landed[1]) <= 5 * (asked / 2) ** 0.5, (kind, name, landed)
            assert all(a == b for a, b in fates.values()), (kind, name, fates)
            if kind == "tally":  # what-ifs are counts alone
                assert np.asarray(tally.histogram).tolist() == np.asarray(other[name].histogram).tolist(), name
                sums = [[float(getattr(each, field)) for field in SUMS] for each in (tally, other[name])]
                np.testing.assert_allclose(*sums, rtol=1e-5, err_msg=name)
    assert (ours.ages is None) == (theirs.ages is None)
    if ours.ages is not None:
        same(jax.tree.map(np.asarray, ours.ages), jax.tree.map(np.asarray, theirs.ages))


def placed(tree: Any, specs: Any, kind: AxisType) -> Any:
    return {name: jax.device_put(np.asarray(leaf), NamedSharding(mesh(kind), specs[name])) for name, leaf in tree.items()}


def placed_training(specs: Any, kind: AxisType = AxisType.Auto, **options: Any) -> Any:
    """Each parameter and its gradient sharded by its own spec under jit; the compiler finds the collectives."""
    made, whole = optimizer(**options), parameters()
    params, grads = placed(whole, specs, kind), placed(mean(batch(), whole), specs, kind)
    step = jax.jit(one_step(made), donate_argnums=(0, 1))
    return trained(step, params, made.init(params), grads)


# The cases; each runs where there are eight devices.


def jit_shards_parameters() -> None:
    expected = on_one_device()
    for specs in (SHARDINGS["fsdp"], SHARDINGS["both"], BY_HEADS):
        agree(placed_training(specs), expected)


def jit_shards_in_types() -> None:
    agree(placed_training(SHARDINGS["both"], AxisType.Explicit), on_one_device())


def jit_shards_heads_in_types() -> None:
    agree(placed_training(BY_HEADS, AxisType.Explicit), on_one_device())


def jit_shards_in_types_without_state() -> None:
    params = placed({"w": jnp.ones(64, jnp.bfloat16)}, {"w": P("data")}, AxisType.Explicit)
    plain = track(optax.sgd(2.0**-10))  # whose state has no leaves
    state = jax.jit(one_step(plain))(params, plain.init(params), params)[1]
    assert int(stagnation(state).tally["w"].swamped) == 64


def jit_shards_with_every_option() -> None:
    params, state = placed_training(SHARDINGS["both"], **OPTIONS)
    agree((params, state), on_one_device(**OPTIONS))
    assert stagnation(state).ages.last_moved["hidden"].sharding == params["hidden"].sharding


def jit_shards_the_batch() -> None:
    """Data parallel: the mean over the batch is the collective; the record is a recount."""
    made, params = optimizer(), placed(parameters(), SHARDINGS["replicated"], AxisType.Auto)
    data = jax.device_put(batch(), NamedSharding(mesh(), P(("data", "model"))))
    step = jax.jit(lambda params, state, data: one_step(made)(params, state, mean(data, params)))
    agree(trained(step, params, made.init(params), data), on_one_device())
    before = params["hidden"]
    plain = optax.sgd(2.0**-4, momentum=0.5)
    updates, _ = plain.update(mean(batch(), parameters()), plain.init(parameters()))
    now, state = step(params, made.init(params), data)
    assert_tally(stagnation(state).tally["hidden"], recount(before, updates["hidden"], now["hidden"]))


def no_shard_is_gathered() -> None:
    """Counting sends counts, not parameters."""
    made, specs = optimizer(), SHARDINGS["both"]
    params = placed(parameters(), specs, AxisType.Auto)
    program = jax.jit(one_step(made)).lower(params, made.init(params), params).compile().as_text()
    assert "all-reduce" in program
    assert program.count("all-gather(") == 0, f"{program.count('all-gather(')} all-gathers"


def ages_start_where_the_parameters_are() -> None:
    params = placed(parameters(), SHARDINGS["both"], AxisType.Auto)
    ages = optimizer(ages=True).init(params).record.ages
    assert ages.last_moved["hidden"].sharding.is_equivalent_to(params["hidden"].sharding, 2)


def pmap_replicates() -> None:
    made, params = optimizer(), parameters()
    everywhere = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), params)
    data = jax.tree.map(lambda rows: rows[:, None], batch())

    def local(params: Any, state: Any, data: Any) -> Any:
        return one_step(made)(params, state, mean(data, params, "all"))

    found = trained(jax.pmap(local, axis_name="all"), everywhere, jax.pmap(made.init)(everywhere), data)
    for device in (0, 7):
        agree(jax.tree.map(lambda leaf, device=device: np.asarray(leaf)[device], found), on_one_device())


def state_specs(state: Any, specs: Any) -> Any:
    """Momenta and ages as their parameters, everything else everywhere."""
    tree = jax.tree.structure(specs, is_leaf=lambda node: isinstance(node, P))
    like = {"is_leaf": lambda node: jax.tree.structure(node) == tree}
    return jax.tree.map(lambda node: specs if jax.tree.structure(node) == tree else P(), state, **like)


def shard_map_training(specs: Any, check: bool = True, scanned: bool = False, **options: Any) -> Any:
    """Every device updates its own shards; the gradients of the batch are reduced by hand where the weights are replicated."""
    made, params = optimizer(**options), parameters()
    state = made.init(params)
    step = one_step(made)
    data = specs == SHARDINGS["replicated"]

    def local(params: Any, state: Any, grads: Any) -> Any:
        if data:
            grads = mean(grads, params, ("data", "model"))
        if scanned:
            return jax.lax.scan(lambda now, _: (step(*now, grads), None), (params, state), length=STEPS)[0]
        return step(params, state, grads)

    kept = state_specs(state, specs)
    grads, grad_specs = (batch(), P(("data", "model"))) if data else (mean(batch(), params), specs)
    mapped = jax.jit(
        jax.shard_map(local, mesh=mesh(), in_specs=(specs, kept, grad_specs), out_specs=(specs, kept), check_vma=check)
    )
    return jax.block_until_ready(mapped(params, state, grads)) if scanned else trained(mapped, params, state, grads)


def shard_map_replicates() -> None:
    agree(shard_map_training(SHARDINGS["replicated"], check=False), on_one_device())
    agree(shard_map_training(SHARDINGS["replicated"], **OPTIONS), on_one_device(**OPTIONS))


def shard_map_shards() -> None:
    agree(shard_map_training(SHARDINGS["mixed"]), on_one_device())


def shard_map_shards_in_a_scan() -> None:
    agree(shard_map_training(SHARDINGS["mixed"], scanned=True), on_one_device())


def shard_map_shards_with_every_option() -> None:
    agree(shard_map_training(SHARDINGS["mixed"], **OPTIONS), on_one_device(**OPTIONS), draws=False)


def shard_map_unchecked_is_global_or_refused() -> None:
    """Without the check nobody can tell a shard from a whole; a count of one shard must not pass for the model's."""
    try:
        agree(shard_map_training(SHARDINGS["fsdp"], check=False), on_one_device())
    except ValueError as refusal:
        assert str(refusal).startswith("stagnation: the record counts 1024 of the 4096 entries of heads")  # noqa: PT017
    else:
        raise AssertionError("counts of one shard passed for those of all")


CASES: tuple[Callable[[], None], ...] = (
    jit_shards_parameters,
    jit_shards_in_types,
    jit_shards_in_types_without_state,
    jit_shards_with_every_option,
    jit_shards_the_batch,
    pmap_replicates,
    shard_map_replicates,
    jit_shards_heads_in_types,
    no_shard_is_gathered,
    ages_start_where_the_parameters_are,
    shard_map_shards,
    shard_map_shards_in_a_scan,
    shard_map_shards_with_every_option,
    shard_map_unchecked_is_global_or_refused,
)


FURTHER = (jit_shards_heads_in_types, shard_map_shards_in_a_scan, shard_map_shards_with_every_option, jit_shards_in_types)
"""Further combinations of the others, for the thorough run: a process of their own."""


def run_all(further: bool) -> dict[str, str]:
    outcomes = {}
    for case in CASES:
        if (case in FURTHER) != further:
            continue
        with jax.numpy_dtype_promotion("standard"):
            try:
                case()
                outcomes[case.__name__] = ""
            except Exception:
                outcomes[case.__name__] = traceback.format_exc()
    return outcomes


def outcomes(further: bool) -> dict[str, str]:
    environment = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compile fast
    command = [sys.executable, "-W", "error", "-m", "tests.optimizers.test_track_devices", *["further"] * further]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# One test for all cases of a process: split over workers each would start it anew.
@pytest.mark.slow
@pytest.mark.parametrize("further", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_eight_devices_count_as_one(further: bool) -> None:
    found = outcomes(further)
    assert len(found) == (len(FURTHER) if further else len(CASES) - len(FURTHER))
    assert not any(found.values()), "\n".join(filter(None, found.values()))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print(json.dumps(run_all("further" in sys.argv)))
