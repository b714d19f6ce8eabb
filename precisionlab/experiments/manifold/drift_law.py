"""What noise and decay should do along a manifold of minima when every step is rounded: laws for the first of the steps.

**Real arithmetic.** Labels that are off by noise of variance s^2 give steps of covariance lr^2 s^2 c H, c = d / batch. In the
long run the weights spread by lr s^2 c / 2 in the row space, and along the manifold they move by

    v = -(lr^2 s^2 c / 4) P grad tr H                  P onto the null space of J

a step (Blanc and others, 2020; Damian, Ma and Lee, 2021). Decay moves them by -lr mu P w.

**The drift alone, rounded** is round(w + v) - w: lost where it is below half a gap.

**The step, rounded.** What is rounded is v and noise together. For weight i with normal noise of standard deviation t beside a
gap g, the mean of the rounded step m + n is g times the sum over half gaps h of P(m + n > h) - P(m + n < -h), and its
derivative at m = 0 the gain D(t), from 0 (frozen) to 1. So the mean of a step is -lr D grad L, and its covariance C' that of
the rounded noise, which also points out of the row space. Descent on D grad L leads to a point Phi(w) of the manifold, and
Ito's formula says that there the mean step is 1/2 Phi''[C'] (Katzenberger, 1991; Li, Wang and Arora, 2021):

    Phi' = P_D = 1 - D J^T (J D J^T)^-1 J,      Phi''[A u, v] + Phi''[u, A v] = -P_D F''[u, v],

F the mean step, A = F'; and of two vectors along the manifold Phi'' is the manifold's own curvature. In F'' counts that a
derivative of the net, as it changes, changes the noise too, and with it the gain: of the mean step -lr r a D(lr s |a|) the
derivative in a is -lr r (t D)', which near the threshold is many times D. So a coarse format may keep more of the drift than of
a step. With D = 1 and C' = lr^2 s^2 c H all this gives v. A mean step m of decay becomes P_D m. The laws are those of the first
steps, where D and C' are known.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from precisionlab.experiments.manifold.settings import Setting, residuals_of
from precisionlab.landscape import jacobian
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import Format
from precisionlab.numerics.grids import ulp
from precisionlab.numerics.rounding import round_to

__all__ = ["Laws", "gains", "laws", "mean_move", "mean_step_of_noise"]

_LEAST = 1e-6  # the gain of a frozen weight, so that D has an inverse
_HALVES = np.arange(64) + 0.5
_NORMAL = scipy.special.ndtri((np.arange(256) + 0.5) / 256)
_NORMAL /= _NORMAL.std()


class Laws(NamedTuple):
    """Shares of the drift of real arithmetic that are left in the first steps, and that drift.

    Attributes:
        noise: (formats, seeds) of the drift by Gaussian label noise, by the rounded step.
        noise_alone: the same, were the drift rounded by itself.
        decay: (formats, seeds) of that by decay in the presence of Gaussian noise, by the rounded step.
        decay_alone: the same, were the decay rounded by itself.
        fall: (seeds,) by how much tr H falls in a step in real arithmetic, by noise.
    """

    noise: np.ndarray
    noise_alone: np.ndarray
    decay: np.ndarray
    decay_alone: np.ndarray
    fall: np.ndarray


def mean_move(step: Any, spread: Any, gap: Any) -> np.ndarray:
    """The mean of what a value of a lattice moves by when a step and normal noise are added and the sum is rounded to nearest.

    Args:
        step: of any shape.
        spread: standard deviation of the noise, of the same shape.
        gap: of the lattice, of the same shape.

    Example:
        >>> np.round(mean_move(0.01, np.array([0.0, 0.2, 0.27, 1.0]), np.ones(4)) / 0.01, 2).tolist()
        [0.0, 0.18, 0.53, 1.0]
    """
    step, spread = np.broadcast_arrays(np.asarray(step) / gap, np.asarray(spread) / gap)
    wide = np.maximum(spread, 1e-12)[..., None]
    up, down = ((sign * step[..., None] - _HALVES) / wide for sign in (1, -1))
    moved = (scipy.special.ndtr(up) - scipy.special.ndtr(down)).sum(axis=-1)
    return np.where(np.abs(step) + 6 * spread > _HALVES[-1], step, moved) * gap


def gains(spread: Any, gap: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a small step in normal noise, the share that is left on average, D, and (t D)', which noise that follows it has left.

    Args:
        spread: t, the standard deviation of the noise, of any shape.
        gap: of the lattice, of the same shape.

    Example:
        >>> [np.round(part, 2).tolist() for part in gains(np.array([0.0, 0.2, 0.27, 1.0]), np.ones(4))]
        [[0.0, 0.18, 0.53, 1.0], [0.0, 1.1, 1.82, 1.0]]
    """
    spread = np.asarray(spread, np.float64) / gap
    wide = np.maximum(spread, 1e-3)[..., None]
    density = 2 * np.exp(-0.5 * np.square(_HALVES / wide)) / math.sqrt(2 * math.pi) / wide
    whole = 6 * spread > _HALVES[-1]
    parts = density.sum(axis=-1), (density * np.square(_HALVES / wide)).sum(axis=-1)
    return np.where(whole, 1.0, parts[0]), np.where(whole, 1.0, parts[1])


def mean_step_of_noise(
    kept: np.ndarray, follow: np.ndarray, noise: np.ndarray, matrix: np.ndarray, second: np.ndarray, lr: float
) -> np.ndarray:
    """1/2 Phi''[C']: where noise takes a net that lies on its manifold of minima, a step.

    Args:
        kept: (n,) D, positive.
        follow: (d, n) the derivatives (t D)' for each residual.
        noise: (n, n) covariance C' of a step.
        matrix: (d, n) J.
        second: (d, n, n) second derivatives of the residuals.
        lr: the step size.

    Returns:
        (n,), tangential but for the curvature of the manifold.

    Example:
        >>> x, y = 2.0, 0.5  # x y = 1, half the squared residual
        >>> second, noise = np.array([[[0.0, 1.0], [1.0, 0.0]]]), 1e-6 * np.outer([y, x], [y, x])
        >>> drift = mean_step_of_noise(np.ones(2), np.ones((1, 2)), noise, np.array([[y, x]]), second, 1e-3)
        >>> np.round(drift * 1e6, 3).tolist()  # -1/4 of the gradient of tr H = x^2 + y^2, along the hyperbola
        [-0.882, 0.221]
    """
    root = np.sqrt(kept)
    basis, values, _ = np.linalg.svd((matrix * root).T, full_matrices=False)
    rates = lr * values**2
    inner = noise / root / root[:, None]
    rest = inner - basis @ (basis.T @ inner)
    along = rest - (rest @ basis) @ basis.T
    within = basis @ (basis.T @ inner @ basis / (rates[:, None] + rates)) @ basis.T
    across = basis @ ((basis.T @ inner - (basis.T @ inner @ basis) @ basis.T) / rates[:, None])
    spread = (within + across + across.T) * root * root[:, None]
    # Of 1/2 the third derivative the part along D J^T is left out: P_D takes it away.
    force = -lr * np.einsum("ja,jab,bc,jc->a", follow, second, spread, matrix, optimize=True)
    force = root * (force / root - basis @ (basis.T @ (force / root)))
    bend = np.einsum("kab,ab->k", second, along * root * root[:, None])
    return force - 0.5 * kept * (matrix.T @ np.linalg.solve((matrix * kept) @ matrix.T, bend))


@in_float64
def laws(given: Setting, lr: np.ndarray, size: float, decay: float, formats: list[Format]) -> Laws:
    """The laws at the minima of a setting, for batches of one point.

    Args:
        given: from `setting`.
        lr: (seeds,) step sizes.
        size: standard deviation of the labels' noise.
        decay: lr mu.
        formats: of the stored weights.
    """
    seeds, points = len(given.minima), given.constraints
    names = ("noise", "noise_alone", "decay", "decay_alone")
    shares, falls = {name: np.empty((len(formats), seeds)) for name in names}, np.empty(seeds)
    for seed, (theta, step) in enumerate(zip(given.minima, lr, strict=True)):
        residuals = residuals_of(given.residuals, seed)
        matrix = jacobian(residuals, theta)
        slope, second = (np.asarray(part) for part in _derivatives(residuals, jnp.asarray(theta)))
        tangent = slope - np.linalg.pinv(matrix) @ (matrix @ slope)
        ours = theta - np.linalg.pinv(matrix) @ (matrix @ theta)
        drift, shrinking = -(step**2 * size**2 * points / 4) * tangent, -decay * ours
        falls[seed] = -drift @ slope
        kicks = step * points * size * matrix
        rows = (kicks[:, None, :] * _NORMAL[None, :, None]).reshape(-1, len(theta))
        for k, fmt in enumerate(formats):
            stored, gap = (np.asarray(part) for part in _stored(jnp.asarray(theta), fmt))
            each, follow = gains(np.abs(kicks), gap)
            kept = np.clip(each.mean(axis=0), _LEAST, None)
            moves = np.rint(rows / gap) * gap
            stepped = mean_step_of_noise(kept, follow, moves.T @ moves / len(moves), matrix, second, step)
            shrunk = mean_move(-decay * theta, np.abs(kicks), gap).mean(axis=0)
            shrunk = shrunk - kept * (matrix.T @ np.linalg.solve((matrix * kept) @ matrix.T, matrix @ shrunk))
            for name, made, real in (
                ("noise", stepped, drift),
                ("noise_alone", _rounded(stored, drift, fmt), drift),
                ("decay", shrunk, shrinking),
                ("decay_alone", _rounded(stored, shrinking, fmt), shrinking),
            ):
                shares[name][k, seed] = made @ real / (real @ real)
    return Laws(**shares, fall=falls)


def _rounded(stored: np.ndarray, step: np.ndarray, fmt: Format) -> np.ndarray:
    return np.asarray(_stored(jnp.asarray(stored + step), fmt)[0]) - stored


@jax.jit
def _stored(values: Any, fmt: Format) -> tuple[Any, Any]:
    """Values rounded to a format, and the gaps there; the format's numbers are arguments."""
    rounded = round_to(values, fmt)
    return rounded, ulp(rounded, fmt)


@jax.jit
def _derivatives(residuals: Any, theta: Any) -> tuple[Any, Any]:
    """The gradient of tr J J^T, and the second derivatives of the residuals."""
    slope = jax.grad(lambda at: jnp.sum(jnp.square(jax.jacrev(residuals)(at))))(theta)
    return slope, jax.hessian(residuals)(theta)
