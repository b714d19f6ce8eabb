"""Fits are the nets that numpy would write, their points are what they claim to be, and the theorem's numbers hold of them."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.flatten_util import ravel_pytree

from precisionlab.landscape import jacobian_spectrum, rank, reach_minimum
from precisionlab.problems import load_digits
from precisionlab.problems.fitting import SMOOTH, Fit, digits_fit, generic_fit, parity_fit

IN_NUMPY: dict[str, Any] = {
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0.0),
    "linear": lambda x: x,
}


def by_hand(params: Any, inputs: np.ndarray, activation: str) -> np.ndarray:
    values = inputs
    for number in range(1, len(params) + 1):
        layer = params[f"layer{number}"]
        values = values @ np.asarray(layer["weight"]) + np.asarray(layer["bias"])
        values = values if number == len(params) else IN_NUMPY[activation](values)
    return values


def minimum(fit: Fit, seed: int) -> Any:
    with jax.enable_x64(True):
        theta = np.asarray(ravel_pytree(fit.init(jax.random.key(seed)))[0])
    return reach_minimum(fit.residuals_at, theta)


@pytest.mark.slow
@pytest.mark.parametrize("activation", IN_NUMPY)
def test_a_fit_is_the_net_by_hand(activation: str) -> None:
    fit = generic_fit(4, r=2, inputs=3, hidden=5, activation=activation, layers=2, seed=7)
    sizes = (3, 5, 5, 2)
    assert (fit.n, fit.d, fit.r) == (sum((a + 1) * b for a, b in pairwise(sizes)), 4, 2)
    with jax.enable_x64(True):
        params = fit.init(jax.random.key(1))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
        theta, unravel = ravel_pytree(params)
        assert theta.shape == (fit.n,)
        expected = by_hand(params, fit.inputs, activation)
        np.testing.assert_allclose(fit.predict(params, fit.inputs), expected, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(fit.residuals(params), (expected - fit.targets).ravel(), rtol=1e-12, atol=1e-14)
        assert float(fit.loss(params)) == pytest.approx(0.5 * np.sum((expected - fit.targets) ** 2), rel=1e-13)
        assert np.array_equal(fit.residuals_at(theta), fit.residuals(params))
        for ours, theirs in zip(jax.tree.leaves(fit.unflatten(theta)), jax.tree.leaves(unravel(theta)), strict=True):
            assert np.array_equal(ours, theirs)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    assert fit.loss(jax.tree.map(jnp.asarray, narrow)).dtype == np.float32


def test_points_of_a_seed_are_shared_and_cannot_be_changed() -> None:
    few, many, other = generic_fit(3, inputs=3), generic_fit(6, inputs=3), generic_fit(6, inputs=3, seed=1)
    assert np.array_equal(few.inputs, many.inputs[:3])
    assert np.array_equal(few.targets, many.targets[:3])
    assert not np.intersect1d(many.inputs, other.inputs).size
    assert len(np.unique(many.inputs, axis=0)) == 6
    with pytest.raises(ValueError, match="read-only"):
        many.inputs[0, 0] = 0.0
    assert few.residuals_at.func is many.residuals_at.func, "one compiled program for all"


def test_digits_are_real_images_turned_and_scaled() -> None:
    fit = digits_fit(6, r=3, inputs=64, seed=2)
    data = load_digits()
    kept = data.train_images[data.train_labels < 3].astype(np.float64)
    # Turning keeps distances; scaling makes the first axis of variance one.
    largest = np.linalg.eigvalsh(np.cov(kept.T, bias=True))[-1]
    centred = kept - kept.mean(axis=0)
    lengths = np.linalg.norm(fit.inputs, axis=1) * np.sqrt(largest)
    rows = [int(np.argmin(np.abs(np.linalg.norm(centred, axis=1) - length))) for length in lengths]
    labels = data.train_labels[data.train_labels < 3][rows]
    assert np.array_equal(np.eye(3)[labels], fit.targets)
    for i in range(6):
        for j in range(6):
            apart = np.linalg.norm(fit.inputs[i] - fit.inputs[j]) * np.sqrt(largest)
            assert apart == pytest.approx(np.linalg.norm(kept[rows[i]] - kept[rows[j]]), abs=1e-10)
    whole = digits_fit(200, inputs=2)
    assert 0.5 < whole.inputs[:, 0].var() < 2
    assert whole.inputs[:, 0].var() > whole.inputs[:, 1].var()
    assert whole.targets.sum() == 0
    assert np.unique(whole.targets).tolist() == [-1.0, 1.0]
    leading = digits_fit(6, r=3, inputs=2, seed=2)
    assert np.array_equal(leading.inputs, fit.inputs[:, :2])


def test_parity_is_told_of_any_of_the_digits() -> None:
    fit = parity_fit(1797, seed=5)
    data = load_digits()
    labels = np.concatenate([data.train_labels, data.test_labels])
    pixels = np.concatenate([data.train_images, data.test_images]).astype(np.float64)
    assert (fit.n, fit.d, fit.r) == (66 * 128 + 1, 1797, 1)
    assert sorted(fit.targets[:, 0]) == sorted(np.where(labels % 2, -1.0, 1.0))
    assert fit.inputs[:, 0].var() == pytest.approx(1.0)
    # Whose image it is, the distances say: from the mean of all, and from the first.
    scale = np.sqrt(np.linalg.eigvalsh(np.cov(pixels.T, bias=True))[-1])
    lengths = np.linalg.norm(pixels - pixels.mean(axis=0), axis=1) / scale
    for point, target in zip(fit.inputs[:50], fit.targets[:50, 0], strict=True):
        found = int(np.argmin(np.abs(lengths - np.linalg.norm(point))))
        assert lengths[found] == pytest.approx(float(np.linalg.norm(point)), abs=1e-9)
        assert target == (-1.0 if labels[found] % 2 else 1.0)
    few = parity_fit(7, inputs=3, seed=5)
    assert np.array_equal(few.inputs, fit.inputs[:7, :3])
    with pytest.raises(ValueError, match=r"parity_fit: d must be a whole number from 1 to 1797; got 1798"):
        parity_fit(1798)


@pytest.mark.slow
@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_wide_nets_reach_zero_with_rank_d_r(activation: str) -> None:
    sizes = {"inputs": 3, "hidden": 7, "activation": activation}
    fit = digits_fit(3, r=2, **sizes) if activation == "softplus" else generic_fit(4, seed=3, **sizes)
    for seed in range(2):
        end = minimum(fit, seed)
        assert end.reached, (fit.name, seed)
        assert rank(jacobian_spectrum(fit.residuals_at, end.theta)) == fit.d * fit.r < fit.n


@pytest.mark.slow
def test_the_controls_fail_as_they_must() -> None:
    linear = generic_fit(6, inputs=3, hidden=7, activation="linear")
    affine = np.column_stack([linear.inputs, np.ones(6)])
    least = 0.5 * np.linalg.lstsq(affine, linear.targets, rcond=None)[1][0]
    under = generic_fit(12, inputs=1, hidden=3, activation="tanh")
    assert under.n < under.d * under.r
    ends = [minimum(linear, seed) for seed in range(2)]
    assert not any(end.reached for end in ends)
    # No minimum of a linear net is below that of the affine map it is.
    assert [end.loss for end in ends] == pytest.approx([least] * 2, rel=1e-6)
    assert least > 1e-3
    assert rank(jacobian_spectrum(linear.residuals_at, ends[0].theta)) == 4
    assert not minimum(under, 0).reached


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"generic_fit: d must be a whole number of at least 1; got 0"):
        generic_fit(0)
    with pytest.raises(ValueError, match=r"generic_fit: activation must be one of tanh, .*; got 'sine'"):
        generic_fit(3, activation="sine")
    with pytest.raises(ValueError, match=r"digits_fit: r must be a whole number from 1 to 10; got 11"):
        digits_fit(3, r=11)
    with pytest.raises(ValueError, match=r"digits_fit: d must be at most \d+, the images of 2 digits; got 1000"):
        digits_fit(1000)
    with pytest.raises(ValueError, match=r"digits_fit: inputs must be a whole number from 1 to 64; got 65"):
        digits_fit(3, inputs=65)
