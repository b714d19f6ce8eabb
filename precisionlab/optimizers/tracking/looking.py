"""One look at an update: what happened to every entry, and what would have happened in other formats.

For each format that is asked about, weights and update are taken as they are, the weights rounded to it, and their sum rounded
again, in three ways:

    to nearest    what plain storage would lose
    stochastic    what would land by chance, in proportion to the size of the update
    compensated   to nearest, with the remainder kept in a second number of the format: what is *invisible* would land later,
                  and what is lost is below the floor of `kahan`

All the questions about a leaf are counted in one pass over it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, Bool, PRNGKeyArray
from precisionlab.numerics.carriers import CARRIERS, as_float64, power_of_two, to_bits, uncontracted, widened
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import stochastic
from precisionlab.numerics.randomness import fold
from precisionlab.numerics.rounding import round_to
from precisionlab.optimizers.tracking.alike import axes_of, of_each
from precisionlab.stagnation.counting import Case, tally_cases
from precisionlab.stagnation.fates import Tally
from precisionlab.stagnation.packing import PackedTallies, pack_rows

__all__ = ["Looked", "Sight", "Wanted", "above_floor", "look"]


class Sight(NamedTuple):
    """One leaf before, during and after an update.

    Attributes:
        old: what was stored.
        update: what was to be added, in any floating dtype.
        new: what is stored now.
        kept: booleans, where something wider keeps what does not land; or None.
        grid: `(precision, emin)` of the storage, if not those of the dtype.
    """

    old: Array
    update: Array
    new: Array
    kept: Any = None
    grid: Any = None


class Looked(NamedTuple):
    """Packed tallies of the leaves: of the storage itself, and by format for each way of rounding."""

    tally: PackedTallies
    what_if: Mapping[str, PackedTallies]
    stochastic: Mapping[str, PackedTallies]
    compensated: Mapping[str, PackedTallies]


class Wanted(NamedTuple):
    """What to tell of the storage itself: see `tally`. Of other formats counts alone are told."""

    detail: bool
    directions: bool = False
    gaps: bool | None = None
    kept: bool = False


def look(
    saw: Callable[..., Sight],
    rows: Sequence[tuple[Any, ...] | None],
    structure: Any,
    formats: Mapping[str, Format],
    key: PRNGKeyArray,
    wanted: Wanted,
    *,
    at_hand: bool,
) -> Looked:
    """Tell the fates of the entries of a tree.

    Args:
        saw: what makes a sight of a row.
        rows: for each leaf of the tree its row of arrays; None for leaves that cannot stagnate.
        structure: the tree itself.
        formats: the formats to ask about.
        key: the random bits of stochastic rounding.
        wanted: what else to tell.
        at_hand: whether the rows lie in memory anyway; see `of_each`.
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

    seen = {index: row for index, row in enumerate(rows) if row is not None}
    marked = jax.tree.unflatten(structure, [index if index in seen else None for index in range(len(rows))])

    def packed(tally: Tally | None, **options: Any) -> PackedTallies:
        return pack_rows(tally, marked, **options)

    counts = {"detail": False}
    if not seen:
        nothing = [{name: packed(None, **counts, kept=place == 2) for name in formats} for place in range(3)]
        return Looked(packed(None, **wanted._asdict()), *nothing)
    leaves = [
        (jnp.stack([fold(key, index * len(formats) + number) for number in range(len(formats))]) if formats else (), row)
        for index, row in seen.items()
    ]
    own, *others = of_each(told, leaves, at_hand=at_hand)
    asked = dict(zip(formats, zip(others[::2], others[1::2], strict=True), strict=True))
    return Looked(
        packed(own, **wanted._asdict()),
        {name: packed(nearest._replace(invisible=None), **counts) for name, (nearest, _) in asked.items()},
        {name: packed(chance, **counts) for name, (_, chance) in asked.items()},
        {name: packed(nearest, **counts, kept=True) for name, (nearest, _) in asked.items()},
    )


def _asked(sight: Sight, fmt: Format, key: PRNGKeyArray) -> list[Case]:
    wide, step = widened(sight.old), widened(sight.update)
    if wide.dtype != step.dtype:
        wide, step = as_float64(wide), as_float64(step)
    before = round_to(wide, fmt)
    wanted = before + uncontracted(step)
    grid = (fmt.precision, fmt.emin)
    nearest = Case(before, step, round_to(wanted, fmt), None, above_floor(before, step, fmt), grid, detail=False)
    return [nearest, Case(before, step, round_to(wanted, fmt, stochastic, key=key), None, None, grid, detail=False)]


def above_floor(w: Array, u: Array, fmt: Format) -> Bool[Array, "..."]:
    """Where equal updates would gather in a compensation stored in the format, and land in the end: see `kahan`.

    Args:
        w: values of the format, in a carrier.
        u: updates in the same carrier.
        fmt: the format, known numbers.
    """
    carrier = CARRIERS[w.dtype.name]
    w_bits, u_bits = to_bits(w, carrier), to_bits(u, carrier)
    magnitude = carrier.word(carrier.sign - 1)
    size = w_bits & magnitude
    exponent = jnp.maximum((size >> carrier.word(carrier.fraction_bits)).astype(jnp.int32) - carrier.bias, fmt.emin)
    toward_zero = ((w_bits ^ u_bits) > magnitude) & (size != 0)
    power = (size & carrier.word((1 << carrier.fraction_bits) - 1)) == 0
    narrow = toward_zero & power & (exponent > fmt.emin)
    half = exponent - fmt.precision - narrow.astype(jnp.int32)
    if not fmt.subnormals:
        # From zero, and on the way to it, the gap is the smallest normal number.
        at_zero = (size == 0) | (toward_zero & power & (exponent == fmt.emin))
        half = jnp.where(at_zero, fmt.emin - 1, half)
    least = fmt.emin - fmt.precision if fmt.subnormals else jnp.minimum(fmt.emin - 1, half)
    floor = power_of_two(jnp.maximum(half - fmt.precision - 1, least), carrier)
    return (u_bits & magnitude) > floor


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
