"""Orbax checkpoints, through tensorstore: folders of zarr arrays, in a database of its own (OCDBT) or plain.

What is stored is found by listing the arrays; Orbax's own record (`_METADATA`) adds their order, what is no array, and what
should be there. Arrays are compressed by chunks, so a chunk is the least that can be read: blocks of one or several chunks
are read one after the other, in whatever order that gives, and in the order of C a row of chunks at a time.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.checkpoints import stored
from precisionlab.checkpoints.stored import COMPARED, FLOATS, Checkpoint, CheckpointError, Stored, pieces_of, shown

__all__ = ["read_orbax"]

_UNFINISHED = ".orbax-checkpoint-tmp"
_ITEMS = ("default", "params", "model", "state")  # of several in one step, the first of these there is
_HEADERS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}
_DTYPES = {np.dtype(kind).name: np.dtype(kind) for kind in FLOATS.values()}
_SHORT = {"f2": "float16", "f4": "float32", "f8": "float64"}  # as zarr 2 names them, behind their byte order
_WHOLE = {np.dtype(kind).str[1:]: np.dtype(kind).name for kind in COMPARED.values() if np.dtype(kind).kind in "biu"}
_OTHERS = {np.dtype(kind).name: np.dtype(kind) for kind in COMPARED.values()}
_NO_LEAVES = ("Dict", "List", "Tuple", "NamedTuple")  # containers that hold nothing
_MOST_BYTES = 1 << 34  # of a chunk; tensorstore ends the process where memory does
_OPTIMIZER = re.compile(r"(?:^|.*[./])opt_state(?=[./]|$)")


def read_orbax(folder: Path) -> Checkpoint | None:
    """Open an Orbax checkpoint without reading its numbers.

    Args:
        folder: what StandardCheckpointer or PyTreeCheckpointer wrote, one step of a CheckpointManager, or all its steps, of
            which the newest is read.

    Returns:
        What it holds, by names joined by dots as Orbax has them; None if the folder is no Orbax checkpoint. Tensors below
        `opt_state` are the optimizer's and are skipped under that name.

    Raises:
        CheckpointError: if tensorstore is not installed, or the checkpoint is unfinished, incomplete or damaged, or holds
            several items of which none is named as weights are.
    """
    if _UNFINISHED in folder.name:
        raise CheckpointError(f"{folder} was never finished: Orbax renames a folder when it is complete; name one that is.")
    chosen, why = folder, []
    if steps := _steps(folder):
        chosen = steps[max(steps)]
        listed = ", ".join(map(str, sorted(steps))) if len(steps) <= 8 else f"{len(steps)} from {min(steps)} to {max(steps)}"
        why = [f"the newest of its steps ({listed})"] if len(steps) > 1 else ["its only step"]
    if not _is_item(chosen):
        items = [child for child in _folders(chosen) if _is_item(child)]
        if not items:
            if any(_UNFINISHED in child.name for child in folder.iterdir()):
                raise CheckpointError(f"{folder} holds no checkpoint that was finished; Orbax was interrupted when it wrote.")
            if chosen != folder or (chosen / "_CHECKPOINT_METADATA").exists():
                raise CheckpointError(f"{chosen} is an Orbax checkpoint without any arrays; name one that has some.")
            return None
        names = [item.name for item in items]
        preferred = [name for name in _ITEMS if name in names]
        if len(items) > 1 and not preferred:
            raise CheckpointError(f"{chosen} holds {len(items)} items ({', '.join(names)}); name one of these folders.")
        if len(items) > 1:
            why.append(f"of the items {', '.join(names)}")
        chosen /= preferred[0] if preferred else names[0]
    held = _read_item(chosen)
    return held._replace(path=str(chosen), choice=f"{folder}: read {chosen}, {', '.join(why)}." if why else "")


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and _UNFINISHED not in child.name)


def _is_item(folder: Path) -> bool:
    """Whether a folder is itself a tree of arrays."""
    if (folder / "_METADATA").exists() or (folder / "manifest.ocdbt").exists():
        return True
    return any(next(folder.glob(pattern), None) for pattern in ("ocdbt.process_*", "*/.zarray", "*/zarr.json"))


def _steps(folder: Path) -> dict[int, Path]:
    """Folders such as 1000 or ckpt_001000, by their number."""
    if _is_item(folder) or (folder / "_CHECKPOINT_METADATA").exists():
        return {}
    named = {child: re.fullmatch(r"(?:.*_)?([0-9]{1,18})", child.name) for child in _folders(folder)}
    return {
        int(match[1]): child
        for child, match in named.items()
        if match and (_is_item(child) or (child / "_CHECKPOINT_METADATA").exists() or any(map(_is_item, _folders(child))))
    }


def _read_item(folder: Path) -> Checkpoint:
    try:
        ts = import_module("tensorstore")
    except ImportError as error:
        raise CheckpointError(
            f"{folder} is an Orbax checkpoint, and tensorstore, which reads it, is not installed; run pip install "
            "'precisionlab[orbax]'."
        ) from error
    leaves, whole = _record(folder)
    base = f"{folder.resolve()}/"
    ocdbt = (folder / "manifest.ocdbt").exists()
    if not ocdbt and next(folder.glob("ocdbt.process_*"), None):
        raise CheckpointError(f"{folder} was never finished or is incomplete: it lacks manifest.ocdbt; copy it again.")
    disk = {"driver": "file", "path": base}
    where = {"driver": "ocdbt", "base": disk} if ocdbt else disk
    held, arrays = Checkpoint({}, {}, {}), {}
    with _told(folder):
        store = ts.KvStore.open(where).result()
        for key in sorted(store.list().result()):
            name, driver = _array_of(folder, key)
            if driver:
                arrays[name] = driver, store.read(key)
        for name in [*(leaf for leaf in leaves if leaf in arrays), *(name for name in arrays if name not in leaves)]:
            driver, header = arrays[name]
            if (optimizer := _OPTIMIZER.match(name)) is None:
                kind = _kind(folder, name, header.result().value)
                dtype = (_DTYPES | _OTHERS).get(_WHOLE.get(kind, kind))
                if dtype and hasattr(ts, dtype.name):
                    arrays[name] = (
                        driver,
                        ts.open(
                            {
                                "driver": driver,
                                "kvstore": {**where, "path": f"{'' if ocdbt else base}{name}/"},
                                # A chunk that is not there was lost, unless Orbax left out those of zeros.
                                "fill_missing_data_reads": not whole,
                            },
                            open=True,
                            read=True,
                        ),
                    )
                    (held.tensors if kind in _DTYPES else held.others)[name] = Stored(
                        dtype, (), lambda: iter(())
                    )  # keeps its place
                if kind not in _DTYPES:
                    unread = f"not among {', '.join(_DTYPES)}" if "float" in kind else "not floating point"
                    held.skipped[name] = f"{kind}, {unread}"
            else:
                held.skipped[optimizer[0]] = "the optimizer's state, not weights"
        for tensors in (held.tensors, held.others):
            tensors.update({name: _tensor(folder, name, arrays[name][1].result()) for name in tensors})
    for name, kind in leaves.items():
        if kind is not None and not _OPTIMIZER.match(name):
            held.skipped[name] = f"{kind}, not a tensor"
        elif kind is None and name not in arrays:
            raise CheckpointError(f'{folder} is incomplete: it lacks "{name}", which its _METADATA lists; copy it again.')
    return held


def _record(folder: Path) -> tuple[dict[str, str | None], bool]:
    """Of each leaf in `_METADATA`, what it is if it is no array; and whether chunks of zeros are stored like others."""
    path = folder / "_METADATA"
    if not path.exists():
        return {}, False
    try:
        record = json.loads(path.read_bytes())
        leaves: dict[str, str | None] = {}
        for leaf in record["tree_metadata"].values():
            name = shown(path, ".".join(str(part["key"]) for part in leaf["key_metadata"]))
            value = leaf["value_metadata"]
            kind = shown(path, str(value["value_type"]))
            if kind not in _NO_LEAVES:
                leaves[name] = kind if value.get("skip_deserialize") or kind == "string" else None
        return leaves, record.get("store_array_data_equal_to_fill_value") is True
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: it must list the leaves of a tree; copy it again.") from error


def _array_of(folder: Path, key: bytes) -> tuple[str, str]:
    """The array whose header a key is, and the driver for it; no driver if it is none."""
    for ending, driver in _HEADERS.items():
        if key.endswith(ending.encode()):
            return shown(folder, key[: -len(ending)].decode(errors="backslashreplace")), driver
    return "", ""


def _kind(folder: Path, name: str, header: bytes) -> str:
    """The dtype in an array's header, by the name numpy and ml_dtypes have for it if it is one of floats."""
    try:
        fields = json.loads(header)
        kind = str(fields["dtype"] if "dtype" in fields else fields["data_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f'{folder} is damaged: the header of "{name}" names no dtype; copy it again.') from error
    kind = shown(folder, kind.lstrip("<>=|"))
    return _SHORT.get(kind, kind)


def _tensor(folder: Path, name: str, array: Any) -> Stored:
    shape, dtype = tuple(array.shape), np.dtype(array.dtype.numpy_dtype)
    chunk = [max(1, min(pair)) for pair in zip(array.chunk_layout.read_chunk.shape or shape, shape, strict=True)]
    if math.prod(chunk) * dtype.itemsize > _MOST_BYTES:
        raise CheckpointError(
            f'{folder}: "{name}" comes in chunks of shape {tuple(chunk)}, which are read as a whole and allowed up to '
            f"{_MOST_BYTES >> 30} GiB; save it with a smaller chunk_byte_size."
        )
    block = list(chunk)
    for axis in reversed(range(len(shape))):
        block[axis] = min(shape[axis], block[axis] * max(1, stored._PIECE // math.prod(block)))
    first = next((axis for axis, size in enumerate(block) if size > 1), 0)
    row = (*block[: first + 1], *shape[first + 1 :])
    pieces, blocks = (partial(_blocks, folder, name, array, dtype, size) for size in (row, tuple(block)))
    even = partial(_evened, pieces)
    return Stored(dtype, shape, even) if row == tuple(block) else Stored(dtype, shape, even, blocks, tuple(block))


def _blocks(folder: Path, name: str, array: Any, dtype: np.dtype[Any], block: Sequence[int]) -> Iterator[np.ndarray]:
    steps = [range(0, size, step) for size, step in zip(array.shape, block, strict=True)]
    if 0 in array.shape:
        return
    for corner in product(*steps):
        box = tuple(slice(at, min(at + step, size)) for at, step, size in zip(corner, block, array.shape, strict=True))
        with _told(folder, name):
            values = np.ascontiguousarray(array[box].read(order="C").result()).reshape(-1).view(dtype)
        yield from pieces_of(values)
        del values  # before the next one is read


def _evened(parts: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The same entries, in pieces of the sizes that every reader has."""
    held: list[np.ndarray] = []
    for part in parts():
        while held and sum(map(len, held)) + len(part) >= stored._PIECE:
            room = stored._PIECE - sum(map(len, held))
            yield np.concatenate([*held, part[:room]])
            held, part = [], part[room:]
        if len(part) >= stored._PIECE:
            yield part
        elif len(part):
            held.append(part.copy())  # not a view, which would keep the whole block
    if held:
        yield np.concatenate(held)


@contextlib.contextmanager
def _told(folder: Path, name: str = "") -> Iterator[None]:
    """Turn what tensorstore raises into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError, MemoryError, KeyError, TypeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        text = text.split(" [tensorstore_spec=")[0].split(" [source locations=")[0]
        text = re.sub(r"^[A-Z_]+: ", "", text)[:300].rstrip(".")
        where = f'{folder}: "{name}"' if name else str(folder)
        raise CheckpointError(f"{where} is truncated or damaged ({text}); copy it again.") from error
