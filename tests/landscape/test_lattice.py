"""The census against plain enumeration in numpy and exact integers, and its slopes against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from precisionlab.landscape.lattice import census, fixed_axis, float_axis


def _net_loss(inputs, targets, theta):
    return 0.5 * jnp.sum(jnp.square(theta[2] * jnp.tanh(theta[0] * inputs + theta[1]) - targets))


def _net_by_numpy(axes, inputs, targets, threshold):
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    residuals = grid[:, 2:] * np.tanh(grid[:, :1] * inputs + grid[:, 1:2]) - targets
    return grid[0.5 * (residuals**2).sum(axis=1) <= threshold]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("axis", [fixed_axis(-2.0, 2.0, 3), float_axis(4, -2, 0)], ids=["fixed", "float"])
@pytest.mark.parametrize("slope_bound", [None, 4.0])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_census_equals_numpys_count_point_by_point(axis, slope_bound, d):
    inputs = np.array([-0.9, 0.1, 1.1])[:d]
    targets = 1.3 * np.tanh(0.9 * inputs + 0.4)
    expected = _net_by_numpy([axis] * 3, inputs, targets, 0.02)
    assert len(expected) > 4
    with jax.enable_x64(True):
        loss = Partial(_net_loss, jnp.asarray(inputs), jnp.asarray(targets))
    found = census(loss, [axis] * 3, 0.02, slope_bound=slope_bound, points=True)
    assert found.hits == len(expected)
    assert found.total == len(axis) ** 3
    assert found.points is not None
    np.testing.assert_array_equal(found.points, expected)
    assert census(loss, [axis] * 3, 0.02, slope_bound=slope_bound).hits == found.hits


@pytest.mark.parametrize("slope_bound", [None, 7.0])
def test_axes_may_differ_in_length_and_the_last_slab_is_not_full(slope_bound):
    axes = [np.arange(-3.0, 3.0, 0.05), np.arange(-2.0, 2.5, 0.03), np.array([0.0, 0.5, 0.75])]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    expected = int((0.5 * ((grid**2).sum(axis=1) - 1) ** 2 <= 0.01).sum())
    found = census(lambda w: 0.5 * (w @ w - 1.0) ** 2, axes, 0.01, slope_bound=slope_bound)
    assert found.hits == expected > 0
    assert found.total == len(grid)


@pytest.mark.parametrize("slope_bound", [None, 1.0])
def test_every_point_counts_once_where_all_do_and_a_nan_never(slope_bound):
    axes = [np.arange(-1.0, 1.0, 0.01), np.arange(0.0, 1.0, 0.0031)]
    total = len(axes[0]) * len(axes[1])
    found = census(lambda w: 0.0 * w[0], axes, 0.0, slope_bound=slope_bound)
    assert found.hits == found.total == total
    holes = census(lambda w: jnp.where(w[0] > 0.5, jnp.nan, 0.0 * w[1]), axes, 0.0, slope_bound=slope_bound)
    assert holes.hits == (axes[0] <= 0.5).sum() * len(axes[1])


def _root(n):
    root = math.isqrt(max(n, 0))
    return root if root * root == n else None


def test_every_representation_as_a_sum_of_squares_is_found():
    axis = fixed_axis(-32, 32, 0)
    for square in (25, 325, 841):
        roots = [_root(square - a * a) for a in range(-31, 32)]
        expected = sum(1 if root == 0 else 2 for root in roots if root is not None)
        assert census(lambda w, n=float(square): (w @ w - n) ** 2, [axis] * 2, 0.0).hits == expected


def test_float_axis_is_every_float_of_its_precision_once():
    for p in (1, 2, 5):
        axis = float_axis(p, -2, 1)
        assert len(axis) == 2 * 4 * 2 ** (p - 1)
        assert (np.diff(axis) > 0).all()
        significand, exponent = np.frexp(np.abs(axis))
        np.testing.assert_array_equal(significand * 2.0**p, np.round(significand * 2.0**p))
        assert exponent.min() == -1
        assert exponent.max() == 2


# Volume of the tube |r| <= s around the minima of r, exactly, at any s: what the count times h^n has to be.
_SHAPES = {
    "points": (2, lambda w: jnp.stack([w[0] - 0.3, w[1] + 0.41]), 1.0, lambda s: math.pi * s**2),
    "line": (2, lambda w: (w[0] - 0.5 * w[1])[None], math.sqrt(1.25), lambda s: 4 * 2 * s),
    "circle": (2, lambda w: (w @ w - 1.0)[None], 6.0, lambda s: math.pi * 2 * s),
    "plane": (3, lambda w: (w[0] + 0.5 * w[1] - 0.25 * w[2])[None], math.sqrt(1.3125), lambda s: 16 * 2 * s),
    "sphere": (3, lambda w: (w @ w - 1.0)[None], 7.0, lambda s: 4 / 3 * math.pi * ((1 + s) ** 1.5 - (1 - s) ** 1.5)),
    "axis": (3, lambda w: jnp.stack([w[0] - 0.3, w[1] + 0.2]), 1.0, lambda s: 4 * math.pi * s**2),
}


def _counted(name, axis, bits, spacing):
    n, residuals, bound, _ = _SHAPES[name]
    loss = Partial(lambda w: 0.5 * jnp.sum(jnp.square(residuals(w))))  # one function: one compilation
    return [
        census(loss, [axis(int(b))] * n, 0.5 * (4 * spacing(b)) ** 2, slope_bound=bound, most_points=1 << 40).hits for b in bits
    ]


def _slope(bits, counts):
    return np.polyfit(bits, np.log2(counts), 1)[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "d"), [("points", 2), ("line", 1), ("circle", 1), ("plane", 1), ("sphere", 1), ("axis", 2)])
def test_counts_on_a_fixed_lattice_follow_the_volume_of_the_tube(name, d):
    n, _, _, volume = _SHAPES[name]
    bits = np.arange(4, 8)
    counts = _counted(name, lambda b: fixed_axis(-2, 2, b), bits, lambda b: 2.0**-b)
    expected = [volume(4 * 2.0**-b) / 2.0 ** (-b * n) for b in bits]
    np.testing.assert_allclose(counts, expected, rtol=0.13)  # a line parallel to the lattice: 2 * 4 + 1 layers instead of 8
    assert abs(_slope(bits, counts) - (n - d)) < 0.05


# A point near the edge of a binade needs more bits: the density of floats jumps there, and the tube must not reach it.
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "d", "bits"),
    [("circle", 1, (5, 6, 7, 8)), ("sphere", 1, (4, 5, 6)), ("axis", 2, (7, 8, 9)), ("points", 2, (9, 10, 11))],
)
def test_slopes_on_a_floating_lattice_are_n_minus_d(name, d, bits):
    counts = _counted(name, lambda p: float_axis(p, -3, 0), bits, lambda p: 2.0 ** (1 - p))
    assert abs(_slope(bits, counts) - (_SHAPES[name][0] - d)) < 0.1


def test_blocks_spare_most_evaluations():
    axis = fixed_axis(-2, 2, 7)
    loss = lambda w: 0.5 * (w @ w - 1.0) ** 2  # noqa: E731
    every, spared = census(loss, [axis] * 2, 1e-4), census(loss, [axis] * 2, 1e-4, slope_bound=5.7)
    assert spared.hits == every.hits
    assert spared.evaluated < every.evaluated / 10


def test_too_many_weights_or_points_are_refused_before_any_loss_is_computed():
    def never(_theta):
        raise AssertionError("the loss was computed")

    axis = fixed_axis(-2, 2, 8)
    with pytest.raises(ValueError, match=r"5 weights, allowed are 1 to 4.*walking.*extents.*flatness"):
        census(never, [axis] * 5, 1.0)
    with pytest.raises(ValueError, match=r"1,073,741,824 lattice points.*most_points=268,435,456.*walking.*extents.*flatness"):
        census(never, [axis] * 3, 1.0)
    for wrong, words in (
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"slope_bound": 0.0}, "slope_bound"),
        ({"axes": [np.array([1.0, 0.0])]}, "ascending"),
        ({"axes": [np.array([math.nan])]}, "ascending"),
        ({"axes": []}, "0 weights"),
    ):
        with pytest.raises(ValueError, match=words):
            census(**({"loss": never, "axes": [axis], "threshold": 1.0} | wrong))


def test_axes_that_make_no_sense_are_refused():
    for arguments, words in (
        ((1.0, 1.0, 3), "ascending"),
        ((0.1, 0.2, 0), "no multiple"),
        ((-1.0, 1.0, 60), "whole number"),
        ((-1.0, 1.0, 30), "points on one axis"),
    ):
        with pytest.raises(ValueError, match=words):
            fixed_axis(*arguments)
    for arguments in ((0, 0, 1), (25, 0, 1), (3, 2, 1), (3.0, 0, 1)):
        with pytest.raises(ValueError, match="whole number"):
            float_axis(*arguments)
