"""Which updates could these weights not see?

By the half-gap law (`landing`) the weights alone say which updates a format loses: w is left where it is exactly when |u| stays
below its threshold. Adam-like optimizers move each entry by about the learning rate, so |u| = lr answers "what would be lost at
this learning rate", and the median threshold "from where do half of them land".

An entry counts through its magnitude alone (updates up and down are taken to be equally likely). Magnitudes are kept to
13 significand bits, rounded to odd; that decides every later rounding to 11 bits or fewer as the whole number would
(S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
There are 2^20 of them: a tensor of any size is a table of counts, and each format is applied once.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from precisionlab.checkpoints.reading import read_checkpoint
from precisionlab.checkpoints.stored import CheckpointError, Stored, require_some
from precisionlab.numerics.formats import BFLOAT16, FLOAT8_E4M3FN, Format, name_of
from precisionlab.numerics.rounding import round_to
from precisionlab.stagnation.landing import landing_threshold

__all__ = ["OPTIMIZERS", "SPREAD", "forecast"]

OPTIMIZERS = dict.fromkeys(("adam", "adamw", "lion", "nadam", "nadamw", "sign_sgd"), True)
OPTIMIZERS |= dict.fromkeys(("adafactor", "adagrad", "lamb", "muon", "sgd"), False)
"""Whether the size of an update is about the learning rate, by the name of the optimizer."""

SPREAD = (2.0, 1 / 64)
"""What updates of entries are between, in units of the learning rate, as far as the share that is lost goes: `low`, `high`.

Measured, not derived: digits and a small transformer under Adam (b2 0.999 and 0.95), AdamW, Nadam, Lion and sign descent,
learning rates 1e-4 to 1e-2, after 1 to 1,500 steps, in bfloat16 and float8_e4m3fn. Of Adam's updates half were below 0.45 lr
(0.03 once nothing was left to learn), a tenth below 0.09 lr, the largest at 2.2 lr (Nadam 2.7). Over all tensors the share
lost was above that of updates of lr / 64 in one moment of 276 (AdamW, weight decay 0.1, long converged: decay is all that is
asked of pixels that are always dark), and below that of 2 lr in one (the first step of Nadam). Single tensors stray further.
"""

_LARGEST = float(np.finfo(np.float32).max)
_DROPPED = 11  # of the 31 bits of a float32 magnitude, folded into the last one kept
_KEYS = 1 << (31 - _DROPPED)
_INFINITE = 0x7F800000 >> _DROPPED  # the first key that is no finite number
_WIDEST = 11  # significand bits that the keys decide


class _Asked(NamedTuple):
    """The size of updates, the learning rate in units of it, the decay, and further learning rates."""

    size: float
    scale: float
    decay: float
    lrs: tuple[float, ...]


class _Table(NamedTuple):
    """A format applied to every magnitude: its thresholds as places among the few distinct ones, in order."""

    name: str
    levels: np.ndarray
    up: np.ndarray
    down: np.ndarray
    overflowed: np.ndarray
    decays: np.ndarray  # finite and not zero: weight decay asks for something
    decay_lost: np.ndarray


def forecast(
    path: str | Path,
    lr: float,
    *,
    update_size: float | None = None,
    weight_decay: float = 0.0,
    formats: Sequence[Format] = (BFLOAT16, FLOAT8_E4M3FN),
    other_lrs: Sequence[float] = (),
) -> dict[str, Any]:
    """What a checkpoint's weights would lose of updates of one size, stored in each format under nearest_even.

    Args:
        path: what `read_checkpoint` takes.
        lr: learning rate, above 0.
        update_size: |u| of every entry; None stands for lr, which holds for Adam-like optimizers.
        weight_decay: decoupled, so that it alone asks for lr * weight_decay * |w|.
        formats: of at most 11 significand bits, with a zero.
        other_lrs: learning rates to answer for besides, updates growing with them.

    Returns:
        `rows` (one for each tensor and format) and `totals` (the same over all tensors):

        - `tensor`, `format`, `entries`
        - `nonfinite`: entries that are NaN or infinite; all shares are of the others
        - `overflowed`: finite entries beyond the format's range, which no update moves; they count as lost
        - `lost_fraction`: `expected_lost_fraction` of the finite entries; NaN if there are none
        - `low`, `high`: the same for updates of `SPREAD` times that size, the largest first: where `lost_fraction` is to be
          expected in training
        - `half_lands_lr`: the smallest learning rate at which half of all updates, up and down, land
        - `decay_lost_fraction`: of the nonzero entries, how many weight decay alone would not move (1: it does nothing);
          NaN without weight decay

        and `checkpoint` (what was read), `choices` (sentences: why that, of several), `assumption` (a sentence), `skipped`
        (name: reason). With `other_lrs` also `curves`: `tensor`, `format` and `lost_fractions`, one for each of them.

    Raises:
        CheckpointError: if the checkpoint cannot be read or a number makes no sense.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder) / "w.npz", w=np.array([1.0, 0.001], np.float32))
        ...     found = forecast(folder, 1e-4, formats=[BFLOAT16])
        >>> found["rows"][0]["lost_fraction"]
        0.5
    """
    size = lr if update_size is None else update_size
    for what, value in (("lr", lr), ("update_size", size), *(("other_lrs", other) for other in other_lrs)):
        if not (math.isfinite(value) and 0 < value <= _LARGEST) or np.float32(value) == 0:
            raise CheckpointError(f"forecast: {what} is {value}; allowed is a number above 0 that float32 can hold.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise CheckpointError(f"forecast: weight_decay is {weight_decay}; allowed is 0 or more.")
    for fmt in formats:
        if fmt.precision > _WIDEST or not fmt.zeros:
            raise CheckpointError(
                f"forecast: {name_of(fmt)} is not among the formats it answers for, which have a zero and at most {_WIDEST} "
                "significand bits; leave it out."
            )
    held = read_checkpoint(path)
    require_some(held, f"forecast: {path}")
    tables = [_table(fmt, lr * weight_decay) for fmt in formats]
    whole = np.zeros(_KEYS, np.int64)
    rows: list[dict[str, Any]] = []
    asked = _Asked(size, lr / size, weight_decay, tuple(other_lrs))
    for name, tensor in held.tensors.items():
        keys, counts = _magnitudes(tensor)
        whole[keys] += counts
        rows += [{"tensor": name, **_row(table, keys, counts, asked)} for table in tables]
    keys = np.flatnonzero(whole)
    totals = [{"tensor": "total", **_row(table, keys, whole[keys], asked)} for table in tables]
    curves = [{key: row[key] for key in ("tensor", "format")} | {"lost_fractions": row.pop("curve")} for row in rows + totals]
    why = "the learning rate, as for Adam-like optimizers" if update_size is None else "as given"
    return {
        "checkpoint": held.path,
        "choices": [held.choice] if held.choice else [],
        "assumption": (
            f"each update is {size:g} in size ({why}), up or down alike, and no wider copy is kept; low and high are for "
            f"updates of {SPREAD[0]:g} times and 1/{1 / SPREAD[1]:g} of that, for each entry has its own."
        ),
        "rows": rows,
        "totals": totals,
        "skipped": held.skipped,
        **({"curves": curves} if other_lrs else {}),
    }


@lru_cache(maxsize=4)  # the next question is often the same one at another learning rate
def _table(fmt: Format, decay: float) -> _Table:
    magnitudes = (np.arange(_KEYS, dtype=np.uint32) << np.uint32(_DROPPED)).view(np.float32)

    def thresholds(w: jax.Array) -> tuple[jax.Array, ...]:
        stored = round_to(w, fmt)
        return stored, *landing_threshold(stored, fmt)

    stored, up, down = (np.asarray(found) for found in jax.jit(thresholds)(magnitudes))
    levels, places = np.unique(np.concatenate([up, down]).view(np.uint32), return_inverse=True)
    finite = np.isfinite(stored)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        asked = _to_odd(np.abs(stored.astype(np.float64) * decay))
    return _Table(
        name_of(fmt),
        levels,
        places[:_KEYS].astype(np.int32),
        places[_KEYS:].astype(np.int32),
        ~finite,
        finite & (stored != 0),
        asked < down.view(np.uint32),
    )


def _row(table: _Table, keys: np.ndarray, counts: np.ndarray, asked: _Asked) -> dict[str, Any]:
    finite = keys < _INFINITE
    entries, nonfinite = int(counts.sum()), int(counts[~finite].sum())
    keys, counts = keys[finite], counts[finite]
    at = np.zeros(len(table.levels))
    for places in (table.up, table.down):
        at += np.bincount(places[keys], counts, len(at))
    landed, both = np.concatenate([[0], np.cumsum(at)]), 2 * (entries - nonfinite)
    half = table.levels[np.searchsorted(landed[1:], both / 2)].view(np.float32) if both else np.float32(np.nan)

    def lost(sizes: Sequence[float]) -> list[float]:
        bits = _to_odd(np.minimum(np.asarray(sizes, np.float64), _LARGEST))
        kept = both - landed[np.searchsorted(table.levels, bits, "right")]
        return (kept / both).tolist() if both else [math.nan] * len(sizes)

    expected, low, high = lost([asked.size, *(asked.size * factor for factor in SPREAD)])
    decays, stays = table.decays[keys], table.decays[keys] & table.decay_lost[keys]
    nonzero = int(counts[decays].sum()) if asked.decay else 0
    return {
        "format": table.name,
        "entries": entries,
        "nonfinite": nonfinite,
        "overflowed": int(counts[table.overflowed[keys]].sum()),
        "lost_fraction": expected,
        "low": low,
        "high": high,
        "half_lands_lr": float(half) * asked.scale if np.isfinite(half) else math.nan,
        "decay_lost_fraction": float(counts[stays].sum() / nonzero) if nonzero else math.nan,
        "curve": lost([lr / asked.scale for lr in asked.lrs]),
    }


def _magnitudes(tensor: Stored) -> tuple[np.ndarray, np.ndarray]:
    """The distinct magnitudes of a tensor as keys, and how many entries have each."""
    narrow = tensor.dtype.itemsize <= 2
    many = 1 << 8 * tensor.dtype.itemsize if narrow else _KEYS
    parts = []
    for piece in (tensor.blocks or tensor.pieces)():
        labels = piece.view(f"u{piece.itemsize}") if narrow else _keys(piece)
        if len(labels) < many // 16:
            parts.append(np.unique(labels, return_counts=True))
        else:
            counts = np.bincount(labels, minlength=many)
            present = np.flatnonzero(counts)
            parts.append((present, counts[present]))
    labels, counts = parts[0] if len(parts) == 1 else _summed(parts, many)
    if narrow:
        labels, counts = _summed([(_keys(labels.astype(f"u{tensor.dtype.itemsize}").view(tensor.dtype)), counts)], _KEYS)
    return labels.astype(np.int64), counts


def _summed(parts: Sequence[tuple[np.ndarray, np.ndarray]], many: int) -> tuple[np.ndarray, np.ndarray]:
    if sum(len(labels) for labels, _ in parts) < many // 16:
        labels = np.concatenate([np.zeros(0, np.int64), *(labels for labels, _ in parts)])
        distinct, places = np.unique(labels, return_inverse=True)
        counts = np.bincount(places, np.concatenate([np.zeros(0), *(counts for _, counts in parts)]), len(distinct))
        return distinct, counts.astype(np.int64)
    whole = np.zeros(many, np.int64)
    for labels, counts in parts:
        np.add.at(whole, labels, counts)
    present = np.flatnonzero(whole)
    return present, whole[present]


def _keys(values: np.ndarray) -> np.ndarray:
    """Magnitudes to 13 significand bits, rounded to odd; NaN and infinities stay beyond all others."""
    if values.dtype == np.float64:
        bits = _to_odd(values)
    else:
        with np.errstate(all="ignore"):
            bits = values.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    keys = bits >> np.uint32(_DROPPED)
    keys |= (bits & np.uint32((1 << _DROPPED) - 1)) != 0
    return keys


def _to_odd(values: np.ndarray) -> np.ndarray:
    """The magnitude bits of float64 values in float32, rounded to odd: on the same side of every half gap as the values are."""
    with np.errstate(all="ignore"):
        near = values.astype(np.float32)
        back = near.astype(np.float64)
        bits = near.view(np.uint32) & np.uint32(0x7FFFFFFF)
        bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)
        bits |= ((back != values) & ~np.isnan(values)).astype(np.uint32)
    return bits
