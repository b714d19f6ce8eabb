"""What did the format cost, and where? A function beside its float64 self, operation by operation.

Every value is held twice: as the simulation has it, and as the same function in float64 would. Each operation is also done in
float64 on the operands that the simulation gave it. Three numbers follow for each:

    introduced   |rounded - exact on the same operands| / |exact|       what this rounding added (2-norms over the entries)
    carried      |simulated - float64 program| / |float64 program|      what has come together by then
    lost         entries that became zero, or not finite, and have their origin here

What is rounded as it is read, rather than as it is computed (arguments, constants, values of another format), has rows of its
own where that changed something. Control flow follows the simulation: both programs take its branches.
"""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util

from precisionlab.arithmetic.carrying import double, dtype_of, is_inexact, is_on_host
from precisionlab.arithmetic.frames import RAW, Frame, Held
from precisionlab.arithmetic.operations import is_rounded, operands_of, results_of, rounded_results
from precisionlab.arithmetic.policy import Policy
from precisionlab.arithmetic.primitives import EXACT, ROUNDED
from precisionlab.arithmetic.profile.reports import ErrorProfile, Operation
from precisionlab.arithmetic.profile.seen import NEVER, Counts, Seen, compared
from precisionlab.arithmetic.profile.shadows import in_float64, moved
from precisionlab.arithmetic.programs.equations import called, is_sampler
from precisionlab.arithmetic.programs.survey import Program, equations, program_of
from precisionlab.arithmetic.rules import Rules
from precisionlab.arithmetic.simulation import arithmetic_of, check_function, random_words
from precisionlab.arithmetic.sums.accumulation import Accumulation
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode, nearest_even

__all__ = ["error_profile"]


_HERE = str(Path(__file__).parents[1])  # all of `arithmetic`


class _Label(NamedTuple):
    """What a row is about.

    Attributes:
        primitive, scope, source: as in `Operation`.
        kind: as in `Operation`.
        kept: whether it is always a row, or where it changed something, or where something was lost.
        shared: what rows of one and the same constant have in common; None for what is in one place.
    """

    primitive: str
    scope: str
    source: str
    kind: str = "operation"
    kept: str = "always"
    shared: Any = None


def error_profile(
    fun: Callable[..., Any],
    fmt_or_policy: Format | Rules | Policy | None,
    *,
    mode: Mode | Rules | Policy = nearest_even,
    accumulation: Accumulation | None = None,
    carrier: Any = None,
) -> Callable[..., ErrorProfile]:
    """Which operation of a function costs how much accuracy in a format.

    Args:
        fun: any function that `simulate` takes, a gradient included. Sharded functions are not.
        fmt_or_policy: as in `simulate`.
        mode: as in `simulate`; stochastic modes need `key=` in the call.
        accumulation: as in `simulate`.
        carrier: as in `simulate`.

    Returns:
        `profile(*args, key=None, **kwargs) -> ErrorProfile`: print it for a table, worst first; `.operations` is the data,
        `.plot()` the picture. The function runs once in the simulation and twice in float64, operation by operation: for a
        look, not for a loop.

    Raises:
        TypeError, ValueError, NotImplementedError: as `simulate` does.

    Example:
        >>> from precisionlab import FLOAT8_E4M3FN
        >>> profile = error_profile(lambda x: jnp.sum(jnp.exp(x) * 100), FLOAT8_E4M3FN)(jnp.array([0.0, 1.1, 2.0]))
        >>> profile.first_nonfinite.primitive, [op.primitive for op in profile.operations]
        ('mul', ['argument 0', 'exp', 'constant 100', 'mul', 'reduce_sum'])
    """
    check_function("error_profile", fun)
    arithmetic = arithmetic_of("error_profile", fmt_or_policy, mode, accumulation, carrier)

    def profile(*args: Any, key: Any = None, **kwargs: Any) -> ErrorProfile:
        _refuse_traced((args, kwargs, key, arithmetic.formats))
        words, kwargs = random_words("error_profile", arithmetic, key, kwargs)
        program = program_of("error_profile", fun, args, kwargs, arithmetic)
        _refuse_traced(program.consts)
        if any(eqn.primitive.name == "shard_map" for eqn, _ in equations(program.jaxpr, arithmetic)):
            raise ValueError("error_profile: the function is sharded with shard_map; profile it on one device, without.")
        watch = _Watch({})

        with jax.enable_x64(True):
            frame = Frame(arithmetic, watch.operate, words=words, noticed=watch.read)
            results = program.run(frame, program.arrays)
            carried = _distance(results, program)
            return ErrorProfile(watch.rows(frame.records, carried), program.finish(results), carried)

    return profile


def _refuse_traced(values: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            "error_profile: it reports what it sees, and cannot itself be jitted or vmapped, over formats neither; call it "
            "outside of both."
        )


class _Watch(NamedTuple):
    """Labels of what was seen, by its place in the order of execution."""

    labels: dict[tuple[float, ...], _Label]

    def operate(self, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
        """An operation of the simulation, with its float64 shadow, and what they say of each other."""
        results, seen = _observe(eqn, inputs, frame)
        if seen is not None:
            draws = is_sampler(eqn)
            name = f"random.{called(eqn).strip('_')}" if draws else eqn.primitive.name
            kept = "lost" if draws or name == "bitcast_convert_type" else "always"
            self.labels[frame.trail] = _Label(name, "/".join(frame.path), _source(frame), kept=kept)
            frame.records[frame.trail] = seen
        return results

    def read(self, value: Held, array: Any, what: str, dtype: Any, where: tuple[float, ...], frame: Frame) -> None:
        """A value that was rounded as it was read."""
        before, after = double(value.array), double(array)
        kind, shared, meant, operands = what.split()[0], None, None, [(before, value.exact)]
        if value.grid == RAW:
            operands = []
            if what == "constant":
                scalar = is_on_host(before) and before.size == 1
                what += f" {before.item():.4g}" if scalar else f" {np.dtype(dtype).name}[{','.join(map(str, before.shape))}]"
                shared = (what, id(value.array) if before.ndim else (frame.path, _source(frame)))
                meant = abs(before) == float(jnp.finfo(dtype).max)  # which stands for the largest of the format
        self.labels[where] = _Label(what, "/".join(frame.path), _source(frame), kind, "changed", shared)
        frame.records[where] = compared(after, value.exact, before, operands, meant)

    def rows(self, records: dict[Any, Seen], carried: float) -> tuple[Operation, ...]:
        """What was seen, in order of execution; of what was read, where that changed something, each constant once."""
        found: dict[Any, Operation] = {}
        for where in sorted(records):
            label = self.labels[where]
            operation = _operation(label, Counts(*np.asarray(records[where].sums).tolist()), int(records[where].turn))
            lost = operation.underflowed or operation.nonfinite or (operation.everywhere and not np.isfinite(carried))
            if not (lost or label.kept == "always" or (label.kept == "changed" and operation.introduced)):
                continue
            same = None if label.shared is None else (label.shared, operation.entries, operation.introduced, lost)
            found.setdefault(where if same is None else same, operation)
        return tuple(found.values())


def _operation(label: _Label, counts: Counts, turn: int) -> Operation:
    def relative(error: float, size: float) -> float:
        return float(np.sqrt(error / size)) if size > 0 else (0.0 if error == 0 else float("nan"))

    return Operation(
        label.primitive,
        label.scope,
        label.source,
        entries=int(counts.entries),
        introduced=relative(counts.introduced_square, counts.local_square),
        carried=relative(counts.carried_square, counts.exact_square),
        underflowed=int(counts.underflowed),
        nonfinite=int(counts.nonfinite),
        first_turn=None if turn == NEVER else turn,
        everywhere=int(counts.everywhere),
        kind=label.kind,
    )


def _source(frame: Frame) -> str:
    """File, line and function, of the innermost equation that has them: what JAX's and our functions do is their caller's."""
    for source in reversed(frame.sources):
        summary = source_info_util.summarize(source)
        if source.traceback is not None and summary not in ("", "unknown") and not summary.startswith(_HERE):
            path, _, place = summary.rpartition("/")
            return place if path else summary
    return "-"


def _distance(results: list[Held], program: Program) -> float:
    pairs = [
        (np.asarray(double(held.array)), np.asarray(held.exact))
        for held, var in zip(results, program.jaxpr.outvars, strict=True)
        if is_inexact(dtype_of(var))
    ]
    with np.errstate(all="ignore"):
        error = sum(float(np.sum(np.square(np.abs(simulated - exact)))) for simulated, exact in pairs)
        size = sum(float(np.sum(np.square(np.abs(exact)))) for _, exact in pairs)
        return 0.0 if error == 0 else float(np.sqrt(np.float64(error) / size))


def _observe(eqn: Any, inputs: list[Held], frame: Frame) -> tuple[list[Held], Seen | None]:
    operands = operands_of(eqn, inputs, frame)
    computed = moved(eqn, operands) or results_of(eqn, operands, frame)
    results = rounded_results(eqn, inputs, operands, computed, frame)
    floats = [is_inexact(dtype_of(var)) for var in eqn.outvars]
    if not any(floats):
        return [held._replace(exact=held.array) for held in results], None
    name, read = eqn.primitive.name, [double(operand) for operand in operands]
    has_self = name in EXACT | ROUNDED and name != "bitcast_convert_type"
    if has_self:
        exact = in_float64(eqn, [value.exact for value in inputs])
        local = in_float64(eqn, read) if is_rounded(eqn, frame) else exact
    else:  # what has no float64 self is taken as given, rounding included where that left it finite
        local = [double(array) for array in computed]
        exact = [_as_given(double(held.array), near) for held, near in zip(results, local, strict=True)]
    shadowed = [
        held._replace(exact=shadow if is_a_float else held.array)
        for held, shadow, is_a_float in zip(results, exact, floats, strict=True)
    ]
    if not is_rounded(eqn, frame):
        return shadowed, None
    pairs = list(zip(read, (value.exact for value in inputs), strict=True))
    seen = [
        compared(double(held.array), held.exact, near, pairs)
        for held, near, is_a_float in zip(shadowed, local, floats, strict=True)
        if is_a_float
    ]
    return shadowed, reduce(Seen.joined, seen)


def _as_given(simulated: Any, computed: Any) -> Any:
    """What was computed, as far as the rounding spared it; where it did not, what it would have been."""
    xp = np if is_on_host(simulated, computed) else jnp
    return xp.where(xp.isfinite(simulated) | ~xp.isfinite(computed), simulated, computed)
