"""All leaves of a kind as rows of one length, a block of rows at a time.

What is asked of every entry of a model is compiled once, for a block, whatever the number of leaves and their shapes. Rows of a
large leaf fill blocks of their own, which a loop fetches one after the other; ends of large leaves and small ones share
blocks, each row padded at its end. Nothing of the size of the model is copied.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Int, PyTree
from precisionlab.optimizers.meaning.recipes import Recipe
from precisionlab.stagnation.rows import ENTRIES

__all__ = ["Block", "Plan", "by_leaf", "first_of", "in_blocks", "plan"]

_BLOCK = 128
"""Parts of `ENTRIES` in a block: what a few arrays of float32 take of a core's own cache."""

_PARTS, _LONG, _MANY = 4, 16, 1 << 22
"""Parts of a row, and of one in models of so many entries: what is found is kept for each row."""

_UNROLLED = 16
"""So many blocks at most where a loop with branches would wait for the host."""


class Block(NamedTuple):
    """Where the rows of a block are.

    Attributes:
        leaf: for each row the number of its leaf among those of the plan.
        start: for each row the place of its first entry in the leaf, in row-major order.
        size: for each row the entries of its leaf.
        parts: parts of `ENTRIES` in a row.
    """

    leaf: Int[Array, " rows"]
    start: Int[Array, " rows"]
    size: Int[Array, " rows"]
    parts: int

    @property
    def place(self) -> Int[Array, "rows parts 240"]:
        """Where in its leaf each entry lies."""
        shape = len(self.leaf), self.parts, ENTRIES
        part, entry = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        return self.start[:, None, None] + part * ENTRIES + entry

    @property
    def real(self) -> Bool[Array, "rows parts 240"]:
        """Which entries are not padding."""
        return self.place < self.size[:, None, None]

    def spread(self, column: Array) -> Array:
        """A number for each leaf, as an array that broadcasts with the blocks."""
        return column[self.leaf][:, None, None]


class _Piece(NamedTuple):
    """Some rows of a leaf."""

    leaf: int
    first: int
    count: int


class Plan(NamedTuple):
    """How leaves are cut into rows and rows are put into blocks.

    Attributes:
        sizes: entries of the leaves, none of them zero.
        parts: parts of `ENTRIES` in a row.
        height: rows in a block.
        kinds: what blocks are made of: a leaf, whose rows fill one, or pieces.
        which: for each block its kind.
        first: for each block of a single leaf the first row in that leaf, else 0.
        leaf, start: for each row of each block, as in `Block`; rows that are not there start beyond the end of a leaf.
    """

    sizes: np.ndarray
    parts: int
    height: int
    kinds: list[Any]
    which: np.ndarray
    first: np.ndarray
    leaf: np.ndarray
    start: np.ndarray

    @property
    def row(self) -> int:
        """Entries of a row."""
        return self.parts * ENTRIES


def plan(sizes: Sequence[int], height: int | None = None) -> Plan:
    """Cut leaves into rows and put rows into blocks.

    Args:
        sizes: entries of each leaf, at least one.
        height: rows in a block; None for what fits into a cache.

    Example:
        >>> made = plan([100_000, 240, 1])
        >>> made.parts, made.height, made.which.tolist(), len(made.kinds)
        (4, 32, [0, 0, 0, 1], 2)
    """
    entries = np.asarray(sizes, np.int64)
    parts = _LONG if entries.sum() >= _MANY else _PARTS
    row = parts * ENTRIES
    rows = -(-entries // row)
    height = min(_BLOCK // parts if height is None else height, int(rows.sum()))
    kinds: list[Any] = []
    which, first = [], []
    rest: list[_Piece] = []
    for leaf, size in enumerate(entries):
        whole = int(size // (row * height))
        if whole:
            which += [len(kinds)] * whole
            first += range(0, whole * height, height)
            kinds.append(leaf)
        if rows[leaf] > whole * height:
            rest.append(_Piece(leaf, whole * height, int(rows[leaf]) - whole * height))
    for pieces in _filled(rest, height):
        which.append(len(kinds))
        first.append(0)
        kinds.append(pieces)
    places = [_rows(kinds[kind], begin, height, rows) for kind, begin in zip(which, first, strict=True)]
    leaf, number = (np.array([place[side] for place in places]) for side in (0, 1))
    return Plan(entries, parts, height, kinds, np.array(which), np.array(first), leaf, number * row)


def _filled(rest: list[_Piece], height: int) -> list[list[_Piece]]:
    """Pieces, cut where a block is full."""
    blocks: list[list[_Piece]] = []
    free = 0
    for leaf, first, count in rest:
        while count:
            if not free:
                blocks.append([])
                free = height
            taken = min(free, count)
            blocks[-1].append(_Piece(leaf, first, taken))
            first, count, free = first + taken, count - taken, free - taken
    return blocks


def _rows(kind: Any, begin: int, height: int, rows: np.ndarray) -> tuple[list[int], list[int]]:
    """The leaf of each row of a block, and its number in the leaf."""
    if not isinstance(kind, list):
        return [kind] * height, list(range(begin, begin + height))
    leaves = [piece.leaf for piece in kind for _ in range(piece.count)]
    numbers = [number for piece in kind for number in range(piece.first, piece.first + piece.count)]
    missing = height - len(leaves)
    return leaves + [0] * missing, numbers + [int(rows[0])] * missing


def in_blocks(
    found: Callable[[PyTree[Array], Block], PyTree[Array]], recipes: Sequence[Recipe], cut: Plan, *, looped: bool
) -> PyTree[Array]:
    """What a function finds in each row of the leaves.

    Args:
        found: of a tree of blocks, (height, parts, `ENTRIES`), and where they lie, to arrays with an axis of rows in front.
        recipes: for each leaf of the plan a recipe, all of one kind.
        cut: the plan.
        looped: whether to make one block after the other in a loop; else each is a part of the program.

    Returns:
        The tree, with all rows of all blocks in front.
    """
    flat = [[jnp.reshape(source, -1) for source in recipe.sources] for recipe in recipes]
    scalars = _columns(recipes)
    strides = _strides(recipes)
    shape = cut.height, cut.parts, ENTRIES

    def made(blocks: Sequence[Array], leaf: Array, start: Array) -> PyTree[Array]:
        block = Block(leaf, start, jnp.asarray(cut.sizes.astype(np.int32))[leaf], cut.parts)

        def counted(axis: int) -> Array:
            stride, length = (block.spread(jnp.asarray(strides[:, axis, side])) for side in (0, 1))
            return block.place // stride % length

        given = [scalar if jnp.ndim(scalar) == 0 else block.spread(scalar) for scalar in scalars]
        return found(recipes[0].made([each.reshape(shape) for each in blocks], given, counted), block)

    def fetched(kind: Any, first: Any) -> list[Array]:
        if not isinstance(kind, list):
            return [jax.lax.dynamic_slice(source, (first * cut.row,), (cut.height * cut.row,)) for source in flat[kind]]
        return [_joined([_piece(flat[piece.leaf][number], piece, cut) for piece in kind], cut) for number in range(len(flat[0]))]

    if len(cut.which) == 1:
        return made(fetched(cut.kinds[0], 0), jnp.asarray(cut.leaf[0]), jnp.asarray(cut.start[0]))
    tables = cut.which.astype(np.int32), cut.first.astype(np.int32), cut.leaf.astype(np.int32), cut.start.astype(np.int32)
    if not looped:
        each = jax.jit(made)
        rows = [each(fetched(cut.kinds[which], first), leaf, start) for which, first, leaf, start in zip(*tables, strict=True)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    branches = [lambda first, kind=kind: fetched(kind, first) for kind in cut.kinds]

    def body(_: None, here: Any) -> Any:
        which, first, leaf, start = here
        return None, made(jax.lax.switch(which, branches, first), leaf, start)

    return jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), jax.lax.scan(body, None, tables)[1])


def _piece(source: Array, piece: _Piece, cut: Plan) -> Array:
    begin = piece.first * cut.row
    end = min(begin + piece.count * cut.row, source.size)
    held = jax.lax.slice(source, (begin,), (end,))
    return jax.lax.pad(held, jnp.zeros((), source.dtype), [(0, piece.count * cut.row - (end - begin), 0)])


def _joined(pieces: list[Array], cut: Plan) -> Array:
    missing = cut.height * cut.row - sum(piece.size for piece in pieces)
    padding = [jnp.zeros(missing, pieces[0].dtype)] if missing else []
    return jnp.concatenate([*pieces, *padding])


def _columns(recipes: Sequence[Recipe]) -> list[Array]:
    """Each scalar, or where leaves have their own, a column of them."""
    columns = []
    for scalars in zip(*(recipe.scalars for recipe in recipes), strict=True):
        same = all(scalar is scalars[0] for scalar in scalars)
        columns.append(jnp.asarray(scalars[0]) if same else jnp.stack(list(map(jnp.asarray, scalars))))
    return columns


def _strides(recipes: Sequence[Recipe]) -> np.ndarray:
    """For each leaf and axis, entries from one index to the next, and the length of the axis; (leaves, axes, 2)."""
    axes = max(1, *(len(recipe.shape) for recipe in recipes))
    table = np.ones((len(recipes), axes, 2), np.int32)
    for number, recipe in enumerate(recipes):
        for axis, length in enumerate(recipe.shape):
            table[number, axis] = np.prod(recipe.shape[axis + 1 :], dtype=np.int64), length
    return table


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
    counts = -(-cut.sizes // cut.row)
    # Leaves of about as many rows go together: there are few such numbers.
    lengths = 1 << np.ceil(np.log2(counts)).astype(int)
    numbers = cut.start.reshape(-1) // cut.row
    owners = np.where(numbers < counts[cut.leaf.reshape(-1)], cut.leaf.reshape(-1), -1)
    parts, order = [], []
    for length in np.unique(lengths):
        leaves = np.flatnonzero(lengths == length)
        table = np.full((len(leaves), length), len(owners))
        place = np.full(len(counts), -1)
        place[leaves] = np.arange(len(leaves))
        mine = np.flatnonzero((owners >= 0) & (place[owners] >= 0))
        table[place[owners[mine]], numbers[mine]] = mine
        gathered = jnp.take(rows, table, axis=0, mode="fill", fill_value=nothing)
        parts.append(combine(gathered, axis=1).astype(rows.dtype))
        order.append(leaves)
    whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    back = np.argsort(np.concatenate(order))
    return whole if (back == np.arange(len(back))).all() else whole[back]


def first_of(rows: Array, cut: Plan) -> Array:
    """The first row of each leaf, (leaves, ...)."""
    begins = np.flatnonzero(cut.start.reshape(-1) == 0)
    return rows[begins[np.argsort(cut.leaf.reshape(-1)[begins])]]
