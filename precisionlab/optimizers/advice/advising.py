"""What a record means for its reader, in plain words with numbers from the run itself.

Each piece of advice says what was measured, what the law of the storage asks for, and what the cures would cost. Where the
record does not hold the number that an advice would rest on, it says so instead.
"""

import math
from collections.abc import Iterable

import jax
import numpy as np
from jax.core import Tracer

from precisionlab.fates import total
from precisionlab.optimizers.advice.findings import Advice, or_zero
from precisionlab.optimizers.advice.state import about_state
from precisionlab.optimizers.advice.weights import about_weights
from precisionlab.optimizers.advice.wording import number, percent
from precisionlab.optimizers.arriving import misplacement
from precisionlab.optimizers.tracking import Record

__all__ = ["advise"]


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
    found = [*_misplaced(held), *about_weights(held, reads, learning_rate, weight_decay), *about_state(held, reads)]
    ranked = sorted(found, key=lambda advice: (_RANKS.index(advice.kind), -or_zero(advice.share)))
    return ranked or [_fine(held)]


_RANKS = (
    "misplaced", "nonfinite", "frozen", "decay", "forgetful", "counter",
    "ratchet", "stalled", "unbiased", "invisible", "what_if", "unknown",
)  # fmt: skip


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
