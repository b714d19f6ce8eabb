"""What an experiment is, where it keeps what it has found so far, and how to run it in stages.

An experiment is a question with a frozen configuration and a `run(config, *, journal, progress) -> Result`. Work that takes
long is cut into pieces, each handed to the journal when it is finished: an interrupted run goes on after the last piece, and
ends bit for bit as if it had never stopped. Here the pieces are named stages; those of a training are in `arms`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from precisionlab.experiments.common.measured import Measured
from precisionlab.runs.files import RunError
from precisionlab.runs.results import Labelled, Result

__all__ = ["Experiment", "Journal", "MemoryJournal", "Progress", "stages"]

Progress = Callable[[int, int, str], None]
"""`progress(done, total, description)`, called between pieces."""


class Experiment(NamedTuple):
    """A question that one command answers.

    Attributes:
        name: what the command line calls it.
        question: the question, in one sentence.
        config: a frozen dataclass whose defaults are the default run.
        quick: the fields that `--quick` changes.
        full: the fields that `--full` changes; none where the default is all there is.
        run: `run(config, *, journal=None, progress=None) -> Result`.
        columns: the columns of the rows to print, in order.
        figures: by caption, what draws a matplotlib figure of a result; the first is saved beside the run, a report shows all.
    """

    name: str
    question: str
    config: type
    quick: Mapping[str, Any]
    full: Mapping[str, Any]
    run: Callable[..., Result]
    columns: tuple[str, ...]
    figures: Mapping[str, Callable[[Result], Any]]


class Journal(Protocol):
    """Where rows and states go between chunks; the store has one that survives the process."""

    def resume(self) -> tuple[int, list[np.ndarray] | None]:
        """Segments written so far, and the state arrays after the last of them."""
        ...

    def append(self, columns: Mapping[str, np.ndarray], state: Sequence[np.ndarray]) -> None:
        """One more segment of rows, with the state after it."""
        ...

    def query(self, sql: str) -> dict[str, np.ndarray]:
        """Columns of a query over the table `records` of all rows."""
        ...


class MemoryJournal:
    """A journal that forgets: for running an experiment from a notebook without a run folder."""

    def __init__(self) -> None:
        """Begin with no segments."""
        self.segments: list[dict[str, np.ndarray]] = []

    def resume(self) -> tuple[int, list[np.ndarray] | None]:
        """Nothing was done before."""
        return 0, None

    def append(self, columns: Mapping[str, np.ndarray], state: Sequence[np.ndarray]) -> None:
        """Keep the rows."""
        del state
        self.segments.append(dict(columns))

    def query(self, sql: str) -> dict[str, np.ndarray]:
        """Run SQL over the rows, in memory."""
        import duckdb
        import pyarrow as pa

        table = pa.table({name: np.concatenate([part[name] for part in self.segments]) for name in self.segments[0]})
        with duckdb.connect() as connection:
            connection.register("records", table)
            return {name: np.ma.asarray(column) for name, column in connection.execute(sql).fetchnumpy().items()}


def stages(measure: Mapping[str, Callable[[], Measured]], *, journal: Journal, progress: Progress | None = None) -> Measured:
    """Run named stages in order, and keep in the journal what each has found.

    A stage's segment is a row for each of its arrays (`stage`, `name`, `axes`, `entries`); the state after it holds all arrays
    so far, from which an interrupted run goes on after its last finished stage. For the same bits a stage must depend on
    nothing but its own arguments: not on the clock, and not on what an earlier stage left in memory.

    Args:
        measure: by name, the work of each stage. Array names are unique over all stages; an axis that several of them give has
            the same labels in each.
        journal: where the stages are kept, and what was done before.
        progress: called with 0 of 1 before each stage and 1 of 1 after it, by its name; a long stage may report more itself.

    Returns:
        The axes and arrays of all stages.

    Raises:
        ValueError: if an array's name was given before, an axis has other labels than before, or an array and its axes differ.
        RunError: if the journal holds other stages than these; the sentence names both.

    Example:
        >>> count = lambda: Measured({"n": [1, 2]}, {"squares": Labelled(("n",), np.array([1, 4]))})
        >>> found = stages({"counting": count}, journal=MemoryJournal())
        >>> found.coords, found.arrays["squares"].values
        ({'n': (1, 2)}, array([1, 4]))
    """
    done, state = journal.resume()
    finished, found = _unpacked(state) if state else ([], Measured({}, {}))
    names = list(measure)
    if finished != names[:done] or len(finished) != done:
        raise RunError(
            f"the run was begun with other stages ({', '.join(finished)}) than it has now ({', '.join(names)}); "
            "start it afresh by running the same command with --fresh."
        )
    tell = progress or (lambda *_: None)
    for number, (name, work) in enumerate(measure.items()):
        if number >= done:
            tell(0, 1, name)
            new = work()
            found = _joined(name, found, new)
            journal.append(_contents(name, new), _packed(names[: number + 1], found))
        tell(1, 1, name)
    return found


def _joined(stage: str, before: Measured, new: Measured) -> Measured:
    """Both together, in the plain form in which a `Result` keeps them."""
    if again := [name for name in new.arrays if name in before.arrays]:
        raise ValueError(
            f'stages: stage "{stage}" gives an array "{again[0]}", which an earlier stage gave; name it otherwise.'
        )
    added = Result(stage, {}, new.coords, {})
    for axis, labels in added.coords.items():
        if before.coords.get(axis, labels) != labels:
            raise ValueError(
                f'stages: stage "{stage}" labels the axis "{axis}" {labels}, an earlier stage {before.coords[axis]}; '
                "give one of them another name."
            )
    joined = Result(stage, {}, {**before.coords, **added.coords}, {**before.arrays, **new.arrays})
    return Measured(joined.coords, joined.arrays)


def _contents(stage: str, new: Measured) -> dict[str, np.ndarray]:
    """A row for each array, since their shapes have nothing in common."""
    return {
        "stage": np.array([stage] * len(new.arrays), np.str_),
        "name": np.array(list(new.arrays), np.str_),
        "axes": np.array([" ".join(array.dims) for array in new.arrays.values()], np.str_),
        "entries": np.array([np.size(array.values) for array in new.arrays.values()], np.int64),
    }


def _packed(finished: Sequence[str], found: Measured) -> list[np.ndarray]:
    """Everything as arrays: the first one spells, in JSON, what the others are called."""
    dims = {name: array.dims for name, array in found.arrays.items()}
    index = json.dumps({"stages": finished, "coords": found.coords, "dims": dims})
    return [np.frombuffer(index.encode(), np.uint8), *(array.values for array in found.arrays.values())]


def _unpacked(state: Sequence[np.ndarray]) -> tuple[list[str], Measured]:
    index, values = json.loads(bytes(state[0])), state[1:]
    arrays = {name: Labelled(tuple(dims), array) for (name, dims), array in zip(index["dims"].items(), values, strict=True)}
    return index["stages"], Measured({axis: tuple(labels) for axis, labels in index["coords"].items()}, arrays)
