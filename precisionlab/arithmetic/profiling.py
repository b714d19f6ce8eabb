"""What did the format cost, and where? A function beside its float64 self, operation by operation.

Every value is held twice: as the simulation has it, and as the same function in float64 would. Each operation is also done in
float64 on the operands that the simulation gave it. Three numbers follow for each:

    introduced   |rounded - exact on the same operands| / |exact|       what this rounding added (2-norms over the entries)
    carried      |simulated - float64 program| / |float64 program|      what has come together by then
    lost         entries that became zero, or not finite, though the operands were neither

Control flow follows the simulation: both programs take its branches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util

from precisionlab._typing import Array
from precisionlab.arithmetic.accumulation import Accumulation
from precisionlab.arithmetic.carrying import bound, carried, dtype_of, is_float
from precisionlab.arithmetic.equations import is_sampler
from precisionlab.arithmetic.frames import Frame, Held
from precisionlab.arithmetic.operations import entered, is_rounded, operate
from precisionlab.arithmetic.programs import Program, equations, program_of
from precisionlab.arithmetic.simulation import arithmetic_of, random_words
from precisionlab.formats import Format
from precisionlab.modes import Mode, nearest_even
from precisionlab.policy import Policy
from precisionlab.primitives import EXACT, ROUNDED
from precisionlab.rules import Rules

__all__ = ["ErrorProfile", "Operation", "error_profile"]

_NEVER = np.int32(2**31 - 1)


class Seen(NamedTuple):
    """Sums over the entries of an operation, float64 scalars; added up over the turns of a loop."""

    entries: Any
    introduced_square: Array
    local_square: Array
    carried_square: Array
    exact_square: Array
    underflowed: Array
    nonfinite: Array
    turn: Array

    def over_turns(self) -> "Seen":
        """The same over the leading axis."""
        bad = self.nonfinite > 0
        turns = jnp.where(bad, jnp.arange(bad.shape[0], dtype=jnp.int32), _NEVER)
        return Seen(*[jnp.sum(field, axis=0) for field in self[:-1]], turn=jnp.min(turns, initial=_NEVER))

    def at_turn(self, turn: Array) -> "Seen":
        """The same, in one turn of a loop."""
        return self._replace(turn=jnp.where(self.nonfinite > 0, turn.astype(jnp.int32), _NEVER))

    def joined(self, other: "Seen | None") -> "Seen":
        """Both together."""
        if other is None:
            return self
        sums = [mine + theirs for mine, theirs in zip(self[:-1], other[:-1], strict=True)]
        return Seen(*sums, turn=jnp.minimum(self.turn, other.turn))

    def blank(self) -> "Seen":
        """Nothing seen."""
        return Seen(*[jnp.zeros((), jnp.float64) for _ in self[:-1]], turn=jnp.asarray(_NEVER))


@dataclass(frozen=True)
class Operation:
    """What one operation of the function did; all its turns, if it is in a loop.

    Attributes:
        primitive: its name, such as "dot_general".
        scope: the `jax.named_scope`s around it, joined by "/".
        source: file and line.
        entries: results computed.
        introduced: relative error of its own rounding, in the 2-norm; NaN where nothing was finite.
        carried: relative error of its result against the float64 program.
        underflowed: entries that became zero, with a nonzero exact result.
        nonfinite: entries that are not finite, with a finite exact result on finite operands.
        first_turn: in which turn of the outermost loop that happened first; None if it did not.
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


@dataclass(frozen=True)
class ErrorProfile:
    """What every operation of a function added to its error.

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
        """Where the first infinity or NaN came from."""
        return next((op for op in self.operations if op.nonfinite), None)

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
                notes.append(f"{what}: {op.primitive}{f' in {op.scope}' if op.scope else ''} at {op.source}{turn}")
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


def error_profile(
    fun: Callable[..., Any],
    fmt_or_policy: Format | Rules | Policy | None,
    *,
    mode: Mode | Rules | Policy = nearest_even,
    accumulation: Accumulation | None = None,
) -> Callable[..., ErrorProfile]:
    """Which operation of a function costs how much accuracy in a format.

    Args:
        fun: any function that `simulate` takes, a gradient included. Sharded functions are not.
        fmt_or_policy: as in `simulate`.
        mode: as in `simulate`; stochastic modes need `key=` in the call.
        accumulation: as in `simulate`.

    Returns:
        `profile(*args, key=None, **kwargs) -> ErrorProfile`: print it for a table, worst first; `.operations` is the data,
        `.plot()` the picture. The function runs once in the simulation and twice in float64, operation by operation: for a
        look, not for a loop.

    Raises:
        TypeError, ValueError, NotImplementedError: as `simulate` does.

    Example:
        >>> from precisionlab.formats import FLOAT8_E4M3FN
        >>> profile = error_profile(lambda x: jnp.sum(jnp.exp(x) * 100), FLOAT8_E4M3FN)(jnp.array([0.0, 1.1, 2.0]))
        >>> profile.first_nonfinite.primitive, [op.primitive for op in profile.operations]
        ('mul', ['exp', 'mul', 'reduce_sum'])
    """
    arithmetic = arithmetic_of("error_profile", fmt_or_policy, mode, accumulation, None)

    def profile(*args: Any, key: Any = None, **kwargs: Any) -> ErrorProfile:
        leaves = jax.tree.leaves((args, kwargs, key))
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            raise TypeError(
                "error_profile: it reports what it sees, and cannot itself be jitted or vmapped; call it outside of both."
            )
        words, kwargs = random_words("error_profile", arithmetic, key, kwargs)
        program = program_of("error_profile", fun, args, kwargs, arithmetic)
        if any(eqn.primitive.name == "shard_map" for eqn, _ in equations(program.jaxpr, arithmetic)):
            raise ValueError("error_profile: the function is sharded with shard_map; profile it on one device, without.")
        labels: dict[tuple[int, ...], tuple[str, str, str]] = {}

        def observed(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
            results, seen = _observe(eqn, inputs, frame)
            if seen is not None:
                labels[frame.trail] = (eqn.primitive.name, "/".join(frame.path), _source(frame))
                frame.records[frame.trail] = seen
            return results

        def both(arrays: Sequence[Array], words: Array | None) -> Any:
            frame = Frame(arithmetic, observed, words=words, observing=True)
            results = program.run(frame, arrays)
            return results, frame.records, _distance(results, program)

        with jax.enable_x64(True):
            results, records, distance = both(program.arrays, words)
        operations = tuple(_operation(labels[trail], jax.tree.map(np.asarray, records[trail])) for trail in sorted(records))
        return ErrorProfile(operations, program.finish(results), float(distance))

    return profile


def _source(frame: Frame) -> str:
    """File, line and function, of the innermost equation that has them: what JAX's own functions do is their caller's."""
    for source in reversed(frame.sources):
        summary = source_info_util.summarize(source)
        if source.traceback is not None and summary not in ("", "unknown"):
            path, _, place = summary.rpartition("/")
            return place if path else summary
    return "-"


def _distance(results: list[Held], program: Program) -> Array:
    floats = [held for held, var in zip(results, program.jaxpr.outvars, strict=True) if is_float(dtype_of(var))]
    error = sum((jnp.sum(jnp.square(_double(held.array) - held.exact)) for held in floats), jnp.zeros((), jnp.float64))
    size = sum((jnp.sum(jnp.square(held.exact)) for held in floats), jnp.zeros((), jnp.float64))
    return jnp.where(error == 0, 0.0, jnp.sqrt(error / size))


def _operation(label: tuple[str, str, str], seen: Seen) -> Operation:
    def relative(error: Any, size: Any) -> float:
        return float(np.sqrt(error / size)) if size > 0 else (0.0 if error == 0 else float("nan"))

    return Operation(
        *label,
        entries=int(seen.entries),
        introduced=relative(seen.introduced_square, seen.local_square),
        carried=relative(seen.carried_square, seen.exact_square),
        underflowed=int(seen.underflowed),
        nonfinite=int(seen.nonfinite),
        first_turn=None if seen.turn == _NEVER else int(seen.turn),
    )


def _observe(eqn: Any, inputs: list[Held], frame: Frame) -> tuple[list[Held], Seen | None]:
    """An operation of the simulation, with its float64 shadow, and what they say of each other."""
    results = operate(eqn, inputs, frame)
    floats = [is_float(dtype_of(var)) for var in eqn.outvars]
    if not any(floats):
        return [held._replace(exact=held.array) for held in results], None
    if eqn.primitive.name not in EXACT | ROUNDED or is_sampler(eqn) or eqn.primitive.name == "bitcast_convert_type":
        # What has no float64 self is taken as given.
        return [held._replace(exact=_double(held.array)) for held in results], None
    exact = _in_float64(eqn, [value.exact for value in inputs])
    shadowed = [
        held._replace(exact=shadow if is_a_float else held.array)
        for held, shadow, is_a_float in zip(results, exact, floats, strict=True)
    ]
    if not is_rounded(eqn, frame):
        return shadowed, None
    operands = [entered(value, eqn.primitive.name, dtype_of(var), frame) for value, var in zip(inputs, eqn.invars, strict=True)]
    local = _in_float64(eqn, [_double(operand) for operand in operands])
    seen = [
        _compare(held.array, held.exact, near)
        for held, near, is_a_float in zip(shadowed, local, floats, strict=True)
        if is_a_float
    ]
    return shadowed, seen[0]


@jax.jit
def _compare(array: Array, exact: Array, local: Array) -> Seen:
    simulated = _double(array)

    def square(x: Array, where: Array) -> Array:
        return jnp.sum(jnp.where(where, jnp.square(jnp.where(where, x, 0.0)), 0.0))

    near = jnp.isfinite(simulated) & jnp.isfinite(local)
    far = jnp.isfinite(simulated) & jnp.isfinite(exact)
    broken = ~jnp.isfinite(simulated) & jnp.isfinite(local)  # what came in was finite, or the exact result were not
    count = jnp.sum(broken, dtype=jnp.float64)
    return Seen(
        entries=jnp.asarray(float(simulated.size), jnp.float64),
        introduced_square=square(simulated - local, near),
        local_square=square(local, near),
        carried_square=square(simulated - exact, far),
        exact_square=square(exact, far),
        underflowed=jnp.sum((simulated == 0) & (local != 0), dtype=jnp.float64),
        nonfinite=count,
        turn=jnp.where(count > 0, jnp.int32(0), _NEVER),
    )


def _in_float64(eqn: Any, arrays: list[Any]) -> list[Array]:
    return bound(eqn, arrays, jnp.float64)


def _double(x: Any) -> Any:
    return carried(x, x.dtype, jnp.float64) if is_float(x.dtype) else x
