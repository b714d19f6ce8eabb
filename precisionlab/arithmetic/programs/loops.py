"""Loops and branches, made again around a walk through their programs.

Every turn draws random bits of its own. What is observed in a turn is joined over the turns, and every branch gives records for
the operations of all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from precisionlab._typing import Array
from precisionlab.arithmetic.frames import Frame, Held
from precisionlab.arithmetic.programs.equations import scan, while_loop
from precisionlab.arithmetic.programs.passing import Walk, constants, packed, unpacked
from precisionlab.numerics.randomness import fold

__all__ = ["branched", "repeated", "scanned"]


def scanned(walk: Walk, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A scan."""
    program, consts, carry, options = scan(eqn)
    words, around = frame.next_words(), constants(program, frame)
    arrays = packed(inputs, frame, eqn.invars)
    fixed = arrays[:consts]

    def body(state: Any, x: Any) -> Any:
        turn, held = state
        inner = frame.program(None if words is None else fold(words, turn))
        values = walk(program.jaxpr, around, unpacked([*fixed, *held, *x], inner), inner)
        results = packed(values, inner, program.jaxpr.outvars)
        return (turn + 1, results[:carry]), (results[carry:], inner.records)

    start = (jnp.uint32(0), arrays[consts : consts + carry])
    (_, last), (stacked, records) = lax.scan(body, start, arrays[consts + carry :], **options)
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return unpacked([*last, *stacked], frame)


def repeated(walk: Walk, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A while loop; batched, it goes on as long as any does."""
    test, test_consts, program, program_consts = while_loop(eqn)
    words = frame.next_words()
    test_around, around = constants(test, frame), constants(program, frame)
    arrays = packed(inputs, frame, eqn.invars)
    test_fixed, arrays = arrays[:test_consts], arrays[test_consts:]
    fixed, start = arrays[:program_consts], arrays[program_consts:]

    def turned(turn: Array, parity: int) -> Array | None:
        return None if words is None else fold(words, 2 * turn + parity)

    def goes_on(turn: Array, held: Any) -> Array:
        inner = frame.program(turned(turn, 0), branch=0)
        return walk(test.jaxpr, test_around, unpacked([*test_fixed, *held], inner), inner)[0].array

    def advance(turn: Array, held: Any) -> tuple[list[Any], dict[Any, Any]]:
        inner = frame.program(turned(turn, 1), branch=1)
        values = walk(program.jaxpr, around, unpacked([*fixed, *held], inner), inner)
        results = packed(values, inner, program.jaxpr.outvars)
        if test.out_avals[0].shape:  # under vmap, some are done before the others
            results = jax.tree.map(partial(_where, goes_on(turn, held)), results, held)
        return results, inner.records

    def again(state: Any) -> Array:
        return jnp.any(goes_on(*state[:2]))

    def body(state: Any) -> Any:
        turn, held, records = state
        results, seen = advance(turn, held)
        return turn + 1, results, {op: seen[op].at_turn(turn).joined(records[op]) for op in seen}

    blank = {}
    if frame.observing:
        _, shapes = jax.eval_shape(advance, jnp.uint32(0), start)
        blank = {operation: record.blank() for operation, record in shapes.items()}
    _, last, records = lax.while_loop(again, body, (jnp.uint32(0), start, blank))
    for operation, record in records.items():
        frame.records[operation] = record.joined(frame.records.get(operation))
    return unpacked(last, frame)


def _where(chosen: Array, new: Array, old: Array) -> Array:
    return jnp.where(jnp.expand_dims(chosen, range(chosen.ndim, jnp.ndim(new))), new, old)


def branched(walk: Walk, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """One of several branches."""
    index, *rest = inputs
    words, arrays = frame.next_words(), packed(rest, frame, eqn.invars[1:])

    def branch_of(number: int, program: ClosedJaxpr) -> Callable[..., Any]:
        def branch(*arrays: Any) -> Any:
            inner = frame.program(words, branch=number)
            values = walk(program.jaxpr, constants(program, inner), unpacked(arrays, inner), inner)
            return packed(values, inner, program.jaxpr.outvars), inner.records

        return branch

    branches = [branch_of(number, program) for number, program in enumerate(eqn.params["branches"])]
    if frame.observing:
        branches = _with_same_records(branches, arrays)
    results, records = lax.switch(index.array, branches, *arrays)
    for operation, record in records.items():
        frame.records[operation] = record.joined(frame.records.get(operation))
    return unpacked(results, frame)


def _with_same_records(branches: list[Callable[..., Any]], arrays: list[Any]) -> list[Callable[..., Any]]:
    """Branches that all return a record for every operation of any of them."""
    shapes = {operation: record for branch in branches for operation, record in jax.eval_shape(branch, *arrays)[1].items()}

    def completed(branch: Callable[..., Any]) -> Callable[..., Any]:
        def full(*arrays: Any) -> Any:
            results, records = branch(*arrays)
            return results, {operation: records.get(operation, shape.blank()) for operation, shape in shapes.items()}

        return full

    return [completed(branch) for branch in branches]
