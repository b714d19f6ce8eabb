"""What to say of the optimizer's own state."""

import math
from collections.abc import Iterable

from precisionlab.numerics.formats import FLOAT32
from precisionlab.optimizers.advice.findings import (
    NOTABLE,
    Advice,
    Seen,
    grouped,
    kept_by_path,
    nonfinite,
    numbers,
    title,
    windows,
)
from precisionlab.optimizers.advice.wording import number, percent, size_of
from precisionlab.optimizers.tracking.track import Record
from precisionlab.stagnation.fates import by_path

__all__ = ["about_state"]


def about_state(record: Record) -> Iterable[Advice]:
    """Findings, leaf by leaf."""
    state = record.state
    if state is None:
        return
    storage = {} if record.storage is None else dict(record.storage.state)
    owners = list(by_path(record.tally))
    seen = grouped(by_path(state.tally), windows(state.window), storage, kept_by_path(state.kept), numbers(state.narrowed))
    for leaf in seen:
        name = f"{title(leaf)} in the optimizer's state"
        if int(leaf.tally.nonfinite):
            yield nonfinite(leaf, "state", name)
        yield from _about(leaf, name, owned=any(leaf.paths[0].endswith(path) for path in owners))


def _about(seen: Seen, name: str, *, owned: bool) -> Iterable[Advice]:
    """What is lost of a leaf, if anything that counts; `round_state` is for those that belong to parameters."""
    meant, stored = seen.kept
    chance = seen.stored is not None and seen.stored.stochastic
    forgetful = 0 < meant < 1 and stored == 1 and not chance
    single = int(seen.tally.entries) == len(seen.paths)
    # A number that is set anew in every update has nothing to lose: what is stored is what was meant, rounded.
    if not forgetful and (seen.share < NOTABLE or meant == 0 or (single and math.isnan(meant) and not chance)):
        return
    lost = f"{percent(seen.share)} of {seen.updates} lost {seen.when}"
    if chance:
        yield _by_chance(seen, f"{name}: {lost}.")
        return
    if forgetful:
        tally = seen.tally
        # What has moved may have gone the other way: what was added is kept whole, and what was to be forgotten is not.
        still = int(tally.falling) > 0 and int(tally.fell) == 0
        fell = f"; of {number(tally.falling)} entries that should have fallen in the last read 0 did" if still else ""
        what = (
            f"{name}: in an update without gradient it is multiplied by {meant:.6g} as meant, by 1 as stored, so it forgets "
            f"nothing{fell}."
        )
        kind, share, average = "forgetful", seen.lost, "it forgets"
    elif single and meant == 1:
        yield _counter(seen, name)
        return
    else:
        what, kind, share, average = f"{name}: {lost}.", "stalled", seen.share, "each counts"
    if seen.stored is not None and seen.stored.precision >= FLOAT32.precision:
        yield Advice(kind, "state", seen.path, share, None, f"{what} {_in_float32(seen)}")
        return
    wide = f"Store it in float32, for {_more(seen)} more"
    if not owned or _among_subnormals(seen):
        yield Advice(kind, "state", seen.path, share, "float32", f"{what} {wide}.")
        return
    by_chance = f"round it stochastically (round_state, which makes the update in float32): then {average} on average"
    cure = "float32" if kind == "forgetful" else "round_state"
    yield Advice(kind, "state", seen.path, share, cure, f"{what} {wide}, or {by_chance}.")


def _by_chance(seen: Seen, what: str) -> Advice:
    if seen.narrowed:
        sentence = (
            f"{what} Rounding is stochastic, but of what the optimizer has rounded by itself before, so that nothing makes up "
            f"for them: leave the casts in its own update out (mu_dtype and the like), or store it in float32."
        )
        return Advice("stalled", "state", seen.path, seen.share, "float32", sentence)
    surely = "" if seen.narrowed is False else ", if the optimizer makes its update in float32"
    sentence = f"{what} Rounding is stochastic: those that land make up for them on average{surely}; nothing to do."
    return Advice("unbiased", "state", seen.path, seen.share, None, sentence)


def _in_float32(seen: Seen) -> str:
    """What helps what is stored in float32 already."""
    if seen.narrowed:
        return "It is stored wide, but the optimizer rounds it to fewer bits in every update: leave that cast out."
    shorter = ", or a smaller decay" if 0 < seen.kept[0] < 1 else ""
    return f"That is what the storage itself loses: only a wider one (float64){shorter} keeps more."


def _more(seen: Seen) -> str:
    spare = 0 if seen.stored is None else seen.stored.itemsize or 0
    return size_of((4 - spare) * int(seen.tally.entries))


def _among_subnormals(seen: Seen) -> bool:
    stored = seen.stored
    return stored is not None and int(seen.tally.finest) == stored.emin - stored.precision + 1


def _counter(seen: Seen, name: str) -> Advice:
    tally, precision = seen.tally, 0 if seen.stored is None else seen.stored.precision
    known = int(tally.stagnated) > 0 and precision > 0
    where = f" at {2.0 ** (int(tally.coarsest) + precision - 1):g} or above" if known else ""
    law = f" (with {precision} significand bits a count by ones stops at 2^{precision} = {2**precision})" if precision else ""
    sentence = f"{name}: a sum that stands still{where}: {percent(seen.share)} of its updates lost {seen.when}{law}. "
    if precision >= FLOAT32.precision:
        cure, sentence = None, f"{sentence}{_in_float32(seen)}"
    else:
        cure, sentence = "float32", f"{sentence}Store it in float32, or as an integer if it counts whole numbers."
    return Advice("counter", "state", seen.path, seen.share, cure, sentence)
