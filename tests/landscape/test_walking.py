"""Walks on manifolds whose geodesics are known, and on one of minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.landscape import jacobian, reach_minimum, retract, split_spaces, straight, walk
from tests.landscape.test_minima import fit


def sphere(w):
    return jnp.sum(w**2, keepdims=True) - 1.0


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("length", "steps"), [(1.0, 10), (2 * np.pi, 100), (3.0, 1)])
def test_on_a_circle_each_step_turns_by_its_arctangent(length, steps):
    there = walk(sphere, [1.0, 0.0], [0.3, 1.0], length, steps)
    angles = np.arange(steps + 1) * np.arctan(length / steps)
    np.testing.assert_allclose(there.points, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-13)
    np.testing.assert_allclose(there.directions, np.stack([-np.sin(angles), np.cos(angles)], axis=1), atol=1e-13)
    np.testing.assert_allclose(there.arc, np.arange(steps + 1) * 2 * np.sin(np.arctan(length / steps) / 2), atol=1e-13)
    assert there.reached.all()
    assert (there.losses < 1e-30).all()


def test_the_other_direction_goes_round_the_other_way():
    one, other = (walk(sphere, [1.0, 0.0], [0.0, sign], 1.0, 10).points for sign in (1.0, -1.0))
    np.testing.assert_allclose(one, other * [1, -1], atol=1e-14)


def test_on_a_sphere_it_follows_a_great_circle():
    random = np.random.default_rng(0)
    start = random.standard_normal(3)
    start /= np.linalg.norm(start)
    there = walk(sphere, start, random.standard_normal(3), 4.0, 40)
    normal = np.cross(start, there.directions[0])
    np.testing.assert_allclose(there.points @ normal, 0, atol=1e-13)
    np.testing.assert_allclose(there.directions @ normal, 0, atol=1e-13)


def test_on_a_cylinder_it_is_a_helix_to_second_order():
    errors = []
    for steps in (400, 800):
        there = walk(lambda w: w[:1] ** 2 + w[1:2] ** 2 - 1.0, [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], 6.0, steps)
        angle = np.unwrap(np.arctan2(there.points[:, 1], there.points[:, 0]))
        height, s = there.points[:, 2], 6.0 / steps / np.sqrt(2)
        np.testing.assert_allclose(angle[1], np.arctan(s), rtol=1e-13)
        # A pitch of one: each step rises by s and turns by arctan s, s - s^3/3, and the direction drifts with the cube only.
        np.testing.assert_allclose(height - angle, height * s**2 / 3, rtol=0.03, atol=1e-12)
        errors.append(height[-1] - angle[-1])
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.03)


def test_a_flat_manifold_is_walked_in_a_straight_line():
    start, along = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 0.0])
    there = walk(lambda w: jnp.sum(w, keepdims=True) - 6.0, start, along, 2.0, 8)
    np.testing.assert_allclose(there.points, straight(start, along, np.linspace(0, 2, 9)), atol=1e-14)
    np.testing.assert_allclose(there.arc, np.linspace(0, 2, 9), atol=1e-14)


@pytest.mark.slow
def test_a_walk_between_minima_stays_at_zero_and_a_line_does_not():
    residuals, starts = fit(8, 1, 2, 16, "tanh")
    start = reach_minimum(residuals, starts(1)[0]).theta
    along = split_spaces(residuals, start).null[:, 3]
    there = walk(residuals, start, along, 2.0, 50)
    assert there.reached.all()
    assert (there.losses < 1e-27).all()
    assert np.linalg.norm(there.points[-1] - start) > 1.0
    assert 1.5 < there.arc[-1] <= 2.0 * (1 + 1e-2)
    np.testing.assert_allclose(jacobian(residuals, there.points[-1]) @ there.directions[-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(there.directions, axis=1), 1, atol=1e-14)
    with jax.enable_x64(True):
        ends = [0.5 * float(jnp.sum(residuals(jnp.asarray(end)) ** 2)) for end in straight(start, along, [0.02, 0.04])]
    assert ends[1] / ends[0] == pytest.approx(16, rel=0.2)  # along a tangent the residual grows with the square of the distance


def test_a_walk_that_leaves_the_manifold_says_so():
    def gate(w):  # a circle, closed for x >= 0.9: there the second residual is at least 1
        return jnp.stack([w[0] ** 2 + w[1] ** 2 - 1.0, jnp.where(w[0] < 0.9, 0.0, 1.0 + w[2] ** 2)])

    there = walk(gate, [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], 3.0, 30)
    closed = there.points[:, 0] >= 0.9
    assert 5 < closed.sum() < 15
    assert (there.reached == ~closed).all()
    assert (there.losses[closed] >= 0.5).all()
    assert np.isfinite(there.points).all()


def test_retract_goes_to_the_nearest_point_of_a_sphere():
    points = np.random.default_rng(0).uniform(0.5, 2, (4, 2, 3))
    found = retract(sphere, points)
    np.testing.assert_allclose(found, points / np.linalg.norm(points, axis=-1, keepdims=True), atol=1e-14)


def test_retract_without_a_zero_stops_where_steps_do_not_help():
    found = retract(lambda w: w**2 + 1.0, [0.5])
    assert np.isfinite(found).all()
    assert abs(found[0]) <= 0.5


def never(w):
    raise AssertionError("computed, though it should have been refused")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: walk(sphere, [1.0, 1.0], [0.0, 1.0], 1.0, 10), "theta is no zero.*reach_minimum"),
        (lambda: walk(sphere, [1.0, 0.0], [1.0, 0.0], 1.0, 10), "no part in the null space"),
        (lambda: walk(lambda w: w - 1.0, [1.0, 1.0], [1.0, 0.0], 1.0, 10), "no part in the null space"),
        (lambda: walk(never, [1.0, 0.0], [0.0, 0.0], 1.0, 10), "not zero"),
        (lambda: walk(never, [1.0, 0.0], [0.0, 1.0, 2.0], 1.0, 10), r"shape of theta, \(2,\)"),
        (lambda: walk(never, [1.0, 0.0], [0.0, 1.0], 0.0, 10), "length must be a positive"),
        (lambda: walk(never, [1.0, 0.0], [0.0, 1.0], 1.0, 0), "steps a whole number"),
        (lambda: straight([1.0], [0.0], [1.0]), "not zero"),
    ],
)
def test_bad_walks_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
