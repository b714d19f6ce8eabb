"""Curvature in Adam's metric against a dense matrix, what holds a direction against arithmetic, decay against its threshold."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from precisionlab.experiments.common.measured import Measured, taken_apart
from precisionlab.experiments.manifold import transformer
from precisionlab.experiments.manifold.adam_metric import adam_curvature, counts_above
from precisionlab.experiments.manifold.pictures.transformer import draw_transformer
from precisionlab.landscape import moment
from precisionlab.problems import transformer_apply, transformer_init
from precisionlab.runs.results import Labelled

mpl.use("Agg")


@pytest.mark.slow
def test_curvature_is_that_of_the_dense_matrix_in_the_metric() -> None:
    """P^-1 G made from the Jacobian of the logits, of n = 1,158 weights, with a P that differs from weight to weight."""
    params = transformer_init(jax.random.key(0), context=3, width=2, heads=1, layers=1)
    random = np.random.default_rng(0)
    scale = jax.tree.map(lambda leaf: random.uniform(0.01, 1.0, leaf.shape), params)
    inputs, targets = random.integers(0, 256, (2, 3)), random.integers(0, 256, (2, 3))
    with jax.enable_x64(True):
        theta, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params))

        def logits(w: Any) -> Any:
            return transformer_apply(unravel(w), jnp.asarray(inputs), 1).reshape(-1, 256)

        rows = np.asarray(jax.jit(jax.jacfwd(logits))(theta))
        chances = np.asarray(jax.nn.softmax(logits(theta)))
    metric = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(scale)])
    # With q the softmax, sum_k q_k (J_k - J_mean) (J_k - J_mean)^T, the mean over the six places.
    centred = rows - np.einsum("tk,tkn->tn", chances, rows)[:, None, :]
    factor = (np.sqrt(chances / 6)[..., None] * centred).reshape(-1, theta.size) / np.sqrt(metric)
    exact = np.linalg.eigvalsh(factor.T @ factor)
    found = adam_curvature(params, scale, (inputs, targets), heads=1, probes=4, depth=60)
    assert found.nodes.max() == pytest.approx(exact[-1], rel=1e-6)
    trace = moment(found, 1)
    assert trace.value == pytest.approx(exact.sum() / theta.size, abs=4 * trace.error)
    thresholds = np.array([1e-4, 1e-3, 1e-2]) * exact[-1]
    counts, errors = counts_above(found, theta.size, thresholds)
    known = (exact[:, None] > thresholds).sum(axis=0)
    assert (np.abs(counts - known) < 4 * errors + 2).all(), (counts, errors, known)


def test_the_largest_of_three_holds() -> None:
    spectrum = 2.0 ** -np.arange(20)

    def above(threshold: float) -> float:
        return float((spectrum > threshold).sum())

    lr, decay = 2.0**-10, 2.0**-3  # decay's pull is 2^-13
    for p, expected in ((8, (8, 0, 12)), (13, (13, 0, 7)), (14, (13, 7, 0)), (53, (13, 7, 0))):
        assert transformer.held(above, 20, p, lr, decay) == expected
    # Without decay the format is left with everything that it cannot see, at any precision.
    assert transformer.held(above, 20, 14, lr, 0.0) == (14, 0, 6)


def test_decay_alone_moves_weights_from_its_threshold_on() -> None:
    """A pull of 2^-10 of a weight passes half a gap, 2^-(p + 1) to 2^-p of it, from p = 9 (some weights) or 10 on (all)."""
    weights = np.random.default_rng(0).standard_normal(4000)
    shares = [transformer._moved(weights, p, 2.0**-10) for p in (8, 9, 10, 11)]
    assert shares[0] == 0.0
    assert 0.0 <= shares[1] < 0.1
    assert 0.1 < shares[2] <= 1.0
    assert shares[3] == 1.0


@pytest.fixture(scope="module")
def measured() -> Measured:
    sizes = {"context": 4, "width": 8, "batch_size": 8, "limit": 200_000, "windows": 4, "probes": 2, "depth": 20}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax needs it
        return transformer.measure(range(2), bits=(8, 24, 53), steps=400, **sizes)


@pytest.mark.slow
def test_bfloat16_holds_what_curvature_does_not_and_decay_cannot(measured: Measured) -> None:
    arrays = {name.removeprefix("transformer_"): array.values for name, array in measured.arrays.items()}
    for name, array in measured.arrays.items():
        assert array.values.shape == tuple(len(measured.coords[dim]) for dim in array.dims), name
    n = int(arrays["n"])
    np.testing.assert_allclose(arrays["held"].sum(axis=1), n)
    geometry, decay, fmt = np.moveaxis(arrays["held"], 1, 0)
    assert (fmt[0] > 0.5 * n).all()
    assert not decay[0].any()
    assert not fmt[1:].any()
    assert (geometry[0] < geometry[1]).all()
    assert arrays["moved"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    shrunk = np.log(arrays["rms"][:, 1] / arrays["rms"][:, 0])
    np.testing.assert_allclose(shrunk[2], shrunk[0], rtol=0.2)
    assert (np.abs(shrunk[1]) < 0.6 * np.abs(shrunk[0])).all()
    assert (arrays["lost"][0] < arrays["lost"][1]).all()
    assert list(taken_apart(measured)) == [("transformer", "")]


@pytest.mark.slow
def test_claims_and_figure(measured: Measured) -> None:
    from matplotlib.figure import Figure

    assert len(draw_transformer(measured, Figure()).axes) == 3
    told = transformer.claims(measured)
    (format_holds, other) = (c for c in told if ": 8 bits: share of the directions that only the format holds" in c.name)
    assert (format_holds.held, other.held) == (False, True)
    # From arrays in which curvature holds everything and decay does all that it does in float32, geometry wins.
    n = float(measured.arrays["transformer_n"].values)
    held = np.zeros_like(measured.arrays["transformer_held"].values)
    held[:, 0] = n
    rms = measured.arrays["transformer_rms"].values.copy()
    rms[1:] = rms[0]
    moved = np.ones_like(measured.arrays["transformer_moved"].values)
    new = {"transformer_held": held, "transformer_rms": rms, "transformer_moved": moved}
    arrays = {name: Labelled(a.dims, new.get(name, a.values)) for name, a in measured.arrays.items()}
    for claim in transformer.claims(measured._replace(arrays=arrays)):
        assert claim.held is claim.name.startswith("geometry"), claim


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer: give at least one seed, a positive lr and decay"):
        transformer.measure([])
    with pytest.raises(ValueError, match="transformer: give at least one seed, a positive lr and decay"):
        transformer.measure([0], decay=0.0)
