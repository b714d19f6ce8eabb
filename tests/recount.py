"""The fates of updates counted again, in numpy float64, entry by entry: what a `Tally` must equal.

Float64 holds every narrower value exactly and numpy on the host neither flushes subnormals nor elides a cast, so here
plain comparisons are right.
"""

from typing import Any

import ml_dtypes
import numpy as np

import precisionlab as pl
from tests.cases import REGISTERED

COUNTS = ("landed", "swamped", "underflowed", "zero", "nonfinite")
SUMS = ("update_mass", "stagnated_mass", "moved_along", "update_square")


def wide(x: Any) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.asarray(x).astype(np.float64)


def recount(old: Any, update: Any, new: Any, stored: Any = None, numbers: Any = None) -> dict[str, Any]:
    """Counts, sums and histogram, each by its definition; `numbers` is the format of the weights."""
    numbers = REGISTERED[np.asarray(old).dtype.name] if numbers is None else numbers
    w, u, after = wide(old), wide(update), wide(new)
    kept = u if stored is None else wide(stored)
    finite = np.isfinite(w) & np.isfinite(u) & np.isfinite(after)
    asked, moved, survives = finite & (u != 0), w != after, kept != 0
    stuck = asked & ~moved
    found: dict[str, Any] = {
        "landed": np.sum(asked & moved),
        "swamped": np.sum(stuck & survives),
        "underflowed": np.sum(stuck & ~survives),
        "zero": np.sum(finite & (u == 0)),
        "nonfinite": np.sum(~finite),
    }
    with np.errstate(all="ignore"):
        found["update_mass"] = np.sum(np.abs(u[finite]))
        found["stagnated_mass"] = np.sum(np.abs(u[stuck]))
        found["moved_along"] = np.sum((after[finite] - w[finite]) * u[finite])
        found["update_square"] = np.sum(u[finite] ** 2)
    gap = np.maximum(exponents(w[asked]), int(numbers.emin)) - int(numbers.precision) + 1
    edges = pl.HISTOGRAM_EDGES
    place = np.clip(exponents(u[asked]) - gap, edges[0], edges[-1] - 1) - edges[0]
    found["histogram"] = np.bincount(place, minlength=len(edges) - 1)
    return found


def exponents(x: np.ndarray) -> np.ndarray:
    """floor(log2 |x|); for zero something below every other."""
    return np.where(x == 0, -5000, np.frexp(x)[1].astype(np.int64) - 1)


def assert_tally(
    tally: pl.Tally, expected: dict[str, Any], *, sums: bool = True, rtol: float = 1e-5, detail: bool = True
) -> None:
    found = {name: int(getattr(tally, name)) for name in COUNTS}
    assert found == {name: int(expected[name]) for name in COUNTS}
    assert int(tally.entries) == sum(found.values())
    assert (tally.histogram is not None) == (tally.update_mass is not None) == detail
    if not detail:
        return
    assert np.asarray(tally.histogram).tolist() == expected["histogram"].tolist()
    if sums:
        for name in SUMS:
            np.testing.assert_allclose(wide(getattr(tally, name)), expected[name], rtol=rtol, err_msg=name)


def rounded(x: Any, dtype: Any) -> np.ndarray:
    """Float64 to a narrow dtype with one rounding, to nearest even."""
    from tests.oracle import round_array

    name = np.dtype(dtype).name
    with np.errstate(all="ignore"):
        return round_array(wide(x), REGISTERED[name], "nearest_even").astype(getattr(ml_dtypes, name, name))
