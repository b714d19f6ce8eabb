"""Worlds written down by hand: what each judge says where the one hypothesis holds, and where the other does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.manifold import dimension, margins, repair, ring, stagnation
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


@pytest.mark.parametrize(
    ("left", "expected"), [(N - CONSTRAINTS, [(4, True, False), (9, True, False)]), (0, [(4, False, True), (9, False, True)])]
)
def test_repair(left: int, expected: Any) -> None:
    loss = by_seed(np.where([arm in ("lattice", "kahan") for arm in repair.ARMS], 1e-6, 1e-2)[:, None])
    world = planted(
        "repair", {}, size=N, constraints=CONSTRAINTS, loss=loss,
        nullity=np.full((len(repair.ARMS), 1, SEEDS), left), flat=np.full((len(repair.CELLS), 1, SEEDS), left),
    )  # fmt: skip
    assert sides(repair.judge(world)) == expected


def a_dimension(by_points: Any, nullity: Any, slope: float) -> Measured:
    bits = np.array([4.0, 6.0, 8.0, 10.0])
    jitter = 1 + 1e-3 * np.arange(SEEDS)
    return planted(
        "dimension", {"points": (1, 2, 3), "precision": (4, 8), "floor_precision": bits}, outputs=2, size=N,
        constraints=CONSTRAINTS, by_points=by_seed(by_points), nullity=by_seed(nullity), seen_from=np.zeros(SEEDS),
        lost=np.ones((4, SEEDS)), loss=jitter * 2.0 ** (slope * bits[:, None]),
    )  # fmt: skip


def test_dimension() -> None:
    geometry = a_dimension([N - 2, N - 4, N - 6], [[N - 4], [N - 4]], -2.0)
    assert sides(dimension.judge(geometry)) == [(7, True, False), (8, True, False), (8, True, None)]
    representation = a_dimension([N, N, N], [[N], [N - 2]], -1.0)
    assert sides(dimension.judge(representation)) == [(7, False, True), (8, False, True), (8, False, None)]


def a_stagnation(fall: float, share: float) -> Measured:
    spread = fall * (1 + 1e-3 * np.arange(SEEDS))
    return planted(
        "stagnation", {"index": range(CONSTRAINTS), "format": (4, 8)}, constraints=CONSTRAINTS, stagnated=np.ones((2, SEEDS)),
        loss=np.full((2, SEEDS), 1e-2), loss_after=1e-2 * 10.0 ** -np.broadcast_to(spread, (2, SEEDS))[..., None],
        row_share=share + 1e-3 * np.arange(2 * SEEDS).reshape(2, SEEDS),
    )  # fmt: skip


def test_stagnation() -> None:
    assert sides(stagnation.judge(a_stagnation(12.0, 0.98))) == [(3, True, False), (3, True, True)]
    assert sides(stagnation.judge(a_stagnation(0.0, 0.0)))[0] == (3, False, True)


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
    assert sides(ring.judge(world)) == [expected, (6, True, True), (6, True, None)]
