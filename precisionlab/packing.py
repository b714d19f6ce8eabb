"""Many tallies as three arrays.

A tally for each leaf of a model is dozens of scalars, and every scalar that crosses a jitted call or a scan costs a buffer and
a write, more than the counting itself for small models. Carried between calls they are therefore packed: counts, sums and
histograms of all leaves in one array each, with the tree they came from as static data.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, PyTree
from precisionlab.stagnation import Tally, ratio

__all__ = ["PackedTallies", "lost_fractions", "pack", "unpack"]

_COUNTS = ("landed", "swamped", "underflowed", "zero", "nonfinite")
_OPTIONAL = ("finest", "coarsest", "invisible", "falling", "fell")
_SUMS = ("update_mass", "stagnated_mass", "moved_along", "update_square")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["counts", "sums", "histogram"],
    meta_fields=["structure", "sum_dtypes", "fields", "dtypes"],
)
@dataclass(frozen=True)
class PackedTallies:
    """The tallies of a tree.

    Attributes:
        counts: int32, (..., leaves, fields).
        sums: the widest of the leaves' dtypes, (..., leaves, 4); None without detail.
        histogram: int32, (..., leaves, bins); None without detail.
        structure: the tree, one leaf a tally.
        sum_dtypes: the dtype of each leaf's own sums.
        fields: the names of the counts.
        dtypes: the names of the dtypes that were counted, if the packer told.
    """

    counts: Array
    sums: Array | None
    histogram: Array | None
    structure: Any
    sum_dtypes: tuple[Any, ...]
    fields: tuple[str, ...] = _COUNTS
    dtypes: tuple[str, ...] = ()


def _is_tally(node: Any) -> bool:
    return isinstance(node, Tally)


def pack(tallies: PyTree[Tally], dtypes: tuple[str, ...] = ()) -> PackedTallies:
    """Pack a tree of scalar tallies, and the names of the dtypes that they are of.

    Example:
        >>> from precisionlab.stagnation import tally
        >>> one = jnp.ones(3)
        >>> pack({"a": tally(one, one, one, detail=False), "b": tally(one, one, one, detail=False)}).counts.tolist()
        [[0, 3, 0, 0, 0], [0, 3, 0, 0, 0]]
    """
    leaves, structure = jax.tree.flatten(tallies, is_leaf=_is_tally)
    if not leaves:
        return PackedTallies(jnp.zeros((0, len(_COUNTS)), jnp.int32), None, None, structure, ())
    fields = _COUNTS + tuple(name for name in _OPTIONAL if any(getattr(leaf, name) is not None for leaf in leaves))
    # Where a leaf lacks what another has (something that keeps its updates), there is nothing to count.
    rows = [[getattr(leaf, name) for name in fields] for leaf in leaves]
    counts = jnp.stack([jnp.stack([jnp.int32(0) if value is None else value for value in row]) for row in rows])
    if leaves[0].histogram is None:
        return PackedTallies(counts, None, None, structure, (), fields, dtypes)
    sum_dtypes = tuple(leaf.update_mass.dtype for leaf in leaves)
    widest = max(sum_dtypes, key=lambda dtype: dtype.itemsize)
    sums = jnp.stack([jnp.stack([getattr(leaf, name).astype(widest) for name in _SUMS]) for leaf in leaves])
    return PackedTallies(counts, sums, jnp.stack([leaf.histogram for leaf in leaves]), structure, sum_dtypes, fields, dtypes)


def lost_fractions(packed: PackedTallies) -> Array:
    """`Tally.lost_fraction` of every leaf at once, NaN where nothing was asked.

    Example:
        >>> from precisionlab.stagnation import tally
        >>> one = jnp.ones(3)
        >>> lost_fractions(pack({"a": tally(one, one, one), "b": tally(one, one, 2 * one)})).tolist()
        [1.0, 0.0]
    """
    counts = {name: packed.counts[:, index] for index, name in enumerate(packed.fields)}
    lost = counts["swamped"] + counts["underflowed"] - counts.get("invisible", 0)
    return ratio(lost, counts["landed"] + counts["swamped"] + counts["underflowed"])


def unpack(packed: PackedTallies) -> PyTree[Tally]:
    """The tree of tallies again; axes in front of the packed ones are kept.

    Example:
        >>> from precisionlab.stagnation import tally
        >>> one = jnp.ones(3)
        >>> int(unpack(pack({"a": tally(one, one, one)}))["a"].swamped)
        3
    """
    leaves = []
    for index in range(packed.counts.shape[-2]):
        counts = dict(zip(packed.fields, jnp.moveaxis(packed.counts[..., index, :], -1, 0), strict=True))
        if packed.sums is None or packed.histogram is None:
            leaves.append(Tally(**counts, **dict.fromkeys((*_SUMS, "histogram"))))
            continue
        own = packed.sums[..., index, :].astype(packed.sum_dtypes[index])
        sums = dict(zip(_SUMS, jnp.moveaxis(own, -1, 0), strict=True))
        leaves.append(Tally(**counts, **sums, histogram=packed.histogram[..., index, :]))
    return jax.tree.unflatten(packed.structure, leaves)
