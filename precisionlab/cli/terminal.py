"""How the command line speaks: answers on standard output, everything else on standard error.

With `--json` an answer is one strict JSON object; otherwise it is text and tables for people. Progress is a bar on a
terminal, and one line for each thing begun where nobody watches.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Failure", "ProgressLine", "answer", "first_line", "mark", "say", "show_table", "write"]

_WIDE = 100_000  # a file has no right margin: no cell may be cut
_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}


class Failure(Exception):
    """What ends a command: one sentence and an exit status."""

    def __init__(self, sentence: str, status: int) -> None:
        """Keep the sentence as the message."""
        super().__init__(sentence)
        self.status = status


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message, to stand inside a sentence."""
    text = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".;")
    return f"{type(error).__name__}: {text}"


def _console(stream: Any) -> Console:
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, markup=False, emoji=False)


def say(sentence: str) -> None:
    """A message for the person, on standard error."""
    _console(sys.stderr).print(Text(sentence), soft_wrap=True)


def write(text: str = "") -> None:
    """A line of the answer, on standard output."""
    _console(sys.stdout).print(Text(text), soft_wrap=True)


def answer(value: Mapping[str, Any]) -> None:
    """The whole answer as one strict JSON object, on standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n")


def mark(held: bool | None) -> str:
    """A check mark, a cross, or a question mark while undecided; plain letters where the stream has no such signs."""
    sign = _MARKS[held][0]
    try:
        sign.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return {True: "+", False: "x", None: "?"}[held]
    return sign


def show_table(cells: Sequence[Sequence[str]]) -> None:
    """A table whose first row is the header, on standard output; long cells fold, none is cut."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in cells[0]:
        shown.add_column(Text(name), overflow="fold")
    colours = {mark(held): colour for held, (_, colour) in _MARKS.items()}
    for row in cells[1:]:
        shown.add_row(*(Text(cell, style=colours.get(cell, "")) for cell in row))
    _console(sys.stdout).print(shown)


class ProgressLine:
    """Progress on standard error, as a context manager that is called with done, total and description.

    A class because it is a resource: the bar must leave the terminal clean, whatever ends the work.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        console = _console(sys.stderr)
        self._seen: dict[str, TaskID | None] = {}
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)

    def __enter__(self) -> Self:
        """Show the bar, if there is one."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the terminal clean."""
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int, description: str) -> None:
        """Tell that `done` of `total` is done in what `description` names."""
        if self._bar is None:
            if description not in self._seen:
                self._seen[description] = None
                say(f"{description}: {done} of {total}")
            return
        if description not in self._seen:
            self._seen[description] = self._bar.add_task(description, total=total)
        task = self._seen[description]
        if task is not None:
            self._bar.update(task, completed=done, total=total)
