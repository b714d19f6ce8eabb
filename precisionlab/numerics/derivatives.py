"""The derivative of a rounding: that of what was rounded, forwards, backwards and transposed.

    straight_through(x, rounded(constant(x)))    the values of the second, the derivatives of the first

with `rounded` a jitted function that is not inlined. `jax.linear_transpose` takes all that is computed from x to be linear in
x, and asks every equation for its transpose, also where no cotangent arrives. Integer operations have none, but a call is
passed over as a whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from precisionlab._typing import Array

__all__ = ["constant", "straight_through", "with_exact_derivative"]


def straight_through(x: Array, rounded: Array) -> Array:
    """The rounded values with the derivative of the identity.

    A primitive, and no `jax.custom_jvp`: where the derivative of a scan is taken twice, JAX before 0.12 forgets in between that
    a function has a derivative of its own, and that of what it computes, which is none here, would take its place. Nor can
    such a function be transposed.
    """
    return _straight_through.bind(x, rounded)


def with_exact_derivative(exact: Callable[..., Array], rounded: Array, *operands: Array) -> Array:
    """The rounded values, with the derivative of the exact function of the operands."""
    if not any(isinstance(each, Tracer) for each in (rounded, *operands)):
        return rounded  # no derivative is taken of what nobody traces, and only a compiler leaves out the exact function
    return straight_through(exact(*operands), rounded)


def constant(x: Array) -> Array:
    """X, of which no derivative is taken: `jax.lax.stop_gradient`, but for having a transpose, which is zero."""
    return _constant.bind(x) if isinstance(x, Tracer) else x


def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    # Through itself again, so that second derivatives see the identity too.
    return straight_through(*primals), tangents[0]


def _straight_through_transpose(cotangent: Any, *operands: Any) -> tuple[Any, None]:
    del operands
    return cotangent, None


def _straight_through_batched(args: tuple[Array, Array], axes: tuple[int | None, int | None]) -> tuple[Array, int]:
    size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)

    def first(arg: Array, axis: int | None) -> Array:
        return jnp.broadcast_to(arg, (size, *jnp.shape(arg))) if axis is None else jnp.moveaxis(arg, axis, 0)

    return straight_through(*map(first, args, axes)), 0


def _constant_jvp(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    # Through itself again: a constant of every derivative that is taken.
    return constant(*primals), ad.Zero(jax.typeof(*tangents))


def _constant_transpose(cotangent: Any, x: Any) -> tuple[None]:
    del cotangent, x
    return (None,)


def _constant_batched(args: tuple[Array], axes: tuple[int]) -> tuple[Array, int]:
    return constant(*args), axes[0]


def _first(x: Any) -> Any:
    return x


def _second(x: Any, rounded: Any) -> Any:
    del x
    return rounded


_straight_through = Primitive("straight_through")
_straight_through.def_impl(_second)
_straight_through.def_abstract_eval(_second)
ad.primitive_jvps[_straight_through] = _straight_through_jvp
ad.primitive_transposes[_straight_through] = _straight_through_transpose
batching.primitive_batchers[_straight_through] = _straight_through_batched
mlir.register_lowering(_straight_through, lambda _, x, rounded: [_second(x, rounded)])  # by hand: there are hundreds

_constant = Primitive("stop_gradient")
_constant.def_impl(_first)
_constant.def_abstract_eval(_first)
ad.primitive_jvps[_constant] = _constant_jvp
ad.primitive_transposes[_constant] = _constant_transpose
batching.primitive_batchers[_constant] = _constant_batched
mlir.register_lowering(_constant, lambda _, x: [x])
