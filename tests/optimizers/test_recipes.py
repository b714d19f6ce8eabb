"""What follows entry by entry is found, and made of what is at hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import kahan, round_params
from precisionlab.optimizers.meaning.recipes import recipes
from precisionlab.optimizers.roundings import reveal


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


OPTIMIZERS: dict[str, Any] = {
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(lambda count: 1e-3 / (1 + count)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    "lion": optax.lion(1e-3),
    "lamb": optax.lamb(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "muon": optax.contrib.muon(1e-3),
    "stochastic": optax.chain(optax.adam(1e-3), round_params(pl.BFLOAT16, pl.stochastic)),
    "kahan": optax.chain(optax.adam(1e-3), kahan(pl.FLOAT8_E4M3FN)),
}


def given(dtype: Any = jnp.float32) -> tuple[Any, Any]:
    params = {"a": jnp.linspace(-1, 1, 35).reshape(5, 7), "b": jnp.ones((3,), dtype), "gain": jnp.float32(2)}
    return params, jax.tree.map(lambda leaf: (leaf * 3 - 1).astype(leaf.dtype), params)


def made(recipe: Any) -> Any:
    """A row, of blocks of one dimension."""
    size = max(1, int(np.prod(recipe.shape)))

    def counted(axis: int) -> Any:
        return jnp.arange(size) // int(np.prod(recipe.shape[axis + 1 :])) % recipe.shape[axis]

    return recipe.made([jnp.reshape(source, -1) for source in recipe.sources], recipe.scalars, (size,), counted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_recipes_make_the_update(optimizer: Any) -> None:
    params, grads = given()
    _, before = optimizer.update(grads, optimizer.init(params), params)

    def rows(grads: Any, before: Any, params: Any) -> Any:
        updates, after = optimizer.update(grads, before, params)
        return list(zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)), after

    def both(*arguments: Any) -> Any:
        updates, after = optimizer.update(*arguments)
        return [made(recipe) for recipe in recipes(rows, arguments).of(arguments, after)], updates

    found, updates = jax.jit(both)(grads, before, params)
    for (weight, step), leaf, other in zip(found, jax.tree.leaves(params), jax.tree.leaves(updates), strict=True):
        np.testing.assert_array_equal(weight, jnp.reshape(leaf, -1))
        np.testing.assert_allclose(step, jnp.reshape(other, -1), rtol=1e-5, atol=1e-9)


def sources(optimizer: Any, *, revealed: bool = False) -> list[int]:
    """Of how many arrays that are not at hand the recipes begin; the moments before the update hold NaN."""
    params, grads = given(jnp.bfloat16)
    _, before = optimizer.update(grads, optimizer.init(params), params)
    _, after = optimizer.update(grads, before, params)
    gone = jax.tree.map(lambda leaf: leaf * jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, before)

    def rows(grads: Any, before: Any, params: Any) -> Any:
        updates, after = optimizer.update(grads, before, params)
        meant = optimizer.update(grads, reveal(before), params)[0] if revealed else updates
        return list(zip(jax.tree.leaves(params), jax.tree.leaves(meant), strict=True)), after

    arguments = grads, gone, params
    found = recipes(rows, arguments).of(arguments, after)
    for recipe in found:
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in made(recipe)), "an old moment was read"
    at_hand = {id(leaf) for leaf in jax.tree.leaves((grads, gone, params, after))}
    return [sum(id(source) not in at_hand for source in recipe.sources) for recipe in found]


def test_old_moments_are_not_read_and_nothing_is_made_as_a_whole() -> None:
    assert sources(optax.adamw(1e-3)) == [0, 0, 1]  # a single number is no array to go through
    assert sources(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))) == [0, 0, 1]


def test_what_a_rounding_means_is_made_of_new_moments_too() -> None:
    """The optimizer is run a second time for it, on the same state: the moments it makes are those of the first."""
    assert sources(optax.chain(optax.adam(1e-3), round_params(pl.BFLOAT16)), revealed=True) == [0, 0, 1]


def test_leaves_of_one_kind_differ_in_shape_alone() -> None:
    params, grads = given()
    params["c"], grads["c"] = params["a"].reshape(-1), grads["a"].reshape(-1)
    optimizer = optax.adamw(1e-3, mask={"a": True, "b": False, "c": True, "gain": True})
    state = optimizer.init(params)

    def rows(grads: Any, before: Any, params: Any) -> Any:
        updates, after = optimizer.update(grads, before, params)
        return list(zip(jax.tree.leaves(params), jax.tree.leaves(updates), strict=True)), after

    found = recipes(rows, (grads, state, params)).drafts
    kinds = dict(zip(sorted(params), (recipe.kind for recipe in found), strict=True))
    assert kinds["a"] == kinds["c"]
    assert kinds["b"] != kinds["a"]
