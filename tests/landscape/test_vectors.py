"""Vectors of parameters: exact, in float64, and without a trace in the caller's process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from precisionlab.landscape import flatten, in_float64, jacobian
from precisionlab.landscape.vectors import check_function, traceable


def test_flatten_keeps_every_value_and_the_structure():
    params = {"a": jnp.array([1.5, -3.0], jnp.bfloat16), "b": (jnp.float32(0.1), np.array([[1e-300]]))}

    def fun(p):
        assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {jnp.dtype("float64")}
        return p["a"].sum() + 10.0 * p["b"][0] + p["b"][1][0, 0]

    of_vector, theta = flatten(fun, params)
    assert theta.dtype == np.float64
    assert theta.tolist() == [1.5, -3.0, float(np.float32(0.1)), 1e-300]
    out = of_vector(theta)
    assert out.dtype == jnp.float64
    assert float(out) == 1.5 - 3.0 + 10 * float(np.float32(0.1)) + 1e-300


def test_a_flattened_function_is_differentiated_in_float64():
    of_vector, theta = flatten(lambda p: jnp.stack([p["w"] ** 3]), {"w": jnp.float32(1 / 3)})
    assert jacobian(of_vector, theta)[0, 0] == pytest.approx(3 * float(np.float32(1 / 3)) ** 2, rel=1e-15)


def test_nothing_is_left_behind():
    before = jax.config.read("jax_enable_x64")
    of_vector, theta = flatten(lambda p: jnp.sum(p), jnp.ones(3))
    of_vector(theta)
    with pytest.raises(ZeroDivisionError):
        in_float64(lambda: 1 / 0)()
    assert jax.config.read("jax_enable_x64") == before
    assert jnp.asarray(1.0).dtype == jnp.float32


@pytest.mark.parametrize(
    ("params", "said"),
    [({"w": jnp.ones(2), "n": np.int32(3)}, r"\['n'\] is int32"), ({}, "no leaves"), (jnp.array([1j]), "params is complex64")],
)
def test_flatten_refuses_what_is_not_real_floating(params, said):
    with pytest.raises(ValueError, match=said):
        flatten(lambda _: 0.0, params)


def test_functions_that_lose_float64_are_refused():
    with pytest.raises(ValueError, match="gives float32"):
        jacobian(lambda w: w.astype(jnp.float32), [1.0])
    with pytest.raises(ValueError, match="gives int64"):
        check_function("f", traceable(lambda w: jnp.sum(w).astype(jnp.int64)), 1, scalar=True)


@pytest.mark.parametrize(
    ("theta", "said"), [([], "n >= 1"), (1.0, "got shape ()"), ([1.0, np.nan], "1 of 2 entries"), ([[np.inf], [1.0]], "1 of 2")]
)
def test_points_must_be_finite_vectors(theta, said):
    with pytest.raises(ValueError, match=said):
        jacobian(lambda w: w, theta)


@pytest.mark.parametrize("fun", [lambda w: w[0], lambda w: w[:, None], lambda w: w[:0], lambda w: {"r": w}])
def test_residuals_must_be_a_vector(fun):
    with pytest.raises(ValueError, match="vector of residuals"):
        jacobian(fun, [1.0, 2.0])


def test_other_data_in_a_partial_share_one_compilation():
    traced = []

    def residuals(data, w):
        traced.append(1)
        return data * w

    first = jacobian(Partial(residuals, np.array([2.0, 3.0])), [1.0, 1.0])
    compiled = len(traced)
    second = jacobian(Partial(residuals, np.array([5.0, 7.0])), [1.0, 1.0])
    assert first.tolist() == [[2.0, 0.0], [0.0, 3.0]]
    assert second.tolist() == [[5.0, 0.0], [0.0, 7.0]]
    assert len(traced) == compiled + 1  # only the look at its shape


def test_functions_without_a_hash_work():
    class Unhashable:
        __hash__ = None  # as a tuple that holds arrays

        def __call__(self, w):
            return 2.0 * w

    assert jacobian(Unhashable(), [1.0]).tolist() == [[2.0]]
