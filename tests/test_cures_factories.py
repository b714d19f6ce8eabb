"""Every factory of Optax and optax.contrib inside `round_state`, on bfloat16 weights: its own dtypes, its counts too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.optimizers import round_state
from precisionlab.optimizers.sums import is_floating
from tests.test_track_factories import SAMPLES, _as_users_have_it, made, trained  # noqa: F401

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("default")]

UNTOLD = {"scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"}
"""Of these `map_params` may not tell what belongs to parameters."""


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_state_and_updates_have_their_dtypes(name: str) -> None:
    plain = list(trained(name, made(name), jnp.bfloat16, 2))
    cured = list(trained(name, round_state(made(name), None, pl.stochastic), jnp.bfloat16, 2))
    for (one, before), (other, after) in zip(plain, cured, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(other)]
        assert jax.tree.structure(before) == jax.tree.structure(after.inner)
        for old, new, grid in zip(jax.tree.leaves(before), jax.tree.leaves(after.inner), after.grid, strict=True):
            assert old.shape == new.shape
            if grid is not None:  # rounded: as narrow as it was made
                assert is_floating(new)
            elif jnp.issubdtype(old.dtype, jnp.integer) or old.dtype == bool:
                assert (np.asarray(old) == np.asarray(new)).all()
    assert int(cured[-1][1].count) == 2


def test_what_is_stored_narrow_stays_so() -> None:
    for name in ("adam", "adafactor", "lion", "sm3", "muon", "ema", "sgd"):
        _, state = next(iter(trained(name, round_state(made(name), None, pl.stochastic), jnp.bfloat16, 1)))
        pairs = zip(jax.tree.leaves(state.inner), state.grid, strict=True)
        rounded: list[Any] = [leaf for leaf, grid in pairs if grid is not None]
        assert {leaf.dtype.name for leaf in rounded} <= {"bfloat16", "float32"}
