"""The decision: of the directions that are flat in a format, which share is flat in real arithmetic?

Fixed before anything was measured. In a world, at a number of bits, three counts are taken by one instrument (`pushes`): the
directions that are flat under nearest rounding, in float64, and in the same format without stagnation (stochastic rounding).
Two shares follow for each seed, of what is flat in the format:

    in real arithmetic      flat in float64 / flat in the format
    without stagnation      flat under stochastic rounding / flat in the format

Geometry predicts 1 for both, representation 0. An answer needs both, on all data:

    geometry          the medians are at least 0.9
    representation    the medians are at most 0.1
    mixture           the medians are between
    undecided         all else: medians not known well enough, shares that disagree, weights that do not rest in the format, or
                      nothing that is flat there

A median is where its interval is (`runs.seeds.median_interval`, five percent on each side): with 16 seeds the 5th and the
12th of them in order, so that four seeds may be anything. A seed whose weights do not rest in the format, or with nothing flat,
has no share, and counts as any. The chance that all shares are on the right side of a bound by luck is that of the least sure
one: the answer needs every one of them, so nothing has to be corrected for their number.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from precisionlab.runs.seeds import median, median_interval, sign_test_above

__all__ = ["ANSWERS", "HARDLY", "MOSTLY", "REFERENCES", "Decision", "Share", "decide", "shares"]

MOSTLY = 0.9
"""The share that is as good as all."""

HARDLY = 0.1
"""The share that is as good as nothing."""

_CONFIDENCE = 0.9  # five percent on either side

ANSWERS = ("geometry", "representation", "mixture", "undecided")

REFERENCES = ("in real arithmetic", "without stagnation")
"""What a format's count is compared with."""


class Share(NamedTuple):
    """A share over the seeds.

    Attributes:
        median: over the seeds that have one; NaN if none has.
        low: lower end of its interval.
        high: upper end.
        seeds: how many seeds there are.
        missing: how many of them have no share.
        answer: what it says by itself.
        p: the sign test's, against a share on the bound of that answer, the nearer one of a mixture; 1 where undecided.
        values: (seeds,) the shares themselves.
    """

    median: float
    low: float
    high: float
    seeds: int
    missing: int
    answer: str
    p: float
    values: np.ndarray


class Decision(NamedTuple):
    """What is concluded of one world.

    Attributes:
        world: its name.
        answer: one of `ANSWERS`.
        shares: by what was compared, on which data.
        p: of the least sure share; 1 where undecided.
        why: why it is undecided, in a few words; else empty.
    """

    world: str
    answer: str
    shares: Mapping[str, Share]
    p: float
    why: str


def shares(flat: Any, rests: Any, reference: Any, reference_rests: Any) -> np.ndarray:
    """The share of a format's flat directions that are flat in a reference.

    Args:
        flat: (seeds,) directions flat in the format.
        rests: (seeds,) whether the weights rest there.
        reference: (seeds,) directions flat in the other arithmetic.
        reference_rests: (seeds,) whether they rest in it; where they do not, none of its directions is flat.

    Returns:
        (seeds,); NaN where the weights do not rest in the format, or less than one direction is flat there.

    Example:
        >>> shares([37, 37, 37, 0], [True, True, False, True], [36, 40, 36, 0], [True, False, True, True]).round(3).tolist()
        [0.973, 0.0, nan, nan]
    """
    here, there = np.asarray(flat, np.float64), np.where(reference_rests, reference, 0.0)
    known = np.asarray(rests, bool) & (here >= 1)
    return np.where(known, there / np.where(known, here, 1.0), np.nan)


def decide(world: str, samples: Mapping[str, Any]) -> Decision:
    """Apply the rule.

    Args:
        world: its name.
        samples: by what was compared, the shares of all seeds (seeds,).

    Raises:
        ValueError: if nothing is given.

    Example:
        >>> decide("square", {"in real arithmetic": [0.97] * 16, "without stagnation": [0.98] * 16}).answer
        'geometry'
        >>> found = decide("square", {"in real arithmetic": [0.97] * 16, "without stagnation": [0.0] * 16})
        >>> found.answer, found.why
        ('undecided', 'in real arithmetic says geometry, without stagnation says representation')
    """
    if not samples:
        raise ValueError(f'decide: there is no share of the world "{world}"; give at least one.')
    found = {name: _judged(np.asarray(values, np.float64)) for name, values in samples.items()}
    answers = {share.answer for share in found.values()}
    answer, why = "undecided", ""
    if len(answers) == 1:
        answer = answers.pop()
    elif "undecided" not in answers:
        why = ", ".join(f"{name} says {share.answer}" for name, share in found.items())
    if answer == "undecided" and not why:
        name, share = next((name, share) for name, share in found.items() if share.answer == "undecided")
        why = _doubt(name, share)
    p = max(share.p for share in found.values()) if answer != "undecided" else 1.0
    return Decision(world, answer, found, p, why)


def _judged(values: np.ndarray) -> Share:
    low, high = median_interval(values, _CONFIDENCE)
    known = values[np.isfinite(values)]
    answer, p = "undecided", 1.0
    if low >= MOSTLY:
        answer, p = "geometry", sign_test_above(values, np.nextafter(MOSTLY, 0))
    elif high <= HARDLY:
        answer, p = "representation", sign_test_above(-values, np.nextafter(-HARDLY, -1))
    elif low > HARDLY and high < MOSTLY:
        answer, p = "mixture", max(sign_test_above(values, HARDLY), sign_test_above(-values, -MOSTLY))
    return Share(median(values), low, high, len(values), len(values) - len(known), answer, p, values)


def _doubt(name: str, share: Share) -> str:
    if 2 * share.missing >= share.seeds:
        return f"in {share.missing} of {share.seeds} seeds nothing rests in the format, or nothing is flat there"
    if not math.isfinite(share.low) and not math.isfinite(share.high):
        return f"{share.seeds - share.missing} seeds are too few"
    return f"the share {name} is between {share.low:.2g} and {share.high:.2g}, across a bound"
