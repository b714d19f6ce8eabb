"""A run is a folder named after its configuration, so that asking the same question twice finds the same answer.

    runs/3f2a9c01d4e7/            twelve hex digits of the hash of experiment and configuration
        run.json                  what was asked, when, with which versions, on what
        segment-00000.parquet     records, see `segments`
        state-00000.npz           where to go on; gone once the run is finished
        result.json, arrays.npz   the Result, see `store`
        DONE                      written last

This module makes, finds, locks and empties such folders; what goes into them is the business of `store`.
"""

import contextlib
import datetime
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.runs.files import (
    RunError,
    cannot_write,
    canonical_json,
    damaged,
    read_json,
    remove,
    sync_folder,
    write_json,
)

__all__ = [
    "RequestError",
    "Run",
    "alone",
    "config_hash",
    "damaged_runs",
    "find_run",
    "fresh",
    "list_runs",
    "open_run",
    "status",
]

# In the order in which `fresh` deletes them: DONE first, run.json last.
_RESULTS = ("DONE", "result.json", "arrays.npz", "figure.png", "report.html", "failure.txt")
_OURS = (*_RESULTS, "state-*.npz", "segment-*.parquet", ".*.tmp", "run.json")


class RequestError(RunError):
    """The request was wrong (an unknown run, bad SQL), not the run."""


@dataclass(frozen=True)
class Run:
    """A run folder that was opened and checked.

    Attributes:
        folder: where it is.
        record: the contents of run.json.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.record["experiment"]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration, as JSON gives it back (tuples are lists)."""
        return self.record["config"]


def config_hash(experiment: str, config: Mapping[str, Any]) -> str:
    """Twelve hex digits that depend on the experiment and its configuration alone, not on the order of its keys.

    Example:
        >>> config_hash("demo", {"lr": 0.1, "steps": 3}) == config_hash("demo", {"steps": 3, "lr": 0.1})
        True
    """
    text = canonical_json({"experiment": experiment, "config": config})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_run(root: str | Path, experiment: str, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Run:
    """Open the folder of a run, making it if need be.

    Args:
        root: the folder that holds all runs.
        experiment: name of the experiment.
        config: JSON-able configuration.
        provenance: kept in run.json if the folder is new; that of an older folder stays.

    Raises:
        RunError: if the folder is damaged, belongs to another configuration, or cannot be written.
    """
    folder = Path(root) / config_hash(experiment, config)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path for pattern in _OURS if pattern != ".*.tmp" for path in folder.glob(pattern)):
            return _checked(folder, experiment, config)
        created = datetime.datetime.now(datetime.UTC).isoformat()
        record = {"experiment": experiment, "config": config, "created": created, "provenance": provenance}
        write_json(folder / "run.json", record)
        if made:
            sync_folder(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    except RunError:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return _read(folder)


def _read(folder: Path) -> Run:
    if not (folder / "run.json").exists():
        raise damaged(folder, "it has no run.json")
    record = read_json(folder / "run.json")
    kinds = {"experiment": str, "config": dict, "created": str, "provenance": dict}
    if absent := [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]:
        raise damaged(folder, f'run.json has no valid "{absent[0]}"')
    return Run(folder, record)


def _checked(folder: Path, experiment: str, config: Mapping[str, Any]) -> Run:
    run = _read(folder)
    if (run.experiment, canonical_json(run.config)) != (experiment, canonical_json(config)):
        raise RunError(
            f'the run folder {folder} belongs to another configuration, of experiment "{run.experiment}", than the one '
            "asked for; move it away, or run the same command with --fresh, which deletes it."
        )
    return run


def status(run: Run) -> str:
    """`"done"`, `"partial"` (some segments are committed) or `"new"`."""
    if (run.folder / "DONE").exists():
        return "done"
    return "partial" if any(run.folder.glob("state-*.npz")) else "new"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes when the process does."""
    try:
        import fcntl
    except ImportError:  # Windows: no such lock; two processes at once are then the user's own business
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is computing the run {folder}; wait for it, or stop it first.") from error
        except OSError:  # some network file systems cannot lock a folder
            pass
        yield
    finally:
        os.close(descriptor)


def fresh(root: str | Path, experiment: str, config: Mapping[str, Any]) -> None:
    """Delete what a run has written, so that it starts from the beginning; other files in its folder stay.

    Raises:
        RunError: if another process is computing the run, or something cannot be deleted.
    """
    folder = Path(root) / config_hash(experiment, config)
    if not folder.is_dir():
        return
    with alone(folder):
        # Stopped at any point, what is left is a run that starts again: without DONE and states, nothing counts.
        for pattern in _OURS:
            for path in sorted(folder.glob(pattern)):
                remove(path)
    with contextlib.suppress(OSError):  # somebody keeps a file of their own there
        folder.rmdir()


def _folders(root: str | Path) -> list[Path]:
    try:
        named = list(Path(root).iterdir()) if Path(root).exists() else []
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"{root} cannot be read as a folder of runs ({reason}); name another with --runs DIR.") from error
    return sorted(folder for folder in named if re.fullmatch(r"[0-9a-f]{12}", folder.name) and folder.is_dir())


def _scan(root: str | Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    runs, bad = [], []
    for folder in _folders(root):
        try:
            run = _read(folder)
            if status(run) == "done":
                read_json(folder / "result.json")
            runs.append(run)
        except RunError as error:
            bad.append((folder, str(error)))
    return sorted(runs, key=lambda run: run.record["created"]), bad


def list_runs(root: str | Path) -> list[Run]:
    """The readable runs under `root`, oldest first; see `damaged_runs` for the others."""
    return _scan(root)[0]


def damaged_runs(root: str | Path) -> list[tuple[Path, str]]:
    """The folders under `root` that are named like runs and cannot be read, each with the sentence that says why."""
    return _scan(root)[1]


def find_run(root: str | Path, name: str) -> Run:
    """A run by its name.

    Args:
        root: the folder that holds all runs.
        name: the folder's name or the beginning of it, `latest`, or a path to the folder.

    Raises:
        RequestError: if no run or several answer to the name; the sentence lists the candidates.
        RunError: if the folder is damaged.
    """
    if (Path(name) / "run.json").is_file():
        return _read(Path(name))
    if name == "latest" and (runs := list_runs(root)):
        return runs[-1]
    folders = _folders(root)
    matches = [folder for folder in folders if name and folder.name.startswith(name)]
    if len(matches) == 1:
        return _read(matches[0])
    problem = "several runs begin with" if matches else "no run begins with"
    known = ", ".join(folder.name for folder in matches or folders) or "none"
    raise RequestError(f'{problem} "{name}" under {root}: candidates are {known}; see `precisionlab list`.')
