"""All questions about leaves that lie in blocks, counted in one program for all leaves of a kind.

The formats asked about are numbers to it, taken up one after the other: what they have in common is compiled in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import CARRIERS, to_bits, uncontracted, widened
from precisionlab.numerics.formats import Format
from precisionlab.numerics.grids import is_number
from precisionlab.numerics.modes import stochastic
from precisionlab.numerics.randomness import hash_counters
from precisionlab.numerics.rounding import round_carrier, round_to
from precisionlab.optimizers.meaning.recipes import Recipe
from precisionlab.optimizers.sums import in_one_carrier
from precisionlab.optimizers.tracking.arriving import CORNER
from precisionlab.optimizers.tracking.blocks import Block, Plan, by_leaf, first_of, in_blocks, plan
from precisionlab.optimizers.tracking.floors import above_floor
from precisionlab.optimizers.tracking.questions import Sight, Wanted
from precisionlab.stagnation.counting import BINS, Case
from precisionlab.stagnation.fates import NO_GAP, Tally
from precisionlab.stagnation.rows import tally_rows

__all__ = ["Counted", "count_leaves"]

_FATES = "landed", "swamped", "zero", "nonfinite"


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
    """What is found in each row: counts, the least of what is least, sums, the first entries."""

    counts: Array
    least: Any
    sums: Any
    corners: Any


def _of_kind(
    saw: Callable[..., Sight],
    recipes: Sequence[Recipe],
    formats: Mapping[str, Format],
    words: Array,
    wanted: Wanted,
    looped: bool,
) -> Counted:
    cut = plan([int(np.prod(recipe.shape, dtype=np.int64)) for recipe in recipes])
    kept = wanted.kept
    names = [*_FATES, *(["invisible"] if kept else []), *(["falling", "fell"] if wanted.directions else [])]
    gaps = wanted.detail if wanted.gaps is None else wanted.gaps

    def found(row: PyTree[Array], block: Block) -> _Rows:
        sight = saw(*row)
        held = None if not kept else (jnp.zeros(block.real.shape, bool) if sight.kept is None else sight.kept)
        mine = Case(sight.old, sight.update, sight.new, None, held, sight.grid, wanted.detail, wanted.directions, wanted.gaps)
        marks = [] if sight.gradient is None else [_nonzero(sight.gradient)]
        (own,), marked = tally_rows([mine], block.real, marks)
        columns = [*(getattr(own, name) for name in names), *(marked or [jnp.zeros_like(own.landed)])]
        counts = [jnp.stack(columns, -1)]
        if wanted.detail:
            counts.append(own.histogram)
        counts += _what_ifs(sight, formats, words, block)
        least = jnp.stack([own.finest, -own.coarsest], -1) if gaps else None
        sums = [own.update_mass, own.stagnated_mass, own.moved_along, own.update_square] if wanted.detail else []
        first = [widened(each)[:, 0, :CORNER].astype(jnp.float32) for each in _compared(sight)]
        return _Rows(
            jnp.concatenate(counts, -1),
            least,
            # In the leaf's own carrier: wider sums are nobody else's business.
            jnp.stack(sums, -1).astype(widened(sight.old).dtype) if sums else None,
            jnp.stack(first, 1) if first else None,
        )

    rows = in_blocks(found, recipes, cut, looped=looped)
    counts = by_leaf(rows.counts, cut, jnp.sum, 0)
    fields: Any = dict(zip(names, jnp.moveaxis(counts, -1, 0), strict=False))
    own = _tally(fields)
    place = len(names) + 1
    if wanted.detail:
        mass, lost, along, square = jnp.moveaxis(by_leaf(rows.sums, cut, jnp.sum, 0), -1, 0)
        own = own._replace(
            update_mass=mass,
            stagnated_mass=lost,
            moved_along=along,
            update_square=square,
            histogram=counts[:, place : place + BINS],
        )
        place += BINS
    if gaps:
        least = by_leaf(rows.least, cut, jnp.min, NO_GAP)
        own = own._replace(finest=least[:, 0], coarsest=-least[:, 1])
    nearest, chance = [], []
    for number in range(len(formats)):
        mine = counts[:, place + 9 * number : place + 9 * (number + 1)]
        columns = list(jnp.moveaxis(mine, -1, 0))
        nearest.append(_tally(dict(zip((*_FATES, "invisible"), columns[:5], strict=True))))
        chance.append(_tally(dict(zip(_FATES, columns[5:], strict=True))))
    return Counted(own, nearest, chance, counts[:, len(names)], None if rows.corners is None else first_of(rows.corners, cut))


def _compared(sight: Sight) -> list[Array]:
    """What the next weights are compared with."""
    return [] if sight.made is None else [sight.old, sight.made, sight.new]


def _tally(fields: dict[str, Array]) -> Tally:
    return Tally(**(dict.fromkeys(Tally._fields) | fields | {"underflowed": jnp.zeros_like(fields["landed"])}))


def _nonzero(gradient: Array) -> Array:
    """Where a gradient is not zero, by bits: a comparison may take subnormal numbers for zeros."""
    wide = widened(gradient)
    carrier = CARRIERS[wide.dtype.name]
    return (to_bits(wide, carrier) & carrier.word(carrier.sign - 1)) != 0


def _what_ifs(sight: Sight, formats: Mapping[str, Format], words: Array, block: Block) -> list[Array]:
    """For each format nine counts of each row, in one array; nothing where no format is asked about."""
    if not formats:
        return []
    wide, step = in_one_carrier(sight.old, sight.update)
    carrier = CARRIERS[wide.dtype.name]
    shared, own = _parted(list(formats.values()), carrier.dtype)
    place = block.place.astype(jnp.uint32)
    mine = jnp.moveaxis(words[block.leaf], 1, 0)

    def counted(own: Format, words: Array) -> Array:
        fmt = Format(*(one if other is None else other for one, other in zip(own, shared, strict=True)))
        before = round_to(wide, fmt)
        meant = before + uncontracted(step)
        nearest = Case(before, step, round_to(meant, fmt), None, above_floor(before, step, fmt), detail=False)
        first, second = (words[:, side, None, None] for side in (0, 1))
        random = hash_counters(first, second, place, carrier.uint)
        chance = Case(before, step, round_carrier(meant, fmt, stochastic, random, carrier), detail=False)
        (one, two), _ = tally_rows([nearest, chance], block.real)
        columns = [*(getattr(one, name) for name in (*_FATES, "invisible")), *(getattr(two, name) for name in _FATES)]
        return jnp.stack(columns, -1)

    if len(formats) == 1:
        return [counted(own, mine[0])]
    _, counts = jax.lax.scan(lambda _, here: (None, counted(*here)), None, (own, mine))
    return [jnp.moveaxis(counts, 0, 1).reshape(counts.shape[1], -1)]


def _parted(formats: Sequence[Format], dtype: Any) -> tuple[Format, Format]:
    """The numbers that formats share, and columns of those that they do not."""
    kinds = Format(jnp.int32, jnp.int32, dtype, dtype, jnp.bool_, jnp.int32)
    shared, own = [], []
    for kind, column in zip(kinds, zip(*formats, strict=True), strict=True):
        one = len({repr(number) for number in column}) == 1 and all(map(is_number, column))
        shared.append(column[0] if one else None)
        own.append(None if one else jnp.asarray(column, kind))
    return Format(*shared), Format(*own)
