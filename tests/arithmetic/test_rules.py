"""Which rule decides: by scope, by primitive, by default, in programs within programs, and forward as backward."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precisionlab as pl
from precisionlab.arithmetic import Accumulation, ScopeWarning, UnlistedWarning, dot, simulate
from precisionlab.arithmetic.rules import (
    Rules,
    check_mode_rules,
    check_rules,
    describe_rules,
    every_rule,
    resolve,
    scope_matches,
)
from precisionlab.numerics.blocks import MXFP8_E4M3
from tests.cases import assert_same

BFLOAT16, FLOAT16, FLOAT32, TFLOAT32 = pl.BFLOAT16, pl.FLOAT16, pl.FLOAT32, pl.TFLOAT32
E4M3, E5M2 = pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2
KEY = jax.random.key(3)
X = np.float32([0.3, -1.1, 0.7, 1.9])


def to(fmt: Any, x: Any) -> Any:
    return pl.round_to(jnp.asarray(x, jnp.float32), fmt)


# Looking a rule up


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("norm", ("norm",), True),
        ("norm", ("block", "norm"), True),
        ("norm", ("norm", "scale"), False),  # asked of the scope itself, not of those within it
        ("block/norm", ("block", "norm"), True),
        ("block/norm", ("model", "block", "norm"), True),
        ("block/norm", ("block", "inner", "norm"), False),
        ("block/norm", ("norm",), False),
        ("block_*/norm", ("block_12", "norm"), True),
        ("block_?", ("block_12",), False),
        ("*", ("anything",), True),
        ("*", (), False),
        ("Norm", ("norm",), False),
    ],
)
def test_scopes_match(pattern, path, matches):
    assert scope_matches(pattern, path) == matches


def test_the_innermost_scope_decides_then_the_primitive():
    rules = Rules(
        BFLOAT16,
        primitives={"exp": FLOAT32},
        scopes={"block": FLOAT16, "norm": FLOAT32, "block/norm": TFLOAT32, "inner": Rules(E5M2, primitives={"exp": E4M3})},
    )
    expected = {
        ("mul", ()): BFLOAT16,
        ("exp", ()): FLOAT32,
        ("exp", ("other",)): FLOAT32,
        ("exp", ("block",)): FLOAT16,
        ("mul", ("block", "other", "deeper")): FLOAT16,
        ("mul", ("norm",)): FLOAT32,
        ("mul", ("block", "norm")): TFLOAT32,
        ("mul", ("block", "x", "norm")): FLOAT32,
        ("mul", ("norm", "block")): FLOAT16,
        ("mul", ("block", "inner")): E5M2,
        ("exp", ("block", "inner", "deeper")): E4M3,
    }
    assert {at: resolve(rules, *at) for at in expected} == expected
    assert resolve(BFLOAT16, "exp", ("norm",)) == BFLOAT16


def test_rules_within_rules_are_for_what_lies_inside():
    inside = Rules(E5M2, scopes={"norm": FLOAT32})
    rules = Rules(BFLOAT16, scopes={"block": inside})
    assert resolve(rules, "mul", ("block", "norm")) == FLOAT32
    assert resolve(rules, "mul", ("norm",)) == BFLOAT16
    assert resolve(rules, "mul", ("norm", "block")) == E5M2
    assert resolve(Rules(inside), "mul", ("norm",)) == FLOAT32  # a default may be rules too
    assert resolve(Rules(BFLOAT16, primitives={"mul": inside}), "mul", ("norm",)) == FLOAT32


def test_description():
    inside = Rules(FLOAT32, scopes={"a": E5M2})
    rules = Rules(BFLOAT16, primitives={"dot_general": MXFP8_E4M3, "exp": None}, scopes={"norm": inside})
    described = describe_rules(rules)
    for part in ("bfloat16 (norm: float32 (a: float8_e5m2)", "dot_general: ", "exp: as typed)"):
        assert part in described
    assert list(every_rule(Rules(1, {"a": Rules(2)}, {"b": 3}))) == [1, 2, 3]


# In a simulation


def scaled(x):
    with jax.named_scope("norm"):
        return x / 3.0 * 1.7


def around(wrap):
    """A function of which only what `wrap` wraps has the scope."""

    def fun(x):
        return jnp.exp(wrap(scaled)(x * 1.1))

    return fun


def in_scan(fun):
    return lambda x: lax.scan(lambda c, _: (fun(c), None), x, length=1)[0]


def in_while(fun):
    return lambda x: lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, fun(s[1])), (0, x))[1]


@jax.custom_jvp
def own_jvp(x):
    return scaled(x)


own_jvp.defjvp(lambda primals, tangents: (own_jvp(*primals), jax.jvp(scaled, primals, tangents)[1]))


@jax.custom_vjp
def own_vjp(x):
    return scaled(x)


own_vjp.defvjp(lambda x: jax.vjp(scaled, x), lambda pull, ct: pull(ct))

WRAPPED = {
    "as it is": lambda fun: fun,
    "jit": jax.jit,
    "jit within jit": lambda fun: jax.jit(lambda x: jax.jit(fun)(x)),
    "checkpoint": jax.checkpoint,
    "vmap": jax.vmap,
    "scan": in_scan,
    "while": in_while,
    "cond": lambda fun: lambda x: lax.cond(x[1] < 0, fun, jnp.negative, x),
    "custom_jvp": lambda _: own_jvp,
    "custom_vjp": lambda _: own_vjp,
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_scope_decides_wherever_it_is(name):
    rules = Rules(E5M2, scopes={"norm": BFLOAT16})
    narrow, wide = partial(to, E5M2), partial(to, BFLOAT16)
    fun = around(WRAPPED[name])
    got = jax.jit(simulate(fun, rules))(X)
    h = narrow(narrow(X) * narrow(1.1))
    norm = wide(wide(h / 3.0) * wide(1.7))
    assert_same(got, narrow(jnp.exp(narrow(norm))))
    # What leaves the scope keeps its format until an operation reads it.
    assert_same(jax.jit(simulate(WRAPPED[name](scaled), rules))(X), wide(wide(narrow(X) / 3.0) * wide(1.7)))
    alone = Rules(E5M2, scopes={"norm": FLOAT32})
    assert_same(jax.jit(simulate(WRAPPED[name](scaled), alone))(X), np.asarray(narrow(X)) / np.float32(3) * np.float32(1.7))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in WRAPPED if name != "while"])
def test_the_backward_pass_of_a_scope_follows_its_rule(name):
    """d/dx of exp(c * s(1.1 x)) with s in the scope: multiply in it by 1.7 and divide by 3, backwards."""
    narrow, wide = partial(to, E5M2), partial(to, BFLOAT16)

    def loss(x):
        return jnp.sum(around(WRAPPED[name])(x))

    got = jax.jit(simulate(jax.grad(loss), Rules(E5M2, scopes={"norm": BFLOAT16})))(X)
    h = narrow(narrow(X) * narrow(1.1))
    ct = narrow(jnp.exp(narrow(wide(wide(h / 3.0) * wide(1.7)))))
    ct = wide(wide(ct * wide(1.7)) / 3.0)
    assert_same(got, narrow(narrow(ct) * narrow(1.1)))
    elsewhere = jax.jit(simulate(jax.grad(loss), E5M2))(X)
    assert np.any(np.asarray(got) != np.asarray(elsewhere))


@pytest.mark.parametrize("wrap", [lambda fun: fun, in_scan], ids=["alone", "in a scan"])
def test_what_is_computed_again_is_in_the_same_scopes(wrap):
    """A backward pass that repeats the forward one says so in its scopes; rules do not mind."""

    def loss(x):
        with jax.named_scope("block"):
            return jnp.sum(wrap(jax.checkpoint(jax.named_scope("norm")(lambda x: jnp.sin(x / 3.0))))(x))

    got = jax.jit(simulate(jax.grad(loss), Rules(E5M2, scopes={"block/norm": FLOAT32})))(X)
    third = np.float32(1) / np.float32(3)
    np.testing.assert_allclose(got, np.cos(to(E5M2, X) * third) * third, rtol=1e-6)


def test_nested_scopes_and_wildcards():
    def fun(x):
        with jax.named_scope("layer_0"):
            with jax.named_scope("norm"):
                a = x / 3.0
            b = x / 3.0
        with jax.named_scope("layer_1/norm"):
            c = x / 3.0
        return a, b, c, x / 3.0

    def formats(rules):
        wanted = {fmt: to(fmt, x / np.float32(3)) for fmt in (E5M2, E4M3, BFLOAT16)}
        results = jax.jit(simulate(fun, rules))(x)
        return [next(fmt for fmt, value in wanted.items() if np.array_equal(got, value)) for got in results]

    x = np.float32([1.0, 1.25, 7.0])  # of every one of these formats, and their thirds tell them apart
    assert formats(Rules(E5M2, scopes={"norm": E4M3})) == [E4M3, E5M2, E4M3, E5M2]
    assert formats(Rules(E5M2, scopes={"layer_0/norm": E4M3})) == [E4M3, E5M2, E5M2, E5M2]
    assert formats(Rules(E5M2, scopes={"layer_*": E4M3, "norm": BFLOAT16})) == [BFLOAT16, E4M3, BFLOAT16, E5M2]
    assert formats(Rules(E5M2, scopes={"layer_?": Rules(E4M3, scopes={"norm": BFLOAT16})})) == [BFLOAT16, E4M3, BFLOAT16, E5M2]
    assert formats(Rules(E5M2, scopes={"*": E4M3})) == [E4M3, E4M3, E4M3, E5M2]


def test_primitives():
    rules = Rules(E5M2, primitives={"exp": BFLOAT16, "dot_general": Rules(E5M2, scopes={"head": FLOAT32})})
    narrow = partial(to, E5M2)
    w = np.float32([[0.3, -0.7], [1.1, 0.2], [0.1, 0.9], [2.1, -0.3]])

    def fun(x, w):
        with jax.named_scope("head"):
            y = x @ w
        return jnp.exp(x), x @ w, y

    exp, product, head = jax.jit(simulate(fun, rules))(X, w)
    assert_same(exp, to(BFLOAT16, jnp.exp(narrow(X))))
    exact = np.float64(narrow(X)) @ np.float64(narrow(w))
    assert_same(product, narrow(np.float32(exact)))
    np.testing.assert_allclose(head, exact, rtol=1e-6)
    assert np.any(np.asarray(head) != np.asarray(product))


def test_none_leaves_an_operation_in_its_own_dtype():
    rules = Rules(E5M2, scopes={"native": None})

    def fun(x):
        with jax.named_scope("native"):
            return x / 3.0, x.astype(jnp.bfloat16) / jnp.bfloat16(3)

    got, half = jax.jit(simulate(fun, rules))(X)
    x = np.asarray(to(E5M2, X))
    assert_same(got, x / np.float32(3))
    assert_same(half.astype(jnp.float32), to(BFLOAT16, x / np.float32(3)))


def test_modes_by_rule():
    modes = Rules(pl.upward, primitives={"exp": pl.downward}, scopes={"norm": pl.toward_zero, "none": None})

    def fun(x):
        with jax.named_scope("norm"):
            a = x * 1.7
        with jax.named_scope("none"):
            b = x * 1.7
        return x * 1.7, jnp.exp(x), a, b

    got = jax.jit(simulate(fun, BFLOAT16, mode=modes))(X)
    x = pl.round_to(X, BFLOAT16, pl.upward)
    constants = {mode: float(pl.round_to(1.7, BFLOAT16, pl.MODES[mode])) for mode in ("upward", "toward_zero", "nearest_even")}

    def product(mode):
        return pl.round_to(x * np.float32(constants[mode]), BFLOAT16, pl.MODES[mode])

    wanted = (
        product("upward"), pl.round_to(jnp.exp(x), BFLOAT16, pl.downward), product("toward_zero"), product("nearest_even"),
    )  # fmt: skip
    for mine, theirs in zip(got, wanted, strict=True):
        assert_same(mine, theirs)


def test_one_random_operation_among_deterministic_ones():
    fun = simulate(lambda x: (x / 3.0, jnp.exp(x)), BFLOAT16, mode=Rules(pl.nearest_even, primitives={"div": pl.stochastic}))
    x = np.tile(X, 8)
    with pytest.raises(ValueError, match="stochastic rounding needs random bits"):
        fun(x)
    one, other = (jax.jit(fun)(x, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.any(np.asarray(one[0]) != np.asarray(other[0]))
    assert_same(one[1], other[1])
    assert_same(one[1], to(BFLOAT16, jnp.exp(to(BFLOAT16, x))))


def test_the_operands_of_a_scope_are_read_in_its_format():
    """Values of a wider scope are rounded by whatever narrower operation reads them, and moves read nothing."""

    def fun(x):
        with jax.named_scope("wide"):
            y = x / 3.0
        z = jnp.concatenate([y, -y])[::-1]
        with jax.named_scope("wide"):
            back = z * 3.0
        return z, back, y * 1.0

    z, back, narrow = jax.jit(simulate(fun, Rules(E4M3, scopes={"wide": FLOAT32})))(X)
    y = np.asarray(to(E4M3, X)) / np.float32(3)
    assert_same(z, np.concatenate([y, -y])[::-1])
    assert_same(back, np.concatenate([y, -y])[::-1] * np.float32(3))
    assert_same(narrow, to(E4M3, y))


def test_a_policy_stands_for_its_compute():
    policy = pl.Policy(weights=FLOAT16, compute=Rules(BFLOAT16, primitives={"exp": E5M2}))
    got = jax.jit(simulate(jnp.exp, policy, mode=pl.Policy(compute=pl.upward)))(X)
    assert_same(got, pl.round_to(jnp.exp(pl.round_to(pl.round_to(X, BFLOAT16, pl.upward), E5M2, pl.upward)), E5M2, pl.upward))


def test_block_formats_are_for_products_alone():
    check_rules(Rules(BFLOAT16, primitives={"dot_general": MXFP8_E4M3}), "here")
    check_rules(Rules(BFLOAT16, primitives={"dot_general": Rules(MXFP8_E4M3)}), "here")
    elsewhere = Rules(BFLOAT16, primitives={"exp": MXFP8_E4M3}), Rules(BFLOAT16, scopes={"a": MXFP8_E4M3})
    for rules in (MXFP8_E4M3, Rules(MXFP8_E4M3), *elsewhere):
        with pytest.raises(ValueError, match="here: blocks with shared scales are operands of matrix products"):
            check_rules(rules, "here")


def test_accumulation_goes_with_rules():
    how = Accumulation(multiply=BFLOAT16, accumulate=BFLOAT16)
    a, b = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    rules = Rules(BFLOAT16, primitives={"dot_general": FLOAT16})
    got = jax.jit(simulate(jnp.dot, rules, accumulation=how))(a, b)
    a, b = (to(FLOAT16, to(BFLOAT16, x)) for x in (a, b))
    assert_same(got, to(FLOAT16, dot(a, b, multiply=BFLOAT16, accumulate=BFLOAT16)))


# What is wrong


def two_scopes(x):
    with jax.named_scope("attention"), jax.named_scope("scores"):
        x = x * 2.0
    return jax.jit(jax.named_scope("norm")(lambda x: x / 3.0))(x)


@pytest.mark.parametrize(
    ("scope", "says"),
    [
        ("nrom", 'did you mean "norm"?'),
        ("scores/attention", "attention/scores, norm"),
        ("Attention", "attention/scores, norm"),
        ("blok_*", "attention/scores, norm"),
    ],
)
def test_unknown_scopes_warn(scope, says):
    simulated = simulate(two_scopes, Rules(BFLOAT16, scopes={scope: FLOAT32, "norm": FLOAT32}))
    with pytest.warns(ScopeWarning) as caught:
        simulated(X)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f'simulate: a rule is for the scope "{scope}", which the function does not have;')
    assert says in str(caught[0].message)
    assert caught[0].filename == __file__


def test_unknown_scopes_of_modes_and_nested_rules_warn():
    rules = Rules(BFLOAT16, scopes={"norm": Rules(FLOAT32, scopes={"nothing": E5M2})})
    with pytest.warns(ScopeWarning, match='scope "nothing"'):
        simulate(two_scopes, rules)(X)
    with pytest.warns(ScopeWarning, match='scope "nowhere"'):
        simulate(two_scopes, BFLOAT16, mode=Rules(pl.upward, scopes={"nowhere": pl.downward}))(X)
    with pytest.warns(ScopeWarning):  # a function without scopes
        simulate(jnp.sin, Rules(BFLOAT16, scopes={"norm": FLOAT32}))(X)


@pytest.mark.parametrize("scope", ["attention", "scores", "attention/scores", "norm", "*", "sc?res", "att*/scores"])
def test_known_scopes_do_not_warn(scope):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(simulate(two_scopes, Rules(BFLOAT16, scopes={scope: FLOAT32})), X)
        jax.eval_shape(simulate(jax.grad(lambda x: jnp.sum(two_scopes(x))), Rules(BFLOAT16, scopes={scope: FLOAT32})), X)


MATRIX = np.float32([[4.0, 1.0], [1.0, 3.0]])


def outside(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize("within", [False, True])
def test_what_nobody_can_look_into_is_rounded_once_with_a_warning(within):
    @jax.named_scope("solver")
    def inside(x):
        return lax.cond(x[0] > -100, outside, jnp.zeros_like, x) if within else outside(x)

    where = 'simulate: the primitive pure_callback in scope "solver" cannot be looked into'
    with pytest.warns(UnlistedWarning, match=where) as warned:
        got = simulate(inside, BFLOAT16)(X)
    assert len(warned) == 1
    assert_same(got, to(BFLOAT16, np.sin(to(BFLOAT16, X))))


@pytest.mark.parametrize("nested", [False, True])
def test_strict_rules_refuse_it_before_anything_runs(nested):
    rules = Rules(BFLOAT16, scopes={"a": Rules(FLOAT32, strict=True)}) if nested else Rules(BFLOAT16, strict=True)
    jax.config.update("jax_no_execution", True)
    try:
        with pytest.raises(NotImplementedError, match='simulate: the primitive pure_callback in scope "a" does many') as raised:
            simulate(jax.named_scope("a")(outside), rules)(X)
    finally:
        jax.config.update("jax_no_execution", False)
    assert str(raised.value).endswith('name it: Rules(fmt, primitives={"pure_callback": precisionlab.FLOAT32}).')


def test_strictness_is_no_number():
    rules = Rules(BFLOAT16, strict=True)
    assert jax.tree.leaves(Rules(None, strict=True)) == []
    assert jax.tree.map(lambda x: x, rules) == rules
    got = jax.jit(lambda rules, x: simulate(jnp.sin, rules)(x))(rules, X)
    assert_same(got, simulate(jnp.sin, BFLOAT16)(X))


@pytest.mark.parametrize("strict", [False, True])
def test_a_named_primitive_is_one_operation_without_a_warning(strict):
    narrow = partial(to, BFLOAT16)
    rules = Rules(BFLOAT16, primitives={"pure_callback": BFLOAT16}, strict=strict)
    assert_same(jax.jit(simulate(outside, rules))(X), narrow(outside(narrow(X))))
    rules = Rules(BFLOAT16, primitives={"cholesky": BFLOAT16}, strict=strict)
    assert_same(jax.jit(simulate(jnp.linalg.cholesky, rules))(MATRIX), narrow(jnp.tril(jnp.linalg.cholesky(narrow(MATRIX)))))
    in_scope = Rules(BFLOAT16, scopes={"solver": Rules(FLOAT32, primitives={"cholesky": FLOAT32})})
    got = jax.jit(simulate(jax.named_scope("solver")(jnp.linalg.cholesky), in_scope))(MATRIX)
    assert_same(got, jnp.linalg.cholesky(MATRIX))


def test_a_named_loop_runs_as_it_is():
    def loop(x):
        return lax.scan(lambda c, y: (c * y + 0.1, c), x[0], x)[0]

    narrow = partial(to, BFLOAT16)
    got = simulate(loop, Rules(BFLOAT16, primitives={"scan": BFLOAT16}))(X)
    assert_same(got, narrow(loop(narrow(X))))


@pytest.mark.parametrize(
    ("rules", "kind", "says"),
    [
        (Rules(BFLOAT16, primitives={"dot_generl": E5M2}), ValueError, 'that are loaded; did you mean "dot_general"?'),
        (Rules(BFLOAT16, primitives={"zzz": E5M2}), ValueError, 'no primitive "zzz", neither in the function nor among'),
        (Rules(BFLOAT16, primitives={"multiply": E5M2}), ValueError, 'did you mean "mul"? Those of the function are sin;'),
        (Rules(BFLOAT16, primitives={"": E5M2}), ValueError, "must be non-empty text; got ''"),
        (Rules(BFLOAT16, scopes={"a//b": E5M2}), ValueError, "must be non-empty text; got 'a//b'"),
        (Rules(BFLOAT16, scopes={3: E5M2}), ValueError, "must be non-empty text; got 3"),
        (Rules(BFLOAT16, scopes={"a": Rules(E5M2, {"sine": E5M2})}), ValueError, 'no primitive "sine"'),
        (Rules(BFLOAT16, primitives=["exp"]), TypeError, "Rules.primitives must be a dict such as"),
        (Rules(BFLOAT16, scopes=FLOAT32), TypeError, "Rules.scopes must be a dict"),
        (Rules(BFLOAT16, scopes={"a": "float32"}), TypeError, "such as precisionlab.BFLOAT16, or None; got 'float32'"),
        (Rules(pl.upward), TypeError, "a rule must be a Format"),
        (Rules(BFLOAT16, scopes={"a": pl.FLOAT64}), ValueError, "float64 does not fit its carrier float32"),
    ],
)  # fmt: skip
def test_errors_are_sentences(rules, kind, says):
    with pytest.raises(kind) as raised:
        simulate(jnp.sin, rules)(X)
    assert str(raised.value).startswith("simulate: ")
    assert says in str(raised.value)


def test_mode_rules_are_checked():
    check_mode_rules(Rules(None, scopes={"a": pl.stochastic}), "here")
    with pytest.raises(TypeError, match="here: mode must be a rounding function such as nearest_even"):
        check_mode_rules(Rules(pl.upward, scopes={"a": BFLOAT16._replace}, primitives={"exp": "up"}), "here")
    with pytest.raises(ValueError, match='no primitive "expo"'):
        simulate(jnp.sin, BFLOAT16, mode=Rules(pl.upward, primitives={"expo": pl.downward}))(X)
