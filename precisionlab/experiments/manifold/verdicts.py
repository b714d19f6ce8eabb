"""The answer in words: what is flat and why, in which world, at how many bits and which step size, how sure, and what else.

For somebody who has trained a network and never read this code. Every number in a sentence is one of the run's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.decision import HARDLY, MOSTLY, Decision
from precisionlab.experiments.manifold.pushes import REAL
from precisionlab.experiments.manifold.worlds import predicted_bits

__all__ = ["INVALID", "WORLDS", "flat_counts", "planted_answers", "sentence", "summary"]

WORLDS = ("square", "square_with_decay", "cross_entropy")
"""The worlds that an answer is given for."""

INVALID = "The run is invalid"
"""How the answer begins where a planted world was named wrongly."""

_NAMES = {8: "bfloat16", 11: "float16", 24: "float32"}
_OPENINGS = {
    "square": "Square loss",
    "square_with_decay": "Square loss with weight decay",
    "cross_entropy": "Cross-entropy",
    "cross_entropy_with_decay": "Cross-entropy with weight decay",
}


def sentence(decision: Decision, parts: Sequence[Measured], bits: int) -> str:
    """The answer in one world.

    Args:
        decision: what was concluded.
        parts: the counts it was concluded from, one for each of the data.
        bits: of the format.

    Returns:
        Two or three sentences.
    """
    world = decision.world
    here, real, free = (
        np.concatenate([flat_counts(part, world, bits, arm) for part in parts]) for arm in ("nearest", "real", "free")
    )
    size = int(parts[0].arrays["directions_size"].values)
    seeds = sum(len(part.coords["directions_seed"]) for part in parts)
    named = f"{bits} bits ({_NAMES[bits]}'s)" if bits in _NAMES else f"{bits} bits"
    opening = f"{_OPENINGS[world]}: "
    if decision.answer == "undecided":
        return f"{opening}undecided. {_capital(decision.why)}."
    flat = f"with weights of {named}, training comes to rest where {_about(here)} of {size} directions are flat"
    if decision.answer == "geometry":
        told = (
            f"{flat}; {_about(real)} of these are flat in real arithmetic as well, and {_about(free)} stay flat when no update "
            "is lost to rounding. The flat directions are geometry: they are there without the format"
        )
    elif decision.answer == "representation":
        told = (
            f"{flat}; in real arithmetic {_without(parts, world, bits, 'real', real)}, and when no update is lost to rounding "
            f"{_without(parts, world, bits, 'free', free)}. The format makes them, by losing small updates"
        )
        dial = float(parts[0].arrays["directions_dial"].values)
        if world.endswith("decay") and bits < predicted_bits(dial):
            told += (
                f": decay pulls a weight by 2^-{dial:g} of itself in a step, and weights of fewer than "
                f"{predicted_bits(dial):g} bits cannot take so small a step"
            )
    else:
        told = (
            f"{flat}; {_about(real)} of them are flat in real arithmetic too, and {_about(free)} when no update is lost to "
            "rounding. Part of the flat directions is geometry, and part is made by the format"
        )
    return f"{opening}{told} (so say {_agreeing(decision)} of {seeds} seeds by themselves)."


def summary(decisions: Mapping[str, Decision], sentences: Mapping[str, str], planted: Sequence[Mapping[str, Any]]) -> str:
    """All answers, after whether the run can be believed.

    Args:
        decisions: of the worlds.
        sentences: of the same.
        planted: from `planted_answers`.
    """
    wrong = [item for item in planted if item["expected"] != item["answer"]]
    if wrong:
        told = "; ".join(f'"{item["world"]}" is {item["expected"]}, and was called {item["answer"]}' for item in wrong)
        return f"{INVALID}: of the worlds whose answer is known, {told}. Nothing follows from what else was measured."
    right = len(planted)
    known = f"The same measurement names {right} of {right} planted worlds rightly, whose answers are known." if planted else ""
    return "\n".join([*(sentences[world] for world in decisions), known]).strip()


def planted_answers(decisions: Mapping[str, Decision], expected: Mapping[str, str]) -> list[dict[str, str]]:
    """What was said of each planted world, beside what has to be.

    Args:
        decisions: by planted world.
        expected: the right answers.
    """
    return [{"world": world, "expected": expected[world], "answer": found.answer} for world, found in decisions.items()]


def flat_counts(part: Measured, world: str, bits: int, arm: str) -> np.ndarray:
    """The flat directions of all seeds; none where the weights do not rest.

    Args:
        part: from `directions.measure`.
        world: its name.
        bits: of the format.
        arm: "nearest", "real", or "free": without lost updates.

    Returns:
        (seeds,).
    """
    return np.where(_of(part, world, bits, arm, "rests"), _of(part, world, bits, arm, "flat"), 0.0)


def _of(part: Measured, world: str, bits: int, arm: str, field: str) -> np.ndarray:
    """(seeds,)."""
    w = list(part.coords["directions_world"]).index(world)
    axis, prefix = ("free_bits", "free_") if arm == "free" else ("bits", "")
    at = list(part.coords[f"directions_{axis}"]).index(REAL if arm == "real" else bits)
    return part.arrays[f"directions_{prefix}{field}"].values[w, at]


def _without(parts: Sequence[Measured], world: str, bits: int, arm: str, counts: np.ndarray) -> str:
    """What is left of the flat directions in another arithmetic, or that most seeds do not come to rest in it."""
    rests = np.concatenate([_of(part, world, bits, arm, "rests") for part in parts])
    if 2 * rests.sum() > rests.size:
        return f"{_about(counts)} of them are flat"
    return f"training does not come to rest{'' if rests.any() else ' in any seed'}"


def _about(counts: np.ndarray) -> str:
    """The median, and the range of most seeds where it is not all the same number."""
    low, high = np.quantile(counts, [0.1, 0.9], method="nearest")
    middle = np.median(counts)
    return f"{middle:g}" if low == high else f"{middle:g} ({low:g} to {high:g})"


def _agreeing(decision: Decision) -> int:
    """Seeds whose own shares, each of them, are on the side of the answer; counted over the data."""
    inside = {
        "geometry": lambda values: values >= MOSTLY,
        "representation": lambda values: values <= HARDLY,
        "mixture": lambda values: (values > HARDLY) & (values < MOSTLY),
    }[decision.answer]
    by_data: dict[str, np.ndarray] = {}
    for name, share in decision.shares.items():
        data = name.partition(", ")[2]
        by_data[data] = by_data.get(data, np.ones(share.seeds, bool)) & inside(np.asarray(share.values))
    return int(sum(rows.sum() for rows in by_data.values()))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
