"""Walking a program: one equation at a time, and the programs within it.

A traced function is a list of equations over values. Most equations are one operation; what to do with those is the business of
`frame.operate`. The others hold programs of their own (a jitted function, the body of a scan, the branches of a cond, a
function with its own derivative), and are made again around a walk through those.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import ad
from jax.sharding import PartitionSpec

from precisionlab._typing import Array
from precisionlab.arithmetic.applying import apply_in_place
from precisionlab.arithmetic.carrying import carried, double, dtype_of, is_inexact, native
from precisionlab.arithmetic.derivatives import with_derivative_of
from precisionlab.arithmetic.entering import entered
from precisionlab.arithmetic.equations import (
    closed,
    combiner,
    has_programs,
    is_sampler,
    made_of,
    mapped,
    moves_only,
    own_program,
    scan,
    scopes_of,
    solve,
    touches_floats,
    while_loop,
)
from precisionlab.arithmetic.expansions import OWN_DERIVATIVE, expansion_of, program_within
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Arithmetic, Frame, Held, opened
from precisionlab.arithmetic.references import REFERENCES, is_reference
from precisionlab.primitives import EXACT, ROUNDED
from precisionlab.randomness import fold, key_rows
from precisionlab.rules import is_named

__all__ = ["finished", "handler_of", "raw", "walk"]


def walk(jaxpr: Jaxpr, consts: Sequence[Held], values: Sequence[Held], frame: Frame) -> list[Held]:
    """The results of a program, every operation done by `frame.operate`.

    Args:
        jaxpr: the program.
        consts: the values of its constants.
        values: its arguments.
        frame: where it stands.

    Returns:
        Its results.
    """
    known: dict[Any, Held] = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))

    def read(var: Any) -> Held:
        return raw(var.val, dtype_of(var), frame) if isinstance(var, Literal) else known[var]

    for number, eqn in enumerate(jaxpr.eqns):
        scopes = scopes_of(eqn)
        inner = frame.at(number, scopes, eqn.source_info)
        with eqn.ctx.manager, jax.named_scope("/".join(scopes)) if scopes else nullcontext():
            handle = handler_of(eqn, frame.arithmetic)
            results = (handle or inner.operate)(eqn, [read(var) for var in eqn.invars], inner)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def handler_of(eqn: Any, arithmetic: Arithmetic) -> Callable[..., list[Held]] | None:
    """What walks through an equation that holds, or stands for, a program of its own; None for a single operation."""
    function = None if is_sampler(eqn) else expansion_of(eqn, arithmetic)
    if function is not None:
        return partial(_expanded, function)
    name = eqn.primitive.name
    if name == "scatter" and combiner(eqn) is not None:
        return _scatter_apply
    if name in EXACT | ROUNDED or is_sampler(eqn) or is_named(arithmetic.formats, name):
        return None
    if name in _STRUCTURE:
        return _STRUCTURE[name]
    if not (touches_floats(eqn) or has_programs(eqn)) or made_of(eqn) is None or moves_only(eqn):
        return None
    return _described


def raw(value: Any, dtype: Any, frame: Frame) -> Held:
    """A number that the program was written with, in its carrier, not rounded yet."""
    if is_reference(value):
        twin = jax.new_ref(carried(value[...], dtype, jnp.float64)) if frame.observing and is_inexact(dtype) else value
        return Held(value, UNKNOWN, twin)
    if not is_inexact(dtype):
        array = value if isinstance(value, jax.Array) else np.asarray(value, dtype)
        return Held(array, UNKNOWN, array)
    array = carried(value, dtype, frame.arithmetic.carrier)
    return Held(array, RAW, double(array) if frame.observing else None)


def finished(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Held]:
    """Results of a function, rounded where they are numbers that it was written with."""
    pairs = enumerate(zip(values, vars_, strict=True))
    return [value._replace(array=entered(value, "", dtype_of(var), frame, place)) for place, (value, var) in pairs]


def _packed(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Any]:
    """Values as arrays alone, to pass through JAX; what was raw is rounded where it enters."""
    pairs = enumerate(zip(values, vars_, strict=True))
    arrays = [entered(value, "", dtype_of(var), frame, place) for place, (value, var) in pairs]
    if frame.observing:
        return [(array, value.exact) for array, value in zip(arrays, values, strict=True)]
    return arrays


def _unpacked(arrays: Sequence[Any], frame: Frame) -> list[Held]:
    if frame.observing:
        return [Held(array, UNKNOWN, exact) for array, exact in arrays]
    return [Held(array, UNKNOWN) for array in arrays]


def _constants(program: ClosedJaxpr, frame: Frame) -> list[Held]:
    return [raw(const, var.aval.dtype, frame) for const, var in zip(program.consts, program.jaxpr.constvars, strict=True)]


def _inline(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    program = own_program(eqn)
    assert program is not None, f"{eqn.primitive.name} holds no program with its own arguments and results"
    return walk(program.jaxpr, _constants(program, frame), inputs, frame)


def _expanded(function: Callable[..., Any], eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """The program that an equation stands for."""
    program = program_within(eqn, function)
    if eqn.primitive.name in OWN_DERIVATIVE:
        return _own_derivative(True, lambda eqn: (program, range(len(eqn.invars))))(eqn, inputs, frame)
    return walk(program.jaxpr, _constants(program, frame), inputs, frame)


def _described(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A primitive that nobody listed, as the program that JAX says it is; its derivative, taken from outside, stays its own."""
    program = made_of(eqn)
    assert program is not None
    if own_program(eqn) is None and eqn.primitive in ad.primitive_jvps:
        return _own_derivative(True, lambda _: (program, range(len(eqn.invars))))(eqn, inputs, frame)
    return walk(program.jaxpr, _constants(program, frame), inputs, frame)


def _remat(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    if frame.observing:
        return _inline(eqn, inputs, frame)
    program = closed(eqn.params["jaxpr"])

    def recomputed(words: Array | None, arrays: list[Any]) -> list[Any]:
        inner = frame.program(words)
        return _packed(walk(program.jaxpr, [], _unpacked(arrays, inner), inner), inner, program.jaxpr.outvars)

    wrapped = jax.checkpoint(recomputed, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return _unpacked(wrapped(frame.next_words(), _packed(inputs, frame, eqn.invars)), frame)


def _own_derivative(forward_mode: bool, program_of: Callable[[Any], tuple[Any, Sequence[int]]]) -> Callable[..., list[Held]]:
    """A function that brings its own derivative: its value is simulated; its derivative, taken from outside, stays its own."""

    def handle(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
        program, taken = program_of(eqn)
        if frame.observing:
            return walk(program.jaxpr, _constants(program, frame), [inputs[place] for place in taken], frame)
        numbers, close = opened(frame.arithmetic)

        def value(extra: Any, *arrays: Any) -> list[Any]:
            inner = frame.program(extra[0], close(extra[1]))
            values = _unpacked([arrays[place] for place in taken], inner)
            results = walk(program.jaxpr, _constants(program, inner), values, inner)
            return _packed(results, inner, program.jaxpr.outvars)

        def written(*arrays: Any) -> list[Any]:
            return native(eqn, list(arrays), frame.arithmetic.carrier)

        function = with_derivative_of(written, value, forward_mode)
        extra = (frame.next_words(), numbers)
        return _unpacked(function(extra, *_packed(inputs, frame, eqn.invars)), frame)

    return handle


def _whole_program(eqn: Any) -> tuple[Any, Sequence[int]]:
    return own_program(eqn), range(len(eqn.invars))


def _scan(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    program, consts, carry, options = scan(eqn)
    words, around = frame.next_words(), _constants(program, frame)
    arrays = _packed(inputs, frame, eqn.invars)
    fixed = arrays[:consts]

    def body(state: Any, x: Any) -> Any:
        turn, held = state
        inner = frame.program(None if words is None else fold(words, turn))
        values = walk(program.jaxpr, around, _unpacked([*fixed, *held, *x], inner), inner)
        results = _packed(values, inner, program.jaxpr.outvars)
        return (turn + 1, results[:carry]), (results[carry:], inner.records)

    start = (jnp.uint32(0), arrays[consts : consts + carry])
    (_, last), (stacked, records) = lax.scan(body, start, arrays[consts + carry :], **options)
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return _unpacked([*last, *stacked], frame)


def _while(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    test, test_consts, program, program_consts = while_loop(eqn)
    words = frame.next_words()
    test_around, around = _constants(test, frame), _constants(program, frame)
    arrays = _packed(inputs, frame, eqn.invars)
    test_fixed, arrays = arrays[:test_consts], arrays[test_consts:]
    fixed, start = arrays[:program_consts], arrays[program_consts:]

    def turned(turn: Array, parity: int) -> Array | None:
        return None if words is None else fold(words, 2 * turn + parity)

    def goes_on(turn: Array, held: Any) -> Array:
        inner = frame.program(turned(turn, 0), branch=0)
        return walk(test.jaxpr, test_around, _unpacked([*test_fixed, *held], inner), inner)[0].array

    def advance(turn: Array, held: Any) -> tuple[list[Any], dict[Any, Any]]:
        inner = frame.program(turned(turn, 1), branch=1)
        values = walk(program.jaxpr, around, _unpacked([*fixed, *held], inner), inner)
        results = _packed(values, inner, program.jaxpr.outvars)
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
    return _unpacked(last, frame)


def _where(chosen: Array, new: Array, old: Array) -> Array:
    return jnp.where(jnp.expand_dims(chosen, range(chosen.ndim, jnp.ndim(new))), new, old)


def _cond(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    index, *rest = inputs
    words, arrays = frame.next_words(), _packed(rest, frame, eqn.invars[1:])

    def branch_of(number: int, program: ClosedJaxpr) -> Callable[..., Any]:
        def branch(*arrays: Any) -> Any:
            inner = frame.program(words, branch=number)
            values = walk(program.jaxpr, _constants(program, inner), _unpacked(arrays, inner), inner)
            return _packed(values, inner, program.jaxpr.outvars), inner.records

        return branch

    branches = [branch_of(number, program) for number, program in enumerate(eqn.params["branches"])]
    if frame.observing:
        branches = _with_same_records(branches, arrays)
    results, records = lax.switch(index.array, branches, *arrays)
    for operation, record in records.items():
        frame.records[operation] = record.joined(frame.records.get(operation))
    return _unpacked(results, frame)


def _with_same_records(branches: list[Callable[..., Any]], arrays: list[Any]) -> list[Callable[..., Any]]:
    """Branches that all return a record for every operation of any of them."""
    shapes = {operation: record for branch in branches for operation, record in jax.eval_shape(branch, *arrays)[1].items()}

    def completed(branch: Callable[..., Any]) -> Callable[..., Any]:
        def full(*arrays: Any) -> Any:
            results, records = branch(*arrays)
            return results, {operation: records.get(operation, shape.blank()) for operation, shape in shapes.items()}

        return full

    return [completed(branch) for branch in branches]


def _shard_map(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    program, axes, options = mapped(eqn)
    numbers, close = opened(frame.arithmetic)

    def local(words: Array | None, numbers: list[Array], *arrays: Any) -> tuple[Any, ...]:
        if words is not None:
            words = fold(words, lax.axis_index(axes))
        inner = frame.program(words, close(numbers))
        values = walk(program, [], _unpacked(arrays, inner), inner)
        return tuple(_packed(values, inner, program.outvars))

    specs = (PartitionSpec(), PartitionSpec(), *eqn.params["in_specs"])
    function = jax.shard_map(local, in_specs=specs, out_specs=tuple(eqn.params["out_specs"]), **options)
    return _unpacked(function(frame.next_words(), numbers, *_packed(inputs, frame, eqn.invars)), frame)


def _reduce(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A reduction by a function of the user's: one application after the other, in row-major order from the initial value."""
    program, packed = combiner(eqn), _packed(inputs, frame, eqn.invars)
    assert program is not None
    half, dimensions = len(packed) // 2, sorted(eqn.params["dimensions"])
    shape = eqn.outvars[0].aval.shape
    lanes = math.prod(shape)
    words, around = frame.next_words(), _constants(program, frame)

    def flat(x: Any) -> Array:
        return jnp.moveaxis(jnp.asarray(x), dimensions, range(len(dimensions))).reshape(-1, lanes)

    def combine(words: Array | None, left: Any, right: Any) -> Any:
        inner = frame.program(words)
        results = walk(program.jaxpr, around, _unpacked([*left, *right], inner), inner)
        return _packed(results, inner, program.jaxpr.outvars), inner.records

    def body(state: Any, terms: Any) -> Any:
        turn, held = state
        keys = None if words is None else key_rows(fold(words, turn), 0, lanes)  # each entry of the result draws its own bits
        results, records = jax.vmap(combine)(keys, held, terms)
        return (turn + 1, results), {operation: record.over_turns() for operation, record in records.items()}

    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes,)), packed[half:])
    (_, last), records = lax.scan(body, (jnp.uint32(0), start), jax.tree.map(flat, packed[:half]))
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return _unpacked(jax.tree.map(lambda x: x.reshape(shape), last), frame)


def _scatter_apply(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A function of the user's, applied in place to the entries at some indices."""
    program = combiner(eqn)
    assert program is not None
    packed, words, around = _packed(inputs, frame, eqn.invars), frame.next_words(), _constants(program, frame)
    operand, indices = packed[0], inputs[1].array
    nothing = raw(np.zeros((), dtype_of(eqn.invars[0])), dtype_of(eqn.invars[0]), frame)  # the function is of one argument

    def alone(words: Array | None, entry: Any) -> Any:
        inner = frame.program(words)
        results = walk(program.jaxpr, around, [*_unpacked([entry], inner), nothing], inner)
        return _packed(results, inner, program.jaxpr.outvars)[0], inner.records

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
    return _unpacked([changed], frame)


_STRUCTURE: dict[str, Callable[..., list[Held]]] = {
    "jit": _inline,
    "call": _inline,
    "closed_call": _inline,
    "core_call": _inline,
    "eval_jaxpr": _inline,
    "composite": _inline,
    "remat2": _remat,
    "custom_jvp_call": _own_derivative(True, _whole_program),
    "custom_vjp_call": _own_derivative(False, _whole_program),
    "custom_linear_solve": _own_derivative(True, solve),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "reduce": _reduce,
    **REFERENCES,
}
