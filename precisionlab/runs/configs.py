"""A configuration is a frozen dataclass; whatever a person types becomes one, or one sentence that says why not.

Types are strict: 1.0 is not an int, true is not 1, and an unknown key is a mistake rather than a wish.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from precisionlab._nearest import allowed_names

__all__ = ["ConfigError", "config_as_dict", "parse_config", "parse_settings"]

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration is wrong; the message is one sentence that says what is allowed."""


def parse_config(config_type: type[Config], mapping: Mapping[str, Any], where: str) -> Config:
    """A configuration from what a file or a command line holds.

    Args:
        config_type: a frozen dataclass with annotated fields: str, int, float, bool, tuples and dataclasses of them.
        mapping: field name to value; absent fields keep their defaults; lists stand for tuples.
        where: what to blame in the message, such as the file's name.

    Returns:
        The instance; its own `__post_init__` has checked it.

    Raises:
        ConfigError: for an unknown key, a wrong type, a missing field, or a value that `__post_init__` rejects.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     formats: tuple[str, ...] = ("float32",)
        ...     steps: int = 100
        >>> parse_config(Training, {"formats": ["bfloat16"]}, "example.toml")
        Training(formats=('bfloat16',), steps=100)
        >>> parse_config(Training, {"stesp": 5}, "example.toml")
        Traceback (most recent call last):
        precisionlab.runs.configs.ConfigError: example.toml: unknown key "stesp"; allowed are formats, steps; ...
    """
    _check_keys(config_type, mapping, where, "")
    try:
        text = json.dumps(mapping)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}; use text, numbers, true or false, lists and tables of them only.") from error
    try:
        # Read as JSON, where strictness still lets a list be a tuple and a whole number be a float.
        return pydantic.TypeAdapter(config_type).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error.errors(include_url=False)[0], config_type)}") from error


def config_as_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON-able values: tuples become lists.

    Raises:
        ConfigError: if a field holds something that JSON has no form for.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     formats: tuple[str, ...] = ("float32",)
        >>> config_as_dict(Training())
        {'formats': ['float32']}
    """
    try:
        return json.loads(json.dumps(dataclasses.asdict(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{type(config).__name__}: {error}; fields hold text, numbers, booleans and tuples.") from error


def parse_settings(config_type: type, settings: Sequence[str], where: str = "--set") -> dict[str, Any]:
    """`key=value` texts as a mapping for `parse_config`.

    A value is read as JSON (`3`, `1e-3`, `true`, `["a", "b"]`), otherwise as text. For a tuple, commas are enough:
    `formats=float32,bfloat16`. A nested field is written `outer.inner=value`.

    Args:
        config_type: the dataclass whose fields are set.
        settings: the texts; a later one wins.
        where: what to blame in the message.

    Raises:
        ConfigError: for a text without `=`, or an unknown key.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     formats: tuple[str, ...] = ("float32",)
        ...     steps: int = 100
        >>> parse_settings(Training, ["formats=float32,bfloat16", "steps=5"])
        {'formats': ['float32', 'bfloat16'], 'steps': 5}
    """
    found: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f'{where}: "{setting}" has no value; write it as key=value.')
        *outer, last = path.strip().split(".")
        kind, inside = config_type, found
        for key in outer:
            kind = _field_types(kind, key, where)
            inside = inside.setdefault(key, {})
        inside[last] = _value(text.strip(), _field_types(kind, last, where))
    return found


def _field_types(kind: Any, key: str, where: str) -> Any:
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(f'{where}: "{key}" is set inside something that has no keys; write it as key=value.')
    _check_keys(kind, {key: None}, where, "")
    return typing.get_type_hints(kind)[key]


def _value(text: str, kind: Any) -> Any:
    """What a person meant by `text` for a field of type `kind`."""
    choices = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if str in choices and not (text == "null" and types.NoneType in choices):
        return text  # a name may look like a number
    entries = next((typing.get_args(choice) for choice in choices if typing.get_origin(choice) is tuple), ())
    if entries and not text.startswith("["):
        return [_value(part.strip(), entries[0]) for part in text.split(",") if part.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_keys(kind: Any, mapping: Mapping[str, Any], where: str, prefix: str) -> None:
    """Unknown keys, at every depth; pydantic would ignore them."""
    if not isinstance(mapping, Mapping):
        return  # pydantic says that a table was expected
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for key, value in mapping.items():
        if key not in names:
            raise ConfigError(f'{where}: unknown key "{prefix}{key}"; {allowed_names(key, names)}')
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(hints[key], value, where, f"{prefix}{key}.")


_ALLOWED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dataclass_type": "a table of keys",
    "none_required": "nothing",
}


def _sentence(problem: Any, config_type: type) -> str:
    """One of pydantic's findings: the field, what was given, what is allowed."""
    field = ""
    for part in problem["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    kind, given = problem["type"], problem["input"]
    if kind == "value_error":  # a sentence of the configuration's own __post_init__
        return str(problem["ctx"]["error"])
    if kind == "missing" and isinstance(problem["loc"][-1], str):
        return f'"{field}" has no default and was not given; add it.'
    if kind in ("int_from_float", "int_parsing_size"):
        kind = "int_type"
    allowed = _ALLOWED.get(kind) or problem["msg"].removeprefix("Input should be ")
    if kind in ("missing", "too_long"):  # a tuple of fixed length
        field, allowed = field.rpartition("[")[0] if kind == "missing" else field, "a list of another length"
    shown = json.dumps(given, default=repr)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f'"{field or config_type.__name__}" is {shown}, allowed is {allowed}.'
