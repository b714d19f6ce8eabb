"""Strict JAX for every test, and markers that mean what they say."""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too (exhaustive sweeps)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: exhaustive; run with --slow, or alone with -m slow")
    config.addinivalue_line("markers", "gpu: needs an accelerator that JAX can see")
    if config.getoption("--slow") and config.option.markexpr == "not slow":
        config.option.markexpr = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason, and the slow tests unless they were asked for."""
    asked = config.getoption("--slow") or config.option.markexpr
    for item in items:
        if "slow" in item.keywords and not asked:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and jax.default_backend() == "cpu":
            item.add_marker(pytest.mark.skip(reason="gpu: JAX finds no accelerator here, only cpu"))


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Floats that differ in the last bit print alike; show them in hexadecimal."""
    if op == "==" and isinstance(left, float) and isinstance(right, float):
        return [f"{left!r} == {right!r}", f"{left.hex()} == {right.hex()}"]
    return None
