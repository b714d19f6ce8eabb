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
from precisionlab.stagnation.fates import HISTOGRAM_EDGES, SUMS, Tally

__all__ = ["PackedTallies", "pack", "pack_rows", "refilled", "skeleton", "unpack"]

_FATES = ("landed", "swamped", "underflowed", "zero", "nonfinite")
_GAPS = ("finest", "coarsest")
_DIRECTIONS = ("falling", "fell")


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
    options: Any = {"detail": detail, "directions": directions, "gaps": gaps, "kept": kept}
    marked = jax.tree.map(lambda _: 0, tallies, is_leaf=_is_tally)
    if not leaves:
        return pack_rows(None, marked, **options)

    def column(name: str) -> Any:
        values = [getattr(leaf, name) for leaf in leaves]
        if all(value is None for value in values):
            return None
        filled = [jnp.asarray(0 if value is None else value) for value in values]
        widest = jnp.result_type(*filled)
        return jnp.stack([value.astype(widest) for value in filled])

    return pack_rows(Tally(*map(column, Tally._fields)), marked, **options)


def pack_rows(
    tallies: Tally | None,
    tree: PyTree[Any],
    *,
    detail: bool,
    directions: bool = False,
    gaps: bool | None = None,
    kept: bool = False,
) -> PackedTallies:
    """Pack tallies that lie in rows already.

    Args:
        tallies: a tally of arrays, each with an axis of leaves in front; None if the tree has no leaves.
        tree: the tree whose leaves they are, with anything in their places.
        detail: as in `pack`.
        directions: as in `pack`.
        gaps: as in `pack`.
        kept: as in `pack`.
    """
    # Without leaves as with them the same arrays are there, so that trees of optimizer states stay comparable.
    count = 1 if tallies is None else tallies.landed.shape[0]

    def rows(names: Sequence[str], dtype: Any = jnp.int32) -> Array:
        columns = [None if tallies is None else getattr(tallies, name) for name in names]
        filled = [jnp.zeros(count, dtype) if column is None else column.astype(dtype) for column in columns]
        return jnp.stack(filled, axis=-1)

    widest = jnp.float32 if tallies is None or not detail else tallies.update_mass.dtype
    bins = jnp.zeros((1, len(HISTOGRAM_EDGES) - 1), jnp.int32) if tallies is None else tallies.histogram
    return PackedTallies(
        rows(_FATES),
        rows(_GAPS) if (detail if gaps is None else gaps) else None,
        rows(["invisible"])[:, 0] if kept else None,
        rows(_DIRECTIONS) if directions else None,
        rows(SUMS, widest) if detail else None,
        bins if detail else None,
        skeleton(tree),
    )


def unpack(packed: PackedTallies) -> PyTree[Tally]:
    """The tree of tallies again; axes in front of the packed ones are kept.

    Example:
        >>> from precisionlab import tally
        >>> one = jnp.ones(3)
        >>> int(unpack(pack({"a": tally(one, one, one)}))["a"].swamped)
        3
    """
    tables = ((_FATES, packed.fates), (_GAPS, packed.gaps), (_DIRECTIONS, packed.directions), (SUMS, packed.sums))
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
