"""Worlds written down by hand: what each judge says where the one hypothesis holds, and where the other does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.manifold import margins, ring, stagnation
from precisionlab.runs.results import Labelled

SEEDS, N, CONSTRAINTS = 3, 10, 4


def planted(name: str, coords: Mapping[str, Sequence[Any]], **arrays: Any) -> Measured:
    """A measurement of these arrays, whose judges read values and labels alone."""
    named = {f"{name}_{key}": np.asarray(values, np.float64) for key, values in arrays.items()}
    labels = {"seed": range(SEEDS)} | {f"{name}_{key}": values for key, values in coords.items()}
    return Measured(labels, {key: Labelled(tuple(f"axis{i}" for i in range(v.ndim)), v) for key, v in named.items()})


def by_seed(values: Any, times: int = 1) -> np.ndarray:
    """(..., seeds): the same for each."""
    return np.repeat(np.asarray(values, np.float64)[..., None], SEEDS * times, axis=-1)


def sides(findings: Sequence[Finding]) -> list[tuple[int, bool | None, bool | None]]:
    return [(f.row, f.geometry.held, None if f.representation is None else f.representation.held) for f in findings]


def a_stagnation(fall: float, share: float) -> Measured:
    spread = fall * (1 + 1e-3 * np.arange(SEEDS))
    return planted(
        "stagnation", {"index": range(CONSTRAINTS), "format": (4, 8)}, constraints=CONSTRAINTS, stagnated=np.ones((2, SEEDS)),
        loss=np.full((2, SEEDS), 1e-2), loss_after=1e-2 * 10.0 ** -np.broadcast_to(spread, (2, SEEDS))[..., None],
        row_share=share + 1e-3 * np.arange(2 * SEEDS).reshape(2, SEEDS),
    )  # fmt: skip


def test_stagnation() -> None:
    assert sides(stagnation.judge(a_stagnation(12.0, 0.98))) == [(3, True, None), (3, True, True)]
    assert sides(stagnation.judge(a_stagnation(0.0, 0.0)))[0] == (3, False, None)


@pytest.mark.parametrize(("recession", "flat", "expected"), [(np.log(2.0), 1.0, (False, True)), (0.0, 0.0, (True, False))])
def test_margins(recession: float, flat: float, expected: Any) -> None:
    bits = np.array([4.0, 6.0, 8.0])
    after = recession * bits + 1e-3 * np.arange(SEEDS)[:, None] * bits
    each = np.ones((SEEDS, len(bits)))
    sized = {"still": each, "directions": flat * margins._WEIGHTS * each, "contradictions": 0 * each, "growth": 2 * each}
    world = planted("margins", {"bits": bits}, before=after, after=after, true_gradient=each, true_loss=each, **sized)
    recedes, dimension_of, *_ = sides(margins.judge(world))
    assert (recedes[1:], dimension_of[1:]) == (expected, expected)


@pytest.mark.parametrize(("looks_like_a_ring", "expected"), [(True, (6, False, True)), (False, (6, True, False))])
def test_ring(looks_like_a_ring: bool, expected: Any) -> None:
    """Representation is right below the threshold, geometry above it and under stochastic rounding."""
    bits, predicted = np.array([3.0, 4.0, 8.0, 9.0]), np.full(SEEDS, 6.0)
    nearest = (bits > 6) | (not looks_like_a_ring)
    collapsed = np.broadcast_to(np.stack([nearest, np.ones(4, bool)]), (SEEDS, 2, 4))
    world = planted("ring", {"bits": bits}, collapsed=collapsed, predicted=predicted, threshold=predicted)
    assert sides(ring.judge(world)) == [expected, (6, True, None), (6, True, None), (6, True, None)]
