"""Primitives that are programs: what they are made of, operation by operation.

An equation of one of these is replaced by the program of a function of its operands, which is walked like a program within the
program. The function is plain JAX in the dtypes of the equation; that all of its operations are rounded is none of its
business. A rule that names such a primitive rounds its result as a whole instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import is_inexact
from precisionlab.arithmetic.complexes import COMPLEX, is_complex
from precisionlab.arithmetic.expansions import factorizations
from precisionlab.arithmetic.expansions.grouped import ragged_product, scaled_product
from precisionlab.arithmetic.expansions.transforms import by_butterflies, fourier
from precisionlab.arithmetic.expansions.windows import reduced_windows, summed_windows
from precisionlab.arithmetic.frames import Arithmetic
from precisionlab.arithmetic.rules import is_named

__all__ = ["EXPANSIONS", "OWN_DERIVATIVE", "expansion_of", "program_within"]

Maker = Callable[[Any, Arithmetic], Callable[..., Any] | None]


def _cholesky(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """Right-looking, column by column; NaN throughout where a pivot is not positive."""
    del eqn, arithmetic
    return factorizations.cholesky


def _lu(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """Right-looking, with partial pivoting."""
    del eqn, arithmetic
    return factorizations.lu


def _triangular_solve(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """Substitution, each known entry subtracted from what remains at once."""
    del arithmetic
    return partial(factorizations.triangular_solve, **eqn.params)


def _tridiagonal_solve(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any] | None:
    """Elimination with partial pivoting, as LAPACK's gtsv (with `perturb_singular` one operation)."""
    del arithmetic
    return None if eqn.params.get("perturb_singular") else factorizations.tridiagonal_solve


def _fft(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any] | None:
    """Radix-2 butterflies where all lengths are powers of two; else one operation, both parts rounded once."""
    del arithmetic
    lengths = tuple(eqn.params["fft_lengths"])
    if not by_butterflies(lengths):
        return None
    return partial(fourier, kind=str(getattr(eqn.params["fft_type"], "name", eqn.params["fft_type"])), lengths=lengths)


def _polynomial(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """Horner's rule, each product and each sum rounded."""
    del eqn, arithmetic

    def horner(x: Array, *coefficients: Array) -> Array:
        shape = jnp.broadcast_shapes(x.shape, *(c.shape for c in coefficients))
        x, *terms = (jnp.broadcast_to(array, shape) for array in (x, *coefficients))
        value = terms[-1]
        for term in reversed(terms[:-1]):
            value = lax.add(lax.mul(value, x), term)
        return value

    return horner


def _reduce_window(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """The function applied again and again, from the initial value on, in row-major order of the window."""
    del arithmetic
    return reduced_windows(eqn)


def _reduce_window_sum(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any] | None:
    """A float32 sum rounded once; with an `accumulation`, a sum in its order, row-major within the window."""
    return None if arithmetic.accumulation is None else summed_windows(eqn)


def _ragged_dot_general(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any] | None:
    """Exact products and float32 partial sums within a group, one rounding; with an `accumulation`, that of its product."""
    return None if arithmetic.accumulation is None else ragged_product(eqn)


def _scaled_matmul(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any]:
    """Each entry times the scale of its block, rounded; then a matrix product."""
    del arithmetic
    return scaled_product(eqn)


EXPANSIONS: dict[str, Maker] = {
    "cholesky": _cholesky,
    "fft": _fft,
    "lu": _lu,
    "polynomial": _polynomial,
    "ragged_dot_general": _ragged_dot_general,
    "reduce_window": _reduce_window,
    "reduce_window_sum": _reduce_window_sum,
    "scaled_matmul": _scaled_matmul,
    "triangular_solve": _triangular_solve,
    "tridiagonal_solve": _tridiagonal_solve,
}
"""By primitive: the function that an equation of it stands for, or None where it is one operation."""


OWN_DERIVATIVE = frozenset({"cholesky", "div", "fft", "polynomial", "triangular_solve", "tridiagonal_solve"})
"""Those whose derivative, taken from outside, is JAX's for the whole; of the others it is that of their operations."""


def expansion_of(eqn: Any, arithmetic: Arithmetic) -> Callable[..., Any] | None:
    """The function of its operands that an equation stands for, or None if it is one operation (or holds programs)."""
    name = eqn.primitive.name
    dtypes = [var.aval.dtype for var in (*eqn.invars, *eqn.outvars) if hasattr(var.aval, "dtype")]
    if name in COMPLEX and any(map(is_complex, dtypes)):
        return COMPLEX[name](eqn)
    if name not in EXPANSIONS or is_named(arithmetic.formats, name) or not any(map(is_inexact, dtypes)):
        return None
    return EXPANSIONS[name](eqn, arithmetic)


def program_within(eqn: Any, function: Callable[..., Any]) -> ClosedJaxpr:
    """The program of a function that stands for an equation."""
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
    return jax.make_jaxpr(function)(*shapes)
