"""A look from outside is the look from within."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import precisionlab as pl
from precisionlab.optimizers import advise, kahan, observer, stagnation, track

FORMATS = [pl.FLOAT8_E4M3FN, pl.FLOAT16]


@pytest.fixture(autouse=True)
def _optax_needs_standard_promotion() -> Any:
    with jax.numpy_dtype_promotion("standard"):
        yield


def trained(optimizer: Any, look: Any = None) -> Any:
    """Four updates, the second and the fourth looked at."""
    params = {"w": jnp.linspace(0.5, 2, 35, dtype=jnp.bfloat16).reshape(5, 7), "b": jnp.ones(3)}
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, number: Any) -> Any:
        grads = jax.tree.map(lambda leaf: (leaf * 2.0**-number).astype(leaf.dtype), params)
        updates, after = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), after, grads

    record = None
    for number in range(1, 5):
        before = params, state
        params, state, grads = step(params, state, number)
        if look is not None and number % 2 == 0:
            record = look(before[0], grads, before[1], step=number)
    return params, state, record


@pytest.mark.parametrize("name", ["adam", "kahan"])
def test_the_record_is_that_of_track(name: str) -> None:
    optimizer = {"adam": optax.adam(2.0**-9), "kahan": optax.chain(optax.sgd(2.0**-9), kahan())}[name]
    options: Any = {"state": name == "adam" or None}
    _, state, _ = trained(track(optimizer, FORMATS, every=2, **options))
    within = stagnation(state)
    params, _, outside = trained(optimizer, observer(optimizer, FORMATS, **options))
    assert outside is not None
    for side in ("tally", "what_if", "compensated", "stochastic", "recent", "gradients", "reads", "step", "state", "window"):
        mine, other = getattr(outside, side), getattr(within, side)
        for (path, leaf), expected in zip(jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(other), strict=True):
            where = side + jax.tree_util.keystr(path)
            np.testing.assert_allclose(leaf, expected, 1e-6 if leaf.dtype == jnp.float32 else 0, err_msg=where)
    assert outside.storage == within.storage
    assert list(map(str, advise(outside))) == list(map(str, advise(within)))
    assert int(outside.arrival.checked) == 0
    # Training is not touched.
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(trained(optimizer)[0]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_without_a_number_looks_are_counted() -> None:
    optimizer, params = optax.sgd(0.1), {"w": jnp.ones(3)}
    observe = observer(optimizer, detail=False)
    for number in (1, 2):
        record = observe(params, params, optimizer.init(params))
        assert (int(record.step), int(record.reads)) == (number, number)


def test_one_program_for_all_looks() -> None:
    traces = []

    def update(updates: Any, state: Any, params: Any = None, *, scale: Any = 1.0) -> Any:
        del params
        traces.append(None)
        return jax.tree.map(lambda leaf: -scale * leaf, updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    observe, params = observer(optimizer), {"w": jnp.ones(3)}
    observe(params, params, optax.EmptyState(), scale=2.0**-30)
    count = len(traces)
    record = observe(params, params, optax.EmptyState(), scale=2.0**-3)
    assert len(traces) == count
    assert int(record.tally["w"].landed) == 3


def test_mistakes_are_sentences() -> None:
    optimizer, params = optax.sgd(0.1), {"w": jnp.ones(3)}
    observe = observer(optimizer)
    with pytest.raises(TypeError, match="observer: observe was called inside of jit"):
        jax.jit(lambda params: observe(params, params, optimizer.init(params)).step)(params)
    with pytest.raises(TypeError, match="observer: expected an Optax gradient transformation"):
        observer(0.1)
    with pytest.raises(TypeError, match="observer: formats must hold Format values"):
        observer(optimizer, ["bfloat16"])
    tracked = track(optimizer)
    with pytest.raises(ValueError, match="observer: this optimizer is tracked inside already"):
        observer(tracked)(params, params, tracked.init(params))
    with pytest.raises(ValueError, match="observer: this is no state of the optimizer"):
        observe(params, params, optax.adam(0.1).init(params))
    with pytest.raises(TypeError, match="observer: the parameter at w is a Python number"):
        observe({"w": 1.0}, {"w": 1.0}, optimizer.init({"w": 1.0}))
    with pytest.raises(ValueError, match="observer: float64 does not fit its carrier"):
        observer(optimizer, [pl.FLOAT64])(params, params, optimizer.init(params))
