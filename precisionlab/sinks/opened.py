"""What a sink is: two functions, one that takes rows and one that ends."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from precisionlab.sinks.rows import KEYS, Row

__all__ = ["OpenSink", "Sink", "several"]


class Sink(Protocol):
    """Anything that takes rows until it is closed; write your own, or make one of two functions with `OpenSink`."""

    def write(self, rows: list[Row]) -> None:
        """Take the rows of one record."""
        ...

    def close(self) -> None:
        """Let go of files and buffers."""
        ...


class OpenSink:
    """A sink made of two functions: it looks at the rows before they are written, and closes once.

    Args:
        where: what it writes to, for errors, such as `json_lines(training.jsonl)`.
        write: receives rows that are in order: dicts of plain values with the keys `step, site, path, format, rounding`.
        close: called once.

    Example:
        >>> seen = []
        >>> with OpenSink("a list", seen.extend, lambda: None) as sink:
        ...     sink.write([{"step": 1, "site": "weights", "path": "w", "format": None, "rounding": None, "landed": 3}])
        >>> seen[0]["landed"]
        3
        >>> sink.write(seen)
        Traceback (most recent call last):
        ...
        ValueError: a list: this sink is closed; write before close() and inside its `with`, or open another one.
    """

    def __init__(self, where: str, write: Callable[[list[Row]], object], close: Callable[[], object]) -> None:
        self.where = where
        self._write = write
        self._close = close
        self._closed = False

    def __repr__(self) -> str:
        return f"<{'closed' if self._closed else 'open'} sink {self.where}>"

    def write(self, rows: Iterable[Row]) -> None:
        """Write the rows of a record.

        Args:
            rows: what `record_rows` returned. Columns of your own may stand beside the others (a seed, a loss): files keep
                them.

        Raises:
            ValueError: if the sink is closed.
            TypeError: if these are no rows.
        """
        if self._closed:
            raise ValueError(
                f"{self.where}: this sink is closed; write before close() and inside its `with`, or open another one."
            )
        if checked := _checked(self.where, rows):
            self._write(checked)

    def close(self) -> None:
        """Finish; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> "OpenSink":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _checked(where: str, rows: Any) -> list[Row]:
    takes = f"{where}: write takes the rows that record_rows(stagnation(opt_state)) returns; got"
    if not isinstance(rows, Iterator | list) and type(rows) is not tuple:
        raise TypeError(f"{takes} {type(rows).__name__}.")
    rows = list(rows)
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"{takes} {type(row).__name__} among them.")
        if absent := [key for key in KEYS if key not in row]:
            raise TypeError(f"{takes} a row without {', '.join(absent)}.")
        for column, value in row.items():
            if not isinstance(column, str) or not (value is None or isinstance(value, int | float | str)):
                raise TypeError(
                    f"{where}: the column {column!r} holds {type(value).__name__}; a column has a name and holds plain "
                    "numbers, text or None: convert it, for instance with float()."
                )
    return [{column: _number(value) for column, value in row.items()} for row in rows]


def _number(value: Any) -> Any:
    """As in `record_rows`: what is not finite has no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def several(*sinks: Sink) -> OpenSink:
    """One sink that writes to many, in the order given; closing it closes them all.

    Args:
        *sinks: each with `write(rows)` and `close()`. A write that fails ends there, so put files before services.

    Raises:
        TypeError: if one of them is no sink.

    Example:
        >>> first, second = [], []
        >>> both = several(*(OpenSink("a list", kept.extend, kept.clear) for kept in (first, second)))
        >>> both.write([{"step": 1, "site": "weights", "path": "w", "format": None, "rounding": None}])
        >>> len(first), len(second), both.close(), len(first), len(second)
        (1, 1, None, 0, 0)
    """
    for sink in sinks:
        if not callable(getattr(sink, "write", None)) or not callable(getattr(sink, "close", None)):
            raise TypeError(f"several: expected sinks, such as json_lines(path), with write(rows) and close(); got {sink!r}.")

    def write(rows: list[Row]) -> None:
        for sink in sinks:
            sink.write(rows)

    def close() -> None:
        with contextlib.ExitStack() as stack:  # closes the others too when one of them fails
            for sink in reversed(sinks):
                stack.callback(sink.close)

    return OpenSink("several", write, close)
