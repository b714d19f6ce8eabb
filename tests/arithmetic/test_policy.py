"""A policy is one entry a site; stacked, it is the same policies with only what differs traced."""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.arithmetic.policy import PLACEMENTS, check_policy, describe, split_policy, stack_policies
from precisionlab.arithmetic.rules import Rules
from precisionlab.numerics.blocks import MXFP8_E4M3, NVFP4
from tests import cases

ALIKE = [pl.Policy(weights=pl.BFLOAT16), pl.Policy(weights=pl.FLOAT8_E5M2), pl.Policy(weights=pl.FLOAT16)]
MIXED = [
    pl.Policy(weights=pl.BFLOAT16, gradients=pl.FLOAT8_E5M2),
    pl.Policy(weights=pl.FLOAT8_E4M3FNUZ),
    pl.Policy(weights=pl.FLOAT16._replace(subnormals=False), updates=pl.fixed_point(2, 5)),
    pl.Policy(),
]
RULES = Rules(pl.FLOAT8_E4M3FN, primitives={"exp": pl.BFLOAT16}, scopes={"layer1": pl.FLOAT32})
RULED = [
    pl.Policy(compute=RULES),
    pl.Policy(),
    pl.Policy(weights=pl.BFLOAT16, compute=Rules(None, {"exp": pl.FLOAT16}, {"layer1": pl.FLOAT8_E4M3FNUZ})),
]


def test_a_policy_names_five_sites() -> None:
    assert pl.Policy._fields == ("weights", "compute", "gradients", "updates", "moments")
    assert list(pl.Policy()) == [None] * 5
    assert jax.tree.leaves(pl.Policy(weights=1, updates="any value")) == [1, "any value"]


def test_a_policy_in_words() -> None:
    assert describe(pl.Policy()) == "float32 throughout"
    both = pl.Policy(weights=pl.FLOAT8_E4M3FN, gradients=pl.BFLOAT16)
    assert describe(both) == "weights float8_e4m3fn, gradients bfloat16"
    ruled = pl.Policy(weights=MXFP8_E4M3, compute=RULES)
    assert describe(ruled) == "weights mxfp8_e4m3, compute float8_e4m3fn (layer1: float32, exp: bfloat16)"


def test_placements_are_sites_and_grow() -> None:
    assert list(PLACEMENTS) == ["weights", "gradients", "all"]
    for smaller, larger in pairwise(PLACEMENTS.values()):
        assert set(smaller) < set(larger) <= set(pl.Policy._fields)


def test_checking_gives_the_policy_back_or_a_sentence() -> None:
    for policy in (*ALIKE, *MIXED, *RULED, pl.Policy(weights=MXFP8_E4M3, gradients=NVFP4, updates=MXFP8_E4M3)):
        assert check_policy(policy, "here") is policy
    traced: list[Any] = []
    jax.jit(lambda fmt: traced.append(check_policy(pl.Policy(weights=fmt), "here")))(pl.FLOAT16)
    assert len(traced) == 1
    with pytest.raises(TypeError, match=r"here: got a Format .*Policy\(weights=\.\.\.\)"):
        check_policy(pl.BFLOAT16, "here")
    with pytest.raises(TypeError, match=r"here: expected a Policy, such as .*; got 'bfloat16'"):
        check_policy("bfloat16", "here")
    for site in ("weights", "gradients", "updates", "moments"):
        allowed = "a Format or None" if site == "moments" else "a Format, a BlockFormat or None"
        with pytest.raises(TypeError, match=rf"here: Policy\.{site} must be {allowed}; got 8"):
            check_policy(pl.Policy(**{site: 8}), "here")
        with pytest.raises(ValueError, match=rf"here: Policy\.{site}.*float32"):
            check_policy(pl.Policy(**{site: pl.FLOAT64}), "here")
    with pytest.raises(TypeError, match=r"here: Policy\.compute: a rule must be a Format such as .*, or None; got 8"):
        check_policy(pl.Policy(compute=8), "here")
    with pytest.raises(ValueError, match=r"here: Policy\.compute.*float32"):
        check_policy(pl.Policy(compute=Rules(pl.FLOAT64)), "here")
    check_policy(pl.Policy(compute=Rules(primitives={"a_library_s_own": pl.BFLOAT16})), "here")  # a call can tell
    with pytest.raises(ValueError, match=r"here: Policy\.compute: blocks with shared scales are operands of matrix products"):
        check_policy(pl.Policy(compute=MXFP8_E4M3), "here")
    with pytest.raises(TypeError, match=r"here: Policy\.moments must be a Format or None; got BlockFormat"):
        check_policy(pl.Policy(moments=MXFP8_E4M3), "here")


@pytest.mark.parametrize("policies", [ALIKE, MIXED, MIXED[:1]], ids=["alike", "mixed", "one"])
def test_stacked_policies_are_the_policies(policies: list[pl.Policy]) -> None:
    stacked, complete = stack_policies(policies)
    x = jnp.asarray(np.concatenate([cases.patterns()[::97], cases.random_bits(500, seed=1)]))
    for site in ("weights", "gradients", "updates"):
        formats = [getattr(policy, site) for policy in policies]
        if all(fmt is None for fmt in formats):
            assert getattr(stacked, site) is None
            continue
        rounded = jax.vmap(lambda policy, site=site: pl.round_to(x, getattr(complete(policy), site)))(stacked)
        for row, fmt in zip(rounded, formats, strict=True):
            cases.assert_same(row, x if fmt is None else pl.round_to(x, fmt), x, f"{site} {fmt}")
    assert stacked.moments is None


def test_what_all_policies_share_is_not_traced() -> None:
    stacked, complete = stack_policies(ALIKE)
    assert (stacked.weights.subnormals, stacked.weights.zeros) == (None, None)
    one = complete(jax.tree.map(lambda leaf: leaf[0], stacked))
    assert one.weights.subnormals is True
    assert one.weights.zeros == 2
    assert (int(one.weights.precision), math.isinf(one.weights.overflow)) == (8, True)
    mixed, _ = stack_policies(MIXED)
    assert mixed.weights.zeros.tolist() == [2, 1, 2, 2]
    assert mixed.weights.subnormals.tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match=r"stack_policies: got no policies; give at least one"):
        stack_policies([])


def test_rules_are_stacked_place_by_place() -> None:
    stacked, complete = stack_policies(RULED)
    assert stacked.compute.default.precision.tolist() == [4, 24, 24]
    assert stacked.compute.primitives["exp"].precision.tolist() == [8, 24, 11]
    assert stacked.compute.scopes["layer1"].zeros.tolist() == [2, 2, 1]
    assert stacked.compute.default.zeros is None  # shared
    for row in range(3):
        one = complete(jax.tree.map(lambda leaf, i=row: leaf[i], stacked))
        assert one.compute.default.zeros == 2
        for here, place in ((one.compute.default, 0), (one.compute.primitives["exp"], 1), (one.compute.scopes["layer1"], 2)):
            given = RULED[row].compute
            formats = [None] * 3 if given is None else [given.default, given.primitives["exp"], given.scopes["layer1"]]
            expected = pl.FLOAT32 if formats[place] is None else formats[place]
            assert [float(number) for number in here] == pytest.approx([float(number) for number in expected], nan_ok=True)
    with pytest.raises(ValueError, match=r"stack_policies: the policies have different rules at compute.*one by one"):
        stack_policies([pl.Policy(compute=RULES), pl.Policy(compute=Rules(pl.BFLOAT16))])
    with pytest.raises(ValueError, match="different rules at compute"):
        stack_policies([pl.Policy(compute=RULES), pl.Policy(compute=pl.BFLOAT16)])


def test_block_formats_are_structure() -> None:
    alike = [pl.Policy(weights=fmt, gradients=MXFP8_E4M3) for fmt in (pl.BFLOAT16, pl.FLOAT16)]
    stacked, complete = stack_policies(alike)
    assert stacked.gradients is None
    assert complete(jax.tree.map(lambda leaf: leaf[0], stacked)).gradients == MXFP8_E4M3
    for other, names in ((NVFP4, "mxfp8_e4m3, nvfp4"), (pl.BFLOAT16, "mxfp8_e4m3, bfloat16"), (None, "mxfp8_e4m3, none")):
        with pytest.raises(ValueError, match=rf"stack_policies: gradients differ in a block format, .*\({names}\)"):
            stack_policies([alike[0], pl.Policy(gradients=other)])
    mixed = pl.Policy(weights=MXFP8_E4M3, compute=RULES, gradients=pl.FLOAT16)
    numbers, complete = split_policy(mixed)
    assert numbers.weights is None
    assert all(isinstance(leaf, bool | int | float) for leaf in jax.tree.leaves(numbers))
    assert complete(numbers) == mixed
