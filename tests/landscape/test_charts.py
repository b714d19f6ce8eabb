"""Charts and paths on shapes whose geometry is known, and on a small net."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.landscape import (
    chart,
    manifold_path,
    plane_along,
    plane_at_minimum,
    plane_through,
    straight_path,
)
from precisionlab.landscape.minima import reach_minimum
from precisionlab.landscape.spaces import split_spaces
from precisionlab.numerics.formats import BFLOAT16, Format, fixed_point, ieee_format
from precisionlab.numerics.rounding import round_to

_INPUTS = np.array([-0.8, 0.9])


def _sphere(w):
    return jnp.sum(w**2, keepdims=True) - 1.0


def _sphere_loss(w):
    return 0.5 * jnp.square(jnp.sum(w**2) - 1.0)


def _net(w):  # three hidden units: 9 weights, 2 points
    return w[6:] @ jnp.tanh(w[:3, None] * _INPUTS[None, :] + w[3:6, None]) - jnp.asarray([0.7, -0.4])


def _net_loss(w):
    return 0.5 * jnp.sum(_net(w) ** 2)


def test_a_chart_has_the_loss_of_numpy_at_every_point():
    plane = plane_along([0.1, 0.2, 0.3], [1.0, 2.0, -1.0], [0.0, 1.0, 1.0])
    np.testing.assert_allclose(np.stack([plane.right, plane.up]) @ np.stack([plane.right, plane.up]).T, np.eye(2), atol=1e-15)
    around = chart(_sphere_loss, plane, (-1.0, 2.0, -0.5, 0.25), size=7)
    np.testing.assert_array_equal(around.right, np.linspace(-1, 2, 7))
    np.testing.assert_array_equal(around.up, np.linspace(-0.5, 0.25, 7))
    for i, y in enumerate(around.up):
        for j, x in enumerate(around.right):
            theta = np.array([0.1, 0.2, 0.3]) + x * plane.right + y * plane.up
            assert abs(around.loss[i, j] - 0.5 * (theta @ theta - 1) ** 2) < 1e-14
    assert around.cells is None


def test_three_points_lie_in_their_plane_where_they_should():
    a, b, c = np.random.default_rng(0).normal(size=(3, 6))
    plane = plane_through(a, b, c)
    for point, (x, y) in ((a, (0, 0)), (b, (np.linalg.norm(b - a), 0)), (c, ((c - a) @ plane.right, (c - a) @ plane.up))):
        np.testing.assert_allclose(plane.origin + x * plane.right + y * plane.up, point, atol=1e-13)


def test_null_directions_keep_the_loss_and_row_directions_do_not():
    minimum = reach_minimum(_net, np.linspace(-0.7, 0.8, 9))
    assert minimum.reached
    singular = np.linalg.svd(_jacobian(minimum.theta), compute_uv=False)
    for null in (0, 6):
        for row in (0, 1):
            plane = plane_at_minimum(_net, minimum.theta, null=null, row=row)
            around = chart(_net_loss, plane, 1e-4, size=3)
            across, along = around.loss[2, 1], around.loss[1, 2]
            assert abs(across / (0.5 * (singular[row] * 1e-4) ** 2) - 1) < 0.02  # the row direction's own curvature
            assert along < 1e-14  # of fourth order
            assert around.loss[1, 1] < 1e-30


def _jacobian(theta):  # by hand, in numpy
    first, shift, last = theta[:3, None], theta[3:6, None], theta[6:, None]
    value = np.tanh(first * _INPUTS + shift)
    slope = last * (1 - value**2)
    return np.concatenate([slope * _INPUTS, slope, value]).T


def test_cells_of_a_fixed_lattice_are_its_points_near_the_plane():
    fmt = fixed_point(1, 2)  # multiples of 1/4 below 2
    around = chart(_sphere_loss, plane_along([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]), 1.0, size=65, fmt=fmt, lr=0.1)
    cells = around.cells
    assert cells is not None
    grid = {(i / 4, j / 4) for i in range(-4, 5) for j in range(-4, 5)}
    assert {tuple(point) for point in cells.points.tolist()} == grid
    assert len(cells.points) == len(grid)
    np.testing.assert_array_equal(cells.offset, 0.0)
    np.testing.assert_allclose(np.stack([cells.right, cells.up], axis=1), cells.points, atol=1e-15)
    seen = np.stack(np.meshgrid(around.right, around.up), axis=-1)
    assert (np.abs(cells.points[cells.owner] - seen) <= 0.125).all()
    # In exact arithmetic: the step -lr 2 (w.w - 1) w is lost below half a spacing, and at half of it where the tie is even.
    for point, frozen in zip(cells.points, cells.frozen, strict=True):
        step = -0.1 * 2 * (point @ point - 1) * point
        stays = np.round((point + step) * 4) / 4 == point  # numpy rounds ties to even, too
        assert frozen == stays.all()
    assert 0 < cells.frozen.sum() < len(cells.frozen)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_of_exactly_half_a_gap_moves_odd_weights_alone(sign):
    plane = plane_along([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    cells = chart(lambda w: -sign * w[0] / 8, plane, 1.0, size=33, fmt=fixed_point(1, 2), lr=1.0).cells  # gap 1/4
    assert cells is not None
    np.testing.assert_array_equal(cells.frozen, cells.points[:, 0] * 4 % 2 == 0)


def test_a_plane_between_lattice_points_shows_them_with_their_distance():
    plane = plane_along([0.0, 0.0, 0.05], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    cells = chart(_sphere_loss, plane, 0.9, size=33, fmt=fixed_point(1, 2), lr=0.1).cells
    assert cells is not None
    np.testing.assert_allclose(cells.offset, 0.05, atol=1e-15)
    np.testing.assert_array_equal(cells.points[:, 2], 0.0)


@pytest.mark.parametrize("fmt", [BFLOAT16, ieee_format(5, 2)])
def test_frozen_cells_of_floats_are_those_that_a_rounded_step_leaves(fmt):
    plane = plane_along([0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8])
    cells = chart(_sphere_loss, plane, 0.5, size=21, fmt=fmt, lr=0.05).cells
    assert cells is not None
    w = cells.points
    with jax.enable_x64(True):
        after = np.asarray(round_to(jnp.asarray(w - 0.05 * 2 * (np.sum(w**2, axis=1, keepdims=True) - 1) * w), fmt))
    np.testing.assert_array_equal(cells.frozen, (after == w).all(axis=1))
    assert 0 < cells.frozen.sum() < len(w)


def test_the_path_between_points_of_a_sphere_is_the_great_circle():
    start, end = np.array([1.0, 0.0, 0.0]), np.array([-0.6, 0.8, 0.0])
    angle = math.acos(-0.6)
    path = manifold_path(_sphere, start, end, points=41)
    np.testing.assert_array_equal(path.points[[0, -1]], [start, end])
    np.testing.assert_allclose(np.linalg.norm(path.points, axis=1), 1.0, atol=1e-15)
    np.testing.assert_allclose(path.arc[-1], 40 * 2 * math.sin(angle / 80), rtol=1e-6)
    np.testing.assert_allclose(path.points[20], [math.cos(angle / 2), math.sin(angle / 2), 0.0], atol=1e-6)
    assert path.loss.max() < 1e-29
    assert path.gap < 1.001
    line = straight_path(_sphere_loss, start, end, points=41)
    assert abs(line.loss.max() - 0.5 * (np.linalg.norm((start + end) / 2) ** 2 - 1) ** 2) < 1e-15
    np.testing.assert_allclose(line.arc, np.linspace(0, np.linalg.norm(end - start), 41), rtol=1e-14)
    assert abs(line.gap - 1) < 1e-12


def test_opposite_points_need_a_way_around_the_centre():
    path = manifold_path(_sphere, [1.0, 0.0], [-1.0, 0.0], points=81, rounds=30, via=[0.1, 1.0])
    assert abs(path.arc[-1] / math.pi - 1) < 1e-3
    assert path.gap < 1.01
    assert path.points[:, 1].min() >= 0


def test_a_torn_string_shows():
    apart = lambda w: jnp.stack([w[0] ** 2 - 1.0])  # noqa: E731  two lines
    path = manifold_path(apart, [-1.0, 0.0], [1.0, 0.5], points=30)
    assert path.gap > 5


def test_two_minima_of_a_net_are_connected_and_the_straight_line_has_a_barrier():
    first = reach_minimum(_net, np.linspace(-0.7, 0.8, 9)).theta
    split = split_spaces(_net, first)
    second = reach_minimum(_net, first + 1.5 * split.null[:, 2] + 0.5 * split.null[:, 5]).theta
    line, path = straight_path(_net_loss, first, second), manifold_path(_net, first, second)
    assert path.loss.max() < 1e-28 < 1e-6 < line.loss.max()
    assert path.gap < 1.05
    assert path.arc[-1] > line.arc[-1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plane_along([0.0, 0.0], [1.0, 0.0], [2.0, 0.0]), "span no plane"),
        (lambda: plane_along([0.0, 0.0], [0.0, 0.0], [2.0, 0.0]), "span no plane"),
        (lambda: plane_along([0.0, 0.0], [1.0], [2.0, 0.0]), "one length"),
        (lambda: plane_along([0.0, math.nan], [1.0, 0.0], [0.0, 1.0]), "not finite"),
        (lambda: plane_at_minimum(_sphere, [1.0, 0.0], null=1), r"null=1, and there are 1 null directions"),
        (lambda: plane_at_minimum(_sphere, [1.0, 0.0], row=1), r"row=1, and there are 1 row directions"),
        (lambda: straight_path(_sphere_loss, [1.0, 0.0], [1.0, 0.0]), "same point"),
        (lambda: straight_path(_sphere_loss, [1.0, 0.0], [1.0]), "one length"),
        (lambda: straight_path(_sphere_loss, [1.0, 0.0], [0.0, 1.0], points=1), "at least 2"),
        (lambda: manifold_path(_sphere, [1.0, 0.0], [0.0, 1.0], points=2), "at least 3"),
        (lambda: manifold_path(_sphere, [1.0, 0.0], [0.0, 1.0], rounds=0), "rounds"),
        (lambda: manifold_path(_sphere, [1.0, 0.0], [0.0, 1.0], via=[1.0]), "one length"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reach": 0.0}, "reach"),
        ({"reach": (0.0, 0.0, 0.0, 1.0)}, "reach"),
        ({"size": 1}, "size"),
        ({"fmt": BFLOAT16}, "positive lr"),
        ({"fmt": BFLOAT16, "lr": -1.0}, "positive lr"),
        ({"fmt": Format(0, 0, 1.0, 1.0), "lr": 1.0}, "precision"),
    ],
)
def test_charts_that_make_no_sense_are_refused(changed, words):
    plane = plane_along([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    arguments = {"reach": 1.0} | changed
    with pytest.raises(ValueError, match=words):
        chart(_sphere_loss, plane, arguments.pop("reach"), **arguments)
