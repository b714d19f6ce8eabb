"""What to say of the optimizer's own state."""

import math
from collections.abc import Iterable

from precisionlab.averages import is_ratchet, stall_level
from precisionlab.fates import by_path
from precisionlab.formats import FORMATS, Format
from precisionlab.optimizers.advice.findings import (
    NOTABLE,
    Advice,
    Seen,
    grouped,
    kept_by_path,
    nonfinite,
    numbers,
    or_zero,
    title,
)
from precisionlab.optimizers.advice.wording import number, percent, size_of, when
from precisionlab.optimizers.storing import Stored
from precisionlab.optimizers.tracking import Record

__all__ = ["about_state"]


def about_state(record: Record, reads: int) -> Iterable[Advice]:
    """Findings, leaf by leaf; `reads` is what the running means are of."""
    state = record.state
    if state is None:
        return
    storage = {} if record.storage is None else dict(record.storage.state)
    kept = kept_by_path(state.kept)
    for seen in grouped(by_path(state.tally), numbers(state.recent), storage, kept):
        name, tally = f"{title(seen)} in the optimizer's state", seen.tally
        if int(tally.nonfinite):
            yield nonfinite(seen, "state", name)
        meant, stored = seen.kept
        lost = float(tally.lost_fraction)
        share = seen.recent if not math.isnan(seen.recent) else lost
        little = max(or_zero(lost), or_zero(seen.recent)) < NOTABLE
        if seen.stored is not None and seen.stored.stochastic:
            if not little:
                sentence = (
                    f"{name}: {percent(share)} of the updates of {number(tally.asked)} entries lost {when(reads)}. Rounding "
                    f"is stochastic: those that land make up for them on average; nothing to do."
                )
                yield Advice("unbiased", "state", seen.path, share, None, sentence)
        elif meant < 1 and stored == 1:
            fell = f"; of {number(tally.falling)} entries that should have fallen in the last read {number(tally.fell)} did"
            sentence = (
                f"{name}: in an update without gradient it is multiplied by {meant:.6g} as meant, by 1 as stored, so it "
                f"forgets nothing{fell if int(tally.falling) else ''}. {_float32(seen)}, or make the update in float32 and "
                f"round it stochastically (round_state)."
            )
            yield Advice("forgetful", "state", seen.path, or_zero(lost), "float32", sentence)
        elif little:
            continue
        elif int(tally.entries) == len(seen.paths) and math.isnan(meant):
            yield _counter(seen, name, share, reads)
        elif int(tally.falling) and not int(tally.fell) and _never_falls(seen):
            sentence = (
                f"{name}: a ratchet: {number(tally.falling)} entries should have fallen in the last read, 0 did "
                f"({percent(share)} of all updates lost {when(reads)}). {_level(seen)}Made in float32 and rounded "
                f"stochastically (round_state) it falls on average. {_float32(seen)}."
            )
            yield Advice("ratchet", "state", seen.path, share, "round_state", sentence)
        else:
            tiny = _among_subnormals(seen)
            by_chance = "" if tiny else "Made in float32 and rounded stochastically (round_state) they count on average. "
            sentence = (
                f"{name}: {percent(share)} of the updates of {number(tally.asked)} entries lost {when(reads)}. "
                f"{_level(seen)}{by_chance}{_float32(seen)}."
            )
            yield Advice("stalled", "state", seen.path, share, "float32" if tiny else "round_state", sentence)


def _float32(seen: Seen) -> str:
    spare = 0 if seen.stored is None else seen.stored.itemsize or 0
    return f"Store it in float32, for {size_of((4 - spare) * int(seen.tally.entries))} more"


def _never_falls(seen: Seen) -> bool:
    fmt = _format(seen.stored)
    meant = seen.kept[0]
    return fmt is not None and 0 < meant < 1 and is_ratchet(round(meant, 6), fmt)


def _among_subnormals(seen: Seen) -> bool:
    stored = seen.stored
    return stored is not None and int(seen.tally.finest) == stored.emin - stored.precision + 1


def _counter(seen: Seen, name: str, share: float, reads: int) -> Advice:
    tally, precision = seen.tally, 0 if seen.stored is None else seen.stored.precision
    where = "" if tally.coarsest is None or not precision else f" at {2.0 ** (int(tally.coarsest) + precision - 1):g} or above"
    law = f" ({precision} significand bits count by ones up to 2^{precision} = {2**precision})" if precision else ""
    sentence = (
        f"{name}: a single number that stands still{where}: {percent(share)} of its updates lost {when(reads)}{law}. "
        f"Make it an integer, or float32."
    )
    return Advice("counter", "state", seen.path, share, "float32", sentence)


def _level(seen: Seen) -> str:
    """Where an average of this decay stalls, if both are known."""
    meant, stored = seen.kept[0], seen.stored
    fmt = _format(stored)
    if not 0 < meant < 1 or fmt is None or _among_subnormals(seen):
        return ""
    return (
        f"With decay {meant:.6g} an average of a constant that starts at 0 comes to rest at "
        f"{percent(stall_level(round(meant, 6), fmt))} of it. "
    )


def _format(stored: Stored | None) -> Format | None:
    return None if stored is None else FORMATS.get(stored.name)
