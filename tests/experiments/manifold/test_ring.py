"""The positive control: minima that only look like a ring, seen where the half-gap law says."""

import math

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import ring
from precisionlab.experiments.manifold.pictures.controls import draw_ring
from precisionlab.runs.results import Labelled

mpl.use("agg")


@pytest.fixture(scope="module")
def measured() -> Measured:
    return ring.measure(range(16))


def test_minima_hessian_and_drift() -> None:
    with jax.enable_x64(True):
        gradient, curvature = jax.jit(jax.grad(ring.loss)), jax.jit(jax.hessian(ring.loss))
        for place in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]):
            at = jnp.array(place)
            assert float(ring.loss(at)) == 0
            assert gradient(at).tolist() == [0, 0]
            hessian = np.asarray(curvature(at))
            along = abs(place[1]) == 1
            assert hessian.tolist() == [[2 * ring.EPS if along else 2, 0], [0, 2 if along else 2 * ring.EPS]]
        for phi in np.linspace(0.1, 6.2, 13):
            # On the floor of the valley, where the radial derivative is zero.
            r = 1.0
            for _ in range(60):
                r = math.sqrt(1 - 4 * ring.EPS * r * r * (math.cos(phi) * math.sin(phi)) ** 2)
            x, y = r * math.cos(phi), r * math.sin(phi)
            g = np.asarray(gradient(jnp.array([x, y])))
            assert (x * g[0] + y * g[1]) == pytest.approx(0, abs=1e-12)
            angular = (x * g[1] - y * g[0]) / r**2
            assert angular == pytest.approx(r * r * ring.EPS / 2 * math.sin(4 * phi), abs=1e-12)


@pytest.mark.parametrize("p", [3, 4, 5, 6])
def test_law_of_the_frozen_floor_against_every_radius(p: int) -> None:
    """Where the law says frozen there is, and where it says free there is not, a value between the two bounds."""
    angles = np.linspace(0.15, 0.75, 25)
    predicted = ring.threshold_bits(angles, [p], eps=0.25, learning_rate=0.25)
    for phi, first in zip(angles, predicted, strict=True):
        way = ring._COLLAPSED + np.linspace(0, 1, 400) * (phi - ring._COLLAPSED)
        frozen = False
        for turn in way:
            x, y = math.cos(turn), math.sin(turn)
            d = np.linspace(-2, 2, 4001)

            small = 0.25 * y * (d + 0.5 * x * x) <= math.ulp(y) * 2.0 ** (52 - p)
            large = 0.25 * x * (d + 0.5 * y * y) >= -math.ulp(x) * 2.0 ** (52 - p)
            frozen |= bool((small & large).any())
        assert frozen == math.isinf(first), phi


def test_the_control_is_seen(measured: Measured) -> None:
    assert ring.control_seen(measured)
    predicted, threshold = (measured.arrays[f"ring_{name}"].values for name in ("predicted", "threshold"))
    assert (np.abs(threshold - predicted) <= 1).all()
    assert len(set(predicted.tolist())) >= 3  # seeds differ, and are told apart
    assert np.mean(threshold == predicted) > 0.7
    collapsed = measured.arrays["ring_collapsed"].values
    assert collapsed[:, 1].all()  # no ring under stochastic rounding
    assert collapsed[:, 0, -1].all()  # nor in float64
    assert not collapsed[:, 0, :4].any()


def test_ends_are_where_the_start_was_or_at_the_nearest_minimum(measured: Measured) -> None:
    starts, ends = (measured.arrays[f"ring_{name}"].values for name in ("start", "end"))
    corners = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    nearest = corners[np.argmax(starts @ corners.T, axis=1)]
    assert np.abs(ends[:, 0, -1] - nearest).max() < 1e-12
    assert np.linalg.norm(ends[:, 0, 3] - starts, axis=1).max() < 0.15


@pytest.mark.parametrize("broken", ["stochastic", "coarse", "fine", "threshold"])
def test_a_control_that_was_not_seen_says_so(measured: Measured, broken: str) -> None:
    arrays = dict(measured.arrays)
    collapsed = arrays["ring_collapsed"].values.copy()
    if broken == "stochastic":
        collapsed[:, 1, :4] = False
    elif broken == "coarse":
        collapsed[:, 0] = True
    elif broken == "fine":
        collapsed[:, 0] = False
    else:
        arrays["ring_threshold"] = Labelled(("seed",), arrays["ring_threshold"].values + 2)
    arrays["ring_collapsed"] = Labelled(("seed", "ring_mode", "ring_bits"), collapsed)
    assert not ring.control_seen(Measured(measured.coords, arrays))


def test_figure(measured: Measured) -> None:
    from matplotlib.figure import Figure

    assert len(draw_ring(measured, Figure()).axes) == 2


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="got no seeds"):
        ring.measure([])
    with pytest.raises(ValueError, match="ascending, from 3 to 53"):
        ring.measure([0], bits=(8,))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        ring.measure([0], steps=0)
