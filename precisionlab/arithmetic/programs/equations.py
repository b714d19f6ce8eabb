"""What an equation of a traced program says, in the release of JAX that is installed.

JAX renames the parameters of its primitives, and their kinds, from release to release. Where it does, this module knows, and
nothing else reads such a parameter by its name. For a primitive that nobody has listed it asks JAX what it is made of.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from inspect import getclosurevars
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params, primitives
from jax.interpreters import mlir

from precisionlab.arithmetic.carrying import dtype_of
from precisionlab.arithmetic.primitives import EXACT, SAMPLERS

__all__ = [
    "Mapped", "Scan", "Solve", "While", "called", "closed", "combiner", "floats_taken", "has_programs", "is_sampler",
    "made_of", "mapped", "moves_only", "own_program", "programs_within", "registered", "scan", "scopes_of", "solve",
    "touches_floats", "weakly_typed", "while_loop",
]  # fmt: skip


class Scan(NamedTuple):
    """A scan: its body, how many of its arguments are constants and how many are carried, and how it runs."""

    program: ClosedJaxpr
    consts: int
    carry: int
    options: dict[str, Any]


class While(NamedTuple):
    """A while loop: its test and its body, each with the number of its constants, which come first."""

    test: ClosedJaxpr
    test_consts: int
    program: ClosedJaxpr
    program_consts: int


class Mapped(NamedTuple):
    """A function mapped over the shards of a mesh; `options` are those of `jax.shard_map`."""

    program: Jaxpr
    axes: tuple[Any, ...]
    options: dict[str, Any]


class Solve(NamedTuple):
    """The solver of a linear system, and the places of its arguments among those of the equation."""

    program: ClosedJaxpr
    taken: list[int]


def closed(program: Any) -> ClosedJaxpr:
    """A program with its constants."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def scan(eqn: Any) -> Scan:
    """The parts of a scan."""
    params = eqn.params
    if "num_carry" in params:
        consts, carry = params["num_consts"], params["num_carry"]
    else:  # jax 0.12: the arguments as a tree of three
        consts, carry, _ = map(len, params["ft_in"].unpack())
    return Scan(closed(params["jaxpr"]), consts, carry, {name: params[name] for name in ("length", "reverse", "unroll")})


def while_loop(eqn: Any) -> While:
    """The parts of a while loop."""
    params = eqn.params
    test, program = closed(params["cond_jaxpr"]), closed(params["body_jaxpr"])
    return While(test, params["cond_nconsts"], program, params["body_nconsts"])


def mapped(eqn: Any) -> Mapped:
    """The parts of a `jax.shard_map`."""
    params = eqn.params
    axes = params["manual_axes"] if "manual_axes" in params else params["newly_manual_axes"]  # jax 0.12
    options = {"mesh": params["mesh"], "axis_names": set(axes), "check_vma": params["check_vma"]}
    return Mapped(params["jaxpr"], tuple(sorted(axes)), options)


def solve(eqn: Any) -> Solve:
    """The solver's arguments: its own constants, and the right-hand side, which follows those of the transposed solver."""
    lengths = eqn.params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    after = before + lengths.solve
    return Solve(
        closed(eqn.params["jaxprs"].solve),
        [*range(before, after), *range(after + lengths.transpose_solve, len(eqn.invars))],
    )


def combiner(eqn: Any) -> ClosedJaxpr | None:
    """The user's own function of two scalars in a reduction or a scatter, if there is one."""
    params = eqn.params
    if params.get("update_jaxpr") is not None:
        return ClosedJaxpr(params["update_jaxpr"], params["update_consts"])
    return None if params.get("jaxpr") is None else closed(params["jaxpr"])


def called(eqn: Any) -> str:
    """The name of the jitted function that an equation calls, or nothing."""
    return eqn.params["name"] if eqn.primitive.name == "jit" else ""


def is_sampler(eqn: Any) -> bool:
    """Whether an equation is a draw of `jax.random`: one operation, whose steps are not rounded."""
    if called(eqn) not in SAMPLERS or not eqn.invars:
        return False
    first: Any = eqn.invars[0].aval
    return jnp.issubdtype(first.dtype, jax.dtypes.prng_key) or (first.dtype == jnp.uint32 and first.shape == (2,))


def scopes_of(eqn: Any) -> tuple[str, ...]:
    """The `jax.named_scope`s around an equation, outermost first, without what JAX's transformations call themselves."""
    names = [part.name for part in eqn.source_info.name_stack.stack if type(part).__name__ == "Scope"]
    path = tuple(name for part in names for name in part.split("/") if name and name != "rematted_computation")
    # Recomputation in a backward pass names its scopes twice: transpose(jvp(norm))/jvp(norm).
    half = len(path) // 2
    differentiated = eqn.primitive.name == "remat2" and eqn.params["differentiated"]
    return path[:half] if half and path[:half] == path[half:] and differentiated else path


def touches_floats(eqn: Any) -> bool:
    """Whether an equation takes or gives floating-point numbers, complex ones included."""
    return any(map(_is_inexact, (*eqn.invars, *eqn.outvars)))


def floats_taken(eqn: Any) -> list[Any]:
    """The floating-point variables that an equation takes, complex ones included; not what is written into it."""
    return [var for var in eqn.invars if _is_inexact(var) and not isinstance(var, Literal)]


def _is_inexact(var: Any) -> bool:
    return hasattr(var.aval, "dtype") and jnp.issubdtype(dtype_of(var), jnp.inexact)


def own_program(eqn: Any) -> ClosedJaxpr | None:
    """The one program within an equation that has its arguments and results, whatever the parameter is called.

    That of a jitted function, of a closed call, of a composite, of a function with its own derivative, batching or partition.
    """
    held = [closed(value) for value in eqn.params.values() if isinstance(value, (Jaxpr, ClosedJaxpr))]
    fitting = [program for program in held if not program.jaxpr.constvars or program.consts]
    return next((program for program in fitting if _has_signature(program, eqn)), None)


def programs_within(eqn: Any) -> list[Any]:
    """Every program that an equation holds; where it holds none, the one that it stands for."""
    held = list(jaxprs_in_params(eqn.params))
    if held:
        return held
    program = made_of(eqn)
    return [] if program is None else [program.jaxpr]


def has_programs(eqn: Any) -> bool:
    """Whether an equation holds programs, of whatever kind."""
    return bool(list(jaxprs_in_params(eqn.params))) or "_prim" in eqn.params


@lru_cache(maxsize=1024)
def made_of(eqn: Any) -> ClosedJaxpr | None:
    """The program that an unlisted primitive stands for, as far as JAX can say; None where it cannot.

    Tried in turn: a program that the equation holds; the expansion of one of JAX's high-level primitives; its implementation
    and its lowering, where these are functions that JAX can trace.
    """
    held = own_program(eqn)
    if held is not None:
        return held
    arguments = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars if hasattr(var.aval, "shape")]
    if len(arguments) != len(eqn.invars) or any("Ref" in type(var.aval).__name__ for var in (*eqn.invars, *eqn.outvars)):
        return None
    for function in _descriptions(eqn):
        try:
            program = jax.make_jaxpr(function)(*arguments)
        except Exception:  # it was only a guess that this can be traced
            continue
        if _has_signature(program, eqn) and all(one.primitive is not eqn.primitive for one in _operations(program.jaxpr)):
            return program
    return None


def moves_only(eqn: Any) -> bool:
    """Whether an unlisted primitive only moves, compares or chooses: it can then be left as it is."""
    program = made_of(eqn)
    return program is not None and all(
        one.primitive.name in EXACT or not touches_floats(one) for one in _operations(program.jaxpr)
    )


def _moves(eqn: Any) -> bool:
    return eqn.primitive.name in EXACT or not touches_floats(eqn)


def registered() -> set[str]:
    """The names of all primitives that can be compiled: those of JAX, and of the libraries that are loaded."""
    return {primitive.name for primitive in _lowerings()}


def weakly_typed(array: Any) -> Any:
    """The same array, of a weak type."""
    return primitives.convert_element_type_p.bind(array, new_dtype=array.dtype, weak_type=True, sharding=None)


def _descriptions(eqn: Any) -> Iterator[Callable[..., Any]]:
    primitive, params = eqn.primitive, dict(eqn.params)
    high = params.get("_prim")
    if high is not None and hasattr(high, "expand"):
        yield lambda *args: jax.tree.leaves(high.expand(*jax.tree.unflatten(high.in_tree, args)))
        return
    yield lambda *args: primitive.impl(*args, **params)
    rule = _lowering(primitive)
    if rule is not None:
        yield lambda *args: rule(*args, **params)


def _lowering(primitive: Any) -> Callable[..., Any] | None:
    """The function that a primitive is lowered through, where its rule was made by `mlir.lower_fun`."""
    entry = _lowerings().get(primitive)
    rule: Any = getattr(entry, "rule", entry)
    if getattr(rule, "__code__", None) is None or rule.__qualname__ != "lower_fun.<locals>.f_lowered":
        return None
    return getclosurevars(rule).nonlocals.get("fun")


def _lowerings() -> dict[Any, Any]:
    """JAX's table of lowering rules; it is not public, and nothing but a better guess is lost without it."""
    return getattr(import_module(mlir.lower_fun.__module__), "_lowerings", {})


def _has_signature(program: ClosedJaxpr, eqn: Any) -> bool:
    return _fit(program.jaxpr.invars, eqn.invars) and _fit(program.jaxpr.outvars, eqn.outvars)


def _fit(inner: Sequence[Any], outer: Sequence[Any]) -> bool:
    return len(inner) == len(outer) and all(
        getattr(one.aval, "shape", None) == getattr(other.aval, "shape", None)
        and getattr(one.aval, "dtype", None) == getattr(other.aval, "dtype", None)
        for one, other in zip(inner, outer, strict=True)
    )


def _operations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program and of the programs that it merely calls."""
    for eqn in jaxpr.eqns:
        program = own_program(eqn)
        if program is None:
            yield eqn
            for inner in jaxprs_in_params(eqn.params):
                yield from _operations(inner)
        else:
            yield from _operations(program.jaxpr)
