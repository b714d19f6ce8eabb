"""The power spectrum of a learned function: how much of it varies how fast.

A function on a line, sampled at N even places over a length, is tapered by a periodic Hann window w and transformed:

    P_k = c_k |sum_n w_n f_n exp(-2 pi i k n / N)|^2 / (N sum_n w_n^2),    frequency k / length,

with c_k = 2 for the frequencies that also stand for their negatives and 1 for the two that do not. By Parseval's theorem the
sum over k is the mean square of f, weighted by w^2: for a sinusoid of amplitude A about A^2 / 2, for white noise its variance,
spread evenly. The window is needed because a learned function is not periodic: without one the jump between its ends alone has
a spectrum that falls as 1 / k^2, which hides what is looked for. The price is that a sinusoid on a bin is shared with the two
bins beside it (1/6, 4/6, 1/6), and one between bins is below 10^-4 of its power beyond four bins. A window cannot tell a slow
trend from frequencies below 2 / length: begin "high" above that.
"""

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Power", "centred", "power_above", "power_spectrum"]


class Power(NamedTuple):
    """A one-sided power spectrum.

    Attributes:
        frequencies: rising from 0 in cycles per unit of length, shape `(points // 2 + 1,)`.
        values: power at each of them, in squared units of the function, shape `(..., points // 2 + 1)`.
    """

    frequencies: np.ndarray
    values: np.ndarray


def power_spectrum(values: Any, length: float = 1.0) -> Power:
    """The power spectrum of functions sampled on a line.

    Args:
        values: shape `(..., points)`, the function at `start + length * n / points` for n = 0, ..., points - 1; at least eight.
        length: of the line, in any unit; frequencies are in cycles per that unit.

    Returns:
        The spectrum along the last axis, in float64.

    Raises:
        ValueError: for fewer than eight points, or a length that is not positive and finite.

    Example:
        >>> x = np.arange(64) / 64
        >>> spectrum = power_spectrum(3 * np.sin(2 * np.pi * 10 * x))
        >>> spectrum.frequencies[9:12], np.round(spectrum.values[9:12], 6), round(float(spectrum.values.sum()), 6)
        (array([ 9., 10., 11.]), array([0.75, 3.  , 0.75]), 4.5)
    """
    samples = np.asarray(values, np.float64)
    if samples.ndim < 1 or samples.shape[-1] < 8:
        raise ValueError(f"power_spectrum: values have shape {samples.shape}; give at least eight points on the last axis.")
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"power_spectrum: length is {length}, allowed is a positive finite number.")
    points = samples.shape[-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(points) / points)
    found = np.abs(np.fft.rfft(samples * window, axis=-1)) ** 2 / (points * np.sum(window**2))
    found[..., 1 : (points + 1) // 2] *= 2  # zero, and for even N the last, are their own negatives
    return Power(np.arange(points // 2 + 1) / length, found)


def centred(values: Any) -> np.ndarray:
    """Functions less their mean under the window's weights, which is what puts no power at frequency 0.

    A constant is no variation, but the window gives a third of its power to the first frequency above 0. Where a network's
    constant grows beside the rest of it (as it does when all weights shrink: an output's bias does so by the factor, what
    passes through two layers by its square), the share of everything else would seem to fall.

    Args:
        values: shape `(..., points)`.

    Example:
        >>> x = np.arange(64) / 64
        >>> wave = np.sin(2 * np.pi * 10 * x)
        >>> bool(np.allclose(power_spectrum(centred(wave + 7)).values, power_spectrum(wave).values))
        True
    """
    samples = np.asarray(values, np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples.shape[-1]) / samples.shape[-1])
    return samples - (samples @ window / window.sum())[..., None]


def power_above(spectrum: Power, cut: float) -> np.ndarray:
    """The power at frequencies above a cut, summed.

    Args:
        spectrum: from `power_spectrum`.
        cut: in the units of its frequencies; must leave some frequency above it.

    Returns:
        Shape `(...)`, in squared units of the function.

    Raises:
        ValueError: if no frequency is above the cut.

    Example:
        >>> x = np.arange(64) / 64
        >>> round(float(power_above(power_spectrum(np.sin(2 * np.pi * 10 * x) + np.sin(2 * np.pi * 2 * x)), 5)), 6)
        0.5
    """
    above = spectrum.frequencies > cut
    if not above.any():
        raise ValueError(f"power_above: cut is {cut}, and the highest frequency is {spectrum.frequencies[-1]}; lower the cut.")
    return spectrum.values[..., above].sum(axis=-1)
