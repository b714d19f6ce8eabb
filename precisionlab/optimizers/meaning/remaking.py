"""An update made once more, from what the optimizer remembers after it.

Who looks at one update in ten needs it in one step of ten. Handed to the branch that looks, it would have to be stored in all
of them. Made again in the branch from what went into it, it would keep the old moments alive, which are overwritten in place.
The new ones are there in every step: Adam's update is a quotient of them.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from precisionlab._typing import PyTree

__all__ = ["remade"]


def remade(update: Callable[..., tuple[Any, Any]], arguments: tuple[Any, ...], after: Any) -> PyTree[Any]:
    """The updates of `update(*arguments)`, of whose operations only those are made that do not lead to its new state.

    Args:
        update: returns the updates and the new state; traceable.
        arguments: of it, arrays in trees.
        after: the new state that it returned.

    Example:
        >>> import jax.numpy as jnp
        >>> def update(gradient, trace):
        ...     trace = 0.5 * trace + gradient
        ...     return -0.1 * trace, trace
        >>> float(remade(update, (jnp.float32(jnp.nan), jnp.float32(jnp.nan)), jnp.float32(2.0)))
        -0.20000000298023224
    """
    closed, shapes = jax.make_jaxpr(update, return_shape=True)(*arguments)
    program, count = closed.jaxpr, len(jax.tree.leaves(shapes[0]))
    given = {*program.invars, *program.constvars}
    pairs = zip(program.outvars[count:], jax.tree.leaves(after), strict=True)
    known = {variable: leaf for variable, leaf in pairs if not isinstance(variable, Literal) and variable not in given}
    wanted = _variables(program.outvars[:count])
    operations = []
    for operation in reversed(program.eqns):
        if any(variable in wanted and variable not in known for variable in operation.outvars):
            operations.append(operation)
            wanted |= _variables(operation.invars)
    short = program.replace(invars=[*program.invars, *known], outvars=program.outvars[:count], eqns=operations[::-1])
    made = jaxpr_as_fun(ClosedJaxpr(short, closed.consts))(*jax.tree.leaves(arguments), *known.values())
    return jax.tree.unflatten(jax.tree.structure(shapes[0]), made)


def _variables(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
