"""All leaves of a kind looked at in rows, a block of rows at a time.

What is asked of every entry of a model is compiled once, for a block, whatever the number of leaves and their shapes. A loop
takes up one block after the other; nothing of the size of the model is copied. Where a loop with branches would wait for the
host, each of a few blocks is a part of the program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Int, PyTree
from precisionlab.optimizers.meaning.recipes import Recipe
from precisionlab.optimizers.tracking.plans import Piece, Plan
from precisionlab.stagnation.rows import ENTRIES

__all__ = ["Block", "in_blocks"]


class Block(NamedTuple):
    """Where the rows of a block are.

    Attributes:
        leaf: for each row the number of its leaf among those of the plan.
        start: for each row the place of its first entry in the leaf, in row-major order.
        real: which entries are neither padding nor another block's too.
    """

    leaf: Int[Array, " rows"]
    start: Int[Array, " rows"]
    real: Bool[Array, "rows parts 240"]

    @property
    def place(self) -> Int[Array, "rows parts 240"]:
        """Where in its leaf each entry lies."""
        part, entry = (jax.lax.broadcasted_iota(jnp.int32, self.real.shape, axis) for axis in (1, 2))
        return self.spread(self.start) + part * ENTRIES + entry

    def spread(self, column: Array) -> Array:
        """A number for each row, as an array that broadcasts with the blocks."""
        return column[:, None, None]


def in_blocks(
    found: Callable[[PyTree[Array], Block], PyTree[Array]], recipes: Sequence[Recipe], cut: Plan, *, looped: bool
) -> PyTree[Array]:
    """What a function finds in each row of the leaves.

    Args:
        found: of a tree of blocks, (height, parts, `ENTRIES`), and where they lie, to arrays with an axis of rows in front.
        recipes: for each leaf of the plan a recipe, all of one kind.
        cut: the plan.
        looped: as in the plan.

    Returns:
        The tree, with all rows of all blocks in front.
    """
    flat = [[jnp.reshape(source, -1) for source in recipe.sources] for recipe in recipes]
    scalars = _columns(recipes)
    strides = _strides(recipes)
    shape, size = (cut.height, cut.parts, ENTRIES), cut.height * cut.row
    sizes = cut.sizes[cut.leaf]

    def made(blocks: Sequence[Array], leaf: Array, start: Array, low: Array, size: Array) -> PyTree[Array]:
        block = Block(leaf, start, jnp.ones(shape, bool))

        def within() -> Array:
            return (block.place >= block.spread(low)) & (block.place < block.spread(size))

        # Of most blocks everything. By a branch, since compilers would look it up anew for each entry and use.
        every = jnp.all((start >= low) & (start + cut.row <= size))
        block = block._replace(real=jax.lax.cond(every, lambda: jnp.ones(shape, bool), within))

        def counted(axis: int) -> Array:
            stride, length = (block.spread(jnp.asarray(strides[:, axis, side])[block.leaf]) for side in (0, 1))
            return block.place // stride % length

        given = [scalar if jnp.ndim(scalar) == 0 else block.spread(scalar[block.leaf]) for scalar in scalars]
        return found(recipes[0].made([each.reshape(shape) for each in blocks], given, shape, counted), block)

    tables = [table.astype(np.int32) for table in (cut.leaf, cut.start, cut.low, sizes)]
    if not looped:
        each = jax.jit(made)
        parts = [each(_gathered(flat, mine, cut, size), *rows) for mine, *rows in zip(cut.gathered, *tables, strict=True)]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)
    kept = np.unique(cut.which)
    gathered = int((cut.which == -1).sum()) * size
    sources = [_gathered(flat, cut.gathered[0], cut, gathered) if leaf == -1 else flat[leaf] for leaf in kept]
    branches = [lambda begin, mine=mine: [_block(source, begin, size) for source in mine] for mine in sources]
    which = np.searchsorted(kept, cut.which).astype(np.int32)

    def body(_: None, here: Any) -> Any:
        which, begin, *rows = here
        return None, made(jax.lax.switch(_looped(which), branches, begin), *rows)

    every = which, cut.begin.astype(np.int32), *tables
    if len(which) == 1:
        return body(None, [jnp.asarray(table[0]) for table in every])[1]
    rows = jax.lax.scan(body, None, every)[1]
    return jax.tree.map(lambda each: each.reshape(-1, *each.shape[2:]), rows)


def _looped(number: Array) -> Array:
    """The number, in a loop that XLA's CPU compiler leaves one.

    It makes one kernel of loops that it takes for small, branches included: slow to compile, and run by one thread. Not of
    those with a sort in them.
    """
    return jax.lax.sort(jnp.stack([number, jnp.full_like(number, np.iinfo(number.dtype).max)]))[0]


def _block(source: Array, begin: Any, size: int) -> Array:
    if source.size < size:
        return jax.lax.pad(source, jnp.zeros((), source.dtype), [(0, size - source.size, 0)])
    return jax.lax.dynamic_slice(source, (begin,), (size,))


def _gathered(flat: list[list[Array]], pieces: Sequence[Piece], cut: Plan, size: int) -> list[Array]:
    """The rows of pieces one after the other, each source padded to a size."""
    counts = [min(piece.rows * cut.row, int(cut.sizes[piece.leaf]) - piece.first * cut.row) for piece in pieces]
    begins = np.cumsum([0, *counts])
    # For each row where its entries begin among all that are gathered, and where they end.
    begin = np.concatenate([begins[k] + cut.row * np.arange(piece.rows) for k, piece in enumerate(pieces)])
    end = np.concatenate([np.full(piece.rows, begins[k + 1]) for k, piece in enumerate(pieces)])
    missing = size // cut.row - len(begin)
    begin, end = (np.pad(each, (0, missing)).astype(np.int32)[:, None] for each in (begin, end))
    place = jnp.asarray(begin) + jax.lax.broadcasted_iota(jnp.int32, (len(begin), cut.row), 1)

    def rows(number: int) -> Array:
        parts = [
            jax.lax.slice(flat[piece.leaf][number], (piece.first * cut.row,), (piece.first * cut.row + count,))
            for piece, count in zip(pieces, counts, strict=True)
        ]
        # Joined first and cut into rows then: one operation for each leaf.
        every = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return jnp.where(place < end, every.at[place].get(mode="clip"), jnp.zeros((), every.dtype)).reshape(-1)

    return list(map(rows, range(len(flat[0]))))


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
