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
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Failure", "ProgressLine", "answer", "first_line", "mark", "say", "show_records", "show_table", "tell", "write"]

_WIDE = 100_000  # a file has no right margin: no cell may be cut
_GAP = 2  # between the columns of a table that is too wide
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


def tell(text: str) -> None:
    """Paragraphs of the answer, one a line of the text: on a terminal wrapped between words, with a line between them."""
    console = _console(sys.stdout)
    for number, paragraph in enumerate(text.splitlines()):
        if number and console.is_terminal:
            write()
        console.print(Text(paragraph), soft_wrap=not console.is_terminal)


def show_records(cells: Sequence[Sequence[str]]) -> None:
    """A table whose first row is the header, with a mark, an outcome and a name before its other columns.

    Where it is too wide for the terminal each row is a record of a few lines: its name, then the rest, as the header calls it.
    """
    console = _console(sys.stdout)
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if sum(widths) + 2 * len(widths) <= console.width:
        show_table(cells)
        return
    write()
    colours = {mark(held): colour for held, (_, colour) in _MARKS.items()}
    for sign, outcome, name, *others in cells[1:]:
        rest = ", ".join(f"{title} {cell}" for title, cell in zip(cells[0][3:], others, strict=True))
        head = Text.assemble((f"{sign} " if sign else "", colours.get(sign, "")), f"{outcome}: {name}")
        for number, part in enumerate((head, Text(rest))):
            for line in part.wrap(console, console.width - 4):
                console.print(Text.assemble("    " if number or line.plain != head.plain[: len(line.plain)] else "", line))


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


def show_table(cells: Sequence[Sequence[str]], *, quantities: bool = False) -> None:
    """A table whose first row is the header, on standard output; no cell is cut.

    Args:
        cells: its rows.
        quantities: whether it is one of numbers, after columns that tell what they are of. If too wide it goes on below, with
            those columns again: nobody reads a number that is folded. Long cells of other tables are.
    """
    console = _console(sys.stdout)
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    blocks = _blocks(widths, _words(cells), console.width) if quantities else [range(len(widths))]
    for columns in blocks:
        shown = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if len(blocks) == 1 else _GAP - 1, 0, len(blocks) == 1)
        )
        for column in columns:
            shown.add_column(Text(cells[0][column]), overflow="fold")
        colours = {mark(held): colour for held, (_, colour) in _MARKS.items()}
        for row in cells[1:]:
            shown.add_row(*(Text(row[column], style=colours.get(row[column], "")) for column in columns))
        with console.capture() as captured:
            console.print(shown)
        text = captured.get()
        if not console.is_terminal:  # a file has no right margin to pad to
            text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        console.file.write(text)


def _words(cells: Sequence[Sequence[str]]) -> int:
    """How many columns there are before the first of numbers."""
    columns = list(zip(*cells[1:], strict=True))
    return next((place for place, column in enumerate(columns) if any(map(_is_number, column))), len(columns))


def _is_number(cell: str) -> bool:
    try:
        float(cell.partition(" ")[0].replace(",", ""))
    except ValueError:
        return False
    return True


def _blocks(widths: Sequence[int], words: int, width: int) -> list[list[int]]:
    """The columns of each part of a table: the first ones, and as many others as fit."""
    if sum(widths) + 3 * len(widths) <= width:
        return [list(range(len(widths)))]
    first = list(range(words))
    blocks = [[*first]]
    for column in range(words, len(widths)):
        together = [*blocks[-1], column]
        if len(together) > words + 1 and sum(widths[each] + _GAP for each in together) > width:
            blocks.append([*first])
        blocks[-1].append(column)
    return blocks


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
