"""The same laws on an accelerator, whose compiler elides what the CPU's does not. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from tests import cases

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", cases.ML_DTYPES)
def test_every_bfloat16_and_float16_pattern_rounds_as_ml_dtypes_has_it(name: str) -> None:
    x = cases.patterns()
    ours = np.asarray(jax.jit(lambda v: pl.round_to(v, pl.FORMATS[name]))(x))
    cases.assert_same(ours, cases.ml_round(x, name), x)


def test_stochastic_bits_do_not_depend_on_the_device() -> None:
    x, key = jnp.linspace(-3, 3, 4099, dtype=jnp.float32), jax.random.key(7)
    here = pl.round_to(x, pl.FLOAT8_E4M3FN, pl.stochastic, key=key)
    with jax.default_device(jax.devices("cpu")[0]):
        there = pl.round_to(np.asarray(x), pl.FLOAT8_E4M3FN, pl.stochastic, key=jax.random.key(7))
    cases.assert_same(here, there, x)


def test_a_tracked_step_counts_what_was_stored() -> None:
    optimizer = pl.optimizers.track(optax.sgd(jnp.float32(1e-2)))
    w = jax.random.normal(jax.random.key(0), (4096,), jnp.float32).astype(jnp.bfloat16)
    gradient = jax.random.normal(jax.random.key(1), (4096,), jnp.float32).astype(jnp.bfloat16)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        after, state = step(w, optimizer.init(w))
    landed = int(np.sum(np.asarray(after) != np.asarray(w)))
    assert int(pl.optimizers.stagnation(state).tally.landed) == landed
    assert 0 < landed < w.size
