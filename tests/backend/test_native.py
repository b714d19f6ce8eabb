"""The native arithmetic beside the faithful one: what is known exactly is found exactly."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.backend import native


def normal(seed, dtype=np.float32, shape=(4096,)):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_products_and_sums_of_bfloat16_are_rounded_natively_too():
    a, b = normal(0, ml_dtypes.bfloat16), normal(1, ml_dtypes.bfloat16)
    for function in (jnp.add, jnp.multiply):
        assert pl.native_difference(function)(a, b) == pl.Difference(4096, 0, 0.0)


def test_contraction_is_counted_as_numpy_counts_it():
    a, b, c = (normal(seed) for seed in (5, 6, 7))
    wrong = int(np.sum(np.asarray(jax.jit(lambda a, b, c: a * b + c)(a, b, c)) != a * b + c))
    found = pl.native_difference(lambda a, b, c: a * b + c)(a, b, c)
    assert (found.entries, found.different) == (4096, wrong)
    assert found.share == wrong / 4096


def test_a_division_by_a_scalar_is_counted_as_numpy_counts_it():
    x, three = normal(8), np.float32(3)
    wrong = int(np.sum(np.asarray(jax.jit(lambda x: x / three)(x)) != x / three))
    assert pl.native_difference(lambda x: x / three)(x).different == wrong


def test_only_floating_results_count_and_zeros_and_nans_agree():
    x = jnp.array([0.0, -0.0, jnp.nan, jnp.inf, 1.0])
    found = pl.native_difference(lambda x: (x > 0, x * 1, {"index": jnp.argmax(x)}))(x)
    assert found == pl.Difference(5, 0, 0.0)
    assert pl.native_difference(lambda x: x > 0)(x).share == 0.0


def test_a_number_and_no_number_differ():
    calls = []

    def first_time_nan(x):
        calls.append(x)
        return x if len(calls) > 1 else x * jnp.nan

    found = native.native_difference(first_time_nan)(normal(3, shape=(5,)))
    assert (found.different, found.largest) == (5, 0.0)


def test_without_jit_each_operation_is_its_own_program():
    a, b, c = (normal(seed) for seed in (5, 6, 7))
    assert pl.native_difference(lambda a, b, c: a * b + c, jit=False)(a, b, c).different == 0


@pytest.mark.parametrize("dtype", native.DTYPES)
def test_every_dtype_has_an_answer(dtype):
    found = native.compare_one("a + b", dtype)
    assert found.entries == 64 * 256 or found.refused


def test_the_table_has_a_row_for_every_operation(capsys, monkeypatch):
    monkeypatch.setattr(native, "compare_one", lambda _, dtype: pl.Difference(4, 1, 0.5, "no" * (dtype == "float16")))
    native.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == list(native.OPERATIONS)
    assert lines[4].endswith("| 25 % (0.5) | 25 % (0.5) | refused | 25 % (0.5) | 25 % (0.5) |")
