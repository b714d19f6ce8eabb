"""Requests that cannot be met, refused as sentences before any work: seeds, bits, names and numbers."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from precisionlab._nearest import allowed_names

__all__ = ["check_names", "check_positive", "some_bits", "some_seeds"]


def some_seeds(where: str, seeds: Iterable[int]) -> list[int]:
    """The seeds as whole numbers.

    Args:
        where: the name of the measurement, for the message.
        seeds: as given.

    Raises:
        ValueError: if there is none.
    """
    numbers = [int(seed) for seed in seeds]
    if not numbers:
        raise ValueError(f"{where}: got no seeds; give at least one, such as range(16).")
    return numbers


def some_bits(where: str, bits: Sequence[int], *, real: bool = False) -> list[int]:
    """Significand bits in their order.

    Args:
        where: the name of the measurement, for the message.
        bits: as given.
        real: whether the last of them must be float64's.

    Raises:
        ValueError: unless there are two or more, ascending, from 3 to 53.

    Example:
        >>> some_bits("ring", (8, 4))
        Traceback (most recent call last):
        ValueError: ring: bits are significand bits, at least two, ascending, from 3 to 53; got [8, 4].
    """
    numbers = list(bits)
    ascending = len(numbers) > 1 and numbers == sorted(set(numbers))
    if not ascending or numbers[0] < 3 or numbers[-1] > 53 or (real and numbers[-1] != 53):
        allowed = "from 3, the last of them 53" if real else "from 3 to 53"
        raise ValueError(f"{where}: bits are significand bits, at least two, ascending, {allowed}; got {numbers}.")
    return numbers


def check_names(field: str, names: Collection[str], known: Collection[str]) -> None:
    """Refuse a field of names that is empty, holds one that nobody knows, or holds one twice.

    Args:
        field: of a configuration.
        names: what it holds.
        known: what it may hold.

    Raises:
        ValueError: as said.
    """
    if not names:
        raise ValueError(f"{field} is empty; name at least one of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise ValueError(f'{field} holds an unknown name "{name}"; {allowed_names(name, known)}')
    if len(set(names)) != len(names):
        raise ValueError(f"{field} names {', '.join(names)}; name each once.")


def check_positive(config: Any, *fields: str) -> None:
    """Refuse fields of a configuration that are below 1.

    Raises:
        ValueError: for the first of them.
    """
    for field in fields:
        if getattr(config, field) < 1:
            raise ValueError(f"{field} is {getattr(config, field)}; it must be at least 1.")
