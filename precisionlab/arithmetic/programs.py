"""A function as a program: its list of operations, apart from what is not numbers in its arguments and results.

What cannot be simulated is found here, before anything runs.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.carrying import as_typed, dtype_of, is_float
from precisionlab.arithmetic.frames import UNKNOWN, Arithmetic, Frame, Held
from precisionlab.arithmetic.operations import rounded_argument
from precisionlab.arithmetic.walking import finished, is_sampler, raw, scopes_of, walk
from precisionlab.formats import Format
from precisionlab.primitives import EXACT, ROUNDED, STRUCTURAL
from precisionlab.rules import Rules, scope_matches

__all__ = ["Program", "ScopeWarning", "equations", "program_of"]

_ARRAYS = (jax.Array, np.ndarray, np.generic)


class ScopeWarning(UserWarning):
    """A rule names a scope that the function does not have."""


@dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
        jaxpr: its operations.
        consts: the arrays it closes over.
        arrays: the arrays among its arguments.
        results: the leaves of its result, those that are arrays to be filled in.
        moving: which of them are arrays.
        structure: the tree that they make.
    """

    jaxpr: Jaxpr
    consts: list[Any]
    arrays: list[Any]
    results: list[Any]
    moving: list[bool]
    structure: Any

    def run(self, frame: Frame, arrays: Sequence[Any]) -> list[Held]:
        """The results of a walk, from arrays in the place of the arguments."""
        consts = [raw(const, dtype_of(var), frame) for const, var in zip(self.consts, self.jaxpr.constvars, strict=True)]
        values = [_argument(array, var, frame) for array, var in zip(arrays, self.jaxpr.invars, strict=True)]
        return finished(walk(self.jaxpr, consts, values, frame), frame, self.jaxpr.outvars)

    def finish(self, values: Sequence[Held]) -> Any:
        """The results of a walk in the dtypes and the structure of the function's own."""
        arrays = iter(
            as_typed(jnp.asarray(value.array), dtype_of(var)) for value, var in zip(values, self.jaxpr.outvars, strict=True)
        )
        filled = [next(arrays) if moves else leaf for leaf, moves in zip(self.results, self.moving, strict=True)]
        return jax.tree.unflatten(self.structure, filled)


def _argument(array: Any, var: Any, frame: Frame) -> Held:
    dtype = dtype_of(var)
    held = raw(array if isinstance(array, jax.Array) else jnp.asarray(array, dtype), dtype, frame)
    if not is_float(dtype):
        return held
    rule = frame.arithmetic.format_of("", ())
    return held._replace(array=rounded_argument(held.array, dtype, frame), grid=rule if isinstance(rule, Format) else UNKNOWN)


def program_of(where: str, fun: Callable[..., Any], args: Any, kwargs: Any, arithmetic: Arithmetic) -> Program:
    """Trace a function, and see whether the rules can be applied to it.

    Raises:
        NotImplementedError: if one of its primitives cannot be simulated.

    Warns:
        ScopeWarning: if rules name scopes that it does not have.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]
    results: list[Any] = []
    structures: list[Any] = []

    def flat(*arrays: Any) -> list[Any]:
        filled = list(leaves)
        for index, array in zip(places, arrays, strict=True):
            filled[index] = array
        args, kwargs = jax.tree.unflatten(tree, filled)
        returned, structure = jax.tree.flatten(fun(*args, **kwargs))
        results[:], structures[:] = returned, [structure]
        return [leaf for leaf in returned if isinstance(leaf, _ARRAYS)]

    arrays = [leaves[index] for index in places]
    closed = jax.make_jaxpr(flat)(*arrays)
    moving = [isinstance(leaf, _ARRAYS) for leaf in results]
    still = [None if moves else leaf for leaf, moves in zip(results, moving, strict=True)]
    program = Program(closed.jaxpr, closed.consts, arrays, still, moving, structures[0])
    found = list(equations(program.jaxpr))
    for eqn, path in found:
        if not _is_structural(eqn):
            _refuse_unknown(eqn, path, arithmetic, where)
    _warn_of_unknown_scopes(arithmetic, list(dict.fromkeys(path for _, path in found)), where)
    return program


def _warn_of_unknown_scopes(arithmetic: Arithmetic, paths: list[tuple[str, ...]], where: str) -> None:
    wanted = {pattern for rules in (arithmetic.formats, arithmetic.modes) for pattern in _patterns(rules)}
    beginnings = [path[: depth + 1] for path in paths for depth in range(len(path))]
    for pattern in sorted(wanted):
        if any(scope_matches(pattern, path) for path in beginnings):
            continue
        names = sorted({"/".join(path) for path in paths if path})
        shown = names if len(names) <= 20 else [*names[:20], f"and {len(names) - 20} more"]
        message = f'a rule is for the scope "{pattern}", which the function does not have; {allowed_names(pattern, shown)}.'
        warnings.warn(f"{where}: {message}", ScopeWarning, stacklevel=4)


def _patterns(rules: Any) -> Iterator[str]:
    if isinstance(rules, Rules):
        yield from rules.scopes
        for rule in (rules.default, *rules.primitives.values(), *rules.scopes.values()):
            yield from _patterns(rule)


def equations(jaxpr: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every equation of a program and of the programs within it, with the scopes around it."""
    for eqn in jaxpr.eqns:
        inside = path + scopes_of(eqn)
        yield eqn, inside
        if _is_structural(eqn):
            for program in jaxprs_in_params(eqn.params):
                yield from equations(program, inside)


def _is_structural(eqn: Any) -> bool:
    return eqn.primitive.name in STRUCTURAL and not is_sampler(eqn)


def _refuse_unknown(eqn: Any, path: tuple[str, ...], arithmetic: Arithmetic, where: str) -> None:
    name = eqn.primitive.name
    dtypes = [var.aval.dtype for var in (*eqn.invars, *eqn.outvars) if hasattr(var.aval, "dtype")]
    at = f' in scope "{"/".join(path)}"' if path else ""
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        raise NotImplementedError(
            f"{where}: the primitive {name}{at} works on complex numbers, which have no format here; write the function in "
            f"real and imaginary parts."
        )
    if name in EXACT | ROUNDED or is_sampler(eqn) or not any(map(is_float, dtypes)) or _names(arithmetic.formats, name):
        return
    raise NotImplementedError(
        f"{where}: the primitive {name}{at} does many floating-point operations at once, and cannot be simulated by rounding "
        f'each; to round its result alone, name it: Rules(fmt, primitives={{"{name}": precisionlab.FLOAT32}}).'
    )


def _names(rules: Any, name: str) -> bool:
    return isinstance(rules, Rules) and (
        name in rules.primitives or any(_names(rule, name) for rule in (rules.default, *rules.scopes.values()))
    )
