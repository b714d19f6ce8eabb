"""The fates of updates that lie in rows, counted row by row in one pass.

A model cut into rows of one length is counted by one program, however many leaves it has and whatever their shapes. In a row
of at most 255 entries a count fits into a byte, so that four counts are one column of a reduction, and a histogram of 24 bins
six: half of the time of a column for each. Counts stay in one array until they are those of leaves: every array is a buffer,
and every operation on one a kernel to be compiled.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Bool, Float, Int
from precisionlab.stagnation.counting import BINS, Case, examine
from precisionlab.stagnation.fates import NO_GAP, SUMS, Tally
from precisionlab.stagnation.reducing import combining

__all__ = ["ENTRIES", "RowCounts", "columns", "count_rows", "tally_of"]

ENTRIES = 240
"""Entries whose counts share a word: as many as fit into a byte, in whole vectors of 16."""

_WORD = 4
_FOLD = 4
"""So many parts of a row are added up entry by entry before the sum along it: additions in a stated order do not vectorize."""


class RowCounts(NamedTuple):
    """What was counted in some rows, or leaves.

    Attributes:
        counts: a column for each of `columns`.
        least: the finest spacing where something was stuck, and minus the coarsest; None if nobody asked.
        sums: of |u|, of |u| that was lost, <w' - w, u> and <u, u>; None without detail.
    """

    counts: Int[Array, "rows columns"]
    least: Int[Array, "rows 2"] | None
    sums: Float[Array, "rows 4"] | None


def columns(case: Case, marks: int = 0) -> list[str]:
    """The names of what is counted of a case, column by column; empty where there is nothing.

    Args:
        case: the case, of which only matters what it asks for.
        marks: how many marks are counted with it.

    Example:
        >>> columns(Case(None, None, None, detail=False))
        ['landed', 'swamped', 'zero', '']
    """
    names = ["landed", "swamped", "zero"]
    names += ["invisible"] * (case.kept is not None) + ["falling", "fell"] * case.directions + ["mark"] * marks
    names += [""] * (-len(names) % _WORD)
    return names + ["bin"] * BINS * case.detail


def count_rows(
    case: Case, real: Bool[Array, "rows parts 240"], marks: Sequence[Bool[Array, "rows parts 240"]] = ()
) -> RowCounts:
    """Count the fates of each row.

    Args:
        case: an update, arrays of shape (rows, parts, `ENTRIES`); see `tally`. Nothing is told of `stored_update`.
        real: which entries there are; the others are padding.
        marks: what else to count.
    """
    saw = examine(case)
    masks = [saw.asked & ~saw.same, saw.stuck, saw.finite & ~saw.asked]
    masks += [] if case.kept is None else [saw.stuck & case.kept]
    masks += [saw.asked & saw.falls, saw.asked & saw.falls & ~saw.same] if case.directions else []
    words = _packed([mask & real for mask in (*masks, *marks)])
    words += _binned(jnp.where(real, saw.bins, -1)) if case.detail else []
    stuck = saw.stuck & real
    extremes = [jnp.where(stuck, spacing, NO_GAP) for spacing in (saw.spacing, -saw.spacing)] if case.gaps_wanted else []
    counts, least = _reduced(words, extremes)
    sums = jnp.stack(list(map(_row_sum, saw.terms(real))), -1) if case.detail else None
    return RowCounts(counts, least, sums)


def tally_of(names: Sequence[str], found: RowCounts, sizes: Int[Array, " rows"]) -> Tally:
    """The tallies of rows, or of leaves, in each of whose fields they are the first axis.

    Args:
        names: from `columns`.
        found: what was counted.
        sizes: how many entries they have: the fates are exclusive, so what is left over was not finite.
    """
    places = {name: place for place, name in enumerate(names) if name not in ("bin", "mark", "")}
    fields: dict[str, Any] = dict.fromkeys(Tally._fields) | {name: found.counts[:, place] for name, place in places.items()}
    fields["nonfinite"] = sizes - fields["landed"] - fields["swamped"] - fields["zero"]
    fields["underflowed"] = jnp.zeros_like(fields["landed"])
    if found.sums is not None:
        fields |= {name: found.sums[:, place] for place, name in enumerate(SUMS)}
        fields["histogram"] = found.counts[:, names.index("bin") : names.index("bin") + BINS]
    if found.least is not None:
        fields |= {"finest": found.least[:, 0], "coarsest": -found.least[:, 1]}
    return Tally(**fields)


def _packed(masks: list[Array]) -> list[Array]:
    """Four masks in the bytes of each word."""
    bytes_ = [jnp.where(mask, np.uint32(1 << 8 * (place % _WORD)), np.uint32(0)) for place, mask in enumerate(masks)]
    return [jax.tree.reduce(operator.or_, bytes_[start : start + _WORD]) for start in range(0, len(bytes_), _WORD)]


def _binned(bins: Array) -> list[Array]:
    """A one in the byte of each entry's bin; a shift beyond the word, or by a negative number, leaves nothing."""
    bits = (8 * bins).astype(jnp.uint32)
    one = jnp.ones_like(bits)
    return [jax.lax.shift_left(one, bits - np.uint32(8 * start)) for start in range(0, BINS, _WORD)]


def _reduced(words: list[Array], extremes: list[Array]) -> tuple[Array, Array | None]:
    """The counts in the words, byte by byte, and the least of each extreme, of every row; all in one pass over memory."""
    starts = (*[np.uint32(0)] * len(words), *[np.int32(NO_GAP)] * len(extremes))
    combine = combining((*[operator.add] * len(words), *[jnp.minimum] * len(extremes)))
    made = jax.lax.reduce((*words, *extremes), starts, combine, (words[0].ndim - 1,))
    stacked = jnp.stack(made[: len(words)], -1)[..., None]
    parts = (stacked >> (8 * jax.lax.broadcasted_iota(np.uint32, (1, 1, 1, _WORD), 3))) & np.uint32(255)
    counts = jnp.sum(parts.astype(jnp.int32), 1, dtype=jnp.int32).reshape(len(parts), -1)
    return counts, jnp.min(jnp.stack(made[len(words) :], -1), 1) if extremes else None


def _row_sum(term: Array) -> Array:
    parts = term.reshape(term.shape[0], _FOLD, -1)
    folded = parts[:, 0]
    for place in range(1, _FOLD):
        folded = folded + parts[:, place]
    # A product with ones: compilers vectorize it, and must not reorder a sum.
    return jnp.matmul(folded, jnp.ones(folded.shape[1], folded.dtype), precision=jax.lax.Precision.HIGHEST)
