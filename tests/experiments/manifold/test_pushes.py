"""Pushes in worlds that can be computed by hand: what stays, what comes back, and what does not rest."""

import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.experiments.manifold.pushes import REAL, pushed
from precisionlab.experiments.manifold.worlds import World
from precisionlab.numerics.modes import stochastic


def bowl(theta, curvature):
    return 0.5 * jnp.sum(curvature * jnp.square(theta - 1.5))


def slope(theta, steepness):
    """No minimum: the weights go on for ever, by the same distance in every octave of time."""
    return jnp.exp(-steepness[0] * theta[0]) + 0.0 * jnp.sum(theta)


def world(loss, *curvatures, start=1.5, lr=1.0, trained=True) -> World:
    rows = np.array(curvatures)
    return World(loss, rows, np.full(rows.shape, start), np.full(len(rows), lr), trained)


@pytest.mark.parametrize("exponent", [7, 8, 9, 10, 11])
def test_the_half_gap_law_to_the_bit(exponent: int) -> None:
    """A push of 1/4 at 1.5 pulls back by 2^-e / 4; half a gap there is 2^-p."""
    bits = (5, 6, 7, 8, 9)
    found = pushed(world(bowl, [2.0**-exponent, 1.0]), bits, train=4, hold=8 * 2**exponent)
    np.testing.assert_array_equal(found.kept.shape, (5, 1, 2))
    stays = [2.0**-exponent / 4 <= 2.0**-p for p in bits]
    np.testing.assert_array_equal(found.kept[:, 0, 1] > 0.99, stays)
    np.testing.assert_array_equal(found.flat[:, 0], np.array(stays, float))


def test_what_comes_back_does_so_as_in_exact_arithmetic() -> None:
    found = pushed(world(bowl, [2.0**-6, 2.0**-9, 0.0]), (REAL,), train=4, hold=512)
    expected = (1 - np.array([2.0**-6, 2.0**-9, 0.0])) ** 512
    np.testing.assert_allclose(found.kept[0, 0], expected, rtol=1e-9, atol=1e-3)
    np.testing.assert_allclose(found.curvature[0, 0], [2.0**-6, 2.0**-9, 0.0], atol=1e-12)
    assert found.flat[0, 0] == 1


def test_no_update_is_lost_on_average() -> None:
    """Eight bits cannot follow 2^-10 to nearest; stochastically they do, and a direction without any slope stays flat."""
    soft = world(bowl, *[[2.0**-10, 0.0]] * 4)
    assert pushed(soft, (8,), train=4096, hold=8192).flat.tolist() == [[2.0] * 4]
    found = pushed(soft, (8,), stochastic, train=4096, hold=8192)
    assert found.flat.tolist() == [[1.0] * 4]
    assert found.rests.all()


def test_a_slope_without_a_minimum_rests_in_a_format_alone() -> None:
    """Cross-entropy in one dimension: by log 2 in every octave of time in real arithmetic."""
    found = pushed(world(slope, [1.0, 0.0], start=0.5, lr=0.5), (5, REAL), train=16384, hold=64)
    assert found.rests.tolist() == [[True], [False]]
    assert found.flat[1] == 0
    assert found.flat[0] >= 1  # a push down the slope stays too; one up comes back where the weights stopped at the threshold


def test_weights_that_were_never_trained_rest_nowhere() -> None:
    away = world(bowl, [0.5, 0.25], start=0.0, trained=False)
    assert not pushed(away, (8, REAL), train=4, hold=64).rests.any()
    assert pushed(away._replace(trained=True), (8, REAL), train=256, hold=64).rests.all()


def test_seeds_do_not_know_of_each_other() -> None:
    """More of them than one group, which come to rest at different times: each as if it were alone."""
    curvatures = [[2.0 ** -(k % 5 + 2), 0.25] for k in range(11)]
    together = pushed(world(bowl, *curvatures), (8,), train=16, hold=2048)
    for seed in (0, 4, 10):
        alone = pushed(world(bowl, curvatures[seed]), (8,), train=16, hold=2048)
        np.testing.assert_array_equal(together.kept[0, seed], alone.kept[0, 0])


def test_float64_has_no_stochastic_rounding() -> None:
    for bits in ((), (8, REAL)):
        with pytest.raises(ValueError, match=r"bits must be at least one, and below 53 under stochastic rounding"):
            pushed(world(bowl, [1.0]), bits, stochastic)
