"""Dimensions follow the data, losses fall by two bits a bit where a format sees every mode, and a judge reads arrays alone."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import dimension
from precisionlab.experiments.manifold.pictures.dimensions import draw_flat_directions, draw_loss_floor
from precisionlab.experiments.manifold.settings import make_fits, residuals_of, setting
from precisionlab.landscape import jacobian
from precisionlab.runs.results import Labelled

mpl.use("Agg")


@pytest.fixture(scope="module")
def measured() -> Measured:
    return dimension.measure(
        range(3),
        points=(1, 2, 3),
        outputs=2,
        inputs=2,
        hidden=6,
        precisions=(3, 8, 53),
        exponents=(5, 8),
        floor_precisions=(8, 18, 20, 22),
        steps=8192,
    )


def values(measured: Measured, name: str) -> Any:
    return measured.arrays[f"dimension_{name}"].values


def changed(measured: Measured, **arrays: Any) -> Measured:
    new = {f"dimension_{name}": array for name, array in arrays.items()}
    return measured._replace(
        arrays={name: Labelled(array.dims, new.get(name, array.values)) for name, array in measured.arrays.items()}
    )


@pytest.mark.slow
def test_nullities_follow_the_points_and_not_the_format(measured: Measured) -> None:
    n = 3 * 6 + 7 * 2
    assert int(values(measured, "size")) == n
    for name, array in measured.arrays.items():
        assert array.values.shape == tuple(len(measured.coords[dim]) for dim in array.dims), name
    np.testing.assert_array_equal(values(measured, "by_points"), np.broadcast_to([[n - 2], [n - 4], [n - 6]], (3, 3)))
    assert (values(measured, "nullity") == n - 4).all()
    seven, eight, _ = dimension.judge(measured)
    for finding in (seven, eight):
        assert finding.geometry.held
        assert finding.representation is not None
        assert finding.representation.held is False
    # The modes that a format adds are those of J^T J at the minimum: at 53 bits it is the one that the start was made from.
    given = setting(make_fits("generic", range(3), d=2, r=2, inputs=2, hidden=6), range(3))
    np.testing.assert_array_equal(values(measured, "lr"), given.lr)
    for seed in range(3):
        exact = np.linalg.svd(jacobian(residuals_of(given.residuals, seed), given.minima[seed]))[1] ** 2
        np.testing.assert_allclose(values(measured, "eigenvalues")[-1, seed], exact, rtol=0.2)
        seen = np.log2(np.linalg.norm(given.minima[seed]) * 2 / (given.lr[seed] * exact.min() * 0.5))
        assert values(measured, "seen_from")[seed] == pytest.approx(seen, abs=1e-6)
    added = dimension.shares(measured)
    assert list(added) == ["3 bits", "8 bits", "53 bits"]
    assert added["3 bits"][0] > 0
    assert added["53 bits"] == (0.0, 0.0, 0.0)
    axes = Figure().subplots(1, 2)
    assert draw_flat_directions(measured, axes[0]).lines
    assert draw_loss_floor(measured, axes[1]).lines


@pytest.mark.slow
def test_the_slope_is_taken_where_every_mode_is_seen(measured: Measured) -> None:
    bits = np.array(measured.coords["dimension_floor_precision"], np.float64)
    loss = np.where(bits[:, None] > 12, 2.0 ** (-2 * bits[:, None] - np.arange(3)[None, :]), 1.0)
    lost = np.ones((4, 3))
    exact = changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 12.0))
    finding = dimension.judge(exact)[2]
    assert finding.geometry.measured == pytest.approx(-2, abs=1e-12)
    assert finding.geometry.held
    assert finding.representation is None
    assert dimension.judge(changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 4.0)))[2].geometry.held is False
    # Two formats make no line, and arms that went on moving do not count.
    for silent in (
        changed(measured, loss=loss, lost=lost, seen_from=np.full(3, 19.0)),
        changed(measured, loss=loss, lost=lost * 0.5, seen_from=np.full(3, 12.0)),
    ):
        assert dimension.judge(silent)[2].geometry.held is None


@pytest.mark.slow
def test_the_judge_can_say_representation_and_nothing(measured: Measured) -> None:
    flat = np.full((3, 3), 20.0)
    grows = np.broadcast_to(np.array([30.0, 28.0, 26.0])[:, None, None], (3, 2, 3))
    for finding in dimension.judge(changed(measured, by_points=flat, nullity=grows))[:2]:
        assert finding.geometry.held is False
        assert finding.representation is not None
        assert finding.representation.held
        assert finding.p == 0.125  # against geometry, which fails
    missing = changed(measured, by_points=np.full((3, 3), np.nan), nullity=np.full((3, 2, 3), np.nan))
    for finding in dimension.judge(missing)[:2]:
        assert finding.geometry.held is False
        assert finding.representation is not None
        assert finding.representation.held is False


def test_points_that_do_not_ascend_are_refused() -> None:
    for points in ((3,), (3, 2), (2, 2)):
        with pytest.raises(ValueError, match=r"dimension: points are numbers of data, ascending, at least two; got"):
            dimension.measure(range(2), points=points)
