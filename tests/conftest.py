"""Strict JAX for every test, and markers that mean what they say."""

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Examples in docstrings that train something, or are tested otherwise: `slow`, as a mark would say.
_SLOW_EXAMPLES = {
    "precisionlab.arithmetic.exact.chances.round_sum",
    "precisionlab.backend.selftest.run_checks",
    "precisionlab.experiments.formats.digits.run",
    "precisionlab.experiments.manifold.adam_metric.adam_curvature",
    "precisionlab.problems.networks.transformer_apply",
    "precisionlab.problems.networks.transformer_init",
    "precisionlab.problems.text.text",
    "precisionlab.problems.waves.waves",
}


def pytest_configure(config: pytest.Config) -> None:
    """Keep what was compiled, for the other worker and for the next run: most of the time of these tests is compilation."""
    if cache := getattr(config, "cache", None):
        from precisionlab.cli.caching import LIMIT, trim

        place = Path(cache.mkdir("jax"))
        if not hasattr(config, "workerinput"):
            trim(place, LIMIT)
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # Who reads what another worker is just writing, or what was cut off, compiles for himself.
        config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not go through its millions of objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_what_was_compiled() -> Iterator[None]:
    """Programs of modules that are done stay in memory otherwise: five gigabytes in the end."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most cases of *sampled* tests to `-m slow` and `-m thorough`; skip what needs an accelerator where none is."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "sampled" in item.keywords and "thorough" not in item.keywords:
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
        if isinstance(item, pytest.DoctestItem) and item.name in _SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)
        if "gpu" in item.keywords and jax.default_backend() == "cpu":
            item.add_marker(pytest.mark.skip(reason="gpu: JAX finds no accelerator here, only cpu"))
    for alike in cases.values():
        if len(alike) == 1:  # asked for by name
            continue
        marker = alike[0].get_closest_marker("sampled")
        assert marker is not None
        ids = [item.nodeid.partition("[")[2].removesuffix("]") for item in alike]
        taken = set(marker.args) if isinstance(marker.args[0], str) else _spread(ids, marker.args[0])
        others = [name for name in ids if name not in taken]
        slow = _spread(others, marker.kwargs.get("slow", len(others)))
        for name, item in zip(ids, alike, strict=True):
            if name not in taken:
                item.add_marker(pytest.mark.slow if name in slow else pytest.mark.thorough)


def _spread(names: list[str], count: int) -> set[str]:
    """So many of them, evenly over all."""
    return {names[index * len(names) // count] for index in range(min(count, len(names)))}


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Floats that differ in the last bit print alike; show them in hexadecimal."""
    if op == "==" and isinstance(left, float) and isinstance(right, float):
        return [f"{left!r} == {right!r}", f"{left.hex()} == {right.hex()}"]
    return None
