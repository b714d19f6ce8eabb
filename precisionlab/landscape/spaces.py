"""Row space and null space of the Jacobian: the directions that change the residuals, and those that do not.

At a zero of the residuals the null space is the tangent space of the manifold of minima, and the row space is everything a
gradient can point to: g = J^T r is in it at any point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from precisionlab.landscape.derivatives import jacobian
from precisionlab.landscape.spectra import jacobian_spectrum, rank
from precisionlab.landscape.vectors import check_points

__all__ = ["Split", "project_null", "project_row", "split_spaces"]

_DENSE = 10_000


class Split(NamedTuple):
    """Orthonormal bases of two spaces that make up all directions.

    Attributes:
        row: (n, k), columns by falling singular value.
        null: (n, n - k).
    """

    row: np.ndarray
    null: np.ndarray


def split_spaces(residuals: Callable[[Any], Any], theta: Any) -> Split:
    """The row and null space of the Jacobian at a point; k is its rank above the noise floor.

    Args:
        residuals: of a float64 vector (n,), giving (m,).
        theta: (n,) with n at most 10,000.

    Raises:
        ValueError: if theta or the function make no sense, or n is too large.

    Example:
        >>> split = split_spaces(lambda w: w[:1] ** 2 + w[1:] ** 2 - 1.0, [1.0, 0.0])
        >>> np.abs(split.row).ravel().tolist(), np.abs(split.null).ravel().tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """
    point = check_points("split_spaces", theta, one=True)
    if point.size > _DENSE:
        raise ValueError(
            f"split_spaces: a basis of the null space of {point.size} parameters is dense, and at most {_DENSE} are done; "
            "the part of v in it is v - R (R^T v) with R the right singular vectors of jacobian(residuals, theta)."
        )
    k = rank(jacobian_spectrum(residuals, point))
    vt = np.linalg.svd(jacobian(residuals, point), full_matrices=True)[2]
    return Split(vt[:k].T, vt[k:].T)


def project_row(split: Split, v: Any) -> np.ndarray:
    """The part of v (..., n) in the row space."""
    return np.asarray(v, np.float64) @ split.row @ split.row.T


def project_null(split: Split, v: Any) -> np.ndarray:
    """The part of v (..., n) in the null space; v minus that in the row space, which needs the smaller basis.

    Example:
        >>> split = Split(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]]))
        >>> project_row(split, [3.0, 4.0]).tolist(), project_null(split, [3.0, 4.0]).tolist()
        ([3.0, 0.0], [0.0, 4.0])
    """
    basis = split.null if split.null.shape[1] < split.row.shape[1] else split.row
    vector = np.asarray(v, np.float64)
    part = vector @ basis @ basis.T
    return part if basis is split.null else vector - part
