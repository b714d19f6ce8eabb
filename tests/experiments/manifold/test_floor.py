"""Losses fall by two bits a bit where a format sees every mode, and a judge reads arrays alone."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import floor
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.pictures.floors import draw_loss_floor
from precisionlab.experiments.manifold.settings import residuals_of, setting
from precisionlab.landscape import jacobian
from precisionlab.runs.results import Labelled

mpl.use("Agg")
NET = Net(points=3, inputs=2, hidden=6)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return floor.measure(range(3), net=NET, precisions=(8, 18, 20, 22), steps=8192)


def values(measured: Measured, name: str) -> Any:
    return measured.arrays[f"floor_{name}"].values


def changed(measured: Measured, **arrays: Any) -> Measured:
    new = {f"floor_{name}": array for name, array in arrays.items()}
    return measured._replace(
        arrays={name: Labelled(array.dims, new.get(name, array.values)) for name, array in measured.arrays.items()}
    )


@pytest.mark.slow
def test_what_is_seen_follows_from_the_softest_mode(measured: Measured) -> None:
    given = setting(NET, range(3))
    for seed in range(3):
        exact = np.linalg.svd(jacobian(residuals_of(given.residuals, seed), given.minima[seed]))[1] ** 2
        seen = np.log2(np.linalg.norm(given.minima[seed]) * np.sqrt(3) / (given.lr[seed] * exact.min() * 0.5))
        assert values(measured, "seen_from")[seed] == pytest.approx(seen, abs=1e-6)
    assert draw_loss_floor(measured, Figure().subplots()).lines


@pytest.mark.slow
def test_the_slope_is_taken_where_every_mode_is_seen(measured: Measured) -> None:
    bits = np.array(measured.coords["floor_precision"], np.float64)
    loss = np.where(bits[:, None] > 12, 2.0 ** (-2 * bits[:, None] - np.arange(3)[None, :]), 1.0)
    lost = np.ones((4, 3))
    exact = changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 12.0))
    finding = floor.judge(exact)[0]
    assert finding.geometry.measured == pytest.approx(-2, abs=1e-12)
    assert finding.geometry.held
    assert finding.representation is None
    assert floor.judge(changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 4.0)))[0].geometry.held is False
    # Two formats make no line, and arms that went on moving do not count.
    for silent in (
        changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 19.0)),
        changed(measured, loss=loss, lost=lost * 0.5, seen_from=np.full(3, 12.0)),
    ):
        assert floor.judge(silent)[0].geometry.held is None
