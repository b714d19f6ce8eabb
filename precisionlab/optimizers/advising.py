"""What a record means for its reader, in plain words with numbers from the run itself.

Each piece of advice says what was measured, what the law of the storage asks for, and what the cures would cost. Where the
record does not hold the number that an advice would rest on, it says so instead.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from precisionlab.averages import is_ratchet, stall_level
from precisionlab.fates import HISTOGRAM_EDGES, NO_GAP, Tally, by_path, total
from precisionlab.formats import FLOAT32, FORMATS, Format
from precisionlab.optimizers.arriving import misplacement
from precisionlab.optimizers.storing import Stored
from precisionlab.optimizers.tracking import Record

__all__ = ["Advice", "advise"]

_NOTABLE = 0.05
"""Below this share of lost updates there is nothing to report."""

_SMALL = 0.01
"""A share of the weights whose storage in float32 is not worth a second thought."""


class Advice(NamedTuple):
    """One finding.

    Attributes:
        kind: "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter", "ratchet", "stalled", "unbiased",
            "invisible", "what_if", "unknown" or "fine".
        site: "weights" or "state".
        path: of the leaf, or of several that differ in numbers alone, such as layers/*/norm/scale.
        share: of the updates asked for, what is lost.
        cure: the name of a function in `precisionlab.optimizers`, or "float32", or None.
        sentence: all of it in words.
    """

    kind: str
    site: str
    path: str
    share: float
    cure: str | None
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class _Seen(NamedTuple):
    """Leaves of one kind together."""

    path: str
    paths: list[str]
    tally: Tally
    recent: float
    stored: Stored | None
    kept: tuple[float, float]


def advise(record: Record, *, learning_rate: float | None = None, weight_decay: float | None = None) -> list[Advice]:
    r"""A short ranked list of what is lost, and what would fix it.

    Args:
        record: from `stagnation(opt_state)`, outside of jit.
        learning_rate: if known, what the weight decay asks for is told too.
        weight_decay: decoupled, as in `optax.adamw`.

    Returns:
        The findings, worst first; one of kind "fine" if there are none.

    Raises:
        TypeError: if this is no record, or a traced one.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from precisionlab.optimizers.tracking import stagnation, track
        >>> optimizer, w = track(optax.sgd(1e-4)), {"norm": {"scale": jnp.ones(64, jnp.bfloat16)}}
        >>> _, state = optimizer.update(w, optimizer.init(w), w)
        >>> print(*advise(stagnation(state)), sep="\n")
        norm/scale (bfloat16): 100 % of the updates of 64 entries lost in the last read. ...
    """
    if not isinstance(record, Record):
        raise TypeError(f"advise: expected the Record of stagnation(opt_state); got {type(record).__name__}.")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(record)):
        raise TypeError("advise: the record is being traced; call it outside of jit, on the state that came out.")
    held: Record = jax.device_get(record._replace(ages=None))
    if np.ndim(held.step):
        raise TypeError(
            f"advise: this is a stack of records, of shape {np.shape(held.step)}; take one of them, "
            f"jax.tree.map(lambda x: x[0], record)."
        )
    if int(held.step) == 0:
        sentence = "Nothing is known yet: track has looked at 0 updates; ask again after one."
        return [Advice("unknown", "weights", "", math.nan, None, sentence)]
    reads = min(int(held.reads), 100)
    found = [*_misplaced(held), *_about_weights(held, reads, learning_rate, weight_decay), *_about_state(held, reads)]
    ranked = sorted(found, key=lambda advice: (_RANKS.index(advice.kind), -_or_zero(advice.share)))
    return ranked or [_fine(held)]


_RANKS = (
    "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter",
    "ratchet", "stalled", "unbiased", "invisible", "what_if", "unknown",
)  # fmt: skip


def _or_zero(share: float) -> float:
    return 0.0 if math.isnan(share) else share


def _misplaced(record: Record) -> Iterable[Advice]:
    sentence = misplacement(record.arrival)
    if sentence is not None:
        share = float(record.arrival.missed) / float(record.arrival.checked)
        yield Advice("misplaced", "weights", "", share, "track", sentence[0].upper() + sentence[1:])


def _about_weights(record: Record, reads: int, lr: float | None, decay: float | None) -> Iterable[Advice]:
    storage = {} if record.storage is None else dict(record.storage.weights)
    groups = _grouped(by_path(record.tally), _numbers(record.recent), storage, {})
    everything = sum(int(seen.tally.entries) for seen in groups)
    for seen in groups:
        name = _title(seen)
        if int(seen.tally.nonfinite):
            yield _nonfinite(seen, "weights", name)
        lost, stagnated = float(seen.tally.lost_fraction), float(seen.tally.stagnated_fraction)
        if max(lost, _or_zero(seen.recent)) >= _NOTABLE:
            yield _frozen(record, seen, name, reads, everything)
        elif seen.tally.invisible is not None and stagnated >= _NOTABLE:
            most = "all" if lost == 0 else f"all except {_percent(lost)}"
            sentence = (
                f"{name}: {_percent(stagnated)} of {_number(seen.tally.asked)} updates do not show in the weights, and "
                f"{most} are kept (by a master or a compensation) and land once enough has "
                f"gathered: invisible, not lost; nothing to do."
            )
            yield Advice("invisible", "weights", seen.path, lost, None, sentence)
    if lr is not None and decay:
        yield from _decay_does_nothing(groups, lr * decay)
    yield from _what_if(record)


def _frozen(record: Record, seen: _Seen, name: str, reads: int, everything: int) -> Advice:
    tally, stored = seen.tally, seen.stored
    share = seen.recent if not math.isnan(seen.recent) else float(tally.lost_fraction)
    parts = [f"{name}: {_percent(share)} of the updates of {_number(tally.asked)} entries lost {_when(reads)}."]
    if stored is not None and stored.stochastic:
        quality = "" if tally.update_mass is None else f" (<w' - w, u> / <u, u> is {float(tally.descent_quality):.3g})"
        parts.append(f"Rounding is stochastic: those that land make up for them on average{quality}; nothing to do.")
        return Advice("unbiased", "weights", seen.path, share, None, " ".join(parts))
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
        parts.append(
            f"Float32 would lose the largest of them too: a compensation (kahan) in the same format keeps what is above its "
            f"floor, {_share(_above_floor(tally, stored))} of them, for {_memory(stored, tally)}."
        )
        return Advice("frozen", "weights", seen.path, share, "kahan", " ".join(parts))
    by_chance, measured = _lands_by_chance(record, seen)
    how = "would have landed" if measured else "would land about"
    parts.append(f"Stochastic rounding {how} {_percent(by_chance)} of steps, unbiased, at no memory.")
    kept = _share(_above_floor(tally, stored))
    parts.append(f"A compensation (kahan) would keep {kept} of them for {_memory(stored, tally)}.")
    extra = (4 - (stored.itemsize or 0)) * int(tally.entries)
    parts.append(f"Storing these weights in float32 costs {_bytes(extra)} more.")
    if int(tally.entries) <= max(_SMALL * everything, 1 << 18):
        parts.append("That is little: do that.")
        return Advice("frozen", "weights", seen.path, share, "float32", " ".join(parts))
    parts.append("Try stochastic rounding first (round_params).")
    return Advice("frozen", "weights", seen.path, share, "round_params", " ".join(parts))


def _memory(stored: Stored, tally: Tally) -> str:
    count = int(tally.entries)
    return _bytes(stored.itemsize * count) if stored.itemsize else f"{_number(count)} more numbers"


def _share(least: float) -> str:
    return "all" if least == 1 else "perhaps none" if least == 0 else f"at least {_percent(least)}"


def _lands_by_chance(record: Record, seen: _Seen) -> tuple[float, bool]:
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


def _decay_does_nothing(groups: list[_Seen], asked: float) -> Iterable[Advice]:
    """By the half-gap law: towards zero no number of p bits moves by 2^-(p+1) of itself or less."""
    plain = [seen for seen in groups if seen.stored is not None and seen.tally.invisible is None]
    held = [
        seen
        for seen in plain
        if seen.stored is not None and not seen.stored.stochastic and asked <= 2.0 ** -(seen.stored.precision + 1)
    ]
    if held:
        entries, all_entries = (sum(int(seen.tally.entries) for seen in part) for part in (held, groups))
        wide = ", float32 in every step" if asked > 2.0**-FLOAT32.precision else ""
        least = min(2.0 ** -(seen.stored.precision + 1) for seen in held if seen.stored is not None)
        sentence = (
            f"Weight decay alone does nothing to {_number(entries)} of {_number(all_entries)} weights: it asks for {asked:.1e} "
            f"of each in a step, and none moves towards zero by {least:.1e} of itself or less. Stochastic rounding would apply "
            f"it on average (round_params){wide}."
        )
        yield Advice(
            "decay", "weights", _common([seen.path for seen in held]) if len(held) == 1 else "*", 1.0, "round_params", sentence
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
            ((path, _or_zero(float(tally.lost_fraction))) for path, tally in by_path(tree).items()), key=lambda pair: pair[1]
        )
        sentence = (
            f"If the weights were stored in {name}: {_percent(lost)} of {_number(nearest.asked)} updates would be lost (the "
            f"worst in {worst or 'the array'}: {_percent(share)}); stochastic rounding would land "
            f"{_percent(float(chance.landed) / int(chance.asked))}, a compensation would lose "
            f"{_percent(float(kept.lost_fraction))}."
        )
        yield Advice("what_if", "weights", name, lost, None, sentence)


def _about_state(record: Record, reads: int) -> Iterable[Advice]:
    state = record.state
    if state is None:
        return
    storage = {} if record.storage is None else dict(record.storage.state)
    kept = _kept_by_path(state.kept)
    for seen in _grouped(by_path(state.tally), _numbers(state.recent), storage, kept):
        name, tally = f"{_title(seen)} in the optimizer's state", seen.tally
        if int(tally.nonfinite):
            yield _nonfinite(seen, "state", name)
        meant, stored = seen.kept
        lost = float(tally.lost_fraction)
        share = seen.recent if not math.isnan(seen.recent) else lost
        little = max(_or_zero(lost), _or_zero(seen.recent)) < _NOTABLE
        if seen.stored is not None and seen.stored.stochastic:
            if not little:
                sentence = (
                    f"{name}: {_percent(share)} of the updates of {_number(tally.asked)} entries lost {_when(reads)}. Rounding "
                    f"is stochastic: those that land make up for them on average; nothing to do."
                )
                yield Advice("unbiased", "state", seen.path, share, None, sentence)
        elif meant < 1 and stored == 1:
            fell = f"; of {_number(tally.falling)} entries that should have fallen in the last read {_number(tally.fell)} did"
            sentence = (
                f"{name}: in an update without gradient it is multiplied by {meant:.6g} as meant, by 1 as stored, so it "
                f"forgets nothing{fell if int(tally.falling) else ''}. {_float32(seen)}, or make the update in float32 and "
                f"round it stochastically (round_state)."
            )
            yield Advice("forgetful", "state", seen.path, _or_zero(lost), "float32", sentence)
        elif little:
            continue
        elif int(tally.entries) == len(seen.paths) and math.isnan(meant):
            yield _counter(seen, name, share)
        elif int(tally.falling) and not int(tally.fell) and _never_falls(seen):
            sentence = (
                f"{name}: a ratchet: {_number(tally.falling)} entries should have fallen in the last read, 0 did "
                f"({_percent(share)} of all updates lost {_when(reads)}). {_level(seen)}Made in float32 and rounded "
                f"stochastically (round_state) it falls on average. {_float32(seen)}."
            )
            yield Advice("ratchet", "state", seen.path, share, "round_state", sentence)
        else:
            tiny = _among_subnormals(seen)
            by_chance = "" if tiny else "Made in float32 and rounded stochastically (round_state) they count on average. "
            sentence = (
                f"{name}: {_percent(share)} of the updates of {_number(tally.asked)} entries lost {_when(reads)}. "
                f"{_level(seen)}{by_chance}{_float32(seen)}."
            )
            yield Advice("stalled", "state", seen.path, share, "float32" if tiny else "round_state", sentence)


def _float32(seen: _Seen) -> str:
    spare = 0 if seen.stored is None else seen.stored.itemsize or 0
    return f"Store it in float32, for {_bytes((4 - spare) * int(seen.tally.entries))} more"


def _never_falls(seen: _Seen) -> bool:
    fmt = _format(seen.stored)
    meant = seen.kept[0]
    return fmt is not None and 0 < meant < 1 and is_ratchet(round(meant, 6), fmt)


def _among_subnormals(seen: _Seen) -> bool:
    stored = seen.stored
    return stored is not None and int(seen.tally.finest) == stored.emin - stored.precision + 1


def _counter(seen: _Seen, name: str, share: float) -> Advice:
    tally, precision = seen.tally, 0 if seen.stored is None else seen.stored.precision
    where = "" if tally.coarsest is None or not precision else f" at {2.0 ** (int(tally.coarsest) + precision - 1):g} or above"
    law = f" ({precision} significand bits count by ones up to 2^{precision} = {2**precision})" if precision else ""
    sentence = (
        f"{name}: a single number that stands still{where}: {_percent(share)} of its updates lost{law}. Make "
        f"it an integer, or float32."
    )
    return Advice("counter", "state", seen.path, share, "float32", sentence)


def _level(seen: _Seen) -> str:
    """Where an average of this decay stalls, if both are known."""
    meant, stored = seen.kept[0], seen.stored
    fmt = _format(stored)
    if not 0 < meant < 1 or fmt is None or _among_subnormals(seen):
        return ""
    return (
        f"With decay {meant:.6g} an average of a constant that starts at 0 comes to rest at "
        f"{_percent(stall_level(round(meant, 6), fmt))} of it. "
    )


def _format(stored: Stored | None) -> Format | None:
    return None if stored is None else FORMATS.get(stored.name)


def _nonfinite(seen: _Seen, site: str, name: str) -> Advice:
    count, entries = int(seen.tally.nonfinite), int(seen.tally.entries)
    sentence = (
        f"{name}: {_number(count)} of {_number(entries)} entries or their updates are infinite or NaN; all other counts leave "
        f"them out. Find their origin first (error_profile shows the first)."
    )
    return Advice("nonfinite", site, seen.path, count / entries, None, sentence)


def _fine(record: Record) -> Advice:
    if not jax.tree.leaves(record.tally):
        return Advice("fine", "weights", "", math.nan, None, "There are 0 floating weights, so nothing can be lost.")
    everything = total(record.tally)
    if int(everything.asked) == 0:
        sentence = f"Nothing was asked of {_number(everything.entries)} entries in the last read: every update was zero."
        return Advice("unknown", "weights", "", math.nan, None, sentence)
    lost = float(everything.lost_fraction)
    sentence = f"Updates land: {_percent(lost)} of {_number(everything.asked)} lost in the last read; nothing to do."
    return Advice("fine", "weights", "", lost, None, sentence)


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "*", path)


def _common(paths: list[str]) -> str:
    """What paths of one pattern have in common, with a star for each number in which they differ."""
    columns = zip(*(re.split(r"(\d+)", path) for path in paths), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


def _numbers(tree: Any) -> dict[str, float]:
    """The numbers of a tree under the paths of their leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(leaf) for path, leaf in leaves}


def _kept_by_path(kept: Any) -> dict[str, tuple[float, float]]:
    pairs: dict[str, dict[str, float]] = {}
    for path, value in _numbers(kept).items():
        leaf, _, side = path.rpartition("/")
        pairs.setdefault(leaf, {})[side] = value
    return {leaf: (sides["meant"], sides["stored"]) for leaf, sides in pairs.items()}


def _grouped(
    tallies: dict[str, Tally], recent: dict[str, float], storage: dict[str, Stored], kept: dict[str, Any]
) -> list[_Seen]:
    """Leaves whose paths differ in numbers alone, and that are stored and lose alike, as one."""
    groups: dict[Any, list[str]] = {}
    for path, tally in tallies.items():
        lost = _or_zero(float(tally.lost_fraction))
        groups.setdefault((_pattern(path), storage.get(path), kept.get(path), lost >= _NOTABLE), []).append(path)
    seen = []
    for (_, stored, pair, _), paths in groups.items():
        known = [recent[path] for path in paths if not math.isnan(recent[path])]
        mean = float(np.mean(known)) if known else math.nan
        held = total([tallies[path] for path in paths])
        seen.append(_Seen(_common(paths), paths, held, mean, stored, pair or (math.nan, math.nan)))
    return seen


def _title(seen: _Seen) -> str:
    where = seen.path or "the array"
    name = "unknown storage" if seen.stored is None else seen.stored.name or f"{seen.stored.precision} significand bits"
    return f"{where} ({name})" if len(seen.paths) == 1 else f"{where} ({len(seen.paths)} leaves, {name})"


def _when(reads: int) -> str:
    return "in the last read" if reads <= 1 else f"in the last {reads} reads"


def _percent(share: float) -> str:
    if math.isnan(share):
        return "an unknown share"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    percent = 100 * share
    if percent >= 99.5:
        return f"{min(percent, 99.99):.2f} %"
    return f"{percent:.2g} %"


def _number(count: Any) -> str:
    return f"{int(count):,}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
