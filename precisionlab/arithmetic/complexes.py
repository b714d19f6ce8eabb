"""Complex numbers, as hardware has them: two real numbers, and real operations on those.

    a + bi  +  c + di    (a + c) + (b + d)i
    a + bi  *  c + di    (ac - bd) + (ad + bc)i          each product and each sum rounded; so x * x for a square
    a + bi  /  c + di    Smith's algorithm: with r = d / c and t = c + dr if |c| >= |d|, ((a + br) + (b - ar)i) / t;
                         else with r = c / d and t = cr + d, ((ar + b) + (br - a)i) / t
    A + Bi  @  C + Di    (AC - BD) + (AD + BC)i           four real products, each rounded once; convolutions likewise
    sums                 the sum of the real parts and that of the imaginary parts
    |a + bi|             hypot(a, b), rounded once

Conjugates, parts and comparisons are exact. Any other function (exp, log, sqrt, a power, a product of many) is evaluated in
the carrier, and both parts of its value are rounded once.

R. L. Smith, "Algorithm 116: Complex division", 1962.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array

__all__ = ["COMPLEX", "is_complex", "joined", "parts", "real_dtype"]


def is_complex(dtype: Any) -> bool:
    """Whether a dtype holds complex numbers."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def real_dtype(dtype: Any) -> Any:
    """The dtype of the parts of a complex dtype."""
    return np.dtype(jnp.float64 if np.dtype(dtype) == np.complex128 else jnp.float32)


def parts(x: Any) -> tuple[Any, Any]:
    """The real and the imaginary part; on the host, if x is there."""
    return (lax.real(x), lax.imag(x)) if isinstance(x, jax.Array) else (np.real(x), np.imag(x))


def joined(real: Any, imag: Any) -> Any:
    """The complex number of two parts."""
    return lax.complex(*map(jnp.asarray, (real, imag)))


def _by_parts(operation: Callable[..., Array]) -> Callable[..., Array]:
    def parted(*operands: Array) -> Array:
        reals, imaginaries = zip(*map(parts, operands), strict=True)
        return joined(operation(*reals), operation(*imaginaries))

    return parted


def _multiplied(product: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """A product that is linear in both operands, by four real ones; by two, if one operand is real."""

    def four(x: Array, y: Array) -> Array:
        if not is_complex(x.dtype):
            return joined(*(product(x, part) for part in parts(y)))
        if not is_complex(y.dtype):
            return joined(*(product(part, y) for part in parts(x)))
        (a, b), (c, d) = parts(x), parts(y)
        return joined(lax.sub(product(a, c), product(b, d)), lax.add(product(a, d), product(b, c)))

    return four


def _divided(x: Array, y: Array) -> Array:
    """Smith's quotient, its branches chosen before they are computed."""
    (a, b), (c, d) = map(parts, jnp.broadcast_arrays(x, y))
    wide = lax.ge(lax.abs(c), lax.abs(d))
    large, small = lax.select(wide, c, d), lax.select(wide, d, c)
    r = lax.div(small, large)
    t = lax.add(large, lax.mul(small, r))
    first, second = lax.select(wide, a, b), lax.select(wide, b, a)  # the one to add to, and the one to multiply
    real = lax.add(first, lax.mul(second, r))
    plus, minus = lax.select(wide, b, lax.mul(b, r)), lax.select(wide, lax.mul(a, r), a)
    return joined(lax.div(real, t), lax.div(lax.sub(plus, minus), t))


def _on_parts(eqn: Any) -> Callable[..., Array]:
    params = dict(eqn.params)
    return _by_parts(lambda *operands: _single(eqn.primitive.bind(*operands, **params)))


def _single(results: Any) -> Array:
    return results[0] if isinstance(results, (list, tuple)) else results


def _converted(eqn: Any) -> Callable[[Array], Array]:
    new = eqn.outvars[0].aval.dtype
    part = real_dtype(new)

    def converted(x: Array) -> Array:
        if not is_complex(new):
            return lax.convert_element_type(lax.real(x), new)
        if is_complex(x.dtype):
            return _by_parts(lambda part_of_x: lax.convert_element_type(part_of_x, part))(x)
        real = lax.convert_element_type(x, part)
        return joined(real, lax.full_like(real, 0))

    return converted


def _product(eqn: Any) -> Callable[[Array, Array], Array]:
    params = dict(eqn.params)
    if params.get("preferred_element_type") is not None:
        params["preferred_element_type"] = real_dtype(params["preferred_element_type"])
    return _multiplied(lambda x, y: eqn.primitive.bind(x, y, **params))


def _scattered(eqn: Any) -> Callable[..., Array]:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    params = {name: eqn.params[name] for name in names}
    scatter = {"scatter-add": lax.scatter_add, "scatter-sub": lax.scatter_sub}[eqn.primitive.name]

    def scattered(operand: Array, indices: Array, updates: Array) -> Array:
        return _by_parts(lambda x, y: scatter(x, indices, y, **params))(operand, updates)

    return scattered


def _always(function: Callable[..., Array]) -> Callable[[Any], Callable[..., Array]]:
    def whatever_the_equation(eqn: Any) -> Callable[..., Array]:
        del eqn
        return function

    return whatever_the_equation


_times = _multiplied(lax.mul)
COMPLEX: dict[str, Callable[[Any], Callable[..., Array]]] = {
    **{name: _on_parts for name in ("add", "add_any", "sub", "reduce_sum", "cumsum", "reduce_window_sum")},
    **{name: _scattered for name in ("scatter-add", "scatter-sub")},
    "mul": _always(_times),
    "square": _always(lambda x: _times(x, x)),
    "div": _always(_divided),
    "dot_general": _product,
    "conv_general_dilated": _product,
    "convert_element_type": _converted,
}
"""By primitive: from an equation on complex numbers to the function on its operands, of real operations."""
