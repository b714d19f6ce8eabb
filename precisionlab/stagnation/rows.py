"""The fates of updates that lie in rows, counted row by row in one pass.

A model cut into rows of one length is counted by one program, however many leaves it has and whatever their shapes. In a row
of at most 255 entries a count fits into a byte, so that four counts are one column of a reduction, and a histogram of 24 bins
six: half of the time of a column for each.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool
from precisionlab.stagnation.counting import BINS, Case, Seen, examine
from precisionlab.stagnation.fates import NO_GAP, Tally
from precisionlab.stagnation.reducing import combining

__all__ = ["ENTRIES", "tally_rows"]

ENTRIES = 240
"""Entries whose counts share a word: as many as fit into a byte, in whole vectors of 16."""

_IN_A_WORD = 4
_FOLD = 4
"""So many parts of a row are added up entry by entry before the sum along it: additions in a stated order do not vectorize."""


def tally_rows(
    cases: Sequence[Case], real: Bool[Array, "rows parts 240"], marks: Sequence[Bool[Array, "rows parts 240"]] = ()
) -> tuple[list[Tally], list[Array]]:
    """The tallies of each row of several updates.

    Args:
        cases: updates of one shape, (rows, parts, `ENTRIES`); see `tally`. Nothing is told of `stored_update`.
        real: which entries there are; the others pad the last row of a leaf.
        marks: what else to count.

    Returns:
        For each case a `Tally` whose fields have an axis of rows in front; and how many entries of each row are marked.
    """
    seen = [examine(case) for case in cases]
    masks: list[dict[str, Array]] = []
    words, extremes = _packed([mark & real for mark in marks]), []
    for case, saw in zip(cases, seen, strict=True):
        masks.append(_masks(case, saw, real))
        words += _packed(list(masks[-1].values()))
        if case.detail:
            words += _binned(jnp.where(real, saw.bins, -1))
        if case.gaps_wanted:
            stuck = saw.stuck & real
            extremes += [jnp.where(stuck, saw.spacing, NO_GAP), jnp.where(stuck, -saw.spacing, NO_GAP)]
    counts, least = _reduced(words, extremes)
    found, ends = iter(counts), iter(least)
    marked = _taken(found, len(marks))
    return [_tally(case, saw, list(names), found, ends, real) for case, saw, names in zip(cases, seen, masks, strict=True)], marked


def _taken(counts: Iterator[Array], number: int) -> list[Array]:
    """The next counts, and past what else is in their last word."""
    taken = [next(counts) for _ in range(number)]
    for _ in range(-number % _IN_A_WORD):
        next(counts)
    return taken


def _masks(case: Case, saw: Seen, real: Array) -> dict[str, Array]:
    masks = {
        "landed": saw.asked & ~saw.same,
        "swamped": saw.stuck,
        "zero": saw.finite & ~saw.asked,
        "nonfinite": ~saw.finite,
    }
    if case.kept is not None:
        masks["invisible"] = saw.stuck & case.kept
    if case.directions:
        masks |= {"falling": saw.asked & saw.falls, "fell": saw.asked & saw.falls & ~saw.same}
    return {name: mask & real for name, mask in masks.items()}


def _packed(masks: list[Array]) -> list[Array]:
    """Four masks in the bytes of one word."""
    words = []
    for start in range(0, len(masks), _IN_A_WORD):
        bytes_ = [jnp.where(mask, np.uint32(1 << 8 * place), np.uint32(0)) for place, mask in enumerate(masks[start:][:4])]
        words.append(jax.tree.reduce(operator.or_, bytes_))
    return words


def _binned(bins: Array) -> list[Array]:
    """A one in the byte of each entry's bin; a shift beyond the word, or by a negative number, leaves nothing."""
    bits = (8 * bins).astype(jnp.uint32)
    one = jnp.ones_like(bits)
    return [jax.lax.shift_left(one, bits - np.uint32(8 * start)) for start in range(0, BINS, _IN_A_WORD)]


def _reduced(words: list[Array], extremes: list[Array]) -> tuple[list[Array], list[Array]]:
    """The counts in the words, byte by byte, and the least of each extreme, of every row; all in one pass over memory."""
    starts = (*[np.uint32(0)] * len(words), *[np.int32(NO_GAP)] * len(extremes))
    combine = combining((*[operator.add] * len(words), *[jnp.minimum] * len(extremes)))
    made = jax.lax.reduce((*words, *extremes), starts, combine, (words[0].ndim - 1,))
    sums = jnp.stack(made[: len(words)])
    parts = [((sums >> np.uint32(8 * place)) & np.uint32(255)).astype(jnp.int32) for place in range(_IN_A_WORD)]
    counts = jnp.sum(jnp.stack(parts, 1), -1, dtype=jnp.int32).reshape(-1, words[0].shape[0])
    least = list(jnp.min(jnp.stack(made[len(words) :]), -1)) if extremes else []
    return list(counts), least


def _tally(case: Case, saw: Seen, names: list[str], counts: Any, least: Any, real: Array) -> Tally:
    found = dict(zip(names, _taken(counts, len(names)), strict=True))
    bins = jnp.stack(_taken(counts, BINS), -1) if case.detail else None
    finest, coarsest = (next(least), -next(least)) if case.gaps_wanted else (None, None)
    none = dict.fromkeys(Tally._fields)
    counted = Tally(**(none | found | {"underflowed": jnp.zeros_like(found["swamped"])}))
    counted = counted._replace(finest=finest, coarsest=coarsest)
    if not case.detail:
        return counted
    mass, lost, along, square = map(_row_sum, saw.terms(real))
    return counted._replace(
        update_mass=mass, stagnated_mass=lost, moved_along=along, update_square=square, histogram=bins
    )


def _row_sum(term: Array) -> Array:
    parts = term.reshape(term.shape[0], _FOLD, -1)
    folded = parts[:, 0]
    for place in range(1, _FOLD):
        folded = folded + parts[:, place]
    # A product with ones: compilers vectorize it, and must not reorder a sum.
    return jnp.matmul(folded, jnp.ones(folded.shape[1], folded.dtype), precision=jax.lax.Precision.HIGHEST)
