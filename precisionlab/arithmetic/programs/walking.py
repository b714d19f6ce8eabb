"""Walking a program: one equation at a time, and the programs within it.

A traced function is a list of equations over values. Most equations are one operation; what to do with those is the business of
`frame.operate`. The others hold programs of their own (a jitted function, the body of a scan, the branches of a cond, a
function with its own derivative), and are made again around a walk through those.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import Jaxpr, Literal
from jax.interpreters import ad
from jax.sharding import PartitionSpec

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import dtype_of, native
from precisionlab.arithmetic.expansions.table import OWN_DERIVATIVE, expansion_of, program_within
from precisionlab.arithmetic.frames import Arithmetic, Frame, Held, opened
from precisionlab.arithmetic.primitives import EXACT, ROUNDED
from precisionlab.arithmetic.programs.combining import applied, reduced
from precisionlab.arithmetic.programs.derivatives import with_derivative_of
from precisionlab.arithmetic.programs.equations import (
    closed,
    combiner,
    has_programs,
    is_sampler,
    made_of,
    mapped,
    moves_only,
    own_program,
    scopes_of,
    solve,
    touches_floats,
)
from precisionlab.arithmetic.programs.loops import branched, repeated, scanned
from precisionlab.arithmetic.programs.passing import constants, packed, raw, unpacked
from precisionlab.arithmetic.programs.references import REFERENCES
from precisionlab.arithmetic.programs.sharing import shared
from precisionlab.arithmetic.rules import is_named
from precisionlab.numerics.randomness import fold

__all__ = ["handler_of", "walk"]


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
        return partial(applied, walk)
    if name in EXACT | ROUNDED or is_sampler(eqn) or is_named(arithmetic.formats, name):
        return None
    if name in _STRUCTURE:
        return _STRUCTURE[name]
    if not (touches_floats(eqn) or has_programs(eqn)) or made_of(eqn) is None or moves_only(eqn):
        return None
    return _described


def _inline(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    program = own_program(eqn)
    assert program is not None, f"{eqn.primitive.name} holds no program with its own arguments and results"
    results = None if frame.observing else shared(walk, program, inputs, frame)
    return walk(program.jaxpr, constants(program, frame), inputs, frame) if results is None else results


def _expanded(function: Callable[..., Any], eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """The program that an equation stands for."""
    program = program_within(eqn, function)
    if eqn.primitive.name in OWN_DERIVATIVE:
        return _own_derivative(True, lambda eqn: (program, range(len(eqn.invars))))(eqn, inputs, frame)
    return walk(program.jaxpr, constants(program, frame), inputs, frame)


def _described(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """A primitive that nobody listed, as the program that JAX says it is; its derivative, taken from outside, stays its own."""
    program = made_of(eqn)
    assert program is not None
    if own_program(eqn) is None and eqn.primitive in ad.primitive_jvps:
        return _own_derivative(True, lambda _: (program, range(len(eqn.invars))))(eqn, inputs, frame)
    return walk(program.jaxpr, constants(program, frame), inputs, frame)


def _remat(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    if frame.observing:
        return _inline(eqn, inputs, frame)
    program = closed(eqn.params["jaxpr"])

    def recomputed(words: Array | None, arrays: list[Any]) -> list[Any]:
        inner = frame.program(words)
        return packed(walk(program.jaxpr, [], unpacked(arrays, inner), inner), inner, program.jaxpr.outvars)

    wrapped = jax.checkpoint(recomputed, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return unpacked(wrapped(frame.next_words(), packed(inputs, frame, eqn.invars)), frame)


def _own_derivative(forward_mode: bool, program_of: Callable[[Any], tuple[Any, Sequence[int]]]) -> Callable[..., list[Held]]:
    """A function that brings its own derivative: its value is simulated; its derivative, taken from outside, stays its own."""

    def handle(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
        program, taken = program_of(eqn)
        if frame.observing:
            return walk(program.jaxpr, constants(program, frame), [inputs[place] for place in taken], frame)
        numbers, close = opened(frame.arithmetic)

        def value(extra: Any, *arrays: Any) -> list[Any]:
            inner = frame.program(extra[0], close(extra[1]))
            values = unpacked([arrays[place] for place in taken], inner)
            results = walk(program.jaxpr, constants(program, inner), values, inner)
            return packed(results, inner, program.jaxpr.outvars)

        def written(*arrays: Any) -> list[Any]:
            return native(eqn, list(arrays), frame.arithmetic.carrier)

        function = with_derivative_of(written, value, forward_mode)
        extra = (frame.next_words(), numbers)
        return unpacked(function(extra, *packed(inputs, frame, eqn.invars)), frame)

    return handle


def _whole_program(eqn: Any) -> tuple[Any, Sequence[int]]:
    return own_program(eqn), range(len(eqn.invars))


def _shard_map(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    program, axes, options = mapped(eqn)
    numbers, close = opened(frame.arithmetic)

    def local(words: Array | None, numbers: list[Array], *arrays: Any) -> tuple[Any, ...]:
        if words is not None:
            words = fold(words, lax.axis_index(axes))
        inner = frame.program(words, close(numbers))
        values = walk(program, [], unpacked(arrays, inner), inner)
        return tuple(packed(values, inner, program.outvars))

    specs = (PartitionSpec(), PartitionSpec(), *eqn.params["in_specs"])
    function = jax.shard_map(local, in_specs=specs, out_specs=tuple(eqn.params["out_specs"]), **options)
    return unpacked(function(frame.next_words(), numbers, *packed(inputs, frame, eqn.invars)), frame)


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
    "scan": partial(scanned, walk),
    "while": partial(repeated, walk),
    "cond": partial(branched, walk),
    "shard_map": _shard_map,
    "reduce": partial(reduced, walk),
    **REFERENCES,
}
