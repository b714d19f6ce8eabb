"""How values pass through JAX's own transformations: from what a walk holds to arrays, and back."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from precisionlab.arithmetic.carrying import carried, double, dtype_of, is_inexact
from precisionlab.arithmetic.entering import entered
from precisionlab.arithmetic.frames import RAW, UNKNOWN, Frame, Held
from precisionlab.arithmetic.programs.references import is_reference

__all__ = ["Walk", "constants", "finished", "packed", "raw", "unpacked"]

Walk = Callable[[Any, Sequence[Held], Sequence[Held], Frame], list[Held]]
"""`walk(program, constants, arguments, frame) -> results`, of `arithmetic.walking`."""


def raw(value: Any, dtype: Any, frame: Frame) -> Held:
    """A number that the program was written with, in its carrier, not rounded yet."""
    if is_reference(value):
        twin = jax.new_ref(carried(value[...], dtype, jnp.float64)) if frame.observing and is_inexact(dtype) else value
        return Held(value, UNKNOWN, twin)
    if not is_inexact(dtype):
        array = value if isinstance(value, jax.Array) else np.asarray(value, dtype)
        return Held(array, UNKNOWN, array)
    array = carried(value, dtype, frame.arithmetic.carrier)
    return Held(array, RAW, double(array) if frame.observing else None)


def finished(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Held]:
    """Results of a function, rounded where they are numbers that it was written with."""
    pairs = enumerate(zip(values, vars_, strict=True))
    return [value._replace(array=entered(value, "", dtype_of(var), frame, place)) for place, (value, var) in pairs]


def packed(values: Sequence[Held], frame: Frame, vars_: Sequence[Any]) -> list[Any]:
    """Values as arrays alone, to pass through JAX; what was raw is rounded where it enters."""
    pairs = enumerate(zip(values, vars_, strict=True))
    arrays = [entered(value, "", dtype_of(var), frame, place) for place, (value, var) in pairs]
    if frame.observing:
        return [(array, value.exact) for array, value in zip(arrays, values, strict=True)]
    return arrays


def unpacked(arrays: Sequence[Any], frame: Frame) -> list[Held]:
    """Arrays that came through JAX as values, of which nothing is known."""
    if frame.observing:
        return [Held(array, UNKNOWN, exact) for array, exact in arrays]
    return [Held(array, UNKNOWN) for array in arrays]


def constants(program: ClosedJaxpr, frame: Frame) -> list[Held]:
    """The constants of a program within the program."""
    return [raw(const, var.aval.dtype, frame) for const, var in zip(program.consts, program.jaxpr.constvars, strict=True)]
