"""All questions about leaves that lie in blocks, counted in one program for all leaves of a kind.

A few formats that are asked about are compiled in. Of more the numbers are taken up one after the other, and only what they
have in common is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import CARRIERS, uncontracted, widened
from precisionlab.numerics.formats import Format
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import stochastic
from precisionlab.numerics.randomness import hash_counters
from precisionlab.numerics.rounding import joined_format, round_to
from precisionlab.numerics.words import is_number
from precisionlab.optimizers.meaning.recipes import Recipe
from precisionlab.optimizers.sums import in_one_carrier
from precisionlab.optimizers.tracking.arriving import CORNER
from precisionlab.optimizers.tracking.blocks import Block, in_blocks
from precisionlab.optimizers.tracking.floors import above_floor
from precisionlab.optimizers.tracking.plans import by_leaf, first_of, plan
from precisionlab.optimizers.tracking.questions import Sight, Wanted
from precisionlab.optimizers.tracking.windows import is_nonzero
from precisionlab.stagnation.counting import Case
from precisionlab.stagnation.fates import NO_GAP, Tally
from precisionlab.stagnation.rows import RowCounts, columns, count_rows, tally_of

__all__ = ["Counted", "count_leaves"]

_FEW = 4
"""Up to so many formats are compiled in: more take longer to compile than a loop over their numbers, which takes twice the time
to run."""


class Counted(NamedTuple):
    """What was found in some leaves; every array has an axis of leaves in front.

    Attributes:
        own: the tally of the storage.
        nearest, chance: those in each format, to nearest and stochastically.
        gradients: entries whose gradient is not zero.
        corners: the first entries of the first row of the leaf: weight, update and their sum, (leaves, 3, entries), float32;
            padded with anything; None where nobody asks.
    """

    own: Tally
    nearest: list[Tally]
    chance: list[Tally]
    gradients: Array
    corners: Any


def count_leaves(
    saw: Callable[..., Sight],
    recipes: Sequence[Recipe],
    formats: Mapping[str, Format],
    words: Array,
    wanted: Wanted,
    *,
    looped: bool,
) -> list[tuple[list[int], Counted]]:
    """Look at leaves, those of a kind together.

    Args:
        saw: what makes a sight of a row.
        recipes: for each leaf a recipe of its row; none of the leaves is empty.
        formats: the formats to ask about.
        words: of the random bits of each leaf and format, uint32, (leaves, formats, 2).
        wanted: what else to tell.
        looped: see `in_blocks`.

    Returns:
        For each kind the numbers of its leaves and what was found in them.
    """
    groups: dict[Any, list[int]] = {}
    for number, recipe in enumerate(recipes):
        groups.setdefault(recipe.kind, []).append(number)
    found = []
    for numbers in groups.values():
        mine = [recipes[number] for number in numbers]
        found.append((numbers, _of_kind(saw, mine, formats, words[np.array(numbers)], wanted, looped)))
    return found


class _Rows(NamedTuple):
    """What is found in each row: of the storage, of each format (columns only), and the first entries."""

    own: RowCounts
    asked: Any
    corners: Any


def _of_kind(
    saw: Callable[..., Sight],
    recipes: Sequence[Recipe],
    formats: Mapping[str, Format],
    words: Array,
    wanted: Wanted,
    looped: bool,
) -> Counted:
    cut = plan([int(np.prod(recipe.shape, dtype=np.int64)) for recipe in recipes], looped=looped)

    def found(row: PyTree[Array], block: Block) -> _Rows:
        sight = saw(*row)
        nowhere = jnp.zeros(block.real.shape, bool)
        held = None if not wanted.kept else (nowhere if sight.kept is None else sight.kept)
        marks = nowhere if sight.gradient is None else is_nonzero(sight.gradient)
        own = count_rows(_own(wanted, sight, held), block.real, [marks])
        # In the leaf's own carrier: wider sums are nobody else's business.
        sums = None if own.sums is None else own.sums.astype(widened(sight.old).dtype)
        first = [widened(each)[:, 0, :CORNER].astype(jnp.float32) for each in _compared(sight)]
        return _Rows(
            own._replace(sums=sums),
            _what_ifs(sight, formats, words, block) if formats else None,
            jnp.stack(first, 1) if first else None,
        )

    rows = in_blocks(found, recipes, cut, looped=looped)
    sizes = jnp.asarray(cut.sizes.astype(np.int32))
    least = None if rows.own.least is None else by_leaf(rows.own.least, cut, jnp.min, NO_GAP)
    sums = None if rows.own.sums is None else by_leaf(rows.own.sums, cut, jnp.sum, 0)
    mine = RowCounts(by_leaf(rows.own.counts, cut, jnp.sum, 0), least, sums)
    names = columns(_own(wanted, None, None if not wanted.kept else ()), marks=1)
    asked = [] if rows.asked is None else jnp.split(by_leaf(rows.asked, cut, jnp.sum, 0), 2 * len(formats), axis=1)
    tallies = [
        tally_of(columns(_counted(kept=() if number % 2 == 0 else None)), RowCounts(counts, None, None), sizes)
        for number, counts in enumerate(asked)
    ]
    return Counted(
        tally_of(names, mine, sizes),
        tallies[::2],
        tallies[1::2],
        mine.counts[:, names.index("mark")],
        None if rows.corners is None else first_of(rows.corners, cut),
    )


def _own(wanted: Wanted, sight: Any, kept: Any) -> Case:
    """What is asked of the storage itself."""
    old, update, new, grid = (None,) * 4 if sight is None else (sight.old, sight.update, sight.new, sight.grid)
    return Case(old, update, new, None, kept, grid, wanted.detail, wanted.directions, wanted.gaps)


def _counted(old: Any = None, update: Any = None, new: Any = None, kept: Any = None) -> Case:
    """What is asked of a format."""
    return Case(old, update, new, None, kept, None, detail=False)


def _compared(sight: Sight) -> list[Array]:
    """What the next weights are compared with."""
    return [] if sight.made is None else [sight.old, sight.made, sight.new]


def _what_ifs(sight: Sight, formats: Mapping[str, Format], words: Array, block: Block) -> Array:
    """For each format the columns of each row to nearest, and those stochastically."""
    wide, step = in_one_carrier(sight.old, sight.update)
    carrier = CARRIERS[wide.dtype.name]
    place = block.place.astype(jnp.uint32)
    mine = jnp.moveaxis(words[block.leaf], 1, 0)

    def counted(fmt: Format, words: Array) -> Array:
        before = round_to(wide, fmt)
        meant = before + uncontracted(step)
        first, second = (block.spread(words[:, side]) for side in (0, 1))
        random = hash_counters(first, second, place, carrier.uint)
        nearest = _counted(before, step, round_to(meant, fmt), above_floor(before, step, fmt))
        chance = _counted(before, step, round_carrier(meant, fmt, stochastic, random, carrier))
        return jnp.concatenate([count_rows(case, block.real).counts for case in (nearest, chance)], -1)

    if len(formats) <= _FEW:
        return jnp.concatenate([counted(fmt, words) for fmt, words in zip(formats.values(), mine, strict=True)], -1)
    shared, own = _parted(list(formats.values()), carrier.dtype)
    _, counts = jax.lax.scan(lambda _, here: (None, counted(joined_format(here[0], shared), here[1])), None, (own, mine))
    return jnp.moveaxis(counts, 0, 1).reshape(counts.shape[1], -1)


def _parted(formats: Sequence[Format], dtype: Any) -> tuple[Format, Format]:
    """The numbers that formats share, and columns of those that they do not."""
    kinds = Format(jnp.int32, jnp.int32, dtype, dtype, jnp.bool_, jnp.int32)
    shared, own = [], []
    for kind, column in zip(kinds, zip(*formats, strict=True), strict=True):
        one = len({repr(number) for number in column}) == 1 and all(map(is_number, column))
        shared.append(column[0] if one else None)
        own.append(None if one else jnp.asarray(column, kind))
    return Format(*shared), Format(*own)
