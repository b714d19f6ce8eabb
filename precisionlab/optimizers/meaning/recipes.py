"""How each entry of an update follows from what is remembered: the part of an optimizer's program that works entry by entry.

Who looks at an update needs it, the weights and what was stored side by side, a block at a time. Handed over as whole arrays
they would have to be stored in every step. But Adam's update is a quotient of moments that are there anyway: from blocks of
those its last few operations make it again, whatever the shape of the leaf, and the same few for all leaves of one kind.

A *recipe* is these operations for one leaf, with the arrays they begin from. What an optimizer does in another way (products
of matrices, sums, draws) is made before, as whole arrays, and is one of these.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from precisionlab._typing import Array, PyTree
from precisionlab.arithmetic.programs.equations import has_programs, own_program

__all__ = ["Recipe", "recipes"]

# fmt: off
_BY_ENTRY = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bitcast_convert_type", "cbrt",
    "ceil", "clamp", "clz", "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "eq_to", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "le_to", "log", "log1p", "logistic",
    "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "population_count", "pow",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "straight_through", "sub", "tan", "tanh", "xor",
})
# fmt: on
"""Operations whose results at an entry follow from their operands at that entry, whatever the shape."""

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"})
"""Calls of programs, in whose place the programs can stand."""

_SPREAD = "broadcast_in_dim"
_COUNTED = "iota"
_BARRIER = "optimization_barrier"


class _Operation(NamedTuple):
    """An operation of the flat program: operands are literals or numbers of values, results numbers of values."""

    eqn: Any
    operands: tuple[Any, ...]
    results: tuple[int, ...]


class _Flat(NamedTuple):
    """A program in which no program is called, and nothing is computed twice."""

    operations: list[_Operation]
    arrays: dict[int, Any]
    results: list[Any]
    types: dict[int, Any]


class Recipe(NamedTuple):
    """A row of arrays of one shape, as entry-by-entry functions of arrays at hand.

    Attributes:
        shape: of the arrays.
        sources: arrays of that shape.
        scalars: single numbers.
        kind: all that recipes have in common that differ in shape and arrays only; hashable.
        steps: operations in order: a primitive, its parameters, and where its operands are among sources, scalars and results
            so far.
        outputs: where the leaves of the row are, as operands are.
        structure: of the row.
    """

    shape: tuple[int, ...]
    sources: list[Any]
    scalars: list[Any]
    kind: Any
    steps: list[Any]
    outputs: list[Any]
    structure: Any

    def made(self, sources: Sequence[Array], scalars: Sequence[Array], counted: Callable[[int], Array]) -> PyTree[Array]:
        """The row, of blocks.

        Args:
            sources: blocks of the sources, all of one shape.
            scalars: the scalars, or arrays that broadcast with the blocks.
            counted: for an axis of the leaf, where along it each entry of the block lies.
        """
        shape = sources[0].shape
        values = [*sources, *scalars]

        def read(operand: Any) -> Any:
            return values[operand] if isinstance(operand, int) else operand.value

        for primitive, params, operands in self.steps:
            given = list(map(read, operands))
            if primitive.name == _COUNTED:
                values.append(counted(params["dimension"]).astype(params["dtype"]))
            elif primitive.name == _SPREAD:
                values.append(jnp.broadcast_to(given[0], shape))
            elif primitive.name == _BARRIER:
                values.append(jax.lax.optimization_barrier(given[0]))
            else:
                given = [jnp.broadcast_to(each, shape) if jnp.ndim(each) else each for each in given]
                values.append(primitive.bind(*given, **params))
        return jax.tree.unflatten(self.structure, list(map(read, self.outputs)))


class _Constant(NamedTuple):
    """A literal operand, compared by its bits."""

    dtype: Any
    bits: Any
    shape: tuple[int, ...]

    @property
    def value(self) -> Any:
        return np.frombuffer(self.bits, self.dtype).reshape(self.shape)[()]


def recipes(
    fun: Callable[..., tuple[Sequence[PyTree[Array]], Any]], arguments: tuple[Any, ...], after: Any
) -> list[Recipe]:
    """Recipes for rows of arrays.

    Args:
        fun: returns rows, and a tree of which `after` holds the values; traceable. Each row is a tree of arrays, those of the
            shape of its first and single numbers.
        arguments: of it, arrays in trees.
        after: what is known of its second result, and need not be computed.

    Returns:
        A recipe for each row. Where an array can only be made as a whole it is among the sources.
    """
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*arguments)
    flat = _flattened(closed, jax.tree.leaves(arguments))
    count = len(jax.tree.leaves(shapes[0]))
    inputs = set(flat.arrays)
    for place, leaf in zip(flat.results[count:], jax.tree.leaves(after), strict=True):
        if isinstance(place, int) and place not in inputs:
            flat.arrays[place] = leaf
    by_entry = _made_by_entry(flat)
    results = iter(flat.results[:count])
    drafts = []
    for row in shapes[0]:
        leaves, structure = jax.tree.flatten(row)
        drafts.append(_draft(flat, [next(results) for _ in leaves], structure, leaves[0].shape, by_entry))
    wanted = [place for draft in drafts for place in (*draft.sources, *draft.scalars)]
    values = _computed(flat, wanted)
    return [
        draft._replace(sources=[values[place] for place in draft.sources], scalars=[values[place] for place in draft.scalars])
        for draft in drafts
    ]


def _flattened(closed: Any, arguments: Sequence[Any]) -> _Flat:
    flat, known = _Flat([], {}, [], {}), {}
    count = iter(range(1 << 60))

    def named(type_: Any) -> int:
        number = next(count)
        flat.types[number] = type_
        return number

    def given(variables: Sequence[Any], values: Sequence[Any]) -> dict[Any, int]:
        found = {}
        for variable, value in zip(variables, values, strict=True):
            found[variable] = named(variable.aval)
            flat.arrays[found[variable]] = value
        return found

    def walk(jaxpr: Any, names: dict[Any, Any]) -> list[Any]:
        def read(atom: Any) -> Any:
            return _constant(atom.val, atom.aval) if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            operands = tuple(map(read, eqn.invars))
            inner = own_program(eqn) if eqn.primitive.name in _CALLS else None
            if inner is not None:
                held = given(inner.jaxpr.constvars, inner.consts)
                names |= zip(eqn.outvars, walk(inner.jaxpr, held | dict(zip(inner.jaxpr.invars, operands, strict=True))), strict=True)
                continue
            if eqn.primitive.name == _BARRIER:  # of several values, one at a time
                made = [named(variable.aval) for variable in eqn.outvars]
                flat.operations.extend(_Operation(eqn, (one,), (two,)) for one, two in zip(operands, made, strict=True))
                names |= zip(eqn.outvars, made, strict=True)
                continue
            key = _key(eqn, operands)
            results = known.get(key)
            if results is None:
                results = tuple(named(variable.aval) for variable in eqn.outvars)
                flat.operations.append(_Operation(eqn, operands, results))
                if key is not None:
                    known[key] = results
            names |= zip(eqn.outvars, results, strict=True)
        return list(map(read, jaxpr.outvars))

    names = given(closed.jaxpr.constvars, closed.consts) | given(closed.jaxpr.invars, arguments)
    return flat._replace(results=walk(closed.jaxpr, names))


def _constant(value: Any, aval: Any) -> Any:
    array = np.asarray(value, aval.dtype)
    return _Constant(array.dtype, array.tobytes(), array.shape)


def _key(eqn: Any, operands: tuple[Any, ...]) -> Any:
    """What equal operations have in common; None where that is not known."""
    if eqn.effects:
        return None
    key = eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda item: item[0])), operands
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _made_by_entry(flat: _Flat) -> set[int]:
    """The values that are at hand, or follow entry by entry from arrays of their own shape that are, and single numbers."""
    found = set(flat.arrays)
    for operation in flat.operations:
        if not operation.results or any(result in found for result in operation.results):
            continue
        shape = _shape(operation.results[0], flat)
        if shape == () or _follows(operation, shape, flat, found):
            found |= set(operation.results)
    return found


def _follows(operation: _Operation, shape: Any, flat: _Flat, found: set[int]) -> bool:
    name = operation.eqn.primitive.name
    operands = [(_shape(operand, flat), operand) for operand in operation.operands]
    if name == _SPREAD:
        return operands[0][0] == ()
    if name == _COUNTED:
        return not operands
    if name not in _BY_ENTRY or any(_shape(result, flat) != shape for result in operation.results):
        return False
    return all(each == () or (each == shape and operand in found) for each, operand in operands)


def _shape(operand: Any, flat: _Flat) -> Any:
    return getattr(flat.types[operand], "shape", None) if isinstance(operand, int) else operand.shape


def _draft(flat: _Flat, outputs: list[Any], structure: Any, shape: tuple[int, ...], by_entry: set[int]) -> Recipe:
    """A recipe whose sources and scalars are numbers of values."""
    made_by = {result: operation for operation in flat.operations for result in operation.results}
    sources: dict[int, None] = {}
    scalars: dict[int, None] = {}
    operations: dict[int, _Operation] = {}
    waiting = [operand for operand in outputs if isinstance(operand, int)]
    while waiting:
        place = waiting.pop()
        if place in sources or place in scalars or place in operations:
            continue
        if shape != () and _shape(place, flat) == ():
            scalars[place] = None
        elif shape == () or place in flat.arrays or place not in by_entry:
            sources[place] = None
        else:
            operations[place] = made_by[place]
            waiting += [operand for operand in made_by[place].operands if isinstance(operand, int)]
    places = {place: number for number, place in enumerate([*sources, *scalars])}

    def located(operand: Any) -> Any:
        return places[operand] if isinstance(operand, int) else operand

    steps = []
    for place in sorted(operations):  # values are numbered in the order in which they are made
        operation = operations[place]
        steps.append((operation.eqn.primitive, operation.eqn.params, tuple(map(located, operation.operands))))
        places[place] = len(places)
    found = list(map(located, outputs))
    types = [(flat.types[place].dtype, place in scalars) for place in (*sources, *scalars)]
    signs = [(primitive, _signature(primitive, params), operands) for primitive, params, operands in steps]
    kind = structure, *types, *signs, *found
    return Recipe(shape, list(sources), list(scalars), kind, steps, found, structure)


def _signature(primitive: Any, params: dict[str, Any]) -> Any:
    """The parameters of an operation, but for the shape."""
    return tuple((name, repr(value)) for name, value in sorted(params.items()) if primitive.name in _BY_ENTRY or name != "shape")


def _computed(flat: _Flat, wanted: Sequence[int]) -> dict[int, Any]:
    """Values of the flat program, made of the arrays at hand by the operations that lead to them."""
    values: dict[int, Any] = {place: flat.arrays[place] for place in wanted if place in flat.arrays}
    needed = {place for place in wanted if place not in values}
    operations = []
    for operation in reversed(flat.operations):
        if any(result in needed for result in operation.results):
            operations.append(operation)
            for operand in operation.operands:
                if isinstance(operand, int):
                    if operand in flat.arrays:
                        values[operand] = flat.arrays[operand]
                    else:
                        needed.add(operand)
    for operation in reversed(operations):
        given = [values[operand] if isinstance(operand, int) else operand.value for operand in operation.operands]
        values |= zip(operation.results, _evaluated(operation.eqn, given), strict=True)
    return values


def _evaluated(eqn: Any, given: list[Any]) -> Sequence[Any]:
    """The results of one operation."""
    if eqn.primitive.name == _BARRIER:
        return [jax.lax.optimization_barrier(given[0])]
    if not has_programs(eqn):
        made = eqn.primitive.bind(*given, **eqn.params)
        return made if eqn.primitive.multiple_results else [made]
    pairs = [(atom, value) for atom, value in zip(eqn.invars, given, strict=True) if not isinstance(atom, Literal)]
    own = dict(pairs)
    alone = Jaxpr((), list(own), eqn.outvars, [eqn], eqn.effects)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*own.values())
