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
from jax.sharding import PartitionSpec

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import carried, dtype_of, is_float, native
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Frame, Held, opened
from precisionlab.arithmetic.operations import entered
from precisionlab.primitives import SAMPLERS
from precisionlab.randomness import fold, key_rows

__all__ = ["finished", "is_sampler", "raw", "scopes_of", "walk"]


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
            handle = _STRUCTURE.get(eqn.primitive.name)
            inputs = [read(var) for var in eqn.invars]
            results = inner.operate(eqn, inputs, inner) if handle is None or is_sampler(eqn) else handle(eqn, inputs, inner)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def scopes_of(eqn: Any) -> tuple[str, ...]:
    """The `jax.named_scope`s around an equation, outermost first, without what JAX's transformations call themselves."""
    names = [part.name for part in eqn.source_info.name_stack.stack if type(part).__name__ == "Scope"]
    path = tuple(name for part in names for name in part.split("/") if name and name != "rematted_computation")
    # Recomputation in a backward pass names its scopes twice: transpose(jvp(norm))/jvp(norm).
    half = len(path) // 2
    return path[:half] if half and path[:half] == path[half:] and _differentiated(eqn) else path


def _differentiated(eqn: Any) -> bool:
    return eqn.primitive.name == "remat2" and eqn.params["differentiated"]


def is_sampler(eqn: Any) -> bool:
    """Whether an equation is a draw of `jax.random`: one operation, whose steps are not rounded."""
    if eqn.primitive.name != "jit" or eqn.params["name"] not in SAMPLERS or not eqn.invars:
        return False
    first: Any = eqn.invars[0].aval
    return jnp.issubdtype(first.dtype, jax.dtypes.prng_key) or (first.dtype == jnp.uint32 and first.shape == (2,))


def raw(value: Any, dtype: Any, frame: Frame) -> Held:
    """A number that the program was written with, in its carrier, not rounded yet."""
    if not is_float(dtype):
        array = value if isinstance(value, jax.Array) else np.asarray(value, dtype)
        return Held(array, UNKNOWN, array)
    exact = carried(value, dtype, jnp.float64) if frame.observing else None
    return Held(carried(value, dtype, frame.arithmetic.carrier), RAW, exact)


def finished(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Held]:
    """Results of a function, rounded where they are numbers that it was written with."""
    return [value._replace(array=entered(value, "", dtype_of(var), frame)) for value, var in zip(values, vars_, strict=True)]


def _packed(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Any]:
    """Values as arrays alone, to pass through JAX; what was raw is rounded where it enters."""
    arrays = [entered(value, "", var.aval.dtype, frame) for value, var in zip(values, vars_, strict=True)]
    if frame.observing:
        return [(array, value.exact) for array, value in zip(arrays, values, strict=True)]
    return arrays


def _unpacked(arrays: Sequence[Any], frame: Frame) -> list[Held]:
    if frame.observing:
        return [Held(array, UNKNOWN, exact) for array, exact in arrays]
    return [Held(array, UNKNOWN) for array in arrays]


def _constants(closed: ClosedJaxpr, frame: Frame) -> list[Held]:
    return [raw(const, var.aval.dtype, frame) for const, var in zip(closed.consts, closed.jaxpr.constvars, strict=True)]


def _closed(program: Any) -> ClosedJaxpr:
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _inline(name: str) -> Callable[..., list[Held]]:
    def handle(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
        program = _closed(eqn.params[name])
        return walk(program.jaxpr, _constants(program, frame), inputs, frame)

    return handle


def _remat(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    if frame.observing:
        return _inline("jaxpr")(eqn, inputs, frame)
    program = _closed(eqn.params["jaxpr"])

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

        if forward_mode:
            function = jax.custom_jvp(value)

            def derivative(primals: Any, tangents: Any) -> Any:
                _, rates = jax.jvp(written, primals[1:], tangents[1:])
                return function(*primals), rates

            function.defjvp(derivative)
        else:
            function = jax.custom_vjp(value)

            def pulled(arrays: Any, cotangents: Any) -> Any:
                return (None, *jax.vjp(written, *arrays)[1](cotangents))

            function.defvjp(lambda extra, *arrays: (value(extra, *arrays), arrays), pulled)
        extra = (frame.next_words(), numbers)
        return _unpacked(function(extra, *_packed(inputs, frame, eqn.invars)), frame)

    return handle


def _solve_program(eqn: Any) -> tuple[Any, Sequence[int]]:
    """The solver's arguments: its own constants, and the right-hand side, which follows those of the transposed solver."""
    lengths = eqn.params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    after = before + lengths.solve
    return eqn.params["jaxprs"].solve, [*range(before, after), *range(after + lengths.transpose_solve, len(eqn.invars))]


def _whole_program(eqn: Any) -> tuple[Any, Sequence[int]]:
    return eqn.params["call_jaxpr"], range(len(eqn.invars))


def _scan(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    params = eqn.params
    program, consts, carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    words, around = frame.next_words(), _constants(params["jaxpr"], frame)
    arrays = _packed(inputs, frame, eqn.invars)
    fixed = arrays[:consts]

    def body(state: Any, x: Any) -> Any:
        turn, held = state
        inner = frame.program(None if words is None else fold(words, turn))
        values = walk(program.jaxpr, around, _unpacked([*fixed, *held, *x], inner), inner)
        results = _packed(values, inner, program.jaxpr.outvars)
        return (turn + 1, results[:carry]), (results[carry:], inner.records)

    start = (jnp.uint32(0), arrays[consts : consts + carry])
    options = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
    (_, last), (stacked, records) = lax.scan(body, start, arrays[consts + carry :], **options)
    for operation, record in records.items():
        frame.records[operation] = record.over_turns().joined(frame.records.get(operation))
    return _unpacked([*last, *stacked], frame)


def _while(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    params = eqn.params
    test, program = params["cond_jaxpr"], params["body_jaxpr"]
    words = frame.next_words()
    test_around, around = _constants(test, frame), _constants(program, frame)
    arrays = _packed(inputs, frame, eqn.invars)
    test_fixed, arrays = arrays[: params["cond_nconsts"]], arrays[params["cond_nconsts"] :]
    fixed, start = arrays[: params["body_nconsts"]], arrays[params["body_nconsts"] :]

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
    params = eqn.params
    numbers, close = opened(frame.arithmetic)
    axes = tuple(sorted(params["manual_axes"]))

    def local(words: Array | None, numbers: list[Array], *arrays: Any) -> tuple[Any, ...]:
        if words is not None:
            words = fold(words, lax.axis_index(axes))
        inner = frame.program(words, close(numbers))
        values = walk(params["jaxpr"], [], _unpacked(arrays, inner), inner)
        return tuple(_packed(values, inner, params["jaxpr"].outvars))

    specs = (PartitionSpec(), PartitionSpec(), *params["in_specs"])
    mapped = jax.shard_map(
        local,
        mesh=params["mesh"],
        in_specs=specs,
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params["manual_axes"]),
        check_vma=params["check_vma"],
    )
    return _unpacked(mapped(frame.next_words(), numbers, *_packed(inputs, frame, eqn.invars)), frame)


def _reduce(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A reduction by a function of the user's: one application after the other, in row-major order from the initial value."""
    program, packed = eqn.params["jaxpr"], _packed(inputs, frame, eqn.invars)
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


_STRUCTURE: dict[str, Callable[..., list[Held]]] = {
    "jit": _inline("jaxpr"),
    "call": _inline("call_jaxpr"),
    "closed_call": _inline("call_jaxpr"),
    "core_call": _inline("call_jaxpr"),
    "remat2": _remat,
    "custom_jvp_call": _own_derivative(True, _whole_program),
    "custom_vjp_call": _own_derivative(False, _whole_program),
    "custom_linear_solve": _own_derivative(True, _solve_program),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "composite": _inline("jaxpr"),
    "reduce": _reduce,
}
