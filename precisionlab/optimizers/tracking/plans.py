"""Leaves of any sizes cut into rows of one length, and rows put into blocks.

Where blocks are made in a loop, those of large leaves are slices of them: the last one ends with the leaf, and begins within
the block before. Small leaves are gathered first, each row padded at its end. Without a loop all are, in a few blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array
from precisionlab.stagnation.rows import ENTRIES

__all__ = ["Piece", "Plan", "by_leaf", "first_of", "plan"]

_PARTS, _LONG, _MANY = 4, 16, 1 << 22
"""Parts of `ENTRIES` in a row, and in one of models of so many entries: what is found is kept for each row."""

_BLOCK = 256
"""Parts of a block at most: what a few arrays of float32 take of a core's own cache."""

_SMALL = 1 << 12
"""Leaves of up to so many entries are gathered."""

_TURN = 1 << 12
"""A turn of the loop takes as long as so many entries."""

_UNROLLED, _LEAST = 8, 1 << 20
"""So many blocks at most without a loop, and so many entries in one at least."""


class Piece(NamedTuple):
    """Some rows of a leaf."""

    leaf: int
    first: int
    rows: int


class Plan(NamedTuple):
    """How leaves are cut into rows and rows are put into blocks.

    Attributes:
        sizes: entries of the leaves, none of them zero.
        parts: parts of `ENTRIES` in a row.
        height: rows in a block.
        gathered: the pieces whose rows are gathered; a list for each block, or in a loop one for all its blocks.
        which: for each block the leaf of which it is a slice, or -1 if its rows are gathered.
        begin: for each block where it begins, in entries.
        leaf, start, low: for each row of each block, as in `Block`; rows that are not there lie beyond the end of a leaf.
    """

    sizes: np.ndarray
    parts: int
    height: int
    gathered: list[list[Piece]]
    which: np.ndarray
    begin: np.ndarray
    leaf: np.ndarray
    start: np.ndarray
    low: np.ndarray

    @property
    def row(self) -> int:
        """Entries of a row."""
        return self.parts * ENTRIES


def plan(sizes: Sequence[int], *, looped: bool) -> Plan:
    """Cut leaves into rows and put rows into blocks.

    Args:
        sizes: entries of each leaf, at least one.
        looped: whether blocks are made in a loop.

    Example:
        >>> made = plan([100_000, 240, 1], looped=True)
        >>> made.parts, made.height, made.which.tolist()
        (4, 21, [0, 0, 0, 0, 0, -1])
    """
    entries = np.asarray(sizes, np.int64)
    parts = _LONG if entries.sum() >= _MANY else _PARTS
    row = parts * ENTRIES
    counts = -(-entries // row)
    large = np.flatnonzero(entries > _SMALL) if looped else np.array([], int)
    small = [Piece(leaf, 0, int(counts[leaf])) for leaf in np.setdiff1d(np.arange(len(entries)), large)]
    number = sum(piece.rows for piece in small)
    height = _height(entries[large], number, parts) if looped else min(number, max(-(-number // _UNROLLED), _LEAST // row))
    places = [(int(leaf), begin) for leaf in large for begin in range(0, int(entries[leaf]), height * row)]
    slices = [_slice(leaf, begin, entries, row, height) for leaf, begin in places]
    gathered = [small] if looped else list(_filled(small, height))
    rows = [(piece.leaf, number * row) for part in gathered for piece in part for number in _numbers(piece)]
    missing = -len(rows) % height
    rows += [(0, int(counts[0]) * row)] * missing
    others = [
        (-1, begin * row, [leaf for leaf, _ in mine], [start for _, start in mine], [0] * height)
        for begin in range(0, len(rows), height)
        for mine in [rows[begin : begin + height]]
    ]
    which, begin, leaf, start, low = map(np.array, zip(*slices, *others, strict=True))
    return Plan(entries, parts, height, gathered, which, begin, leaf, start, low)


def _numbers(piece: Piece) -> range:
    return range(piece.first, piece.first + piece.rows)


def _height(large: np.ndarray, small: int, parts: int) -> int:
    """The rows in a block with which the fewest entries are looked at twice, or are padding."""
    if not large.size:
        return min(_BLOCK // parts, small)
    heights = np.arange(max(1, _BLOCK // parts // 4), _BLOCK // parts + 1)
    entries = heights * parts * ENTRIES
    turns = np.ceil(large[:, None] / entries).sum(0) + np.ceil(small / heights)
    return int(heights[np.argmin(turns * (entries + _TURN))])


def _slice(leaf: int, low: int, entries: np.ndarray, row: int, height: int) -> tuple[Any, ...]:
    """A block of a leaf: the last one ends with it."""
    begin = max(0, min(low, int(entries[leaf]) - height * row))
    return leaf, begin, [leaf] * height, [begin + number * row for number in range(height)], [low] * height


def _filled(pieces: list[Piece], height: int) -> Iterator[list[Piece]]:
    """Pieces, cut where a block is full."""
    block: list[Piece] = []
    free = height
    for leaf, first, count in pieces:
        while count:
            taken = min(free, count)
            block.append(Piece(leaf, first, taken))
            first, count, free = first + taken, count - taken, free - taken
            if not free:
                yield block
                block, free = [], height
    if block:
        yield block


def by_leaf(rows: Array, cut: Plan, combine: Callable[..., Array], nothing: Any) -> Array:
    """Rows of the leaves brought together.

    Args:
        rows: (rows, ...), as `in_blocks` gives them.
        cut: the plan.
        combine: a reduction along an axis, such as `jnp.sum`.
        nothing: what it leaves everything as it is with.

    Returns:
        (leaves, ...).
    """
    beyond = cut.start.reshape(-1) >= cut.sizes[cut.leaf.reshape(-1)]
    owners = np.where(beyond, -1, cut.leaf.reshape(-1))
    counts = np.bincount(owners[owners >= 0], minlength=len(cut.sizes))
    # Leaves of about as many rows go together: there are few such numbers.
    lengths = 1 << np.ceil(np.log2(counts)).astype(int)
    parts, order = [], []
    for length in np.unique(lengths):
        leaves = np.flatnonzero(lengths == length)
        table = np.full((len(leaves), length), len(owners))
        for place, leaf in enumerate(leaves):
            table[place, : counts[leaf]] = np.flatnonzero(owners == leaf)
        gathered = jnp.take(rows, table, axis=0, mode="fill", fill_value=nothing)
        parts.append(combine(gathered, axis=1).astype(rows.dtype))
        order.append(leaves)
    whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    back = np.argsort(np.concatenate(order))
    return whole if (back == np.arange(len(back))).all() else whole[back]


def first_of(rows: Array, cut: Plan) -> Array:
    """The first row of each leaf, (leaves, ...)."""
    owners, starts = cut.leaf.reshape(-1), cut.start.reshape(-1)
    return rows[np.array([np.flatnonzero((owners == leaf) & (starts == 0))[0] for leaf in range(len(cut.sizes))])]
