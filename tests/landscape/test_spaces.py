"""Row and null spaces against dense linear algebra."""

import jax.numpy as jnp
import numpy as np
import pytest

from precisionlab.landscape import project_null, project_row, split_spaces
from tests.landscape.test_spectra import Net


@pytest.mark.parametrize(("d", "hidden", "k"), [(5, 6, 5), (40, 4, 16)])
def test_spaces_are_orthonormal_and_complete(d, hidden, k):
    net = Net(d, 2, hidden)
    split = split_spaces(net.residuals, net.theta)
    assert split.row.shape == (net.n, k)
    assert split.null.shape == (net.n, net.n - k)
    both = np.hstack([split.row, split.null])
    np.testing.assert_allclose(both.T @ both, np.eye(net.n), atol=1e-13)
    exact = net.jacobian(net.theta)
    np.testing.assert_allclose(exact @ split.null, 0, atol=1e-13 * np.linalg.norm(exact))
    projector = np.linalg.pinv(exact, rcond=1e-13) @ exact
    np.testing.assert_allclose(split.row @ split.row.T, projector, atol=1e-9)


def test_projections_split_vectors():
    net = Net(5, 2, 6)
    split = split_spaces(net.residuals, net.theta)
    vectors = np.random.default_rng(0).standard_normal((2, 3, net.n))
    row, null = project_row(split, vectors), project_null(split, vectors)
    np.testing.assert_allclose(row + null, vectors, atol=1e-13)
    np.testing.assert_allclose(np.sum(row * null, axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(project_row(split, row), row, atol=1e-13)
    np.testing.assert_allclose(project_null(split, null), null, atol=1e-13)
    np.testing.assert_allclose(project_null(split, split.row.T), 0, atol=1e-13)


def test_deficient_jacobians_have_larger_null_spaces():
    split = split_spaces(lambda w: jnp.stack([w[0] + w[1], 3.0 * (w[0] + w[1])]), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(np.abs(split.row.ravel()), [0.5**0.5, 0.5**0.5, 0], atol=1e-15)
    assert split.null.shape == (3, 2)


def test_no_row_space_and_no_null_space():
    nothing = split_spaces(lambda w: 0.0 * w[:1], [1.0, 2.0])
    assert nothing.row.shape == (2, 0)
    assert project_null(nothing, [3.0, 4.0]).tolist() == [3.0, 4.0]
    everything = split_spaces(lambda w: w, [1.0, 2.0])
    assert everything.null.shape == (2, 0)
    assert project_null(everything, [3.0, 4.0]).tolist() == [0.0, 0.0]


def test_large_bases_are_refused():
    with pytest.raises(ValueError, match="at most 10000"):
        split_spaces(lambda w: w[:1], np.zeros(20_000))
