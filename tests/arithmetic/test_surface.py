"""`simulate` on every public function of jax.numpy, jax.nn, jax.lax, jax.scipy.special, jax.scipy.linalg and jax.random.

Each with its value, its gradient and its vmapped self, where JAX has them: as written, in float32, it is what it was (up to
what another order of operations changes), and in bfloat16 it runs. Warnings are errors here, so that nothing is opaque either.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab import BFLOAT16, simulate
from tests.arithmetic.surface import MODULES, Call, calls

SAMPLE = [
    "jnp.fft.irfft", "jnp.polyval", "jnp.searchsorted", "jnp.angle", "jax.nn.gelu", "jax.nn.scaled_matmul", "lax.reduce_window",
    "lax.ragged_dot", "lax.cumlogsumexp", "lax.top_k", "lax.erf_inv", "lax.linalg.lu",
]  # fmt: skip
ADRIFT = {"jnp.empty", "jnp.empty_like", "lax.empty"}
"""Functions whose result is whatever lies in memory."""


NO_FUNCTIONS_OF_NUMBERS = {
    "jax.random.PRNGKey", "jax.random.key", "jax.random.key_dtype", "jax.random.key_impl", "jax.random.wrap_key_data",
    "jax.scipy.linalg.hadamard", "jnp.array_str", "jnp.from_dlpack", "jnp.get_printoptions", "jnp.promote_types",
    "jnp.ravel_multi_index", "jnp.result_type", "jnp.set_printoptions", "jnp.unpackbits",
    "lax.ConvGeneralDilatedDimensionNumbers", "lax.PrecisionLike", "lax.after_all", "lax.axis_size",
    "lax.conv_dimension_numbers", "lax.conv_general_permutations", "lax.conv_general_shape_tuple",
    "lax.conv_shape_tuple", "lax.conv_transpose_shape_tuple", "lax.create_token", "lax.dce_sink", "lax.dtype",
    "lax.empty", "lax.linalg.lu_pivots_to_permutation", "lax.padtype_to_pads", "lax.pbroadcast", "lax.pcast",
    "lax.precv", "lax.psend", "lax.pshuffle", "lax.psum_scatter_start", "lax.ragged_all_to_all", "lax.reduce_and",
    "lax.reduce_or", "lax.reduce_window_shape_tuple", "lax.reduce_xor", "lax.with_sharding_constraint",
}  # fmt: skip
"""What makes keys, shapes or tokens, reads files, or moves things between devices."""


def kinds(call: Call) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The function; its gradient and its vmapped self, if they can be had."""
    found = {"value": (call.run, call.arrays)}
    floats = tuple(place for place, array in enumerate(call.arrays) if jnp.issubdtype(array.dtype, jnp.floating))

    def total(*arrays: Any) -> Any:
        leaves = [leaf for leaf in jax.tree.leaves(call.run(*arrays)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return sum((jnp.sum(jnp.abs(leaf)).astype(jnp.float32) for leaf in leaves), jnp.float32(0))

    if floats:
        found["gradient"] = (jax.grad(total, argnums=floats), call.arrays)
    if call.arrays:
        found["vmap"] = (jax.vmap(call.run), tuple(jnp.stack([array, array]) for array in call.arrays))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: pair for name, pair in found.items() if name == "value" or _traces(*pair)}


def _traces(function: Any, arrays: Any) -> bool:
    try:
        jax.eval_shape(function, *arrays)
    except Exception:  # JAX has many ways to say that it has no derivative
        return False
    return True


def check(call: Call, thoroughly: bool = True) -> list[str]:
    """What is wrong with a function inside `simulate`; all but its value in float32 is only traced, if not thoroughly."""
    wrong = []
    for kind, (function, arrays) in kinds(call).items():
        run = jax.jit if thoroughly else partial(partial, jax.eval_shape)
        try:
            narrow = run(simulate(function, BFLOAT16))(*arrays)
            got = (jax.jit if kind == "value" else run)(simulate(function, None))(*arrays)
        except Exception as error:  # all of them belong in the list
            wrong.append(f"{call.name} ({kind}): {type(error).__name__}: {str(error)[:200]}")
            continue
        want = _native(function, arrays)
        if want is None or not (thoroughly or kind == "value"):
            continue
        for mine, its, coarse in zip(*map(jax.tree.leaves, (got, want, narrow)), strict=True):
            assert (mine.shape, mine.dtype) == (its.shape, its.dtype) == (coarse.shape, coarse.dtype), call.name
            if jnp.issubdtype(its.dtype, jax.dtypes.prng_key) or call.name in ADRIFT:
                continue
            a, b = np.asarray(mine), np.asarray(its)
            a, b = (x.astype(np.float64) if x.dtype.name.startswith(("bfloat", "float8")) else x for x in (a, b))
            size = np.max(np.abs(b), initial=1.0, where=np.isfinite(b)) if b.dtype.kind in "fc" else 1.0
            if not np.allclose(a, b, rtol=2e-4, atol=2e-5 * size, equal_nan=True):
                wrong.append(f"{call.name} ({kind}): {a.ravel()[:4]} is not {b.ravel()[:4]}")
    return wrong


def _native(function: Any, arrays: Any) -> Any:
    """What JAX computes; None where this platform has no such primitive (scaled_matmul on the CPU, in some releases)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return jax.jit(function)(*arrays)
        except NotImplementedError:
            return None


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", SAMPLE)
def test_public_functions(name):
    (call,) = calls(name)
    assert isinstance(call, Call)
    assert check(call, thoroughly=False) == []


@pytest.mark.thorough
@pytest.mark.parametrize("module", MODULES)
def test_every_public_function(module):
    found = [call for call in calls() if isinstance(call, Call) and call.name.rpartition(".")[0] == module]
    assert len(found) >= {"jnp": 300, "lax": 180}.get(module, 10)
    assert [line for call in found for line in check(call)] == []


@pytest.mark.thorough
def test_no_function_is_without_arguments():
    assert {call for call in calls() if isinstance(call, str)} <= NO_FUNCTIONS_OF_NUMBERS
