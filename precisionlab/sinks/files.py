"""Rows in files that outlive the training: JSON lines, and Parquet in the store."""

import contextlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.runs.files import RunError, canonical_json
from precisionlab.runs.provenance import provenance
from precisionlab.sinks.opened import OpenSink
from precisionlab.sinks.rows import COUNTS, KEYS, Row

__all__ = ["json_lines", "parquet"]

_LONGEST = 1 << 20  # no line of ours comes near to this


def json_lines(path: str | Path) -> OpenSink:
    """A file with one JSON object a row, to which a later run appends.

    The rows of a record go to the system in one unbuffered write, so that an interrupted run leaves whole lines. What cannot be
    written in full (a full disk) is taken back, and the half line that a kill or a power cut may have left at the end is cut
    off when the file is opened again. One sink at a time writes to a file; readers may look at any moment.

    Args:
        path: the file; its folder exists.

    Returns:
        An open sink. What is None in a row is null in its line.

    Raises:
        RunError: if the file cannot be written, or holds something other than JSON lines.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "training.jsonl")
        >>> row = {"step": 7, "site": "weights", "path": "w", "format": None, "rounding": None, "landed": 3}
        >>> with json_lines(path) as sink:
        ...     sink.write([row])
        >>> json.loads(path.read_text()) == row
        True
    """
    path = Path(path)
    where = f"json_lines({path})"
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a+b", buffering=0))
            _mend(file, where)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise _cannot_write(where, error) from error
        stack.pop_all()

    def write(rows: list[Row]) -> None:
        block = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        start = os.fstat(file.fileno()).st_size
        try:
            while block:  # a disk that fills up takes a part, and says why when the rest is tried
                block = block[file.write(block) :]
        except BaseException as error:  # Ctrl-C too
            with contextlib.suppress(OSError):
                file.truncate(start)
            if isinstance(error, OSError):
                raise _cannot_write(where, error) from error
            raise

    return OpenSink(where, write, file.close)


def _mend(file: FileIO, where: str) -> None:
    """Cut off the half line that an interrupted write may have left; refuse a file that is none of ours."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST))
    whole, _, half = file.readall().rpartition(b"\n")
    last = half or whole.rpartition(b"\n")[2]
    if last and not last.startswith(b"{"):
        raise RunError(f"{where}: this file does not end in a line of JSON, and nothing was changed in it; name another path.")
    if half:
        try:
            json.loads(half)
            file.write(b"\n")
        except ValueError:
            file.truncate(size - len(half))


def _cannot_write(where: str, error: Exception) -> RunError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return RunError(f"{where}: cannot write there ({reason}); make room, permission or the folder, or name another path.")


def parquet(root: str | Path, config: Mapping[str, Any] | None = None, *, rows_a_segment: int = 2000) -> OpenSink:
    """Rows in the store: Parquet segments in a run folder, which the command line reads.

    `precisionlab list` shows the run under the experiment `track`, and the rows are its view `records`:

        precisionlab show latest --sql "SELECT path, sum(swamped) FROM records GROUP BY path"

    Elsewhere any reader of Parquet takes `ROOT/*/segment-*.parquet`.

    Args:
        root: the folder of runs, such as "runs", where the command line looks.
        config: what tells this training from others, JSON-able, such as `{"lr": 1e-3, "seed": 0}`. The same configuration
            finds the same run again and adds to it.
        rows_a_segment: rows are kept in memory until there are as many or the sink is closed, because every segment is a
            file; a process that is killed loses those. The first write is a segment at once; with 1 every write is.

    Returns:
        An open sink; its `where` names the run's folder, which no other process can write to until it is closed. A number that
        is None becomes NaN, which SQL sorts above all others (leave it out with `NOT isnan(lost_mass)`), and a text that is
        None becomes empty: the storage itself is `format = ''`.

    Raises:
        RunError: if the folder is damaged, in use, or cannot be written.
        TypeError: if the configuration is not JSON-able.
        ValueError: if `rows_a_segment` is not a positive whole number; when rows are written, if their columns differ from
            those before.
        ImportError: if pyarrow or duckdb is not installed.

    Example:
        >>> import tempfile
        >>> from precisionlab.runs import store
        >>> root = tempfile.mkdtemp()
        >>> with parquet(root, {"lr": 1e-3}) as sink:
        ...     sink.write([{"step": 7, "site": "weights", "path": "w", "format": None, "rounding": None, "landed": 3}])
        >>> found = store.query(store.find_run(root, "latest"), "SELECT step, landed FROM records WHERE format = ''")
        >>> int(found["step"][0]), int(found["landed"][0])
        (7, 3)
    """
    try:
        from precisionlab.runs import store
        from precisionlab.runs.folders import alone
    except ImportError as absent:
        raise ImportError(f"parquet: {absent}; run pip install 'precisionlab[sinks]'.") from absent
    if isinstance(rows_a_segment, bool) or not isinstance(rows_a_segment, int) or rows_a_segment < 1:
        raise ValueError(f"parquet: rows_a_segment must be a whole number of at least 1; got {rows_a_segment!r}.")
    try:
        config = dict(config or {})
        canonical_json(config)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"parquet: config must hold what JSON can spell (numbers, text, lists, dicts), and names the run; {error}."
        ) from error
    try:
        run = store.open_run(root, "track", config, provenance())
    except ValueError as error:
        raise _cannot_write(f"parquet({root})", error) from error
    where = f"parquet({run.folder})"
    if store.status(run) == "done":
        raise RunError(f"{where}: this run is finished; name another configuration or another root.")
    pending: list[Row] = []
    kinds: dict[str, type] = {}

    def write(rows: list[Row]) -> None:
        first = not kinds
        wanted = kinds or {column: _kind(column, value) for column, value in rows[0].items()}
        for row in rows:
            _check_kinds(where, wanted, row)
        kinds.update(wanted)
        pending.extend(rows)
        # The first at once, because there it shows whether the columns are those of an older run.
        if first or len(pending) >= rows_a_segment:
            flush()

    def flush() -> None:
        if pending:
            store.append_segment(run, {name: _column(kind, [row[name] for row in pending]) for name, kind in kinds.items()}, [])
            pending.clear()

    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(run.folder))
        store.resume_point(run)  # removes what a crash left, and says so if something is damaged
        lock = stack.pop_all()

    def close() -> None:
        with lock:
            flush()

    return OpenSink(where, write, close)


def _kind(column: str, value: Any) -> type:
    """The type of a column, which must not depend on which of its values happen to be None."""
    if column in KEYS[1:] or isinstance(value, str):
        return object
    return np.int64 if column in COUNTS else np.float64


def _column(kind: type, values: list[Any]) -> np.ndarray:
    # Text as objects, since numpy's own fixed-width text drops NULs at the end.
    blank = "" if kind is object else np.nan
    return np.array([blank if value is None else value for value in values], kind)


def _check_kinds(where: str, kinds: Mapping[str, type], row: Row) -> None:
    if set(row) != set(kinds):
        raise ValueError(f"{where}: every row must have the columns of the first, {', '.join(kinds)}; got {', '.join(row)}.")
    allowed = {
        object: (str | None, "text or None"),
        np.float64: (int | float | None, "numbers or None"),
        np.int64: (int, "whole numbers"),
    }
    for name, kind in kinds.items():
        value = row[name]
        if not isinstance(value, allowed[kind][0]):
            raise ValueError(f"{where}: the column {name} holds {allowed[kind][1]}; got {value!r}; give every column one kind.")
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: the column {name} holds {value!r}, which is no valid text; rename it.") from error
