"""Which weights did not move between two checkpoints of one training?

Bit for bit: what never moved, what moved to a neighbouring value only, and which tensors hold a single number (norm weights
stuck at 1.0).
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.checkpoints.moving import are_comparable, moved
from precisionlab.checkpoints.reading import read_checkpoint
from precisionlab.checkpoints.stored import CheckpointError, Stored, require_some

__all__ = ["compare"]


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """What changed from one checkpoint to another, by the bits.

    Args:
        a: the earlier one, as `read_checkpoint` takes it.
        b: the later one.

    Returns:
        `rows` (one for each tensor that both hold in one shape, and in one dtype, of floats, whole numbers, quantized weights
        or their scales, or in two of floats) and `total`:

        - `tensor`, `dtype` ("bfloat16 and float32" if there are two), `entries`
        - `unchanged_fraction`: of the entries, whose bits are the same, in two dtypes whose value is exactly the same; NaN for
          an empty tensor
        - `one_ulp_fraction`: of the entries, which moved to a neighbouring value of the stored dtype; in two dtypes no further
          than to a neighbouring value of the coarser
        - `nonfinite`: entries that are NaN or infinite in either
        - `constant`: the one value that all entries have in b; NaN if there are several (or fewer than two entries)

        and `a`, `b` (what was read), `choices` (sentences: why that, of several), `unmoved` (names of the tensors without any
        change), `only_in_a`, `only_in_b`, `skipped` (name: reason).

    Raises:
        CheckpointError: if one cannot be read, or no tensor can be compared.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old, new = Path(folder) / "old.npz", Path(folder) / "new.npz"
        ...     np.savez(old, w=np.array([1.0, 2.0], np.float16))
        ...     np.savez(new, w=np.array([1.0, 2.002], np.float16))
        ...     row = compare(old, new)["rows"][0]
        >>> row["unchanged_fraction"], row["one_ulp_fraction"]
        (0.5, 0.5)
    """
    first, second = read_checkpoint(a), read_checkpoint(b)
    skipped = first.skipped | second.skipped
    mine, theirs = first.tensors | first.others, second.tensors | second.others
    names_a, names_b = {*first.tensors, *first.skipped}, {*second.tensors, *second.skipped}
    rows, sums = [], np.zeros(4, np.int64)
    for name, x in mine.items():
        y = theirs.get(name)
        if y is None:
            continue
        if x.shape != y.shape or not are_comparable(x.dtype, y.dtype):
            skipped[name] = f"{x.dtype.name} of shape {x.shape} in the first, {y.dtype.name} of shape {y.shape} in the second"
            continue
        counts, constant = _compare_entries(x, y)
        sums += counts
        skipped.pop(name, None)
        kind = x.dtype.name if x.dtype == y.dtype else f"{x.dtype.name} and {y.dtype.name}"
        rows.append({"tensor": name, "dtype": kind, **_shares(counts), "constant": constant})
    if not rows:
        require_some(first, f"compare: {a}")
        require_some(second, f"compare: {b}")
        raise CheckpointError(
            f"compare: {a} and {b} share no tensor of one name, dtype and shape, even of two dtypes of floats; name two of one "
            "model."
        )
    return {
        "a": first.path,
        "b": second.path,
        "choices": [held.choice for held in (first, second) if held.choice],
        "rows": rows,
        "total": _shares(sums),
        "unmoved": [row["tensor"] for row in rows if row["unchanged_fraction"] == 1],
        "only_in_a": sorted(names_a - names_b),
        "only_in_b": sorted(names_b - names_a),
        "skipped": skipped,
    }


def _shares(counts: np.ndarray) -> dict[str, Any]:
    entries, unchanged, one, nonfinite = counts.tolist()
    return {
        "entries": entries,
        "unchanged_fraction": unchanged / entries if entries else math.nan,
        "one_ulp_fraction": one / entries if entries else math.nan,
        "nonfinite": nonfinite,
    }


def _compare_entries(a: Stored, b: Stored) -> tuple[np.ndarray, float]:
    """Counts (entries, unchanged, moved by one value, not finite), and the only value in b, if there is only one."""
    counts, only, constant = np.zeros(4, np.int64), None, a.entries > 1
    alike = a.blocks is not None and b.blocks is not None and a.block == b.block
    ways = [stored.blocks if alike and stored.blocks else stored.pieces for stored in (a, b)]
    for x, y in zip(ways[0](), ways[1](), strict=True):
        bits = y.view(f"u{y.dtype.itemsize}")
        only = bits[0] if only is None else only
        constant = constant and bool((bits == only).all())
        found = moved(x, y)
        counts += np.array([len(x), len(x) - found.changed.sum(), found.one.sum(), found.nonfinite.sum()])
    return counts, float(np.array([only]).view(b.dtype)[0]) if constant else math.nan
