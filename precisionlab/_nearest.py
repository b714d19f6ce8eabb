"""A wrong name is answered with the right ones: what is allowed, and which of them was probably meant."""

import difflib
from collections.abc import Iterable

__all__ = ["allowed_names"]


def allowed_names(given: object, allowed: Iterable[object]) -> str:
    """The end of a sentence about an unknown name.

    Args:
        given: the name that is not known.
        allowed: the names that are.

    Returns:
        `allowed are a, b, c`, followed by `did you mean "b"?` where one of them resembles the given name.

    Example:
        >>> allowed_names("bfloat61", ["float32", "bfloat16"])
        'allowed are float32, bfloat16; did you mean "bfloat16"?'
        >>> allowed_names("x", [])
        'there are none'
    """
    names = [str(name) for name in allowed]
    if not names:
        return "there are none"
    near = difflib.get_close_matches(str(given).lower(), [name.lower() for name in names], n=1)
    hint = next((f'; did you mean "{name}"?' for name in names if near and name.lower() == near[0]), "")
    return f"allowed are {', '.join(names)}{hint}"
