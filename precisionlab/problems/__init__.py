"""Losses and data: real, and with known answers.

Everything public is here, and `digits` and `text` are the functions; a problem is added to `PROBLEMS` in one line.
"""

from collections.abc import Callable

from precisionlab.problems.base import Problem, cross_entropy, uniform_indices
from precisionlab.problems.digits import ACTIVATIONS, DigitsData, accuracy, digits, load_digits
from precisionlab.problems.exact import (
    LeastSquaresAnswers,
    QuadraticAnswers,
    gd_trajectory,
    least_squares,
    quadratic,
    sgd_variance,
)
from precisionlab.problems.networks import mlp_apply, mlp_init, transformer_apply, transformer_init
from precisionlab.problems.text import Corpus, load_bytes, text

__all__ = [
    "ACTIVATIONS",
    "PROBLEMS",
    "Corpus",
    "DigitsData",
    "LeastSquaresAnswers",
    "Problem",
    "QuadraticAnswers",
    "accuracy",
    "cross_entropy",
    "digits",
    "gd_trajectory",
    "least_squares",
    "load_bytes",
    "load_digits",
    "mlp_apply",
    "mlp_init",
    "quadratic",
    "sgd_variance",
    "text",
    "transformer_apply",
    "transformer_init",
    "uniform_indices",
]

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "digits": digits,
    "text": text,
    "least_squares": least_squares,
    "quadratic": quadratic,
}
