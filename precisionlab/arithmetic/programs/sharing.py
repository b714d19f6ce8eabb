"""Equal programs within a program: walked once, and made one function that is called.

A layer that is a jitted function comes as many equations that hold the same program. The walk through it depends on the rules
and on what is known of its arguments, and is the same wherever these are; where the scopes decide, the scopes belong to it.
Random keys are the next rows of the caller's table, so that every draw is the one that it would have been.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal

from precisionlab._typing import Array
from precisionlab.arithmetic.frames import RAW, Frame, Held, opened
from precisionlab.arithmetic.programs.equations import own_program
from precisionlab.arithmetic.programs.passing import Walk
from precisionlab.arithmetic.programs.references import is_reference
from precisionlab.arithmetic.rules import Rules
from precisionlab.numerics.formats import Format, is_concrete

__all__ = ["repeated_programs", "shared"]

_LEAST = 4
"""Of how many equations a program is worth a function."""


@dataclass
class _Function:
    """A walk as a function of arrays, and what was found out as it was traced: what is known of its results, and its draws."""

    call: Any = None
    grids: list[Any] = field(default_factory=list)
    draws: int = 0


def repeated_programs(equations: Iterable[Any]) -> frozenset[int]:
    """The identities of programs that several of a program's equations call."""
    called = (own_program(eqn) for eqn in equations if eqn.primitive.name == "jit")
    counts = Counter(id(program.jaxpr) for program in called if program is not None and len(program.jaxpr.eqns) >= _LEAST)
    return frozenset(place for place, count in counts.items() if count > 1)


def shared(walk: Walk, program: ClosedJaxpr, inputs: Sequence[Held], frame: Frame) -> list[Held] | None:
    """The results of a program that is called repeatedly; None if it has to be walked where it stands."""
    given = [value.array for value in inputs]
    if id(program.jaxpr) not in frame.repeated or not any(isinstance(array, Tracer) for array in given):
        return None
    if not _is_pure(program) or not all(map(_can_pass, inputs)) or not _knows_grids(frame):
        return None
    scopes = frame.path if any(isinstance(rules, Rules) for rules in (frame.arithmetic.formats, frame.arithmetic.modes)) else ()
    place = (id(program.jaxpr), scopes, frame.words is None, *map(_kind, inputs))
    numbers, _ = opened(frame.arithmetic)
    moving = [array for array, value in zip(given, inputs, strict=True) if value.grid != RAW]
    table = frame.table()
    if place not in frame.functions:
        frame.functions[place] = _made(walk, program, inputs, frame)
        jax.eval_shape(frame.functions[place].call, numbers, table, moving)
    function = frame.functions[place]
    if not frame.has_rows(function.draws):
        return None
    arrays, number = function.call(numbers, table, moving)
    frame.skip(function.draws, number)
    ours: Any = frame.arithmetic.format_of("", ()) if frame.arithmetic.uniform else None
    return [Held(array, ours if grid is None else grid) for array, grid in zip(arrays, function.grids, strict=True)]


def _made(walk: Walk, program: ClosedJaxpr, inputs: Sequence[Held], frame: Frame) -> _Function:
    function, (traced, close), arithmetic, path = _Function(), opened(frame.arithmetic), frame.arithmetic, frame.path
    known = [value if value.grid == RAW else value._replace(array=None) for value in inputs]

    def walked(numbers: list[Array], table: list[Array], moving: list[Any]) -> tuple[list[Any], list[Array]]:
        inner = frame.called(close(numbers) if traced else arithmetic, path, table)
        arrays = iter(moving)
        values = [value if value.grid == RAW else value._replace(array=next(arrays)) for value in known]
        results = walk(program.jaxpr, [], values, inner)
        # Traced formats are others inside than outside: of them it is only known that there is a single one.
        function.grids = [
            None if isinstance(result.grid, Format) and not is_concrete(result.grid) else result.grid for result in results
        ]
        function.draws = inner.draws[0] - 1
        return [jnp.asarray(result.array) for result in results], inner.rows[1:]

    walked.__name__ = "layer"
    function.call = jax.jit(walked)
    return function


def _is_pure(program: ClosedJaxpr) -> bool:
    """Whether a program has neither constants nor effects, and makes its results rather than passing arguments on."""
    jaxpr = program.jaxpr
    made = {var for eqn in jaxpr.eqns for var in eqn.outvars}
    return not (program.consts or jaxpr.constvars or jaxpr.effects) and all(
        not isinstance(var, Literal) and var in made for var in jaxpr.outvars
    )


def _can_pass(value: Held) -> bool:
    """Whether a value can be an argument; a number that the program was written with becomes part of the function."""
    if is_reference(value.array):
        return False
    return value.grid != RAW or (isinstance(value.array, np.ndarray | np.generic) and value.array.size == 1)


def _knows_grids(frame: Frame) -> bool:
    """Whether what is known of values is the same inside: of formats that are traced, only if there is a single one."""
    traced, _ = opened(frame.arithmetic)
    return not traced or frame.arithmetic.uniform


def _kind(value: Held) -> tuple[Any, ...]:
    array, grid = value.array, value.grid
    known = grid if isinstance(grid, str) else id(grid) if is_concrete(grid) else "traced"  # a grid is compared by identity
    return (
        known,
        np.shape(array),
        np.dtype(array.dtype) if grid == RAW else array.dtype,
        array.tobytes() if grid == RAW else None,
    )
