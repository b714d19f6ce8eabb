"""Other people's checkpoints: which updates their weights could not see, and which weights did not move."""

from precisionlab.checkpoints.comparing import compare
from precisionlab.checkpoints.forecasting import OPTIMIZERS, forecast
from precisionlab.checkpoints.reading import read_checkpoint
from precisionlab.checkpoints.stored import Checkpoint, CheckpointError, Stored

__all__ = ["OPTIMIZERS", "Checkpoint", "CheckpointError", "Stored", "compare", "forecast", "read_checkpoint"]
