"""A policy is one entry a site; stacked, it is the same policies with only what differs traced."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.policy import check_policy, describe, stack_policies
from tests import cases

ALIKE = [pl.Policy(weights=pl.BFLOAT16), pl.Policy(weights=pl.FLOAT8_E5M2), pl.Policy(weights=pl.FLOAT16)]
MIXED = [
    pl.Policy(weights=pl.BFLOAT16, gradients=pl.FLOAT8_E5M2),
    pl.Policy(weights=pl.FLOAT8_E4M3FNUZ),
    pl.Policy(weights=pl.FLOAT16._replace(subnormals=False), updates=pl.fixed_point(2, 5)),
    pl.Policy(),
]


def test_a_policy_names_five_sites() -> None:
    assert pl.Policy._fields == ("weights", "compute", "gradients", "updates", "moments")
    assert list(pl.Policy()) == [None] * 5
    assert jax.tree.leaves(pl.Policy(weights=1, updates="any value")) == [1, "any value"]


def test_a_policy_in_words() -> None:
    assert describe(pl.Policy()) == "float32 throughout"
    both = pl.Policy(weights=pl.FLOAT8_E4M3FN, gradients=pl.BFLOAT16)
    assert describe(both) == "weights float8_e4m3fn, gradients bfloat16"


def test_checking_gives_the_policy_back_or_a_sentence() -> None:
    for policy in (*ALIKE, *MIXED):
        assert check_policy(policy, "here") is policy
    traced: list[Any] = []
    jax.jit(lambda fmt: traced.append(check_policy(pl.Policy(weights=fmt), "here")))(pl.FLOAT16)
    assert len(traced) == 1
    with pytest.raises(TypeError, match=r"here: got a Format .*Policy\(weights=\.\.\.\)"):
        check_policy(pl.BFLOAT16, "here")
    with pytest.raises(TypeError, match=r"here: expected a Policy, such as .*; got 'bfloat16'"):
        check_policy("bfloat16", "here")
    for site in ("weights", "gradients", "updates", "moments"):
        with pytest.raises(TypeError, match=rf"here: Policy\.{site} must be a Format or None; got 8"):
            check_policy(pl.Policy(**{site: 8}), "here")
        with pytest.raises(ValueError, match=rf"here: Policy\.{site}.*float32"):
            check_policy(pl.Policy(**{site: pl.FLOAT64}), "here")
    with pytest.raises(ValueError, match=r"here: .*leave Policy\.compute at None"):
        check_policy(pl.Policy(compute=pl.BFLOAT16), "here")


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
