"""In which format each leaf is stored: what a cure was given, taken leaf by leaf.

    None                            each leaf in the format of its own dtype
    {"kernel": BFLOAT16, ...}       by path, the first pattern that matches; the others in their own dtypes
    BFLOAT16                        every leaf; but where some are stored in bfloat16, it is theirs, and others keep their own

The last law serves both ways to hold narrow weights. Simulated ones are float32 arrays throughout, and all of them are meant.
Stored ones are bfloat16 arrays, and a float32 array beside them was left in float32 on purpose: a norm, say. What an optimizer
remembers is no choice of that kind, and a format alone is then that of every leaf (`every`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from precisionlab._nearest import allowed_names
from precisionlab._typing import Array, PyTree
from precisionlab.arithmetic.rules import scope_matches
from precisionlab.numerics.carriers import CARRIERS
from precisionlab.numerics.formats import FORMATS, Format, name_of
from precisionlab.numerics.modes import Mode, Stochastic
from precisionlab.optimizers.roundings import Grid, hash_of
from precisionlab.optimizers.sums import is_floating

__all__ = ["Formats", "Row", "check_zeros", "formats_of", "grid_of", "grids_of", "held_by", "rows_of"]

Formats = Format | Mapping[str, Format | None] | None
"""What a cure takes: one format, formats by path, or None."""


class Row(NamedTuple):
    """One leaf of an update: its number, its format (None where it is not floating), and it in each of some trees."""

    number: int
    fmt: Format | None
    leaves: tuple[Any, ...]


def rows_of(given: Formats, where: str, updates: PyTree[Array], params: PyTree[Array], *others: PyTree[Any]) -> Any:
    """The leaves of an update, each with its weight, its format, and what other trees hold in its place.

    Returns:
        The structure of the updates, and a `Row` for each leaf: of weights, updates and the other trees.
    """
    placed, structure = jax.tree_util.tree_flatten_with_path(updates)
    columns = [structure.flatten_up_to(tree) for tree in (params, *others)]
    formats = formats_of(given, [path for path, _ in placed], columns[0], where)
    steps = [step for _, step in placed]
    leaves = zip(columns[0], steps, *columns[1:], strict=True)
    return structure, [Row(number, fmt, held) for number, (fmt, held) in enumerate(zip(formats, leaves, strict=True))]


def formats_of(
    given: Formats, paths: Sequence[Any], leaves: Sequence[Any], where: str, *, refuse: bool = False, every: bool = False
) -> list[Format | None]:
    """The format of each leaf; None for those that are not floating.

    Args:
        given: what the cure was given.
        paths: key paths of the leaves.
        leaves: the leaves themselves.
        where: the name of the cure.
        refuse: also refuse patterns that match nothing.
        every: a format alone is that of every leaf. Where a dtype does not hold it, it is what both hold.

    Raises:
        ValueError: if a narrow dtype cannot hold the format of its leaf (but for `every`), or as `refuse` says.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    own = [FORMATS.get(jnp.dtype(leaf.dtype).name) if is_floating(leaf) else None for leaf in leaves]
    if given is None:
        return own
    if isinstance(given, Format):
        theirs = [fmt is not None and _same_values(fmt, given) for fmt in own]
        wanted = [given if every or mine or not any(theirs) else None for mine in theirs]
    else:
        wanted = [_first(given, name.split("/")) for name in names]
        if refuse:
            _refuse_unmatched(given, [name for name, fmt in zip(names, own, strict=True) if fmt is not None], where)
    found = [None if fmt is None else asked or fmt for asked, fmt in zip(wanted, own, strict=True)]
    for name, fmt, stored, leaf in zip(names, found, own, leaves, strict=True):
        if every or fmt is None or stored is None or leaf.dtype.name in CARRIERS:
            continue
        if not _holds(stored, fmt):
            raise ValueError(
                f"{where}: {name or 'the array'} is stored in {leaf.dtype.name}, which does not hold the values of "
                f"{name_of(fmt)}; leave its format out (None, each leaf in its own dtype), give formats by path, or store "
                f"it in float32."
            )
    return found


def grid_of(paths: Sequence[Any], leaves: Sequence[Any], formats: Sequence[Format | None], mode: Mode) -> Grid:
    """Where the values of some leaves lie that are rounded to formats."""
    rows, chance = [], int(isinstance(mode, Stochastic))
    for path, leaf, fmt in zip(paths, leaves, formats, strict=True):
        if fmt is not None:
            own = _same_values(FORMATS[jnp.dtype(leaf.dtype).name], fmt)
            place = (0, 0) if own else (int(fmt.precision), int(fmt.emin))
            rows.append([*place, chance, hash_of(jax.tree_util.keystr(path, simple=True, separator="/"))])
    return Grid(jnp.array(rows, jnp.int32).reshape(-1, 4))


def grids_of(given: Formats, tree: PyTree[Any], mode: Mode, where: str, *, zero: str | None = None) -> Grid:
    """Where the values of each floating leaf of a tree lie.

    With `zero`, the name of what starts at zero, formats without one are refused.
    """
    placed = jax.tree_util.tree_leaves_with_path(tree)
    paths, leaves = ([pair[side] for pair in placed] for side in (0, 1))
    formats = formats_of(given, paths, leaves, where, refuse=bool(placed))
    if zero is not None:
        check_zeros(dict(enumerate(formats)), f"{where}: {zero}")
    return grid_of(paths, leaves, formats, mode)


def held_by(dtype: Any, fmt: Format) -> Format:
    """The format itself if a dtype holds its values, else that of the values which both hold.

    Example:
        >>> from precisionlab.numerics.formats import FLOAT16, describe_numbers
        >>> describe_numbers(held_by(jnp.bfloat16, FLOAT16))
        'Format(precision=8, emin=-17, largest=65280.0, overflow=inf, subnormals=True, zeros=2)'
    """
    own = FORMATS[jnp.dtype(dtype).name]
    if jnp.dtype(dtype).name in CARRIERS or _holds(own, fmt):
        return fmt
    precision = min(own.precision, fmt.precision)
    largest = min(float(own.largest), float(fmt.largest))
    exponent = math.frexp(largest)[1] - precision
    largest = math.ldexp(math.floor(math.ldexp(largest, -exponent)), exponent)
    finest = max(_finest(own), _finest(fmt))
    return fmt._replace(precision=precision, emin=finest + precision - 1, largest=largest, subnormals=True)


def check_zeros(given: Any, what: str) -> None:
    """Refuse formats that have no zero, in whatever a cure was given, for what starts at zero.

    Raises:
        ValueError: if one of them has none.
    """
    for fmt in given.values() if isinstance(given, Mapping) else [given]:
        if fmt is not None and fmt.zeros == 0:
            raise ValueError(f"{what} starts at zero, and {name_of(fmt)} has none; choose a format with a zero.")


def _first(formats: Mapping[str, Format | None], names: Sequence[str]) -> Format | None:
    return next((fmt for pattern, fmt in formats.items() if _matches(pattern, names)), None)


def _matches(pattern: str, names: Sequence[str]) -> bool:
    """Whether the pattern is that of the leaf, or of something that it lies in."""
    return any(scope_matches(pattern, tuple(names[: depth + 1])) for depth in range(len(names)))


def _refuse_unmatched(formats: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for pattern in formats:
        if not any(_matches(pattern, name.split("/")) for name in names):
            shown = names if len(names) <= 20 else [*names[:20], f"and {len(names) - 20} more"]
            raise ValueError(
                f'{where}: a format is for "{pattern}", which is the path of no floating leaf here; '
                f"{allowed_names(pattern, shown)}."
            )


def _same_values(one: Format, other: Format) -> bool:
    """Whether two formats hold the same values, whatever becomes of those beyond."""
    return one._replace(overflow=0.0) == other._replace(overflow=0.0)


def _holds(stored: Format, fmt: Format) -> bool:
    return (
        stored.precision >= fmt.precision
        and _finest(stored) <= _finest(fmt)
        and float(stored.largest) >= float(fmt.largest)
        and (stored.zeros > 0 or fmt.zeros == 0)
    )


def _finest(fmt: Format) -> int:
    """The exponent of the smallest value above zero."""
    return fmt.emin - fmt.precision + 1 if fmt.subnormals else fmt.emin
