"""References: arrays that a program changes in place (`jax.new_ref`, and the loops of JAX that are made of them).

Reading, writing and freezing move numbers. Adding in place is a sum, which is rounded as any other. A reference that the
program makes holds values of the carrier; one that comes from outside has its own dtype, and stores what is written there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from precisionlab.arithmetic.carrying import as_typed, carried, carrier_dtype, dtype_of
from precisionlab.arithmetic.entering import entered
from precisionlab.arithmetic.frames import UNKNOWN, Frame, Held

__all__ = ["REFERENCES", "is_reference"]


def is_reference(value: Any) -> bool:
    """Whether a value, or a variable of a program, is a reference."""
    return "Ref" in type(jax.typeof(value) if not hasattr(value, "aval") else value.aval).__name__


def _made(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    return [_twice(lambda value: eqn.primitive.bind(value, **eqn.params), _entered(eqn, inputs, frame)[0], frame)]


def _empty(eqn: Any, _: list[Held], frame: Frame) -> list[Held]:
    shape, dtype = eqn.outvars[0].aval.shape, carrier_dtype(dtype_of(eqn.outvars[0]), frame.arithmetic.carrier)
    blank = Held(jnp.empty(shape, dtype), UNKNOWN, jnp.empty(shape, carrier_dtype(dtype, jnp.float64)))
    return [_twice(jax.new_ref, blank, frame)]


def _read(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    places = [value.array for value in inputs[1:]]
    return [_twice(lambda reference: eqn.primitive.bind(reference, *places, **eqn.params), inputs[0], frame)]


def _written(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    reference, value, *rest = _entered(eqn, inputs, frame)
    places = [place.array for place in rest]
    before = _exchanged(eqn.primitive, eqn.params, reference.array, value.array, places)
    exact = _exchanged(eqn.primitive, eqn.params, reference.exact, value.exact, places) if frame.observing else None
    return [_held(before, exact, frame)]


def _added(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """Old and new, added where the program would add them: a sum that the frame rounds."""
    reference, value, *rest = _entered(eqn, inputs, frame)
    places, swap = [place.array for place in rest], _primitive("swap")
    before = _twice(lambda held: _primitive("get").bind(held, *places, **eqn.params), reference, frame)
    shape = jax.ShapeDtypeStruct(before.array.shape, dtype_of(eqn.invars[1]))
    addition = jax.make_jaxpr(lax.add)(shape, shape).jaxpr.eqns[0]
    (after,) = frame.operate(addition, [before, value], frame)
    _exchanged(swap, eqn.params, reference.array, after.array, places)
    if frame.observing:
        _exchanged(swap, eqn.params, reference.exact, after.exact, places)
    return []


def _frozen(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    if not eqn.outvars:
        eqn.primitive.bind(inputs[0].array, **eqn.params)
        return []
    return [_twice(lambda reference: eqn.primitive.bind(reference, **eqn.params), inputs[0], frame)]


def _exchanged(swap: Any, params: dict[str, Any], reference: Any, value: Any, places: list[Any]) -> Any:
    return swap.bind(reference, as_typed(jnp.asarray(value), reference.dtype), *places, **params)


def _entered(eqn: Any, inputs: list[Held], frame: Frame) -> list[Held]:
    """Operands as they are moved: numbers that the program was written with are rounded where they enter."""
    pairs = enumerate(zip(inputs, eqn.invars, strict=True))
    return [
        value if is_reference(var) else value._replace(array=entered(value, "", dtype_of(var), frame, place), grid=UNKNOWN)
        for place, (value, var) in pairs
    ]


def _twice(function: Callable[[Any], Any], value: Held, frame: Frame) -> Held:
    """The same of what the simulation holds and, where somebody observes, of its exact twin."""
    return _held(function(value.array), function(value.exact) if frame.observing else None, frame)


def _held(array: Any, exact: Any, frame: Frame) -> Held:
    known = array if is_reference(array) else carried(array, array.dtype, frame.arithmetic.carrier)
    return Held(known, UNKNOWN, exact)


def _primitive(name: str) -> Any:
    """A primitive that acts on a reference, from a program that has it."""
    if name == "get":
        program = jax.make_jaxpr(lambda: jax.new_ref(jnp.zeros(()))[...])()
    else:
        program = jax.make_jaxpr(lambda: jax.new_ref(jnp.zeros(())).__setitem__(..., 1.0))()
    return next(eqn.primitive for eqn in program.jaxpr.eqns if eqn.primitive.name == name)


REFERENCES: dict[str, Callable[..., list[Held]]] = {
    "new_ref": _made,
    "empty_ref": _empty,
    "get": _read,
    "swap": _written,
    "addupdate": _added,
    "freeze": _frozen,
    "free_ref": _frozen,
}
