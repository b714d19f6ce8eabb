"""In which format weights and optimizer state are stored: by their dtype, or by a rounding inside the optimizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from precisionlab._typing import Array, Int, PyTree
from precisionlab.numerics.formats import FORMATS
from precisionlab.optimizers.meaning.meant import state_leaves
from precisionlab.optimizers.roundings import Grid, Placed, numbers_of, rounding_states, rounds_weights
from precisionlab.stagnation.fates import Tally, by_path

__all__ = ["Storage", "Stored", "check_whole", "grids_of_weights", "storage_of", "store_description"]

_DTYPES = tuple(FORMATS)


class Stored(NamedTuple):
    """A storage format: its name, its precision and smallest normal exponent, and the bytes of a number in it.

    The name is empty, and the bytes unknown, for a simulated format that is not in the registry. `stochastic` says whether a
    rounding inside the optimizer leads there stochastically.
    """

    name: str
    precision: int
    emin: int
    itemsize: int | None
    stochastic: bool = False


@jax.tree_util.register_static
@dataclass(frozen=True)
class Storage:
    """The storage of every leaf of weights and state, as (path, `Stored`)."""

    weights: tuple[tuple[str, Stored], ...]
    state: tuple[tuple[str, Stored], ...]


def store_description(leaves: Sequence[Array]) -> Int[Array, "..."]:
    """The dtypes and sizes of some arrays, as an array that a state can hold: (leaves, 2), of none one row of zeros."""
    rows = [(_DTYPES.index(leaf.dtype.name), leaf.size % 2**31) for leaf in leaves]
    return jnp.array(rows or [(0, 0)], jnp.int32)


def _rows(description: Any, count: int) -> list[tuple[int, int]]:
    """The rows of a description; of a stack of them, those of the first."""
    table = np.asarray(description)
    return [(int(code), int(size)) for code, size in table.reshape(-1, *table.shape[-2:])[0][:count]]


def check_whole(tallies: PyTree[Tally], description: Any) -> None:
    """Refuse tallies of a part of the weights.

    Raises:
        ValueError: if they count fewer entries than the weights had.
    """
    held = list(by_path(tallies).items())
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((held, description))):
        return
    for (path, tally), (_, size) in zip(held, _rows(description, len(held)), strict=True):
        entries = int(np.sum(np.asarray(tally.entries, np.int64)))
        if entries and entries < size:
            raise ValueError(
                f"stagnation: the record counts {entries} of the {size} entries of {path or 'the array'}: those of one shard. "
                f"Inside jax.shard_map, `track` counts over all shards only with check_vma=True, the default."
            )


def storage_of(weights: PyTree[Any], description: Any, state: Any) -> Storage | None:
    """The storage of the weights that were counted and of an optimizer's state; grids that are traced count as their dtypes.

    Args:
        weights: a tree with one leaf for each weight.
        description: of them, see `store_description`; nothing is known while it is traced.
        state: the optimizer's.
    """
    if isinstance(description, Tracer):
        return None
    paths = list(_paths(weights))
    dtypes = [_DTYPES[code] for code, _ in _rows(description, len(paths))]
    grids = grids_of_weights(paths, state)
    mine = tuple((path, _stored(grid, dtype)) for path, grid, dtype in zip(paths, grids, dtypes, strict=True))
    leaves = zip(state_leaves(state), jax.tree_util.tree_leaves_with_path(state), strict=True)
    theirs = tuple((_path(path), _stored(place.grid, leaf.dtype.name)) for place, (path, leaf) in leaves if place is not None)
    return Storage(mine, theirs)


def grids_of_weights(paths: Sequence[str], state: Any) -> list[Placed | None]:
    """Each weight and the grids of the roundings inside the optimizer; None where there are none."""
    rows = [node.grid.rows for node in rounding_states(state) if rounds_weights(node)]
    if not rows:
        return [None] * len(paths)
    grid = Grid(rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-2))
    return [Placed(grid, path) for path in paths]


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _paths(tree: Any) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        yield _path(path)


def _stored(placed: Placed | None, dtype: str) -> Stored:
    precision = emin = stochastic = 0
    if placed is not None and not isinstance(placed.grid.rows, Tracer):
        numbers = np.asarray(numbers_of(placed)).reshape(-1, 3)[0]  # of a stack the first
        precision, emin, stochastic = map(int, numbers)
    if precision == 0:
        fmt, size = FORMATS[dtype], np.dtype(dtype).itemsize
        return Stored(dtype, int(fmt.precision), int(fmt.emin), size, bool(stochastic))
    names: Mapping[str, Any] = FORMATS
    name = next((name for name, fmt in names.items() if (fmt.precision, fmt.emin) == (precision, emin)), "")
    return Stored(name, precision, emin, np.dtype(name).itemsize if _is_dtype(name) else None, bool(stochastic))


def _is_dtype(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True
