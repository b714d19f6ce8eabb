"""Interleaved repeats, medians, a table and a JSON file.

Machines are noisy and drift, so the cases of one benchmark take turns within one process, every call is waited for,
compilation is apart, and a claim is a ratio of medians from that one run.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax

__all__ = ["Claim", "measure", "report"]

_written: list[dict[str, Any]] = []


class Claim(NamedTuple):
    """One row: a case, the case it is compared with, and the bound on the ratio of their medians (None: for information)."""

    case: str
    against: str
    bound: float | None
    at_least: bool = False


def measure(cases: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every call of every case, taking turns.

    Args:
        cases: functions that return something for `jax.block_until_ready`.
        repeats: timed calls of each.
        warmup: calls before them, the first of which compiles.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(warmup):
            jax.block_until_ready(case())
    for _ in range(repeats):
        for name, case in cases.items():
            begin = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - begin)
    return times


def report(title: str, times: Mapping[str, list[float]], per: Mapping[str, float], unit: str, claims: list[Claim]) -> bool:
    """Print the table, write the JSON that `--json` asks for, and say whether every claim was met.

    Args:
        title: what was measured.
        times: from `measure`.
        per: by case, what to divide seconds by to get `unit`.
        unit: of the printed figures, such as "ns/element".
        claims: the ratios to show.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    path = parser.parse_args().json
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [(claim, medians[claim.case] / medians[claim.against]) for claim in claims]
    print(f"{title}: {_device()}; medians of {len(next(iter(times.values())))} interleaved calls")
    for name, value in medians.items():
        spread = f"{min(times[name]) / per[name]:.4g} to {max(times[name]) / per[name]:.4g}"
        print(f"  {name:44s} {value / per[name]:10.4g} {unit}   ({spread})")
    for claim, ratio in ratios:
        kind = "" if claim.bound is None else f"   {'met' if _met(claim, ratio) else 'MISSED'}: {_bound(claim)}"
        print(f"  {claim.case} / {claim.against}: {ratio:.3f}{kind}")
    if path is not None:
        figures = {name: {"median": medians[name] / per[name], "all": [v / per[name] for v in times[name]]} for name in times}
        rows = [{**claim._asdict(), "ratio": ratio, "met": _met(claim, ratio)} for claim, ratio in ratios]
        _written.append({"title": title, "unit": unit, "figures": figures, "claims": rows})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**_provenance(), "reports": _written}, indent=1))
        print(f"  written to {path}", file=sys.stderr)
    return all(_met(claim, ratio) is not False for claim, ratio in ratios)


def _met(claim: Claim, ratio: float) -> bool | None:
    if claim.bound is None:
        return None
    return ratio >= claim.bound if claim.at_least else ratio <= claim.bound


def _bound(claim: Claim) -> str:
    return f"{'at least' if claim.at_least else 'at most'} {claim.bound}"


def _device() -> str:
    devices = jax.devices()
    return f"{devices[0].platform} {devices[0].device_kind} x {len(devices)}"


def _provenance() -> dict[str, Any]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("jax", "jaxlib", "numpy", "ml_dtypes", "optax", "precisionlab", "gfloat", "pychop")
    return {"device": _device(), "machine": platform.platform(), "versions": {name: of(name) for name in packages}}
