"""Records grow by segments, and a run resumes after the last one that is whole.

A segment is a Parquet file of records and, after it, a state: the arrays from which the next segment starts. The order
of writes is the whole protocol:

    segment-00007.parquet     1. the records, atomically
    state-00007.npz           2. the state after them, atomically: this commits the segment
                              3. older states go

A segment without its state was never committed: resuming discards it and computes it again. Nothing else can be left
behind by a crash, so anything else means that the folder was damaged by other hands.
"""

import contextlib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from precisionlab.runs.files import damaged, read_arrays, remove, write_arrays, write_atomically

__all__ = ["append", "committed", "discard_leftovers", "query", "resume"]


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files such as segment-00007.parquet, by number."""
    found = {path.stem.rpartition("-")[2]: path for path in folder.glob(pattern)}
    return {int(number): path for number, path in sorted(found.items()) if number.isdecimal()}


def committed(folder: Path) -> list[Path]:
    """The segments that count, in order: all of a finished run, otherwise those up to the newest state.

    Raises:
        RunError: if one of them is missing.
    """
    segments, states = _numbered(folder, "segment-*.parquet"), _numbered(folder, "state-*.npz")
    count = len(segments) if (folder / "DONE").exists() else max(states, default=-1) + 1
    if missing := [number for number in range(count) if number not in segments]:
        raise damaged(folder, f"segment-{missing[0]:05d}.parquet is missing")
    return [segments[number] for number in range(count)]


def append(folder: Path, columns: Mapping[str, np.ndarray], state: Sequence[Any]) -> None:
    """Add one segment of records and the state after it.

    Args:
        folder: the run's folder.
        columns: one-dimensional arrays of one length, by name; the same names and types in every segment. Narrow floats
            (bfloat16, float8) are widened to float32, which is exact.
        state: arrays of any numeric dtype and shape, from which the next segment starts.

    Raises:
        ValueError: if the columns are not of that form.
        RunError: if the segment cannot be written; what was committed before stays.
    """
    table = _as_table(columns)
    segments = committed(folder)
    if segments and not (known := _schema(segments[0])).equals(table.schema):
        raise ValueError(
            f"append: every segment must have the columns of the first one, {_spelled(known)}; given {_spelled(table.schema)}."
        )
    number = len(segments)
    write_atomically(folder / f"segment-{number:05d}.parquet", lambda file: pq.write_table(table, file))
    write_arrays(folder / f"state-{number:05d}.npz", {str(i): array for i, array in enumerate(state)})
    for older, path in _numbered(folder, "state-*.npz").items():
        if older < number:
            remove(path)


def _as_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if not shapes or any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        raise ValueError(f"append: columns must be one-dimensional arrays of one length; given shapes {shapes}.")
    return pa.table({n: a.astype(np.float32) if a.dtype.isbuiltin == 2 else a for n, a in arrays.items()})


def _spelled(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _schema(segment: Path) -> pa.Schema:
    try:
        return pq.read_schema(segment)
    except (pa.ArrowException, OSError) as error:
        raise damaged(segment.parent, f"{segment.name} is truncated or not Parquet") from error


def discard_leftovers(folder: Path) -> None:
    """Remove what a crash may leave: temporaries, a segment without its state, states older than the newest."""
    for path in folder.glob(".*.tmp"):
        remove(path)
    if (folder / "DONE").exists():
        return
    states = _numbered(folder, "state-*.npz")
    newest = max(states, default=-1)
    for number, path in _numbered(folder, "segment-*.parquet").items():
        if number > newest:
            remove(path)
    for number, path in states.items():
        if number < newest:
            remove(path)


def resume(folder: Path) -> tuple[int, list[np.ndarray] | None]:
    """Clean up after a crash and say where to go on.

    Returns:
        The number of committed segments and the state after the last of them; None before the first.

    Raises:
        RunError: if a committed file is missing or truncated.
    """
    discard_leftovers(folder)
    segments = committed(folder)
    for segment in segments:
        _schema(segment)  # the schema stands at the end of the file: a truncated one has none
    state = folder / f"state-{len(segments) - 1:05d}.npz"
    return len(segments), list(read_arrays(state).values()) if segments and state.exists() else None


def query(folders: Sequence[Path], sql: str) -> dict[str, np.ndarray]:
    """Ask the segments of some runs; the SQL sees them as the view `records`.

    Args:
        folders: one run's folder, or several; with several, a column `run` tells them apart.
        sql: a query in DuckDB's dialect, such as `SELECT format, avg(loss) FROM records GROUP BY format`.

    Returns:
        Name to column. A missing number becomes NaN, any other missing value None.

    Raises:
        LookupError: if there are no records yet.
        ValueError: if the SQL is wrong; the message is DuckDB's own.
        RunError: if a segment is missing or truncated.
    """
    paths = {folder: committed(folder) for folder in folders}
    if not any(paths.values()):
        raise LookupError("no records have been written yet")
    # Without this DuckDB would fetch extensions from the network when a query names one.
    with contextlib.closing(duckdb.connect(config={"autoinstall_known_extensions": "false"})) as connection:
        views = []
        for number, (folder, segments) in enumerate(paths.items()):
            if not segments:
                continue
            for segment in segments:
                _schema(segment)  # DuckDB looks at the first file only, until it is too late for a clear sentence
            connection.read_parquet([glob.escape(str(path)) for path in segments]).create_view(f"records_{number}")
            name = folder.name.replace("'", "''")
            label = f"'{name}' AS run, " if len(paths) > 1 else ""
            views.append(f"SELECT {label}* FROM records_{number}")
        connection.execute(f"CREATE VIEW records AS {' UNION ALL BY NAME '.join(views)}")
        try:
            answer = connection.execute(sql).fetchnumpy()
        except duckdb.Error as error:
            raise ValueError(str(error).strip().splitlines()[0]) from error
    return {name: _without_mask(column) for name, column in answer.items()}


def _without_mask(column: Any) -> np.ndarray:
    if not isinstance(column, np.ma.MaskedArray):
        return np.asarray(column)
    if not np.any(column.mask):
        return np.asarray(column.data)
    if column.dtype.kind in "biuf":
        return np.ma.filled(column.astype(np.float64), np.nan)
    values = np.array(column.data, dtype=object)  # numpy's own fill would write "?" where None is meant
    values[np.ma.getmaskarray(column)] = None
    return values
