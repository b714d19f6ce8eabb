"""A function as a program: its list of operations, apart from what is not numbers in its arguments and results.

What cannot be simulated operation by operation is found here, before anything runs.
"""

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.tree_util import keystr

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.carrying import as_typed, dtype_of, is_inexact
from precisionlab.arithmetic.entering import rounded_argument
from precisionlab.arithmetic.frames import Arithmetic, Frame, Held
from precisionlab.arithmetic.primitives import EXACT, KNOWN, ROUNDED
from precisionlab.arithmetic.programs.equations import (
    floats_taken,
    is_sampler,
    moves_only,
    programs_within,
    registered,
    scopes_of,
    weakly_typed,
)
from precisionlab.arithmetic.programs.passing import finished, raw
from precisionlab.arithmetic.programs.sharing import repeated_programs
from precisionlab.arithmetic.programs.walking import handler_of, walk
from precisionlab.arithmetic.rules import Rules, argument_matches, is_named, is_strict, named_primitives, scope_matches

__all__ = ["Program", "ScopeWarning", "UnlistedWarning", "equations", "program_of"]

_ARRAYS = (jax.Array, np.ndarray, np.generic)


class ScopeWarning(UserWarning):
    """A rule names a scope, or an argument, that the function does not have."""


class UnlistedWarning(UserWarning):
    """A primitive is not known: only its results are rounded."""


@dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
        jaxpr: its operations.
        consts: the arrays it closes over.
        arrays: the arrays among its arguments.
        paths: where among the arguments they are: a number or a name, and the names within.
        results: the leaves of its result, those that are arrays to be filled in.
        moving: which of them are arrays.
        structure: the tree that they make.
        repeated: the identities of programs within it that are called repeatedly.
    """

    jaxpr: Jaxpr
    consts: list[Any]
    arrays: list[Any]
    paths: list[tuple[str, ...]]
    results: list[Any]
    moving: list[bool]
    structure: Any
    repeated: frozenset[int]

    def run(self, frame: Frame, arrays: Sequence[Any]) -> list[Held]:
        """The results of a walk, from arrays in the place of the arguments."""
        consts = [raw(const, dtype_of(var), frame) for const, var in zip(self.consts, self.jaxpr.constvars, strict=True)]
        given = enumerate(zip(arrays, self.jaxpr.invars, self.paths, strict=True))
        values = [_argument(array, var, path, number, frame) for number, (array, var, path) in given]
        return finished(walk(self.jaxpr, consts, values, frame), frame, self.jaxpr.outvars)

    def finish(self, values: Sequence[Held]) -> Any:
        """The results of a walk in the dtypes and the structure of the function's own."""
        arrays = iter(_returned(value.array, var) for value, var in zip(values, self.jaxpr.outvars, strict=True))
        filled = [next(arrays) if moves else leaf for leaf, moves in zip(self.results, self.moving, strict=True)]
        return jax.tree.unflatten(self.structure, filled)


def _returned(array: Any, var: Any) -> Any:
    """A result in the dtype of the function's own, and weakly typed where that is: what follows promotes as it would."""
    typed = as_typed(jnp.asarray(array), dtype_of(var))
    return weakly_typed(typed) if getattr(var.aval, "weak_type", False) else typed


def _argument(array: Any, var: Any, path: tuple[str, ...], number: int, frame: Frame) -> Held:
    dtype = dtype_of(var)
    with np.errstate(over="ignore"):  # of NumPy's float64, of which what enters is made
        held = raw(array if isinstance(array, jax.Array) else jnp.asarray(array, dtype), dtype, frame)
    if not is_inexact(dtype):
        return held
    entered = rounded_argument(held, array, dtype, path, frame)
    if frame.noticed is not None and entered.array is not held.array:
        frame.noticed(held, entered.array, f"argument {'/'.join(path)}", dtype, (-1, number), frame)
    return entered


def program_of(where: str, fun: Callable[..., Any], args: Any, kwargs: Any, arithmetic: Arithmetic) -> Program:
    """Trace a function, and see whether the rules can be applied to it.

    Raises:
        NotImplementedError: if one of its primitives is not known and the rules are strict.
        ValueError: if rules name a primitive that neither the function nor JAX has.

    Warns:
        ScopeWarning: if rules name scopes that it does not have.
        UnlistedWarning: if one of its primitives is not known, so that only its results are rounded.
    """
    given, tree = jax.tree.flatten_with_path((args, kwargs))
    leaves = [leaf for _, leaf in given]
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]
    paths = [tuple(keystr((key,), simple=True) for key in given[index][0][1:]) for index in places]
    _refuse_dtypes([leaves[index] for index in places], paths, where)
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
    found = list(equations(closed.jaxpr, arithmetic))
    repeated = repeated_programs(eqn for eqn, _ in found)
    program = Program(closed.jaxpr, closed.consts, arrays, paths, still, moving, structures[0], repeated)
    _survey(program, found, arithmetic, where)
    _warn_of_unknown_scopes(arithmetic, list(dict.fromkeys(path for _, path in found)), where)
    _warn_of_unknown_arguments(arithmetic, program.paths, where)
    return program


def _refuse_dtypes(arrays: list[Any], paths: list[tuple[str, ...]], where: str) -> None:
    for array, path in zip(arrays, paths, strict=True):
        if isinstance(array, jax.Array):
            continue
        too_wide = array.dtype.itemsize > {"f": 8, "c": 16}.get(array.dtype.kind, math.inf)
        if array.dtype.kind in "OSUMm" or too_wide:
            raise TypeError(
                f"{where}: the argument {'/'.join(path)} has the dtype {array.dtype}, which JAX does not have; convert numbers "
                f"first, with x.astype(np.float64), and close over what is no number: {where}(lambda x: fun(x, other), fmt)(x)."
            )


def _warn_of_unknown_scopes(arithmetic: Arithmetic, paths: list[tuple[str, ...]], where: str) -> None:
    wanted = {pattern for rules in (arithmetic.formats, arithmetic.modes) for pattern in _patterns(rules)}
    beginnings = [path[: depth + 1] for path in paths for depth in range(len(path))]
    for pattern in sorted(wanted):
        if any(scope_matches(pattern, path) for path in beginnings):
            continue
        names = sorted({"/".join(path) for path in paths if path})
        message = f'a rule is for the scope "{pattern}", which the function does not have; {_some_names(pattern, names)}.'
        warnings.warn(f"{where}: {message}", ScopeWarning, stacklevel=4)


def _warn_of_unknown_arguments(arithmetic: Arithmetic, paths: list[tuple[str, ...]], where: str) -> None:
    tables = [rules.arguments for rules in (arithmetic.formats, arithmetic.modes) if isinstance(rules, Rules)]
    for pattern in sorted({pattern for table in tables for pattern in table}):
        if not any(argument_matches(pattern, path) for path in paths):
            names = ["/".join(path) for path in paths]
            message = f'a rule is for the argument "{pattern}", which the function is not given; {_some_names(pattern, names)}.'
            warnings.warn(f"{where}: {message}", ScopeWarning, stacklevel=4)


def _some_names(given: str, names: list[str]) -> str:
    """The allowed names, the nearest of them at least where there are many."""
    shown = names
    if len(names) > 20:
        near = difflib.get_close_matches(given, names, n=3, cutoff=0.4)
        rest = [name for name in names if name not in near]
        shown = [*near, *rest[: 20 - len(near)], f"and {len(names) - 20} more"]
    return allowed_names(given, shown)


def _patterns(rules: Any) -> Iterator[str]:
    if isinstance(rules, Rules):
        yield from rules.scopes
        for rule in (rules.default, *rules.primitives.values(), *rules.scopes.values()):
            yield from _patterns(rule)


def equations(jaxpr: Any, arithmetic: Arithmetic, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every equation of a program and of the programs within it that a walk goes through, with the scopes around it."""
    for eqn in jaxpr.eqns:
        inside = path + scopes_of(eqn)
        yield eqn, inside
        if handler_of(eqn, arithmetic) is not None:
            for program in programs_within(eqn):
                yield from equations(program, arithmetic, inside)


def _survey(program: Program, found: list[tuple[Any, tuple[str, ...]]], arithmetic: Arithmetic, where: str) -> None:
    """Refuse, or tell, what can only be rounded as a whole; refuse names of primitives that are nowhere."""
    given_names = named_primitives(arithmetic.formats) | named_primitives(arithmetic.modes)
    here = sorted({eqn.primitive.name for eqn, _ in found})
    names = KNOWN | set(here) | (registered() if given_names else set())
    for given in sorted(given_names):
        if given not in names:
            near = _meant(given, here, sorted(names))
            hint = f'did you mean "{near[0]}"? ' if near else ""
            raise ValueError(
                f'{where}: there is no primitive "{given}", neither in the function nor among those of JAX and the libraries '
                f"that are loaded; {hint}Those of the function are {_listed(here) or 'none'}; "
                f"print(jax.make_jaxpr(fun)(*args)) shows where they stand."
            )
    for name, path in dict.fromkeys(_opaque(program.jaxpr, arithmetic)):
        at = f' in scope "{"/".join(path)}"' if path else ""
        if is_strict(arithmetic.formats):
            raise NotImplementedError(
                f"{where}: the primitive {name}{at} does many floating-point operations at once, and cannot be simulated by "
                f"rounding each, which Rules(strict=True) asks for; to round its results alone, name it: "
                f'Rules(fmt, primitives={{"{name}": precisionlab.FLOAT32}}).'
            )
        message = (
            f"the primitive {name}{at} cannot be looked into, and JAX does not say what it is made of: it runs as it is, "
            f"in its own dtypes, and its results are rounded once. To say that this is meant: "
            f'Rules(fmt, primitives={{"{name}": fmt}}); to refuse it: Rules(fmt, strict=True).'
        )
        warnings.warn(f"{where}: {message}", UnlistedWarning, stacklevel=4)


def _meant(given: str, here: list[str], names: list[str]) -> list[str]:
    """Names of primitives that were probably meant, best first: reduce_sum by sum, mul by multiply, neg by negg."""
    within = sorted((name for name in here if given in name), key=len)
    begins = sorted((name for name in names if given.startswith(name)), key=len, reverse=True)
    return within or begins or difflib.get_close_matches(given, names, n=1)


def _listed(names: list[str], limit: int = 20) -> str:
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more)


def _opaque(jaxpr: Any, arithmetic: Arithmetic, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Operations of which nobody knows what they do to floats, with the scopes around them.

    What takes no floats does nothing to them: it brings numbers from outside. Nor does what takes such numbers alone, or gives
    nothing: so the checks of libraries go through, which raise an error from within.
    """
    brought: set[Any] = set()
    for eqn in jaxpr.eqns:
        inside, name = path + scopes_of(eqn), eqn.primitive.name
        if handler_of(eqn, arithmetic) is not None:
            for program in programs_within(eqn):
                yield from _opaque(program, arithmetic, inside)
        elif not (name in EXACT | ROUNDED or is_sampler(eqn) or is_named(arithmetic.formats, name) or moves_only(eqn)):
            if any(var not in brought for var in floats_taken(eqn)) and eqn.outvars:
                yield name, inside
            else:
                brought.update(eqn.outvars)
