"""Functions with another function's derivative: what is simulated going forward, and as it was written going back.

Only what moves is differentiated. A library's own rule may refuse to be asked about the rest, or spend a solve on it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero

__all__ = ["with_derivative_of"]


def with_derivative_of(written: Callable[..., list[Any]], value: Callable[..., list[Any]], forward: bool) -> Callable[..., Any]:
    """A function that has the values of one function and the derivative of another.

    Args:
        written: `written(*arrays)`, whose derivative it is.
        value: `value(extra, *arrays)`, the same to be computed; `extra` is not differentiated.
        forward: whether `written` has a derivative in forward mode; one in reverse mode alone otherwise.

    Returns:
        A function of the arguments of `value`.
    """
    return _forward(written, value) if forward else _reverse(written, value)


def _forward(written: Callable[..., list[Any]], value: Callable[..., list[Any]]) -> Callable[..., Any]:
    function = jax.custom_jvp(value)

    def derivative(primals: Any, tangents: Any) -> Any:
        rates = {place: rate for place, rate in enumerate(tangents[1:]) if not isinstance(rate, SymbolicZero)}
        moving = [primals[1 + place] for place in rates]
        _, moved = jax.jvp(_along(written, primals[1:], list(rates)), moving, list(rates.values()))
        return function(*primals), moved

    function.defjvp(derivative, symbolic_zeros=True)
    return function


def _reverse(written: Callable[..., list[Any]], value: Callable[..., list[Any]]) -> Callable[..., Any]:
    function = jax.custom_vjp(value)

    def kept(extra: Any, *arrays: Any) -> Any:
        held = [array.value for array in arrays]
        moving = {place: array.value for place, array in enumerate(arrays) if array.perturbed}
        still = {place: array.value for place, array in enumerate(arrays) if not array.perturbed}
        return value(jax.tree.map(lambda leaf: leaf.value, extra), *held), (moving, still)

    def pulled(residuals: Any, cotangents: Any) -> Any:
        moving, still = residuals
        arrays = [(moving | still)[place] for place in range(len(moving) + len(still))]
        _, pull = jax.vjp(_along(written, arrays, list(moving)), *moving.values())
        slopes = dict(zip(moving, pull([_instantiated(cotangent) for cotangent in cotangents]), strict=True))
        return (None, *[slopes.get(place) for place in range(len(arrays))])

    function.defvjp(kept, pulled, symbolic_zeros=True)
    return function


def _along(function: Callable[..., Any], arrays: Sequence[Any], places: Sequence[int]) -> Callable[..., Any]:
    """The function of the arguments in some places, the others held."""

    def along(*moving: Any) -> Any:
        changed = dict(zip(places, moving, strict=True))
        return function(*[changed.get(place, array) for place, array in enumerate(arrays)])

    return along


def _instantiated(cotangent: Any) -> Any:
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    aval: Any = cotangent.aval
    return np.zeros(aval.shape, aval.dtype)
