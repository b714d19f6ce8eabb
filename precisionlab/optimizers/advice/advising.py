"""What a record means for its reader, in plain words with numbers from the run itself.

Each piece of advice says what was measured, what the law of the storage asks for, and what the cures would cost. Where the
record does not hold the number that an advice would rest on, it says so instead.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from precisionlab.optimizers.advice.findings import Advice, or_zero
from precisionlab.optimizers.advice.state import about_state
from precisionlab.optimizers.advice.weights import about_weights
from precisionlab.optimizers.advice.wording import number, percent
from precisionlab.optimizers.tracking.arriving import misplacement
from precisionlab.optimizers.tracking.track import Record
from precisionlab.stagnation.fates import total

__all__ = ["advise"]


Rate = float | Callable[[Any], Any]
"""A number, or a schedule: the count of updates before to a number."""


def advise(record: Record, *, learning_rate: Rate | None = None, weight_decay: Rate | None = None) -> list[Advice]:
    r"""A short ranked list of what is lost, and what would fix it.

    Args:
        record: from `stagnation(opt_state)`, outside of jit.
        learning_rate: if known, what the weight decay asks for is told too; a number, or an Optax schedule, which is asked
            for that of the record's own step.
        weight_decay: decoupled, as in `optax.adamw`; likewise.

    Returns:
        The findings, worst first; one of kind "fine" if there are none.

    Raises:
        TypeError: if this is no record, or a traced one; if a rate is neither a number nor a schedule.
        ValueError: if a rate is negative or not finite.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from precisionlab.optimizers import stagnation, track
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
    count = max(int(held.step) - 1, 0)
    rates = _rate(learning_rate, "learning_rate", count), _rate(weight_decay, "weight_decay", count)
    if int(held.step) == 0:
        sentence = "Nothing is known yet: track has looked at 0 updates; ask again after one."
        return [Advice("unknown", "weights", "", math.nan, None, sentence)]
    found = [*_misplaced(held), *about_weights(held, *rates), *about_state(held)]
    ranked = sorted(found, key=lambda advice: (_RANKS.index(advice.kind), -or_zero(advice.share)))
    return ranked or [_fine(held)]


_RANKS = (
    "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter",
    "stalled", "zero", "unbiased", "invisible", "what_if", "unknown",
)  # fmt: skip


def _rate(given: Any, name: str, count: int) -> float | None:
    """A rate as a number."""
    if given is None:
        return None
    if isinstance(given, str | bytes) or not (callable(given) or np.ndim(given) == 0):
        raise TypeError(
            f"advise: {name} must be a number, or a schedule such as optax.linear_schedule(0.0, 1e-3, 100); got {given!r}."
        )
    value: Any = given(count) if callable(given) else given
    if isinstance(value, Tracer):
        raise TypeError(f"advise: {name} is being traced; call advise outside of jit.")
    kind = np.asarray(value).dtype
    if np.ndim(value) or kind == np.bool_ or not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        made = f" from the schedule at {count}" if callable(given) else ""
        raise TypeError(f"advise: {name} must be one real number; got {value!r}{made}.")
    rate = float(value)
    if not math.isfinite(rate) or rate < 0:
        made = f" from the schedule at {count}" if callable(given) else ""
        raise ValueError(f"advise: {name} must be finite and at least 0; got {rate!r}{made}.")
    return rate


def _misplaced(record: Record) -> Iterable[Advice]:
    sentence = misplacement(record.arrival)
    if sentence is not None:
        share = float(record.arrival.missed) / float(record.arrival.checked)
        yield Advice("misplaced", "weights", "", share, "track", sentence[0].upper() + sentence[1:])


def _fine(record: Record) -> Advice:
    if not jax.tree.leaves(record.tally):
        return Advice("fine", "weights", "", math.nan, None, "There are 0 floating weights, so nothing can be lost.")
    everything = total(record.tally)
    if int(everything.asked) == 0:
        sentence = f"Nothing was asked of {number(everything.entries)} entries in the last read: every update was zero."
        return Advice("unknown", "weights", "", math.nan, None, sentence)
    lost = float(everything.lost_fraction)
    sentence = f"Updates land: {percent(lost)} of {number(everything.asked)} lost in the last read; nothing to do."
    return Advice("fine", "weights", "", lost, None, sentence)
