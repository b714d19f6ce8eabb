"""Which rule holds for an operation: by the user's own scopes, by primitive, or by default.

A `Rules` value holds formats, or rounding modes, for the operations of a program:

    Rules(FLOAT8_E4M3FN, scopes={"layernorm": FLOAT32})          layer norm in float32, the rest in e4m3fn
    Rules(BFLOAT16, primitives={"exp": FLOAT32})                 exponentials in float32
    Rules(BFLOAT16, primitives={"dot_general": MXFP8_E4M3})      matrix products on blocks with shared scales

The innermost `jax.named_scope` with a rule decides, then the primitive, then the default. A rule may itself be a `Rules`, for
what lies inside a scope.
"""

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.extend.core import primitives

from precisionlab.block_formats import BlockFormat, name_of_blocks
from precisionlab.carriers import FLOAT32_CARRIER, Carrier
from precisionlab.checks import require_fits
from precisionlab.formats import Format, is_concrete, name_of
from precisionlab.modes import check_mode
from precisionlab.primitives import EXACT, ROUNDED

__all__ = ["Rules", "check_mode_rules", "check_rules", "describe_rules", "every_rule", "resolve", "scope_matches"]


_UNLISTED = frozenset({"custom_partitioning", "ffi_call", "io_callback", "pallas_call", "pure_callback", "ragged_dot_general"})
_PRIMITIVES = EXACT | ROUNDED | _UNLISTED | {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}


class Rules(NamedTuple):
    """A default, and exceptions by primitive and by scope.

    Attributes:
        default: what holds where nothing else does; None leaves an operation in its own dtype.
        primitives: by the name of a JAX primitive, such as "exp", "dot_general", "reduce_sum".
        scopes: by `jax.named_scope`. "norm" is any scope of that name, at any depth; "block_0/norm" one directly inside the
            other; `*` and `?` stand for anything within a name.

    Example:
        >>> from precisionlab.formats import BFLOAT16, FLOAT32, name_of
        >>> rules = Rules(BFLOAT16, primitives={"exp": FLOAT32}, scopes={"norm": FLOAT32})
        >>> [name_of(resolve(rules, *at)) for at in (("mul", ()), ("exp", ()), ("mul", ("block", "norm")))]
        ['bfloat16', 'float32', 'float32']
    """

    default: Any = None
    primitives: Mapping[str, Any] = {}
    scopes: Mapping[str, Any] = {}


def resolve(rules: Any, primitive: str, path: tuple[str, ...]) -> Any:
    """What the rules say of a primitive in nested scopes (outermost first); anything but a `Rules` holds everywhere."""
    if not isinstance(rules, Rules):
        return rules
    for depth in range(len(path), 0, -1):
        patterns = [pattern for pattern in rules.scopes if scope_matches(pattern, path[:depth])]
        if patterns:
            longest = max(patterns, key=lambda pattern: pattern.count("/"))
            return resolve(rules.scopes[longest], primitive, path[depth:])
    return resolve(rules.primitives.get(primitive, rules.default), primitive, path)


def scope_matches(pattern: str, path: tuple[str, ...]) -> bool:
    """Whether the last scopes of a path are those of a pattern."""
    parts = pattern.split("/")
    ends = path[-len(parts) :]
    return len(ends) == len(parts) and all(map(fnmatch.fnmatchcase, ends, parts))


def every_rule(rules: Any) -> Iterator[Any]:
    """Every value that the rules can give."""
    if not isinstance(rules, Rules):
        yield rules
        return
    for value in (rules.default, *rules.primitives.values(), *rules.scopes.values()):
        yield from every_rule(value)


def check_rules(rules: Any, where: str, carrier: Carrier = FLOAT32_CARRIER) -> None:
    """Raise unless the rules give formats that fit the carrier.

    Raises:
        TypeError: if a value is neither a Format nor None (a block format, for a matrix product).
        ValueError: if a format does not fit, a primitive is unknown, or a scope has an empty name.
    """
    _check_names(rules, where)
    for value, primitive in _values(rules, None):
        if isinstance(value, BlockFormat):
            if primitive != "dot_general":
                raise ValueError(
                    f"{where}: blocks with shared scales are operands of matrix products, not results of operations; give the "
                    f'block format to those alone: Rules(precisionlab.BFLOAT16, primitives={{"dot_general": ...}}).'
                )
            continue
        if value is None:
            continue
        if not isinstance(value, Format):
            raise TypeError(f"{where}: a rule must be a Format such as precisionlab.BFLOAT16, or None; got {value!r}.")
        if is_concrete(value):
            require_fits(value, carrier, where)


def check_mode_rules(rules: Any, where: str) -> None:
    """Raise unless the rules give rounding modes (None counts as nearest_even)."""
    _check_names(rules, where)
    for mode in every_rule(rules):
        if mode is not None:
            check_mode(mode, where)


def describe_rules(rules: Any) -> str:
    """Rules of formats in words.

    Example:
        >>> from precisionlab.formats import BFLOAT16, FLOAT32
        >>> describe_rules(Rules(BFLOAT16, scopes={"norm": FLOAT32}))
        'bfloat16 (norm: float32)'
    """
    if rules is None:
        return "as typed"
    if isinstance(rules, Format):
        return name_of(rules)
    if isinstance(rules, BlockFormat):
        return name_of_blocks(rules)
    if not isinstance(rules, Rules):
        return str(rules)
    exceptions = [
        f"{name}: {describe_rules(rule)}" for table in (rules.scopes, rules.primitives) for name, rule in table.items()
    ]
    return describe_rules(rules.default) + (f" ({', '.join(exceptions)})" if exceptions else "")


def _values(rules: Any, primitive: str | None) -> Iterator[tuple[Any, str | None]]:
    """Every value with the primitive that it is for (None: any)."""
    if not isinstance(rules, Rules):
        yield rules, primitive
        return
    yield from _values(rules.default, primitive)
    for name, value in rules.primitives.items():
        yield from _values(value, name)
    for value in rules.scopes.values():
        yield from _values(value, None)


def _check_names(rules: Any, where: str) -> None:
    if not isinstance(rules, Rules):
        return
    for table, kind in ((rules.primitives, "primitives"), (rules.scopes, "scopes")):
        if not isinstance(table, Mapping):
            raise TypeError(f'{where}: Rules.{kind} must be a dict such as {{"name": precisionlab.FLOAT32}}; got {table!r}.')
        for name, value in table.items():
            if not isinstance(name, str) or not all(name.split("/")):
                raise ValueError(f"{where}: Rules.{kind} names must be non-empty text; got {name!r}.")
            _check_names(value, where)
    for name in rules.primitives:
        if name not in _PRIMITIVES:
            near = difflib.get_close_matches(name, sorted(_PRIMITIVES), n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            raise ValueError(
                f'{where}: there is no primitive "{name}"; {hint}The primitives of a function are those that '
                f"print(jax.make_jaxpr(fun)(*args)) shows, such as dot_general, exp, reduce_sum."
            )
