"""Where a walk through a program stands: the rules, the scopes around it, and the random bits still to be drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax

from precisionlab._typing import Array
from precisionlab.arithmetic.rules import Rules, resolve, resolve_argument
from precisionlab.arithmetic.sums.accumulation import Accumulation
from precisionlab.numerics.carriers import Carrier
from precisionlab.numerics.formats import Format, is_concrete
from precisionlab.numerics.grids import FormatWords
from precisionlab.numerics.modes import Mode, nearest_even
from precisionlab.numerics.randomness import first_row, key_rows, next_row
from precisionlab.numerics.rounding import shared_words

__all__ = ["RAW", "UNKNOWN", "Arithmetic", "Frame", "Grid", "Held"]

UNKNOWN, RAW = "unknown", "raw"
Grid = Format | str
"""The format whose value something is known to be; UNKNOWN; or RAW for a number that no operation has made yet."""

_ROWS = 128


class Held(NamedTuple):
    """A value of the program.

    Attributes:
        array: what the simulation holds.
        grid: what is known of it.
        exact: the same value of the float64 program, where there is one.
    """

    array: Any
    grid: Grid
    exact: Any = None


@dataclass(frozen=True)
class Arithmetic:
    """How operations are simulated.

    Attributes:
        formats: a format, None, or `Rules` of them.
        modes: a mode or `Rules` of them.
        accumulation: how sums and products of many terms are made; None for float32 sums rounded once.
        carrier: the dtype of all simulated values, or None for float32 (float64 where the program says so).
    """

    formats: Any
    modes: Any
    accumulation: Accumulation | None = None
    carrier: Any = None

    @property
    def uniform(self) -> bool:
        """Whether a single format holds everywhere, so that every value lies on its grid."""
        rules = self.formats
        if isinstance(rules, Rules) and not (rules.primitives or rules.scopes or rules.arguments):
            rules = rules.default
        return isinstance(rules, Format)

    def format_of(self, primitive: str, path: tuple[str, ...]) -> Any:
        """The rule for an operation: a format, a block format, or None for its own dtype."""
        return resolve(self.formats, primitive, path)

    def argument_format(self, path: tuple[str, ...]) -> Any:
        """The format in which an argument enters, or None for its own dtype."""
        return resolve_argument(self.formats, path)

    def argument_mode(self, path: tuple[str, ...]) -> Mode:
        """How it is rounded to that."""
        return resolve_argument(self.modes, path) or nearest_even

    def mode_of(self, primitive: str, path: tuple[str, ...]) -> Mode:
        """The rounding mode of an operation."""
        return resolve(self.modes, primitive, path) or nearest_even


@dataclass
class Frame:
    """One program, or program within a program, as it is walked.

    Attributes:
        arithmetic: the rules.
        operate: `operate(equation, values, frame) -> values`, for whatever holds no program of its own.
        path: the scopes around the equation.
        trail: its number in its program, after those of the equations around that: in order of execution.
        sources: where in the user's code the equation and those around it come from, as JAX tells it.
        words: a raw random key, or None.
        draws: how often the key was used, shared between the frames of one program.
        rows: the keys that were made from it last, and the number of the next of them, shared likewise.
        made: before which draw that was, shared likewise.
        traced: the words of traced formats, shared by all roundings of one program and of those within it.
        repeated: the identities of programs that are called repeatedly (`programs.sharing`).
        functions: those that were made of them, shared between all frames.
        records: what was observed, by operation; empty unless somebody looks.
        noticed: `noticed(value, array, what, dtype, where, frame)`, for what is rounded as it is read (`what`: a constant, an
            operand), at a place in the order of execution; None if nobody observes.
        inside: whether this is a program as a whole, rather than at one of its equations.
    """

    arithmetic: Arithmetic
    operate: Callable[..., list[Held]]
    path: tuple[str, ...] = ()
    trail: tuple[int, ...] = ()
    sources: tuple[Any, ...] = ()
    words: Array | None = None
    draws: list[int] = field(default_factory=lambda: [0])
    rows: list[Array] = field(default_factory=list)
    made: list[int] = field(default_factory=lambda: [-1])
    traced: dict[Any, tuple[Format, FormatWords]] = field(default_factory=dict)
    repeated: frozenset[int] = frozenset()
    functions: dict[Any, Any] = field(default_factory=dict)
    records: dict[Any, Any] = field(default_factory=dict)
    noticed: Callable[..., None] | None = None
    inside: bool = True

    @property
    def observing(self) -> bool:
        """Whether somebody observes: derivatives are not needed then, records are."""
        return self.noticed is not None

    def at(self, number: int, scopes: tuple[str, ...], source: Any) -> "Frame":
        """The same program, at one of its equations."""
        trail = (*self.trail, number)
        return replace(self, path=self.path + scopes, trail=trail, sources=(*self.sources, source), inside=False)

    def program(self, words: Array | None, arithmetic: Arithmetic | None = None, branch: int | None = None) -> "Frame":
        """A program within this one, with random bits and records of its own."""
        trail = self.trail if branch is None else (*self.trail, branch)
        around = (self.path, trail, self.sources)
        kept = {"noticed": self.noticed, "traced": dict(self.traced), "repeated": self.repeated, "functions": self.functions}
        return Frame(arithmetic or self.arithmetic, self.operate, *around, words, **kept)

    def called(self, arithmetic: Arithmetic, path: tuple[str, ...], table: list[Array]) -> "Frame":
        """A function that is called from here, which takes the random keys that come next of a table of this frame's."""
        words = table[0][0] if table else None  # not drawn from: a function that needs another table is not called
        kept = {"repeated": self.repeated, "functions": self.functions}
        return Frame(arithmetic, self.operate, path, words=words, draws=[1], rows=list(table), **kept)

    def place(self, operand: int) -> tuple[float, ...]:
        """Where in the order of execution an operand is read: before its equation; the results of a program, at its end."""
        if self.inside:
            return (*self.trail, float("inf"), operand)
        return (*self.trail[:-1], self.trail[-1] - 0.5, operand)

    def words_of(self, fmt: Format, carrier: Carrier) -> FormatWords | None:
        """The words of a format that is not concrete, made where the first of its roundings is."""
        if is_concrete(fmt):
            return None
        place = (carrier.width, *map(id, fmt))
        if place not in self.traced:
            self.traced[place] = fmt, shared_words(fmt, carrier)
        return self.traced[place][1]

    def next_words(self) -> Array | None:
        """A fresh raw random key, or None if nothing is drawn."""
        if self.words is None:
            return None
        self.table()
        self.draws[0] += 1
        words, self.rows[1] = next_row(*self.rows)
        return words

    def table(self) -> list[Array]:
        """The random keys from which the next is drawn, with its number among them; nothing if nothing is drawn."""
        if self.words is not None and self.draws[0] % _ROWS == 0 and self.made[0] != self.draws[0]:
            self.rows[:] = [key_rows(self.words, self.draws[0], _ROWS), first_row()]
            self.made[0] = self.draws[0]
        return self.rows

    def has_rows(self, count: int) -> bool:
        """Whether the table has so many keys left."""
        return self.words is None or self.draws[0] % _ROWS + count <= _ROWS

    def skip(self, count: int, number: list[Array]) -> None:
        """Go on behind keys that a function has drawn."""
        self.draws[0] += count
        self.rows[1:] = number


def opened(arithmetic: Arithmetic) -> tuple[list[Array], Callable[[Sequence[Array]], Arithmetic]]:
    """The traced numbers of the formats, and a function that puts others in their places.

    Functions with a derivative or a sharding of their own take what is traced as arguments rather than from around them.
    """
    leaves, structure = jax.tree.flatten(arithmetic.formats)
    traced = [index for index, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def close(numbers: Sequence[Array]) -> Arithmetic:
        filled = list(leaves)
        for index, number in zip(traced, numbers, strict=True):
            filled[index] = number
        formats = jax.tree.unflatten(structure, filled)
        return Arithmetic(formats, arithmetic.modes, arithmetic.accumulation, arithmetic.carrier)

    return [leaves[index] for index in traced], close
