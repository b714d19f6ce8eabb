"""The configuration of a slingshot: data, registers and training."""

from dataclasses import dataclass

import numpy as np

from precisionlab.experiments.common.requests import check_names, check_positive
from precisionlab.experiments.slingshot.arms import REGISTERS
from precisionlab.experiments.slingshot.tasks import TASKS
from precisionlab.numerics.modes import MODES

__all__ = ["SlingshotConfig"]


@dataclass(frozen=True)
class SlingshotConfig:
    """The data, the registers and the training; the arms are always all of `arms`.

    Attributes:
        data: waves, relu_waves, digits.
        registers: names in `arms.REGISTERS`.
        seeds: how many; each has data, labels' noise and initial weights of its own, the same for every register and arm.
        steps: updates until the slingshot, for each of `data`; a multiple of `chunk`.
        longest: updates after it, as a share of the steps, for each of `data`, for the arms that go on longest; at least 0.1.
        sizes: numbers of training points for the question of small data, or none.
        sized: those of `data` of which it is asked.
        size_seeds: seeds of that question.
        chunk: updates between two looks at the losses before the slingshot.
        mode: how simulated registers round weights.
        learning_rate: Adam's.
        width: units of the hidden layers.

    Raises:
        ValueError: for unknown names, numbers that make no sense, or steps that are no multiples of `chunk`.

    Example:
        >>> SlingshotConfig(data=("waves",), steps=(400,), longest=(0.5,), seeds=4).registers[:3]
        ('float32', 'bfloat16', 'float8_e4m3fn')
    """

    data: tuple[str, ...] = ("waves", "relu_waves", "digits")
    registers: tuple[str, ...] = ("float32", "bfloat16", "float8_e4m3fn", "fixed8")
    seeds: int = 32
    steps: tuple[int, ...] = (3600, 3600, 1600)
    longest: tuple[float, ...] = (1.3, 0.1, 1.3)
    sizes: tuple[int, ...] = (16, 128, 512)
    sized: tuple[str, ...] = ("waves", "digits")
    size_seeds: int = 32
    chunk: int = 40
    mode: str = "stochastic"
    learning_rate: float = 3e-3
    width: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        check_names("data", self.data, TASKS)
        check_names("registers", self.registers, REGISTERS)
        check_names("mode", (self.mode,), MODES)
        if self.sized:
            check_names("sized", self.sized, TASKS)
        for field in ("steps", "longest"):
            if len(getattr(self, field)) != len(self.data):
                raise ValueError(f"{field} is {getattr(self, field)}; give one number for each of {', '.join(self.data)}.")
        check_positive(self, "seeds", "size_seeds", "chunk", "width")
        if any(value < 1 or value % self.chunk for value in self.steps):
            raise ValueError(f"steps is {self.steps}; allowed are positive multiples of chunk={self.chunk}.")
        if not all(np.isfinite(value) and value >= 0.1 for value in self.longest):
            raise ValueError(f"longest is {self.longest}; allowed are shares of the steps of at least 0.1, such as 0.5.")
        if any(value < 2 for value in self.sizes) or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes is {self.sizes}; allowed are different whole numbers of points, at least 2.")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be a positive number.")
