"""The estimator finds the spectra of signals whose spectra are known."""

import numpy as np
import pytest

from precisionlab.experiments.slingshot.power import Power, centred, power_above, power_spectrum

POINTS = 256


def direct(values: np.ndarray) -> np.ndarray:
    """The definition, summed term by term."""
    points = len(values)
    n = np.arange(points)
    window = np.sin(np.pi * n / points) ** 2
    found = []
    for k in range(points // 2 + 1):
        turn = 2 * np.pi * k * n / points
        weighted = window * values
        size = (weighted @ np.cos(turn)) ** 2 + (weighted @ np.sin(turn)) ** 2
        found.append((1 if k in (0, points / 2) else 2) * size / (points * np.sum(window**2)))
    return np.array(found)


@pytest.mark.parametrize("points", [8, 9, 64, 65])
def test_it_is_its_definition_and_obeys_parseval(points):
    values = np.random.default_rng(points).standard_normal((3, points))
    spectrum = power_spectrum(values, length=4.0)
    assert spectrum.values == pytest.approx(np.stack([direct(row) for row in values]), rel=1e-10, abs=1e-15)
    assert spectrum.frequencies.tolist() == [k / 4 for k in range(points // 2 + 1)]
    weights = np.sin(np.pi * np.arange(points) / points) ** 4
    mean_square = (values**2 * weights).sum(-1) / weights.sum()
    assert spectrum.values.sum(-1) == pytest.approx(mean_square, rel=1e-12)


@pytest.mark.parametrize("k", [2, 3, 17, 126])
@pytest.mark.parametrize("phase", [0.0, 0.4, np.pi / 2])
def test_a_sinusoid_on_a_bin_is_shared_by_three(k, phase):
    x = np.arange(POINTS) / POINTS
    power = power_spectrum(3 * np.sin(2 * np.pi * k * x + phase)).values
    assert power[k - 1 : k + 2] == pytest.approx([4.5 / 6, 4.5 * 4 / 6, 4.5 / 6], rel=1e-10)
    assert np.delete(power, [k - 1, k, k + 1]).max() < 1e-25


@pytest.mark.parametrize("offset", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("k", [10, 60])
def test_a_sinusoid_between_bins_stays_near_them(offset, k):
    x = np.arange(POINTS) / POINTS
    for phase in np.linspace(0, np.pi, 7):
        power = power_spectrum(np.sin(2 * np.pi * (k + offset) * x + phase)).values
        near = power[k - 3 : k + 5].sum()
        assert near == pytest.approx(0.5, rel=1e-3)
        assert np.delete(power, np.arange(k - 3, k + 5)).max() < 1e-4 * 0.5


def test_white_noise_is_flat_and_keeps_its_variance():
    values = np.random.default_rng(0).standard_normal((4000, POINTS)) * 0.7
    power = power_spectrum(values).values
    assert power.sum(-1).mean() == pytest.approx(0.49, rel=0.01)
    inner = power.mean(0)[1:-1]
    each = 0.49 * 2 / POINTS
    # A bin is exponential: its mean over 4,000 draws has a standard error of 1.6 %; 127 bins stay within five of them.
    assert np.abs(inner / each - 1).max() < 0.08
    assert inner[:63].mean() == pytest.approx(inner[64:].mean(), rel=0.01)
    assert power_above(power_spectrum(values), 63.5).mean() == pytest.approx(0.49 / 2, rel=0.01)


def test_a_step_falls_as_one_over_frequency_squared():
    """A jump J in the middle has the Fourier coefficients J / (2 pi k) in size, whatever else is smooth."""
    x = np.arange(16384) / 16384
    power = power_spectrum(np.where(x < 0.5, 0.0, 1.0)).values
    k = np.array([33, 65, 129, 257])
    # The window is 1 at the jump, and its own mean square is 3/8.
    expected = 2 / (2 * np.pi * k) ** 2 / (3 / 8)
    assert power[k] == pytest.approx(expected, rel=0.01)
    slope = np.polyfit(np.log2(k), np.log2(power[k]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.02)


def test_without_a_window_ends_that_differ_would_look_like_high_frequencies():
    ramp = np.linspace(-1, 1, POINTS)
    assert power_above(power_spectrum(ramp), 8) < 1e-6
    plain = np.abs(np.fft.rfft(ramp))[9:] ** 2 * 2 / POINTS**2
    assert plain.sum() > 1e-2


def test_a_constant_is_no_power_once_a_function_is_centred():
    x = np.arange(POINTS) / POINTS
    wave = np.stack([np.sin(2 * np.pi * 10 * x + phase) for phase in (0.0, 1.0)])
    raw, clean = power_spectrum(wave + 5), power_spectrum(centred(wave + 5))
    assert power_above(raw, 0) == pytest.approx(0.5 + 25 / 3, rel=1e-6)  # a third of the constant's power
    assert power_above(clean, 0) == pytest.approx(0.5, rel=1e-6)
    assert np.abs(clean.values[:, 0]).max() < 1e-20
    assert centred(clean.values[0] * 0 + 3.0) == pytest.approx(np.zeros(POINTS // 2 + 1))


def test_sums_above_a_cut():
    spectrum = Power(np.array([0.0, 1.0, 2.0]), np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]]))
    assert power_above(spectrum, 0.5).tolist() == [6.0, 8.0]
    assert power_above(spectrum, 1).tolist() == [4.0, 8.0]
    with pytest.raises(ValueError, match=r"power_above: cut is 2, and the highest frequency is 2\.0; lower the cut"):
        power_above(spectrum, 2)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"values have shape \(3, 7\); give at least eight points"):
        power_spectrum(np.zeros((3, 7)))
    with pytest.raises(ValueError, match="at least eight"):
        power_spectrum(1.0)
    for length in (0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"power_spectrum: length is .* allowed is a positive finite number"):
            power_spectrum(np.zeros(8), length)
