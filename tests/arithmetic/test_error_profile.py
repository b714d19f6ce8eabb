"""What `error_profile` says, beside hand computations in NumPy's float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

import precisionlab as pl
from precisionlab.arithmetic import Accumulation, ErrorProfile, Operation, error_profile, simulate
from precisionlab.arithmetic.rules import Rules
from tests.cases import assert_same
from tests.oracle import round_array

BFLOAT16, E4M3, E5M2, FLOAT32 = pl.BFLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2, pl.FLOAT32
X = np.float32([1.1, 1.3, 0.33])


def rounded(x: Any, fmt: Any = E4M3) -> np.ndarray:
    """In float64, by the law."""
    return round_array(np.asarray(x, np.float64), fmt, "nearest_even")


def norm(x: Any) -> float:
    return float(np.sqrt(np.sum(np.square(np.float64(x)))))


def relative(value: Any, exact: Any) -> float:
    return norm(value - exact) / norm(exact)


def only(profile: ErrorProfile, primitive: str) -> Operation:
    (operation,) = (op for op in profile.operations if op.primitive == primitive)
    return operation


def computed(profile: ErrorProfile) -> list[Operation]:
    """The rows of operations alone, without those of what is rounded as it is read."""
    return [op for op in profile.operations if op.kind == "operation"]


def test_numbers_against_a_hand_computation():
    def fun(x, y):
        with jax.named_scope("first"):
            h = x * y
        return jnp.sum(h / 3.0)

    x, y = X, np.float32([0.7, -2.3, 5.1])
    profile = error_profile(fun, E4M3)(x, y)
    rx, ry = rounded(x), rounded(y)
    h = rounded(rx * ry)
    quotients = rounded(h / 3.0)
    total = rounded(np.sum(quotients))
    exact = np.float64(x) * np.float64(y)
    expected = [
        ("mul", "first", 3, relative(h, rx * ry), relative(h, exact)),
        ("div", "", 3, relative(quotients, h / 3.0), relative(quotients, exact / 3.0)),
        ("reduce_sum", "", 1, relative(total, np.sum(quotients)), relative(total, np.sum(exact / 3.0))),
    ]
    got = [(op.primitive, op.scope, op.entries, op.introduced, op.carried) for op in computed(profile)]
    for mine, theirs in zip(got, expected, strict=True):
        assert mine[:3] == theirs[:3]
        assert mine[3:] == pytest.approx(theirs[3:], rel=1e-12, abs=1e-15)
    assert profile.carried == pytest.approx(relative(total, np.sum(exact / 3.0)), rel=1e-12)
    assert_same(profile.value, np.float32(total))
    assert profile.first_nonfinite is None
    assert profile.first_underflow is None
    assert "test_error_profile.py:" in computed(profile)[0].source


def test_the_value_is_what_simulate_gives():
    def fun(x):
        return {"y": jnp.exp(x) * 0.3, "at": jnp.argmax(x), "name": "layer"}

    profile = error_profile(fun, BFLOAT16)(X)
    wanted = simulate(fun, BFLOAT16)(X)
    assert_same(profile.value["y"], wanted["y"])
    assert profile.value["at"] == wanted["at"]
    assert profile.value["name"] == "layer"
    exact = np.exp(np.float64(X)) * np.float64(np.float32(0.3))
    assert profile.carried == pytest.approx(relative(np.float64(wanted["y"]), exact), rel=1e-6)


def test_the_inexact_operation_is_the_only_one_that_introduces_anything():
    def fun(x):
        a = x * 2.0 + 1.0  # exact for these x
        with jax.named_scope("third"):
            b = a / 3.0
        return (b - b) + b * 4.0

    profile = error_profile(fun, E4M3)(np.float32([1.0, 2.0, 3.0]))
    assert {op.primitive: op.introduced > 0 for op in profile.operations} == {
        "mul": False, "add": False, "div": True, "sub": False,
    }  # fmt: skip
    assert profile.worst[0].scope == "third"
    assert profile.by_scope() == {"third": profile.worst[0].introduced, "": 0.0}
    assert profile.operations[-1].carried == pytest.approx(profile.worst[0].introduced)


def test_an_exact_function_gives_zeros():
    profile = error_profile(lambda x: jnp.max(x * 2.0) - x, BFLOAT16)(np.float32([1.0, -2.0, 0.5]))
    assert profile.carried == 0
    assert all((op.introduced, op.carried, op.underflowed, op.nonfinite) == (0, 0, 0, 0) for op in profile.operations)
    assert "relative error of the results: 0" in str(profile)


@pytest.mark.parametrize("fun", [lambda x: x - x, lambda x: jnp.argmax(x), lambda x: x > 0])
def test_results_that_are_zero_or_no_floats(fun):
    profile = error_profile(fun, BFLOAT16)(X)
    assert profile.carried == 0
    assert "not finite" not in profile.table().splitlines()[-1]


def test_the_argument_alone():
    """What rounding it introduced is all that there is."""
    profile = error_profile(lambda x: x, E4M3)(X)
    (row,) = profile.operations
    assert (row.primitive, row.kind, row.entries, row.scope, row.source) == ("argument 0", "argument", 3, "", "-")
    assert row.introduced == row.carried == profile.carried
    assert profile.carried == pytest.approx(relative(rounded(X), np.float64(X)), rel=1e-12)


def test_where_the_first_infinity_comes_from():
    def fun(x):
        with jax.named_scope("grows"):
            a = x * 16.0
            b = a * 16.0
        with jax.named_scope("breaks"):
            c = b * 16.0
        return jnp.log(c) - c

    profile = error_profile(fun, E5M2)(np.float32([1.0, 2.0, 16.0]))
    assert profile.first_nonfinite.scope == "breaks"
    assert (profile.first_nonfinite.nonfinite, profile.first_nonfinite.entries) == (1, 3)
    assert [op.nonfinite for op in profile.operations] == [0, 0, 1, 0, 0]  # what follows had infinite operands
    assert profile.worst[0] == profile.first_nonfinite
    assert not math.isfinite(profile.carried)
    lines = str(profile).splitlines()
    assert lines[-2] == "the results are not finite"
    assert lines[-1].startswith("not finite first: mul in breaks at test_error_profile.py:")
    # e4m3fn has no infinity: NaN.
    profile = error_profile(fun, E4M3)(np.float32([1.0]))
    assert profile.first_nonfinite.scope == "breaks"
    assert np.isnan(profile.value[0])


def test_underflow_is_counted():
    def fun(x):
        y = x * np.float32(2.0**-12)
        return y * 4096.0, x * 0.0

    x = np.float32([1.0, 2.0, 8.0, 0.0, -1.0])
    profile = error_profile(fun, E4M3)(x)
    # 2^-12 itself is zero in e4m3fn, whose smallest value is 2^-9; so every product is exactly what its operands say.
    assert [op.underflowed for op in computed(profile)] == [0, 0, 0]
    assert (profile.first_underflow.primitive, profile.first_underflow.kind) == ("constant 0.0002441", "constant")
    assert computed(profile)[0].carried == 1.0
    profile = error_profile(lambda x: (x * np.float32(2.0**-9), x * 0.0), E4M3)(np.float32([0.25, 0.5, 0.75, 1.0, 0.0, -0.25]))
    assert [op.underflowed for op in profile.operations] == [3, 0]  # 2^-11 twice, and the tie at 2^-10
    assert profile.first_underflow == profile.operations[0]
    assert "50 %" in str(profile)
    assert "underflow first: mul at test_error_profile.py" in str(profile)


def test_turns_of_a_scan():
    """1, 4, 16, 64, 256, and 1024 is too much: in the fifth of turns 0 to 7, all of which are one row."""

    def fun(x):
        return lax.scan(lambda c, _: (c * 4.0, c / 3.0), x, length=8)

    profile = error_profile(fun, E4M3)(np.float32([1.0, 0.25]))
    product, quotient = only(profile, "mul"), only(profile, "div")
    assert (product.entries, product.nonfinite, product.first_turn) == (16, 2, 4)
    assert profile.first_nonfinite == product
    assert quotient.first_turn is None
    assert "turn 4" in str(profile)
    states = np.float64([[4.0**turn, 4.0 ** (turn - 1)] for turn in range(8)])
    finite = np.where(states <= 448, states, np.nan)
    error, exact = rounded(finite / 3.0) - finite / 3.0, finite / 3.0
    introduced = math.sqrt(np.nansum(error**2) / np.nansum(exact**2))
    assert quotient.introduced == pytest.approx(introduced, rel=1e-12)
    assert product.introduced == 0


def test_turns_of_a_while_loop_and_of_loops_within_it():
    def grow(state):
        turn, x = state
        return turn + 1, lax.fori_loop(0, 2, lambda _, x: x * 2.0, x)

    profile = error_profile(lambda x: lax.while_loop(lambda s: s[0] < 6, grow, (0, x))[1], E4M3)(np.float32([1.0, 1.5]))
    product = only(profile, "mul")
    # 2, 4 | 8, 16 | 32, 64 | 128, 256 | 512: turn 4 of the outer loop. 1.5 times that: 384 | 768, one turn as well.
    assert (product.entries, product.nonfinite, product.first_turn) == (24, 2, 4)


def test_the_test_of_a_loop():
    """Rounded, and so it may end the loop elsewhere, but without a row of its own."""

    def fun(x):
        return lax.while_loop(lambda x: x[0] * 0.3 < 50.0, lambda x: x * 1.5, x)

    profile = error_profile(fun, E4M3)(np.float32([1.0]))
    states = [1.0]
    while rounded(states[-1] * rounded(np.float32(0.3))) < rounded(50.0):
        states.append(float(rounded(states[-1] * 1.5)))
    assert only(profile, "mul").entries == len(states) - 1
    assert_same(profile.value, np.float32([states[-1]]))


def test_a_loop_under_vmap():
    fun = jax.vmap(lambda x: lax.while_loop(lambda x: x < 20.0, lambda x: x * 2.5, x))
    x = np.float32([1.0, 7.0])
    profile = error_profile(fun, E4M3)(x)
    assert_same(profile.value, jax.jit(simulate(fun, E4M3))(x))
    assert profile.carried == pytest.approx(relative(np.float64(profile.value), np.float64([39.0625, 43.75])), rel=1e-12)


def test_branches_follow_the_simulation():
    """x / 3 > 1/3 holds in float64 but not in e4m3fn."""

    def fun(x):
        return lax.cond(x[0] / 3.0 > 0.333, lambda x: x / 7.0, lambda x: jnp.exp(x), x)

    profile = error_profile(fun, E4M3)(np.float32([1.0, 2.0]))
    taken = float(rounded(1 / 3)) > float(rounded(np.float32(0.333)))
    used, unused = ("div", "exp") if taken else ("exp", "div")
    by_name = {op.primitive: op for op in profile.operations[1:]}
    assert (by_name[used].entries, by_name[unused].entries) == (2, 0)
    assert (by_name[unused].introduced, by_name[unused].underflowed) == (0, 0)
    assert by_name[used].introduced > 0


def test_scopes_and_rules():
    def fun(x):
        with jax.named_scope("block"), jax.named_scope("norm"):
            x = x / 3.0
        with jax.named_scope("mlp"):
            x = jax.jit(lambda x: x * 1.7)(x)
        return x / 7.0

    profile = error_profile(fun, Rules(E4M3, scopes={"block/norm": FLOAT32}))(X)
    assert [op.scope for op in computed(profile)] == ["block/norm", "mlp", ""]
    assert computed(profile)[0].introduced < 2.0**-24
    assert all(op.introduced > 2.0**-8 for op in computed(profile)[1:])
    errors = profile.by_scope()
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert set(errors) == {"block/norm", "mlp", ""}
    assert list(errors)[-1] == "block/norm"


def test_gradients():
    """The backward pass has its rows, in the scopes of the forward one."""

    def loss(x):
        with jax.named_scope("layer"):
            h = jnp.tanh(x * 1.7)
        return jnp.sum(jax.checkpoint(jax.named_scope("again")(lambda h: jnp.sin(h) * h))(h))

    forward, profile = error_profile(loss, E4M3)(X), error_profile(jax.grad(loss), E4M3)(X)
    assert_same(profile.value, jax.jit(simulate(jax.grad(loss), E4M3))(X))
    exact = jax.grad(loss)(X)
    assert profile.carried == pytest.approx(relative(np.float64(profile.value), np.float64(exact)), rel=1e-5)
    assert {op.scope for op in profile.operations} == {"layer", "again", ""}
    assert len(profile.operations) > len(forward.operations)


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp", "custom_linear_solve"])
def test_functions_with_their_own_derivatives(name):
    @jax.custom_jvp
    def by_jvp(x):
        return x / 3.0

    by_jvp.defjvp(lambda primals, tangents: (by_jvp(*primals), tangents[0]))

    @jax.custom_vjp
    def by_vjp(x):
        return x / 3.0

    by_vjp.defvjp(lambda x: (by_vjp(x), None), lambda _, ct: (ct,))

    def solve(x):
        return lax.custom_linear_solve(lambda v: 3.0 * v, x, lambda _, b: b / 3.0, symmetric=True)

    profile = error_profile({"custom_jvp": by_jvp, "custom_vjp": by_vjp, "custom_linear_solve": solve}[name], E4M3)(X)
    assert [op.primitive for op in profile.operations] == ["argument 0", "div"]
    assert profile.carried == pytest.approx(relative(rounded(rounded(X) / 3), np.float64(X) / 3), rel=1e-12)


def test_the_table_prints_the_worst_first():
    def fun(x):
        with jax.named_scope("fine"):
            y = x * 2.0
        with jax.named_scope("coarse"):
            z = y / 3.5
        with jax.named_scope("middle"):
            return jnp.exp(z) * 1.001953125

    profile = error_profile(fun, Rules(BFLOAT16, scopes={"coarse": E5M2}))(X)
    introduced = [op.introduced for op in profile.worst]
    assert introduced == sorted(introduced, reverse=True)
    lines = profile.table().splitlines()
    assert lines[0].split() == ["operation", "scope", "introduced", "carried", "underflowed", "not", "finite", "where"]
    assert lines[1].split()[:2] == ["div", "coarse"]
    assert lines[2].split()[:4] == ["operand", "of", "div", "coarse"]  # what was bfloat16 is read as e5m2
    assert lines[-1] == f"relative error of the results: {profile.carried:.3g}"
    places = {line.index("test_error_profile.py") for line in lines[1:-1] if not line.startswith("argument")}
    assert len(places) == 1  # a table has columns
    short = profile.table(rows=2).splitlines()
    assert len(short) == 5
    assert short[3] == f"... and {len(profile.operations) - 2} more"
    assert str(profile) == profile.table()


@pytest.mark.slow
def test_what_is_random_has_the_random_modes_and_the_samplers():
    third = error_profile(lambda x: x / 3.0, BFLOAT16, mode=pl.stochastic)
    key = jax.random.key(0)
    x = np.tile(X, 8)
    profile = third(x, key=key)
    assert_same(profile.value, jax.jit(simulate(lambda x: x / 3.0, BFLOAT16, mode=pl.stochastic))(x, key=key))
    assert 0 < computed(profile)[0].introduced < 2.0**-7
    drawn = error_profile(lambda key: jax.random.normal(key, (50,)) * 3.0, E4M3)(key)  # draws are taken as given
    assert [op.primitive for op in computed(drawn)] == ["mul"]
    given = rounded(jax.random.normal(key, (50,)))
    assert drawn.carried == pytest.approx(relative(rounded(given * 3), given * 3), rel=1e-12)
    passed = error_profile(lambda x, *, key: x * jax.random.uniform(key), E4M3)(X, key=key)
    assert [op.primitive for op in computed(passed)] == ["mul"]


def test_accumulation():
    """A sum of ones that stops at 256: half of it is lost, all of it by one operation."""
    ones = np.ones(512, np.float32)
    profile = error_profile(jnp.dot, BFLOAT16, accumulation=Accumulation(accumulate=BFLOAT16))(ones, ones)
    assert only(profile, "dot_general").introduced == 0.5
    assert profile.carried == 0.5


def test_dtypes_of_the_program():
    def fun(x):
        return x.astype(jnp.bfloat16) * jnp.bfloat16(3)

    profile = error_profile(fun, None)(X)
    cast, product = profile.operations
    rx = rounded(X, BFLOAT16)
    assert cast.introduced == pytest.approx(relative(rx, np.float64(X)), rel=1e-12)
    assert product.introduced == pytest.approx(relative(rounded(rx * 3, BFLOAT16), rx * 3), rel=1e-12)
    assert profile.value.dtype == jnp.bfloat16


def callback(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_settings_and_dtypes_stay_the_users():
    x = jnp.asarray(X)
    before = jax.config.jax_enable_x64
    profile = error_profile(lambda x: x * x, BFLOAT16)(x)
    assert jax.config.jax_enable_x64 == before
    assert profile.value.dtype == jnp.float32
    assert jnp.asarray(np.float64(1.0)).dtype == jnp.float32
    with pytest.raises(NotImplementedError):
        error_profile(callback, Rules(BFLOAT16, strict=True))(np.eye(2, dtype=np.float32))
    assert jax.config.jax_enable_x64 == before
    with jax.enable_x64(True):
        profile = error_profile(lambda x: x / 3.0, FLOAT32)(jnp.asarray([1.0], jnp.float64))
        assert profile.value.dtype == jnp.float64
        assert profile.operations[0].introduced == abs(float(np.float32(1 / 3)) - 1 / 3) * 3


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: error_profile(jnp.sin, "bfloat16"), TypeError, "must be a Format such as precisionlab.BFLOAT16"),
        (lambda: error_profile(jnp.sin, BFLOAT16, mode="up"), TypeError, "must be a rounding function"),
        (lambda: error_profile(jnp.sin, BFLOAT16, accumulation=3), TypeError, "expected an Accumulation"),
        (lambda: error_profile(jnp.sin, Rules(BFLOAT16, {"sine": E4M3}))(X), ValueError, 'no primitive "sine"'),
        (lambda: error_profile(jnp.sin, BFLOAT16, mode=pl.stochastic)(X), ValueError, "stochastic rounding needs random bits"),
        (lambda: error_profile(callback, Rules(BFLOAT16, strict=True))(X), NotImplementedError, "pure_callback"),
    ],
)
def test_errors_are_sentences(make, kind, says):
    with pytest.raises(kind, match="error_profile: ") as raised:
        make()
    assert says in str(raised.value)


def test_sharded_functions_are_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(lambda x: x / 3.0, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    with pytest.raises(ValueError, match="error_profile: the function is sharded with shard_map; profile it"):
        error_profile(sharded, BFLOAT16)(X)


def test_plot():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    def fun(x):
        with jax.named_scope("grows"):
            y = x * 16.0
        with jax.named_scope("breaks"):
            return y * 256.0 / 7.0

    ax = error_profile(fun, E4M3)(np.float32([1.0, 0.5, 2.0])).plot()
    try:
        assert list(ax.lines[0].get_xdata()) == [0, 1, 2]
        assert ax.get_yscale() == "log"
        assert [label.get_text() for label in ax.get_xticklabels()] == ["grows", "breaks"]
        assert "results not finite" in [text.get_text() for text in ax.get_legend().get_texts()]
        third = error_profile(lambda x: x / 3.0, E4M3)(X)
        assert third.plot(ax) is ax
        assert list(ax.lines[-1].get_ydata()) == [row.introduced for row in third.operations]
    finally:
        pyplot.close(ax.figure)


def test_a_profile_is_not_jitted():
    with pytest.raises(TypeError, match="cannot itself be jitted"):
        jax.jit(pl.error_profile(jnp.sin, pl.BFLOAT16))(jnp.ones(3))


@pytest.mark.slow
def test_a_reduction_by_a_function_is_profiled_over_its_applications():
    profile = pl.error_profile(lambda x: jax.lax.reduce(x, jnp.float32(0), lambda a, b: a + b * 0.7, (1,)), pl.BFLOAT16)
    seen = computed(profile(jnp.ones((3, 5))))
    assert [(operation.primitive, operation.entries) for operation in seen] == [("mul", 15), ("add", 15)]
