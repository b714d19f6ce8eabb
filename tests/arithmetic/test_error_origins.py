"""Where an error profile sees the origin of what is not finite, of what became zero, and of what was rounded on its way in.

What is right is known from NumPy: each function is finite in float64, and is not, or is zero, in the narrow format.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import precisionlab as pl
from precisionlab.arithmetic import error_profile, simulate
from precisionlab.arithmetic.rules import Rules
from tests.cases import assert_same

FLOAT16, FLOAT32, BFLOAT16, E4M3 = pl.FLOAT16, pl.FLOAT32, pl.BFLOAT16, pl.FLOAT8_E4M3FN


def origins(fun: Any, *args: Any, fmt: Any = FLOAT16, **options: Any) -> tuple[Any, Any]:
    """The names of the rows where something first was not finite, and first became zero."""
    profile = error_profile(fun, fmt, **options)(*args)
    found = profile.first_nonfinite, profile.first_underflow
    for row in filter(None, found):
        assert "test_error_origins.py:" in row.source or row.primitive in ("argument 0", RETURNED)
        assert f"first: {row.primitive}" in str(profile)
    return tuple(row and row.primitive for row in found)


def in_scope(x):
    with jax.named_scope("norm"):
        return x / (jnp.abs(x) + 1e-8)


def masked(x):
    scores = jnp.where(jnp.arange(2) < 1, x, -1e9)
    return scores - scores


def turns(x):
    return lax.scan(lambda c, _: (c / (c * 1e-9 + 1.0), c / (c + 1e-9)), x, length=3)


ZEROS, ONES = np.zeros(2, np.float32), np.ones(2, np.float32)
RETURNED = "constant 1e+09"  # is in no operation's place
TABLE = np.float32([1e-9, 1.0])
CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "0 / 0": (in_scope, ZEROS, "div", "constant 1e-08"),
    "log 0": (lambda p: jnp.log(p + 1e-10), ZEROS, "log", "constant 1e-10"),
    "1 / sqrt 0": (lambda x: lax.rsqrt(x + 1e-12), ZEROS, "rsqrt", "constant 1e-12"),
    "a constant too large": (lambda x: x * 1e5 * 1e-5, ONES, "constant 1e+05", None),
    "inf - inf of a mask": (masked, ONES, "constant -1e+09", None),
    "a constant that is returned": (lambda x: (x, jnp.float32(1e9)), ONES, RETURNED, None),
    "a table": (lambda x: x / TABLE, ZEROS, "div", "constant float32[2]"),
    "an argument too small": (lambda x: 1.0 / x, np.float32([1e-9, 1.0]), "div", "argument 0"),
    "an argument too large": (lambda x: x * 0.5, np.float32([1e9, 1.0]), "argument 0", None),
    "an integer": (lambda n: n.astype(jnp.float32) * 0.5, np.int32([70000, 1]), "convert_element_type", None),
    "a power": (lambda x: x**4, np.float32([30.0, 1.0]), "integer_pow", None),
    "a loop": (turns, ZEROS, "div", "constant 1e-09"),
    "through a branch": (lambda x: lax.cond(x[0] < 1, in_scope, lambda x: x, x), ZEROS, "div", "constant 1e-08"),
    "recomputed": (jax.checkpoint(in_scope), ZEROS, "div", "constant 1e-08"),
    "by another's derivative": (jax.grad(lambda x: jnp.sum(jnp.sqrt(x * x + 1e-12))), ZEROS, "div", "constant 1e-12"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CASES)
def test_the_origin_is_named(name):
    fun, x, nonfinite, underflow = CASES[name]
    assert all(np.all(np.isfinite(y)) for y in jax.tree.leaves(jax.jit(fun)(x)))
    assert origins(fun, x) == (nonfinite, underflow)


def test_nothing_is_named_where_nothing_happened():
    """Infinities that the function means: a mask, and the start of a maximum."""

    def fun(x):
        scores = jnp.where(jnp.arange(2) < 1, x, -jnp.inf)
        return jax.nn.softmax(scores), jnp.max(x, initial=-jnp.inf), jnp.min(x, initial=jnp.finfo(jnp.float32).max)

    profile = error_profile(fun, FLOAT16)(ONES)
    assert profile.first_nonfinite is profile.first_underflow is None
    assert all(row.introduced == 0 for row in profile.operations)


def test_what_follows_is_no_origin():
    profile = error_profile(lambda x: jnp.log(x * 1e5) - x * 1e5, FLOAT16)(ONES)
    assert {row.primitive for row in profile.operations if row.nonfinite} == {"constant 1e+05"}


def test_scope_and_place_of_a_constant():
    profile = error_profile(in_scope, FLOAT16)(ZEROS)
    constant, quotient = profile.first_underflow, profile.first_nonfinite
    assert (constant.kind, constant.scope, constant.entries, constant.underflowed) == ("constant", "norm", 1, 1)
    assert (quotient.kind, quotient.scope, quotient.nonfinite, quotient.everywhere) == ("operation", "norm", 2, 0)
    assert [row.primitive for row in profile.operations] == ["abs", "constant 1e-08", "add", "div"][1:]


@pytest.mark.slow
def test_a_constant_that_its_dtype_had_lost_already():
    """In float16 programs 1e-8 is written as 0, in float64 as well: the quotient of two zeros is still where NaN comes from."""
    adam = optax.adam(1e-3)
    params = {"w": jnp.asarray([1.0, -2.0, 0.5], jnp.float16)}
    grads, state = {"w": jnp.asarray([0, 0, 0.1], jnp.float16)}, adam.init(params)
    with jax.numpy_dtype_promotion("standard"):
        profile = error_profile(lambda g, s, p: adam.update(g, s, p)[0], FLOAT16)(grads, state, params)
    row = profile.first_nonfinite
    assert (row.primitive, row.nonfinite, row.everywhere) == ("div", 0, 2)
    assert "in float64 as well" in str(profile)
    assert error_profile(lambda x: x * jnp.nan, FLOAT16)(ONES).first_nonfinite.primitive == "constant nan"
    assert error_profile(lambda x: x * 2.0, FLOAT16)(np.float32([np.nan])).first_nonfinite.primitive == "argument 0"


@pytest.mark.slow
def test_draws_and_operations_that_round_as_a_whole():
    key = jax.random.key(0)
    assert origins(lambda key: jax.random.cauchy(key, (4000,)) * 0.5, key, fmt=E4M3) == ("random.cauchy", "random.cauchy")
    rules = Rules(FLOAT16, primitives={"cholesky": FLOAT16})
    assert origins(lambda x: lax.linalg.cholesky(x, symmetrize_input=False), np.float32([[1e-9]]), fmt=rules)[1] == "argument 0"
    profile = error_profile(lambda x: lax.linalg.cholesky(x, symmetrize_input=False), rules)(np.float32([[3.0]]))
    off = abs(float(np.float16(3**0.5)) / 3**0.5 - 1)
    assert (profile.operations[-1].introduced, profile.carried) == (pytest.approx(off, rel=1e-3),) * 2


def test_what_is_rounded_where_it_is_read():
    def fun(x):
        with jax.named_scope("wide"):
            y = x * 1e-4
        with jax.named_scope("narrow"):
            return y * 4.0

    rules = Rules(FLOAT32, scopes={"narrow": E4M3})
    assert origins(fun, ONES, fmt=rules) == (None, "operand of mul")
    (row,) = [row for row in error_profile(fun, rules)(ONES).operations if row.kind == "operand"]
    assert (row.scope, row.entries, row.underflowed) == ("narrow", 2, 2)


def test_arguments_have_rows_by_their_paths():
    """257 - 256 in bfloat16: all of the error came in with the argument."""
    profile = error_profile(lambda x: x - 256.0, BFLOAT16)(np.float32(257.0))
    argument, difference = profile.operations
    assert (argument.primitive, argument.introduced) == ("argument 0", pytest.approx(1 / 257))
    assert (difference.introduced, difference.carried, profile.carried) == (0, 1, 1)
    assert profile.worst[0] == argument

    def fun(params, x, *, shift):
        return x * params["dense"]["kernel"] + shift + params["exact"]

    params = {"dense": {"kernel": np.float32([1.1])}, "exact": np.float32([0.5])}
    profile = error_profile(fun, E4M3)(params, np.float32([1.0]), shift=np.float32([0.3]))
    rows = [row.primitive for row in profile.operations if row.kind == "argument"]
    assert rows == ["argument 0/dense/kernel", "argument shift"]
    assert max(len(line) for line in str(profile).splitlines() if line.startswith("argument")) <= 80


def test_an_array_that_is_closed_over_is_one_row():
    table = np.float32([1.1, 1.3])
    profile = error_profile(lambda x: (x * table, x + table, x / 1.1, x - 1.1), BFLOAT16)(ONES)
    constants = [row.primitive for row in profile.operations if row.kind == "constant"]
    assert constants == ["constant float32[2]", "constant 1.1", "constant 1.1"]  # written twice


def test_random_bits_are_those_of_the_simulation_where_operands_are_rounded_too():
    def fun(x):
        with jax.named_scope("narrow"):
            y = x / 3.0
        return y * 0.7 + x

    rules = Rules(FLOAT16, scopes={"narrow": E4M3})
    x, key = np.float32(np.linspace(1, 2, 64)), jax.random.key(3)
    profile = error_profile(fun, rules, mode=pl.stochastic)(x, key=key)
    assert_same(profile.value, jax.jit(simulate(fun, rules, mode=pl.stochastic))(x, key=key))


def test_complex_numbers_count_as_their_parts():
    """The place of what is written out is that of the user's operation."""
    z = np.complex64([0.3 + 1.1j, 2.2 - 0.7j])
    profile = error_profile(lambda z: z, BFLOAT16)(z)
    narrow = np.asarray(simulate(lambda z: z, BFLOAT16)(z), np.complex128)
    (argument,) = profile.operations
    assert argument.entries == 4
    off = np.linalg.norm(narrow - z) / np.linalg.norm(z.astype(np.complex128))
    assert (argument.introduced, profile.carried) == (pytest.approx(off, rel=1e-9),) * 2
    assert origins(lambda z: z * (1 + 1e-9j), z) == (None, "constant 1+1e-09j")
    assert origins(lambda z: z * (1 + 1e9j), z) == ("constant 1+1e+09j", None)
    profile = error_profile(lambda z: z * (1 + 1e-9j), FLOAT16)(z)
    assert [row.primitive for row in profile.operations if row.kind == "constant"] == ["constant 1+1e-09j"]
