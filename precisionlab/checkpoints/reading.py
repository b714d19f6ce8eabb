"""Other people's checkpoints, as tensors whose entries come a piece at a time: which reader a file or a folder needs.

Files are mapped a piece at a time and never unpickled, so memory does not grow with them. Safetensors is read here, from its
header: what is needed is an offset and a dtype for each tensor, to be mapped, bfloat16 and float8 included.
"""

import ast
import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from precisionlab.checkpoints.foreign import AGAIN, foreign_file, foreign_in
from precisionlab.checkpoints.orbax import read_orbax
from precisionlab.checkpoints.stored import (
    COMPARED,
    FLOATS,
    Checkpoint,
    CheckpointError,
    Stored,
    pieces_of,
    shown,
    spans,
    width,
)

__all__ = ["read_checkpoint"]

_NATIVE = [np.dtype(kind) for kind in FLOATS.values()]
_OTHERS = [np.dtype(kind) for kind in COMPARED.values()]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its numbers.

    Args:
        path: a .safetensors or .npz file, the index of shards (model.safetensors.index.json), a folder with one of these, or
            an Orbax checkpoint: what its checkpointers wrote, or the steps of a manager, of which the newest is read.

    Returns:
        What it holds. Tensors of integers, and of floats other than float64, float32, float16, bfloat16, float8_e4m3fn and
        float8_e5m2, are in `skipped`, and in `others` too if they can be compared; so is the state of an optimizer in an Orbax
        checkpoint.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, damaged, or a pickle (which is never loaded), or needs
            tensorstore, which is not installed.

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
        held = _read(path)
        return held if held.path else held._replace(path=str(path))
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
    if sentence := foreign_file(path, start):
        raise CheckpointError(sentence)
    return _read_safetensors(path)


def _read_folder(folder: Path) -> Checkpoint:
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    found = found or sorted(folder.glob("*.npz"))
    if len(found) == 1:
        return _read(found[0])
    if not found:
        held = read_orbax(folder)
        if held is None:
            other = foreign_in(folder)
            raise CheckpointError(
                f"{folder} holds no checkpoint; allowed are *.safetensors.index.json, *.safetensors, *.npz and what Orbax "
                f"writes{f'; {other}' if other else '.'}"
            )
        return held
    names = ", ".join(path.name for path in found[:3])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints ({names}{', ...' if found[3:] else ''}); name one of them.")


def _read_index(path: Path) -> Checkpoint:
    try:
        shards = json.loads(path.read_bytes())["weight_map"]
        wanted: dict[str, list[str]] = {}
        for name, shard in shards.items():
            if Path(shard).name != shard:  # never a file elsewhere
                raise ValueError(shard)
            wanted.setdefault(shard, []).append(shown(path, name))
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of shards: it must map each tensor to a file beside it.") from error
    whole = Checkpoint({}, {}, {})
    for shard, names in wanted.items():
        part = _read_safetensors(path.parent / shard)
        for name in names:
            if name not in part.tensors and name not in part.skipped:
                raise CheckpointError(f'{path} says that "{name}" is in {shard}, which lacks it; the copy is incomplete.')
            for mine, theirs in zip(whole[:3], part[:3], strict=True):
                mine |= {name: theirs[name]} if name in theirs else {}
    return whole


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
    held, data = Checkpoint({}, {}, {}), 8 + length
    for name, entry in header.items():
        shown(path, name)
        try:
            kind, shape, (begin, end) = shown(path, str(entry["dtype"])), tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end)) and begin <= end
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError):
            kind, shape, begin, end, whole = "", (), 0, 0, False
        if not whole:
            raise CheckpointError(f'{path}: the header of "{name}" is damaged; it must hold dtype, shape and data_offsets.')
        if data + end > size:
            raise CheckpointError(f'{path} is truncated: "{name}" ends at byte {data + end} of {size}; copy it again.')
        known = FLOATS.get(kind) or COMPARED.get(kind)
        dtype = np.dtype(known) if known else None
        if dtype and math.prod(shape) * width(dtype) != 8 * (end - begin):
            needed = -(-math.prod(shape) * width(dtype) // 8)
            raise CheckpointError(f'{path} is damaged: "{name}" has {end - begin} bytes, {kind} of shape {shape} has {needed}.')
        if dtype:
            tensors = held.tensors if kind in FLOATS else held.others
            tensors[name] = Stored(dtype, shape, partial(_mapped, path, dtype, data + begin, math.prod(shape)))
        if kind not in FLOATS:
            unread = "not floating point" if kind[:1] in "BIU" else f"not among {', '.join(FLOATS)}"
            held.skipped[name] = f"{kind}, {unread}"
    return held


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, entries: int) -> Iterator[np.ndarray]:
    """Each piece is a mapping of its own: the pages of those before do not stay in memory."""
    bits = width(dtype)
    for start, count in spans(entries):
        try:
            raw = np.asarray(np.memmap(path, np.uint8, "r", offset + start * bits // 8, (count * bits // 8,)))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} changed while it was read; wait until it is written.") from error
        if bits % 8:  # the first in the lowest bits
            raw = np.packbits(np.unpackbits(raw, bitorder="little").reshape(-1, bits), axis=1, bitorder="little").ravel()
        yield raw.view(dtype)


def _read_npz(path: Path) -> Checkpoint:
    held = Checkpoint({}, {}, {})
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if any(not member.endswith(".npy") for member in members):
                keras = foreign_file(path, b"") if path.suffix.lower() == ".keras" else None
                raise CheckpointError(
                    keras
                    or f"{path} is a zip file of other things than arrays; pickles (.pt, .bin) are never loaded: "
                    f"save it again as .safetensors or .npz, from PyTorch {AGAIN}."
                )
            for member in members:
                with archive.open(member) as file:
                    shape, fortran, dtype = _npy_header(file)
                name = shown(path, member.removesuffix(".npy"))
                if dtype == np.dtype("V2"):  # what numpy writes for bfloat16, the only such dtype that is not its own
                    dtype = np.dtype(ml_dtypes.bfloat16)
                native = dtype.newbyteorder("=")
                stored = Stored(native, shape, partial(_unzipped, path, member, dtype, shape, fortran))
                if native in _NATIVE:
                    held.tensors[name] = stored
                else:
                    if native in _OTHERS:
                        held.others[name] = stored
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
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            _npy_header(file)
            for _, count in [(0, entries)] if columns else spans(entries):
                raw = file.read(count * dtype.itemsize)
                if len(raw) != count * dtype.itemsize:
                    raise EOFError(f"{member} ends early")
                values = np.frombuffer(raw, dtype).astype(native, copy=False)
                rows = values.reshape(shape, order="F").ravel() if columns else values
                yield from pieces_of(rows)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(path, error) from error
