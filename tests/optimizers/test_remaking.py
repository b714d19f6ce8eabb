"""An update made again needs no old moments, and is the update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from precisionlab.optimizers.meaning.remaking import remade


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-3),
        optax.adamw(lambda count: 1e-3 / (1 + count)),
        optax.sgd(0.1, momentum=0.9),
        optax.rmsprop(0.1),
        optax.sgd(0.1),
    ],
    ids=["adam", "adamw", "momentum", "rmsprop", "sgd"],
)
def test_old_moments_are_not_read(optimizer: Any) -> None:
    params = {"a": jnp.linspace(-1, 1, 7), "b": jnp.ones((2, 3), jnp.bfloat16)}
    grads = jax.tree.map(lambda leaf: (leaf * 3 - 1).astype(leaf.dtype), params)
    _, before = optimizer.update(grads, optimizer.init(params), params)
    updates, after = optimizer.update(grads, before, params)
    gone = jax.tree.map(lambda leaf: leaf * jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, before)
    found = remade(optimizer.update, (grads, gone, params), after)
    assert jax.tree.structure(found) == jax.tree.structure(updates)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(updates), strict=True):
        assert one.dtype == other.dtype
        # Not in the same program, so not to the last bit; what is read of the old moments would be NaN.
        few = 4 * float(jnp.finfo(one.dtype).eps)
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=few)


def test_what_is_remembered_unchanged_or_made_together_with_the_update() -> None:
    def update(gradient: Any, state: Any) -> Any:
        first, second = jax.jit(lambda g, s: (g * s["scale"], s["trace"] + g))(gradient, state)
        return {"u": first, "again": second}, {"scale": state["scale"], "trace": second, "last": first}

    state = {"scale": jnp.float32(2), "trace": jnp.float32(3), "last": jnp.float32(0)}
    updates, after = update(jnp.float32(5), state)
    assert jax.tree.map(float, remade(update, (jnp.float32(5), state), after)) == jax.tree.map(float, updates)
