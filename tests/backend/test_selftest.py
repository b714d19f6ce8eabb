"""The self-test measures, says what it measured, and fails exactly where results could not be trusted."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.backend import canaries, selftest
from precisionlab.backend import facts as backend


@pytest.fixture(scope="module")
def checks():
    return {check.name: check for check in selftest.run_checks()}


@pytest.mark.slow
def test_every_check_passes_here_and_speaks_in_sentences(checks):
    assert len(checks) == 13
    for check in checks.values():
        assert check.ok, check
        assert check.question.endswith("?")
        assert check.found.endswith(".")
        assert check.remedy.endswith(".")


def test_counts_in_the_sentences_are_the_measured_ones(checks):
    assert f": {backend.elided_products():,} of 4,096 entries" in checks["elided rounding of a product"].found
    assert f": {backend.elided_round_trips():,} of 4,096 entries" in checks["elided round trip"].found
    assert f": {backend.contracted_products():,} of 4,096 entries" in checks["fused multiply-add"].found
    assert f": {backend.folded_constants():,} of 4,096 entries" in checks["folded constants"].found
    seen, true = backend.stagnation_seen()
    assert f"shows {seen:,} of the {true:,} unchanged" in checks["stagnation seen by subtraction"].found
    wrong, zeros = backend.reduce_precision_errors()
    found = checks["lax.reduce_precision"].found
    assert f": {wrong:,} of 65,536 bfloat16 patterns come out wrong, {zeros:,} as zero" in found
    for name, flushed in backend.flushed_casts().items():
        assert f"{name} {'flushes' if flushed else 'keeps'}" in checks["subnormals in casts"].found
    for name, (flushed, equal) in backend.subnormal_arithmetic().items():
        found = checks["subnormals in arithmetic and comparisons"].found
        assert f"{name}: x + x is {'flushed to 0' if flushed else 'kept'}, x == 0 is {equal}" in found


def test_own_rounding_reports_no_error_in_any_format(checks):
    assert re.findall(r"([\d,]+) to (\w+)", checks["precisionlab's rounding"].found) == [
        ("0", "bfloat16"),
        ("0", "float16"),
        ("0", "float8_e4m3fn"),
        ("0", "float8_e5m2"),
    ]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a statement about XLA on CPUs")
def test_what_cpus_are_known_to_do():
    assert backend.elided_products() > 3000
    seen, true = backend.stagnation_seen()
    assert (seen, true > 2000) == (0, True)
    assert backend.subnormal_arithmetic()["float32"] == (True, True)
    assert backend.folded_constants() == (0 if jax.__version_info__ >= (0, 12) else 4096)


def test_operation_by_operation_nothing_is_elided(monkeypatch):
    """The oracles agree with JAX itself as long as each operation is compiled alone."""
    monkeypatch.setattr(backend, "jitted", lambda function, *arrays: np.asarray(function(*map(jnp.asarray, arrays))))
    assert backend.elided_products() == 0
    assert backend.elided_round_trips() == 0
    assert backend.contracted_products() == 0
    assert backend.folded_constants() == 0
    seen, true = backend.stagnation_seen()
    assert seen == true > 0


def test_in_numpy_no_subnormal_is_flushed(monkeypatch):
    monkeypatch.setattr(backend, "jitted", lambda function, *arrays: np.asarray(function(*arrays)))
    assert set(backend.subnormal_arithmetic().values()) == {(False, False)}
    assert not any(backend.flushed_casts().values())


def test_wrong_rounding_is_not_ok(monkeypatch):
    monkeypatch.setattr(selftest, "round_to", lambda x, _: x)
    check = selftest._own_rounding()
    assert not check.ok
    assert check.found.startswith("no: ")
    x = backend.bfloat16_patterns()
    with np.errstate(over="ignore", invalid="ignore"):
        kept = np.sum((x.astype(np.float16).astype(np.float32) == x) | np.isnan(x))
    assert f"{x.size - kept:,} to float16" in check.found
    assert "Do not trust results here" in check.remedy


@pytest.mark.parametrize(
    ("canary", "check", "result", "words"),
    [
        ("wrong_rows", "_rows", 7, "7 of 16,385 float64 rows are wrong"),
        ("wrong_products", "_products", 299, "299 of 300 float32 sums are wrong"),
        ("crash", "_crash", "it was killed by SIGSEGV", "it was killed by SIGSEGV"),
    ],
)
def test_a_singing_canary_is_not_ok_and_names_the_bad_versions(monkeypatch, canary, check, result, words):
    monkeypatch.setattr(canaries, canary, lambda *_: result)
    row = getattr(selftest, check)()
    assert not row.ok
    assert row.found.startswith("no: ")
    assert words in row.found
    assert f"Do not use jax {jax.__version__}" in row.remedy
    assert "0.10.2" in row.remedy


def test_a_known_defect_with_a_way_around_it_is_named(monkeypatch):
    monkeypatch.setattr(canaries, "wrong_products", lambda _, guarded=False: 0 if guarded else 299)
    row = selftest._products()
    assert row.ok
    assert row.found == (
        "no: 299 of 300 float64 sums are wrong; 299 of 300 float32 sums are wrong; behind jax.lax.optimization_barrier none is."
    )
    for words in ("precisionlab computes nothing this way", "pass that matrix as an argument", "0.10.2 to 0.12.0.1 are known"):
        assert words in row.remedy


def test_a_crash_that_could_not_be_tried_is_information(monkeypatch):
    def no_process():
        raise PermissionError("no more processes")

    monkeypatch.setattr(canaries, "crash", no_process)
    row = selftest._crash()
    assert row.ok
    assert row.found.startswith("not tried")
    assert "0.10.2 and 0.11.0" in row.remedy


def test_configuration_is_left_alone():
    before = dict(jax.config.values)
    selftest._rows()
    backend.flushed_casts()
    assert dict(jax.config.values) == before
    assert jnp.asarray(1.0).dtype == jnp.float32
