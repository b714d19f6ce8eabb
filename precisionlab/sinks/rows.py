"""A record as rows of plain numbers: one row for each leaf, and for each way in which its updates were judged.

site        "weights", or "state" for the optimizer's own
path        the leaf, such as layer1/kernel
format      None for the storage itself, otherwise the format asked about
rounding    None for the storage itself, otherwise how an update would have been stored in that format
"""

import math
import operator
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.core import Tracer

from precisionlab.stagnation.fates import Tally

__all__ = ["COLUMNS", "COUNTS", "KEYS", "NUMBERS", "Row", "record_rows"]

Row: TypeAlias = dict[str, int | float | str | None]

KEYS = ("step", "site", "path", "format", "rounding")
_FATES = ("landed", "swamped", "underflowed", "zero", "nonfinite")
# Each rate, and the field without which it cannot be computed.
_RATES = {
    "stagnated_fraction": "landed",
    "lost_fraction": "landed",
    "lost_mass": "update_mass",
    "descent_quality": "update_square",
}

COUNTS = ("step", "entries", *_FATES)
NUMBERS = ("entries", *_FATES, "invisible", *_RATES)

COLUMNS: tuple[str, ...] = (*KEYS, *NUMBERS)
"""The columns of a row, in order."""

# How the formats asked about were rounded to, by the field of the record that holds the answers.
_ROUNDINGS = {"what_if": "nearest_even", "stochastic": "stochastic", "compensated": "compensated"}


def record_rows(record: Any, *, step: Any = None) -> list[Row]:
    """The rows of a record; everything is fetched from the device at once.

    Args:
        record: a `Record`, from `optimizers.stagnation(opt_state)`: every field of its tallies is one number. A record of
            many runs at once (vmap, scan) is taken apart first: `jax.tree.map(lambda x: x[i], record)`.
        step: the number to write in the column `step`; the record's own count of updates by default.

    Returns:
        A dict for each leaf and each judgement of it, with the keys `COLUMNS`. Counts are integers and rates are floats; None
        stands for what was not asked for (`detail=False`, `invisible`) and for a number that is not finite, such as a rate of
        nothing. No rows at all if the record has not looked yet; with `track(every=k)` it is a new one after each k updates.

    Raises:
        TypeError: if this is no such record, if it is traced, or if the step is not a whole number.
        ValueError: if the tallies are stacked, or if two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from precisionlab import FLOAT8_E4M3FN
        >>> from precisionlab.optimizers import stagnation, track
        >>> optimizer, params = track(optax.sgd(0.01), [FLOAT8_E4M3FN]), {"scale": jnp.ones(4)}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> rows = record_rows(stagnation(state))
        >>> rows[0]["path"], rows[0]["format"], rows[0]["swamped"]
        ('scale', None, 0)
        >>> rows[1]["path"], rows[1]["format"], rows[1]["rounding"], rows[1]["swamped"]
        ('scale', 'float8_e4m3fn', 'nearest_even', 4)
    """
    judged = list(_judged(record))
    wanted = [record.step, *(tally for _, tally in judged)]
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((wanted, step))):
        raise TypeError("record_rows: the record is being traced; call record_rows outside of jit, on the state that came out.")
    # Histograms and ages are no numbers of a row, and ages are as large as the model: they stay where they are.
    looked, *tallies = jax.device_get(wanted)
    if np.ndim(looked):
        raise ValueError(_stacked("the step", np.shape(looked)))
    counted = _whole(looked if step is None else step)
    if not looked:
        return []
    return [_row((counted, *labels), tally) for (labels, _), tally in zip(judged, tallies, strict=True)]


def _judged(record: Any) -> Iterator[tuple[tuple[str, str, str | None, str | None], Tally]]:
    """Site, path, format and rounding beside their tally, one after the other."""
    if not all(hasattr(record, name) for name in ("step", "tally", "what_if")):
        raise TypeError(
            f"record_rows: expected the record of optimizers.track, got {type(record).__name__}; take it out of the "
            "optimizer's state: record_rows(stagnation(opt_state))."
        )
    for site, seen in (("weights", record), ("state", record.state)):
        if seen is None:
            continue
        for path, tally in _leaves(seen.tally):
            yield (site, path, None, None), tally
        for field, rounding in _ROUNDINGS.items():
            for name, tallies in getattr(seen, field).items():
                for path, tally in _leaves(tallies):
                    yield (site, path, str(name), rounding), tally


def _leaves(tallies: Any) -> list[tuple[str, Tally]]:
    leaves = jax.tree_util.tree_leaves_with_path(tallies, is_leaf=lambda node: isinstance(node, Tally))
    found: dict[str, Tally] = {}
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not isinstance(leaf, Tally):
            raise TypeError(
                f'record_rows: at "{path}" the record holds {type(leaf).__name__} where a Tally belongs; pass what stagnation('
                "opt_state) returns, not the packed record inside the state."
            )
        if path in found:
            raise ValueError(
                f'record_rows: two leaves have the path "{path}", and their rows could not be told apart; rename one of them, '
                "for instance a key that holds a slash."
            )
        found[path] = leaf._replace(histogram=None)
    return list(found.items())


def _row(labels: tuple[int | str | None, ...], tally: Tally) -> Row:
    row: Row = dict(zip(KEYS, labels, strict=True))
    if np.ndim(tally.landed):
        raise ValueError(_stacked(f'the tally of "{row["path"]}"', np.shape(tally.landed)))
    row |= {"entries": int(tally.entries)} | {name: int(getattr(tally, name)) for name in _FATES}
    row |= {"invisible": None if tally.invisible is None else int(tally.invisible)}
    with np.errstate(all="ignore"):  # sums that overflowed make rates that are no numbers, which is what None says
        rates = {name: None if getattr(tally, needs) is None else float(getattr(tally, name)) for name, needs in _RATES.items()}
    return row | {name: rate if rate is not None and math.isfinite(rate) else None for name, rate in rates.items()}


def _stacked(what: str, shape: tuple[int, ...]) -> str:
    return (
        f"record_rows: {what} has shape {shape}, so this is several records at once; write them one by one, such as "
        "jax.tree.map(lambda x: x[0], record)."
    )


def _whole(step: Any) -> int:
    try:
        if isinstance(step, bool):
            raise TypeError
        return operator.index(step)
    except TypeError:
        raise TypeError(f"record_rows: step must be a whole number, such as 100; got {step!r}.") from None
