"""The bridge to Optax: watch what is lost in anybody's training loop, and land exactly on a format's grid.

`track` goes around a whole optimizer, so that it sees the update that `apply_updates` will add:

    optimizer = track(optax.adam(1e-3))          # the one line; everything else stays as it is
    ...
    record = stagnation(opt_state)               # wherever the state ended up inside other wrappers
    total(record.tally).stagnated_fraction

How an update comes into the record, room by room:

    cures/       round it, and when asked say what they meant (`roundings.Revealed`)
    meaning/     runs the optimizer's own program again, with nothing narrow, for what was meant of its state
    tracking/    gathers both as sights, counts them in one look, keeps the record in the state
    advice/      says what the record means

`sums` is what is stored for w + u, `choosing` in which format each leaf is, `widening` an optimizer made to see float32.
"""

from precisionlab.optimizers.advice import Advice, advise
from precisionlab.optimizers.cures.compensated import KahanState, kahan
from precisionlab.optimizers.cures.components import TwoComponentsState, two_components
from precisionlab.optimizers.cures.grid import RoundParamsState, round_params
from precisionlab.optimizers.cures.masters import MasterWeightsState, master_weights
from precisionlab.optimizers.cures.moments import RoundStateState, round_state
from precisionlab.optimizers.sums import apply_updates, stored_sum
from precisionlab.optimizers.tracking.observing import observer
from precisionlab.optimizers.tracking.track import MisplacedWarning, Record, StateRecord, TrackState, stagnation, track
from precisionlab.optimizers.widening import in_float32

__all__ = [
    "Advice",
    "KahanState",
    "MasterWeightsState",
    "MisplacedWarning",
    "Record",
    "RoundParamsState",
    "RoundStateState",
    "StateRecord",
    "TrackState",
    "TwoComponentsState",
    "advise",
    "apply_updates",
    "in_float32",
    "kahan",
    "master_weights",
    "observer",
    "round_params",
    "round_state",
    "stagnation",
    "stored_sum",
    "track",
    "two_components",
]
