"""Other people's checkpoints: which updates their weights could not see, and which weights did not move.

**Forecast.** By the half-gap law (`landing`) the weights alone say which updates a format loses: w is left where it is
exactly when |u| stays below its threshold. Adam-like optimizers move each entry by about the learning rate, so
|u| = lr answers "what would be lost at this learning rate", and the median threshold "from where do half of them land".

**Compare.** Two checkpoints of one training, bit for bit: what never moved, what moved to a neighbouring value only, and
which tensors hold a single number (norm weights stuck at 1.0).

Files are mapped a piece at a time and never unpickled, so memory does not grow with them. Safetensors is read here, from
its header: the library of that name copies each tensor, and gives no bfloat16 or float8 to numpy on its own.

An entry counts through its magnitude alone (updates up and down are taken to be equally likely). Magnitudes are kept to
13 significand bits, rounded to odd; that decides every later rounding to 11 bits or fewer as the whole number would
(S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
There are 2^20 of them: a tensor of any size is a table of counts, and each format is applied once.
"""

import ast
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from precisionlab.formats import BFLOAT16, FLOAT8_E4M3FN, Format, name_of
from precisionlab.landing import landing_threshold
from precisionlab.rounding import round_to

__all__ = ["OPTIMIZERS", "Checkpoint", "CheckpointError", "Stored", "compare", "forecast", "read_checkpoint"]

OPTIMIZERS = dict.fromkeys(("adam", "adamw", "lion", "nadam", "nadamw", "sign_sgd"), True)
OPTIMIZERS |= dict.fromkeys(("adafactor", "adagrad", "lamb", "muon", "sgd"), False)
"""Whether the size of an update is about the learning rate, by the name of the optimizer."""

_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_OTHERS: dict[str, int] = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
_PIECE = 1 << 20  # entries mapped at a time
_DROPPED = 11  # of the 31 bits of a float32 magnitude, folded into the last one kept
_KEYS = 1 << (31 - _DROPPED)
_INFINITE = 0x7F800000 >> _DROPPED  # the first key that is no finite number
_WIDEST = 11  # significand bits that the keys decide


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or a question that cannot be asked of it; the message is one sentence."""


class Stored(NamedTuple):
    """A tensor of floats in a file.

    Attributes:
        dtype: the stored dtype, in native byte order.
        shape: its shape.
        pieces: starts over the entries, in the order of C: arrays of rank 1 with at most 2^20 entries each.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]

    @property
    def entries(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Checkpoint(NamedTuple):
    """The tensors of floats by name, and why any other one is left out."""

    tensors: dict[str, Stored]
    skipped: dict[str, str]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its numbers.

    Args:
        path: a .safetensors or .npz file, the index of shards (model.safetensors.index.json), or a folder with one of these.

    Returns:
        What it holds. Tensors of integers, and of floats that numpy and ml_dtypes cannot name, are in `skipped`.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, damaged, or a pickle (which is never loaded).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder) / "w.npz", norm=np.ones(3, np.float32), step=np.array(7))
        ...     held = read_checkpoint(folder)
        >>> held.tensors["norm"].shape, held.skipped
        ((3,), {'step': 'int64, not floating point'})
    """
    path = Path(path)
    try:
        return _read(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read ({(error.strerror or str(error)).lower()}).") from error


def _read(path: Path) -> Checkpoint:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".json":
        return _read_index(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return _read_npz(path)
    if start[:1] == b"\x80" and path.suffix != ".safetensors":
        raise CheckpointError(f"{path} looks like a pickle, which is never loaded; save it again as .safetensors or .npz.")
    return _read_safetensors(path)


def _read_folder(folder: Path) -> Checkpoint:
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    found = found or sorted(folder.glob("*.npz"))
    if len(found) == 1:
        return _read(found[0])
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint; allowed are *.safetensors.index.json, *.safetensors and *.npz.")
    names = ", ".join(path.name for path in found[:3])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints ({names}{', ...' if found[3:] else ''}); name one of them.")


def _read_index(path: Path) -> Checkpoint:
    try:
        shards = json.loads(path.read_bytes())["weight_map"]
        wanted: dict[str, list[str]] = {}
        for name, shard in shards.items():
            if Path(shard).name != shard:  # never a file elsewhere
                raise ValueError(shard)
            wanted.setdefault(shard, []).append(_shown(path, name))
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of shards: it must map each tensor to a file beside it.") from error
    whole = Checkpoint({}, {})
    for shard, names in wanted.items():
        part = _read_safetensors(path.parent / shard)
        for name in names:
            if name not in part.tensors and name not in part.skipped:
                raise CheckpointError(f'{path} says that "{name}" is in {shard}, which lacks it; the copy is incomplete.')
            if name in part.tensors:
                whole.tensors[name] = part.tensors[name]
            else:
                whole.skipped[name] = part.skipped[name]
    return whole


def _shown(path: Path, name: str) -> str:
    """A name from a file, unless it would disturb a terminal."""
    if not name.isprintable():
        raise CheckpointError(f"{path} is damaged: it names a tensor or dtype {name!a}, which cannot be printed.")
    return name


def _read_safetensors(path: Path) -> Checkpoint:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path} is truncated or no safetensors file: its header does not fit its {size} bytes.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no safetensors file: its header is not a JSON object.") from error
    held, data = Checkpoint({}, {}), 8 + length
    for name, entry in header.items():
        _shown(path, name)
        try:
            kind, shape, (begin, end) = _shown(path, str(entry["dtype"])), tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and begin <= end
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError):
            kind, shape, begin, end, whole = "", (), 0, 0, False
        if not whole:
            raise CheckpointError(f'{path}: the header of "{name}" is damaged; it must hold dtype, shape and data_offsets.')
        if data + end > size:
            raise CheckpointError(f'{path} is truncated: "{name}" ends at byte {data + end} of {size}; copy it again.')
        bytes_each = np.dtype(_FLOATS[kind]).itemsize if kind in _FLOATS else _OTHERS.get(kind)
        if bytes_each is not None and math.prod(shape) * bytes_each != end - begin:
            needed = math.prod(shape) * bytes_each
            raise CheckpointError(f'{path} is damaged: "{name}" has {end - begin} bytes, {kind} of shape {shape} has {needed}.')
        if kind in _FLOATS:
            dtype = np.dtype(_FLOATS[kind])
            held.tensors[name] = Stored(dtype, shape, partial(_mapped, path, dtype, data + begin, math.prod(shape)))
        else:
            unread = "not floating point" if kind in _OTHERS else f"not among {', '.join(_FLOATS)}"
            held.skipped[name] = f"{kind}, {unread}"
    return held


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, entries: int) -> Iterator[np.ndarray]:
    """Each piece is a mapping of its own: the pages of those before do not stay in memory."""
    for start in range(0, entries, _PIECE):
        count = min(_PIECE, entries - start)
        try:
            raw = np.memmap(path, np.uint8, "r", offset + start * dtype.itemsize, (count * dtype.itemsize,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} changed while it was read; wait until it is written.") from error
        yield np.asarray(raw).view(dtype)


def _read_npz(path: Path) -> Checkpoint:
    held = Checkpoint({}, {})
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if any(not member.endswith(".npy") for member in members):
                raise CheckpointError(
                    f"{path} is a zip file of other things than arrays; pickles (.pt, .bin) are never loaded: "
                    "save it again as .safetensors or .npz."
                )
            for member in members:
                with archive.open(member) as file:
                    shape, fortran, dtype = _npy_header(file)
                name = _shown(path, member.removesuffix(".npy"))
                if dtype == np.dtype("V2"):  # what numpy writes for bfloat16, the only such dtype that is not its own
                    dtype = np.dtype(ml_dtypes.bfloat16)
                native = dtype.newbyteorder("=")
                if native in [np.dtype(known) for known in _FLOATS.values()]:
                    held.tensors[name] = Stored(native, shape, partial(_unzipped, path, member, dtype, shape, fortran))
                else:
                    raw = "raw bytes whose format numpy did not keep" if dtype.kind == "V" else "not floating point"
                    held.skipped[name] = f"{dtype.name}, {raw}"
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise error if isinstance(error, CheckpointError) else _damaged(path, error) from error
    return held


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged ({str(error).rstrip('.') or type(error).__name__}); copy it again.")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of an .npy file; dtypes of objects are told apart without loading any."""
    version = np.lib.format.read_magic(file)
    width = 2 if version == (1, 0) else 4
    try:
        fields = ast.literal_eval(file.read(int.from_bytes(file.read(width), "little")).decode("latin1"))
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("an array's header is wrong") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError("an array's header is wrong")
    shape = fields["shape"]
    if not isinstance(shape, tuple) or not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError("an array's shape is wrong")
    try:
        e5m2 = fields["descr"] == "<f1"  # what numpy writes for this one, and cannot read
        dtype = np.dtype(ml_dtypes.float8_e5m2) if e5m2 else np.lib.format.descr_to_dtype(fields["descr"])
    except (TypeError, KeyError) as error:
        raise ValueError("an array's dtype is wrong") from error
    return shape, bool(fields["fortran_order"]), dtype


def _unzipped(path: Path, member: str, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> Iterator[np.ndarray]:
    """Members of an archive may be compressed, so they are streamed."""
    entries, native = math.prod(shape), dtype.newbyteorder("=")
    # Compared entry by entry, columns must become rows, which takes the whole tensor.
    columns = fortran and len(shape) > 1
    step = max(entries, 1) if columns else _PIECE
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            _npy_header(file)
            for start in range(0, entries, step):
                count = min(step, entries - start)
                raw = file.read(count * dtype.itemsize)
                if len(raw) != count * dtype.itemsize:
                    raise EOFError(f"{member} ends early")
                values = np.frombuffer(raw, dtype).astype(native, copy=False)
                rows = values.reshape(shape, order="F").ravel() if columns else values
                yield from (rows[first : first + _PIECE] for first in range(0, count, _PIECE))
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(path, error) from error


# Forecast


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
) -> dict[str, Any]:
    """What a checkpoint's weights would lose of updates of one size, stored in each format under nearest_even.

    Args:
        path: what `read_checkpoint` takes.
        lr: learning rate, above 0.
        update_size: |u| of every entry; None stands for lr, which holds for Adam-like optimizers.
        weight_decay: decoupled, so that it alone asks for lr * weight_decay * |w|.
        formats: of at most 11 significand bits, with a zero.

    Returns:
        `rows` (one for each tensor and format) and `totals` (the same over all tensors):

        - `tensor`, `format`, `entries`
        - `nonfinite`: entries that are NaN or infinite; all shares are of the others
        - `overflowed`: finite entries beyond the format's range, which no update moves; they count as lost
        - `lost_fraction`: `expected_lost_fraction` of the finite entries; NaN if there are none
        - `half_lands_lr`: the smallest learning rate at which half of all updates, up and down, land
        - `decay_lost_fraction`: of the nonzero entries, how many weight decay alone would not move (1: it does nothing);
          NaN without weight decay

        and `checkpoint`, `assumption` (a sentence), `skipped` (name: reason).

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
    for what, value in (("lr", lr), ("update_size", size)):
        if not (math.isfinite(value) and 0 < value <= float(np.finfo(np.float32).max)) or np.float32(value) == 0:
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
    _require_some(held, f"forecast: {path}")
    tables = [_table(fmt, lr * weight_decay) for fmt in formats]
    whole = np.zeros(_KEYS, np.int64)
    rows: list[dict[str, Any]] = []
    scale = lr / size

    for name, tensor in held.tensors.items():
        keys, counts = _magnitudes(tensor)
        whole[keys] += counts
        rows += [{"tensor": name, **_row(table, keys, counts, size, scale, weight_decay)} for table in tables]
    keys = np.flatnonzero(whole)
    totals = [{"tensor": "total", **_row(table, keys, whole[keys], size, scale, weight_decay)} for table in tables]
    why = "the learning rate, as for Adam-like optimizers" if update_size is None else "as given"
    return {
        "checkpoint": str(path),
        "assumption": f"each update is {size:g} in size ({why}), up or down alike, and no wider copy is kept.",
        "rows": rows,
        "totals": totals,
        "skipped": held.skipped,
    }


def _require_some(held: Checkpoint, where: str) -> None:
    if not held.tensors:
        names = f" ({', '.join(f'{name}: {why}' for name, why in list(held.skipped.items())[:3])})" if held.skipped else ""
        raise CheckpointError(f"{where} holds no tensor of floats{names}; name a checkpoint that has some.")


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
        asked = (stored.astype(np.float64) * decay).astype(np.float32).view(np.uint32)
    return _Table(
        name_of(fmt),
        levels,
        places[:_KEYS].astype(np.int32),
        places[_KEYS:].astype(np.int32),
        ~finite,
        finite & (stored != 0),
        asked < down.view(np.uint32),
    )


def _row(table: _Table, keys: np.ndarray, counts: np.ndarray, size: float, scale: float, decay: float) -> dict[str, Any]:
    finite = keys < _INFINITE
    entries, nonfinite = int(counts.sum()), int(counts[~finite].sum())
    keys, counts = keys[finite], counts[finite]
    at = np.zeros(len(table.levels))
    for places in (table.up, table.down):
        at += np.bincount(places[keys], counts, len(at))
    reached, both = np.cumsum(at), 2 * (entries - nonfinite)
    lost = both - at[table.levels <= np.float32(size).view(np.uint32)].sum()
    half = table.levels[np.searchsorted(reached, both / 2)].view(np.float32) if both else np.float32(np.nan)
    decays, stays = table.decays[keys], table.decays[keys] & table.decay_lost[keys]
    asked = int(counts[decays].sum()) if decay else 0
    return {
        "format": table.name,
        "entries": entries,
        "nonfinite": nonfinite,
        "overflowed": int(counts[table.overflowed[keys]].sum()),
        "lost_fraction": float(lost / both) if both else math.nan,
        "half_lands_lr": float(half) * scale if np.isfinite(half) else math.nan,
        "decay_lost_fraction": float(counts[stays].sum() / asked) if asked else math.nan,
    }


def _magnitudes(tensor: Stored) -> tuple[np.ndarray, np.ndarray]:
    """The distinct magnitudes of a tensor as keys, and how many entries have each."""
    narrow = tensor.dtype.itemsize <= 2
    many = 1 << 8 * tensor.dtype.itemsize if narrow else _KEYS
    parts = []
    for piece in tensor.pieces():
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
        with np.errstate(all="ignore"):
            near = values.astype(np.float32)
            back = near.astype(np.float64)
            bits = near.view(np.uint32) & np.uint32(0x7FFFFFFF)
            bits -= (np.abs(back) > np.abs(values)).astype(np.uint32)
            bits |= ((back != values) & ~np.isnan(values)).astype(np.uint32)
    else:
        with np.errstate(all="ignore"):
            bits = values.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7FFFFFFF)
    keys = bits >> np.uint32(_DROPPED)
    keys |= (bits & np.uint32((1 << _DROPPED) - 1)) != 0
    return keys


# Compare


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """What changed from one checkpoint to another, by the bits.

    Args:
        a: the earlier one, as `read_checkpoint` takes it.
        b: the later one.

    Returns:
        `rows` (one for each tensor that both hold in one dtype and shape) and `total`:

        - `tensor`, `dtype`, `entries`
        - `unchanged_fraction`: of the entries, whose bits are the same; NaN for an empty tensor
        - `one_ulp_fraction`: of the entries, which moved to a neighbouring value of the stored dtype
        - `nonfinite`: entries that are NaN or infinite in either
        - `constant`: the one value that all entries have in b; NaN if there are several (or fewer than two entries)

        and `a`, `b`, `unmoved` (names of the tensors without any change), `only_in_a`, `only_in_b`, `skipped` (name: reason).

    Raises:
        CheckpointError: if one cannot be read, or no tensor can be compared.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old, new = Path(folder) / "old.npz", Path(folder) / "new.npz"
        ...     np.savez(old, w=np.array([1.0, 2.0], np.float16))
        ...     np.savez(new, w=np.array([1.0, 2.002], np.float16))
        ...     row = compare(old, new)["rows"][0]
        >>> row["unchanged_fraction"], row["one_ulp_fraction"]
        (0.5, 0.5)
    """
    first, second = read_checkpoint(a), read_checkpoint(b)
    _require_some(first, f"compare: {a}")
    _require_some(second, f"compare: {b}")
    skipped = first.skipped | second.skipped
    names_a, names_b = {*first.tensors, *first.skipped}, {*second.tensors, *second.skipped}
    rows, sums = [], np.zeros(4, np.int64)
    for name, x in first.tensors.items():
        y = second.tensors.get(name)
        if y is None:
            continue
        if (x.dtype, x.shape) != (y.dtype, y.shape):
            skipped[name] = f"{x.dtype.name} of shape {x.shape} in the first, {y.dtype.name} of shape {y.shape} in the second"
            continue
        counts, constant = _compare_entries(x, y)
        sums += counts
        rows.append({"tensor": name, "dtype": x.dtype.name, **_shares(counts), "constant": constant})
    if not rows:
        raise CheckpointError(f"compare: {a} and {b} share no tensor of one name, dtype and shape; name two of one model.")
    return {
        "a": str(a),
        "b": str(b),
        "rows": rows,
        "total": _shares(sums),
        "unmoved": [row["tensor"] for row in rows if row["unchanged_fraction"] == 1],
        "only_in_a": sorted(names_a - names_b),
        "only_in_b": sorted(names_b - names_a),
        "skipped": skipped,
    }


def _shares(counts: np.ndarray) -> dict[str, Any]:
    entries, unchanged, one, nonfinite = counts.tolist()
    return {
        "entries": entries,
        "unchanged_fraction": unchanged / entries if entries else math.nan,
        "one_ulp_fraction": one / entries if entries else math.nan,
        "nonfinite": nonfinite,
    }


def _compare_entries(a: Stored, b: Stored) -> tuple[np.ndarray, float]:
    """Counts (entries, unchanged, moved by one value, not finite), and the only value in b, if there is only one."""
    word = np.dtype(f"u{a.dtype.itemsize}").type
    sign = word(1 << (8 * a.dtype.itemsize - 1))
    largest = np.array([ml_dtypes.finfo(a.dtype).max], a.dtype).view(word)[0]
    counts, only, constant = np.zeros(4, np.int64), None, a.entries > 1
    for x, y in zip(a.pieces(), b.pieces(), strict=True):
        x, y = x.view(word), y.view(word)
        only = y[0] if only is None else only
        constant = constant and bool((y == only).all())
        wild = (x & ~sign > largest) | (y & ~sign > largest)
        moved = x != y
        changed = int(np.count_nonzero(moved))
        moved &= ~wild
        x, y = x[moved], y[moved]
        p, q = x & ~sign, y & ~sign
        apart = np.where((x ^ y) & sign != 0, p + q, np.maximum(p, q) - np.minimum(p, q))
        counts += np.array([len(wild), len(wild) - changed, np.count_nonzero(apart == 1), np.count_nonzero(wild)])
    return counts, float(np.array([only]).view(a.dtype)[0]) if constant else math.nan
