"""A wide net on many real digits: its curvature from the points alone, and a minimum, without a matrix of n x n numbers.

The loss is half the sum of squared residuals, so at a minimum of value zero H = J^T J, whose eigenvalues other than zero are
those of the d x d matrix K = J J^T. For one hidden layer f(x) = b + v . phi(W x + c) the rows of J are, with s = v phi'(W x +
c),

    df/dW = s x^T,   df/dc = s,   df/dv = phi(W x + c),   df/db = 1,

and K_ij = (1 + x_i . x_j) s_i . s_j + phi_i . phi_j + 1: d^2 (h + k) products instead of the d^2 n of multiplying J out. A
right singular vector is J^T u / sigma, one pass backwards. A minimum is found by Levenberg and Marquardt's step in the space of
the data,

    theta <- theta - J^T (K + m I)^-1 r,

m falling tenfold with each success (and rising fourfold without): the step of least norm as m goes to zero, as in
`landscape.minima`, for the price of one Cholesky factorization of d x d.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

from precisionlab.landscape.vectors import EPS
from precisionlab.problems.fitting import Fit

__all__ = ["Directions", "Linearized", "Zero", "largest_lr", "linearized", "widened", "zero_near"]

_FEW = 2**16  # entries of J, below which it is decomposed itself
_TOLERANCE = 1e-10  # root mean square of the residuals, whose targets are +-1


class Zero(NamedTuple):
    """Where the search for a zero of the residuals ended.

    Attributes:
        theta: (n,).
        loss: half the sum of squared residuals there.
        steps: made, rejected ones included.
    """

    theta: np.ndarray
    loss: float
    steps: int


class Directions(NamedTuple):
    """The eigenvectors of J^T J whose eigenvalues are not zero.

    Attributes:
        values: (k,) eigenvalues, descending, k = min(d, n).
        left: (k, d) rows u, in the space of the data, of length 1.
        right: (k, n) rows v = J^T u / sigma, in that of the weights, of length 1.
    """

    values: np.ndarray
    left: np.ndarray
    right: np.ndarray


class Linearized(NamedTuple):
    """A tanh net with one hidden layer and one output, to first order around some weights; from `linearized`.

    Attributes:
        fit: the net.
        features: (d, hidden) phi(W x + c).
        slopes: (d, hidden) v phi'(W x + c).
        residuals: (d,).
    """

    fit: Fit
    features: np.ndarray
    slopes: np.ndarray
    residuals: np.ndarray

    @property
    def loss(self) -> float:
        """Half the sum of squared residuals."""
        return 0.5 * float(self.residuals @ self.residuals)

    def gram(self) -> np.ndarray:
        """K = J J^T, (d, d), without J."""
        points = self.fit.inputs
        return (1 + points @ points.T) * (self.slopes @ self.slopes.T) + self.features @ self.features.T + 1

    def pulled_back(self, rows: np.ndarray) -> np.ndarray:
        """J^T y for each row y of (k, d); (k, n), in the order in which a tree becomes a vector."""
        weights = np.stack([self.fit.inputs.T @ (row[:, None] * self.slopes) for row in rows])
        parts = [rows @ self.slopes, weights.reshape(len(rows), -1), rows.sum(axis=1, keepdims=True), rows @ self.features]
        return np.concatenate(parts, axis=1)

    def curvatures(self) -> np.ndarray:
        """The eigenvalues of J^T J that are not zero to within rounding, descending; at most min(d, n).

        Where J is small it is decomposed itself, and its singular values see twice as many digits as the eigenvalues of K do.
        """
        fit, most = self.fit, max(self.fit.d, self.fit.n)
        if fit.d * fit.n <= _FEW:
            values = np.linalg.svd(self.pulled_back(np.eye(fit.d)), compute_uv=False)
            return values[values > most * EPS * values[0]] ** 2
        values = np.linalg.eigvalsh(self.gram())[::-1]
        return values[values > most * EPS * values[0]]

    def directions(self) -> Directions:
        """The directions in which the residuals change to first order, and how much.

        Raises:
            ValueError: if J is large, and there are fewer weights than residuals.
        """
        fit = self.fit
        if fit.d * fit.n <= _FEW:
            columns, sizes, right = np.linalg.svd(self.pulled_back(np.eye(fit.d)), full_matrices=False)
            return Directions(sizes**2, columns.T, right)
        if fit.n < fit.d:
            raise ValueError(
                f"directions: {fit.n} weights have fewer than d = {fit.d} directions; take a wider net or fewer points."
            )
        values, columns = np.linalg.eigh(self.gram())
        left = columns.T[::-1]
        right = self.pulled_back(left)
        return Directions(values[::-1], left, right / np.linalg.norm(right, axis=1, keepdims=True))


def linearized(fit: Fit, theta: Any) -> Linearized:
    """A net to first order around some weights.

    Args:
        fit: the net.
        theta: (n,) weights.

    Raises:
        ValueError: if the net has other activations, more outputs or more layers.

    Example:
        >>> from precisionlab.landscape import jacobian
        >>> from precisionlab.experiments.manifold.settings import first_weights
        >>> from precisionlab.problems.fitting import parity_fit
        >>> fit = parity_fit(4, inputs=3, hidden=5)
        >>> theta = first_weights(fit, 0)
        >>> here, j = linearized(fit, theta), jacobian(fit.residuals_at, theta)
        >>> bool(np.allclose(here.gram(), j @ j.T, rtol=1e-12)), here.curvatures().shape, here.directions().right.shape
        (True, (4,), (4, 26))
    """
    params = fit.unflatten(np.asarray(theta, np.float64))
    if fit.r != 1 or set(params) != {"layer1", "layer2"} or not fit.name.endswith("tanh"):
        raise ValueError(
            f"linearized: the closed form is that of a tanh net with one hidden layer and one output; got {fit.name}, with "
            f"{len(params) - 1} hidden and {fit.r} outputs."
        )
    first, last = params["layer1"], params["layer2"]
    features = np.tanh(fit.inputs @ first["weight"] + first["bias"])
    slopes = last["weight"][:, 0] * (1 - features**2)
    return Linearized(fit, features, slopes, features @ last["weight"][:, 0] + last["bias"][0] - fit.targets[:, 0])


def zero_near(fit: Fit, theta: Any, *, steps: int = 60) -> Zero:
    """A zero of the residuals near a start; with fewer weights than residuals there may be none.

    Args:
        fit: the net, as in `linearized`.
        theta: (n,) the start.
        steps: at most.

    Raises:
        ValueError: as `linearized`.

    Example:
        >>> from precisionlab.experiments.manifold.settings import first_weights
        >>> from precisionlab.problems.fitting import parity_fit
        >>> fit = parity_fit(6, inputs=3, hidden=8)
        >>> zero_near(fit, first_weights(fit, 0)).loss < 1e-19
        True
    """
    point = np.asarray(theta, np.float64)
    here, damping = linearized(fit, point), 0.0
    for done in range(steps):
        if here.loss <= 0.5 * fit.d * _TOLERANCE**2:
            return Zero(point, here.loss, done)
        matrix = here.gram()
        size = float(np.trace(matrix)) / fit.d
        damping = damping or 0.1 * size
        matrix[np.diag_indices(fit.d)] += damping + fit.d * EPS * size  # the second part: so that there are square roots
        multipliers = scipy.linalg.cho_solve(
            scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False), here.residuals
        )
        there = point - here.pulled_back(multipliers[None, :])[0]
        then = linearized(fit, there)
        if then.loss < here.loss:
            point, here, damping = there, then, damping / 10
        else:
            damping *= 4
    return Zero(point, here.loss, steps)


def widened(fit: Fit, hidden: int, rows: Any) -> np.ndarray:
    """The weights of a net as those of a wider one whose further units are zero: it computes the same, with the same gradient.

    A unit with weights zero in and out has the feature tanh(0) = 0: no derivative by any of its weights is other than zero. So
    nets of all widths share one compiled program.

    Args:
        fit: the net, with one hidden layer.
        hidden: units of the wider one.
        rows: (..., n) weights, or directions.

    Returns:
        (..., n of the wider net).

    Example:
        >>> from precisionlab.experiments.manifold.settings import first_weights
        >>> from precisionlab.problems.fitting import parity_fit
        >>> fit, wide = parity_fit(4, inputs=3, hidden=5), parity_fit(4, inputs=3, hidden=9)
        >>> theta = first_weights(fit, 0)
        >>> bool(np.allclose(linearized(wide, widened(fit, 9, theta)).gram(), linearized(fit, theta).gram()))
        True
    """
    vectors = np.asarray(rows, np.float64)
    if vectors.ndim > 1:
        return np.stack([widened(fit, hidden, row) for row in vectors])
    params = fit.unflatten(vectors)
    more = hidden - params["layer1"]["bias"].size
    if more < 0:
        raise ValueError(f"widened: the net has {params['layer1']['bias'].size} hidden units already; got hidden={hidden}.")
    parts = (
        np.pad(params["layer1"]["bias"], (0, more)),
        np.pad(params["layer1"]["weight"], ((0, 0), (0, more))).ravel(),
        params["layer2"]["bias"],
        np.pad(params["layer2"]["weight"][:, 0], (0, more)),
    )
    return np.concatenate(parts)


def largest_lr(values: Any) -> float:
    """The largest power of two with lr lambda <= 1 for the largest eigenvalue: half of what is stable, at most.

    Args:
        values: eigenvalues, in any order.

    Example:
        >>> largest_lr([3.0, 1.0]), largest_lr([4.0])
        (0.25, 0.25)
    """
    return float(2.0 ** -np.ceil(np.log2(np.max(values))))
