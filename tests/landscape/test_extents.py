"""Extents against closed forms, and the frozen set against the half-gap law counted by rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from precisionlab.landscape.extents import extents_along_line, extents_along_walk, frozen_ratios
from precisionlab.numerics.formats import BFLOAT16, FLOAT16, Format, ieee_format
from precisionlab.numerics.rounding import round_to

_BITS = np.arange(6, 30, 4)
_SPACINGS = (2.0**-_BITS).tolist()


def _plane(slope, w):
    return slope @ w


def _circle(w):
    return (w @ w - 1.0) ** 2 / 2


def test_in_a_bowl_the_extent_is_that_of_the_weight_that_asks_most():
    curvatures = np.array([0.5, 3.0, 0.02])
    bowl = lambda w: jnp.sum(jnp.asarray(curvatures) * w**2) / 2  # noqa: E731
    for direction in ([1.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.0, 1e-3, 1.0]):
        found = extents_along_line(bowl, [0.0, 0.0, 0.0], direction, _SPACINGS, lr=0.1, longest=100.0)
        along = np.array(direction) / np.linalg.norm(direction)
        expected = np.array(_SPACINGS) / (2 * 0.1 * np.max(curvatures * np.abs(along)))
        np.testing.assert_allclose(found.length, expected, rtol=1e-12)
        assert not found.censored.any()


def test_on_a_circle_the_tangent_leaves_at_the_square_root_of_the_spacing():
    # At (1, t) the residual is t^2, the gradient (2 t^2, 2 t^3), and the first weight asks most.
    found = extents_along_line(_circle, [1.0, 0.0], [0.0, 3.0], _SPACINGS, lr=0.1)
    np.testing.assert_allclose(found.length, np.sqrt(np.array(_SPACINGS) / (4 * 0.1)), rtol=1e-7)
    assert abs(np.polyfit(_BITS, np.log2(found.length), 1)[0] + 0.5) < 1e-6


def test_on_a_circle_the_normal_leaves_where_a_cubic_says():
    # At (1 + t, 0) the gradient is 2 (2 t + t^2) (1 + t) in the first weight.
    found = extents_along_line(_circle, [1.0, 0.0], [1.0, 0.0], _SPACINGS, lr=0.1)
    for t, h in zip(found.length, _SPACINGS, strict=True):
        roots = np.roots([2.0, 6.0, 4.0, -h / (2 * 0.1)])
        (expected,) = roots[np.isreal(roots) & (roots.real > 0)].real
        assert abs(t / expected - 1) < 1e-8


def test_a_walk_along_the_circle_never_leaves_and_a_straight_one_does():
    angles = np.linspace(0.0, 2.0, 129)[:, None]
    around = np.hstack([np.cos(angles), np.sin(angles)])
    found = extents_along_walk(_circle, around, _SPACINGS, lr=0.1)
    assert found.censored.all()
    np.testing.assert_allclose(found.length, np.linalg.norm(np.diff(around, axis=0), axis=1).sum(), rtol=1e-14)
    straight = np.array([1.0, 0.0]) + np.linspace(0.0, 1.0, 33)[:, None] * np.array([0.0, 1.0])
    found = extents_along_walk(_circle, straight, _SPACINGS, lr=0.1)
    expected = extents_along_line(_circle, [1.0, 0.0], [0.0, 1.0], _SPACINGS, lr=0.1)
    assert not found.censored.any()
    # The residual t^2 is the difference of numbers near 1: a relative error of 2^-53 / t^2.
    assert (np.abs(found.length / expected.length - 1) < 2.0**-51 / expected.length**2).all()


def test_between_the_points_of_a_walk_one_may_be_taken_back_to_the_curve():
    angles = np.linspace(0.0, 1.0, 9)[:, None]
    around = np.hstack([np.cos(angles), np.sin(angles)])
    leaning = lambda w: _circle(w) + 0.5 * w[1] ** 2  # noqa: E731  on the circle the gradient is (0, sin)
    found = extents_along_walk(leaning, around, [0.1], lr=0.1, back=lambda w: w / np.linalg.norm(w))
    chords = 2 * np.sin(0.125 / 2)
    angle = math.asin(0.1 / (2 * 0.1))
    low = math.floor(angle / 0.125)
    inside = (angle - 0.125 * low) / 0.125
    assert abs(found.length[0] / chords - (low + inside)) < 0.01  # equal angles are almost equal parts of a chord
    assert not found.censored[0]


def test_the_first_exit_counts_even_if_the_set_is_entered_again():
    # The gradient is sin(w): outside between asin(0.5) and pi - asin(0.5), then inside again.
    found = extents_along_line(lambda w: -jnp.sum(jnp.cos(w)), [0.0], [1.0], [1.0, 4.0], lr=1.0, longest=4.0)
    assert abs(found.length[0] - math.asin(0.5)) < 1e-12
    assert found.length[1] == 4.0
    assert found.censored.tolist() == [False, True]


def test_a_start_that_is_not_frozen_has_no_extent():
    found = extents_along_line(_circle, [1.1, 0.0], [0.0, 1.0], [2.0**-20], lr=0.1)
    assert found.length.tolist() == [0.0]
    assert not found.censored[0]
    found = extents_along_walk(_circle, [[1.1, 0.0], [1.0, 0.0]], [2.0**-20], lr=0.1)
    assert found.length.tolist() == [0.0]


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, ieee_format(5, 2)])
def test_a_float_is_frozen_exactly_where_rounding_to_nearest_brings_it_back(fmt):
    random = np.random.default_rng(0)
    weights = np.exp2(random.uniform(-6, 6, (200, 3))) * random.choice([-1, 1], (200, 3))
    with jax.enable_x64(True):
        stored = np.asarray(round_to(jnp.asarray(weights), fmt))
        # Away from zero only: towards it the gap below a power of two is half as wide.
        sizes = np.abs(stored) * np.exp2(random.uniform(-4, 3, (200, 1)) - fmt.precision)
        moved = np.asarray(round_to(jnp.asarray(stored + np.sign(stored) * sizes), fmt)) != stored
    assert 0 < moved.any(axis=1).sum() < len(moved)
    for at, size, move in zip(stored[:40], sizes, moved, strict=False):
        with jax.enable_x64(True):
            loss = Partial(_plane, jnp.asarray(size))  # its gradient is the update
        assert (frozen_ratios(loss, at[None], [fmt], lr=1.0)[0, 0] > 1) == move.any()


def test_a_format_of_constant_spacing_is_a_spacing():
    fixed = Format(12, 3, 2.0**3, 2.0**3, zeros=1)  # multiples of 2^-8 below 8
    lengths = extents_along_line(_circle, [1.0, 0.0], [0.3, 1.0], [fixed, 2.0**-8], lr=0.1).length
    assert lengths[0] == lengths[1] > 0


def test_in_floats_the_normal_extent_halves_with_each_bit():
    theta = np.array([0.8, 0.6])
    formats = [ieee_format(8, p - 1) for p in range(8, 30)]
    lengths = extents_along_line(_circle, theta, theta, formats, lr=0.1).length
    assert abs(np.polyfit(range(8, 30), np.log2(lengths), 1)[0] + 1) < 0.01
    # Where the binade is fixed: gap 2^-p (both weights are in [1/2, 1)), gradient 2 (2 t + t^2) (1 + t) theta.
    t, p = lengths[-1], 29
    assert abs(2 * (2 * t + t * t) * (1 + t) * 0.8 * 0.1 / (0.5 * 2.0**-p) - 1) < 1e-6


def test_ratios_have_a_row_a_point_and_a_column_a_grid():
    points = np.random.default_rng(1).normal(size=(5, 2))
    found = frozen_ratios(_circle, points, [0.25, 0.5, BFLOAT16], lr=0.3)
    assert found.shape == (5, 3)
    gradient = 2 * (np.sum(points**2, axis=1, keepdims=True) - 1) * points
    np.testing.assert_allclose(found[:, 0], 0.3 * np.abs(gradient).max(axis=1) / 0.125, rtol=1e-13)
    np.testing.assert_allclose(found[:, 0], 2 * found[:, 1], rtol=1e-15)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"theta": [1.0]}, "one length"),
        ({"theta": [1.0, math.nan]}, "finite"),
        ({"direction": [0.0, 0.0]}, "direction is zero"),
        ({"grids": []}, "no grids"),
        ({"grids": [0.0]}, "spacing must be a positive"),
        ({"grids": [math.inf]}, "spacing must be a positive"),
        ({"grids": [Format(0, 0, 1.0, 1.0)]}, "precision"),
        ({"lr": 0.0}, "lr must be a positive"),
        ({"longest": -1.0}, "longest"),
    ],
)
def test_bad_input_is_refused_before_any_loss_is_computed(changed, words):
    def never(_theta):
        raise AssertionError("the loss was computed")

    good = {"theta": [1.0, 0.0], "direction": [0.0, 1.0], "grids": [0.5], "lr": 0.1, "longest": 1.0}
    chosen = good | changed
    with pytest.raises(ValueError, match=words):
        extents_along_line(never, chosen.pop("theta"), chosen.pop("direction"), chosen.pop("grids"), **chosen)


def test_walks_need_two_points():
    for wrong in ([[1.0, 0.0]], [1.0, 0.0], [[1.0], [math.nan]]):
        with pytest.raises(ValueError, match="two finite rows"):
            extents_along_walk(_circle, wrong, [0.5], lr=0.1)
    with pytest.raises(ValueError, match="finite rows"):
        frozen_ratios(_circle, [1.0, 0.0], [0.5], lr=0.1)
