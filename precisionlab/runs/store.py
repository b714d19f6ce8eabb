"""What a run keeps: its records, the state to resume from, and in the end its result.

An experiment sees a `Journal`; the caller sees `complete`, which computes, resumes or simply reads. Each write is
atomic, so an interrupted run goes on by being asked again, and ends with the bytes it would have had otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precisionlab.runs import segments
from precisionlab.runs.files import (
    RunError,
    damaged,
    read_arrays,
    read_json,
    remove,
    write_arrays,
    write_atomically,
    write_json,
)
from precisionlab.runs.folders import (
    RequestError,
    Run,
    alone,
    config_hash,
    damaged_runs,
    find_run,
    fresh,
    list_runs,
    open_run,
    status,
)
from precisionlab.runs.provenance import provenance
from precisionlab.runs.results import Claim, Labelled, Result

__all__ = [
    "Journal",
    "RequestError",
    "Run",
    "RunError",
    "append_segment",
    "complete",
    "config_hash",
    "damaged_runs",
    "find_run",
    "finish",
    "fresh",
    "list_runs",
    "load_result",
    "open_run",
    "provenance",
    "query",
    "resume_point",
    "status",
    "verdict",
    "write_atomically",
]


def append_segment(run: Run, columns: Mapping[str, np.ndarray], state: Sequence[Any]) -> None:
    """Commit one segment of records and the state after it; see `segments.append`."""
    segments.append(run.folder, columns, state)


def resume_point(run: Run) -> tuple[int, list[np.ndarray] | None]:
    """Clean up after a crash and say where to go on: segments done, and the state after them; see `segments.resume`."""
    return segments.resume(run.folder)


def query(runs: Run | Sequence[Run], sql: str) -> dict[str, np.ndarray]:
    """Ask the records of one run, or of several, in SQL; they are the view `records`; see `segments.query`.

    Raises:
        RequestError: if there are no records, or the SQL is wrong.
        RunError: if a run folder is damaged.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    try:
        return segments.query([run.folder for run in runs], sql)
    except LookupError as error:
        names = ", ".join(str(run.folder) for run in runs)
        raise RequestError(f"{names or 'query'}: {error}; ask again once a first segment is written.") from error
    except ValueError as error:
        raise RequestError(
            f"the query cannot be answered ({error}); the records are the view `records`, "
            "for instance SELECT * FROM records LIMIT 5."
        ) from error


@dataclass(frozen=True)
class Journal:
    """What an experiment sees of its run: where to go on, where to write, and what was written."""

    run: Run

    def resume(self) -> tuple[int, list[np.ndarray] | None]:
        """Segments done and the state after them; see `resume_point`."""
        return resume_point(self.run)

    def append(self, columns: Mapping[str, np.ndarray], state: Sequence[Any]) -> None:
        """Commit one segment; see `append_segment`."""
        append_segment(self.run, columns, state)

    def query(self, sql: str) -> dict[str, np.ndarray]:
        """Read back what was committed, before an interruption too; see `query`."""
        return query(self.run, sql)


def finish(run: Run, result: Result) -> None:
    """Keep the result and mark the run done.

    Args:
        run: the run.
        result: what was found; its provenance is completed from the run's.

    Raises:
        RunError: if it cannot be written; the run then resumes after its last segment.
    """
    write_arrays(run.folder / "arrays.npz", {name: array.values for name, array in result.arrays.items()})
    write_json(
        run.folder / "result.json",
        {
            "experiment": result.experiment,
            "config": result.config,
            "coords": result.coords,
            "dims": {name: array.dims for name, array in result.arrays.items()},
            "rows": result.rows,
            "claims": [claim._asdict() for claim in result.claims],
            "verdict": result.verdict,
            "decided": result.decided,
            "provenance": {**run.record["provenance"], **result.provenance},
        },
    )
    segments.discard_leftovers(run.folder)  # before DONE, which would count an uncommitted segment
    write_atomically(run.folder / "DONE", lambda file: file.write(b"done\n"))
    for path in (run.folder / "failure.txt", *run.folder.glob("state-*.npz")):
        remove(path)


def load_result(run: Run) -> Result:
    """The result of a finished run.

    Raises:
        RequestError: if the run is not finished.
        RunError: if the folder is damaged.
    """
    if status(run) != "done":
        raise RequestError(f"the run {run.folder} is not finished; run the same command again to resume it.")
    stored, arrays = read_json(run.folder / "result.json"), read_arrays(run.folder / "arrays.npz")
    try:
        return Result(
            experiment=stored["experiment"],
            config=stored["config"],
            coords=stored["coords"],
            arrays={name: Labelled(tuple(dims), arrays[name]) for name, dims in stored["dims"].items()},
            rows=tuple(stored["rows"]),
            claims=tuple(Claim(**claim) for claim in stored["claims"]),
            verdict=stored["verdict"],
            provenance=stored["provenance"],
            decided=stored.get("decided", {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(run.folder, "result.json does not hold a result") from error


def verdict(run: Run) -> str | None:
    """The verdict of a finished run without loading its arrays; None before it is finished."""
    return str(read_json(run.folder / "result.json").get("verdict", "")) if status(run) == "done" else None


def complete(run: Run, compute: Callable[[Journal], Result]) -> Result:
    """The result of a run: computed, resumed, or simply read when the run is done.

    Args:
        run: the run.
        compute: does the work; receives the journal, from which it resumes and to which it appends.

    Raises:
        RunError: if another process is computing the same run, or the folder fails.
    """
    with alone(run.folder):
        if status(run) != "done":
            finish(run, compute(Journal(run)))
        return load_result(run)
