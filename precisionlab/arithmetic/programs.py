"""A function as a program: its list of operations, apart from what is not numbers in its arguments and results.

What cannot be simulated operation by operation is found here, before anything runs.
"""

import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from precisionlab._nearest import allowed_names
from precisionlab.arithmetic.carrying import as_typed, dtype_of, is_inexact
from precisionlab.arithmetic.equations import (
    is_sampler,
    moves_only,
    programs_within,
    registered,
    scopes_of,
    touches_floats,
    weakly_typed,
)
from precisionlab.arithmetic.frames import UNKNOWN, Arithmetic, Frame, Held
from precisionlab.arithmetic.operations import rounded_argument
from precisionlab.arithmetic.walking import finished, handler_of, raw, walk
from precisionlab.formats import Format
from precisionlab.primitives import EXACT, KNOWN, ROUNDED
from precisionlab.rules import Rules, is_named, is_strict, named_primitives, scope_matches

__all__ = ["Program", "ScopeWarning", "UnlistedWarning", "equations", "program_of"]

_ARRAYS = (jax.Array, np.ndarray, np.generic)


class ScopeWarning(UserWarning):
    """A rule names a scope that the function does not have."""


class UnlistedWarning(UserWarning):
    """A primitive is not known: only its results are rounded."""


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
        arrays = iter(_returned(value.array, var) for value, var in zip(values, self.jaxpr.outvars, strict=True))
        filled = [next(arrays) if moves else leaf for leaf, moves in zip(self.results, self.moving, strict=True)]
        return jax.tree.unflatten(self.structure, filled)


def _returned(array: Any, var: Any) -> Any:
    """A result in the dtype of the function's own, and weakly typed where that is: what follows promotes as it would."""
    typed = as_typed(jnp.asarray(array), dtype_of(var))
    return weakly_typed(typed) if getattr(var.aval, "weak_type", False) else typed


def _argument(array: Any, var: Any, frame: Frame) -> Held:
    dtype = dtype_of(var)
    held = raw(array if isinstance(array, jax.Array) else jnp.asarray(array, dtype), dtype, frame)
    if not is_inexact(dtype):
        return held
    rule = frame.arithmetic.format_of("", ())
    return held._replace(array=rounded_argument(held.array, dtype, frame), grid=rule if isinstance(rule, Format) else UNKNOWN)


def program_of(where: str, fun: Callable[..., Any], args: Any, kwargs: Any, arithmetic: Arithmetic) -> Program:
    """Trace a function, and see whether the rules can be applied to it.

    Raises:
        NotImplementedError: if one of its primitives is not known and the rules are strict.
        ValueError: if rules name a primitive that neither the function nor JAX has.

    Warns:
        ScopeWarning: if rules name scopes that it does not have.
        UnlistedWarning: if one of its primitives is not known, so that only its results are rounded.
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
    found = list(equations(program.jaxpr, arithmetic))
    _survey(found, arithmetic, where)
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


def equations(jaxpr: Any, arithmetic: Arithmetic, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every equation of a program and of the programs within it that a walk goes through, with the scopes around it."""
    for eqn in jaxpr.eqns:
        inside = path + scopes_of(eqn)
        yield eqn, inside
        if handler_of(eqn, arithmetic) is not None:
            for program in programs_within(eqn):
                yield from equations(program, arithmetic, inside)


def _survey(found: list[tuple[Any, tuple[str, ...]]], arithmetic: Arithmetic, where: str) -> None:
    """Refuse, or tell, what can only be rounded as a whole; refuse names of primitives that are nowhere."""
    given_names = named_primitives(arithmetic.formats) | named_primitives(arithmetic.modes)
    names = KNOWN | {eqn.primitive.name for eqn, _ in found} | (registered() if given_names else set())
    for given in sorted(given_names):
        if given not in names:
            near = difflib.get_close_matches(given, sorted(names), n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            raise ValueError(
                f'{where}: there is no primitive "{given}", neither in the function nor among those of JAX and the libraries '
                f"that are loaded; {hint}The primitives of a function are those that print(jax.make_jaxpr(fun)(*args)) shows, "
                f"such as dot_general, exp, reduce_sum."
            )
    whole = dict.fromkeys((eqn.primitive.name, path) for eqn, path in found if _is_opaque(eqn, arithmetic))
    for name, path in whole:
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


def _is_opaque(eqn: Any, arithmetic: Arithmetic) -> bool:
    """Whether nothing is known of what an operation on floats does inside."""
    name = eqn.primitive.name
    listed = name in EXACT | ROUNDED or is_sampler(eqn) or is_named(arithmetic.formats, name)
    return not listed and touches_floats(eqn) and handler_of(eqn, arithmetic) is None and not moves_only(eqn)
