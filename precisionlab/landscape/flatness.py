"""The operational flat dimension: how many directions a format cannot tell from flat.

Along an eigenvector with eigenvalue lambda, one step of gradient descent at a distance comparable to the weight asks for a
relative change lr lambda. Round-to-nearest with p bits loses it when lr |lambda| <= 2^-p. The number of such directions,

    N_p = #{i : lr |lambda_i| <= 2^-p},

is what the format takes for the dimension of the minimum. Real arithmetic puts n - d r of them there (n weights, d points, r
outputs; eigenvalue zero), and N_p - (n - d r) are soft modes that only the format makes flat: its representational share. N_p
falls as p grows, by steps at the p where each mode becomes visible.

Magnitudes are compared: the zeros of a computed spectrum have signs by chance, and a direction of clear negative curvature is
not flat.
"""

from typing import Any

import numpy as np

__all__ = ["flat_dimension", "representational_share", "visible_from"]


def flat_dimension(eigenvalues: Any, precisions: Any, lr: float) -> np.ndarray:
    """How many eigenvalues lie at or below what p bits can tell from zero, lr |lambda| <= 2^-p.

    Args:
        eigenvalues: (..., n) of the Hessian, all n of them: the zeros count.
        precisions: (P,) or a number, significand bits p with the hidden one; need not be whole.
        lr: the step size, positive.

    Returns:
        (..., P) whole numbers, or (...) where `precisions` is a number.

    Raises:
        ValueError: if an eigenvalue is not finite, there is none, or `lr` is not positive.

    Example:
        >>> flat_dimension([1.0, 2.0**-6, 0.0], [4, 8, 53], lr=1.0).tolist()
        [2, 1, 1]
    """
    values, bits = _eigenvalues("flat_dimension", eigenvalues, lr), np.asarray(precisions, np.float64)
    if bits.ndim > 1 or not np.isfinite(bits).all():
        raise ValueError(f"flat_dimension: precisions must be finite numbers in one row; got shape {bits.shape}.")
    flat = lr * np.abs(values)[..., None, :] <= np.exp2(-bits.reshape(-1))[:, None]
    count = flat.sum(axis=-1)
    return count if bits.ndim else count[..., 0]


def representational_share(eigenvalues: Any, precisions: Any, lr: float, constraints: int) -> np.ndarray:
    """The flat directions that are there for the format alone, N_p - (n - d r).

    Args:
        eigenvalues: (..., n) of the Hessian.
        precisions: (P,) or a number, significand bits p.
        lr: the step size, positive.
        constraints: d r, the number of residuals (points times outputs), not negative; beyond n real arithmetic has no flat
            direction.

    Returns:
        (..., P) whole numbers, or (...) where `precisions` is a number. Negative where even the exact null space is seen: then
        the point is no minimum of the kind, or the spectrum's noise floor is above 2^-p / lr.

    Raises:
        ValueError: as `flat_dimension`, or if `constraints` is negative.

    Example:
        >>> representational_share([1.0, 2.0**-6, 0.0], [4, 8, 53], lr=1.0, constraints=2).tolist()
        [1, 0, 0]
    """
    if isinstance(constraints, bool) or not isinstance(constraints, int | np.integer) or constraints < 0:
        raise ValueError(f"representational_share: constraints must be a whole number, not negative; got {constraints!r}.")
    n = np.asarray(eigenvalues).shape[-1] if np.ndim(eigenvalues) else 0
    return flat_dimension(eigenvalues, precisions, lr) - max(0, n - int(constraints))


def visible_from(eigenvalues: Any, lr: float) -> np.ndarray:
    """The fewest significand bits p with which each eigenvalue is told from zero, lr |lambda| > 2^-p.

    Args:
        eigenvalues: (..., n) of the Hessian.
        lr: the step size, positive.

    Returns:
        (..., n) whole numbers as float64; below one for directions too steep for any format to miss, inf for an eigenvalue of
        zero.

    Raises:
        ValueError: if an eigenvalue is not finite, there is none, or `lr` is not positive.

    Example:
        >>> visible_from([1.0, 2.0**-6, 0.9 * 2.0**-6, 0.0], lr=1.0).tolist()
        [1.0, 7.0, 7.0, inf]
    """
    seen = lr * np.abs(_eigenvalues("visible_from", eigenvalues, lr))
    significand, exponent = np.frexp(seen)
    # seen = significand 2^exponent with significand in [1/2, 1): a power of two needs one bit more than what lies above it.
    bits = np.where(significand == 0.5, 2.0, 1.0) - exponent
    return np.where(seen > 0, bits, np.inf)


def _eigenvalues(where: str, eigenvalues: Any, lr: float) -> np.ndarray:
    values = np.asarray(eigenvalues, np.float64)
    if not values.ndim or not values.shape[-1] or not np.isfinite(values).all():
        raise ValueError(f"{where}: eigenvalues must be finite, at least one along the last axis; got shape {values.shape}.")
    if not (np.isfinite(lr) and lr > 0):
        raise ValueError(f"{where}: lr must be a positive number; got {lr}.")
    return values
