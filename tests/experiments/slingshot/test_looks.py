"""When one looks after a slingshot, and what is read there."""

import numpy as np
import pytest

from precisionlab.experiments.slingshot.looks import MOMENTS, at_equal_loss, at_moment, at_norm, look_shares

NAN = np.nan


def test_every_moment_is_looked_at() -> None:
    for longest in (0.5, 1.3, 3.0):
        shares = look_shares(longest)
        assert set(MOMENTS) <= set(shares)
        assert shares[-1] == longest
        assert list(shares) == sorted(set(shares))
    assert look_shares(0.1)[-1] == 0.1


def test_what_nobody_looked_at_is_no_number() -> None:
    values = np.array([[4.0, 2.0, NAN], [6.0, 3.0, 1.0]])
    assert at_moment(values, (0.0, 0.1, 0.5), 0.1).tolist() == [2.0, 3.0]
    assert np.array_equal(at_moment(values, (0.0, 0.1, 0.5), 0.5), [NAN, 1.0], equal_nan=True)
    assert np.isnan(at_moment(values, (0.0, 0.1, 0.5), 0.025)).all()


def test_the_norm_is_back_where_it_first_is_and_runs_that_never_get_there_stay() -> None:
    norms = np.array([[2.0, 6.0, 4.0, 9.0], [2.0, 3.0, 4.0, NAN], [5.0, 6.0, 7.0, 8.0], [NAN, NAN, NAN, NAN]])
    losses = np.array([[9.0, 5.0, 1.0, 7.0], [9.0, 8.0, 7.0, NAN], [3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = at_norm(norms, losses, np.full(4, 5.0))
    assert np.array_equal(found, [6.0, NAN, 3.0, NAN], equal_nan=True)  # three quarters of the way from 2 to 6
    assert at_norm(norms[None], losses[None], np.full((1, 4), 5.0)).shape == (1, 4)


def test_early_stopping_is_found_where_the_training_loss_first_falls_to_the_target() -> None:
    train, test = [8.0, 4.0, 1.0, 2.0, 0.5], [9.0, 5.0, 3.0, 4.0, 7.0]
    found, reached = at_equal_loss(train, test, [8.0, 4.0, 2.0, 1.0, 0.5])
    assert found.tolist() == pytest.approx([9.0, 5.0, 4.0, 3.0, 7.0])
    assert reached.all()
    half, _ = at_equal_loss(train, test, [2.0**0.5 * 0.5])
    assert half == pytest.approx([6.25])  # from 2.0 to 0.5 three quarters of the way, in logarithms
    outside, reached = at_equal_loss(train, test, [16.0, 0.1, NAN])
    assert outside.tolist()[:2] == [9.0, 7.0]
    assert np.isnan(outside[2])
    assert not reached.any()
    assert np.isnan(at_equal_loss([NAN, NAN], [1.0, 1.0], [0.5])[0]).all()
