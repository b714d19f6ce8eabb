"""Strict JAX for every test, and markers that mean what they say."""

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an accelerator where there is none; `-m slow` (see pyproject.toml) picks the exhaustive tests."""
    for item in items:
        if "gpu" in item.keywords and jax.default_backend() == "cpu":
            item.add_marker(pytest.mark.skip(reason="gpu: JAX finds no accelerator here, only cpu"))


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Floats that differ in the last bit print alike; show them in hexadecimal."""
    if op == "==" and isinstance(left, float) and isinstance(right, float):
        return [f"{left!r} == {right!r}", f"{left.hex()} == {right.hex()}"]
    return None
