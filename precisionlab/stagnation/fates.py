"""What became of updates: the counts and sums of a tally, and the rates that follow from them.

`stagnation` takes tallies; `packing` carries many of them between jitted calls.
"""

import operator
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import PyTree

__all__ = ["HISTOGRAM_EDGES", "NO_GAP", "SUMS", "Tally", "by_path", "ratio", "total"]

HISTOGRAM_EDGES: tuple[int, ...] = tuple(range(-16, 9))
"""Edges of the bins of floor(log2(|u| / ulp(w))); the first and the last bin take in everything beyond."""

NO_GAP = 1 << 20
"""`Tally.finest` where nothing was stuck, and minus `Tally.coarsest`: beyond every exponent."""


SUMS = "update_mass", "stagnated_mass", "moved_along", "update_square"
"""The sums of a `Tally`, in order."""


class Tally(NamedTuple):
    """Counts and sums over the entries of one leaf (or of several, added up); every field is a scalar but the histogram.

    Attributes:
        landed, swamped, underflowed, zero: entries by fate.
        nonfinite: entries where the weight before, the update or the weight after is infinite or NaN.
        update_mass: sum of |u| over finite entries, in the units of the weights.
        stagnated_mass: the same sum over swamped and underflowed entries.
        moved_along: the inner product <w' - w, u>.
        update_square: the inner product <u, u>.
        histogram: entries with u != 0 by floor(log2(|u| / ulp(w))), see `HISTOGRAM_EDGES`.
        finest, coarsest: log2 of the smallest and of the largest ulp(w) among stagnated entries, `NO_GAP` and `-NO_GAP` if
            there are none. A step must exceed half an ulp to land: 2^(finest-1) moves the first, 2^(coarsest-1) the last.
        invisible: stagnated entries whose update something wider has kept; None where nothing keeps any.
        falling: entries with u < 0, and
        fell: those of them that landed; None unless asked for.

    The sums, the histogram and the two exponents are None in a tally taken with `detail=False`.
    """

    landed: Any
    swamped: Any
    underflowed: Any
    zero: Any
    nonfinite: Any
    update_mass: Any
    stagnated_mass: Any
    moved_along: Any
    update_square: Any
    histogram: Any
    finest: Any = None
    coarsest: Any = None
    invisible: Any = None
    falling: Any = None
    fell: Any = None

    @property
    def entries(self) -> Any:
        """All entries, finite or not."""
        return self.landed + self.swamped + self.underflowed + self.zero + self.nonfinite

    @property
    def stagnated(self) -> Any:
        """Entries whose update was asked for and did not happen."""
        return self.swamped + self.underflowed

    @property
    def asked(self) -> Any:
        """Finite entries with a nonzero update: the denominator of `stagnated_fraction`."""
        return self.landed + self.stagnated

    @property
    def stagnated_fraction(self) -> Any:
        """Stagnated entries as a share of those that were asked to move; NaN when none was."""
        return ratio(self.stagnated, self.asked)

    @property
    def lost(self) -> Any:
        """Stagnated entries whose update nothing has kept."""
        return self.stagnated if self.invisible is None else self.stagnated - self.invisible

    @property
    def lost_fraction(self) -> Any:
        """Lost entries as a share of those that were asked to move; NaN when none was."""
        return ratio(self.lost, self.asked)

    @property
    def lost_mass(self) -> Any:
        """The share of sum |u| that fell on stagnated entries; NaN when the sum is zero."""
        return ratio(self.stagnated_mass, self.update_mass)

    @property
    def descent_quality(self) -> Any:
        """<w' - w, u> / <u, u>: 1 for exact arithmetic, 0 when frozen, beyond 1 when rounding overshoots."""
        return ratio(self.moved_along, self.update_square)


def ratio(part: Any, whole: Any) -> Any:
    """Part / whole in floating point, NaN where the whole is zero."""
    if part is None:
        raise ValueError("Tally: this tally holds counts only; take it with detail=True to have its sums.")
    np_or_jnp = jnp if isinstance(part, jax.Array) or isinstance(whole, jax.Array) else np
    kind = np_or_jnp.asarray(whole).dtype
    if not jnp.issubdtype(kind, jnp.floating):
        kind = np.dtype(np.float32 if np_or_jnp is jnp else np.float64)
    top, bottom = (np_or_jnp.asarray(value).astype(kind) for value in (part, whole))
    nothing = bottom == 0
    return np_or_jnp.where(nothing, np.asarray(np.nan, kind), top / np_or_jnp.where(nothing, np.asarray(1, kind), bottom))


def total(tallies: PyTree[Tally]) -> Tally:
    """The sum of all the tallies in a tree.

    Example:
        >>> from precisionlab import tally
        >>> one = jnp.ones(3)
        >>> int(total({"a": tally(one, one, one), "b": tally(one, one, one)}).swamped)
        6
    """
    leaves = jax.tree.leaves(tallies, is_leaf=lambda node: isinstance(node, Tally))
    if not leaves:
        raise ValueError("total: there is no tally to add up; the tree is empty.")

    def together(name: str) -> Any:
        parts = [getattr(leaf, name) for leaf in leaves]
        if name == "invisible" and any(part is not None for part in parts):
            parts = [0 if part is None else part for part in parts]
        if any(part is None for part in parts):
            return None
        if name in ("finest", "coarsest"):
            ours = any(isinstance(part, jax.Array) for part in parts)
            smaller, larger = (jnp.minimum, jnp.maximum) if ours else (np.minimum, np.maximum)
            return reduce(smaller if name == "finest" else larger, parts)
        return reduce(operator.add, parts)

    return Tally(*map(together, Tally._fields))


def by_path(tallies: PyTree[Tally]) -> dict[str, Tally]:
    """The tallies of a tree under the paths of their leaves, such as `layer1/weight`.

    Example:
        >>> from precisionlab import tally
        >>> one = jnp.ones(3)
        >>> list(by_path({"layer1": {"bias": tally(one, one, one)}}))
        ['layer1/bias']
    """
    found = jax.tree_util.tree_leaves_with_path(tallies, is_leaf=lambda node: isinstance(node, Tally))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}
