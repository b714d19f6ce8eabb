"""Counts of rows are those of their entries, counted again in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.stagnation.counting import Case
from precisionlab.stagnation.fates import NO_GAP
from precisionlab.stagnation.rows import ENTRIES, columns, count_rows, tally_of
from tests.recount import assert_tally, recount

SHAPE = (3, 4, ENTRIES)


def update(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and updates of every size, zeros, infinities and NaN among them; in the last row all entries have one fate."""
    random = np.random.default_rng(seed)
    w, u = (np.float32(np.ldexp(random.standard_normal(SHAPE), random.integers(-30, 8, SHAPE))) for _ in range(2))
    for values in (w, u):
        values[random.random(SHAPE) < 0.1] = 0
        values[random.random(SHAPE) < 0.02] = np.nan
        values[random.random(SHAPE) < 0.02] = np.inf
    w[-1], u[-1] = 1, 2.0**-40
    return w, u


def real() -> np.ndarray:
    """The last row ends early, and one begins late."""
    place = np.arange(4 * ENTRIES).reshape(4, ENTRIES)
    return np.stack([place < 5000, place >= 700, place < 917])


def counted(case: Case, marks: Any = ()) -> Any:
    mask = real()
    found = count_rows(case, jnp.asarray(mask), marks)
    names = columns(case, len(marks))
    assert found.counts.shape == (3, len(names))
    return tally_of(names, found, jnp.asarray(mask.sum((1, 2)), jnp.int32)), found, names


@pytest.mark.parametrize("detail", [False, True])
def test_rows_are_counted_as_their_entries_are(detail: bool) -> None:
    w, u = update(0)
    after = np.asarray(jnp.asarray(w) + jnp.asarray(u))
    tally = jax.jit(lambda *given: counted(Case(*given, detail=detail))[0])(w, u, after)
    for row, mask in enumerate(real()):
        expected = recount(w[row][mask], u[row][mask], after[row][mask])
        assert_tally(jax.tree.map(lambda field, row=row: field[row], tally), expected, detail=detail)


def test_a_row_of_one_fate_does_not_run_over_its_byte() -> None:
    ones = jnp.ones((1, 16, ENTRIES))
    found = count_rows(Case(ones, ones * 2.0**-40, ones, detail=True), jnp.ones((1, 16, ENTRIES), bool))
    names = columns(Case(None, None, None, detail=True))
    assert int(found.counts[0, names.index("swamped")]) == 16 * ENTRIES
    assert int(found.counts.sum()) == 2 * 16 * ENTRIES  # once by its fate, once in the histogram


def test_marks_directions_gaps_and_what_is_kept() -> None:
    w, u = update(1)
    after = np.asarray(jnp.asarray(w) + jnp.asarray(u))
    mark = np.random.default_rng(2).random(SHAPE) < 0.3
    case = Case(w, u, after, None, jnp.asarray(mark), (24, -126), detail=False, directions=True, gaps=True)
    tally, found, names = counted(case, [jnp.asarray(mark)])
    finite = np.isfinite(w) & np.isfinite(u) & np.isfinite(after) & real()
    stuck, falls = finite & (u != 0) & (w == after), finite & (u < 0)
    assert tally.invisible.tolist() == (stuck & mark).sum((1, 2)).tolist()
    assert tally.falling.tolist() == falls.sum((1, 2)).tolist()
    assert tally.fell.tolist() == (falls & ~stuck).sum((1, 2)).tolist()
    assert found.counts[:, names.index("mark")].tolist() == (mark & real()).sum((1, 2)).tolist()
    gaps = np.where(w == 0, -149, np.maximum(np.frexp(w)[1] - 1, -126) - 23)
    assert tally.finest.tolist() == np.where(stuck, gaps, NO_GAP).min((1, 2)).tolist()
    assert tally.coarsest.tolist() == np.where(stuck, gaps, -NO_GAP).max((1, 2)).tolist()
