"""Planted worlds: what the rule on the mechanism says where it is known what became of the high frequencies, and why.

Each is shrunk by the same code as the networks, looked at through the same spectra and judged by the same rule, in every run.
If one of them is not named rightly, the run is invalid.

    last bits    a slow wave with a weight near 1 and a fast one whose weight is the last bit of a fixed-point register: one
                 quarter
                 of it is no number of the register. The essay's mechanism, as it is meant.
    exponent     the same weights in bfloat16, where a quarter of them is exact.
    bending      tanh of a large wave, in float32: shrunk, it is the wave, and its overtones are gone; no register
                 has lost them.
"""

from typing import NamedTuple

import numpy as np

from precisionlab.experiments.slingshot.arms import ARMS, REGISTERS, sling
from precisionlab.experiments.slingshot.power import power_above, power_spectrum
from precisionlab.experiments.slingshot.verdicts import mechanism_of
from precisionlab.runs.results import Claim
from precisionlab.training.shrinking import shrink

__all__ = ["Planted", "planted_worlds"]

_SEEDS, _POINTS, _FAST, _CUT = 16, 256, 40, 20


class Planted(NamedTuple):
    """A world and what is said of it.

    Attributes:
        world: its name.
        expected: the truth.
        answer: what the rule says.
        high: power of high frequencies, (points of `spectra.POINTS`, seeds).
        total: all power above frequency 0, the same.
    """

    world: str
    expected: str
    answer: str
    high: np.ndarray
    total: np.ndarray

    @property
    def claim(self) -> Claim:
        """That it is named rightly."""
        right = self.answer == self.expected
        text = f'planted, {self.world}: the rule says that the mechanism is {self.expected} (it says "{self.answer}")'
        return Claim(text, 1.0, float(right), float("nan"), float("nan"), right)


def planted_worlds() -> tuple[Planted, ...]:
    """All of them; a few milliseconds.

    Example:
        >>> [(each.world, each.answer) for each in planted_worlds()]
        [('last bits', 'supported'), ('exponent', 'not supported'), ('bending', 'not supported')]
    """
    return (
        _world("last bits", "supported", "fixed8", bends=False),
        _world("exponent", "not supported", "bfloat16", bends=False),
        _world("bending", "not supported", "float32", bends=True),
    )


def _world(name: str, expected: str, register: str, *, bends: bool) -> Planted:
    x, fmt, arm = np.arange(_POINTS) / _POINTS, REGISTERS[register].fmt, ARMS["0.25"]
    slow, fast = np.sin(2 * np.pi * 3 * x), np.sin(2 * np.pi * _FAST * x)
    rng = np.random.default_rng(7)
    slopes = 1 + 0.5 * rng.random((_SEEDS, 1))
    if bends:
        weights = np.concatenate(
            [4 * slopes, np.zeros_like(slopes)], 1
        )  # the overtones 9, 15, 21, ... of 3 reach beyond the cut
    else:
        weights = np.concatenate([slopes, np.full_like(slopes, 2.0**-5)], 1)
    before = shrink(weights.astype(np.float32), 1.0, fmt=fmt)
    slung = sling(arm, before, fmt, np.zeros(2, int), np.ones(2, bool))

    def learned(values: np.ndarray) -> np.ndarray:
        inner = values.astype(np.float64) @ np.stack([slow, fast])
        return np.tanh(inner) if bends else inner

    looks = [learned(values) for values in (before, slung.weights, slung.exact, slung.undone, before)]
    spectra = power_spectrum(np.stack(looks))
    high, total = power_above(spectra, _CUT), power_above(spectra, 0)
    answer = mechanism_of((name, register), {"high": high[None, None], "total": total[None, None]}, [0], 0)
    return Planted(name, expected, answer, high, total)
