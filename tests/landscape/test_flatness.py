"""N_p by brute force in exact rational arithmetic, and its relation to the p at which a mode becomes visible."""

import math
from fractions import Fraction

import numpy as np
import pytest

from precisionlab.landscape.flatness import flat_dimension, representational_share, visible_from

_SPECTRUM = np.concatenate([2.0 ** -np.arange(0.0, 30.0), 3.0 * 2.0 ** -np.arange(0.0, 30.0), [0.0, 0.0, -1e-18, -0.3]])


def _flat(value, p, lr):
    return Fraction(lr) * abs(Fraction(value)) <= Fraction(2) ** -p


@pytest.mark.parametrize("lr", [1.0, 0.25, 2.0**-7])
def test_counts_agree_with_exact_rationals(lr):
    precisions = range(1, 54)
    expected = [sum(_flat(value, p, lr) for value in _SPECTRUM) for p in precisions]
    np.testing.assert_array_equal(flat_dimension(_SPECTRUM, list(precisions), lr), expected)
    assert flat_dimension(_SPECTRUM, 8, lr) == expected[7]


@pytest.mark.parametrize("lr", [1.0, 0.25, 2.0**-7])
def test_a_mode_is_visible_from_the_first_precision_at_which_it_is_not_flat(lr):
    for value, p in zip(_SPECTRUM, visible_from(_SPECTRUM, lr), strict=True):
        if value == 0:
            assert p == math.inf
        else:
            assert not _flat(value, int(p), lr)
            assert _flat(value, int(p) - 1, lr)


def test_shapes_and_the_share():
    many = np.random.default_rng(0).exponential(size=(2, 3, 7))
    many[..., :4] = 0.0
    bits = [2, 5, 53]
    found = flat_dimension(many, bits, 0.1)
    assert found.shape == (2, 3, 3)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[index], flat_dimension(many[index], bits, 0.1))
    assert flat_dimension(many, 5, 0.1).shape == (2, 3)
    assert visible_from(many, 0.1).shape == many.shape
    np.testing.assert_array_equal(representational_share(many, bits, 0.1, 3), found - 4)
    np.testing.assert_array_equal(representational_share(many, bits, 0.1, 3)[..., -1], 0)
    np.testing.assert_array_equal(representational_share(many, bits, 0.1, 9), found)  # nothing flat in real arithmetic


def test_negative_curvature_is_not_flat():
    assert flat_dimension([-1.0, 0.0], [4], 1.0).tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, math.nan], [4], 1.0), "finite"),
        (([], [4], 1.0), "finite"),
        ((1.0, [4], 1.0), "finite"),
        (([1.0], [[4]], 1.0), "one row"),
        (([1.0], [math.inf], 1.0), "one row"),
        (([1.0], [4], 0.0), "lr"),
        (([1.0], [4], math.nan), "lr"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        flat_dimension(*arguments)


def test_constraints_must_be_a_count():
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="constraints"):
            representational_share([1.0], [4], 1.0, wrong)
