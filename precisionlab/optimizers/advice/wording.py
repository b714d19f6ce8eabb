"""Numbers in words."""

import math
from typing import Any

__all__ = ["number", "percent", "size_of"]


def percent(share: float) -> str:
    """A share, with a digit more where it is nearly all; never rounded up to all of it.

    Example:
        >>> percent(0.026), percent(0.99996), percent(1.0)
        ('2.6 %', '99.99 %', '100 %')
    """
    if math.isnan(share):
        return "an unknown share"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    percent = 100 * share
    if percent >= 99.5:
        return f"{min(percent, 99.99):.2f} %"
    return f"{percent:.2g} %"


def number(count: Any) -> str:
    """A count, its thousands apart."""
    return f"{int(count):,}"


def size_of(count: float) -> str:
    """Bytes, in the largest unit that leaves one whole digit.

    Example:
        >>> size_of(512), size_of(2.1e6)
        ('512 bytes', '2.1 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
