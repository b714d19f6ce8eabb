"""What there is to see of one leaf, and what to tell of it."""

from typing import Any, NamedTuple

from precisionlab._typing import Array

__all__ = ["Sight", "Wanted"]


class Sight(NamedTuple):
    """One leaf before, during and after an update.

    Attributes:
        old: what was stored.
        update: what was to be added, in any floating dtype.
        new: what is stored now.
        kept: booleans, where something wider keeps what does not land; or None.
        grid: `(precision, emin)` of the storage, if not those of the dtype.
        made: the update that was added, where `update` is what it was before any rounding; None where nobody asks.
        gradient: what the optimizer was given for the leaf, or None.
    """

    old: Array
    update: Array
    new: Array
    kept: Any = None
    grid: Any = None
    made: Any = None
    gradient: Any = None


class Wanted(NamedTuple):
    """What to tell of the storage itself: see `tally`. Of other formats counts alone are told."""

    detail: bool
    directions: bool = False
    gaps: bool | None = None
    kept: bool = False
