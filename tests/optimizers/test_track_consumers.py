"""Everything that reads a record or keeps a tracked state, in every framework; and leaves without entries."""

import functools
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen
from flax.serialization import from_bytes, to_bytes

import precisionlab as pl
from precisionlab import optimizers as po
from precisionlab.optimizers import Record, advise, stagnation, track
from precisionlab.sinks import json_lines, parquet, record_rows, several, tensorboard, trackio_run, wandb_run
from tests.optimizers.test_track import same
from tests.optimizers.test_track_frameworks import FRAMEWORKS, leaves, stored

pytestmark = pytest.mark.filterwarnings("default")  # theirs; this file is about results


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def trained(name: str) -> Any:
    """Parameters and state of a model half in bfloat16 after three updates."""
    make, style, _ = FRAMEWORKS[name]
    model = make()
    model = model._replace(params=stored(model.params, "mixed"))
    return list(style(model)(track(optax.adam(1e-4), [pl.FLOAT8_E4M3FN], ages=True)))[-1]


class Told:
    """Somebody's run, of Weights & Biases or of Trackio."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def log(self, data: Any, step: Any = None) -> None:
        self.told.append((data, step))

    def define_metric(self, name: str, step_metric: Any = None) -> None:
        pass


def written(sink: Any, record: Record) -> None:
    with sink:
        sink.write(record_rows(record))


# What is done with a record; each gives something that is not empty.
READERS: dict[str, Callable[[Record, Path], Any]] = {
    "advise": lambda record, _: "\n".join(map(str, advise(record, learning_rate=1e-4))),
    "record_rows": lambda record, _: record_rows(record),
    "total": lambda record, _: int(pl.total(record.tally).entries),
    "by_path": lambda record, _: [float(tally.lost_fraction) for tally in pl.by_path(record.tally).values()],
    "recent": lambda record, _: [float(share) for share in jax.tree.leaves(record.recent)],
    "what_if": lambda record, _: [int(tally.swamped) for tally in pl.by_path(record.what_if["float8_e4m3fn"]).values()],
    "state": lambda record, _: [int(tally.landed) for tally in pl.by_path(record.state.tally).values()],
    "ages": lambda record, _: (int(record.ages.updates), float(pl.mean_age(record.ages))),
    "step": lambda record, _: int(record.step),
    "repr": lambda record, _: repr(record),
    "device_get": lambda record, _: jax.tree.leaves(jax.device_get(record)),
    "tree_map": lambda record, _: jax.tree.leaves(jax.tree.map(lambda leaf: leaf + 1, record)),
    "pickle": lambda record, _: jax.tree.leaves(pickle.loads(pickle.dumps(record))),
    "json_lines": lambda record, folder: written(json_lines(folder / "a.jsonl"), record) or (folder / "a.jsonl").read_text(),
    "parquet": lambda record, folder: written(parquet(folder, {}), record) or list(folder.rglob("*.parquet")),
    "tensorboard": lambda record, folder: written(tensorboard(folder), record) or list(folder.iterdir()),
    "wandb": lambda record, _: written(wandb_run(run := Told()), record) or run.told,
    "trackio": lambda record, _: written(trackio_run(run := Told()), record) or run.told,
    "several": lambda record, _: written(several(trackio_run(run := Told())), record) or run.told,
}


@pytest.mark.sampled(0, slow=40)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_reader_takes_the_record_of_every_framework(name: str, reader: str, tmp_path: Path) -> None:
    assert READERS[reader](stagnation(trained(name).state), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_records_hold_bare_arrays_under_the_paths_of_the_parameters(name: str) -> None:
    params, state = trained(name)
    record = stagnation(state)
    paths = list(leaves(params))
    assert not any(path.endswith("value") for path in paths)
    assert list(pl.by_path(record.tally)) == paths
    assert [path for path, _ in record.storage.weights] == paths
    assert {type(leaf) for leaf in jax.tree.leaves(record.tally)} == {type(jnp.ones(1))}
    rows = record_rows(record)
    assert {row["path"] for row in rows if row["site"] == "weights"} == set(paths)
    assert not any("value" in row["path"] for row in rows)


def by_orbax(state: Any, folder: Path) -> Any:
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(folder / "state", state)
    return checkpointer.restore(folder / "state", item=state)


def by_equinox(state: Any, _: Path) -> Any:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    return eqx.tree_deserialise_leaves(file, jax.tree.map(jnp.zeros_like, state))


KEEPERS: dict[str, Callable[[Any, Path], Any]] = {
    "orbax": by_orbax,
    "equinox": by_equinox,
    "flax": lambda state, _: from_bytes(state, to_bytes(state)),
    "pickle": lambda state, _: pickle.loads(pickle.dumps(state)),
}


UNKNOWN = {
    # Trees that these do not know, plain or tracked; they keep what is in them.
    *((name, "flax") for name in ("nnx_split", "nnx_optimizer", "equinox")),
    ("nnx_optimizer", "equinox"),
}


@pytest.mark.slow
@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_keeper_gives_the_state_of_every_framework_back(name: str, keeper: str, tmp_path: Path) -> None:
    state = trained(name).state
    if (name, keeper) in UNKNOWN:
        state = jax.tree.leaves(state)
    back = KEEPERS[keeper](state, tmp_path)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.slow
def test_boxes_of_linen_do_not_reach_the_record() -> None:
    net = linen.Dense(3, kernel_init=linen.with_partitioning(linen.initializers.ones, (None, "model")))
    params = net.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    optimizer = track(optax.sgd(0.1))
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert [row["path"] for row in record_rows(stagnation(state))] == ["bias", "kernel"]


# Leaves without entries


def odd(dtype: Any = jnp.bfloat16) -> Any:
    return {
        "empty": jnp.zeros(0, dtype),
        "none": None,
        "rows": {"of_nothing": jnp.zeros((3, 0)), "of_numbers": jnp.ones((3, 2), dtype)},
        "scalar": jnp.float32(1),
        "whole": jnp.arange(3),
    }


OPTIONS: dict[str, Any] = {
    "plain": {},
    "state": {"state": True},
    "blind": {"state": False},
    "all": {"formats": [pl.FLOAT8_E4M3FN], "ages": True, "every": 2},
}
SAVED = {
    "sgd_float32": (optax.sgd(0.1), {"w": jnp.ones(3)}),
    "adam_float32": (optax.adam(0.1), {"w": jnp.ones(3)}),
    "sgd_bfloat16": (optax.sgd(0.1), {"w": jnp.ones(3, jnp.bfloat16)}),
    "whole": (optax.identity(), {"w": jnp.arange(3)}),
    "nothing": (optax.identity(), {}),
    "empty": (optax.sgd(0.1), odd()),
}


@pytest.mark.sampled(0, slow=12)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", SAVED)
def test_what_can_be_saved_plain_can_be_saved_tracked(name: str, options: str, tmp_path: Path) -> None:
    inner, params = SAVED[name]
    optimizer = track(inner, **OPTIONS[options])
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        _, state = optimizer.update(grads, state, params)
        assert all(leaf.size for leaf in jax.tree.leaves(state))
    back = by_orbax(state, tmp_path)
    same(jax.tree.leaves(back), jax.tree.leaves(state))
    found = stagnation(back)
    assert list(pl.by_path(found.tally)) == [path for path, leaf in leaves(params).items() if leaf.dtype != jnp.int32]


CURES: dict[str, Callable[[Any], Any]] = {
    "round_params": lambda inner: optax.chain(inner, po.round_params(pl.BFLOAT16)),
    "kahan": lambda inner: optax.chain(inner, po.kahan(pl.BFLOAT16)),
    "two_components": lambda inner: optax.chain(inner, po.two_components(pl.BFLOAT16)),
    "master_weights": lambda inner: po.master_weights(inner, pl.BFLOAT16),
    "round_state": lambda inner: po.round_state(inner, pl.BFLOAT16),
    "none": lambda inner: inner,
}


@pytest.mark.slow
@pytest.mark.parametrize("cure", CURES)
def test_leaves_without_entries_train_and_are_told_in_every_cure(cure: str, tmp_path: Path) -> None:
    params = {name: leaf for name, leaf in odd().items() if name != "whole"}
    optimizer = track(CURES[cure](optax.adam(0.1)), [pl.FLOAT8_E4M3FN], ages=True)
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = po.apply_updates(params, updates)
    record = stagnation(state)
    counts = {path: int(tally.entries) for path, tally in pl.by_path(record.tally).items()}
    assert counts == {"empty": 0, "rows/of_nothing": 0, "rows/of_numbers": 6, "scalar": 1}
    rows = record_rows(record)
    assert {row["entries"] for row in rows if row["path"] == "empty"} == {0}
    assert advise(record)
    with json_lines(tmp_path / "a.jsonl") as sink:
        sink.write(rows)


@pytest.mark.slow
def test_a_stack_of_states_is_read_as_one_and_as_its_parts() -> None:
    """Many runs at once: `jax.vmap` over the whole training."""
    optimizer = track(optax.adam(0.1), [pl.FLOAT8_E4M3FN])
    params = {"a": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones((3, 2))}
    state = jax.vmap(optimizer.init)(params)
    _, state = jax.vmap(optimizer.update)(params, state, params)
    whole = stagnation(state)
    assert whole.tally["a"].landed.tolist() == [4, 4, 4]
    assert whole.recent["a"].shape == (3,)
    for index in range(3):
        one = stagnation(jax.tree.map(lambda leaf, index=index: leaf[index], state))
        taken = jax.tree.map(lambda leaf, index=index: leaf[index], whole)
        same(jax.tree.leaves(one), jax.tree.leaves(taken))
        assert record_rows(taken) == record_rows(one)


@pytest.mark.slow
def test_state_that_widens_in_the_first_update_keeps_its_record_in_place() -> None:
    """bfloat16 moments that the first update makes float32; between two looks the record has to fit."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, jax.tree.map(lambda mu, g: 0.9 * mu.astype(jnp.float32) + g.astype(jnp.float32), state, updates)

    widening = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    optimizer = track(widening, every=3)
    state = optimizer.init(params)
    assert stagnation(state).state.told.tolist() == [True]
    for _ in range(6):
        _, state = optimizer.update(params, state, params)
    record = stagnation(state)
    assert (int(record.step), int(record.reads)) == (6, 2)
    assert not record.state.told.any()
    assert jax.tree.leaves(record.state.tally) == []
