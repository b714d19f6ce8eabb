"""One finding, and what it is found in: leaves that are stored and lose alike, together."""

import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from precisionlab.fates import Tally, total
from precisionlab.optimizers.advice.wording import number
from precisionlab.optimizers.storing import Stored

__all__ = ["NOTABLE", "Advice", "Seen", "common", "grouped", "kept_by_path", "nonfinite", "numbers", "or_zero", "title"]

NOTABLE = 0.05
"""Below this share of lost updates there is nothing to report."""


class Advice(NamedTuple):
    """One finding.

    Attributes:
        kind: "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter", "ratchet", "stalled", "unbiased",
            "invisible", "what_if", "unknown" or "fine".
        site: "weights" or "state".
        path: of the leaf, or of several that differ in numbers alone, such as layers/*/norm/scale.
        share: of the updates asked for, what is lost.
        cure: the name of a function in `precisionlab.optimizers`, or "float32", or None.
        sentence: all of it in words.
    """

    kind: str
    site: str
    path: str
    share: float
    cure: str | None
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Seen(NamedTuple):
    """Leaves of one kind together.

    Attributes:
        path: what their paths have in common.
        paths: all of them.
        tally: the sum of their tallies.
        recent: the mean of their running means of lost updates.
        stored: what they are stored in, if known.
        kept: what an update without gradient keeps of them, as meant and as stored; NaN where unknown.
    """

    path: str
    paths: list[str]
    tally: Tally
    recent: float
    stored: Stored | None
    kept: tuple[float, float]


def or_zero(share: float) -> float:
    """A share, or 0 for that of nothing."""
    return 0.0 if math.isnan(share) else share


def nonfinite(seen: Seen, site: str, name: str) -> Advice:
    """What to say of infinities and NaN."""
    count, entries = int(seen.tally.nonfinite), int(seen.tally.entries)
    sentence = (
        f"{name}: {number(count)} of {number(entries)} entries or their updates are infinite or NaN; all other counts leave "
        f"them out. Find their origin first (error_profile shows the first)."
    )
    return Advice("nonfinite", site, seen.path, count / entries, None, sentence)


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def common(paths: list[str]) -> str:
    """What paths of one pattern have in common, with a star for each number in which they differ."""
    columns = zip(*(re.split(r"(\d+)", path) for path in paths), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def numbers(tree: Any) -> dict[str, float]:
    """The numbers of a tree under the paths of their leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(leaf) for path, leaf in leaves}


def kept_by_path(kept: Any) -> dict[str, tuple[float, float]]:
    """`StateRecord.kept` under the paths of the leaves: as meant, as stored."""
    pairs: dict[str, dict[str, float]] = {}
    for path, value in numbers(kept).items():
        leaf, _, side = path.rpartition("/")
        pairs.setdefault(leaf, {})[side] = value
    return {leaf: (sides["meant"], sides["stored"]) for leaf, sides in pairs.items()}


def grouped(
    tallies: dict[str, Tally], recent: dict[str, float], storage: dict[str, Stored], kept: dict[str, Any]
) -> list[Seen]:
    """Leaves whose paths differ in numbers alone, and that are stored and lose alike, as one."""
    groups: dict[Any, list[str]] = {}
    for path, tally in tallies.items():
        lost = or_zero(float(tally.lost_fraction))
        groups.setdefault((_pattern(path), storage.get(path), kept.get(path), lost >= NOTABLE), []).append(path)
    seen = []
    for (_, stored, pair, _), paths in groups.items():
        known = [recent[path] for path in paths if not math.isnan(recent[path])]
        mean = float(np.mean(known)) if known else math.nan
        held = total([tallies[path] for path in paths])
        seen.append(Seen(common(paths), paths, held, mean, stored, pair or (math.nan, math.nan)))
    return seen


def title(seen: Seen) -> str:
    """The leaves and their storage, such as layers/*/norm/scale (12 leaves, bfloat16)."""
    where = seen.path or "the array"
    name = "unknown storage" if seen.stored is None else seen.stored.name or f"{seen.stored.precision} significand bits"
    return f"{where} ({name})" if len(seen.paths) == 1 else f"{where} ({len(seen.paths)} leaves, {name})"
