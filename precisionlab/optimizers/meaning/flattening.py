"""A program as one list of operations: no program is called in it, and nothing is computed twice."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from precisionlab.arithmetic.programs.equations import has_programs, own_program

__all__ = ["BARRIER", "Constant", "FlatProgram", "Operation", "computed", "flattened", "shape_of"]

BARRIER = "optimization_barrier"

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"})
"""Calls of programs, in whose place the programs can stand."""


class Constant(NamedTuple):
    """A literal operand, compared by its bits."""

    dtype: Any
    bits: Any
    shape: tuple[int, ...]

    @property
    def value(self) -> Any:
        """As an array, or a number."""
        return np.frombuffer(self.bits, self.dtype).reshape(self.shape)[()]


class Operation(NamedTuple):
    """An operation: operands are constants or numbers of values, results numbers of values."""

    eqn: Any
    operands: tuple[Any, ...]
    results: tuple[int, ...]


class FlatProgram(NamedTuple):
    """A program whose values are numbered in the order in which they are made.

    Attributes:
        operations: in order.
        inputs: the values that it is given.
        consts: the arrays that it closes over, by value.
        results: its results: values or constants.
        types: the abstract value of each.
        traced: the program as it was traced.
    """

    operations: list[Operation]
    inputs: list[int]
    consts: dict[int, Any]
    results: list[Any]
    types: list[Any]
    traced: Any


def flattened(closed: Any) -> FlatProgram:
    """The flat program of a traced one; equal operations on equal operands are one."""
    flat = FlatProgram([], [], {}, [], [], closed.jaxpr)
    known: dict[Any, tuple[int, ...]] = {}

    def named(variables: Sequence[Any]) -> tuple[int, ...]:
        first = len(flat.types)
        flat.types.extend(variable.aval for variable in variables)
        return tuple(range(first, len(flat.types)))

    def operated(eqn: Any, operands: tuple[Any, ...]) -> tuple[int, ...]:
        if eqn.primitive.name == BARRIER:  # of several values, one at a time
            results = named(eqn.outvars)
            flat.operations.extend(Operation(eqn, (one,), (other,)) for one, other in zip(operands, results, strict=True))
            return results
        key = _key(eqn, operands)
        if key is not None and key in known:
            return known[key]
        results = named(eqn.outvars)
        flat.operations.append(Operation(eqn, operands, results))
        if key is not None:
            known[key] = results
        return results

    def walk(program: Any, operands: Sequence[Any]) -> list[Any]:
        jaxpr = program.jaxpr
        held = named(jaxpr.constvars)
        flat.consts.update(zip(held, program.consts, strict=True))
        names = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*held, *operands), strict=True))

        def read(atom: Any) -> Any:
            return _constant(atom) if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            given = tuple(map(read, eqn.invars))
            inner = own_program(eqn) if eqn.primitive.name in _CALLS else None
            names |= zip(eqn.outvars, operated(eqn, given) if inner is None else walk(inner, given), strict=True)
        return list(map(read, jaxpr.outvars))

    flat.inputs.extend(named(closed.jaxpr.invars))
    flat.results.extend(walk(closed, flat.inputs))
    return flat


def _constant(literal: Any) -> Constant:
    array = np.asarray(literal.val, literal.aval.dtype)
    return Constant(array.dtype, array.tobytes(), array.shape)


def _key(eqn: Any, operands: tuple[Any, ...]) -> Any:
    """What equal operations have in common; None where that is not known."""
    key = eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda item: item[0])), operands
    try:
        hash(key)
    except TypeError:
        return None
    return None if eqn.effects else key


def shape_of(operand: Any, flat: FlatProgram) -> Any:
    """The shape of a value or constant; None for what has none, such as a token."""
    return getattr(flat.types[operand], "shape", None) if isinstance(operand, int) else operand.shape


def computed(flat: FlatProgram, arrays: Mapping[int, Any], wanted: Sequence[int]) -> dict[int, Any]:
    """Values of a flat program, by the operations that lead to them.

    Args:
        flat: the program.
        arrays: the values that are at hand, as arrays.
        wanted: the numbers of those to be made.
    """
    values = {place: arrays[place] for place in wanted if place in arrays}
    needed = {place for place in wanted if place not in values}
    operations = []
    for operation in reversed(flat.operations):
        if needed.isdisjoint(operation.results):
            continue
        operations.append(operation)
        for operand in operation.operands:
            if isinstance(operand, int) and operand in arrays:
                values[operand] = arrays[operand]
            elif isinstance(operand, int):
                needed.add(operand)
    for operation in reversed(operations):
        given = [values[operand] if isinstance(operand, int) else operand.value for operand in operation.operands]
        values |= zip(operation.results, _evaluated(operation.eqn, given, flat.traced), strict=True)
    return values


def _evaluated(eqn: Any, given: list[Any], traced: Any) -> Sequence[Any]:
    """The results of one operation."""
    if eqn.primitive.name == BARRIER:
        return [jax.lax.optimization_barrier(given[0])]
    if not has_programs(eqn):
        made = eqn.primitive.bind(*given, **eqn.params)
        return made if eqn.primitive.multiple_results else [made]
    own = {atom: value for atom, value in zip(eqn.invars, given, strict=True) if not isinstance(atom, Literal)}
    alone = traced.replace(constvars=[], invars=list(own), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*own.values())
