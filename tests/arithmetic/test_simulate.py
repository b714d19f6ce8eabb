"""How `simulate` behaves: under transformations, in every kind of control flow, with every kind of value.

What the numbers are is the subject of `test_simulate_reference`. Here a function is written once with a rounding `r` around
each of its operations: with `r` the identity it is what a user writes, to be simulated; with `r` a rounding it says what that
means.
"""

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.scipy.sparse.linalg import cg

import precisionlab as pl
from precisionlab.arithmetic import Accumulation, dot, simulate
from precisionlab.arithmetic.rules import Rules
from precisionlab.numerics.blocks import MXFP8_E4M3, round_blocks
from precisionlab.numerics.modes import Stochastic
from tests.cases import assert_same
from tests.oracle import DETERMINISTIC, round_exact

BFLOAT16, E4M3, E5M2 = pl.BFLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2
KEY = jax.random.key(7)
X = np.float32([0.3, -1.1, 0.7, 1.9])
Y = np.float32([1.3, 0.4, -0.6, 2.2])


def same(x: Any) -> Any:
    return x


def to(fmt: Any, x: Any) -> Any:
    return pl.round_to(jnp.asarray(x, jnp.float32), fmt)


def assert_equal_trees(actual: Any, expected: Any, what: str = "") -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_same(got, wanted, what=what)


def differ(a: Any, b: Any) -> bool:
    return bool(np.any(np.asarray(a) != np.asarray(b)))


def assert_on_grid(tree: Any, fmt: Any = BFLOAT16) -> None:
    for leaf in jax.tree.leaves(tree):
        assert_same(leaf, pl.round_to(leaf, fmt), what="off the grid")


# Functions, with what each operation means


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def odd_exp(r, x):
    return r(jnp.exp(x))


@odd_exp.defjvp
def _(r, primals, tangents):
    return odd_exp(r, *primals), 3.0 * jnp.exp(primals[0]) * tangents[0]  # not the derivative, and so to be told apart


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def odd_sine(r, x):
    return r(jnp.sin(x))


odd_sine.defvjp(lambda r, x: (odd_sine(r, x), x), lambda _, x, ct: (5.0 * jnp.cos(x) * ct,))


def plain(r, x, y):
    return r(jnp.sin(r(x * y))), r(jnp.exp(r(x / r(3.7))))


def own_jvp(r, x, y):
    return r(odd_exp(r, r(x * y)) + y)


def own_vjp(r, x, y):
    return r(odd_sine(r, r(x * y)) * y)


def solved(r, x, y):
    diagonal = r(r(x * x) + r(0.7))
    # Its derivative is the program's own, at its own solution, and so is not that of a rounded one.
    return r(lax.custom_linear_solve(lambda v: diagonal * v, y, lambda _, b: b / diagonal, symmetric=True))


def rematerialized(r, x, y):
    return jax.checkpoint(lambda x: r(r(jnp.sin(r(x * y))) * x))(x)


def scanned(r, x, y):
    def body(state, value):
        state = r(r(state * y) + value)
        return state, r(jnp.tanh(state))

    return lax.scan(body, x, jnp.stack([x, y, x]))


def conditional(r, x, y):
    first = lax.cond(x[0] > 0, lambda x: r(x * y), lambda x: r(x + y), x)
    return first, lax.cond(x[0] < 0, jnp.negative, lambda x: r(x / y), x)


def switched(r, x, y):
    branches = [lambda x: r(x * y), lambda x: r(jnp.sin(x)), lambda x: r(x - y)]
    return [lax.switch(jnp.int32(number), branches, x) for number in range(3)]


def repeated(r, x, y):
    return lax.fori_loop(0, 3, lambda turn, state: r(r(state * y) + r(turn.astype(jnp.float32))), x)


def nested(r, x, y):
    @jax.jit
    def inner(x):
        return r(jax.jit(lambda x: r(x * y))(x) + x)

    return inner(inner(x))


def looped(r, x, y):
    return lax.while_loop(lambda state: r(jnp.sum(jnp.abs(state))) < 9.0, lambda state: r(state * r(1.3)), r(x + y))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (plain, own_jvp, own_vjp, solved, rematerialized, scanned, conditional, switched, repeated, nested, looped)
}
ALL = pytest.mark.parametrize("name", FUNCTIONS)
DIFFERENTIABLE = pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "looped"])


def total(fun: Callable[..., Any], r: Any) -> Callable[..., Any]:
    """A scalar with weights of both signs, so that every path of the gradient counts."""

    def loss(x, y):
        leaves = jax.tree.leaves(fun(r, x, y))
        return r(jnp.sum(jnp.concatenate([leaf.reshape(-1) for leaf in leaves])))

    return loss


@pytest.mark.sampled(1)
@ALL
def test_every_operation_is_rounded(name):
    fun = FUNCTIONS[name]
    simulated = simulate(partial(fun, same), BFLOAT16)
    r = partial(to, BFLOAT16)
    wanted = jax.jit(partial(fun, r))(r(X), r(Y))
    assert_equal_trees(simulated(X, Y), wanted, name)
    assert_equal_trees(jax.jit(simulated)(X, Y), wanted, f"{name}, jit")
    assert any(map(differ, jax.tree.leaves(wanted), jax.tree.leaves(fun(same, X, Y))))


@pytest.mark.sampled(2)
@DIFFERENTIABLE
def test_the_derivative_is_straight_through(name):
    fun, r = FUNCTIONS[name], partial(to, BFLOAT16)
    got = jax.jit(jax.grad(simulate(total(fun, same), BFLOAT16), argnums=(0, 1)))(X, Y)
    wanted = jax.jit(jax.grad(total(fun, r), argnums=(0, 1)))(r(X), r(Y))
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert any(np.any(np.asarray(x) != to(BFLOAT16, x)) for x in got)  # its own operations are not rounded


@pytest.mark.sampled(2)
@DIFFERENTIABLE
def test_the_backward_pass_is_rounded(name):
    loss = total(FUNCTIONS[name], same)
    gradient = jax.grad(loss, argnums=(0, 1))
    got = jax.jit(simulate(gradient, BFLOAT16))(X, Y)
    assert_on_grid(got)
    for mine, theirs in zip(got, jax.jit(gradient)(to(BFLOAT16, X), to(BFLOAT16, Y)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.15, atol=0.15)


def linear(x):
    """Of four numbers; each operation of another kind in the simulation."""
    y = lax.fori_loop(0, 2, lambda _, y: 1.1 * y, x) - jnp.cumsum(x) / 3 + jnp.mean(x) + 0.0
    y = lax.cond(True, jax.jit(lambda y: 0.7 * y), lambda y: y, y)
    y = jnp.zeros(4, jnp.float32).at[jnp.array([0, 2, 2, 3])].add(jax.checkpoint(lambda y: 0.3 * y)(y)) + y
    y = lax.conv(y.reshape(1, 1, 4), jnp.float32([[[0.3, 0.7]]]), (1,), "SAME")[0, 0]
    z = jnp.real(lax.complex(y, y) * np.complex64(1.1 + 2.3j)) + (y.astype(jnp.bfloat16) * 1.7).astype(jnp.float32)
    return jnp.outer(X, Y) @ z + jax.jvp(lambda v: jnp.sin(v) * v, (X,), (z,))[1]


TRANSPOSED = {
    "bfloat16": lambda fun: simulate(fun, BFLOAT16),
    "as written": lambda fun: simulate(fun, None),
    "upward": lambda fun: simulate(fun, pl.ieee_format(8, 14), mode=pl.upward),
    "stochastic": lambda fun: partial(simulate(fun, BFLOAT16, mode=pl.stochastic), key=KEY),
    "accumulation": lambda fun: simulate(fun, BFLOAT16, accumulation=Accumulation(accumulate=BFLOAT16)),
    "traced": lambda fun: simulate(fun, jax.tree.map(jnp.asarray, BFLOAT16), mode=pl.upward),
    "float64": lambda fun: simulate(fun, BFLOAT16, carrier=jnp.float64),
}


@pytest.mark.sampled("as written", "upward")
@pytest.mark.parametrize("how", TRANSPOSED)
def test_a_linear_function_is_transposed(how):
    """JAX takes what is computed from the argument to be linear in it, the operations on bits as well."""
    x, cotangent = jnp.asarray(X), jnp.asarray(Y)
    with jax.enable_x64(how == "float64"):
        simulated = TRANSPOSED[how](linear)
        wanted = jax.jit(lambda: jax.vjp(simulated, x)[1](cotangent))()[0]
        np.testing.assert_allclose(wanted, jax.linear_transpose(linear, x)(cotangent)[0], rtol=0.05)
        for function in (simulated, jax.jit(simulated)):
            np.testing.assert_allclose(jax.jit(jax.linear_transpose(function, x))(cotangent)[0], wanted, rtol=1e-5)


def test_a_rule_for_a_derivative_may_be_a_simulated_branch():
    """JAX transposes the rule itself (jax-ml/jax#14026)."""

    def switched(x, choice):
        return lax.switch(jnp.floor(choice).astype(jnp.int32), [lambda x: 1.1 * x.sum(), lambda x: 1 - x.sum()], x)

    own = jax.custom_jvp(simulate(switched, BFLOAT16))
    own.defjvp(lambda primals, tangents: (own(*primals), simulate(switched, BFLOAT16)(tangents[0], primals[1])))
    np.testing.assert_array_equal(jax.grad(own)(X, 0.0), np.full(4, to(BFLOAT16, 1.1)))


def test_derivatives_at_zero_in_the_float64_carrier():
    """Where float32 is widened as an integer: zero is below its smallest normal, as subnormals are."""
    with jax.enable_x64(True):
        gradient = jax.grad(simulate(lambda x: 3 * x, pl.FLOAT16, carrier=jnp.float64))
        assert [float(gradient(jnp.float32(x))) for x in (0.0, 1e-40, 1.0)] == [3.0, 3.0, 3.0]


def test_second_derivatives():
    def fun(r, x):
        return r(odd_exp(r, r(jnp.sin(r(x * x)))) * x)

    r = partial(to, BFLOAT16)
    simulated = simulate(partial(fun, same), BFLOAT16)
    for twice in (lambda f: jax.grad(jax.grad(f)), lambda f: jax.jacfwd(jax.grad(f)), lambda f: jax.grad(jax.jacfwd(f))):
        np.testing.assert_allclose(jax.jit(twice(simulated))(1.3), jax.jit(twice(partial(fun, r)))(r(1.3)), rtol=1e-5)
    assert_on_grid(jax.jit(simulate(jax.grad(jax.grad(partial(fun, same))), BFLOAT16))(1.3))


def test_forward_derivative_beside_backward():
    simulated = simulate(partial(own_jvp, same), BFLOAT16)
    forward = jax.jacfwd(simulated)(X, Y)
    np.testing.assert_allclose(forward, jax.jacrev(simulated)(X, Y), rtol=1e-6)
    assert_on_grid(simulate(jax.jacfwd(partial(own_jvp, same)), BFLOAT16)(X, Y))


def unrolled(step, x):
    for _ in range(3):
        x = step(x)
    return x


@pytest.mark.parametrize("how", ["simulate", "round_to", "dot"])
def test_second_derivatives_through_a_loop_are_those_without_one(how):
    """JAX before 0.12 drops the rule of a `custom_jvp` where the derivative of a scan is taken again."""

    def step(x):
        if how == "dot":
            return pl.dot(jnp.sin(x)[None], x[:, None], multiply=BFLOAT16, accumulate=pl.FLOAT32)[0] * jnp.ones(3)
        return pl.round_to(jnp.sin(x) * x, BFLOAT16) if how == "round_to" else jnp.sin(x) * x

    def looped(x):
        return lax.scan(lambda x, _: (step(x), None), x, None, length=3)[0]

    def curvature(fun):
        fun = simulate(fun, BFLOAT16) if how == "simulate" else fun
        return jax.jvp(jax.grad(lambda x: jnp.sum(fun(x))), (jnp.float32([0.5, 0.7, 0.9]),), (jnp.ones(3),))[1]

    np.testing.assert_allclose(curvature(looped), curvature(partial(unrolled, step)), rtol=1e-4)


def test_a_gradient_of_a_simulated_gradient_is_straight_through_twice():
    """The inner gradient is rounded operation by operation, the outer one differentiates that."""

    def cube(x):
        return x * x * x

    outer = jax.grad(simulate(jax.grad(cube), BFLOAT16))
    np.testing.assert_allclose(outer(1.1), 6 * np.float64(to(BFLOAT16, 1.1)), rtol=0.01)


def test_conjugate_gradients():
    """A solver with a loop inside, whose derivative is another solve, and exact."""
    matrix = np.float32([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]])

    def solve(b):
        return cg(lambda v: matrix @ v, b, maxiter=10)[0]

    b, weights = np.float32([1.0, -2.0, 0.5]), np.float32([1.0, 2.0, -1.0])
    got = jax.jit(simulate(solve, BFLOAT16))(b)
    assert_on_grid(got)
    np.testing.assert_allclose(got, np.linalg.solve(matrix, b), rtol=0.03)
    gradient = jax.jit(jax.grad(lambda b: jnp.vdot(simulate(solve, BFLOAT16)(b), weights)))(b)
    np.testing.assert_allclose(gradient, np.linalg.solve(matrix, weights), rtol=1e-4)
    rounded = jax.jit(simulate(jax.grad(lambda b: jnp.vdot(solve(b), weights)), BFLOAT16))(b)
    assert_on_grid(rounded)
    np.testing.assert_allclose(rounded, gradient, rtol=0.03, atol=0.01)


# Under and around transformations


@pytest.mark.slow
def test_stacked_formats_are_one_compilation():
    names = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
    traces = []

    def fun(x, y):
        traces.append(None)
        a, b = plain(same, x, y)
        return own_jvp(same, a, b), scanned(same, x, y)

    compiled = jax.jit(jax.vmap(lambda fmt, x, y: simulate(fun, fmt)(x, y), in_axes=(0, None, None)))
    for offset in (0, 1):
        chosen = [pl.FORMATS[name] for name in (*names[offset:], *names[:offset])]
        stacked = compiled(pl.stack_formats(chosen), X, Y)
        if offset == 0:
            wanted = [jax.jit(simulate(fun, fmt))(X, Y) for fmt in chosen]
            for at, one in enumerate(wanted):
                assert_equal_trees(jax.tree.map(lambda leaf: leaf[at], stacked), one, names[at])  # noqa: B023
    assert compiled._cache_size() == 1
    assert len(traces) == 1 + len(names)


@pytest.mark.slow
def test_gradients_over_stacked_formats():
    chosen = [BFLOAT16, pl.FLOAT16]
    loss = total(lambda r, x, y: (own_jvp(r, x, y), own_vjp(r, x, y), rematerialized(r, x, y)), same)

    def both(fmt):
        return jax.grad(simulate(loss, fmt))(X, Y), simulate(jax.grad(loss), fmt)(X, Y)

    stacked = jax.jit(jax.vmap(both))(pl.stack_formats(chosen))
    for at, fmt in enumerate(chosen):
        outer, inner = both(fmt)
        np.testing.assert_allclose(stacked[0][at], outer, rtol=1e-6)
        assert_same(stacked[1][at], inner)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["plain", "own_vjp", "scanned", "conditional", "looped"])
def test_data_under_vmap(name):
    simulated = simulate(partial(FUNCTIONS[name], same), BFLOAT16)
    xs, ys = np.stack([X, Y, -X]), np.stack([Y, X, Y])
    mapped = jax.jit(jax.vmap(simulated))(xs, ys)
    inside = jax.jit(simulate(jax.vmap(partial(FUNCTIONS[name], same)), BFLOAT16))(xs, ys)
    assert_equal_trees(mapped, inside)
    alone = jax.jit(simulated)
    for at in range(3):
        assert_equal_trees(jax.tree.map(lambda leaf: leaf[at], mapped), alone(xs[at], ys[at]))  # noqa: B023


TRANSFORMATIONS: dict[str, Callable[..., Any]] = {
    "vmap": jax.vmap,
    "jit of vmap": lambda fun: jax.jit(jax.vmap(fun)),
    "vmap of grad": lambda fun: jax.vmap(jax.grad(fun)),
    "hessian": lambda fun: jax.vmap(jax.hessian(fun)),
    "linearize": lambda fun: lambda x: jax.linearize(fun, x)[1](x),
    "scan": lambda fun: lambda x: lax.scan(lambda c, v: (c, fun(v)), 0, x)[1],
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_constants_first_met_within_a_transformation(name):
    """They are rounded at once and kept; these ones no other test has."""
    number = list(TRANSFORMATIONS).index(name)
    simulated = simulate(lambda x: jnp.sin(x) * (3.7 + number / 64) / (1.3 + number / 64), E4M3)
    first = TRANSFORMATIONS[name](simulated)(X)
    assert np.all(np.isfinite(first))
    assert_same(TRANSFORMATIONS[name](simulated)(X), first)


def test_inside_a_scan_over_steps():
    @simulate_in(BFLOAT16)
    def step(x):
        return x - jnp.float32(0.1) * jnp.sin(x) / 3.0

    _, path = lax.scan(lambda x, _: (step(x), step(x)), jnp.asarray(X), length=4)
    x = X
    for got in path:
        x = step(x)
        assert_same(got, x)


def simulate_in(*args: Any, **options: Any) -> Callable[..., Any]:
    return lambda fun: simulate(fun, *args, **options)


@pytest.mark.slow
def test_simulations_nest():
    """The narrower format inside decides; a wider one inside is rounded again by the one outside."""
    narrow = simulate(partial(plain, same), E5M2)
    alone = jax.jit(lambda x, y: narrow(to(BFLOAT16, x), to(BFLOAT16, y)))(X, Y)
    assert_equal_trees(jax.jit(simulate(narrow, BFLOAT16))(X, Y), alone)
    wide = simulate(lambda x, y: x * y, pl.TFLOAT32)
    assert_same(simulate(wide, E5M2)(X, Y), simulate(lambda x, y: x * y, E5M2)(X, Y))
    within_a_gradient = simulate(jax.grad(lambda x, y: jnp.sum(narrow(x, y)[0])), BFLOAT16)
    assert_on_grid(jax.jit(within_a_gradient)(X, Y))


def test_a_reduction_by_a_function():
    """Its combination is rounded wherever it is applied; in which order is the backend's business."""
    x = np.float32([1.1, 2.3, 0.7])
    r = partial(to, BFLOAT16)

    def combine(a, b):
        return a * b + np.float32(0.3)

    def apply(a, b):
        return float(r(r(np.float32(a) * np.float32(b)) + r(0.3)))

    possible = set()
    for a, b, c, d in permutations([1.0, *map(float, r(x))]):
        possible |= {apply(apply(apply(a, b), c), d), apply(apply(a, b), apply(c, d))}
    simulated = simulate(lambda x: lax.reduce(x, np.float32(1.0), combine, (0,)), BFLOAT16)
    assert float(simulated(x)) in possible
    assert float(jax.jit(simulated)(x)) in possible
    assert float(lax.reduce(x, np.float32(1.0), combine, (0,))) not in possible


def test_other_loops():
    r = partial(to, BFLOAT16)
    x = np.float32([1.1, 2.3, 0.7, 3.3])
    rx = [r(v) for v in x]
    pair = r(rx[0] + rx[1])
    wanted = [rx[0], pair, r(pair + rx[2]), r(pair + r(rx[2] + rx[3]))]
    assert_same(simulate(partial(lax.associative_scan, jnp.add), BFLOAT16)(x), jnp.stack(wanted))
    assert_same(simulate(partial(lax.map, lambda v: v * v / 3.0), BFLOAT16)(x), r(r(r(x) * r(x)) / r(3.0)))


# Values of every kind


def test_what_is_no_float_is_left_alone():
    large = np.int32(2**30 + 1)

    def fun(i, b, k, u, x):
        return i + 1, ~b, k, u - np.uint32(1), jnp.argmax(x), i.astype(jnp.float32), jax.random.key_data(k), i // 3

    args = (large, np.bool_(True), KEY, np.uint32(2**32 - 1), X)
    got = jax.jit(simulate(fun, E4M3))(*args)
    assert got[0] == 2**30 + 2
    assert not got[1]
    assert got[2].dtype == KEY.dtype
    assert jnp.all(got[6] == jax.random.key_data(KEY))
    assert got[3] == np.uint32(2**32 - 2)
    assert got[4] == 3
    assert jnp.isnan(got[5])  # 2^30 as a float does not fit
    assert got[7] == large // 3


def test_what_is_no_array_passes_through():
    def fun(x, n, name, act, options):
        return {"y": act(x) * n, "name": name, "act": act, "none": None, "options": options, "n": n, "half": 0.1}

    got = simulate(fun, BFLOAT16)(X, 3, "layer", jnp.sin, {"a": None, "b": True})
    assert (got["name"], got["act"], got["none"], got["n"], got["half"]) == ("layer", jnp.sin, None, 3, 0.1)
    assert got["options"] == {"a": None, "b": True}
    r = partial(to, BFLOAT16)
    assert_same(got["y"], r(r(jnp.sin(r(X))) * 3.0))


def test_a_python_number_is_a_constant_and_constants_are_rounded():
    r = partial(to, BFLOAT16)
    closed_over = jnp.asarray(Y)
    assert_same(simulate(lambda x, c: x * c, BFLOAT16)(X, 0.1), r(r(X) * r(0.1)))
    assert_same(simulate(lambda x: x + closed_over, BFLOAT16)(X), r(r(X) + r(Y)))
    assert_same(simulate(lambda x: x + Y, BFLOAT16)(X), r(r(X) + r(Y)))
    assert_same(simulate(lambda: closed_over, BFLOAT16)(), r(Y))  # one that nothing reads
    assert_same(simulate(lambda x: x, BFLOAT16)(X), r(X))


def test_keyword_arguments_and_names():
    def weigh(x, *, scale, key=None):
        "Weigh."
        return x * scale

    simulated = simulate(weigh, BFLOAT16)
    assert (simulated.__name__, simulated.__doc__) == ("weigh", "Weigh.")
    assert_same(simulated(X, scale=Y), to(BFLOAT16, to(BFLOAT16, X) * to(BFLOAT16, Y)))


def test_a_key_that_nothing_draws_with_goes_to_the_function():
    def noisy(x, *, key):
        return x + jax.random.uniform(key, x.shape)

    r = partial(to, BFLOAT16)
    noise = pl.round_to(jax.random.uniform(KEY, X.shape), BFLOAT16, pl.downward)
    assert_same(simulate(noisy, BFLOAT16)(X, key=KEY), r(r(X) + noise))
    with pytest.raises(TypeError, match="key"):  # what is drawn with is not the function's
        simulate(noisy, BFLOAT16, mode=pl.stochastic)(X, key=KEY)


# The program's own dtypes


def test_as_written_each_operation_is_rounded_to_its_own_dtype():
    """Against NumPy, whose bfloat16 and float16 operations are float32 ones rounded."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 500)).astype(np.float32) * 3

    def fun(x, y, cast):
        a, b = cast(x, "bfloat16"), cast(y, "bfloat16")
        product, quotient = a * b + a, a / b
        c, d = cast(product, "float16"), cast(cast(x, "float8_e4m3fn"), "float16")
        return product, quotient, c * d - c, cast(c, "float32") * x, cast(quotient, "float8_e5m2")

    def by_numpy(value, name):
        return value.astype(np.float32).astype(getattr(ml_dtypes, name, name))

    got = jax.jit(simulate(partial(fun, cast=lambda value, name: value.astype(name)), None))(x, y)
    for mine, theirs in zip(got, fun(x, y, by_numpy), strict=True):
        assert_same(np.asarray(mine).astype(np.float32), np.asarray(theirs).astype(np.float32))
        assert mine.dtype == theirs.dtype


def test_as_written_the_compiler_elides_nothing():
    """A sum in bfloat16 that XLA would hold in float32."""
    a, b, c = np.random.default_rng(2).normal(size=(3, 500)).astype(ml_dtypes.bfloat16)
    got = jax.jit(simulate(lambda a, b, c: ((a * b) * c).astype(jnp.float32), None))(a, b, c)
    assert_same(got, ((a * b) * c).astype(np.float32))


def test_as_written_float32_is_float32():
    a, b, c = np.random.default_rng(3).normal(size=(3, 2000)).astype(np.float32)
    got = jax.jit(simulate(lambda a, b, c: a * b + c, None))(a, b, c)
    assert_same(got, a * b + c)


def test_a_format_replaces_the_dtypes_that_the_program_names():
    def fun(x):
        narrow = x.astype(jnp.bfloat16)
        small = narrow.astype(jnp.float8_e5m2)
        return narrow * narrow, small, jnp.dot(narrow, narrow, preferred_element_type=jnp.float32), narrow.astype(jnp.float16)

    got = jax.jit(simulate(fun, pl.TFLOAT32))(X)
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float8_e5m2, jnp.float32, jnp.float16]
    r = partial(to, pl.TFLOAT32)
    assert_same(got[0], r(r(X) * r(X)).astype(jnp.bfloat16))  # the result's dtype, at the very end
    assert_same(got[2], r(jnp.dot(r(X), r(X), precision="highest")))
    in_e4m3 = jax.jit(simulate(fun, E4M3))(X)
    assert_same(in_e4m3[2], to(E4M3, jnp.dot(to(E4M3, X), to(E4M3, X))))


def test_arguments_of_narrow_dtypes():
    x = X.astype(ml_dtypes.bfloat16)
    got = jax.jit(simulate(lambda x: x * x, E5M2))(x)
    assert_same(got, to(E5M2, to(E5M2, x.astype(np.float32)) ** 2).astype(jnp.bfloat16))
    eight = X.astype(ml_dtypes.float8_e4m3fn)
    got = jax.jit(simulate(lambda x: x.astype(jnp.float32) / 3.0, BFLOAT16))(eight)
    assert_same(got, to(BFLOAT16, eight.astype(np.float32) / np.float32(3)))


def test_the_bits_are_those_of_the_programs_dtype():
    def next_one(x):
        bits = lax.bitcast_convert_type(x, jnp.uint16)
        return lax.bitcast_convert_type(bits + np.uint16(1), jnp.bfloat16)

    x = X.astype(ml_dtypes.bfloat16)
    assert_same(simulate(next_one, None)(x), (x.view(np.uint16) + np.uint16(1)).view(ml_dtypes.bfloat16))
    bits = simulate(lambda x: lax.bitcast_convert_type(x, jnp.uint32), BFLOAT16)(X)
    np.testing.assert_array_equal(bits, np.asarray(to(BFLOAT16, X)).view(np.uint32))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float4_e2m1fn"])
def test_the_extremes_of_a_dtype_become_those_of_the_format(fmt):
    """Masks, and the maxima that start at -inf."""
    fmt = pl.FORMATS[fmt]
    mask = X > 0
    infinite = -math.inf if fmt.overflow == math.inf else -fmt.largest

    def fun(x):
        lowest = jnp.finfo(jnp.float32).min
        masked, bounded = jnp.where(mask, x, -jnp.inf), jnp.where(mask, x, lowest)
        array = jnp.where(mask, x, jnp.asarray([-np.inf] * 4, jnp.float32))
        where = jax.nn.softmax(x, where=mask)
        softmaxes = jax.nn.softmax(masked), jax.nn.softmax(bounded), where
        return masked, bounded, array, jnp.max(masked, initial=-jnp.inf), *softmaxes

    masked, bounded, array, largest, *softmaxes = jax.jit(simulate(fun, fmt))(X)
    wanted = np.where(mask, to(fmt, X), np.float32(infinite))
    assert_same(masked, wanted)
    assert_same(array, wanted)
    assert_same(bounded, np.where(mask, to(fmt, X), np.float32(-fmt.largest)))
    assert_same(largest, np.max(to(fmt, X)))
    for softmax in softmaxes:
        assert np.all(np.isfinite(softmax))
        assert_on_grid(softmax, fmt)
        assert np.all(softmax[~mask] == 0)
        assert np.argmax(softmax) == 3


def test_next_value_is_the_formats():
    def around(x):
        return jnp.nextafter(x, jnp.inf), jnp.nextafter(x, -jnp.inf), jnp.nextafter(x, x)

    up, down, there = jax.jit(simulate(around, E4M3))(X)
    below, above = jax.jit(lambda x: pl.neighbors(to(E4M3, x), E4M3))(X)
    assert_same(up, above)
    assert_same(down, below)
    assert_same(there, to(E4M3, X))


def test_printing_passes(capfd):
    def fun(x):
        jax.debug.print("half is {}", x * 0.5)
        return x

    jax.block_until_ready(jax.jit(simulate(fun, E5M2))(1.1))
    jax.effects_barrier()
    assert capfd.readouterr().out == "half is 0.5\n"


# Random numbers


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["bfloat16", "float4_e2m1fn"])
def test_draws_are_single_operations(fmt):
    """A uniform number rounded step by step could become 1, a normal one infinite."""
    fmt = pl.FORMATS[fmt]

    def fun(key, old, keys):
        a, b, c, d = jax.random.split(key, 4)
        uniform = jax.random.uniform(a, (5000,)), jax.random.uniform(old, (5000,)), jax.vmap(jax.random.uniform)(keys)
        exactly = jax.random.randint(c, (50,), 0, 1000), jax.random.bernoulli(c, 0.5, (50,)), jax.random.bits(d, (50,))
        real = jax.random.normal(b, (5000,)), jax.random.gumbel(b, (50,)), jax.random.exponential(b, (5000,))
        return uniform, real, exactly

    args = (KEY, jax.random.PRNGKey(3), jax.random.split(jax.random.PRNGKey(4), 5000))
    native = jax.jit(fun)(*args)
    uniform, real, exactly = jax.jit(simulate(fun, fmt))(*args)
    for mine, theirs in zip(uniform, native[0], strict=True):
        assert_same(mine, pl.round_to(theirs, fmt, pl.downward))
        assert np.max(mine) < 1
    for mine, theirs in zip(real, native[1], strict=True):
        assert_same(mine, to(fmt, theirs))
        assert np.all(np.isfinite(mine))
    assert_equal_trees(exactly, native[2])


@pytest.mark.slow
def test_draws_with_parameters_and_their_gradients():
    def mean(low, key):
        return jnp.mean(jax.random.uniform(key, (64,), minval=low, maxval=1.0))

    inside = simulate(jax.grad(mean), BFLOAT16)(0.25, KEY)
    outside = jax.grad(simulate(mean, BFLOAT16))(0.25, KEY)
    native = jax.grad(mean)(0.25, KEY)
    assert_on_grid(inside)
    np.testing.assert_allclose([inside, outside], native, rtol=0.02)


# The carrier


@pytest.mark.slow
def test_float64_carrier():
    tiny = np.float32(2.0**-130)
    with jax.enable_x64(True):
        fun = simulate(lambda x, y: (x * y, x + y, jnp.sin(x), x.astype(jnp.bfloat16)), BFLOAT16, carrier=jnp.float64)
        product, total, sine, narrow = jax.jit(fun)(np.float32([tiny, 1.5, 3 * tiny]), np.float32([0.5, tiny, 1.0625]))
        assert [x.dtype for x in (product, total, sine, narrow)] == [jnp.float32] * 3 + [jnp.bfloat16]
        assert np.asarray(product).tolist() == [2.0**-131, 1.5 * 2.0**-130, 26 * 2.0**-133]  # a tie, at 25.5
        assert np.asarray(total).tolist() == [0.5, 1.5, 1.0625]
        assert np.asarray(sine).tolist() == [2.0**-130, float(to(BFLOAT16, math.sin(1.5))), 3 * 2.0**-130]
        assert np.asarray(narrow).astype(np.float64).tolist() == [2.0**-130, 1.5, 3 * 2.0**-130]
        assert fun(tiny, tiny)[0] == 0
        in_float64 = simulate(lambda x: x / 3.0, pl.FLOAT64, carrier="float64")
        assert float(in_float64(jnp.float64(1.0))) == 1 / 3
        assert in_float64(jnp.float32(1.0)).dtype == jnp.float32


@pytest.mark.slow
def test_float64_programs_are_carried_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray([0.1, 0.2], jnp.float64)
        got = simulate(lambda x: (x * x, x.astype(jnp.float32) * np.float32(3)), None)(x)
        assert_same(got[0], np.asarray(x) ** 2)
        assert_same(got[1], np.asarray(x).astype(np.float32) * np.float32(3))
        assert_same(simulate(lambda x: x * x, BFLOAT16)(x), to(BFLOAT16, to(BFLOAT16, x) ** 2).astype(jnp.float64))


# Correct rounding

FUSED = {
    "product and sum": lambda a, b, c: a * b + c,
    "product and difference": lambda a, b, c: c - a * b,
    "two products": lambda a, b, c: a * b + b * c,
    "square and sum": lambda a, _, c: lax.square(a) + c,
    "scaled sum": lambda a, _, c: a * np.float32(1.1) + c,
    "quotient by a number": lambda a, *_: a / np.float32(3),
    "quotient by a scalar": lambda a, _, c: a / c[0],
    "quotient by a row": lambda a, _, c: (a.reshape(-1, 50) / c[:50][None]).reshape(-1),
    "quotient by a column": lambda a, _, c: (a.reshape(50, -1) / c[:50][:, None]).reshape(-1),
    "inverse": lambda a, *_: np.float32(1) / a,
    "quotient and sum": lambda a, b, c: a / b + c,
}


@pytest.mark.parametrize(
    ("fmt", "mode"),
    [(pl.FLOAT32, pl.nearest_even), (None, pl.nearest_even), (pl.FLOAT32, pl.stochastic)],
    ids=["float32", "as written", "stochastic"],
)
def test_float32_operations_stay_apart(fmt, mode):
    """XLA contracts products with sums, and turns a division by a broadcast scalar into a multiplication by its inverse."""
    a, b, c = np.random.default_rng(4).normal(size=(3, 2500)).astype(np.float32)

    def by_numpy(fun):
        return fun(a, b, c)

    def square(x):
        return x * x

    random = {"key": jax.random.key(0)} if mode is pl.stochastic else {}
    simulated = jax.jit(simulate(lambda a, b, c: [fun(a, b, c) for fun in FUSED.values()], fmt, mode=mode))(a, b, c, **random)
    for (name, fun), got in zip(FUSED.items(), simulated, strict=True):
        wanted = a * a + c if name == "square and sum" else by_numpy(fun)
        assert_same(got, wanted, what=name)


def test_float32_divisions_that_a_loop_divides_by():
    a = np.random.default_rng(5).normal(size=(100,)).astype(np.float32)
    divisors = np.float32([3.0, 7.0, 0.1])
    _, got = jax.jit(simulate(lambda a: lax.scan(lambda s, d: (s, s / d), a, jnp.asarray(divisors)), pl.FLOAT32))(a)
    assert_same(got, a[None] / divisors[:, None])
    assert_same(jax.jit(simulate(lambda a: a / jnp.sum(a), pl.FLOAT32))(a[:2]), a[:2] / (a[0] + a[1]))


def exact_root(x: Fraction) -> Fraction:
    """To 100 bits, and half a bit more where it does not end there."""
    root = math.isqrt(int(x * 4**150))
    return Fraction(2 * root + (root * root != x * 4**150), 2**151)


EXACT = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "div": (lambda a, b: a / b, lambda a, b: a / b),
    "sqrt": (lambda a, _: jnp.sqrt(jnp.abs(a)), lambda a, _: exact_root(abs(a))),
    "square": (lambda a, _: lax.square(a), lambda a, _: a * a),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "fmt", [pl.FLOAT32, pl.ieee_format(8, 22), pl.ieee_format(8, 14), BFLOAT16, pl.FLOAT16], ids=lambda fmt: pl.name_of(fmt)
)
def test_basic_operations_are_correctly_rounded(fmt):
    """Of operands on the grid, near each other half of the time, so that sums cancel and quotients lie near one."""
    rng = np.random.default_rng(6)
    a = rng.normal(size=300).astype(np.float32)
    near, far = a * 2.0 ** rng.integers(-3, 3, 300) * (1 + 2.0**-8), rng.normal(size=300) * 2.0 ** rng.integers(-12, 12, 300)
    b = np.where(rng.random(300) < 0.5, near, far).astype(np.float32)
    a, b = np.asarray(to(fmt, a)), np.asarray(to(fmt, b))
    rationals = [(Fraction(float(x)), Fraction(float(y))) for x, y in zip(a, b, strict=True)]

    def every(a, b):
        return [mine(a, b) for mine, _ in EXACT.values()]

    exactly = {name: [law(x, y) for x, y in rationals] for name, (_, law) in EXACT.items()}
    for mode in DETERMINISTIC:
        simulated = jax.jit(simulate(every, fmt, mode=pl.MODES[mode]))(a, b)
        for (name, values), got in zip(exactly.items(), simulated, strict=True):
            wanted = np.float32([rounded_exactly(value, fmt, mode) for value in values])
            assert_same(got + np.float32(0), wanted + np.float32(0), a, what=f"{name}, {mode}")


def rounded_exactly(x: Fraction, fmt: Any, mode: str) -> float:
    """`round_exact` takes whatever behaves as a rational; zero has no sign there."""
    return 0.0 if x == 0 else round_exact(x, fmt, mode)  # type: ignore[arg-type]


# How terms are summed


@pytest.mark.slow
def test_accumulation_in_products():
    how = Accumulation(accumulate=BFLOAT16, chunk=4)
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 3, 11)).astype(np.float32), rng.normal(size=(2, 11, 5)).astype(np.float32)
    r, options = partial(to, BFLOAT16), {"multiply": None, "accumulate": BFLOAT16, "chunk": 4}
    simulated = partial(simulate, fmt_or_policy=BFLOAT16, accumulation=how)
    wanted = dot(r(a), r(b), **options)
    assert_same(jax.jit(simulated(jnp.matmul))(a, b), wanted)
    assert_same(jax.jit(simulated(lambda a, b: jnp.einsum("bik,bkj->jbi", a, b)))(a, b), jnp.transpose(wanted, (2, 0, 1)))
    assert np.any(np.asarray(wanted) != np.asarray(simulate(jnp.matmul, BFLOAT16)(a, b)))
    gradient = jax.jit(simulated(jax.grad(lambda a, b: jnp.sum(jnp.matmul(a, b)))))(a, b)
    ones = np.ones((2, 3, 5), np.float32)
    assert_same(gradient, dot(ones, jnp.swapaxes(r(b), 1, 2), **options))


def test_accumulation_in_convolutions():
    how = Accumulation(multiply=BFLOAT16, accumulate=BFLOAT16)
    rng = np.random.default_rng(9)
    x, kernel = rng.normal(size=(9,)).astype(np.float32), rng.normal(size=(4,)).astype(np.float32)
    r = partial(to, BFLOAT16)

    def convolve(x, kernel):
        return lax.conv_general_dilated(x[None, None], kernel[None, None], (1,), "VALID")[0, 0]

    windows = jnp.stack([r(x)[at : at + 4] for at in range(6)])
    got = jax.jit(simulate(convolve, BFLOAT16, accumulation=how))(x, kernel)
    assert_same(got, dot(windows, r(kernel), multiply=BFLOAT16, accumulate=BFLOAT16))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", [Accumulation(accumulate=BFLOAT16), Accumulation(accumulate=E5M2, order="pairwise")])
def test_accumulation_in_sums(how):
    x = np.random.default_rng(10).uniform(1, 2, size=(3, 21)).astype(np.float32)
    r, ones = partial(to, BFLOAT16), np.ones(21, np.float32)
    options = {"multiply": None, "accumulate": how.accumulate, "order": how.order}
    whole, running, back = jax.jit(
        simulate(
            lambda x: (jnp.sum(x, axis=1), jnp.cumsum(x, axis=1), lax.cumsum(x, axis=1, reverse=True)),
            BFLOAT16,
            accumulation=how,
        )
    )(x)
    assert_same(whole, dot(r(x), ones, **options))
    sequential = {"multiply": None, "accumulate": how.accumulate}
    for upto in (1, 2, 13, 21):
        assert_same(running[:, upto - 1], dot(r(x)[:, :upto], ones[:upto], **sequential))
        assert_same(back[:, -upto], dot(r(x)[:, ::-1][:, :upto], ones[:upto], **sequential))


@pytest.mark.slow
def test_block_formats_in_products():
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=(3, 40)).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    r = partial(to, BFLOAT16)
    rules = Rules(BFLOAT16, primitives={"dot_general": MXFP8_E4M3})
    blocks = round_blocks(r(a), MXFP8_E4M3, axis=1), round_blocks(r(b), MXFP8_E4M3, axis=0)
    for order in ("ik,kj->ij", "ik,kj->ji"):
        got = jax.jit(simulate(lambda a, b: jnp.einsum(order, a, b) + 0.0, rules))(a, b)  # noqa: B023
        assert_same(got, r(jnp.einsum(order, *blocks, precision="highest")))
    summed = jax.jit(simulate(jnp.matmul, rules, accumulation=Accumulation(accumulate=BFLOAT16)))(a, b)
    assert_same(summed, dot(*blocks, multiply=None, accumulate=BFLOAT16))
    drawn = jax.jit(simulate(jnp.matmul, rules, mode=pl.stochastic))
    first, again, other = (drawn(a, b, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert_same(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


# Stochastic rounding

DRAWN = partial(simulate, fmt_or_policy=BFLOAT16, mode=pl.stochastic)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["plain", "scanned", "looped", "rematerialized"])
def test_draws_are_a_function_of_the_key(name):
    fun = DRAWN(partial(FUNCTIONS[name], same))
    compiled = jax.jit(fun)
    xs, ys = np.tile(X, 8), np.tile(Y, 8)
    one = compiled(xs, ys, key=KEY)
    assert_equal_trees(compiled(xs, ys, key=KEY), one)
    if name == "scanned":
        assert_equal_trees(fun(xs, ys, key=KEY), one)
        assert_equal_trees(compiled(xs, ys, key=jax.random.key_data(KEY)), one)
    other = compiled(xs, ys, key=jax.random.key(8))
    assert any(map(differ, jax.tree.leaves(one), jax.tree.leaves(other)))
    assert_on_grid(one)


def test_every_operation_and_every_turn_draws_its_own_bits():
    x = np.full(64, 1.0, np.float32)  # on the grid; a third is not
    third = jax.custom_vjp(lambda x: x / 3.0)
    third.defvjp(lambda x: (x / 3.0, None), lambda _, ct: (ct,))

    def fun(x):
        def advance(state):
            turn, rows = state
            return turn + 1, rows.at[turn].set(x / 3.0)

        both = x / 3.0, x / 3.0
        scanned = lax.scan(lambda c, _: (c, c / 3.0), x, length=4)[1]
        repeated = lax.while_loop(lambda state: state[0] < 4, advance, (0, jnp.zeros((4, 64), jnp.float32)))[1]
        nested = lax.scan(lambda c, _: (c, lax.scan(lambda d, _: (d, d / 3.0), c, length=2)[1]), x, length=2)[1]
        remade = jax.checkpoint(lambda x: x / 3.0)(x)
        chosen = lax.cond(x[0] > 0, lambda x: x / 3.0, jnp.negative, x)
        return jnp.stack([*both, *scanned, *repeated, *nested.reshape(4, 64), remade, chosen, third(x)])

    rows = np.asarray(jax.jit(DRAWN(fun))(x, key=KEY))
    assert set(rows.ravel()) == {0.33203125, 0.333984375}
    assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("generator", [pl.counter_hash, jax.random.bits], ids=["counter_hash", "threefry"])
def test_stochastic_rounding_is_unbiased(generator):
    """4 standard deviations of a mean of n draws, each up by a step with probability p: step * sqrt(p (1 - p) / n)."""
    n = 2**15
    x = np.full(n, 1.25, np.float32)
    got = np.float64(jax.jit(DRAWN(lambda x: x * np.float32(1.1015625), mode=Stochastic(generator=generator)))(x, key=KEY))
    exact, step = 1.25 * 1.1015625, 2.0**-7
    below = math.floor(exact / step) * step
    p = (exact - below) / step
    assert set(got) == {below, below + step}
    assert abs(np.mean(got) - exact) < 4 * step * math.sqrt(p * (1 - p) / n)


def test_stochastic_rounding_under_vmap_and_grad():
    def fun(x, y):
        return jnp.sum(odd_exp(same, x * y) / y)

    keys = jax.random.split(KEY, 3)
    one = jax.jit(lambda key: DRAWN(fun)(X, Y, key=key))
    assert_same(jax.jit(jax.vmap(lambda key: DRAWN(fun)(X, Y, key=key)))(keys), jnp.stack([one(key) for key in keys]))
    # Batched inside, every example draws its own; batched outside with one key, all draw the same.
    xs = np.tile(X, (16, 1))
    inside = np.asarray(jax.jit(DRAWN(jax.vmap(lambda x: x / 3.0)))(xs, key=KEY))
    outside = np.asarray(jax.jit(jax.vmap(lambda x: DRAWN(lambda x: x / 3.0)(x, key=KEY)))(xs))
    assert len({row.tobytes() for row in inside}) > 1
    assert len({row.tobytes() for row in outside}) == 1
    value, gradient = jax.jit(jax.value_and_grad(lambda x: DRAWN(fun)(x, Y, key=KEY)))(X)
    assert_same(value, one(KEY))
    np.testing.assert_allclose(gradient, 3 * np.exp(X * Y), rtol=0.1)
    rounded = jax.jit(DRAWN(jax.grad(fun)))
    assert_on_grid(rounded(X, Y, key=KEY))
    assert differ(rounded(X, Y, key=KEY), rounded(X, Y, key=jax.random.key(1)))


# What is wrong


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: simulate(jnp.sin, "bfloat16"), TypeError, "must be a Format such as precisionlab.BFLOAT16"),
        (lambda: simulate(jnp.sin, jnp.bfloat16), TypeError, "must be a Format"),
        (lambda: simulate(jnp.sin, BFLOAT16, mode="upward"), TypeError, "pass the function: precisionlab.upward"),
        (lambda: simulate(jnp.sin, pl.FLOAT64), ValueError, "does not fit its carrier float32"),
        (lambda: simulate(jnp.sin, BFLOAT16, carrier=jnp.float64), ValueError, "needs 64-bit JAX"),
        (lambda: simulate(jnp.sin, BFLOAT16, carrier=jnp.int32), TypeError, "simulate"),
        (lambda: simulate(jnp.sin, BFLOAT16, accumulation=BFLOAT16), TypeError, "expected an Accumulation"),
        (lambda: simulate(jnp.sin, MXFP8_E4M3), ValueError, "operands of matrix products"),
        (lambda: DRAWN(jnp.sin)(X), ValueError, "stochastic rounding needs random bits; pass key="),
        (lambda: DRAWN(jnp.sin)(X, key=3), TypeError, "key must be a JAX random key"),
    ],
)  # fmt: skip
def test_errors_are_sentences(make, kind, says):
    with pytest.raises(kind, match="simulate: ") as raised:
        make()
    assert says in str(raised.value)


# On several devices

SHARDED = """
    import jax
    jax.config.update("jax_num_cpu_devices", 8)
    import jax.numpy as jnp
    import numpy as np
    from functools import partial
    from jax import lax
    from jax.sharding import NamedSharding, PartitionSpec as P
    import precisionlab as pl
    from precisionlab.arithmetic import simulate

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(16,)).astype(np.float32)
    r = partial(pl.round_to, fmt=pl.BFLOAT16)

    def local(x, w):
        h = jnp.sin(x * w[None]) / 3.0
        return h, lax.psum(jnp.sum(h), ("data", "model"))

    specs = {"in_specs": (P("data", "model"), P("model")), "out_specs": (P("data", "model"), P())}
    sharded = jax.shard_map(local, mesh=mesh, **specs)
    h, total = jax.jit(simulate(sharded, pl.BFLOAT16))(x, w)
    wanted = jax.jit(simulate(lambda x, w: jnp.sin(x * w[None]) / 3.0, pl.BFLOAT16))(x, w)
    assert np.array_equal(h, wanted)
    blocks = np.asarray(h).reshape(4, 2, 2, 8).transpose(0, 2, 1, 3)
    parts = r(jnp.asarray(np.sum(np.float64(blocks), axis=(2, 3)), jnp.float32))
    assert total == r(jnp.float32(np.sum(np.float64(parts)))), (total, parts)

    # With automatic sharding too.
    placed = jax.device_put(x, NamedSharding(mesh, P("data", "model")))
    third = jax.jit(simulate(lambda x: jnp.sin(x) / 3.0, pl.BFLOAT16))
    assert np.array_equal(third(placed), third(x))
    key = jax.random.key(0)
    drawn = jax.jit(simulate(lambda x: x / 3.0, pl.BFLOAT16, mode=pl.stochastic))
    assert np.array_equal(drawn(placed, key=key), drawn(x, key=key))

    # Every shard draws its own bits; formats may be traced; the gradient is rounded as well.
    ones = np.ones((8, 16), np.float32)
    divide = jax.shard_map(lambda x: x / 3.0, mesh=mesh, in_specs=P("data", "model"), out_specs=P("data", "model"))
    drawn = jax.jit(simulate(divide, pl.BFLOAT16, mode=pl.stochastic))
    y = np.asarray(drawn(ones, key=key))
    assert np.array_equal(y, drawn(ones, key=key))
    blocks = {y[2 * i : 2 * i + 2, 8 * j : 8 * j + 8].tobytes() for i in range(4) for j in range(2)}
    assert len(blocks) == 8, len(blocks)

    traced = jax.jit(lambda fmt: simulate(sharded, fmt)(x, w))(jax.tree.map(jnp.asarray, pl.BFLOAT16))
    assert np.array_equal(traced[0], wanted)
    loss = lambda x, w: sharded(x, w)[1]
    inside = jax.jit(simulate(jax.grad(loss), pl.BFLOAT16))(x, w)
    assert np.array_equal(inside, r(inside))
    outside = jax.jit(jax.grad(simulate(loss, pl.BFLOAT16)))(x, w)
    assert np.allclose(inside, outside, rtol=0.05, atol=0.01) and not np.array_equal(inside, outside)
    print("right")
"""


@pytest.mark.slow
def test_sharded_functions():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SHARDED)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "right\n"


def test_large_integers_are_rounded_once():
    """2^24 + 2^16 + 1 lies above the middle of two bfloat16 numbers; its 24 leading bits are the middle."""
    tie = (128 << 17) + (1 << 16)
    x = np.array([tie - 1, tie, tie + 1, -tie - 1, 2**31 - 1, -(2**31), 7], np.int32)
    wanted = np.array([128 << 17, 128 << 17, 129 << 17, -(129 << 17), 2**31, -(2**31), 7], np.float32)
    for made in (x, jnp.asarray(x).astype(jnp.uint32)):
        got = jax.jit(simulate(lambda x: x.astype(jnp.float32), pl.BFLOAT16))(made)
        positive = np.asarray(made) == x
        np.testing.assert_array_equal(np.asarray(got)[positive], wanted[positive])


@pytest.mark.slow
def test_reductions_by_a_function_draw_for_each_application_and_each_entry():
    """0.7 lies between two numbers of e4m3fn; equal rows end apart, their mean does not."""
    rows = jnp.full((256, 8), 0.5, jnp.float32)
    reduced = simulate(
        lambda x: lax.reduce(x, jnp.float32(0), lambda a, b: a + b * 0.7, (1,)), pl.FLOAT8_E4M3FN, mode=pl.stochastic
    )
    got = np.asarray(jax.jit(reduced)(rows, key=jax.random.key(0)))
    assert len(set(got.tolist())) > 2
    np.testing.assert_array_equal(got, reduced(rows, key=jax.random.key(0)))
    constant = float(pl.round_to(0.7, pl.FLOAT8_E4M3FN))
    # Sums below 4 have spacing at most 1/4, and 16 roundings: standard error below sqrt(16 / 256) / 8.
    assert abs(got.mean() - 8 * 0.5 * constant) < 4 * (16 / 256) ** 0.5 / 8


def test_a_reduction_by_a_function_goes_in_order_from_its_start():
    x, fmt = np.random.default_rng(3).normal(size=(3, 4, 5)).astype(np.float32), pl.BFLOAT16
    got = simulate(lambda x: lax.reduce(x, jnp.float32(1), lambda a, b: a * 0.5 + b, (0, 2)), fmt)(x)
    held, terms = np.ones(4, np.float32), np.asarray(pl.round_to(jnp.asarray(x), fmt)).transpose(0, 2, 1).reshape(15, 4)
    for term in terms:
        held = np.asarray(pl.round_to(jnp.asarray(pl.round_to(jnp.asarray(held * np.float32(0.5)), fmt)) + term, fmt))
    np.testing.assert_array_equal(got, held)


def test_a_composite_is_walked():
    x = jnp.linspace(0.1, 1.0, 8)
    got = simulate(lambda x: lax.composite(lambda y: y * 1.1, name="my.scale")(x), pl.BFLOAT16)(x)
    np.testing.assert_array_equal(got, simulate(lambda y: y * 1.1, pl.BFLOAT16)(x))
