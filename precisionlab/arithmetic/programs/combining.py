"""Functions of the user's on single entries: in a reduction, and in place."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import dtype_of
from precisionlab.arithmetic.frames import Frame, Held
from precisionlab.arithmetic.programs.applying import apply_in_place
from precisionlab.arithmetic.programs.equations import combiner
from precisionlab.arithmetic.programs.passing import Walk, constants, packed, raw, unpacked
from precisionlab.numerics.randomness import fold, key_rows

__all__ = ["applied", "reduced"]


def reduced(walk: Walk, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A reduction by a function of the user's: one application after the other, in row-major order from the initial value."""
    program, held = combiner(eqn), packed(inputs, frame, eqn.invars)
    assert program is not None
    half, dimensions = len(held) // 2, sorted(eqn.params["dimensions"])
    shape = eqn.outvars[0].aval.shape
    lanes = math.prod(shape)
    words, around = frame.next_words(), constants(program, frame)

    def flat(x: Any) -> Array:
        return jnp.moveaxis(jnp.asarray(x), dimensions, range(len(dimensions))).reshape(-1, lanes)

    def combine(words: Array | None, left: Any, right: Any) -> Any:
        inner = frame.program(words)
        results = walk(program.jaxpr, around, unpacked([*left, *right], inner), inner)
        return packed(results, inner, program.jaxpr.outvars), inner.records

    def body(state: Any, terms: Any) -> Any:
        turn, held = state
        keys = None if words is None else key_rows(fold(words, turn), 0, lanes)  # each entry of the result draws its own bits
        results, records = jax.vmap(combine)(keys, held, terms)
        return (turn + 1, results), {operation: record.over_turns() for operation, record in records.items()}

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes,)), held[half:])
    (_, last), records = lax.scan(body, (jnp.uint32(0), start), jax.tree.map(flat, held[:half]))
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return unpacked(jax.tree.map(lambda x: x.reshape(shape), last), frame)


def applied(walk: Walk, eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A function of the user's, applied in place to the entries at some indices."""
    program = combiner(eqn)
    assert program is not None
    held, words, around = packed(inputs, frame, eqn.invars), frame.next_words(), constants(program, frame)
    operand, indices = held[0], inputs[1].array
    nothing = raw(np.zeros((), dtype_of(eqn.invars[0])), dtype_of(eqn.invars[0]), frame)  # the function is of one argument

    def alone(words: Array | None, entry: Any) -> Any:
        inner = frame.program(words)
        results = walk(program.jaxpr, around, [*unpacked([entry], inner), nothing], inner)
        return packed(results, inner, program.jaxpr.outvars)[0], inner.records

    def function(turn: Array, entries: Any) -> Any:
        shape = jax.tree.leaves(entries)[0].shape
        flat = jax.tree.map(jnp.ravel, entries)
        keys = None if words is None else key_rows(fold(words, turn), 0, math.prod(shape))
        results, records = jax.vmap(alone)(keys, flat)
        seen = {operation: record.over_turns() for operation, record in records.items()}
        return jax.tree.map(lambda x: x.reshape(shape), results), seen

    operand, updates = jax.tree.map(jnp.asarray, operand), eqn.invars[2].aval.shape
    changed, records = apply_in_place(operand, jnp.asarray(indices), updates, eqn.params, function)
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return unpacked([changed], frame)
