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

from precisionlab._typing import Array, PyTree
from precisionlab.optimizers.meaning.flattening import BARRIER, FlatProgram, Operation, computed, flattened, shape_of

__all__ = ["Recipe", "Recipes", "recipes"]

# fmt: off
_BY_ENTRY = frozenset({
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bitcast_convert_type", "cbrt",
    "ceil", "clamp", "clz", "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "eq_to", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "le_to", "log", "log1p", "logistic",
    "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "population_count",
    "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "straight_through", "sub", "tan", "tanh",
    "xor",
})
# fmt: on
"""Operations whose results at an entry follow from their operands at that entry, whatever the shape."""

_SPREAD, _COUNTED = "broadcast_in_dim", "iota"


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

    def made(
        self,
        sources: Sequence[Array],
        scalars: Sequence[Array],
        shape: tuple[int, ...],
        counted: Callable[[int], Array],
    ) -> PyTree[Array]:
        """The row, of blocks.

        Args:
            sources: blocks of the sources.
            scalars: the scalars, or arrays that broadcast with the blocks.
            shape: of the blocks.
            counted: for an axis of the leaf, where along it each entry of the block lies.
        """
        values = [*sources, *scalars]

        def read(operand: Any) -> Any:
            return values[operand] if isinstance(operand, int) else operand.value

        for primitive, params, operands in self.steps:
            given = list(map(read, operands))
            if primitive.name == _COUNTED:
                values.append(counted(params["dimension"]).astype(params["dtype"]))
            elif primitive.name == _SPREAD:
                values.append(jnp.broadcast_to(given[0], shape))
            elif primitive.name == BARRIER:
                values.append(jax.lax.optimization_barrier(given[0]))
            else:
                given = [jnp.broadcast_to(each, shape) if jnp.ndim(each) else each for each in given]
                values.append(primitive.bind(*given, **params))
        return jax.tree.unflatten(self.structure, list(map(read, self.outputs)))


class Recipes(NamedTuple):
    """The recipes of some rows, for any arrays of the same shapes.

    Attributes:
        flat: the program that makes the rows.
        drafts: recipes whose sources and scalars are numbers of its values.
        known: for each leaf of what is known afterwards the value that it is, or None.
    """

    flat: FlatProgram
    drafts: list[Recipe]
    known: list[int | None]

    def of(self, arguments: tuple[Any, ...], after: Any) -> list[Recipe]:
        """The recipes for arguments, and what is known after them."""
        arrays = self.flat.consts | dict(zip(self.flat.inputs, jax.tree.leaves(arguments), strict=True))
        for place, leaf in zip(self.known, jax.tree.leaves(after), strict=True):
            if place is not None:
                arrays[place] = leaf
        values = computed(self.flat, arrays, [place for draft in self.drafts for place in (*draft.sources, *draft.scalars)])
        return [
            draft._replace(**{side: [values[place] for place in getattr(draft, side)] for side in ("sources", "scalars")})
            for draft in self.drafts
        ]


def recipes(fun: Callable[..., tuple[Sequence[PyTree[Array]], Any]], arguments: tuple[Any, ...]) -> Recipes:
    """Recipes for rows of arrays. Where an array can only be made as a whole it is among the sources.

    Args:
        fun: returns rows, and a tree of what is known afterwards; traceable. Each row is a tree of arrays, those of the shape
            of its first and single numbers.
        arguments: of it, arrays in trees.

    Example:
        >>> def update(gradient, trace):
        ...     trace = 0.5 * trace + gradient
        ...     return [(-0.1 * trace,)], trace
        >>> nothing, trace = jnp.full(3, jnp.nan), jnp.arange(3.0)
        >>> (recipe,) = recipes(update, (nothing, nothing)).of((nothing, nothing), trace)
        >>> (part,) = recipe.made([trace[1:]], [], (2,), lambda axis: jnp.arange(2))
        >>> part.tolist()
        [-0.10000000149011612, -0.20000000298023224]
    """
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*arguments)
    flat = flattened(closed)
    count = len(jax.tree.leaves(shapes[0]))
    given = {*flat.inputs, *flat.consts}
    known = [place if isinstance(place, int) and place not in given else None for place in flat.results[count:]]
    at_hand = given | {place for place in known if place is not None}
    by_entry = _made_by_entry(flat, at_hand)
    made_by = {result: operation for operation in flat.operations for result in operation.results}
    results = iter(flat.results[:count])
    drafts = []
    for row in shapes[0]:
        leaves, structure = jax.tree.flatten(row)
        outputs = [next(results) for _ in leaves]
        drafts.append(_draft(flat, outputs, structure, leaves[0].shape, by_entry, at_hand, made_by))
    return Recipes(flat, drafts, known)


def _made_by_entry(flat: FlatProgram, at_hand: set[int]) -> set[int]:
    """The values that are at hand, or follow entry by entry from arrays of their own shape that are, and single numbers."""
    found = set(at_hand)
    for operation in flat.operations:
        if not operation.results or any(result in found for result in operation.results):
            continue
        shape = shape_of(operation.results[0], flat)
        if shape == () or _follows(operation, shape, flat, found):
            found |= set(operation.results)
    return found


def _follows(operation: Operation, shape: Any, flat: FlatProgram, found: set[int]) -> bool:
    name = operation.eqn.primitive.name
    operands = [(shape_of(operand, flat), operand) for operand in operation.operands]
    if name == _SPREAD:
        return operands[0][0] == ()
    if name == _COUNTED:
        return not operands
    if name not in _BY_ENTRY or any(shape_of(result, flat) != shape for result in operation.results):
        return False
    return all(each == () or (each == shape and operand in found) for each, operand in operands)


def _draft(
    flat: FlatProgram,
    outputs: list[Any],
    structure: Any,
    shape: tuple[int, ...],
    by_entry: set[int],
    at_hand: set[int],
    made_by: dict[int, Operation],
) -> Recipe:
    """A recipe whose sources and scalars are numbers of values."""
    sources: dict[int, None] = {}
    scalars: dict[int, None] = {}
    operations: dict[int, Operation] = {}
    waiting = [operand for operand in outputs if isinstance(operand, int)]
    while waiting:
        place = waiting.pop()
        if place in sources or place in scalars or place in operations:
            continue
        if shape != () and shape_of(place, flat) == ():
            scalars[place] = None
        elif shape == () or place in at_hand or place not in by_entry:
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
    return tuple(
        (name, repr(value)) for name, value in sorted(params.items()) if primitive.name in _BY_ENTRY or name != "shape"
    )
