"""What JAX's equations say, in whatever release is installed; what nobody listed; references; functions applied in place."""

import importlib
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import precisionlab as pl
from precisionlab.arithmetic import simulate
from precisionlab.arithmetic.expansions.table import EXPANSIONS
from precisionlab.arithmetic.primitives import EXACT, OPAQUE, ROUNDED, STRUCTURAL, WITHOUT_FLOATS
from precisionlab.arithmetic.programs import equations
from precisionlab.arithmetic.rules import Rules
from tests.cases import assert_same

BFLOAT16 = pl.BFLOAT16
X = np.float32([0.3, -1.1, 0.7, 1.9, 0.25])


def to(x: Any, fmt: Any = BFLOAT16) -> Any:
    return pl.round_to(jnp.asarray(x, jnp.float32), fmt)


def only(fun: Any, *args: Any) -> Any:
    return jax.make_jaxpr(fun)(*args).jaxpr.eqns[-1]


# Where JAX moves


def test_the_parts_of_loops_whatever_their_parameters_are_called():
    eqn = only(lambda x: lax.scan(lambda c, y: ((c[0] * y + x[0], c[1] + y), c[0]), (x[0], x[1]), x, reverse=True, unroll=2), X)
    parts = equations.scan(eqn)
    assert (parts.consts, parts.carry) == (len(eqn.invars) - 3, 2)
    assert parts.options == {"length": 5, "reverse": True, "unroll": 2}
    assert len(parts.program.jaxpr.invars) == len(eqn.invars)

    def wait(x, limit, step):
        return lax.while_loop(lambda c: c < limit, lambda c: c * step + step, x)

    loop = equations.while_loop(only(wait, 1.0, 9.0, 2.0))
    assert (loop.test_consts, loop.program_consts) == (1, 1)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    parts = equations.mapped(only(jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec), X))
    assert parts.axes == ("d",)
    assert parts.options["axis_names"] == {"d"}


@jax.custom_batching.custom_vmap
def its_own_batches(x):
    return jnp.sin(x)


its_own_batches.def_vmap(lambda _, batched, x: (jnp.sin(x), batched[0]))


@pytest.mark.parametrize(
    "fun",
    [
        jax.jit(jnp.sin),
        lambda x: lax.composite(jnp.sin, "its.own")(x),
        jax.nn.relu,
        its_own_batches,
        jax.custom_vjp(jnp.sin),
    ],
)
def test_the_program_of_a_call_is_found_by_its_arguments_and_results(fun):
    if hasattr(fun, "defvjp"):
        fun.defvjp(lambda x: (jnp.sin(x), x), lambda x, c: (c * jnp.cos(x),))
    eqn = only(fun, X)
    program = equations.own_program(eqn)
    assert program is not None
    assert [var.aval.shape for var in program.jaxpr.invars] == [(5,)]


def test_every_primitive_of_this_jax_is_listed_or_can_be_walked():
    """A release that brings a primitive is noticed here before a user meets it."""
    for name in ("pallas", "sparse", "custom_partitioning", "buffer_callback"):
        importlib.import_module(f"jax.experimental.{name}")
    internal = importlib.import_module(mlir.lower_fun.__module__)
    table = {**internal._lowerings, **internal._platform_specific_lowerings["cpu"]}
    jax_s = {primitive.name: primitive for primitive, entry in table.items() if _of_jax(entry)}
    assert len(jax_s) > 250
    assert {"sin", "dot_general", "scan"} <= set(jax_s)
    listed = EXACT | ROUNDED | STRUCTURAL | OPAQUE | WITHOUT_FLOATS | set(EXPANSIONS)
    unknown = {name for name, primitive in jax_s.items() if name not in listed and equations._lowering(primitive) is None}
    assert unknown - _HOLDS_A_PROGRAM == set()


_HOLDS_A_PROGRAM = {"custom_partitioning"}


def _of_jax(entry: Any) -> bool:
    rule = getattr(entry, "rule", entry)
    made = equations.getclosurevars(rule).nonlocals.get("fun") if hasattr(rule, "__code__") else None
    while hasattr(rule, "func"):
        rule = rule.func
    return (getattr(made, "__module__", None) or getattr(rule, "__module__", "")).split(".")[0] == "jax"


def test_the_lists_do_not_overlap():
    kinds = (EXACT, ROUNDED, STRUCTURAL, OPAQUE, WITHOUT_FLOATS)
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))


# What nobody listed


def primitive(name: str, function: Any, *, implemented: bool, lowered: bool, derived: bool = False) -> Any:
    """A library's own primitive, which tells of itself in different ways."""
    made = Primitive(name)
    made.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    if implemented:
        made.def_impl(function)
    else:
        made.def_impl(lambda x: jax.jit(made.bind)(x))
    if lowered:
        mlir.register_lowering(made, mlir.lower_fun(function, multiple_results=False))
    batching.defvectorized(made)
    if derived:
        ad.defjvp(made, lambda t, _: t * 7)
    return made


def twice(x: Any) -> Any:
    return jnp.sin(x) * 1.1


def expected(x: Any) -> Any:
    return to(to(jnp.sin(to(x))) * to(1.1))


@pytest.mark.parametrize(("implemented", "lowered"), [(True, True), (False, True)])
def test_an_unlisted_primitive_is_walked_where_jax_says_what_it_is(implemented, lowered):
    own = primitive("its_own", twice, implemented=implemented, lowered=lowered)
    got = simulate(own.bind, Rules(BFLOAT16, strict=True))(X)
    assert_same(got, expected(X))
    assert_same(jax.vmap(simulate(own.bind, BFLOAT16))(X[None])[0], got)


def test_its_own_derivative_is_kept():
    own = primitive("with_derivative", twice, implemented=True, lowered=True, derived=True)
    assert jax.grad(simulate(own.bind, BFLOAT16))(0.5) == 7
    assert simulate(jax.grad(own.bind), BFLOAT16)(0.5) == 7


def test_one_that_only_moves_is_left_as_it_is():
    own = primitive("moves", lambda x: x[::-1], implemented=True, lowered=True, derived=True)
    program = jax.make_jaxpr(simulate(own.bind, Rules(BFLOAT16, strict=True)))(X)
    assert "moves" in {eqn.primitive.name for eqn in program.jaxpr.eqns}
    assert_same(simulate(own.bind, BFLOAT16)(X), to(X)[::-1])


def test_one_that_says_nothing_is_rounded_once_and_told():
    own = primitive("silent", twice, implemented=False, lowered=False)
    mlir.register_lowering(own, lambda ctx, x: mlir.lower_fun(twice, multiple_results=False)(ctx, x))
    with pytest.warns(pl.UnlistedWarning, match="the primitive silent cannot be looked into"):
        got = simulate(own.bind, BFLOAT16)(X)
    assert_same(got, to(twice(to(X))))
    with pytest.raises(NotImplementedError, match="the primitive silent does many floating-point operations"):
        simulate(own.bind, Rules(BFLOAT16, strict=True))(X)


def test_a_library_s_primitive_can_be_named_also_where_the_function_has_it_not():
    assert_same(simulate(jnp.sin, Rules(BFLOAT16, primitives={"maybe_set": pl.FLOAT32}))(X), to(jnp.sin(to(X))))
    with pytest.raises(ValueError, match=r'no primitive "maybe_sat".*did you mean "maybe_set"'):
        simulate(jnp.sin, Rules(BFLOAT16, primitives={"maybe_sat": pl.FLOAT32}))(X)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["lax", "checkpointed", "bounded"])
def test_equinox_s_loops(kind):
    def loop(x):
        def turn(carry):
            return jnp.sin(carry[0]) * 1.1, carry[1] + 1

        return eqxi.while_loop(lambda c: c[1] < 4, turn, (x, 0), max_steps=8, kind=kind)[0]

    want = to(X)
    for _ in range(4):
        want = expected(want)
    assert_same(jax.jit(simulate(loop, Rules(BFLOAT16, strict=True)))(X), want)
    assert_same(jax.vmap(simulate(loop, BFLOAT16))(X), want)
    if kind != "lax":
        slope = simulate(jax.grad(lambda x: jnp.sum(loop(x))), Rules(BFLOAT16, strict=True))(X)
        np.testing.assert_allclose(slope, jax.grad(lambda x: jnp.sum(loop(x)))(X), rtol=0.05)
        np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(simulate(loop, BFLOAT16)(x)))(X), slope, rtol=0.05)


# Weak types


@pytest.mark.parametrize("fmt", [None, BFLOAT16])
def test_results_are_weakly_typed_where_the_function_s_are(fmt):
    def fun(s, n):
        return s * 2.0, n * 3, s > 1, jnp.float32(s)

    want = [(leaf.dtype, leaf.weak_type) for leaf in jax.jit(fun)(1.5, 2)]
    assert [(leaf.dtype, leaf.weak_type) for leaf in jax.jit(simulate(fun, fmt))(1.5, 2)] == want
    assert (want[0][1], want[3][1]) == (True, False)
    assert (jax.jit(simulate(lambda s: s * 2.0, fmt))(1.5) * jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


# References


def mutated(x):
    ref = jax.new_ref(x)
    ref[0] = x[1] * 1.1
    ref[1:3] += x[:2]
    return ref[...]


def accumulated(x):
    total = jax.new_ref(jnp.zeros((), x.dtype))

    def turn(number, nothing):
        total[...] += x[number] * 1.1
        return nothing

    lax.fori_loop(0, 4, turn, None)
    return total[...]


def chosen(x):
    ref = jax.new_ref(x)
    lax.cond(x[0] > 0, lambda: ref.__setitem__(0, 3.3), lambda: ref.__setitem__(1, 1.1))
    return jax.freeze(ref)


def mutated_by_hand(x):
    x = to(x)
    return x.at[0].set(to(x[1] * to(1.1))).at[1:3].set(to(x[1:3] + x[:2]))


def accumulated_by_hand(x):
    x, total = to(x), jnp.float32(0)
    for entry in x[:4]:
        total = to(total + to(entry * to(1.1)))
    return total


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("fun", "by_hand"),
    [
        (mutated, mutated_by_hand),
        (accumulated, accumulated_by_hand),
        (chosen, lambda x: to(x).at[0].set(to(3.3))),
    ],
)
def test_references(fun, by_hand):
    want = by_hand(X)
    assert_same(simulate(fun, Rules(BFLOAT16, strict=True))(X), want)
    assert_same(jax.jit(simulate(fun, BFLOAT16))(X), want)
    assert_same(pl.error_profile(fun, BFLOAT16)(X).value, want)
    if fun is chosen:  # JAX itself cannot batch a cond with effects, nor, in 0.10, differentiate it
        return
    assert_same(jax.vmap(simulate(fun, BFLOAT16))(jnp.stack([X, 2 * X]))[0], want)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(simulate(fun, None)(x)))(X), jax.grad(lambda x: jnp.sum(fun(x)))(X))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_reference_from_outside_is_written_in_its_own_dtype(dtype):
    ref = jax.new_ref(jnp.zeros(5, dtype))

    def fun(x):
        ref[...] = (x * 1.1).astype(dtype)
        return ref[0] + 1

    got = simulate(fun, BFLOAT16)(X)
    want = to(to(X) * to(1.1))
    assert ref[...].dtype == dtype
    assert_same(ref[...].astype(jnp.float32), want)
    assert_same(jnp.asarray(got, jnp.float32), to(want[0] + 1))


# Functions applied in place


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("index", "options"),
    [
        (np.array([1, 3]), {}),
        (np.array([1, 3, 3]), {}),
        (np.array([1, 9, -1]), {}),
        (np.array([4, 1]), {"unique_indices": True}),
        (slice(1, 3), {}),
        (..., {}),
    ],
)
def test_a_function_applied_in_place_is_rounded_as_often_as_it_is_applied(index, options):
    def fun(x):
        return x.at[index].apply(twice, **options)

    want = np.array(to(X))
    places = np.arange(5)[index] if not isinstance(index, np.ndarray) else index[np.abs(index) < 5]
    for place in places:
        want[place] = expected(want[place])
    assert_same(simulate(fun, BFLOAT16)(X), jnp.asarray(want))
    assert_same(jax.jit(jax.vmap(simulate(fun, BFLOAT16)))(X[None])[0], jnp.asarray(want))
    assert_same(pl.error_profile(fun, BFLOAT16)(X).value, jnp.asarray(want))
    drawn = simulate(fun, BFLOAT16, mode=pl.stochastic)(X, key=jax.random.key(0))
    np.testing.assert_allclose(drawn, want, rtol=0.03)


def test_in_place_under_vmap_with_indices_of_its_own():
    table, index = jnp.stack([X, 2 * X]), jnp.array([[1, 1], [0, 4]])
    got = simulate(jax.vmap(lambda x, i: x.at[i].apply(jnp.sin)), None)(table, index)
    assert_same(got, jax.vmap(lambda x, i: x.at[i].apply(jnp.sin))(table, index))
