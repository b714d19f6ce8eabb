"""The worlds are the losses that they say, and worlds of one shape are told apart again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import residuals_of
from precisionlab.experiments.manifold.worlds import NETWORKS, joined, margins_at, networks, objective
from precisionlab.landscape import jacobian

NET = Net(points=4, inputs=2, hidden=6)


def test_losses_are_those_of_their_names() -> None:
    seeds = [3, 4]
    made, fits = networks(NET, seeds, dial=7.0), NET.fits(seeds)
    assert tuple(made) == NETWORKS
    random = np.random.default_rng(0)
    for place, fit in enumerate(fits):
        theta = random.normal(size=fit.n)
        with jax.enable_x64(True):
            outputs = np.asarray(fit.predict(fit.unflatten(jnp.asarray(theta)), fit.inputs))[:, 0]
        signs = np.array([-1.0, 1.0, -1.0, 1.0])
        fitted = {
            "square": 0.5 * np.sum((outputs - fit.targets[:, 0]) ** 2),
            "cross_entropy": np.sum(np.log1p(np.exp(-signs * outputs))),
        }
        for name, world in made.items():
            with jax.enable_x64(True):
                found = float(objective(jnp.asarray(theta), world.of(np.array(place)).data))
            mu = float(world.data.decay[place])
            assert found == pytest.approx(fitted[name.removesuffix("_with_decay")] + 0.5 * mu * theta @ theta, rel=1e-12)
            assert world.lr[place] * mu == (2.0**-7 if name.endswith("decay") else 0.0)
            # The step is stable at the start, and would not be with four times as much.
            steepest = np.linalg.svd(jacobian(residuals_of(world.data.residuals, place), world.starts[place]))[1].max() ** 2
            assert world.lr[place] * steepest * (0.25 if name.startswith("cross") else 1.0) <= 1


def test_seeds_of_joined_worlds_are_one_after_another() -> None:
    made = networks(NET, [3, 4])
    together = joined([made["square"], made["cross_entropy"]])
    np.testing.assert_array_equal(together.data.crossed, [0, 0, 1, 1])
    one = together.of(np.array([3]))
    np.testing.assert_array_equal(one.starts[0], made["cross_entropy"].starts[1])
    assert one.lr == made["cross_entropy"].lr[1]


def test_margins_are_those_of_the_least_sure_point() -> None:
    seeds = [3, 4]
    made = networks(NET, seeds)
    found = margins_at(made["cross_entropy"], made["cross_entropy"].starts)
    for place, fit in enumerate(NET.fits(seeds)):
        with jax.enable_x64(True):
            params = fit.unflatten(jnp.asarray(made["cross_entropy"].starts[place]))
            outputs = np.asarray(fit.predict(params, fit.inputs))[:, 0]
        assert found[place] == pytest.approx((np.array([-1, 1, -1, 1]) * outputs).min(), rel=1e-12)
