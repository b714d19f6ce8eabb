"""Many tallies as a few arrays.

A tally for each leaf of a model is dozens of scalars, and every scalar that crosses a jitted call or a scan costs a buffer and
a write, more than the counting itself for small models. Carried between calls they are therefore packed: counts, sums and
histograms of all leaves in one array each. The tree they came from goes with them as a tree without leaves, in tuples and
dictionaries of the ordinary kinds, which everything that saves, shards or rebuilds optimizer states can read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, PyTree
from precisionlab.stagnation.fates import HISTOGRAM_EDGES, Tally

__all__ = ["PackedTallies", "pack", "refilled", "skeleton", "unpack"]

_FATES = ("landed", "swamped", "underflowed", "zero", "nonfinite")
_GAPS = ("finest", "coarsest")
_DIRECTIONS = ("falling", "fell")
_SUMS = ("update_mass", "stagnated_mass", "moved_along", "update_square")


class _Place(NamedTuple):
    """Where a leaf was."""


class PackedTallies(NamedTuple):
    """The tallies of a tree.

    Attributes:
        fates: int32, (..., leaves, 5); of a tree without leaves one row of zeros, here and below, since not everything that
            saves arrays saves those of size zero.
        gaps: int32, (..., leaves, 2): finest and coarsest; None if they were not asked for.
        invisible: int32, (..., leaves); None where nothing keeps updates.
        directions: int32, (..., leaves, 2): falling and fell; None if they were not told apart.
        sums: the widest of the leaves' dtypes, (..., leaves, 4); None without detail.
        histogram: int32, (..., leaves, bins); None without detail.
        tree: the tree, with a place for each leaf.
    """

    fates: Array
    gaps: Array | None
    invisible: Array | None
    directions: Array | None
    sums: Array | None
    histogram: Array | None
    tree: PyTree[Any]


def _is_tally(node: Any) -> bool:
    return isinstance(node, Tally)


def skeleton(tree: PyTree[Any], is_leaf: Any = None) -> PyTree[Any]:
    """A tree without leaves, of the same shape.

    Example:
        >>> jax.tree.leaves(skeleton({"a": 1, "b": [2, None]}))
        []
    """
    if not jax.tree.leaves(tree) and not isinstance(tree, dict | list | tuple | None):
        # What `optax.tree.map_params` gives to `init` in place of parameters: whatever stands here is none of theirs.
        return jnp.int32(0)
    return jax.tree.map(lambda _: _Place(), tree, is_leaf=is_leaf)


def pack(
    tallies: PyTree[Tally],
    *,
    detail: bool | None = None,
    directions: bool = False,
    gaps: bool | None = None,
    kept: bool = False,
) -> PackedTallies:
    """Pack a tree of scalar tallies.

    Args:
        tallies: the tree.
        detail: whether they have sums and histograms; None to see whether the first has.
        directions: whether they tell rising and falling apart.
        gaps: whether they have the finest and the coarsest; None follows `detail`.
        kept: whether any has `invisible`; for those that lack it nothing is.

    Example:
        >>> from precisionlab import tally
        >>> one = jnp.ones(3)
        >>> pack({"a": tally(one, one, one), "b": tally(one, one, one)}).fates.tolist()
        [[0, 3, 0, 0, 0], [0, 3, 0, 0, 0]]
    """
    leaves = jax.tree.leaves(tallies, is_leaf=_is_tally)
    if detail is None:
        detail = any(leaf.histogram is not None for leaf in leaves)

    def rows(names: Sequence[str], dtype: Any = jnp.int32) -> Array:
        table = [[getattr(leaf, name) for name in names] for leaf in leaves]
        flat = [jnp.asarray(0 if value is None else value).astype(dtype) for row in table for value in row]
        return jnp.stack(flat).reshape(len(leaves), len(names)) if flat else jnp.zeros((1, len(names)), dtype)

    # Without leaves as with them the same arrays are there, so that trees of optimizer states stay comparable.
    widest = max((leaf.update_mass.dtype for leaf in leaves if detail), key=lambda dtype: dtype.itemsize, default=jnp.float32)
    bins = [leaf.histogram for leaf in leaves if detail]
    histogram = jnp.stack(bins) if bins else jnp.zeros((1, len(HISTOGRAM_EDGES) - 1), jnp.int32)
    return PackedTallies(
        rows(_FATES),
        rows(_GAPS) if (detail if gaps is None else gaps) else None,
        rows(["invisible"])[:, 0] if kept else None,
        rows(_DIRECTIONS) if directions else None,
        rows(_SUMS, widest) if detail else None,
        histogram if detail else None,
        skeleton(tallies, _is_tally),
    )


def unpack(packed: PackedTallies) -> PyTree[Tally]:
    """The tree of tallies again; axes in front of the packed ones are kept.

    Example:
        >>> from precisionlab import tally
        >>> one = jnp.ones(3)
        >>> int(unpack(pack({"a": tally(one, one, one)}))["a"].swamped)
        3
    """
    tables = ((_FATES, packed.fates), (_GAPS, packed.gaps), (_DIRECTIONS, packed.directions), (_SUMS, packed.sums))
    leaves = []
    for index in range(_count(packed.tree)):
        fields: dict[str, Any] = {}
        for names, table in tables:
            columns = [None] * len(names) if table is None else jnp.moveaxis(table[..., index, :], -1, 0)
            fields |= dict(zip(names, columns, strict=True))
        fields["invisible"] = None if packed.invisible is None else packed.invisible[..., index]
        fields["histogram"] = None if packed.histogram is None else packed.histogram[..., index, :]
        leaves.append(Tally(**fields))
    return refilled(packed.tree, leaves)


def refilled(tree: PyTree[Any], leaves: Sequence[Any]) -> PyTree[Any]:
    """A tree made by `skeleton`, with leaves in their places again, and none of those that have no place."""
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=_is_place), leaves[: _count(tree)])


def _count(tree: PyTree[Any]) -> int:
    return jax.tree.structure(tree, is_leaf=_is_place).num_leaves


def _is_place(node: Any) -> bool:
    return isinstance(node, _Place)
