"""What every reader hands over: tensors of floats whose entries come a piece at a time, and why others are left out."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

__all__ = [
    "COMPARED",
    "FLOATS",
    "Checkpoint",
    "CheckpointError",
    "Stored",
    "pieces_of",
    "require_some",
    "shown",
    "spans",
    "width",
]

FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
"""The dtypes that are read, by their names in safetensors."""

COMPARED: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"{letter}{8 * size}": np.dtype(f"{kind}{size}") for letter, kind in (("I", "i"), ("U", "u")) for size in (1, 2, 4, 8)},
    "F4": ml_dtypes.float4_e2m1fn,
    "F6_E2M3": ml_dtypes.float6_e2m3fn,
    "F6_E3M2": ml_dtypes.float6_e3m2fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
"""The dtypes that can be told apart though no updates are asked of them: whole numbers, and quantized weights and scales."""

_PIECE = 1 << 20  # entries held at a time


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or a question that cannot be asked of it; the message is one sentence."""


class Stored(NamedTuple):
    """A tensor of floats in a file.

    Attributes:
        dtype: the stored dtype, in native byte order.
        shape: its shape.
        pieces: starts over the entries, in the order of C: arrays of rank 1 with at most 2^20 entries each.
        blocks: the same in the order that costs least memory, where that is another one; else None.
        block: what tells that order: two tensors of one shape and one `block` have their blocks alike.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]
    blocks: Callable[[], Iterator[np.ndarray]] | None = None
    block: tuple[int, ...] = ()

    @property
    def entries(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        tensors: the tensors of floats by name.
        skipped: why any other one is left out, by name.
        others: those of them that can be compared all the same: whole numbers, quantized weights, scales.
        path: the file or folder that was read in the end.
        choice: why that one of several, as a sentence; empty if there was no choice.
    """

    tensors: dict[str, Stored]
    skipped: dict[str, str]
    others: dict[str, Stored]
    path: str = ""
    choice: str = ""


def width(dtype: np.dtype[Any]) -> int:
    """Bits of an entry in a file, where floats of 4 and 6 bits are packed."""
    return int(ml_dtypes.finfo(dtype).bits) if dtype.kind in "fV" else 8 * dtype.itemsize


def spans(entries: int) -> Iterator[tuple[int, int]]:
    """First entry and number of entries of each piece."""
    for start in range(0, entries, _PIECE):
        yield start, min(_PIECE, entries - start)


def pieces_of(values: np.ndarray) -> Iterator[np.ndarray]:
    """An array of rank 1, cut."""
    return (values[start : start + count] for start, count in spans(len(values)))


def shown(path: object, name: str) -> str:
    """A name from a file, unless it would disturb a terminal."""
    if not name.isprintable():
        raise CheckpointError(f"{path} is damaged: it names a tensor or dtype {name!a}, which cannot be printed.")
    return name


def require_some(held: Checkpoint, where: str) -> None:
    """Raise unless a checkpoint holds a tensor of floats that could be read."""
    if not held.tensors:
        names = f" ({', '.join(f'{name}: {why}' for name, why in list(held.skipped.items())[:3])})" if held.skipped else ""
        raise CheckpointError(f"{where} holds no tensor of floats{names}; name a checkpoint that has some.")
