"""What to say of the weights."""

import math
from collections.abc import Iterable

import jax
import numpy as np

from precisionlab.numerics.formats import FLOAT32
from precisionlab.optimizers.advice.findings import (
    NOTABLE,
    Advice,
    Seen,
    common,
    grouped,
    nonfinite,
    numbers,
    or_zero,
    title,
    windows,
)
from precisionlab.optimizers.advice.wording import number, percent, size_of
from precisionlab.optimizers.tracking.storing import Stored
from precisionlab.optimizers.tracking.track import Record
from precisionlab.stagnation.fates import HISTOGRAM_EDGES, NO_GAP, Tally, by_path, total

__all__ = ["about_weights"]

_SMALL = 0.01
"""A share of the weights whose storage in float32 is not worth a second thought."""


def about_weights(record: Record, lr: float | None, decay: float | None) -> Iterable[Advice]:
    """Findings, leaf by leaf, then of all; `lr` and `decay` may be unknown."""
    storage = {} if record.storage is None else dict(record.storage.weights)
    groups = grouped(by_path(record.tally), windows(record.window), storage, gradients=numbers(record.gradients))
    everything = sum(int(seen.tally.entries) for seen in groups)
    for seen in groups:
        name = title(seen)
        if int(seen.tally.nonfinite):
            yield nonfinite(seen, "weights", name)
        stagnated = or_zero(float(seen.tally.stagnated_fraction))
        if seen.share >= NOTABLE:
            yield _frozen(record, seen, name, everything)
        elif seen.tally.invisible is not None and stagnated >= NOTABLE:
            most = "all" if seen.lost == 0 else f"all except {percent(seen.lost)}"
            sentence = (
                f"{name}: {percent(stagnated)} of {number(seen.tally.asked)} updates do not show in the weights, and "
                f"{most} are kept (by a master or a compensation) and land once enough has "
                f"gathered: invisible, not lost; nothing to do."
            )
            yield Advice("invisible", "weights", seen.path, seen.lost, None, sentence)
    if lr != 0:
        yield from _zero(groups, lr is not None)
    if lr is not None and decay is not None and lr * decay > 0:
        yield from _decay_does_nothing(groups, lr * decay)
    yield from _what_if(record)


def _zero(groups: list[Seen], rate_known: bool) -> Iterable[Advice]:
    """Updates that are all zero where gradients are not: of everything, or of leaves where what is small underflows."""
    still = [seen for seen in groups if int(seen.tally.zero) == int(seen.tally.entries) > 0]
    alone = len(still) < len([seen for seen in groups if int(seen.tally.entries)])
    for seen in still:
        stored = seen.stored
        if not seen.gradients or (alone and (stored is None or stored.emin <= FLOAT32.emin)):
            continue
        meant = "" if rate_known else "a learning rate of 0 as in the first step of a warm-up, "
        least = "" if stored is None else f" (in {stored.name or 'its format'} whatever is below {_least(stored):.1e} is 0)"
        sentence = (
            f"{title(seen)}: every update of {number(seen.tally.entries)} entries was exactly zero in the last read, though "
            f"{number(seen.gradients)} entries of the gradient were not. That may be meant ({meant}a mask, gradients that are "
            f"gathered first); if not, the optimizer's own arithmetic lost them{least}: make its update in float32."
        )
        yield Advice("zero", "weights", seen.path, math.nan, None, sentence)


def _least(stored: Stored) -> float:
    """Half of the smallest positive number: what is smaller is rounded to zero."""
    return 2.0 ** (stored.emin - stored.precision)


def _frozen(record: Record, seen: Seen, name: str, everything: int) -> Advice:
    tally, stored, share = seen.tally, seen.stored, seen.share
    lost = f"{name}: {percent(share)} of {seen.updates} lost {seen.when}."
    if stored is not None and stored.stochastic:
        quality = "" if tally.update_mass is None else f" (<w' - w, u> / <u, u> is {float(tally.descent_quality):.3g})"
        sentence = f"{lost} Rounding is stochastic: those that land make up for them on average{quality}; nothing to do."
        return Advice("unbiased", "weights", seen.path, share, None, sentence)
    parts = [lost]
    if int(tally.stagnated) == 0:
        parts.append(f"In the last read {'all landed' if int(tally.asked) else 'nothing was asked of them'}.")
        return Advice("frozen", "weights", seen.path, share, None, " ".join(parts))
    if tally.update_mass is None or stored is None:
        parts.append("How far they are from landing is not known: track with detail=True.")
        return Advice("frozen", "weights", seen.path, share, None, " ".join(parts))
    size = float(tally.update_mass) / max(int(tally.asked), 1)
    finest, coarsest = int(tally.finest), int(tally.coarsest)
    if finest != NO_GAP:
        low, high = 2.0 ** (finest - 1), 2.0 ** (coarsest - 1)
        steps = f"{low:.1e}" if low == high else f"{low:.1e} for the smallest of them to {high:.1e} for the largest"
        parts.append(
            f"To land a step must exceed {steps} (half of it from a power of two down); yours is {size:.1e} on average."
        )
    if stored.precision >= FLOAT32.precision or size <= 2.0 ** (coarsest - 1 + stored.precision - FLOAT32.precision):
        kept = _above_floor(tally, stored)
        if kept == 0:
            parts.append(
                "Float32 would lose the largest of them too, and perhaps all are below the floor of a compensation (kahan): "
                "only larger steps help, or float64."
            )
            return Advice("frozen", "weights", seen.path, share, None, " ".join(parts))
        parts.append(
            f"Float32 would lose the largest of them too: a compensation (kahan) in the same format keeps what is above its "
            f"floor, {_share(kept)} of them, for {_memory(stored, tally)}."
        )
        return Advice("frozen", "weights", seen.path, share, "kahan", " ".join(parts))
    by_chance, measured = _lands_by_chance(record, seen)
    how = "would have landed" if measured else "would land about"
    parts.append(f"Stochastic rounding {how} {percent(by_chance)} of steps, unbiased, at no memory.")
    kept = _share(_above_floor(tally, stored))
    parts.append(f"A compensation (kahan) would keep {kept} of them for {_memory(stored, tally)}.")
    extra = (4 - (stored.itemsize or 0)) * int(tally.entries)
    parts.append(f"Storing these weights in float32 costs {size_of(extra)} more.")
    if int(tally.entries) <= max(_SMALL * everything, 1 << 18):
        parts.append("That is little: do that.")
        return Advice("frozen", "weights", seen.path, share, "float32", " ".join(parts))
    parts.append("Try stochastic rounding first (round_params).")
    return Advice("frozen", "weights", seen.path, share, "round_params", " ".join(parts))


def _memory(stored: Stored, tally: Tally) -> str:
    count = int(tally.entries)
    return size_of(stored.itemsize * count) if stored.itemsize else f"{number(count)} more numbers"


def _share(least: float) -> str:
    return "all" if least == 1 else "perhaps none" if least == 0 else f"at least {percent(least)}"


def _lands_by_chance(record: Record, seen: Seen) -> tuple[float, bool]:
    """The share of updates that stochastic rounding lands, and whether it was measured rather than read from the histogram."""
    asked = record.stochastic.get(seen.stored.name) if seen.stored is not None else None
    if asked is not None:
        held = [tally for path, tally in by_path(asked).items() if path in seen.paths]
        if held:
            tally = total(held)
            return float(tally.landed) / max(int(tally.asked), 1), True
    edges = np.array(HISTOGRAM_EDGES[:-1], float)
    counts = np.asarray(seen.tally.histogram, float)
    return float(np.sum(counts * np.minimum(1, 2.0 ** (edges + 0.5))) / max(counts.sum(), 1)), False


def _above_floor(tally: Tally, stored: Stored) -> float:
    """The share of updates above the floor of a compensation in the same format, surely: 2^-(p+2) ulp, and 2^(emin-p)."""
    edges = np.array(HISTOGRAM_EDGES[:-1])
    counts = np.asarray(tally.histogram, float)
    least = max(HISTOGRAM_EDGES[0], -(stored.precision + 2), stored.emin - stored.precision - int(tally.finest))
    return float(counts[edges > least].sum() / max(counts.sum(), 1))


def _decay_does_nothing(groups: list[Seen], asked: float) -> Iterable[Advice]:
    """By the half-gap law: towards zero no number of p bits moves by 2^-(p+1) of itself or less."""
    plain = [seen for seen in groups if seen.stored is not None and seen.tally.invisible is None]
    held = [
        seen
        for seen in plain
        if seen.stored is not None and not seen.stored.stochastic and asked <= 2.0 ** -(seen.stored.precision + 1)
    ]
    if held:
        entries, all_entries = (sum(int(seen.tally.entries) for seen in part) for part in (held, groups))
        wide = "; stored in float32, in every step" if asked > 2.0**-FLOAT32.precision else ""
        least = min(2.0 ** -(seen.stored.precision + 1) for seen in held if seen.stored is not None)
        sentence = (
            f"Weight decay alone does nothing to {number(entries)} of {number(all_entries)} weights: it asks for {asked:.1e} "
            f"of each in a step, and none moves towards zero by {least:.1e} of itself or less. Made in float32 and rounded "
            f"stochastically (round_params) it is applied on average{wide}."
        )
        yield Advice(
            "decay", "weights", common([seen.path for seen in held]) if len(held) == 1 else "*", 1.0, "round_params", sentence
        )


def _what_if(record: Record) -> Iterable[Advice]:
    for name, tree in record.what_if.items():
        if not jax.tree.leaves(tree):
            continue
        nearest, chance = total(tree), total(record.stochastic[name])
        kept = total(record.compensated[name])
        if int(nearest.asked) == 0:
            continue
        lost = float(nearest.lost_fraction)
        worst, share = max(
            ((path, or_zero(float(tally.lost_fraction))) for path, tally in by_path(tree).items()), key=lambda pair: pair[1]
        )
        sentence = (
            f"If the weights were stored in {name}: {percent(lost)} of {number(nearest.asked)} updates would be lost (the "
            f"worst in {worst or 'the array'}: {percent(share)}); stochastic rounding would land "
            f"{percent(float(chance.landed) / int(chance.asked))}, a compensation would lose "
            f"{percent(float(kept.lost_fraction))}."
        )
        yield Advice("what_if", "weights", name, lost, None, sentence)
