"""On planted quadratics every count is known; and a push without curvature gets no answer however many weights move."""

import ml_dtypes
import numpy as np
import pytest
from jax.tree_util import Partial

from precisionlab.experiments.manifold import answers
from precisionlab.experiments.manifold.settings import float_arms

STEPS = 64
CURVATURES = 1.5 * 2.0 ** -np.arange(12)
SOFTER = 1.5 * 2.0 ** -np.arange(10)  # no ties


def line(x, y, w):
    return x @ w - y[:, 0]


def bowl(values: np.ndarray) -> Partial:
    """Half the sum of lambda_i w_i^2."""
    return Partial(line, np.diag(np.sqrt(values)), np.zeros((len(values), 1)))


def count(bits: int, lr: float, distance: float = 0.125) -> tuple[int, int]:
    (fmt,) = float_arms((bits,)).values()
    theta, rows = np.full(len(CURVATURES), 1.5), np.eye(len(CURVATURES))
    found = answers.push(bowl(CURVATURES), theta, rows, distance, lr, fmt)
    assert found.rests
    return answers.answers_of(found, CURVATURES, distance, lr)


def test_a_planted_spectrum_is_counted_exactly() -> None:
    """Near 1.5 half a gap is 2^-p: answered are the curvatures with lr lambda s > 2^-p, here 1.5 2^-(k + 3)."""
    assert [count(p, 1.0) for p in (6, 8, 11, 14)] == [(4, 0), (6, 0), (9, 0), (12, 0)]
    assert count(53, 1.0) == (12, 0)


def test_half_the_step_or_half_the_push_is_one_bit_less() -> None:
    for p in (7, 8, 9):
        assert count(p + 1, 0.5) == count(p, 1.0) == count(p + 3, 0.125)
        assert count(p + 1, 1.0, 0.0625) == count(p, 1.0)
        assert count(p, 0.5)[0] == count(p, 1.0)[0] - 1


def test_a_push_without_curvature_moves_weights_and_gets_no_answer() -> None:
    """The residual is w_0 + (w_1 - 1.5)^2: along w_1 the manifold bends, and w_0 moves."""
    (fmt,) = float_arms((11,)).values()

    def bent(x, y, w):
        return x @ w + (w[1:] - 1.5) ** 2 - y[:, 0]

    residuals = Partial(bent, np.array([[1.0, 0.0]]), np.zeros((1, 1)))
    found = answers.push(residuals, [1.5, 1.5], np.eye(2)[1:], 0.25, 0.25, fmt)
    assert found.moved[0] >= 1
    assert answers.answers_of(found, [0.0], 0.25, 0.25) == (0, 0)


def test_a_step_the_wrong_way_is_counted_as_such() -> None:
    pushes = answers.Pushes(np.array([0.02, -0.02, 0.004]), np.ones(3), True)
    assert answers.answers_of(pushes, [0.1, 0.1, 0.1], 0.25, 1.0) == (1, 1)


def planted(values: np.ndarray) -> tuple[answers.Pushed, np.ndarray]:
    d = len(values)
    residuals = Partial(line, np.diag(np.sqrt(values))[None], (1.5 * np.sqrt(values))[None, :, None])
    return answers.Pushed(residuals, np.full((1, d), 1.625), np.array([0.5])), 0.125 * np.sqrt(values)


def test_training_in_bfloat16_is_that_of_ml_dtypes() -> None:
    given, before = planted(SOFTER)
    left, lost = answers.train_pushed(given, float_arms((8, 53)), steps=STEPS)
    native, exact = np.full(len(SOFTER), 1.625), np.full(len(SOFTER), 1.625)
    for _ in range(STEPS):
        native = (native - 0.5 * SOFTER * (native - 1.5)).astype(ml_dtypes.bfloat16).astype(np.float64)
        exact = exact - 0.5 * SOFTER * (exact - 1.5)
    np.testing.assert_allclose(left[:, 0], np.sqrt(SOFTER) * (np.stack([native, exact]) - 1.5), atol=1e-12)
    assert lost[0, 0] == 1.0
    counts = [answers.reduced(end, before, np.eye(len(SOFTER))) for end in left[:, 0]]
    # In real arithmetic (1 - 0.75 2^-k)^64 < 1/2 for k < 7; bfloat16 rests where 0.75 2^-k of what is left is below 2^-8.
    assert counts == [4, 7]


def test_stochastic_rounding_reduces_what_nearest_loses() -> None:
    given, before = planted(SOFTER[:7])
    left, _ = answers.train_pushed(given, float_arms((8,)), rounding="stochastic", steps=4 * STEPS)
    nearest, _ = answers.train_pushed(given, float_arms((8,)), steps=4 * STEPS)
    counts = [answers.reduced(end[0, 0], before, np.eye(7)) for end in (left, nearest)]
    assert counts[1] == 4 < counts[0]


def test_minibatches_are_unbiased() -> None:
    """One point at a time, whose gradient counts d times: in real arithmetic the same directions are reduced."""
    given, before = planted(SOFTER[:4] / 8)
    left, _ = answers.train_pushed(given, float_arms((53,)), batch_size=1, steps=4 * STEPS)
    full, _ = answers.train_pushed(given, float_arms((53,)), steps=4 * STEPS)
    assert not np.allclose(left, full)
    np.testing.assert_allclose(np.log(left / before).ravel(), np.log(full / before).ravel(), rtol=0.6)


def test_what_cannot_be_trained_is_refused() -> None:
    given, _ = planted(SOFTER)
    for wrong in ({"rounding": "upward"}, {"steps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="train_pushed: rounding must be one of nearest_even, stochastic"):
            answers.train_pushed(given, float_arms((8,)), **wrong)
