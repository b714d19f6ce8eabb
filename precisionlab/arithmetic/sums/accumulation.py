"""Sums of products in which every product and every partial sum is rounded.

A dot product is not one operation. Hardware multiplies, rounds the product or keeps it, adds it to a partial sum in some order,
and rounds that; where the partial sums are narrow, the order decides what is left:

    sequential    s = fl(s + t_i)         from s = +0; terms below half an ulp of s are lost, and s stalls
    chunks of c   the same for c terms at a time, then fl(S + s_j): two short sums in place of a long one (Wang et al. 2018)
    pairwise      fl(left + right)        down a balanced tree
    compensated   s = fl(s + y), y = fl(t_i - c), c = fl(fl(s - s') - y): what s lost comes back with the next term (Kahan 1965)

Each fl is one correct rounding of the exact result, in any mode (`exact_sums` says how). Terms run along a scan, and each step
updates all entries of the result in one fused pass.

N. Wang et al., "Training deep neural networks with 8-bit floating point numbers", 2018.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.arithmetic.exact.exact_sums import is_carrier_itself, multiplies_exactly
from precisionlab.arithmetic.sums.orders import ORDERS, Accumulation, Operations, reduced
from precisionlab.numerics.carriers import CARRIERS, FLOAT32_CARRIER, Carrier, carrier_of
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.derivatives import constant, with_exact_derivative
from precisionlab.numerics.formats import Format, is_concrete
from precisionlab.numerics.grids import as_carrier
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, mode_name, nearest_even
from precisionlab.numerics.randomness import check_key
from precisionlab.numerics.wide import in_float64, lifted, unheld
from precisionlab.numerics.words import is_number

__all__ = [
    "Accumulation",
    "check_accumulation",
    "checked_key",
    "compiled_run",
    "contract",
    "dot",
]


def check_accumulation(how: Any, carrier: Carrier | None = None, where: str = "check_accumulation") -> None:
    """Raise unless the fields make sense together, and their concrete formats fit a carrier.

    Args:
        how: an `Accumulation`.
        carrier: from `carrier_of`; None leaves the formats unchecked against it.
        where: the name of the calling function, for the error message.

    Raises:
        TypeError: for something else than an `Accumulation`, formats that are none, a chunk that is no whole number.
        ValueError: for an unknown order, a chunk below one, compensation along a tree, a format that does not fit.
    """
    if not isinstance(how, Accumulation):
        raise TypeError(
            f"{where}: expected an Accumulation, such as Accumulation(accumulate=precisionlab.BFLOAT16); got {how!r}."
        )
    for name, fmt in (("multiply", how.multiply), ("accumulate", how.accumulate)):
        if fmt is None:
            continue
        if not isinstance(fmt, Format):
            raise TypeError(f"{where}: {name} must be a Format such as precisionlab.BFLOAT16, or None; got {fmt!r}.")
        if carrier is not None and is_concrete(fmt):
            require_fits(fmt, carrier, where)
    if how.order not in ORDERS:
        raise ValueError(f"{where}: order must be one of {', '.join(map(repr, ORDERS))}; got {how.order!r}.")
    if how.chunk is not None and (isinstance(how.chunk, bool) or not isinstance(how.chunk, int)):
        raise TypeError(f"{where}: chunk must be a whole number of terms, or None for all of them; got {how.chunk!r}.")
    if how.chunk is not None and how.chunk < 1:
        raise ValueError(f"{where}: chunk must be at least 1 term, or None for all of them; got {how.chunk}.")
    if not isinstance(how.compensated, bool):
        raise TypeError(f"{where}: compensated must be True or False; got {how.compensated!r}.")
    if how.compensated and how.order == "pairwise":
        raise ValueError(
            f"{where}: compensated=True carries what is lost from term to term, which a tree does not have; use "
            f"order='sequential', or compensated=False."
        )


def dot(
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    *,
    multiply: Format | None,
    accumulate: Format | None,
    mode: Mode = nearest_even,
    chunk: int | None = None,
    order: str = "sequential",
    compensated: bool = False,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "..."]:
    """A product of matrices with every product and every partial sum rounded.

    Each product, sum, or fused multiply-add is one correct rounding of the exact result, whatever the operands, which are not
    rounded themselves. (Stochastic modes round the carrier's nearest value, in float32 up to 2^-24 of it away.) A sum that is
    exactly zero is -0 only if both its operands are, in every mode. The derivative is that of the exact product
    (straight-through). Some settings and the arithmetic they stand for:

    | multiply | accumulate | else | |
    |---|---|---|---|
    | None | FLOAT32 | | a loop of fused multiply-adds (IEEE 754-2019, 5.4.1) |
    | FLOAT32 | FLOAT32 | mode=to_odd, chunk=2 | Arm's BFDOT of bfloat16 operands (Arm Architecture Reference Manual) |
    | None | FLOAT32 | mode=toward_zero | tensor cores, but that they align several products before they truncate (1) |
    | None | ieee_format(6, 9) | chunk=64 | 8-bit training with 16-bit chunked sums (2) |

    (1) M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021. (2) Wang et al., 2018.

    Args:
        a: float32 or float64, shape (k,), (m, k) or (..., m, k). Where float32 does not hold what NumPy has in a or b, outside
            of 64-bit JAX, both are taken as float64, and the result is float32.
        b: the same dtype, shape (k,), (k, n) or (..., k, n); the leading dimensions broadcast, as in `jnp.matmul`.
        multiply: the format of the products; None for exact ones, fused into the sum. Formats may be traced.
        accumulate: the format of the partial sums; None for the carrier, rounded to nearest even whatever the mode.
        mode: the rounding mode of all of them.
        chunk: how many consecutive terms are summed at a time; see `Accumulation` for it and for what follows.
        order: "sequential" or "pairwise".
        compensated: Kahan summation.
        key: a JAX random key, needed by stochastic modes; every rounding draws its own words.

    Returns:
        The product in the dtype of a and the shape that `jnp.matmul` gives. Without terms, k = 0, it is +0.

    Raises:
        TypeError: if a or b is no float32 or float64 array, or their dtypes differ, or for a wrong kind of option.
        ValueError: if shapes do not match, formats do not fit, a stochastic mode has no key, or options contradict each other.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> ones = jnp.ones(512)
        >>> [float(dot(ones, ones, multiply=BFLOAT16, accumulate=BFLOAT16, chunk=c)) for c in (None, 32)]
        [256.0, 512.0]
    """
    how = Accumulation(multiply, accumulate, chunk, order, compensated)
    if unheld(a) is not None or unheld(b) is not None:
        for operand in (a, b):
            carrier_of(getattr(operand, "dtype", np.float64), "dot")
        check_accumulation(how, FLOAT32_CARRIER, "dot")
        options: dict[str, Any] = {**how._asdict(), "mode": mode, "key": key}
        rounded = in_float64(lambda: dot(lifted(a), lifted(b), **options))
        operands = (jnp.asarray(operand, rounded.dtype) for operand in (a, b))
        return with_exact_derivative(partial(jnp.matmul, precision=lax.Precision.HIGHEST), rounded, *operands)
    (a, carrier), (b, other) = as_carrier(a, "dot"), as_carrier(b, "dot")
    if other != carrier:
        raise TypeError(f"dot: a is {a.dtype} and b is {b.dtype}; give both the same dtype.")
    check_accumulation(how, carrier, "dot")
    key = checked_key(how, mode, key, "dot")
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-min(2, b.ndim)]:
        raise ValueError(
            f"dot: the shapes {a.shape} and {b.shape} do not contract; the last axis of a must be as long as the last but one "
            f"of b, or its only one."
        )
    left, right = a if a.ndim > 1 else a[None, :], b if b.ndim > 1 else b[:, None]
    try:
        batch = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        raise ValueError(f"dot: the leading dimensions of {a.shape} and {b.shape} do not broadcast.") from None
    (m, k), n = left.shape[-2:], right.shape[-1]
    shape = batch + (() if a.ndim == 1 else (m,)) + (() if b.ndim == 1 else (n,))
    if right.ndim == 2:  # one matrix for all: its partner's rows are one batch
        left, right = left.reshape(1, math.prod(left.shape[:-1]), k), right[None]
    else:
        count = math.prod(batch)
        left = jnp.broadcast_to(left, (*batch, m, k)).reshape(count, m, k)
        right = jnp.broadcast_to(right, (*batch, k, n)).reshape(count, k, n)
    return contract(left, right, how, mode, key).reshape(shape)


def contract(
    a: Float[Array, "batch m k"], b: Float[Array, "batch k n"], how: Accumulation, mode: Mode, key: PRNGKeyArray | None
) -> Float[Array, "batch m n"]:
    """What `dot` does, for one batch dimension and arguments that are right.

    Args:
        a: float32 or float64.
        b: the same dtype.
        how: formats and order.
        mode: the rounding mode.
        key: a random key for stochastic modes, or None.
    """
    key = checked_key(how, mode, key, "contract")
    exact = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return with_exact_derivative(exact, compiled_run((a, b), how, mode, key, _contract), a, b)


def checked_key(how: Accumulation, mode: Mode, key: Any, where: str) -> PRNGKeyArray | None:
    """The key of an accumulation that draws random bits, None for one that does not; refused if there is none."""
    check_mode(mode, where)
    if not isinstance(mode, Stochastic) or (how.multiply is None and how.accumulate is None):
        return None
    if key is None:
        raise ValueError(f"{where}: {mode_name(mode)} rounding needs random bits; pass key=jax.random.key(seed).")
    return check_key(key, where)


def compiled_run(
    arrays: tuple[Array, ...], how: Accumulation, mode: Mode, key: Any, body: Callable[..., Array], *options: Any
) -> Array:
    """One compiled call, with the concrete numbers of the formats compiled in and the others passed."""
    formats = (how.multiply, how.accumulate)
    fixed = [fmt and Format(*(field if is_number(field) else None for field in fmt)) for fmt in formats]
    traced = [fmt and Format(*(None if is_number(field) else field for field in fmt)) for fmt in formats]
    stopped = tuple(constant(array) for array in arrays)
    static = how._replace(multiply=fixed[0], accumulate=fixed[1])
    return _compiled(stopped, key, traced, body=body, how=static, mode=mode, options=options)


@partial(jax.jit, static_argnames=("body", "how", "mode", "options"))
def _compiled(
    arrays: tuple[Array, ...], key: Any, traced: list[Any], *, body: Callable[..., Array], how: Any, mode: Mode, options: Any
) -> Array:
    formats = [
        fixed and Format(*(field if number is None else number for field, number in zip(passed, fixed, strict=True)))
        for passed, fixed in zip(traced, (how.multiply, how.accumulate), strict=True)
    ]
    operations = Operations(how._replace(multiply=formats[0], accumulate=formats[1]), mode, key, CARRIERS[arrays[0].dtype.name])
    return body(operations, *arrays, *options)


def _contract(operations: Operations, a: Array, b: Array) -> Array:
    terms = (jnp.moveaxis(a, 2, 0)[..., None], jnp.moveaxis(b, 1, 0)[:, :, None, :])
    shape = (a.shape[0], a.shape[1], b.shape[2])
    if not _needs_exact_products(operations):
        return reduced(operations, terms, shape)
    fits = multiplies_exactly(a, b, operations.carrier)
    return lax.cond(
        fits,
        lambda: reduced(operations._replace(exact=True), terms, shape),
        lambda: reduced(operations, terms, shape),
    )


def _needs_exact_products(operations: Operations) -> bool:
    """Whether products of operands with many bits take another way than those of operands with few."""
    multiply, mode = operations.how.multiply, operations.mode
    if multiply is None:
        return True
    return not (isinstance(mode, Stochastic) or (mode is nearest_even and is_carrier_itself(multiply, operations.carrier)))
