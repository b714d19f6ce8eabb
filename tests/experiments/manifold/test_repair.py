"""The four cells of the two by two, counted against numpy, and claims that read arrays alone."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import repair
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.pictures.training import draw_two_by_two
from precisionlab.experiments.manifold.settings import float_arms, residuals_of, setting
from precisionlab.landscape import jacobian
from precisionlab.runs.results import Labelled
from tests import oracle

mpl.use("Agg")
NET = Net(points=3, inputs=2, hidden=5)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return repair.measure(range(3), net=NET, precisions=(7,), steps=4096, draws=64)


def values(measured: Measured, name: str) -> Any:
    return measured.arrays[f"repair_{name}"].values


@pytest.mark.slow
def test_cells_are_counted_as_numpy_counts_them(measured: Measured) -> None:
    given = setting(NET, range(3))
    fmt, rng = float_arms((7,))["p7e8"], np.random.default_rng(0)
    for seed in range(3):
        theta = given.minima[seed]
        _, s, vt = np.linalg.svd(jacobian(residuals_of(given.residuals, seed), theta), full_matrices=False)
        stored = oracle.round_array(theta, fmt, "nearest_even")
        flat: dict[str, int] = {str(cell): 21 - 3 for cell in repair.CELLS}
        for k in range(3):
            u = -given.lr[seed] * s[k] ** 2 * np.linalg.norm(theta) * vt[k]
            gap = 2.0 ** (np.floor(np.log2(np.abs(theta))) - 6)
            below, above = (oracle.round_array(stored + u, fmt, mode) for mode in ("downward", "upward"))
            chance = np.where(above > below, (stored + u - below) / np.where(above > below, above - below, 1), 0)
            drawn = np.where(rng.random((4000, 21)) < chance, above, below).mean(axis=0)
            moved = {
                "neither": u,
                "stagnation": np.where(np.abs(u) > gap / 2, u, 0),
                "lattice": drawn - stored,
                "both": oracle.round_array(stored + u, fmt, "nearest_even") - stored,
            }
            for cell, change in moved.items():
                flat[cell] += (change @ u) / (u @ u) < 0.5
        assert values(measured, "flat")[:, 0, seed].tolist() == [flat[cell] for cell in repair.CELLS]


@pytest.mark.slow
def test_stagnation_is_the_cause_and_the_lattice_is_not(measured: Measured) -> None:
    for name, array in measured.arrays.items():
        assert array.values.shape == tuple(len(measured.coords[dim]) for dim in array.dims), name
    loss = dict(zip(repair.ARMS, values(measured, "loss")[:, 0], strict=True))
    assert (loss["neither"] < 1e-8).all()
    assert (loss["lattice"] < loss["both"]).all()
    assert (loss["kahan"] < loss["both"]).all()
    assert (loss["master"] < loss["both"]).all()
    assert (np.abs(np.log10(loss["stagnation"] / loss["both"])) < 1).all()
    assert draw_two_by_two(measured, Figure().subplots()).lines


def changed(measured: Measured, **arrays: Any) -> Measured:
    new = {f"repair_{name}": array for name, array in arrays.items()}
    return measured._replace(
        arrays={name: Labelled(array.dims, new.get(name, array.values)) for name, array in measured.arrays.items()}
    )


@pytest.mark.slow
def test_causes_compare_cells(measured: Measured) -> None:
    flat = np.full((4, 1, 3), 18.0)
    flat[1] = flat[3] = [[20.0, 21.0, 20.0]]
    loss = np.full((6, 1, 3), 1e-2)
    loss[2] = [[1e-5, 1e-6, 1e-5]]
    claims = repair.causes(changed(measured, flat=flat, loss=loss))
    assert [claim.held for claim in claims] == [True, True, False, False]
    swapped = repair.causes(changed(measured, flat=flat[[0, 2, 1, 3]], loss=loss[[0, 2, 1, 3, 4, 5]]))
    assert [claim.held for claim in swapped] == [False, False, True, True]


@pytest.mark.slow
def test_repairs_are_told_by_how_much_they_lower_the_loss(measured: Measured) -> None:
    loss = np.full((6, 1, 3), 1e-2)
    loss[repair.ARMS.index("lattice")] = [[1e-4, 1e-5, 1e-3]]
    loss[repair.ARMS.index("master")] = [[1e-1, 1e0, 1e-1]]
    sr, kahan, master = repair.repairs(changed(measured, loss=loss))
    assert (round(sr.measured, 6), sr.held) == (-2.0, True)
    assert (kahan.measured, kahan.held) == (0.0, None)
    assert (round(master.measured, 4), master.held) == (1.3333, False)
