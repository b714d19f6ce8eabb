"""Models have hundreds of leaves: those of one shape are looked at together, and told apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import precisionlab as pl
from precisionlab.optimizers import stagnation, track
from precisionlab.optimizers.tracking import alike
from precisionlab.optimizers.tracking.alike import of_each
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
    shapes = {"large": ((12, 9), "bfloat16", 3), "small": ((5, 7), "float32", 2)}
    leaves = {"empty": jnp.zeros((0, 3), jnp.bfloat16), "count": jnp.arange(3), "none": None}
    for number in range(3):
        for name, (shape, dtype, count) in shapes.items():
            if number < count:
                leaves[f"{number}_{name}"] = jnp.asarray(random.normal(size=shape) * 2.0**number, dtype)
    return leaves


@pytest.mark.slow
def test_records_of_leaves_looked_at_together_are_those_of_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    params = model()
    grads = jax.tree.map(lambda leaf: leaf * 2.0**-9 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)
    optimizer = track(optax.sgd(1.0), [pl.FLOAT8_E4M3FN], detail=False)
    state = optimizer.init(params)

    def made(small: int, many: int) -> Any:
        monkeypatch.setattr(alike, "_SMALL", small)
        monkeypatch.setattr(alike, "_MANY", many)
        given, after = jax.jit(lambda *step: optimizer.update(*step))(grads, state, params)
        return given, stagnation(after)

    (given, seen), (_, alone) = made(small=100, many=3), made(small=0, many=100)
    assert len(by_path(seen.tally)) == 6
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(seen), jax.tree.leaves(alone), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, other, 1e-5 if leaf.dtype == jnp.float32 else 0, err_msg=name)
    for name in ("2_large", "1_small"):
        after = optax.apply_updates(params[name], given[name])
        assert_tally(seen.tally[name], recount(params[name], given[name], after), detail=False)


@pytest.mark.parametrize("sizes", [(2, 3), (200, 300)])
def test_results_come_in_the_order_of_the_rows_and_in_the_widest_dtype(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_SMALL", 100)
    monkeypatch.setattr(alike, "_MANY", 3)
    kinds = list(zip(sizes, ("bfloat16", "float32"), strict=True)) * 5
    rows = [(jnp.full(size, float(number), dtype), None) for number, (size, dtype) in enumerate(kinds)]

    def made(rows: Any) -> Any:
        return of_each(lambda row, _: (row[0], row.size), rows, at_hand=True)

    for each in (made, jax.jit(made)):
        first, counts = each(rows)
        assert first.tolist() == list(range(10))
        assert first.dtype == jnp.float32
        assert counts.tolist() == list(sizes) * 5


def operations(program: Any) -> int:
    """Equations, those of what is called in it counted in every call, as compilers meet them."""
    return sum(1 + sum(map(operations, jaxprs_in_params(eqn.params))) for eqn in program.eqns)


def length(optimizer: Any, blocks: int) -> int:
    params = {f"{block}": {"w": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones(8)} for block in range(blocks)}
    return operations(jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params).jaxpr)


def test_programs_grow_with_the_leaves_as_the_optimizers_own_does() -> None:
    optimizer = optax.adamw(1e-3)
    plain, tracked = (length(each, 4) - length(each, 2) for each in (optimizer, track(optimizer)))
    # The update, made again in float32 for what the moments mean, and a few operations to bring each leaf to its like.
    assert plain < tracked < 2.5 * plain
