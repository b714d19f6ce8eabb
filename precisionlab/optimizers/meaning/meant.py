"""What an update of the optimizer's state would be, were nothing stored narrow.

A state tells what was stored, not what was meant. The optimizer tells what it means when its own program is made again on wide
values with every narrowing left out: in float32 for state that is stored narrower, in float64 for state in float32. Rounding
constants to the dtype of the parameters is a narrowing too: on wide values 0.999 is not 1. Random numbers are drawn as the
optimizer draws them, in its own dtypes: wider ones would be others, and no rounding of them was lost.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab._typing import Array, PyTree
from precisionlab.arithmetic.frames import Frame, Held
from precisionlab.arithmetic.operations import operate
from precisionlab.arithmetic.programs.equations import is_sampler
from precisionlab.arithmetic.programs.survey import equations, program_of
from precisionlab.arithmetic.rules import Rules
from precisionlab.arithmetic.simulation import arithmetic_of
from precisionlab.numerics.carriers import as_float64
from precisionlab.numerics.formats import FLOAT32, FLOAT64
from precisionlab.numerics.modes import nearest_even
from precisionlab.optimizers.meaning.recipes import Recipe, recipes
from precisionlab.optimizers.meaning.remaking import remade
from precisionlab.optimizers.roundings import Grid, Placed, concealed, reveal, rounds_state, rounds_weights
from precisionlab.optimizers.sums import is_floating
from precisionlab.optimizers.widening import wide

__all__ = ["Kept", "Leaf", "kept_alone", "meant_leaves", "meant_state", "state_leaves"]


class Leaf(NamedTuple):
    """A floating leaf of an optimizer's state.

    Attributes:
        path: its key path.
        grid: it and the `Grid` of a rounding around it; None where none is.
        narrow: whether it is stored narrower than float32, or rounded inside the optimizer.
    """

    path: Any
    grid: Placed | None
    narrow: bool


class Kept(NamedTuple):
    """The factors by which leaves of the state would be multiplied in an update without gradient.

    Attributes:
        meant: in wide arithmetic: the decay of an average, 1 for a sum.
        stored: as it is stored. 1 where `meant` is less: the average forgets nothing.
    """

    meant: Array
    stored: Array


def state_leaves(state: Any) -> list[Leaf | None]:
    """For each leaf of a state, what can stagnate in it.

    None for what is not floating, for what keeps residuals, and for hyperparameters, which are set and not summed.
    """
    found: list[Leaf | None] = []

    def visit(node: Any, path: tuple[Any, ...], grid: Grid | None, start: int) -> None:
        for sub, held in jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: rounds_state(x) or rounds_weights(x)):
            where = path + sub
            if rounds_state(held):
                for name, field in zip(held._fields, held, strict=True):
                    below = (*where, jax.tree_util.GetAttrKey(name))
                    inside = (held.grid, len(below)) if name == "inner" else (grid, start)
                    visit(field, below, *inside)
            elif rounds_weights(held):
                for name, field in zip(held._fields, held, strict=True):
                    if name == "inner":
                        visit(field, (*where, jax.tree_util.GetAttrKey(name)), grid, start)
                    else:
                        found.extend([None] * len(jax.tree.leaves(field)))
            elif is_floating(held) and jax.tree_util.GetAttrKey("hyperparams") not in where:
                name = jax.tree_util.keystr(where[start:], simple=True, separator="/")
                placed = None if grid is None else Placed(grid, name)
                found.append(Leaf(where, placed, grid is not None or held.dtype.itemsize < 4))
            else:
                found.append(None)

    visit(state, (), None, 0)
    return found


def meant_state(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree[Array],
    state: Any,
    params: PyTree[Array],
    extra: dict[str, Any],
    *,
    double: bool = False,
) -> list[Array]:
    """The leaves of the state after an update that rounds nothing.

    Args:
        inner: the optimizer.
        updates: what it was given to turn into updates.
        state: its state.
        params: the parameters.
        extra: further arguments of the update.
        double: in float64 rather than in float32, whether or not 64-bit types are enabled. Constants stay those of the program:
            0.999 is that of float32, as the optimizer multiplies by it.

    Returns:
        The leaves of the new state, floating ones in float32 or float64.
    """
    every = range(len(jax.tree.leaves(state)))
    return meant_leaves(inner, updates, reveal(state), params, extra, every, double=double)


def meant_leaves(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree[Array],
    state: Any,
    params: PyTree[Array],
    extra: dict[str, Any],
    places: Sequence[int],
    *,
    double: bool = False,
) -> list[Array]:
    """Some leaves of the state that `inner.update` leaves, as `meant_state` makes all of them, and only what leads to them.

    Roundings in the state are made as they are; ask them for what they mean by `reveal`.

    Args:
        inner: the optimizer.
        updates: as in `meant_state`, as are state, params, extra and double.
        state: its state.
        params: the parameters.
        extra: further arguments of the update.
        places: the numbers of the leaves among those of the new state.
        double: whether in float64.
    """

    def made(*given: Any) -> Any:
        grads, held, weights, more = given

        def chosen(grads: Any, held: Any, weights: Any) -> Any:
            leaves = jax.tree.leaves(concealed(inner.update(grads, held, weights, **more)[1]))
            return [leaves[place] for place in places], ()

        return remade(chosen, (grads, held, weights), ())

    stored = updates, state, params, extra
    given = wide(stored)
    draws = any(map(_is_key, jax.tree.leaves(stored)))
    if not double and not draws:
        found = made(*given)
        if not any(is_floating(leaf) and leaf.dtype.itemsize < 4 for leaf in found):
            return found
    # On wide values it narrows still, by dtypes of its own (`mu_dtype`), or draws, or is to be made in float64.
    try:
        return _unrounded(made, given, stored if draws else None, double)
    except NotImplementedError:
        # A factorization or the like: its own arithmetic will have to do, on values as wide as they can be.
        with _types(double):
            if double:
                given = jax.tree.map(lambda leaf: as_float64(leaf) if is_floating(leaf) else leaf, given)
            return wide(made(*given))


def _types(double: bool) -> Any:
    return jax.enable_x64(True) if double else nullcontext()


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and (jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and leaf.shape == (2,)))


def _unrounded(fun: Callable[..., Any], args: Sequence[Any], drawing: Sequence[Any] | None, double: bool) -> list[Array]:
    """The leaves of a function's result, made again with every operation in a wide carrier and no result narrowed.

    Args:
        fun: the function.
        args: its arguments, wide.
        drawing: its arguments as they are, if it draws random numbers.
        double: whether the carrier is float64.
    """
    rules, carrier = Rules(FLOAT64 if double else FLOAT32, strict=True), jnp.float64 if double else None
    with _types(double):
        arithmetic = arithmetic_of("track", rules, nearest_even, None, carrier)
    # Traced with the types that the optimizer has: with 64-bit ones it would draw and count in those.
    program = program_of("track", fun, tuple(args), {}, arithmetic)
    drawn: dict[int, Any] = {}
    if drawing is not None:
        stored = program_of("track", fun, tuple(drawing), {}, arithmetic)
        meant, own = ([eqn for eqn, _ in equations(each.jaxpr, arithmetic) if is_sampler(eqn)] for each in (program, stored))
        drawn = {id(one): other for one, other in zip(meant, own, strict=True)}

    def operated(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
        return operate(drawn.get(id(eqn), eqn), inputs, frame)

    with _types(double):
        values = iter(program.run(Frame(arithmetic, operated, words=None), program.arrays))
        return [next(values).array if moves else leaf for leaf, moves in zip(program.results, program.moving, strict=True)]


def kept_alone(inner: optax.GradientTransformationExtraArgs, state: Any, params: PyTree[Array]) -> Kept:
    """What each leaf of a state keeps of itself in an update without gradient, from updates made of zeros and of ones.

    They are made on parameters of one entry each: what an optimizer does to an entry rarely depends on how many there are.

    Args:
        inner: the optimizer.
        state: its first state.
        params: the parameters, of which only the tree, the dtypes and the numbers of axes matter.

    Returns:
        A row of numbers, one for each leaf (a single one if there is none); NaN for what belongs to no parameter, and
        everywhere if the optimizer cannot make an update from these alone.
    """
    leaves = jax.tree.leaves(state)
    unknown = np.full(max(1, len(leaves)), np.nan, np.float32)
    owned = {(path, jnp.shape(leaf)) for path, leaf in _paths(params)}
    places = [
        index
        for index, (place, (path, leaf)) in enumerate(zip(state_leaves(state), _paths(state), strict=True))
        if place is not None and any((path[start:], leaf.shape) in owned for start in range(len(path) + 1))
    ]
    try:
        with jax.ensure_compile_time_eval():
            rows = _responses(inner, state, params, places) if places else []
    except Exception:  # An optimizer may ask for what only a real update has; then nothing is known.
        rows = []
    columns = [unknown.copy() for _ in Kept._fields]
    for column, row in zip(columns, rows, strict=False):
        column[places] = row
    return Kept(*map(jnp.asarray, columns))


def _paths(tree: Any) -> list[Any]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _responses(
    inner: optax.GradientTransformationExtraArgs, state: Any, params: PyTree[Array], places: Sequence[int]
) -> list[list[float]]:
    """How much more leaves of ones than leaves of zeros leave behind: as meant, and as stored."""
    nothing = jax.tree.map(lambda leaf: jnp.zeros((1,) * jnp.ndim(leaf), jnp.result_type(leaf)), params)
    small = inner.init(nothing)
    leaves, structure = jax.tree.flatten(small)
    if structure != jax.tree.structure(state):
        return []

    own = set(places)

    def held(value: float) -> Any:
        # Of NumPy, for which nothing has to be compiled.
        filled = [np.full(leaf.shape, value, leaf.dtype) if index in own else leaf for index, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, filled)

    def meant(state: Any) -> list[Array]:
        return meant_state(inner, nothing, state, nothing, {})

    def stored(state: Any) -> list[Array]:
        return jax.tree.leaves(inner.update(nothing, state, nothing)[1])

    sides = [_numbers_of(made, [held(value) for value in (0.0, 1.0)], places) for made in (meant, stored)]
    return [[one - zero for zero, one in zip(*side, strict=True)] for side in sides]


def _numbers_of(made: Callable[..., list[Array]], states: Sequence[Any], places: Sequence[int]) -> list[list[float]]:
    """Some leaves of what is made of each of some states of single numbers; of those that are made alike only one is."""

    def rows(state: Any) -> tuple[list[tuple[Array]], tuple[()]]:
        leaves = made(state)
        return [(leaves[place],) for place in places], ()

    every = recipes(rows, (states[0],))
    known: dict[Any, float] = {}

    def number(recipe: Recipe) -> float:
        key = recipe.kind, tuple(np.asarray(each).tobytes() for each in (*recipe.sources, *recipe.scalars))
        if key not in known:
            sources, scalars = (list(map(jnp.asarray, side)) for side in (recipe.sources, recipe.scalars))
            (leaf,) = recipe.made(sources, scalars, recipe.shape, lambda _: jnp.zeros(recipe.shape, jnp.int32))
            known[key] = float(np.asarray(leaf).reshape(-1)[0])
        return known[key]

    return [list(map(number, every.of((state,), ()))) for state in states]
