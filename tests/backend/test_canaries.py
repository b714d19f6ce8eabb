"""The compiler that runs these tests is not one of the broken ones."""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.backend import canaries
from precisionlab.stagnation.reducing import sums

HERE = f"this is jax {jax.__version__} with jaxlib {version('jaxlib')}"


@pytest.mark.parametrize(("dtype", "rows"), [(np.float64, 16_385), (np.float64, 32_769), (np.float32, 32_769)])
def test_vmapped_product_and_reduction(dtype, rows):
    wrong = canaries.wrong_rows(dtype, rows)
    assert wrong == 0, f"{wrong} of {rows} rows are wrong; {HERE}; {canaries.BAD_VERSIONS['wrong_rows']}"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_product_with_a_constant_matrix(dtype):
    wrong = canaries.wrong_products(dtype)
    known = version("jaxlib") in ("0.11.2", "0.12.0.1")  # supported, and named; a later one that is right tells us here
    assert (wrong > 250) if known else wrong == 0, f"{wrong} of 300 sums are wrong; {HERE}"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_product_with_a_guarded_constant_matrix(dtype):
    wrong = canaries.wrong_products(dtype, guarded=True)
    assert wrong == 0, f"{wrong} of 300 sums are wrong; {HERE}"


SHAPES = [(64, 64), (5, 60, 60), (200, 200), (3, 3, 64, 64), (1000, 64), (4097, 3), (2, 5000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_by_a_constant_vector_as_the_tally_makes_them(shape):
    assert_sums(shape, stacked=False)


@pytest.mark.parametrize("shape", [(300, 64, 64), (7, 60, 60), (40, 5, 20, 30)])
def test_sums_by_a_constant_vector_of_leaves_looked_at_together(shape):
    assert_sums(shape, stacked=True)


def assert_sums(shape, *, stacked):
    def four(x):
        return sums([x, jnp.abs(x), x * x, jnp.where(x > 1, x, 0)])

    terms = np.random.default_rng(0).integers(-8, 9, shape).astype(np.float32)
    found = jax.jit(jax.vmap(four) if stacked else four)(terms)
    axes = tuple(range(int(stacked), len(shape)))
    right = [term.sum(axes, np.float64) for term in (terms, np.abs(terms), terms * terms, np.where(terms > 1, terms, 0))]
    assert [np.asarray(each).tolist() for each in found] == [each.tolist() for each in right], HERE


def test_reductions_of_high_rank_do_not_crash():
    happened = canaries.crash()
    assert happened is None, f"{happened}; {HERE}; {canaries.BAD_VERSIONS['crash']}"


@pytest.mark.parametrize(
    ("program", "happened"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by SIGSEGV"),
        ("import time; time.sleep(60)", "it hung for 0.5 s"),
        ("raise RuntimeError('no backend')", "it ended with status 1: RuntimeError: no backend"),
        ("print('6143 (10,)')", "it printed '6143 (10,)' instead of '6144 (10, 4, 9, 9, 9, 9, 9)'"),
    ],
)
def test_a_dead_process_is_described(monkeypatch, program, happened):
    monkeypatch.setattr(canaries, "_CRASHERS", program)
    assert canaries.crash(timeout=0.5 if "sleep" in program else 30) == happened


def test_an_interpreter_that_cannot_start_says_so(monkeypatch):
    monkeypatch.setattr(canaries.sys, "executable", "")
    with pytest.raises(OSError, match="does not know its own path"):
        canaries.crash()
    monkeypatch.setattr(canaries.sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="/nowhere/python"):
        canaries.crash()
