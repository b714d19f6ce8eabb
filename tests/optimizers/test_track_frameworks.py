"""`track` where people train: after every step, in every framework and wrapper, the record is a recount of what was stored."""

import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.serialization import from_bytes, to_bytes
from flax.training.train_state import TrainState
from optax import contrib

import precisionlab as pl
from precisionlab.optimizers import TrackState, apply_updates, stagnation, track
from tests.arithmetic.test_frameworks import Model, X, Y, loss_of
from tests.optimizers.test_track import gradients, parameters, same, stepper
from tests.recount import assert_tally, recount

pytestmark = pytest.mark.filterwarnings("default")  # theirs; this file is about results

STEPS = 3
PARTITION = {"bfloat16": "one", "float32": "two"}


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Now(NamedTuple):
    """Training between two steps."""

    params: Any
    state: Any


class Left(NamedTuple):
    """The updates that left the optimizer, kept in its state: some frameworks show them to nobody."""

    left: Any


def kept(optimizer: Any) -> Any:
    def init(params: Any) -> Left:
        return Left(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, Left(updates)

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def nodes(state: Any, kind: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind)) if isinstance(node, kind)]


def bare(state: Any) -> Any:
    """The state as it would be without `track`."""
    tracked = {"is_leaf": lambda node: isinstance(node, TrackState)}
    return jax.tree.map(lambda node: node.inner if isinstance(node, TrackState) else node, state, **tracked)


def at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf for path, leaf in found}


def tallies(record: pl.optimizers.Record) -> dict[str, pl.Tally]:
    return {path.removesuffix("/value"): tally for path, tally in pl.by_path(record.tally).items()}


def assert_recount(record: pl.optimizers.Record, before: Any, updates: Any, after: Any) -> int:
    """Every leaf of the record, from what was stored; how many there are."""
    old, left, new, found = leaves(before), leaves(updates), leaves(after), tallies(record)
    for path, tally in found.items():
        assert_tally(tally, recount(old[path], left[path], new[path]), rtol=1e-4)
    return len(found)


def assert_recounted(loop: Callable[[Any], Iterator[Now]], make: Callable[[Any], Any]) -> list[pl.optimizers.Record]:
    """`make(track)` trains as `make(itself)` does, bit for bit, and every new record is a recount; gives all records."""
    records = []
    with_track, without = pairwise(loop(kept(make(track)))), loop(kept(make(lambda optimizer: optimizer)))
    next(without)
    for (before, now), plain in zip(with_track, without, strict=True):
        same(jax.tree.leaves(plain.params), jax.tree.leaves(now.params))
        same(jax.tree.leaves(plain.state), jax.tree.leaves(bare(now.state)))
        record, previous = stagnation(now.state), stagnation(before.state)
        if int(record.step) == int(previous.step):
            same(jax.tree.leaves(previous), jax.tree.leaves(record))
        else:
            updates = nodes(now.state, Left)[-1].left
            assert assert_recount(record, before.params, updates, now.params)
        records.append(record)
    return records


# Frameworks


class Net(nnx.Module):
    def __init__(self) -> None:
        self.hidden, self.out = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        return self.out(nnx.relu(self.hidden(x)))


def linen_model() -> Model:
    net = linen.Sequential([linen.Dense(8), linen.relu, linen.Dense(4)])
    return Model(net.init(jax.random.key(0), X), net.apply)


def nnx_model() -> Model:
    graph, params = nnx.split(Net(), nnx.Param)
    return Model(params, lambda params, x: nnx.merge(graph, params)(x))


def equinox_model() -> Model:
    params, static = eqx.partition(eqx.nn.MLP(8, 4, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    return Model(params, lambda params, x: jax.vmap(jax.vmap(eqx.combine(params, static)))(x))


def haiku_model() -> Model:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 4])(x)))
    return Model(net.init(jax.random.key(0), X), net.apply)


def stored(params: Any, storage: str) -> Any:
    """All weights in bfloat16, or every other leaf."""
    flat, structure = jax.tree.flatten(params)
    narrow = [leaf.astype(jnp.bfloat16) if storage == "narrow" or i % 2 else leaf for i, leaf in enumerate(flat)]
    return jax.tree.unflatten(structure, narrow)


def by_function(model: Model) -> Any:
    def loop(optimizer: Any) -> Iterator[Now]:
        now = Now(model.params, optimizer.init(model.params))
        yield now

        @jax.jit
        def step(now: Now) -> Now:
            updates, state = optimizer.update(jax.grad(loss_of(model))(now.params, X, Y), now.state, now.params)
            return Now(optax.apply_updates(now.params, updates), state)

        for _ in range(STEPS):
            yield (now := step(now))

    return loop


def by_train_state(model: Model) -> Any:
    def loop(optimizer: Any) -> Iterator[Now]:
        train = TrainState.create(apply_fn=model.apply, params=model.params, tx=optimizer)
        yield Now(train.params, train.opt_state)

        @jax.jit
        def step(train: TrainState) -> TrainState:
            return train.apply_gradients(grads=jax.grad(loss_of(model))(train.params, X, Y))

        for _ in range(STEPS):
            train = step(train)
            yield Now(train.params, train.opt_state)

    return loop


def by_filter(model: Model) -> Any:
    """Equinox's own functions; the parameters are the model with None in place of what is static."""

    def loop(optimizer: Any) -> Iterator[Now]:
        now = Now(model.params, optimizer.init(model.params))
        yield now

        @eqx.filter_jit
        def step(now: Now) -> Now:
            grads = eqx.filter_grad(loss_of(model))(now.params, X, Y)
            updates, state = optimizer.update(grads, now.state, now.params)
            return Now(eqx.apply_updates(now.params, updates), state)

        for _ in range(STEPS):
            yield (now := step(now))

    return loop


def by_nnx_optimizer(model: Model) -> Any:
    def loop(optimizer: Any) -> Iterator[Now]:
        net = Net()
        nnx.update(net, model.params)
        holder = nnx.Optimizer(net, optimizer, wrt=nnx.Param)

        def now() -> Now:
            return jax.tree.map(lambda leaf: leaf, Now(nnx.state(net, nnx.Param), holder.opt_state))

        @nnx.jit
        def step(net: Net, holder: nnx.Optimizer) -> None:
            holder.update(net, nnx.grad(lambda net: jnp.mean(jnp.square(net(X) - Y)))(net))

        yield now()
        for _ in range(STEPS):
            step(net, holder)
            yield now()

    return loop


FRAMEWORKS: dict[str, tuple[Callable[[], Model], Any, str]] = {
    "linen": (linen_model, by_function, "params/layers_0/kernel"),
    "linen_train_state": (linen_model, by_train_state, "params/layers_2/bias"),
    "nnx_split": (nnx_model, by_function, "hidden/kernel"),
    "nnx_optimizer": (nnx_model, by_nnx_optimizer, "hidden/kernel"),
    "equinox": (equinox_model, by_filter, "layers/0/weight"),
    "haiku": (haiku_model, by_function, "mlp/~/linear_0/w"),
}


@pytest.mark.sampled("nnx_optimizer-narrow")
@pytest.mark.parametrize(
    ("name", "storage"),
    [
        *((name, "mixed") for name in FRAMEWORKS),
        ("linen", "narrow"),
        *(pytest.param(name, "narrow", marks=pytest.mark.thorough) for name in ("nnx_optimizer", "equinox")),
    ],
)
def test_every_framework_trains_the_same_and_every_record_is_a_recount(name: str, storage: str) -> None:
    make, style, path = FRAMEWORKS[name]
    model = make()
    model = model._replace(params=stored(model.params, storage))
    records = assert_recounted(style(model), lambda wrap: wrap(optax.adamw(1e-4)))
    assert [int(record.step) for record in records] == [1, 2, 3]
    assert len(tallies(records[-1])) == 4
    assert path in tallies(records[-1])
    whole = pl.total(records[-1].tally)
    assert int(whole.swamped) > 0
    assert int(whole.landed) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"ages": True, "formats": [pl.FLOAT8_E4M3FN]},
        {"every": 2},
    ],
    ids=["ages", "every"],
)
def test_nnx_optimizer_takes_every_option(options: Any) -> None:
    """It hands `init` a tree of variables and `update` the same tree of arrays."""
    last = list(by_nnx_optimizer(nnx_model())(track(optax.sgd(1e-3), **options)))[-1]
    record = stagnation(last.state)
    assert int(record.step) == (2 if "every" in options else STEPS)
    if "ages" in options:
        assert int(record.ages.updates[...]) == STEPS
        assert int(pl.total(record.what_if["float8_e4m3fn"]).entries) == 8 * 8 + 8 + 8 * 4 + 4


# Optimizers and their wrappers

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 6)
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "schedule_clipping_decay": lambda t: t(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE))),
    "muon": lambda t: t(contrib.muon(1e-2, weight_decay=0.1)),
    "lion": lambda t: t(optax.lion(1e-3)),
    "schedule_free": lambda t: t(contrib.schedule_free_adamw(1e-2)),
    "adafactor": lambda t: t(optax.adafactor(1e-2, min_dim_size_to_factor=4)),
    "sam": lambda t: t(contrib.sam(optax.sgd(1e-2), optax.chain(contrib.normalize(), optax.sgd(0.1)))),
    "multi_steps_inside": lambda t: optax.MultiSteps(t(optax.adam(1e-2)), 2).gradient_transformation(),
    "multi_steps_around": lambda t: t(optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()),
    "inject_inside": lambda t: optax.inject_hyperparams(lambda rate: t(optax.sgd(rate)))(1e-2),
    "inject_around": lambda t: t(optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE)),
    "apply_if_finite_inside": lambda t: optax.apply_if_finite(t(optax.adam(1e-2)), 2),
    "apply_if_finite_around": lambda t: t(optax.apply_if_finite(optax.adam(1e-2), 2)),
    "masked": lambda t: optax.masked(t(optax.sgd(1e-2)), {"bfloat16": True, "float32": False}),
    "partition": lambda t: optax.partition({"one": t(optax.adam(1e-2)), "two": optax.sgd(1e-2)}, PARTITION),
    "frozen": lambda t: t(optax.partition({"one": optax.adam(1e-2), "two": optax.set_to_zero()}, PARTITION)),
    "end_of_chain": lambda t: optax.chain(optax.sgd(1e-2), t(optax.identity())),
    "not_a_number": lambda t: t(optax.sgd(1e-2)),
}
NANS = ("apply_if_finite_inside", "apply_if_finite_around", "not_a_number")
STEPS_SEEN = {"multi_steps_inside": [0, 1, 1, 2], "apply_if_finite_inside": [1, 1, 2, 3]}


def by_gradients(params: Any, nan: bool = False) -> Any:
    """Plain Optax with prepared gradients; the second may hold NaN."""

    def loop(optimizer: Any) -> Iterator[Now]:
        now, step = Now(params, optimizer.init(params)), stepper(optimizer)
        yield now
        for number in range(4):
            grads = gradients(params, number)
            if nan and number == 1:
                grads["bfloat16"][0, 0] = np.nan
            yield (now := Now(*step(*now, grads)[:2]))

    return loop


@pytest.mark.sampled(0, slow=8)
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_trains_the_same_and_every_record_is_a_recount(name: str) -> None:
    records = assert_recounted(by_gradients(parameters(), name in NANS), WRAPPERS[name])
    assert [int(record.step) for record in records] == STEPS_SEEN.get(name, [1, 2, 3, 4])
    assert list(tallies(records[-1])) == (["bfloat16"] if name in ("masked", "partition") else ["bfloat16", "float32"])
    whole = [pl.total(record.tally) for record in records]
    if name in ("multi_steps_around", "apply_if_finite_around"):  # nothing was asked in the steps that they hold back
        idle = [int(total.zero) == int(total.entries) for total in whole]
        assert idle == ([True, False] * 2 if name == "multi_steps_around" else [False, True, False, False])
    if name == "frozen":
        assert all(int(record.tally["float32"].zero) == 54 for record in records)
    assert sum(int(total.nonfinite) for total in whole) == (3 if name == "not_a_number" else 0)  # in it came, there it stays


@pytest.mark.slow
def test_lbfgs_has_its_extra_arguments() -> None:
    params = parameters(["float32"])

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.square(jnp.square(params["float32"] - 1.7)))

    def loop(optimizer: Any) -> Iterator[Now]:
        now = Now(params, optimizer.init(params))
        yield now

        @jax.jit
        def step(now: Now) -> Now:
            value, grads = optax.value_and_grad_from_state(loss)(now.params, state=now.state)
            more = {"value": value, "grad": grads, "value_fn": loss}
            updates, state = optimizer.update(grads, now.state, now.params, **more)
            return Now(optax.apply_updates(now.params, updates), state)

        for _ in range(STEPS):
            yield (now := step(now))

    search = optax.scale_by_backtracking_linesearch(3, store_grad=True)
    records = assert_recounted(loop, lambda wrap: wrap(optax.lbfgs(linesearch=search)))
    assert [int(record.step) for record in records] == [1, 2, 3]


@pytest.mark.slow
def test_lookahead_has_records_of_its_fast_and_its_slow_weights() -> None:
    """Around it; inside, the record would judge updates of the fast weights that a synchronization replaces."""
    params = optax.LookaheadParams.init_synced(parameters(["bfloat16"]))

    def loop(optimizer: Any) -> Iterator[Now]:
        now, step = Now(params, optimizer.init(params)), stepper(optimizer)
        yield now
        for number in range(4):
            yield (now := Now(*step(*now, gradients(params.fast, number))[:2]))

    records = assert_recounted(loop, lambda wrap: wrap(optax.lookahead(optax.sgd(0.01), 2, 0.5)))
    assert list(tallies(records[-1])) == ["fast/bfloat16", "slow/bfloat16"]
    idle = [int(tallies(record)["slow/bfloat16"].zero) == 54 for record in records]
    assert idle == [True, False, True, False]


def test_a_scan_stacks_records_and_donated_buffers_are_counted_before_they_go() -> None:
    params, optimizer = parameters(), track(optax.sgd(2.0**-6))  # exact, so that two programs agree
    grads = jax.tree.map(lambda *steps: np.stack(steps), *(gradients(params, number) for number in range(4)))
    step = stepper(optimizer)

    @jax.jit
    def scanned(params: Any, state: Any) -> Any:
        def body(now: Any, grads: Any) -> Any:
            params, state, updates = step(*now, grads)
            return (params, state), (now[0], updates, params, stagnation(state))

        return jax.lax.scan(body, (params, state), grads)

    (last, _), history = scanned(params, optimizer.init(params))
    assert history[3].step.tolist() == [1, 2, 3, 4]
    for number in range(4):
        before, updates, after, record = at(history, number)
        assert assert_recount(record, before, updates, after) == 2

    donating = jax.jit(step, donate_argnums=(0, 1))
    now = jax.tree.map(jnp.copy, (params, optimizer.init(params)))
    for number in range(4):
        before, given = jax.tree.map(np.array, now[0]), now
        *now, updates = donating(*now, at(grads, number))
        assert any(leaf.is_deleted() for leaf in jax.tree.leaves(given[0]))  # which, JAX says: 0.11.2 keeps one of sgd's
        assert assert_recount(stagnation(now[1]), before, updates, now[0]) == 2
    same(now[0], last)


# Leaves of every kind

KINDS: dict[str, Any] = {
    "float8_e4m3fn": (optax.sgd(0.1), apply_updates, 1),
    "float8_e5m2": (optax.adam(0.1), apply_updates, 1),
    "float4_e2m1fn": (optax.sgd(0.5), apply_updates, 1),
    "complex64": (optax.sgd(0.1), optax.apply_updates, 0),
    "int32": (optax.identity(), optax.apply_updates, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_of_every_dtype_beside_others(kind: str) -> None:
    inner, apply, count = KINDS[kind]
    params = {"w": parameters(["bfloat16"])["bfloat16"], "none": None, "scalar": jnp.float32(1.0)}
    params["leaf"] = jnp.arange(6) if kind == "int32" else jnp.linspace(-3, 3, 6).astype(kind)
    optimizer = track(inner)
    state, (plain, step) = optimizer.init(params), (stepper(inner, apply), stepper(optimizer, apply))
    here, other = params, inner.init(params)
    for number in range(2):
        grads = gradients(params, number)
        before = params
        here, other, _ = plain(here, other, grads)
        params, state, updates = step(params, state, grads)
        same((params, bare(state)), (here, other))
        assert assert_recount(stagnation(state), before, updates, params) == 2 + count


# The state among other people's functions


@pytest.mark.slow
def test_states_are_pickled_and_read() -> None:
    optimizer, params = track(optax.adamw(1e-3), every=2, ages=True), parameters()
    _, state, _ = stepper(optimizer)(params, optimizer.init(params), gradients(params, 0))
    same(pickle.loads(pickle.dumps(state)), state)
    assert optax.tree.get(state, "mu")["bfloat16"].shape == (6, 9)
    injected = track(optax.inject_hyperparams(optax.adam)(1e-3)).init(params)
    changed = optax.tree.set(injected, learning_rate=0.5)
    assert float(optax.tree.get(changed, "learning_rate")) == 0.5


@pytest.mark.slow
def test_flax_writes_the_state() -> None:
    train = TrainState.create(apply_fn=None, params=parameters(), tx=track(optax.adamw(1e-3)))
    train = train.apply_gradients(grads=gradients(train.params, 0))
    same(from_bytes(train, to_bytes(train)), train)


def test_optax_maps_over_the_parameters_in_the_state() -> None:
    """As those do who give each leaf of a state the sharding of its parameter."""
    optimizer, params = track(optax.adam(1e-3), ages=True), parameters()
    specs = optax.tree.map_params(optimizer, lambda _, name: name, optimizer.init(params), {k: k for k in params})
    assert optax.tree.get(specs, "mu") == {"bfloat16": "bfloat16", "float32": "float32"}
    assert specs.record.ages.last_moved == {"bfloat16": "bfloat16", "float32": "float32"}


# What is wrong


@pytest.mark.parametrize(
    ("grads", "params", "says"),
    [
        ({"a": np.ones(3)}, {"a": np.ones(3), "b": np.ones(2)}, "track: the updates are not the same tree as the parameters"),
        ({"a": np.ones(3), "b": None}, {"a": np.ones(3), "b": np.ones(2)}, "track: the updates are not the same tree"),
        ({"a": {"b": np.ones((3, 2))}}, {"a": {"b": np.ones((2, 3))}}, r"track: at a/b, the update has shape \(3, 2\)"),
        (np.ones(3), np.ones(2), r"track: at the array, the update has shape \(3,\) and the parameter \(2,\)"),
    ],
    ids=["missing", "none", "shape", "array"],
)
def test_gradients_of_other_parameters_are_a_sentence(grads: Any, params: Any, says: str) -> None:
    optimizer = track(optax.sgd(0.1))
    with pytest.raises(ValueError, match=says):
        optimizer.update(grads, optimizer.init(params), params)


@pytest.mark.slow
def test_an_equinox_model_given_whole_is_a_sentence() -> None:
    """Its functions are leaves too; `eqx.filter` takes them out."""
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda model: jnp.sum(model(jnp.ones(2))))(model)
    optimizer = track(optax.sgd(0.1))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    with pytest.raises(ValueError, match="track: the updates are not the same tree as the parameters"):
        optimizer.update(grads, state, model)
