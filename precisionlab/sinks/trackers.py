"""Rows as curves: one scalar for each leaf and rate, against the step.

A scalar is called `stagnation/SITE/PATH/RATE`, such as `stagnation/weights/layer1/kernel/lost_mass`, and where a format was
asked about `stagnation/SITE/PATH/FORMAT/ROUNDING/RATE`. Characters that TensorBoard does not take in a name become underscores.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from os import getpid
from pathlib import Path
from typing import Any

from precisionlab.runs.files import RunError
from precisionlab.sinks.opened import OpenSink
from precisionlab.sinks.rows import KEYS, NUMBERS, Row

__all__ = ["RATES", "tensorboard", "trackio_run", "wandb_run"]

RATES: tuple[str, ...] = ("stagnated_fraction", "lost_mass", "descent_quality")
"""What is drawn unless other columns are named."""

_ODD = re.compile(r"[^-\w./]")


def tensorboard(logdir: str | Path, *, prefix: str = "stagnation", columns: Sequence[str] = RATES) -> OpenSink:
    """An event file for TensorBoard; each write is on the disk when it returns.

    Args:
        logdir: the folder, made if need be, or an address that tensorboardX takes (`s3://...`). Every sink writes a file of its
            own.
        prefix: what the names of all scalars begin with.
        columns: which numbers to draw, out of `COLUMNS`.

    Returns:
        An open sink. A rate that is None is left out.

    Raises:
        ImportError: if tensorboardX is not installed.
        RunError: if the folder cannot be written.
        ValueError: if the prefix or a column cannot be used; when rows are written, if two names differ only in characters that
            TensorBoard does not take.

    Example:
        >>> import tempfile
        >>> with tensorboard(tempfile.mkdtemp()) as sink:
        ...     sink.write([{"step": 7, "site": "weights", "path": "w", "format": None, "rounding": None, "lost_mass": 0.5}])
    """
    where = f"tensorboard({logdir})"
    scalars = _namer(where, prefix, columns)
    try:
        from tensorboardX.event_file_writer import EventsWriter, directory_check
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as absent:
        raise ImportError(f"tensorboard: {absent}; run pip install 'precisionlab[sinks]'.") from absent

    def told(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise RunError(
                f"{where}: cannot write there ({reason}); make room or permission, or name another folder."
            ) from error

    # Not SummaryWriter: its thread dies unseen when the disk is full, and the training then waits for it forever. And a name of
    # its own for each file: the library's ends in whole seconds, and a second sink would overwrite the first.
    told(directory_check, str(logdir))
    events = told(EventsWriter, f"{logdir}/events", f".{getpid()}.{time.time_ns()}")

    def write(rows: list[Row]) -> None:
        for step, named in scalars(rows):
            values = [Summary.Value(tag=name, simple_value=value) for name, value in named.items()]
            told(events.write_event, Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        told(events.flush)

    return OpenSink(where, write, lambda: told(events.close))


def wandb_run(run: Any, *, prefix: str = "stagnation", columns: Sequence[str] = RATES) -> OpenSink:
    """Curves in a run of Weights & Biases that you have opened and that you finish.

    The scalars are drawn against `stagnation/step`, the number of the update, and leave the run's own step to you.

    Args:
        run: what `wandb.init(...)` returned, or the module `wandb` after it.
        prefix: what the names of all scalars begin with.
        columns: which numbers to draw, out of `COLUMNS`.

    Returns:
        An open sink; closing it leaves the run open.

    Raises:
        TypeError: if this is no run.
        ValueError: as for `tensorboard`.
    """
    where = "wandb_run"
    _require(where, run, "wandb.init(...)", "log", "define_metric")
    scalars = _namer(where, prefix, columns)
    axis = f"{prefix}/step"
    run.define_metric(f"{prefix}/*", step_metric=axis)

    def write(rows: list[Row]) -> None:
        for step, named in scalars(rows):
            run.log({axis: step, **named})

    return OpenSink(where, write, lambda: None)


def trackio_run(run: Any, *, prefix: str = "stagnation", columns: Sequence[str] = RATES) -> OpenSink:
    """Curves in a run of Trackio that you have opened and that you finish.

    Args:
        run: what `trackio.init(...)` returned, or the module `trackio`, which knows its current run.
        prefix: what the names of all scalars begin with.
        columns: which numbers to draw, out of `COLUMNS`.

    Returns:
        An open sink; closing it leaves the run open.

    Raises:
        TypeError: if this is no run.
        ValueError: as for `tensorboard`.
    """
    where = "trackio_run"
    _require(where, run, "trackio.init(...)", "log")
    scalars = _namer(where, prefix, columns)

    def write(rows: list[Row]) -> None:
        for step, named in scalars(rows):
            run.log(named, step=step)

    return OpenSink(where, write, lambda: None)


def _require(where: str, run: Any, maker: str, *methods: str) -> None:
    if isinstance(run, type) or not all(callable(getattr(run, method, None)) for method in methods):
        raise TypeError(f"{where}: expected the run that {maker} returned, with {' and '.join(methods)}; got {run!r}.")


def _namer(where: str, prefix: str, columns: Sequence[str]) -> Callable[[list[Row]], Iterator[tuple[int, dict[str, float]]]]:
    """What turns rows into steps and their named numbers."""
    if not isinstance(prefix, str) or not prefix or _ODD.search(prefix) or prefix != prefix.strip("/"):
        raise ValueError(
            f"{where}: prefix must be letters, digits and - _ . with / between them, such as stagnation/actor; got {prefix!r}."
        )
    columns = [columns] if isinstance(columns, str) else list(columns)
    if unknown := [name for name in columns if name not in NUMBERS]:
        raise ValueError(f"{where}: columns must be some of {', '.join(NUMBERS)}; got {unknown[0]!r}.")

    def scalars(rows: list[Row]) -> Iterator[tuple[int, dict[str, float]]]:
        for step, group in groupby(rows, key=lambda row: row["step"]):
            named: dict[str, float] = {}
            spelled: dict[str, str] = {}
            for row in group:
                place = "/".join(str(part) for part in (prefix, *(row[key] for key in KEYS[1:])) if part not in (None, ""))
                clean = _ODD.sub("_", place)
                if spelled.setdefault(clean, place) != place:
                    raise ValueError(
                        f"{where}: {spelled[clean]!r} and {place!r} would both be drawn as {clean!r}, because a name "
                        "holds letters, digits and - _ . / alone; rename one of the leaves."
                    )
                numbers = {f"{clean}/{name}": row.get(name) for name in columns}
                named |= {name: value for name, value in numbers.items() if isinstance(value, int | float)}
            if named:
                yield int(step or 0), named

    return scalars
