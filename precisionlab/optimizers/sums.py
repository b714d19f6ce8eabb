"""w + u for every floating dtype: what Optax stores, and what one correct rounding would."""

from typing import Any

import jax
import jax.numpy as jnp

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import CARRIERS, as_float64, to_bits, uncontracted, widened
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.rounding import round_to
from precisionlab.numerics.wide import in_float64, lifted, unheld

__all__ = ["apply_updates", "in_one_carrier", "is_floating", "stored_sum"]


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floats, which alone can stagnate."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def in_one_carrier(*arrays: Array) -> tuple[Array, ...]:
    """Stored values as values of one carrier, the widest of theirs, exactly."""
    held = tuple(map(widened, arrays))
    return held if len({x.dtype for x in held}) == 1 else tuple(map(as_float64, held))


def stored_sum(leaf: Array, update: Array) -> Array:
    """What `optax.apply_updates` stores for `leaf + update`, as a value of the carrier, with the rounding made explicit.

    Optax adds in the promoted type and casts once. Left to the compiler, under jit that cast may be elided from a copy made
    for looking at; rounding by integers is not. Where Optax refuses (8 bits and fewer beside anything wider) it is the sum that
    `apply_updates` makes.
    """
    # Values as stored: a compiler may see through the cast that made a narrow update.
    wide, step = in_one_carrier(leaf, update)
    if leaf.dtype.name in CARRIERS:
        return (wide + step).astype(leaf.dtype)
    result = wide + step if _promotes(leaf.dtype, update.dtype) else _sum_to_odd(wide, step)
    return round_to(result, FORMATS[leaf.dtype.name])


def _promotes(a: Any, b: Any) -> bool:
    with jax.numpy_dtype_promotion("standard"):
        try:
            jnp.promote_types(a, b)
        except jax.dtypes.TypePromotionError:
            return False
    return a == b or (a.itemsize > 1 and b.itemsize > 1)


def apply_updates(params: PyTree[Array], updates: PyTree[Array]) -> PyTree[Array]:
    """Add updates to parameters with one correct rounding, for every floating dtype, fp8 and fp4 included.

    Each entry becomes the value of its dtype nearest to the exact sum, ties to even, whatever the dtype of the update.
    `optax.apply_updates` adds in the promoted type and casts, which rounds twice, and raises for fp8 beside anything else.

    Args:
        params: arrays of any dtype; None leaves pass through, and integer leaves are added to as Optax does.
        updates: the same tree. NumPy's float64 is added as it is, outside of 64-bit JAX too, where parameters of that dtype
            become float32.

    Returns:
        The new parameters, each leaf in its own dtype. Sums below 2^-100 in magnitude may be rounded twice (float32
        arithmetic flushes the correction there).

    Raises:
        ValueError: if the trees or shapes differ.

    Example:
        >>> w = jnp.array([1.0, 448.0], jnp.float8_e4m3fn)
        >>> apply_updates(w, jnp.array([0.07, -17.0], jnp.float32)).tolist()
        [1.125, 416.0]
    """
    # None is a leaf here, so that frozen parameters keep their place.
    none = {"is_leaf": lambda node: node is None}
    one, other = jax.tree.structure(params, **none), jax.tree.structure(updates, **none)
    if one != other:
        raise ValueError(f"apply_updates: the updates are not the same tree as the parameters: {other} against {one}.")

    def leaf(path: Any, w: Any, u: Any) -> Any:
        if w is None or u is None:
            return w
        w, u = (x if unheld(x) is not None else jnp.asarray(x) for x in (w, u))
        if w.shape != u.shape:
            where = jax.tree_util.keystr(path, simple=True, separator="/") or "the array"
            raise ValueError(f"apply_updates: at {where}, the update has shape {u.shape} and the parameter {w.shape}.")
        if is_floating(w) and is_floating(u) and not (isinstance(w, jax.Array) and isinstance(u, jax.Array)):
            dtype = jax.dtypes.canonicalize_dtype(w.dtype)
            return in_float64(lambda: _rounded_once(lifted(w), lifted(u), dtype)).astype(dtype)
        w, u = jnp.asarray(w), jnp.asarray(u)
        plain = w.dtype.name in CARRIERS and not (is_floating(u) and u.dtype.itemsize > w.dtype.itemsize)
        if not is_floating(w) or w.dtype.name not in FORMATS or plain:
            with jax.numpy_dtype_promotion("standard"):
                return jnp.asarray(w + (widened(u) if is_floating(u) else u)).astype(w.dtype)
        return _rounded_once(w, u, w.dtype).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(leaf, params, updates, is_leaf=lambda node: node is None)


def _rounded_once(w: Array, u: Array, dtype: Any) -> Array:
    """The value of a dtype nearest to w + u, in the carrier of the sum."""
    wide, step = in_one_carrier(w, u)
    return round_to(_sum_to_odd(wide, uncontracted(step)), FORMATS[dtype.name])


def _sum_to_odd(a: Array, b: Array) -> Array:
    """The sum a + b, rounded to odd in the carrier: a later rounding to fewer bits is then a rounding of the exact sum.

    The error of the rounded sum is itself a float (O. Moller, D. Knuth: TwoSum); where it is not zero the last bit of the
    result is made odd, towards the error (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    carrier = CARRIERS[a.dtype.name]
    total = a + b
    virtual = total - a
    error = (a - (total - virtual)) + (b - virtual)
    bits, error_bits = to_bits(total, carrier), to_bits(error, carrier)
    one, sign = carrier.word(1), carrier.word(carrier.sign)
    magnitude = bits & ~sign
    inexact = ((error_bits & ~sign) != 0) & (magnitude < carrier.word(carrier.infinity)) & (magnitude != 0)
    outward = ((bits ^ error_bits) & sign) == 0
    moved = jnp.where(outward, bits + one, bits - one)
    fixed = jnp.where(inexact & ((bits & one) == 0), moved, bits)
    return jax.lax.bitcast_convert_type(fixed, carrier.dtype)
