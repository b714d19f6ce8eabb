"""Every factory of Optax and optax.contrib inside `round_state`, on bfloat16 weights: dtypes, counts and trees as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.optimizers import round_state
from precisionlab.optimizers.roundings import hash_of
from tests.optimizers.test_track_factories import SAMPLES, _as_users_have_it, made, trained  # noqa: F401

pytestmark = pytest.mark.filterwarnings("default")

NAMES = sorted(set(SAMPLES) - {"measure_with_ema", "scale_by_muon"})  # which need other updates than this training makes
FIRST = ("adafactor", "sophia")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.thorough) for n in NAMES])
def test_state_and_updates_have_their_dtypes(name: str) -> None:
    optimizer = round_state(made(name), None, pl.stochastic)
    if name in ("flatten", "monitor", "scale_by_backtracking_linesearch"):  # in whose states no leaf is a parameter's
        with pytest.raises(ValueError, match="wrap the optimizer inside instead"):
            next(trained(name, optimizer, jnp.bfloat16, 1))
        return
    plain = list(trained(name, made(name), jnp.bfloat16, 2))
    cured = list(trained(name, optimizer, jnp.bfloat16, 2))
    for (one, before), (other, after) in zip(plain, cured, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        assert [leaf.dtype for leaf in jax.tree.leaves(one)] == [leaf.dtype for leaf in jax.tree.leaves(other)]
        assert jax.tree.structure(before) == jax.tree.structure(after.inner)
        rounded = set(np.asarray(after.grid.rows)[:, 3].tolist())
        for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(after.inner), jax.tree.leaves(before), strict=True):
            assert old.shape == new.shape
            if hash_of(jax.tree_util.keystr(path, simple=True, separator="/")) in rounded:
                assert new.dtype in (jnp.bfloat16, old.dtype)
            elif jnp.issubdtype(old.dtype, jnp.integer) or old.dtype == bool:
                assert (np.asarray(old) == np.asarray(new)).all()
    assert int(cured[-1][1].count) == 2
