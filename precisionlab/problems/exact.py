"""Problems whose answers are known, so that what a format did can be told from what the optimizer did.

A quadratic bowl L(w) = 1/2 sum_i h_i (w_i - m_i)^2 is descended in closed form: each coordinate by itself,

    w(t) - m = (1 - lr h)^t (w(0) - m),

whatever the number of steps. With gradients of noise sigma the iterates end up scattered about m with variance lr
sigma^2 / (h (2 - lr h)). Least squares L(w) = |X w - y|^2 / (2n) is the same bowl in other axes: its Hessian X'X/n,
its minimum and, where there are more unknowns than equations, its flat directions come from dense linear algebra.
Answers are numpy float64 and belong to the float32 data that training sees, not to the numbers those were rounded
from.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, PRNGKeyArray
from precisionlab.problems.base import Problem, uniform_indices, whole

__all__ = ["LeastSquaresAnswers", "QuadraticAnswers", "gd_trajectory", "least_squares", "quadratic", "sgd_variance"]


class QuadraticAnswers(NamedTuple):
    """What is known of `quadratic`.

    Attributes:
        eigenvalues: (d,) of the Hessian, one for each coordinate.
        minimum: (d,) where the loss is zero.
    """

    eigenvalues: np.ndarray
    minimum: np.ndarray


class LeastSquaresAnswers(NamedTuple):
    """What is known of `least_squares`.

    Attributes:
        solution: (d,) the minimizer of smallest norm, which descent from zero finds.
        hessian: (d, d), X'X/n.
        eigenvalues: (d,) of the Hessian, descending; exact zeros for the flat directions when n < d.
        loss: the loss at the minimum.
    """

    solution: np.ndarray
    hessian: np.ndarray
    eigenvalues: np.ndarray
    loss: float


def quadratic(
    eigenvalues: Sequence[float] = (1.0, 0.1, 0.01), minimum: Sequence[float] | None = None, noise: float = 0.0
) -> Problem:
    """A bowl with the given curvatures.

    Parameters are `{"weight": (d,)}`, normal at first. A batch is a random tilt of the bowl, (d,) normal with standard
    deviation `noise`, which is added to the gradient; the fixed batch `train` has none. Metrics: `loss`, without tilt,
    and `distance`, the Euclidean distance from the minimum.

    Args:
        eigenvalues: curvature along each coordinate, at least one, none negative.
        minimum: where the loss is zero; None puts it at one in every coordinate.
        noise: standard deviation of each entry of the gradient.

    Raises:
        ValueError: if the numbers are not finite, or the shapes differ.

    Example:
        >>> problem = quadratic([2.0, 1.0], minimum=[0.0, 0.0])
        >>> jax.grad(problem.loss)({"weight": jnp.array([3.0, 4.0])}, problem.train)["weight"].tolist()
        [6.0, 4.0]
    """
    h = _vector("quadratic: eigenvalues", eigenvalues)
    m = _vector("quadratic: minimum", np.ones(len(h)) if minimum is None else minimum)
    if len(h) != len(m):
        raise ValueError(f"quadratic: eigenvalues and minimum must be equally long; got {len(h)} and {len(m)}.")
    if (h < 0).any():
        raise ValueError(f"quadratic: eigenvalues must not be negative, or there is no minimum; got {h.min():g}.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"quadratic: noise is a standard deviation, finite and not negative; got {noise!r}.")

    def loss(params: Any, tilt: Array) -> Array:
        away = params["weight"] - jnp.asarray(m, params["weight"].dtype)
        return jnp.sum(jnp.asarray(0.5 * h, away.dtype) * jnp.square(away)) + jnp.sum(tilt.astype(away.dtype) * away)

    def batch(key: PRNGKeyArray) -> Array:
        return jax.random.normal(key, h.shape, jnp.float32) * np.float32(noise)

    train = jnp.zeros(h.shape, jnp.float32)

    def evaluate(params: Any) -> dict[str, Array]:
        return {"loss": loss(params, train), "distance": _distance(params["weight"], m)}

    return Problem("quadratic", _normal(len(h)), loss, batch, evaluate, train, QuadraticAnswers(h, m))


def gd_trajectory(eigenvalues: np.ndarray, minimum: np.ndarray, w0: np.ndarray, lr: float, steps: int) -> np.ndarray:
    """Gradient descent on a quadratic, in closed form.

    Args:
        eigenvalues: (d,) curvature along each coordinate.
        minimum: (d,) where the loss is zero.
        w0: (d,) the start.
        lr: the learning rate; descent diverges along coordinates with lr * eigenvalue > 2.
        steps: how many.

    Returns:
        (steps + 1, d) float64, the start included.

    Example:
        >>> gd_trajectory(np.array([1.0]), np.array([0.0]), np.array([8.0]), 0.5, 3).ravel().tolist()
        [8.0, 4.0, 2.0, 1.0]
    """
    h, m, start = (np.asarray(vector, np.float64) for vector in (eigenvalues, minimum, w0))
    times = np.arange(whole("gd_trajectory: steps", steps, 0) + 1)
    return m + (1 - lr * h) ** times[:, None] * (start - m)


def sgd_variance(eigenvalues: np.ndarray, lr: float, noise: float) -> np.ndarray:
    """The variance of each coordinate once stochastic gradient descent has settled on a quadratic.

    From v = (1 - lr h)^2 v + lr^2 noise^2.

    Args:
        eigenvalues: (d,) curvature along each coordinate.
        lr: the learning rate.
        noise: standard deviation of each entry of the gradient.

    Returns:
        (d,) float64; inf where nothing settles, lr * h <= 0 or >= 2.

    Example:
        >>> sgd_variance(np.array([1.0, 0.0]), lr=1.0, noise=2.0).tolist()
        [4.0, inf]
    """
    contraction = (1 - lr * np.asarray(eigenvalues, np.float64)) ** 2
    settles = contraction < 1
    return np.where(settles, (lr * noise) ** 2 / np.where(settles, 1 - contraction, 1), np.inf)


def least_squares(n: int = 64, d: int = 16, seed: int = 0, noise: float = 0.1, batch_size: int | None = None) -> Problem:
    """Linear regression on random data: y = X w + noise, all entries normal.

    Parameters are `{"weight": (d,)}`. A batch is `(rows of X, entries of y)`. Metrics: `loss`, of all rows, and
    `distance` from `answers.solution`.

    Args:
        n: equations.
        d: unknowns; with n < d the minimum is a flat subspace.
        seed: of the data.
        noise: standard deviation of the noise in y.
        batch_size: rows in a minibatch, drawn with replacement; None takes all rows every time.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> problem = least_squares(n=4, d=6)
        >>> int((problem.answers.eigenvalues == 0).sum()), round(problem.answers.loss, 12)
        (2, 0.0)
    """
    n, d = whole("least_squares: n", n, 1), whole("least_squares: d", d, 1)
    rows = None if batch_size is None else whole("least_squares: batch_size", batch_size, 1)
    if not 0 <= noise < np.inf:
        raise ValueError(f"least_squares: noise is a standard deviation, finite and not negative; got {noise!r}.")
    random = np.random.default_rng(whole("least_squares: seed", seed, 0))
    design = random.standard_normal((n, d)).astype(np.float32)
    truth, errors = random.standard_normal(d), random.standard_normal(n)
    targets = (design @ truth + noise * errors).astype(np.float32)
    train = (jnp.asarray(design), jnp.asarray(targets))

    def loss(params: Any, batch: tuple[Array, Array]) -> Array:
        x, y = (part.astype(params["weight"].dtype) for part in batch)
        return jnp.sum(jnp.square(x @ params["weight"] - y)) / (2 * y.shape[0])

    def batch(key: PRNGKeyArray) -> tuple[Array, Array]:
        if rows is None:
            return train
        chosen = uniform_indices(key, (rows,), n)
        return train[0][chosen], train[1][chosen]

    x, y = design.astype(np.float64), targets.astype(np.float64)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    # Squared singular values: the Hessian's own eigenvalues would give rounding errors, some negative, for the zeros.
    eigenvalues = np.zeros(d)
    eigenvalues[: min(n, d)] = np.linalg.svd(x, compute_uv=False) ** 2 / n
    least = float(np.sum((x @ solution - y) ** 2) / (2 * n))
    answers = LeastSquaresAnswers(solution, x.T @ x / n, eigenvalues, least)

    def evaluate(params: Any) -> dict[str, Array]:
        return {"loss": loss(params, train), "distance": _distance(params["weight"], solution)}

    return Problem("least_squares", _normal(d), loss, batch, evaluate, train, answers)


def _distance(weight: Array, target: np.ndarray) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(weight - jnp.asarray(target, weight.dtype))))


def _normal(d: int) -> Any:
    return lambda key: {"weight": jax.random.normal(key, (d,), jnp.float32)}


def _vector(what: str, values: Any) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise ValueError(f"{what} must be a non-empty row of finite numbers; got {values!r}.")
    return vector
