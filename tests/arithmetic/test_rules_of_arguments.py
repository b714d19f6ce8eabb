"""`Rules(arguments=...)`: the formats in which single arguments enter."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic import ScopeWarning, error_profile, simulate
from precisionlab.arithmetic.rules import Rules, argument_matches, describe_rules, resolve_argument

BFLOAT16, FLOAT16, FLOAT32, E4M3 = pl.BFLOAT16, pl.FLOAT16, pl.FLOAT32, pl.FLOAT8_E4M3FN
POSITIONS = np.float32([257.0, 1023.0, 4097.0])
WEIGHTS = {"dense": {"scale": np.float32(1.01), "bias": np.float32(0.3)}, "norm": {"scale": np.float32(0.7)}}


def attend(weights: Any, batch: Any) -> Any:
    with jax.named_scope("rope"):
        angle = jnp.sin(batch["positions"] * 0.01)
    return angle * weights["dense"]["scale"] + weights["dense"]["bias"] * weights["norm"]["scale"]


RULES = Rules(BFLOAT16, scopes={"rope": FLOAT32}, arguments={"1/positions": None})


def by_hand(weights: Any, batch: Any) -> Any:
    """The same, each rounding written down."""
    to = lambda x: pl.round_to(jnp.asarray(x, jnp.float32), BFLOAT16)  # noqa: E731
    angle = to(jnp.sin(batch["positions"] * jnp.float32(0.01)))
    dense, norm = weights["dense"], weights["norm"]
    return to(to(angle * to(dense["scale"])) + to(to(dense["bias"]) * to(norm["scale"])))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("1", ("1", "positions"), True),
        ("1/positions", ("1", "positions"), True),
        ("1/positions", ("1", "positions", "0"), True),  # all of it
        ("positions", ("1", "positions"), False),  # from the beginning
        ("1", ("0", "layers", "1"), False),
        ("**/scale", ("0", "dense", "scale"), True),
        ("**/scale", ("scale",), True),
        ("0/**/scale", ("1", "dense", "scale"), False),
        ("0/**/scale", ("0", "dense", "scales"), False),
        ("0/*/scale", ("0", "dense", "scale"), True),
        ("0/*/scale", ("0", "dense", "inner", "scale"), False),
        ("0/d?nse", ("0", "dense", "bias"), True),
        ("**", ("0",), True),
        ("1/positions/0", ("1", "positions"), False),
    ],
)
def test_paths_match(pattern, path, matches):
    assert argument_matches(pattern, path) == matches


def test_the_longest_pattern_decides():
    rules = Rules(BFLOAT16, arguments={"0": E4M3, "0/dense/scale": None, "**/scale": FLOAT16})
    paths = (("0", "dense", "scale"), ("0", "norm", "scale"), ("0", "dense", "bias"), ("1", "scale"), ("1", "x"))
    assert [resolve_argument(rules, path) for path in paths] == [None, FLOAT16, E4M3, FLOAT16, BFLOAT16]
    assert resolve_argument(BFLOAT16, ("0",)) == BFLOAT16
    assert describe_rules(Rules(BFLOAT16, arguments={"1": FLOAT32})) == "bfloat16 (argument 1: float32)"


def test_an_exempted_argument_reaches_its_scope_as_it_is():
    batch = {"positions": POSITIONS}
    wanted = by_hand(WEIGHTS, batch)
    assert simulate(attend, RULES)(WEIGHTS, batch).tolist() == wanted.tolist()
    without = RULES._replace(arguments={})
    assert simulate(attend, without)(WEIGHTS, batch).tolist() != wanted.tolist()
    assert jax.jit(simulate(attend, RULES))(WEIGHTS, batch).tolist() == wanted.tolist()
    each = jax.vmap(simulate(attend, RULES), in_axes=(None, 0))(WEIGHTS, batch)
    assert each.tolist() == wanted.tolist()
    rows = [row.primitive for row in error_profile(attend, RULES)(WEIGHTS, batch).operations if row.kind == "argument"]
    assert rows == ["argument 0/dense/bias", "argument 0/dense/scale", "argument 0/norm/scale"]


def test_moves_and_loops_leave_it_as_it_is_and_operations_do_not():
    x = POSITIONS

    def loop(x):
        def turn(carry, position):
            with jax.named_scope("rope"):
                return carry, position + 0.5

        return jax.lax.scan(turn, 0.0, x[::-1].reshape(3, 1))[1]

    rules = Rules(BFLOAT16, scopes={"rope": FLOAT32}, arguments={"0": FLOAT32})
    assert simulate(loop, rules)(x)[:, 0].tolist() == [4097.5, 1023.5, 257.5]
    assert simulate(lambda x: x[::-1], rules._replace(scopes={}))(x).tolist() == x[::-1].tolist()
    assert simulate(lambda x: x - 256.0, rules._replace(scopes={}))(x).tolist() == [0.0, 768.0, 3840.0]  # read in bfloat16
    assert simulate(lambda x: x * 1.0, Rules(FLOAT32, arguments={"0": BFLOAT16}))(x).tolist() == [256.0, 1024.0, 4096.0]


def test_gradients_go_through():
    batch = {"positions": POSITIONS}
    value, slope = jax.value_and_grad(lambda batch: simulate(attend, RULES)(WEIGHTS, batch).sum())(batch)
    exact = jax.grad(lambda batch: attend(WEIGHTS, batch).sum())(batch)
    np.testing.assert_allclose(slope["positions"], exact["positions"], rtol=0.02)
    inside = simulate(jax.value_and_grad(lambda w, b: attend(w, b).sum()), RULES)(WEIGHTS, batch)
    assert float(inside[0]) == pytest.approx(float(value), rel=0.01)


def test_by_keyword_traced_and_with_modes():
    fun = lambda x, *, mask: x[:0].sum() + mask  # noqa: E731
    x = np.float32([1.0])
    rules = Rules(BFLOAT16, primitives={"add": FLOAT32}, arguments={"mask": FLOAT32})
    assert float(simulate(fun, rules)(x, mask=np.float32(257.0))) == 257.0

    def sweep(fmt):
        return simulate(lambda x: x, Rules(FLOAT32, arguments={"0": fmt}))(np.float32(257.0))

    assert jax.vmap(sweep)(pl.stack_formats([BFLOAT16, FLOAT16])).tolist() == [256.0, 257.0]
    modes = Rules(pl.nearest_even, arguments={"0": pl.upward})
    assert simulate(lambda x, y: (x, y), BFLOAT16, mode=modes)(np.float32(256.5), np.float32(256.5)) == (258.0, 256.0)


def test_a_path_that_does_not_exist_is_told():
    batch = {"positions": POSITIONS}
    rules = Rules(BFLOAT16, arguments={"1/position": None})
    with pytest.warns(ScopeWarning) as caught:
        simulate(attend, rules)(WEIGHTS, batch)
    said = str(caught[0].message)
    assert said.startswith('simulate: a rule is for the argument "1/position", which the function is not given; allowed are ')
    assert said.endswith('1/positions; did you mean "1/positions"?.') or 'did you mean "1/positions"?' in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(attend, RULES)(WEIGHTS, batch)


@pytest.mark.parametrize(
    ("rules", "kind", "says"),
    [
        (Rules(BFLOAT16, arguments=[FLOAT32]), TypeError, "Rules.arguments must be a dict"),
        (Rules(BFLOAT16, arguments={"": FLOAT32}), ValueError, "names must be non-empty text"),
        (Rules(BFLOAT16, arguments={"0//w": FLOAT32}), ValueError, "names must be non-empty text"),
        (Rules(BFLOAT16, arguments={0: FLOAT32}), ValueError, "names must be non-empty text; got 0"),
        (Rules(BFLOAT16, arguments={"0": "float32"}), TypeError, "a rule must be a Format"),
        (Rules(BFLOAT16, arguments={"0": Rules(FLOAT32)}), TypeError, 'the argument "0" must be one format or None'),
        (Rules(BFLOAT16, scopes={"a": Rules(BFLOAT16, arguments={"0": None})}), ValueError, "belong into the outermost Rules"),
        (Rules(BFLOAT16, arguments={"0": pl.MXFP8_E4M3}), ValueError, "blocks with shared scales"),
    ],
)
def test_errors_are_sentences(rules, kind, says):
    with pytest.raises(kind, match="simulate: ") as raised:
        simulate(attend, rules)
    assert says in str(raised.value)
