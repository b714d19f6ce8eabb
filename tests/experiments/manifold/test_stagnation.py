"""Arms train as a loop by hand does; what stagnated is unfrozen; and the judge can say either thing, and neither."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import precisionlab as pl
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import stagnation
from precisionlab.experiments.manifold.arms import descend, train_arms, train_masked, visible
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.pictures.training import draw_spectra, draw_unfreezing
from precisionlab.experiments.manifold.settings import (
    Setting,
    exact_minima,
    float_arms,
    losses_at,
    residuals_of,
    setting,
)
from precisionlab.landscape import jacobian
from precisionlab.runs.results import Labelled
from tests import oracle

mpl.use("Agg")
SEEDS = (0, 1)
NET = Net(points=3, inputs=2, hidden=5)


@pytest.fixture(scope="module")
def given() -> Setting:
    return setting(NET, SEEDS)


def gradient(given: Setting, seed: int, theta: np.ndarray) -> np.ndarray:
    """Of half the squared residuals of a tanh net with one hidden layer and one output, by hand."""
    inputs, targets = (np.asarray(leaf) for leaf in jax.tree.leaves(residuals_of(given.residuals, seed)))
    k, h = NET.inputs, NET.hidden
    bias, weight = theta[:h], theta[h : h + k * h].reshape(k, h)
    last, out = theta[h + k * h], theta[h + k * h + 1 :]
    hidden = np.tanh(inputs @ weight + bias)
    r = hidden @ out + last - targets[:, 0]
    back = r[:, None] * out * (1 - hidden**2)
    return np.concatenate([back.sum(axis=0), (inputs.T @ back).ravel(), [r.sum()], hidden.T @ r])


@pytest.mark.slow
def test_a_setting_starts_at_a_distance_in_every_mode(given: Setting) -> None:
    assert given.reached.all()
    assert losses_at(given.residuals, given.minima).max() < 1e-28
    assert (given.n, given.constraints) == (21, 3)
    for seed in SEEDS:
        away = given.starts[seed] - given.minima[seed]
        assert np.linalg.norm(away) == pytest.approx(0.5, rel=1e-12)
        values, vt = np.linalg.svd(jacobian(residuals_of(given.residuals, seed), given.minima[seed]), full_matrices=False)[1:]
        np.testing.assert_allclose(np.abs(vt @ away), 0.5 / math.sqrt(3), rtol=1e-9)
        at_start = jacobian(residuals_of(given.residuals, seed), given.starts[seed])
        largest = max(values[0], np.linalg.norm(at_start, 2)) ** 2
        assert math.log2(given.lr[seed]).is_integer()
        assert 0.5 < given.lr[seed] * largest <= 1


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero"])
def test_an_arm_is_the_loop_by_hand(given: Setting, rounding: str) -> None:
    formats = float_arms((4, 6))
    ends = train_arms(given, formats, rounding=rounding, steps=64, chunk=64)
    assert ends.steps == 64
    for arm, fmt in enumerate(formats.values()):
        for seed in SEEDS:
            theta = before = oracle.round_array(given.starts[seed], fmt, "nearest_even")
            for _ in range(64):
                before = theta
                theta = oracle.round_array(theta - given.lr[seed] * gradient(given, seed, theta), fmt, rounding)
            assert np.array_equal(ends.theta[arm, seed], theta), (arm, seed)
            assert ends.stagnated[arm, seed] == np.array_equal(before, theta)
    np.testing.assert_array_equal(ends.loss, losses_at(given.residuals, ends.theta))


@pytest.mark.slow
def test_a_seed_does_not_depend_on_its_company() -> None:
    both, alone = (setting(NET, seeds) for seeds in ((2, 0), (0,)))
    assert both.lr.tolist() == [2.0**-5, 2.0**-4]
    together, one = (train_arms(given, float_arms((5,)), steps=64, chunk=64).theta[0] for given in (both, alone))
    np.testing.assert_array_equal(together[1], one[0])


def test_stagnated_means_that_no_step_moves_it(given: Setting) -> None:
    ends = train_arms(given, float_arms((3, 5)), steps=2048, chunk=512)
    assert ends.stagnated.all()
    assert (ends.lost == 1).all()
    assert ends.steps < 2048, "the steps after the last update has landed are left out"
    for arm, fmt in enumerate(float_arms((3, 5)).values()):
        for seed in SEEDS:
            here = ends.theta[arm, seed]
            there = oracle.round_array(here - given.lr[seed] * gradient(given, seed, here), fmt, "nearest_even")
            assert np.array_equal(here, there)


@pytest.mark.slow
def test_masking_leaves_out_what_nearest_rounding_loses(given: Setting) -> None:
    fmt, rng = pl.BFLOAT16, np.random.default_rng(0)
    with jax.enable_x64(True):
        w = pl.round_to(jnp.asarray(rng.standard_normal(4000)), fmt)
        w = jnp.where(jnp.abs(jnp.frexp(w)[0]) == 0.5, 1.5, w)  # below a power of two the gap is half as wide
        u = jnp.asarray(rng.standard_normal(4000) * 2.0 ** rng.uniform(-14, -4, 4000))
        seen = np.asarray(visible(u, w, fmt)) != 0
        moved = np.asarray(pl.round_to(w + u, fmt) != w)
    assert np.array_equal(seen, moved)
    assert 0.2 < seen.mean() < 0.8
    ends = train_masked(given, float_arms((4,)), steps=256, chunk=256)
    for seed in SEEDS:
        theta = given.starts[seed]
        for _ in range(256):
            step = -given.lr[seed] * gradient(given, seed, theta)
            gap = 2.0 ** (np.floor(np.log2(np.abs(theta))) - 3)
            theta = theta + np.where(np.abs(step) > gap / 2, step, 0.0)
        np.testing.assert_allclose(ends.theta[0, seed], theta, rtol=0, atol=1e-12)
    # Its weights are on no lattice.
    assert (np.abs(ends.theta - oracle.round_array(ends.theta, float_arms((4,))["p4e8"], "nearest_even")) > 1e-6).any()


def test_descending_on_is_float64_descent(given: Setting) -> None:
    thetas = np.stack([given.starts, given.starts + 0.01])
    found = descend(given, thetas, steps=64, chunk=32)
    assert found.times.tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    for arm in range(2):
        for seed in SEEDS:
            theta = thetas[arm, seed]
            losses = []
            for _ in range(64):
                losses.append(theta)
                theta = theta - given.lr[seed] * gradient(given, seed, theta)
            np.testing.assert_allclose(found.theta[arm, seed], theta, rtol=0, atol=1e-13)
            path = [losses_at(given.residuals, np.stack([at] * 2))[seed] for at in losses]
            np.testing.assert_allclose(found.loss[arm, seed, :-1], np.array(path)[found.times[:-1]], rtol=1e-10)
    near = exact_minima(given.residuals, found.theta)
    assert near.reached.all()
    assert near.theta.shape == thetas.shape


@pytest.mark.slow
def test_an_arm_that_diverges_is_left_at_its_start(given: Setting) -> None:
    ends = train_arms(given._replace(lr=np.full(len(SEEDS), 64.0)), float_arms((24,)), steps=256, chunk=256)
    gone = ~np.isfinite(ends.loss[0])
    assert gone.any()
    for seed in np.flatnonzero(gone):
        np.testing.assert_array_equal(ends.theta[0, seed], given.starts[seed])
        assert not ends.stagnated[0, seed]
        assert ends.lost[0, seed] == 0
    after = descend(given._replace(lr=np.full(len(SEEDS), 64.0)), given.starts[None], steps=256, chunk=256)
    assert np.isfinite(after.theta).all()
    assert np.isinf(after.loss[0, gone, -1]).all()


def test_unknown_arms_are_refused(given: Setting) -> None:
    wrongs: tuple[Any, ...] = ({"rounding": "up"}, {"placement": "everything"})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"train_arms: rounding must be one of nearest_even, .*placement one of weights"):
            train_arms(given, float_arms((4,)), **wrong)
    with pytest.raises(ValueError, match=r"setting: got no seeds; give at least one"):
        setting(NET, ())
    with pytest.raises(ValueError, match=r"Net: data must be one of generic, digits; got 'noise'"):
        Net(data="noise")
    with pytest.raises(ValueError, match=r'stagnation: placements must begin with "weights"'):
        stagnation.measure((0,), placements=("all",))


@pytest.fixture(scope="module")
def measured() -> Measured:
    return stagnation.measure(range(3), net=NET, precisions=(4, 8), placements=("weights",), others=False, steps=2048)


def values(measured: Measured, name: str) -> Any:
    return measured.arrays[f"stagnation_{name}"].values


@pytest.mark.slow
def test_what_is_measured_is_what_it_says(measured: Measured) -> None:
    for name, array in measured.arrays.items():
        assert array.values.shape == tuple(len(measured.coords[dim]) for dim in array.dims), name
        assert name.startswith("stagnation_")
    given = setting(NET, range(3))
    ends = train_arms(given, float_arms((4, 8)), steps=2048)
    np.testing.assert_array_equal(values(measured, "loss"), ends.loss)
    np.testing.assert_allclose(values(measured, "loss_after")[..., 0], ends.loss, rtol=1e-12)
    for seed in range(3):
        residuals = residuals_of(given.residuals, seed)
        with jax.enable_x64(True):
            hessian = jax.hessian(lambda at, r=residuals: 0.5 * jnp.sum(r(at) ** 2))(jnp.asarray(ends.theta[0, seed]))
        np.testing.assert_allclose(values(measured, "eigenvalues")[0, seed], np.linalg.eigvalsh(hessian)[::-1], atol=1e-12)
    # To first order in the residuals the largest eigenvalue in the null space is the one derived; eight bits end near one.
    sizes = -np.sort(-np.abs(values(measured, "eigenvalues")[1]), axis=-1)
    derived = np.sqrt(2 * values(measured, "loss")[1]) * values(measured, "coefficient")[1]
    np.testing.assert_allclose(sizes[:, 3], derived, rtol=0.25)
    assert (values(measured, "row_share") > 0.9).all()
    assert (values(measured, "row_share") <= 1 + 1e-12).all()


@pytest.mark.slow
def test_unfreezing_speaks_for_geometry(measured: Measured) -> None:
    findings = stagnation.judge(measured)
    assert [finding.row for finding in findings] == [3, 3, 5, 5, 5]
    fall, share, _, gap, negative = findings
    assert fall.geometry.held
    assert fall.representation is None  # both sides say so
    for finding in (share, gap, negative):
        assert finding.geometry.held, finding.geometry
        assert finding.representation is not None
        assert not finding.representation.held
    assert fall.geometry.measured > 3
    assert share.representation is not None
    assert share.representation.held is False
    axes = Figure().subplots(1, 2)
    assert draw_unfreezing(measured, axes[0]).lines
    assert draw_spectra(measured, axes[1]).lines


def changed(measured: Measured, **arrays: Any) -> Measured:
    new = {f"stagnation_{name}": array for name, array in arrays.items()}
    return measured._replace(
        arrays={name: Labelled(array.dims, new.get(name, array.values)) for name, array in measured.arrays.items()}
    )


@pytest.mark.slow
def test_the_judge_can_say_representation_and_nothing(measured: Measured) -> None:
    after, shape = values(measured, "loss_after"), values(measured, "loss").shape
    frozen = changed(
        measured,
        loss_after=np.repeat(values(measured, "loss")[..., None], after.shape[-1], axis=-1),
        row_share=np.random.default_rng(0).normal(3 / 21, 0.01, shape),
        eigenvalues=np.broadcast_to(values(measured, "minimum_eigenvalues"), values(measured, "eigenvalues").shape),
        floor=np.broadcast_to(values(measured, "minimum_floor"), values(measured, "floor").shape),
    )
    findings = stagnation.judge(frozen)
    assert findings[0].geometry.held is False
    assert math.isnan(findings[1].p), "where nothing falls there is no motion to have a direction"
    assert findings[3].geometry.held is False
    assert findings[3].representation is not None
    assert findings[3].representation.held
    # An arm that went on moving does not count, whatever became of it.
    settled = np.ones(shape, bool)
    settled[1] = False
    after, share = after.copy(), values(measured, "row_share").copy()
    after[1], share[1] = values(measured, "loss")[1][:, None], 0.0
    for one, other in zip(
        stagnation.judge(changed(measured, stagnated=settled, loss_after=after, row_share=share))[:2],
        stagnation.judge(changed(measured, stagnated=settled))[:2],
        strict=True,
    ):
        assert one.geometry == other.geometry
    for finding in stagnation.judge(changed(measured, stagnated=np.zeros(shape, bool)))[:2]:
        assert finding.geometry.held is None
        assert math.isnan(finding.p)
