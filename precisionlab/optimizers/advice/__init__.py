"""What a record means for its reader: `advise(stagnation(opt_state))`."""

from precisionlab.optimizers.advice.advising import advise
from precisionlab.optimizers.advice.findings import Advice

__all__ = ["Advice", "advise"]
