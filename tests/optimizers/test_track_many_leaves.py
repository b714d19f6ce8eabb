"""Models have hundreds of leaves: those of one shape are looked at together, and told apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import precisionlab as pl
from precisionlab.optimizers import kahan, round_params, stagnation, track
from precisionlab.optimizers.tracking import looking, sights
from precisionlab.optimizers.tracking import track as track_module
from precisionlab.optimizers.tracking.alike import of_each
from precisionlab.problems import cross_entropy, mlp_apply, mlp_init
from precisionlab.stagnation.fates import by_path
from tests.recount import assert_tally, recount


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    """Optax itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def model() -> dict[str, Any]:
    """Leaves of every size that is looked at in its own way, kinds alternating, each leaf with other numbers."""
    random = np.random.default_rng(0)
    shapes = {"large": ((90, 60), "bfloat16", 2), "small": ((5, 7), "float32", 2), "some": ((61, 70), "float32", 1)}
    leaves = {"empty": jnp.zeros((0, 3), jnp.bfloat16), "count": jnp.arange(3), "none": None, "gain": jnp.float32(0.5)}
    for number in range(3):
        for name, (shape, dtype, count) in shapes.items():
            if number < count:
                leaves[f"{number}_{name}"] = jnp.asarray(random.normal(size=shape) * 2.0**number, dtype)
    leaves["1_large"] = leaves["1_large"].at[3, :].set(jnp.nan)
    return leaves


FLUSHED = pl.FLOAT8_E5M2._replace(subnormals=False)

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (optax.adam(2.0**-9), {"formats": [pl.FLOAT8_E4M3FN, pl.BFLOAT16, pl.FLOAT8_E4M3B11FNUZ, pl.FLOAT16, FLUSHED]}),
    "state": (optax.sgd(2.0**-9, momentum=0.5), {"formats": [pl.FLOAT16], "state": True, "detail": False}),
    "kahan": (optax.chain(optax.sgd(2.0**-9), kahan()), {"formats": [pl.FLOAT8_E5M2, pl.fixed_point(8, 4)]}),
    "chance": (optax.chain(optax.adam(2.0**-9), round_params(None, pl.stochastic)), {"detail": False, "every": 2}),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", ["looped", "unrolled"])
@pytest.mark.parametrize("case", OPTIONS)
def test_records_in_blocks_are_those_of_one_leaf_after_the_other(
    case: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, options = OPTIONS[case]
    tracked, params = track(optimizer, **options), model()
    grads = jax.tree.map(lambda leaf: leaf * 2.0**-3 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)

    def made() -> Any:
        step = jax.jit(lambda *given: tracked.update(*given))
        updates, state = step(grads, tracked.init(params), params)
        updates, state = step(grads, state, optax.apply_updates(params, updates))
        return updates, stagnation(state)

    monkeypatch.setattr(looking, "_looped", lambda: form == "looped")
    given, seen = made()
    assert int(seen.reads) == 2 // options.get("every", 1)
    monkeypatch.setattr(sights, "in_blocks_of", lambda *_: False)
    monkeypatch.setattr(track_module, "in_blocks_of", lambda *_: False)
    _, alone = made()
    assert len(by_path(seen.tally)) == 7
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(seen), jax.tree.leaves(alone), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_allclose(leaf, other, 1e-5 if leaf.dtype == jnp.float32 else 0, err_msg=jax.tree_util.keystr(path))
    if case == "adam":  # what is stored by `apply_updates`, counted on the host
        first = jax.jit(lambda *given: tracked.update(*given))(grads, tracked.init(params), params)
        after, seen = optax.apply_updates(params, first[0]), stagnation(first[1])
        for name in ("1_large", "0_some", "0_small", "gain"):
            assert_tally(seen.tally[name], recount(params[name], first[0][name], after[name]))
            assert int(seen.gradients[name]) == int((np.asarray(grads[name], np.float32) != 0).sum())
    del given


@pytest.mark.sampled(2)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1e-3), optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)), optax.lion(1e-3)],
    ids=["adamw", "clipped", "lion"],
)
def test_a_scan_trains_bit_for_bit_as_without(optimizer: Any, every: int) -> None:
    """Not so the momentum of SGD: alone, XLA adds it to a gradient within the product of matrices that makes it."""
    images, labels = jax.random.uniform(jax.random.key(1), (32, 64)), jax.random.randint(jax.random.key(2), (32,), 0, 10)
    params = mlp_init(jax.random.key(0), (64, 90, 60, 10))

    def loss(params: Any) -> Any:
        return cross_entropy(mlp_apply(params, images), labels)

    def trained(optimizer: Any) -> Any:
        def step(held: Any, _: None) -> Any:
            params, state = held
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda held: jax.lax.scan(step, held, length=6)[0])((params, optimizer.init(params)))

    plain, (weights, state) = trained(optimizer), trained(track(optimizer, [pl.FLOAT16], every=every))
    assert int(stagnation(state).reads) == 6 // every
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves((weights, state.inner)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sizes", [(2, 3), (200, 300)])
def test_results_come_in_the_order_of_the_rows_and_in_the_widest_dtype(sizes: tuple[int, int]) -> None:
    kinds = list(zip(sizes, ("bfloat16", "float32"), strict=True)) * 5
    rows = [(jnp.full(size, float(number), dtype), None) for number, (size, dtype) in enumerate(kinds)]

    def made(rows: Any) -> Any:
        return of_each(lambda row, _: (row[0], jnp.int32(row.size)), rows)

    for each in (made, jax.jit(made)):
        first, counts = each(rows)
        assert first.tolist() == list(range(10))
        assert first.dtype == jnp.float32
        assert counts.tolist() == list(sizes) * 5


def operations(program: Any) -> int:
    """Equations, those of what is called in it counted in every call, as compilers meet them."""
    return sum(1 + sum(map(operations, jaxprs_in_params(eqn.params))) for eqn in program.eqns)


def program(optimizer: Any, blocks: int) -> Any:
    """The update of leaves none of which has the shape of another."""
    params = {f"{block}": {"w": jnp.ones((8 + block, 800), jnp.bfloat16), "b": jnp.ones(8 + block)} for block in range(blocks)}
    return jax.jit(optimizer.update).trace(params, optimizer.init(params), params)


def test_programs_grow_with_the_leaves_as_the_optimizers_own_does() -> None:
    optimizer = optax.adamw(1e-3)
    many = track(optimizer, [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN])
    plain, whole, formats = (
        operations(program(each, 6).jaxpr) - operations(program(each, 3).jaxpr) for each in (optimizer, track(optimizer), many)
    )
    # The update, made again in float32 for what the moments mean, and a few operations to bring each leaf to its like.
    assert plain < whole < 3 * plain
    assert formats == whole


def test_a_further_leaf_of_a_new_shape_adds_few_lines() -> None:
    optimizer = optax.adam(1e-3)

    def lines(optimizer: Any) -> int:
        longer, shorter = (program(optimizer, blocks).lower().as_text().count("\n") for blocks in (6, 3))
        return (longer - shorter) // 6

    plain = lines(optimizer)
    for options in ({"detail": False}, {}, {"formats": [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN]}):
        assert lines(track(optimizer, state=False, **options)) - plain <= 60
