"""Curvature as Adam feels it: the spectrum of P^-1 H, from products with vectors.

Near where training ends, P = diag(sqrt(v) + eps) stays nearly as it is and m is the gradient averaged over some steps, which
changes how fast a displacement delta is undone but not where to: the update is -lr P^-1 H delta. P^-1 H is similar to A =
P^-1/2 H P^-1/2, so its eigenvalues are real, and its eigenvectors are delta = P^-1/2 x with A x = lambda x.

H is taken as the Gauss-Newton matrix G = J^T (d2 loss / d logits2) J, which is never negative and is H where the model fits. It
is the Hessian at x = 0 of the loss of the *linearized* model, x -> loss(logits + J P^-1/2 x), so stochastic Lanczos quadrature
applies as it is (`landscape.spectral_density`, float64; no matrix of n x n numbers).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from precisionlab.landscape.densities import Density, spectral_density
from precisionlab.landscape.vectors import in_float64
from precisionlab.problems import cross_entropy, transformer_apply

__all__ = ["adam_curvature", "counts_above"]


def counts_above(density: Density, n: int, thresholds: Any) -> tuple[np.ndarray, np.ndarray]:
    """The number of eigenvalues above thresholds, from a spectral density.

    Args:
        density: from `landscape.spectral_density`.
        n: of how many eigenvalues.
        thresholds: (k,).

    Returns:
        (k,) counts, and (k,) their standard errors over the probes.

    Example:
        >>> counts, errors = counts_above(Density(np.array([[2.0, 0.0]] * 2), np.array([[0.25, 0.75]] * 2)), 100, [1.0, 3.0])
        >>> counts.tolist(), errors.tolist()
        ([25.0, 0.0], [0.0, 0.0])
    """
    above = density.nodes[:, :, None] > np.asarray(thresholds, np.float64)
    each = n * (density.weights[:, :, None] * above).sum(axis=1)
    return each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(len(each))


@in_float64
def adam_curvature(
    params: Any, scale: Any, tokens: Any, *, heads: int, probes: int = 4, depth: int = 120, seed: int = 0
) -> Density:
    """The spectral density of P^-1/2 G P^-1/2 of a transformer.

    Args:
        params: its weights, a tree as `transformer_init` makes.
        scale: P, a positive number for each weight, a tree alike.
        tokens: inputs and targets, both (windows, context) whole numbers.
        heads: of the transformer.
        probes: random vectors, at least 2.
        depth: of the Krylov spaces; eigenvalues below about the largest over depth^2 are blurred.
        seed: of the probes.

    Raises:
        ValueError: as `landscape.spectral_density`.

    Example:
        >>> from precisionlab.problems import transformer_init
        >>> params = transformer_init(jax.random.key(0), context=4, width=4, heads=2, layers=1)
        >>> tokens = np.arange(8).reshape(2, 4), np.arange(1, 9).reshape(2, 4)
        >>> found = adam_curvature(params, jax.tree.map(jnp.ones_like, params), tokens, heads=2, probes=2, depth=20)
        >>> found.nodes.shape, bool(found.nodes.min() > -1e-12)
        ((2, 20), True)
    """
    weights, metric = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in (params, scale))
    root = 1 / jnp.sqrt(ravel_pytree(metric)[0])
    inputs, targets = (np.asarray(part) for part in tokens)
    linearized = Partial(_linearized(heads), weights, root, inputs, targets)
    return spectral_density(linearized, np.zeros(root.size), key=jax.random.key(seed), probes=probes, depth=depth)


@lru_cache(maxsize=8)
def _linearized(heads: int) -> Callable[..., Any]:
    """The loss of the linearized model, at P^-1/2 x from the weights; one function, so that all seeds share its programs."""

    def loss(weights: Any, root: Any, inputs: Any, targets: Any, x: Any) -> Any:
        theta, unravel = ravel_pytree(weights)
        logits, change = jax.jvp(lambda w: transformer_apply(unravel(w), inputs, heads), (theta,), (root * x,))
        return cross_entropy(logits + change, targets)

    return loss
