"""A file is there in full, or not at all.

Everything a run keeps on disk goes through `write_atomically`: a temporary name in the same folder, flushed and synced,
then renamed, then the folder synced. A crash leaves the old file or the new one, at worst a `*.tmp` that is ignored.
Two encodings sit on top: JSON that keeps NaN and infinities, and npz that keeps bfloat16 and float8.
"""

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

__all__ = ["RunError", "canonical_json", "read_arrays", "read_json", "write_arrays", "write_atomically", "write_json"]

_INDEX = "index"  # the npz entry that tells each array's name and dtype


class RunError(Exception):
    """A run could not be kept, found or read; the message is one sentence that says what to do."""


def cannot_write(path: Path, error: OSError) -> RunError:
    """The sentence for a full disk or a folder without permission."""
    return RunError(
        f"cannot write {path}: {(error.strerror or str(error)).lower()}; nothing was left half-written; make room or "
        "permission there, or choose another place with --runs DIR, and run the same command again."
    )


def damaged(folder: Path, why: str) -> RunError:
    """The sentence for a run folder that cannot be trusted."""
    return RunError(
        f"the run folder {folder} is damaged: {why}; start it afresh by running the same command with --fresh, "
        "or delete the folder."
    )


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file in full or not at all.

    Args:
        path: the file; its folder exists.
        write: receives the open binary file.

    Raises:
        RunError: if the disk is full or the folder cannot be written; `path` is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:  # also on Ctrl-C; after a successful rename there is nothing left to remove
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder; there a rename is durable by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        RunError: if it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _encoded(value: Any) -> Any:
    """JSON-able, with `{"float": "nan"}` in place of a float that JSON cannot spell."""
    if isinstance(value, Mapping):
        return {str(key): _encoded(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _encoded(value.tolist())
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _decoded(value: dict[str, Any]) -> Any:
    if set(value) == {"float"} and value["float"] in ("nan", "inf", "-inf"):
        return float(value["float"])
    return value


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, shortest exact floats.

    Example:
        >>> canonical_json({"b": (1, 2.0), "a": float("inf")})
        '{"a":{"float":"inf"},"b":[1,2.0]}'
    """
    return json.dumps(_encoded(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; NaN and infinities survive, tuples come back as lists."""
    text = json.dumps(_encoded(value), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        RunError: if the file is absent, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_hook=_decoded)
    except OSError as error:
        raise damaged(path.parent, f"{path.name} cannot be read ({(error.strerror or str(error)).lower()})") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise damaged(path.parent, f"{path.name} is not valid JSON") from error
    if not isinstance(value, dict):
        raise damaged(path.parent, f"{path.name} does not hold a JSON object")
    return value


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of any numeric dtype, bfloat16 and float8 included, to an npz that needs no pickle.

    Args:
        path: the file.
        arrays: name to array, or to anything that `numpy.asarray` accepts.

    Raises:
        ValueError: for an array of Python objects.
        RunError: if it cannot be written.
    """
    index, entries = [], {}
    for name, given in arrays.items():
        array = np.asarray(given)
        if array.dtype.hasobject:
            raise ValueError(f'"{name}" is an array of Python objects; only numbers and fixed-width text can be kept.')
        index.append([name, array.dtype.name if array.dtype.isbuiltin == 2 else ""])
        if array.dtype.isbuiltin == 2:  # a dtype of ml_dtypes, which npz does not know: keep its bits
            array = array.view(f"u{array.dtype.itemsize}")
        entries[f"a{len(entries)}"] = array
    entries[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    write_atomically(path, lambda file: np.savez(file, **entries))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote, bit for bit.

    Raises:
        RunError: if the file is absent, truncated or not of that form.
    """
    try:
        # Opened here, because numpy leaves its own file open when the archive is broken.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as entries:
            index = json.loads(bytes(entries[_INDEX]))
            arrays = {name: (entries[f"a{i}"], kind) for i, (name, kind) in enumerate(index)}
        return {n: array.view(getattr(ml_dtypes, kind)) if kind else array for n, (array, kind) in arrays.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path.parent, f"{path.name} is missing, truncated or not what was written") from error
