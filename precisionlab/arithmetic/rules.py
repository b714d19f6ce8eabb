"""Which rule holds for an operation: by the user's own scopes, by primitive, or by default.

A `Rules` value holds formats, or rounding modes, for the operations of a program:

    Rules(FLOAT8_E4M3FN, scopes={"layernorm": FLOAT32})          layer norm in float32, the rest in e4m3fn
    Rules(BFLOAT16, primitives={"exp": FLOAT32})                 exponentials in float32
    Rules(BFLOAT16, primitives={"dot_general": MXFP8_E4M3})      matrix products on blocks with shared scales
    Rules(BFLOAT16, scopes={"rope": FLOAT32}, arguments={"1/positions": None})   that argument enters as it is

The innermost `jax.named_scope` with a rule decides, then the primitive, then the default. A rule may itself be a `Rules`, for
what lies inside a scope.
"""

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from precisionlab.numerics.block_formats import BlockFormat, name_of_blocks
from precisionlab.numerics.carriers import FLOAT32_CARRIER, Carrier
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import FORMATS, Format, is_concrete, name_of
from precisionlab.numerics.modes import check_mode

__all__ = [
    "Rules", "argument_matches", "check_mode_rules", "check_rules", "describe_rules", "every_rule", "is_named", "is_strict",
    "named_primitives", "resolve", "resolve_argument", "scope_matches",
]  # fmt: skip


class Rules(NamedTuple):
    """A default, and exceptions by primitive and by scope.

    Attributes:
        default: what holds where nothing else does; None leaves an operation in its own dtype.
        primitives: by the name of a JAX primitive, such as "exp", "dot_general", "reduce_sum".
        scopes: by `jax.named_scope`. "norm" is any scope of that name, at any depth; "block_0/norm" one directly inside the
            other; `*` and `?` stand for anything within a name.
        arguments: formats in which arguments enter the function, where not in the default; None for their own dtype. By their
            path, from its beginning: "1" is all of the second positional argument, "1/positions" an entry of it, "mask" an
            argument by keyword; `*` and `?` stand for anything within a name, `**` for any names: "0/**/scale". Moves leave an
            argument as it entered; an operation still reads it in the operation's own format. Outermost rules alone.
        strict: refuse a primitive that is not known, rather than warn and round its results alone.

    A rule for a primitive that is no single operation (a loop, a factorization, one that a library brings) makes it one: it
    runs as it is, and its results are rounded once.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT32, name_of
        >>> rules = Rules(BFLOAT16, primitives={"exp": FLOAT32}, scopes={"norm": FLOAT32})
        >>> [name_of(resolve(rules, *at)) for at in (("mul", ()), ("exp", ()), ("mul", ("block", "norm")))]
        ['bfloat16', 'float32', 'float32']
    """

    default: Any = None
    primitives: Mapping[str, Any] = {}
    scopes: Mapping[str, Any] = {}
    strict: bool = False
    arguments: Mapping[str, Any] = {}


# Whether rules are strict is not a number: it must not be traced with the formats.
jax.tree_util.register_pytree_node(
    Rules,
    lambda rules: ((rules.default, rules.primitives, rules.scopes, rules.arguments), rules.strict),
    lambda strict, parts: Rules(*parts[:3], strict, parts[3]),
)


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


def resolve_argument(rules: Any, path: tuple[str, ...]) -> Any:
    """What the rules say of an argument as it enters: the longest pattern that its path begins with, else the default."""
    if isinstance(rules, Rules):
        patterns = [pattern for pattern in rules.arguments if argument_matches(pattern, path)]
        if patterns:
            return rules.arguments[max(patterns, key=lambda pattern: pattern.count("/"))]
    return resolve(rules, "", ())


def argument_matches(pattern: str, path: tuple[str, ...]) -> bool:
    """Whether the path of an argument begins with a pattern."""

    def begins(parts: list[str], names: tuple[str, ...]) -> bool:
        if not parts:
            return True
        if parts[0] == "**":
            return any(begins(parts[1:], names[skipped:]) for skipped in range(len(names) + (len(parts) == 1)))
        return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and begins(parts[1:], names[1:])

    return begins(pattern.split("/"), path)


def is_named(rules: Any, name: str) -> bool:
    """Whether some rule is for this primitive."""
    return name in named_primitives(rules)


def named_primitives(rules: Any) -> set[str]:
    """The primitives that rules name, at any depth."""
    if not isinstance(rules, Rules):
        return set()
    inner = (rules.default, *rules.primitives.values(), *rules.scopes.values())
    return {*rules.primitives}.union(*map(named_primitives, inner))


def is_strict(rules: Any) -> bool:
    """Whether the rules refuse what can only be rounded as a whole."""
    inner = (rules.default, *rules.primitives.values(), *rules.scopes.values()) if isinstance(rules, Rules) else ()
    return isinstance(rules, Rules) and (rules.strict or any(map(is_strict, inner)))


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
    for value in (rules.default, *rules.primitives.values(), *rules.scopes.values(), *rules.arguments.values()):
        yield from every_rule(value)


def check_rules(rules: Any, where: str, carrier: Carrier = FLOAT32_CARRIER, **advice: str) -> None:
    """Raise unless the rules give formats that fit the carrier; `wider=` says how its user has a wider one.

    Raises:
        TypeError: if a value is neither a Format nor None (a block format, for a matrix product).
        ValueError: if a format does not fit, or a primitive or a scope has an empty name.
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
            raise TypeError(
                f"{where}: a rule must be a Format such as precisionlab.BFLOAT16, or None; got {value!r}{_meant(value)}."
            )
        if is_concrete(value):
            require_fits(value, carrier, where, **advice)


def _meant(value: Any) -> str:
    """The format whose name, or dtype, stands in its place."""
    try:
        name = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        return ""
    return f'; pass precisionlab.FORMATS["{name}"]' if name in FORMATS else ""


def check_mode_rules(rules: Any, where: str) -> None:
    """Raise unless the rules give rounding modes (None counts as nearest_even)."""
    _check_names(rules, where)
    for mode in every_rule(rules):
        if mode is not None:
            check_mode(mode, where)


def describe_rules(rules: Any) -> str:
    """Rules of formats in words.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT32
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
        f"{kind}{name}: {describe_rules(rule)}"
        for kind, table in (("", rules.scopes), ("", rules.primitives), ("argument ", rules.arguments))
        for name, rule in table.items()
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
    for value in (*rules.scopes.values(), *rules.arguments.values()):
        yield from _values(value, None)


def _check_names(rules: Any, where: str, outermost: bool = True) -> None:
    if not isinstance(rules, Rules):
        return
    if rules.arguments and not outermost:
        raise ValueError(f"{where}: Rules.arguments belong into the outermost Rules: an argument enters before any scope does.")
    tables = ((rules.primitives, "primitives"), (rules.scopes, "scopes"), (rules.arguments, "arguments"))
    for table, kind in tables:
        if not isinstance(table, Mapping):
            raise TypeError(f'{where}: Rules.{kind} must be a dict such as {{"name": precisionlab.FLOAT32}}; got {table!r}.')
        for name, value in table.items():
            if not isinstance(name, str) or not all(name.split("/")):
                raise ValueError(f"{where}: Rules.{kind} names must be non-empty text; got {name!r}.")
            if kind == "arguments" and isinstance(value, Rules):
                raise TypeError(f'{where}: the rule for the argument "{name}" must be one format or None; got {value!r}.')
            _check_names(value, where, outermost=False)
    _check_names(rules.default, where, outermost=False)
