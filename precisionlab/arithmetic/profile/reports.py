"""What an error profile says: one row for everything that was rounded, and the table that they make."""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ErrorProfile", "Operation"]


@dataclass(frozen=True)
class Operation:
    """What one operation of the function did; all its turns, if it is in a loop.

    Hardware that has one format rounds more than results, and so there are rows beside those of operations, where a rounding
    changed something: for arguments on their way in ("argument 0/w"), for constants where they are read ("constant 1e-08"), and
    for values of one format that are read in another ("operand of mul").

    Attributes:
        primitive: its name, such as "dot_general".
        scope: the `jax.named_scope`s around it, joined by "/".
        source: file and line.
        entries: results computed.
        introduced: relative error of its own rounding, in the 2-norm; NaN where nothing was finite.
        carried: relative error of its result against the float64 program.
        underflowed: entries that became zero, with a nonzero exact result.
        nonfinite: entries that are not finite and have their origin here: with a finite exact result on the same operands, or
            with one in the float64 program where no operand was broken before (1 / 0 with a divisor that became zero).
        first_turn: in which turn of the outermost loop that happened first; None if it did not.
        everywhere: entries that are not finite out of finite operands, in the float64 program as well: log(0), or a constant
            that its own dtype had lost when the function was written.
        kind: "operation", "argument", "constant" or "operand": what was rounded.
    """

    primitive: str
    scope: str
    source: str
    entries: int
    introduced: float
    carried: float
    underflowed: int
    nonfinite: int
    first_turn: int | None
    everywhere: int = 0
    kind: str = "operation"


@dataclass(frozen=True)
class ErrorProfile:
    """What every rounding of a function added to its error.

    Attributes:
        operations: in order of execution.
        value: what the simulated function returned.
        carried: relative error of all its floating-point results together.
    """

    operations: tuple[Operation, ...]
    value: Any
    carried: float

    @property
    def worst(self) -> list[Operation]:
        """The operations by the error that they introduced, largest first."""
        return sorted(self.operations, key=lambda op: (op.nonfinite > 0, np.nan_to_num(op.introduced, nan=-1.0)), reverse=True)

    @property
    def first_nonfinite(self) -> Operation | None:
        """Where the first infinity or NaN came from.

        If the results are not finite and no rounding made them so, the operation, else the argument or constant, that is not
        finite in float64 either.
        """
        found = next((op for op in self.operations if op.nonfinite), None)
        if found is not None or np.isfinite(self.carried):
            return found
        own = [op for op in self.operations if op.everywhere]
        return next((op for op in own if op.kind == "operation"), own[0] if own else None)

    @property
    def first_underflow(self) -> Operation | None:
        """Where results first became zero."""
        return next((op for op in self.operations if op.underflowed), None)

    def by_scope(self) -> dict[str, float]:
        """The largest error that any one operation introduced, by scope, largest first."""
        found: dict[str, float] = {}
        for op in self.operations:
            found[op.scope] = max(found.get(op.scope, 0.0), float(np.nan_to_num(op.introduced, nan=np.inf)))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def table(self, rows: int = 15) -> str:
        """The worst operations as text."""
        header = ("operation", "scope", "introduced", "carried", "underflowed", "not finite", "where")
        lines = [header, *(_row(op) for op in self.worst[:rows])]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        numbers = range(2, 6)
        body = [
            "  ".join(
                cell.rjust(width) if at in numbers else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        more = len(self.operations) - rows
        notes = [f"... and {more} more" if more > 0 else "", self._conclusion()]
        for what, op in (("not finite first", self.first_nonfinite), ("underflow first", self.first_underflow)):
            if op is not None:
                turn = "" if op.first_turn is None or what != "not finite first" else f", turn {op.first_turn}"
                too = ", in float64 as well" if what == "not finite first" and not op.nonfinite else ""
                notes.append(f"{what}: {op.primitive}{f' in {op.scope}' if op.scope else ''} at {op.source}{turn}{too}")
        return "\n".join([*(line.rstrip() for line in body), *filter(None, notes)])

    def _conclusion(self) -> str:
        if np.isfinite(self.carried):
            return f"relative error of the results: {self.carried:.3g}"
        return "the results are not finite"

    def __str__(self) -> str:
        return self.table()

    def plot(self, ax: Any = None) -> Any:
        """Error introduced and carried by each operation, in order of execution; needs matplotlib. Returns the axes."""
        from precisionlab.runs.plots import plot_error_profile

        rows = [(op.introduced, op.carried, op.scope, op.nonfinite > 0) for op in self.operations]
        return plot_error_profile(rows, ax=ax)


def _row(op: Operation) -> tuple[str, ...]:
    def share(count: int) -> str:
        return f"{100 * count / op.entries:.3g} %" if count else "-"

    numbers = (f"{op.introduced:.2e}", f"{op.carried:.2e}", share(op.underflowed), share(op.nonfinite))
    return (op.primitive, op.scope or "-", *numbers, op.source)
