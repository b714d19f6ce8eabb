"""The fates of updates, counted by bits.

An update u meets a stored weight w, and w' is stored. Four things can have happened, and exactly one has:

    landed        u was asked for, and w' differs from w
    swamped       u survives in its own format, w' equals w: too small beside w
    underflowed   u is nonzero, but zero once rounded to its own format
    zero          u is zero: nothing was asked, whatever happened to w

Entries where w, u or w' is not finite are counted apart. Equality is decided on bits, because a compiler may compare values
that were never stored and flushes subnormals in comparisons; -0 and +0 are one value. Nothing here knows what rounded them.

An entry that did not move is *invisible* rather than lost where something wider (master weights, a compensation) has kept its
update; those are counted among the swamped and again apart.

Beside the counts a `Tally` holds sums from which the rates follow: the share of sum |u| that was lost, the effective descent
quality <w' - w, u> / <u, u>, and the histogram of log2(|u| / ulp(w)), whose bins below -1 are what round-to-nearest loses.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import CARRIERS, Carrier, as_float64, to_bits, widened
from precisionlab.numerics.wide import in_float64, unheld
from precisionlab.stagnation.fates import HISTOGRAM_EDGES, NO_GAP, Tally
from precisionlab.stagnation.reducing import Column, are_few, histogram, reduced, sums

__all__ = ["BINS", "Case", "Seen", "examine", "tally", "tally_cases"]

BINS = len(HISTOGRAM_EDGES) - 1


class Case(NamedTuple):
    """One leaf's update, to be told the fates of; the fields are the arguments of `tally`.

    `gaps` asks for `finest` and `coarsest`; None follows `detail`.
    """

    old: Any
    update: Any
    new: Any
    stored_update: Any = None
    kept: Any = None
    grid: tuple[Any, Any] | None = None
    detail: bool = True
    directions: bool = False
    gaps: bool | None = None

    @property
    def gaps_wanted(self) -> bool:
        """Whether to tell `finest` and `coarsest`."""
        return self.detail if self.gaps is None else self.gaps


class Seen(NamedTuple):
    """What happened to every entry of a case.

    Attributes:
        w, u, after: the weights before, the update and the weights after, in one carrier.
        stored: the update as rounded to its own format, bits of the magnitude.
        finite: whether all three are finite.
        asked: and the update is not zero.
        same: whether the weight did not change.
        falls: whether the update is negative.
        spacing: log2 of ulp(w).
        bins: the bin of the histogram, -1 where nothing was asked.
    """

    w: Array
    u: Array
    after: Array
    stored: Array
    finite: Array
    asked: Array
    same: Array
    falls: Array
    spacing: Array
    bins: Array

    @property
    def stuck(self) -> Array:
        """Where an update was asked for and did not happen."""
        return self.asked & self.same

    def terms(self, real: Any = True) -> list[Array]:
        """For each entry |u|, |u| if it was lost, its part of <w' - w, u> and of <u, u>."""
        counts = self.finite & real
        safe, step = jnp.where(counts, self.u, 0), jnp.where(counts, jnp.subtract(self.after, self.w), 0)
        size = jnp.abs(safe)
        return [size, jnp.where(self.stuck, size, 0), step * safe, safe * safe]


def tally(
    old: PyTree[Array],
    update: PyTree[Array],
    new: PyTree[Array],
    *,
    stored_update: PyTree[Array] | None = None,
    kept: PyTree[Array] | None = None,
    grid: tuple[Any, Any] | None = None,
    detail: bool = True,
    directions: bool = False,
) -> PyTree[Tally]:
    """Tell the fate of every entry.

    Args:
        old: weights before, w, an array or a tree of arrays of any floating dtype: native storage (bfloat16, float16, fp8,
            ...) or values of a simulated format in a float32 or float64 carrier. What float32 does not hold, of NumPy, is
            compared as the float64 it is, outside of 64-bit JAX too; sums are then those of float64, given as float32.
        update: the intended updates u, the same tree and shapes; may be of a wider dtype.
        new: weights after, w'.
        stored_update: the updates as rounded to their own format, where that loses something; without it no update counts
            as underflowed.
        kept: booleans, the same tree and shapes: where something wider keeps the update, so that an entry that does not move
            is invisible and not lost.
        grid: `(precision, emin)` of the stored format, for the histogram; by default those of the dtype of `old`.
        detail: False counts the fates and leaves the sums and the histogram at None, at a fraction of the cost.
        directions: also count the entries that were asked to fall, and those that fell.

    Returns:
        A `Tally` for an array, a tree of them for a tree. Counts are exact up to 2^31 entries a leaf. Sums are computed in
        the carrier, where terms below its smallest normal may be flushed to zero.

    Raises:
        ValueError: if trees or shapes differ.
        TypeError: if a leaf is not floating.

    Example:
        >>> w = jnp.array([1.0, 1.0, 1.0, 0.0], jnp.bfloat16)
        >>> u = jnp.array([1e-3, -1e-2, 0.0, 1e-3], jnp.float32)
        >>> t = tally(w, u, (w + u.astype(jnp.bfloat16)))
        >>> int(t.landed), int(t.swamped), int(t.zero), float(t.stagnated_fraction) == 1 / 3
        (2, 1, 1, False)
    """
    trees = {"update": update, "new": new, "stored_update": stored_update, "kept": kept}
    if any(unheld(leaf) is not None for leaf in jax.tree.leaves((old, update, new, stored_update))):
        first, *others = (jax.tree.map(_as_meant, tree) for tree in (old, *trees.values()))
        options: dict[str, Any] = dict(zip(list(trees)[2:], others[2:], strict=True))
        return in_float64(lambda: tally(first, *others[:2], **options, grid=grid, detail=detail, directions=directions))
    leaves, structure = jax.tree.flatten(old)
    columns = [
        [None] * len(leaves) if tree is None else _matched(name, tree, old, leaves, structure) for name, tree in trees.items()
    ]
    rows: Any = zip(leaves, *columns, strict=True)
    cases = [Case(w, u, after, stored, held, grid, detail, directions) for w, u, after, stored, held in rows]
    return jax.tree.unflatten(structure, [tally_cases([case])[0] for case in cases])


def _as_meant(leaf: Any) -> Any:
    wide = unheld(leaf)
    return jax.lax.stop_gradient(jnp.asarray(leaf)) if wide is None else wide


def tally_cases(cases: Sequence[Case]) -> list[Tally]:
    """The tallies of several updates of one shape, counted in one pass over memory.

    Args:
        cases: arrays of the same shape; see `tally`.

    Returns:
        A `Tally` for each.
    """
    plans = [_plan(case) for case in cases]
    columns = [column for plan in plans for column in plan.columns]
    found = iter(reduced(columns))
    return [plan.finish([next(found) for _ in plan.columns]) for plan in plans]


def _matched(name: str, tree: Any, old: Any, leaves: list[Any], structure: Any) -> list[Any]:
    others, other_structure = jax.tree.flatten(tree)
    if other_structure != structure:
        raise ValueError(f"tally: `{name}` is not the same tree as `old`: {other_structure} against {structure}.")
    for (path, _), leaf, other in zip(jax.tree_util.tree_leaves_with_path(old), leaves, others, strict=True):
        where = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(f"tally: at {where}, `{name}` has shape {jnp.shape(other)} and `old` {jnp.shape(leaf)}.")
        for role, value in (("old", leaf), (name, other)):
            if name != "kept" and not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise TypeError(
                    f"tally: at {where}, `{role}` has dtype {jnp.result_type(value)}; only floating leaves stagnate, "
                    f"so filter the others out."
                )
    return others


class _Plan(NamedTuple):
    """What to count for a case, and the tally that follows."""

    columns: list[Column]
    finish: Callable[[list[Array]], Tally]


def examine(case: Case) -> Seen:
    """Look at every entry of a case, by its bits."""
    old, update, new = jnp.asarray(case.old), jnp.asarray(case.update), jnp.asarray(case.new)
    grid = case.grid
    if grid is None:
        info = jnp.finfo(old.dtype)
        grid = (info.nmant + 1, info.minexp)
    w, u, after = (widened(value) for value in (old, update, new))
    stored = u if case.stored_update is None else widened(jnp.asarray(case.stored_update))
    if {w.dtype.name, u.dtype.name, after.dtype.name, stored.dtype.name} != {"float32"}:
        w, u, after, stored = map(as_float64, (w, u, after, stored))
    carrier = CARRIERS[w.dtype.name]
    magnitude = carrier.word(carrier.sign - 1)
    w_bits, u_bits, after_bits = (to_bits(value, carrier) for value in (w, u, after))
    w_size, u_size, after_size = w_bits & magnitude, u_bits & magnitude, after_bits & magnitude
    finite = jnp.maximum(jnp.maximum(w_size, u_size), after_size) < carrier.word(carrier.infinity)
    same = (w_bits == after_bits) | ((w_size | after_size) == 0)
    asked = finite & (u_size != 0)
    spacing = _spacing(w_size, grid, carrier)
    bins = jnp.where(asked, jnp.clip(_exponent(u_size, carrier) - spacing - HISTOGRAM_EDGES[0], 0, BINS - 1), -1)
    stored_size = to_bits(stored, carrier) & magnitude
    return Seen(w, u, after, stored_size, finite, asked, same, u_bits > magnitude, spacing, bins)


def _plan(case: Case) -> _Plan:
    seen = examine(case)
    asked, same, stuck, spacing, bins = seen.asked, seen.same, seen.stuck, seen.spacing, seen.bins
    masks = {"landed": asked & ~same, "stagnated": stuck, "zero": seen.finite & ~asked}
    if case.stored_update is not None:
        masks["underflowed"] = stuck & (seen.stored == 0)
    if case.kept is not None:
        masks["invisible"] = stuck & case.kept
    if case.directions:
        falling = asked & seen.falls
        masks |= {"falling": falling, "fell": falling & ~same}
    columns = {name: Column(mask.astype(jnp.int32)) for name, mask in masks.items()}
    if case.detail and not are_few(bins):
        columns |= {f"bin {index}": Column((bins == index).astype(jnp.int32)) for index in range(BINS)}
    if case.gaps_wanted:
        columns["finest"] = Column(jnp.where(stuck, spacing, NO_GAP), NO_GAP, jnp.minimum)
        columns["coarsest"] = Column(jnp.where(stuck, spacing, -NO_GAP), -NO_GAP, jnp.maximum)

    def finish(results: list[Array]) -> Tally:
        found = dict(zip(columns, results, strict=True))
        underflowed = found["underflowed"] if "underflowed" in found else jnp.int32(0)
        # The fates are exclusive, so what is left over needs no mask of its own.
        nonfinite = np.int32(seen.w.size) - found["landed"] - found["stagnated"] - found["zero"]
        counts = Tally(
            found["landed"],
            found["stagnated"] - underflowed,
            underflowed,
            found["zero"],
            nonfinite,
            *(None,) * 5,
            **{name: found.get(name) for name in ("finest", "coarsest", "invisible", "falling", "fell")},
        )
        if not case.detail:
            return counts
        mass, mass_lost, along, square = sums(seen.terms())
        return counts._replace(
            update_mass=mass,
            stagnated_mass=mass_lost,
            moved_along=along,
            update_square=square,
            histogram=histogram(bins, BINS) if are_few(bins) else jnp.stack([found[f"bin {index}"] for index in range(BINS)]),
        )

    return _Plan(list(columns.values()), finish)


def _spacing(w_size: Array, grid: tuple[Any, Any], carrier: Carrier) -> Array:
    """log2 of ulp(w), from exponents alone."""
    precision, emin = (jnp.asarray(value, jnp.int32) for value in grid)
    return jnp.maximum(_exponent(w_size, carrier), emin) - precision + 1


def _exponent(size: Array, carrier: Carrier) -> Array:
    """floor(log2 |x|) from magnitude bits; for zero, some exponent below every other."""
    t = carrier.fraction_bits
    biased = (size >> carrier.word(t)).astype(jnp.int32)
    # A subnormal is an integer in units of the smallest one: converted to a float, its exponent is that of its leading bit.
    converted = (to_bits(size.astype(carrier.dtype), carrier) >> carrier.word(t)).astype(jnp.int32)
    return jnp.where(biased == 0, converted + (carrier.emin - t), biased) - carrier.bias
