"""One look at an update: what happened to every entry, and what would have happened in other formats.

For each format that is asked about, weights and update are taken as they are, the weights rounded to it, and their sum rounded
again, in three ways:

    to nearest    what plain storage would lose
    stochastic    what would land by chance, in proportion to the size of the update
    compensated   to nearest, with the remainder kept in a second number of the format: what is *invisible* would land later,
                  and what is lost is below the floor of `kahan`

Traced on one device, leaves are looked at in blocks, by one program for all of a kind (`counting`). On several devices nothing
says how arrays are laid out, and blocks would move them; there, and where nothing is compiled, each leaf is counted by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.numerics.carriers import uncontracted, widened
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import stochastic
from precisionlab.numerics.randomness import fold, key_words
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.meaning.recipes import Recipe
from precisionlab.optimizers.sums import in_one_carrier
from precisionlab.optimizers.tracking.alike import axes_of, of_each
from precisionlab.optimizers.tracking.counting import Counted, count_leaves
from precisionlab.optimizers.tracking.floors import above_floor
from precisionlab.optimizers.tracking.questions import Sight, Wanted
from precisionlab.stagnation.counting import BINS, Case, tally_cases
from precisionlab.stagnation.fates import NO_GAP, SUMS, Tally
from precisionlab.stagnation.packing import PackedTallies, pack_rows

__all__ = ["Looked", "look", "look_in_blocks", "nothing_seen"]


class Looked(NamedTuple):
    """Packed tallies of the leaves: of the storage itself, and by format for each way of rounding."""

    tally: PackedTallies
    what_if: Mapping[str, PackedTallies]
    stochastic: Mapping[str, PackedTallies]
    compensated: Mapping[str, PackedTallies]


def look(
    saw: Callable[..., Sight],
    rows: Sequence[tuple[Any, ...] | None],
    structure: Any,
    formats: Mapping[str, Format],
    key: PRNGKeyArray,
    wanted: Wanted,
) -> Looked:
    """Tell the fates of the entries of a tree, leaf by leaf.

    Args:
        saw: what makes a sight of a row.
        rows: for each leaf of the tree its row of arrays; None for leaves that cannot stagnate.
        structure: the tree itself.
        formats: the formats to ask about.
        key: the random bits of stochastic rounding.
        wanted: what else to tell.
    """

    def told(keys: Array, row: tuple[Any, ...]) -> Any:
        sight = saw(*row)
        mine = Case(sight.old, sight.update, sight.new, None, sight.kept, sight.grid)
        cases = [mine._replace(detail=wanted.detail, directions=wanted.directions, gaps=wanted.gaps)]
        for number, fmt in enumerate(formats.values()):
            cases += _asked(sight, fmt, keys[number])
        axes, dtype = axes_of(sight.old, sight.update), widened(sight.old).dtype
        own, *others = (_sums_as(dtype, _everywhere(tally, axes)) for tally in tally_cases(cases))
        if wanted.kept and own.invisible is None:  # the same for every leaf, whether or not something keeps its updates
            own = own._replace(invisible=jnp.zeros_like(own.landed))
        return [own, *others]

    seen = [(index, row) for index, row in enumerate(rows) if row is not None]
    marked = _marked(rows, structure)
    if not seen:
        return nothing_seen(0, jnp.float32, marked, formats, wanted)
    keys = _keys(key, [index for index, _ in seen], len(formats))
    own, *others = of_each(told, [(keys[number], row) for number, (_, row) in enumerate(seen)])
    return _looked(own, others[::2], others[1::2], marked, formats, wanted)


def look_in_blocks(
    saw: Callable[..., Sight],
    recipes: Sequence[Recipe | None],
    structure: Any,
    formats: Mapping[str, Format],
    key: PRNGKeyArray,
    wanted: Wanted,
) -> tuple[Looked, Array, Array]:
    """The same, of recipes of the rows.

    Returns:
        What `look` returns; how many entries of each leaf's gradient are not zero; and the first entries of each leaf, as in
        `Counted`.
    """
    seen = [(index, recipe) for index, recipe in enumerate(recipes) if recipe is not None]
    full = [number for number, (_, recipe) in enumerate(seen) if np.prod(recipe.shape)]
    words = key_words(_keys(key, [seen[number][0] for number in full], len(formats)))
    mine = [seen[number][1] for number in full]
    groups = count_leaves(saw, mine, formats, words, wanted, looped=_looped())
    numbers = [full[number] for group, _ in groups for number in group]
    parts = [counted for _, counted in groups]
    empty = sorted({*range(len(seen))} - {*full})
    if empty:
        parts.append(_of_nothing(parts[0], len(empty)))
    order = np.argsort([*numbers, *empty])

    def joined(*columns: Any) -> Any:
        dtype = jnp.result_type(*columns)
        whole = columns[0] if len(columns) == 1 else jnp.concatenate([column.astype(dtype) for column in columns])
        return whole if (order == np.arange(len(order))).all() else whole[order]

    found = jax.tree.map(joined, *parts)
    looked = _looked(found.own, found.nearest, found.chance, _marked(recipes, structure), formats, wanted)
    return looked, found.gradients, found.corners


def nothing_seen(count: int, dtype: Any, tree: Any, formats: Mapping[str, Format], wanted: Wanted) -> Looked:
    """What a look at so many leaves of a tree returns, all zeros.

    Args:
        count: the leaves that are looked at.
        dtype: of their sums.
        tree: the tree, with anything in their places and None in others.
        formats: the formats asked about.
        wanted: what else to tell.
    """
    none = np.zeros(count, np.int32)
    fields = dict.fromkeys(Tally._fields, none) | dict.fromkeys(SUMS, np.zeros(count, dtype))
    own = Tally(**(fields | {"histogram": np.zeros((count, BINS), np.int32)})) if count else None
    every = [own] * len(formats)
    shapes = jax.eval_shape(lambda: _looked(own, every, every, tree, formats, wanted))
    # Handed over rather than computed: nothing has to be compiled.
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), shapes)


def _looped() -> bool:
    """Whether blocks are made in a loop. On an accelerator the host would have to wait for each of its branches."""
    return jax.default_backend() == "cpu"


def _of_nothing(like: Counted, count: int) -> Counted:
    """What is found in leaves without entries."""
    empty = jax.tree.map(lambda column: jnp.zeros((count, *column.shape[1:]), column.dtype), like)
    if like.own.finest is None:
        return empty
    gap = jnp.full(count, NO_GAP, jnp.int32)
    return empty._replace(own=empty.own._replace(finest=gap, coarsest=-gap))


def _keys(key: PRNGKeyArray, indices: Sequence[int], formats: int) -> Array:
    """Raw keys for each of some leaves of a tree and each format, (leaves, formats, 2)."""
    return fold(key, np.array(indices, np.uint32)[:, None] * np.uint32(formats) + np.arange(formats, dtype=np.uint32))


def _marked(rows: Sequence[Any], structure: Any) -> Any:
    return jax.tree.unflatten(structure, [None if row is None else index for index, row in enumerate(rows)])


def _looked(
    own: Tally | None,
    nearest: Sequence[Tally | None],
    chance: Sequence[Tally | None],
    tree: Any,
    formats: Mapping[str, Format],
    wanted: Wanted,
) -> Looked:
    def packed(tally: Tally | None, *, kept: bool = False) -> PackedTallies:
        return pack_rows(tally, tree, detail=False, kept=kept)

    return Looked(
        pack_rows(own, tree, **wanted._asdict()),
        {name: packed(tally) for name, tally in zip(formats, nearest, strict=True)},
        {name: packed(tally) for name, tally in zip(formats, chance, strict=True)},
        {name: packed(tally, kept=True) for name, tally in zip(formats, nearest, strict=True)},
    )


def _asked(sight: Sight, fmt: Format, key: PRNGKeyArray) -> list[Case]:
    wide, step = in_one_carrier(sight.old, sight.update)
    before = round_to(wide, fmt)
    wanted = before + uncontracted(step)
    grid = (fmt.precision, fmt.emin)
    nearest = Case(before, step, round_to(wanted, fmt), None, above_floor(before, step, fmt), grid, detail=False)
    return [nearest, Case(before, step, round_to(wanted, fmt, stochastic, key=key), None, None, grid, detail=False)]


def _everywhere(tally: Tally, axes: tuple[str, ...]) -> Tally:
    """The tally of all shards together."""
    if not axes:
        return tally

    def together(name: str, value: Any) -> Any:
        if value is None:
            return None
        gather = {"finest": jax.lax.pmin, "coarsest": jax.lax.pmax}.get(name, jax.lax.psum)
        same = tuple(axis for axis in axes if axis not in axes_of(value))
        return gather(jax.lax.pcast(value, same, to="varying") if same else value, axes)

    return Tally(*(together(name, value) for name, value in zip(Tally._fields, tally, strict=True)))


def _sums_as(dtype: Any, tally: Tally) -> Tally:
    """The sums in the dtype of the leaf's own carrier: wider ones are nobody else's business."""
    return jax.tree.map(lambda value: value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value, tally)
