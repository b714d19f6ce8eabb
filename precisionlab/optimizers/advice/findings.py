"""One finding, and what it is found in: leaves that are stored and lose alike, together."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from precisionlab.optimizers.advice.wording import number
from precisionlab.optimizers.tracking.storing import Stored
from precisionlab.optimizers.tracking.windows import Window
from precisionlab.stagnation.fates import Tally, total

__all__ = [
    "NOTABLE",
    "Advice",
    "Seen",
    "common",
    "grouped",
    "kept_by_path",
    "nonfinite",
    "numbers",
    "or_zero",
    "title",
    "windows",
]

NOTABLE = 0.05
"""Below this share of lost updates there is nothing to report."""


class Advice(NamedTuple):
    """One finding.

    Attributes:
        kind: "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter", "stalled", "zero", "unbiased", "invisible",
            "what_if", "unknown" or "fine".
        site: "weights" or "state".
        path: of the leaf, or of several that differ in numbers alone, such as layers/*/norm/scale.
        share: of the updates asked for, what is lost; over the reads that the sentence names.
        cure: the name of a function in `precisionlab.optimizers`, or "float32" (store it so), or None.
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
        window: the sum of what their last reads lost and kept; None if that is not known.
        stored: what they are stored in, if known.
        kept: what an update without gradient keeps of them, as meant and as stored; NaN where unknown.
        narrowed: whether the optimizer rounds them by itself before they are stored; None where unknown.
        gradients: how many entries of their gradients were not zero.
    """

    path: str
    paths: list[str]
    tally: Tally
    window: Window | None
    stored: Stored | None
    kept: tuple[float, float] = (math.nan, math.nan)
    narrowed: bool | None = None
    gradients: int = 0

    @property
    def lost(self) -> float:
        """The share lost in the last read; 0 if nothing was asked."""
        return or_zero(float(self.tally.lost_fraction))

    @property
    def share(self) -> float:
        """The share lost in the reads of `when`."""
        return or_zero(float(self.window.share)) if self._by_window and self.window is not None else self.lost

    @property
    def when(self) -> str:
        """The reads to tell of: the last ones, or the last alone if it was the first or only it lost anything of note."""
        return f"in the last {int(self.window.reads)} reads" if self._by_window and self.window else "in the last read"

    @property
    def updates(self) -> str:
        """What is lost in part in these reads."""
        count = self.tally.entries if self._by_window else self.tally.asked
        return f"the updates of {number(count)} entries"

    @property
    def _by_window(self) -> bool:
        if self.window is None or not float(self.window.reads) > 1:
            return False
        return or_zero(float(self.window.share)) >= NOTABLE or self.lost < NOTABLE


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


def windows(tree: Any) -> dict[str, Window]:
    """The windows of a tree under the paths of their leaves."""
    held = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Window))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): window for path, window in held}


def grouped(
    tallies: dict[str, Tally],
    window: dict[str, Window],
    storage: dict[str, Stored],
    kept: Mapping[str, tuple[float, float]] | None = None,
    narrowed: Mapping[str, float] | None = None,
    gradients: Mapping[str, float] | None = None,
) -> list[Seen]:
    """Leaves whose paths differ in numbers alone, and that are stored and lose alike, as one."""
    kept, narrowed, gradients = kept or {}, narrowed or {}, gradients or {}
    groups: dict[Any, list[Seen]] = {}
    for path, tally in tallies.items():
        pair, flag = kept.get(path, (math.nan, math.nan)), narrowed.get(path, math.nan)
        one = Seen(
            path, [path], tally, window.get(path), storage.get(path), pair, None if math.isnan(flag) else flag > 0,
            int(gradients.get(path, 0)),
        )  # fmt: skip
        alike = (_pattern(path), one.stored, *map(str, pair), one.narrowed, one.when, one.share >= NOTABLE)
        groups.setdefault(alike, []).append(one)
    return [_together(seen) for seen in groups.values()]


def _together(seen: list[Seen]) -> Seen:
    paths = [one.path for one in seen]
    known = [one.window for one in seen if one.window is not None]
    lost, kept = (sum(float(held[index]) for held in known) for index in range(2))
    window = Window(lost, kept, known[0].reads) if known else None
    tally, gradients = total([one.tally for one in seen]), sum(one.gradients for one in seen)
    return seen[0]._replace(path=common(paths), paths=paths, tally=tally, window=window, gradients=gradients)


def title(seen: Seen) -> str:
    """The leaves and their storage, such as layers/*/norm/scale (12 leaves, bfloat16)."""
    where = seen.path or "the array"
    name = "unknown storage" if seen.stored is None else seen.stored.name or f"{seen.stored.precision} significand bits"
    return f"{where} ({name})" if len(seen.paths) == 1 else f"{where} ({len(seen.paths)} leaves, {name})"
