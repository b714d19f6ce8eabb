"""The float64 self of one operation.

NumPy where it has the operation, because nothing has to be compiled there, and a profile meets hundreds of operations once
each; the primitive itself, in float64, for the rest and wherever values are traced.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from precisionlab.arithmetic.carrying import bound, is_float, is_on_host

__all__ = ["in_float64", "moved"]


def in_float64(eqn: Any, arrays: list[Any]) -> list[Any]:
    """The results of an equation on float64 values."""
    compute = _NUMPY.get(eqn.primitive.name)
    if (
        compute is not None
        and is_on_host(*arrays)
        and not any(array.dtype.kind == "c" for array in arrays)
        and all(is_float(var.aval.dtype) for var in eqn.outvars)
    ):
        with np.errstate(all="ignore"):
            result = compute(eqn.params, *map(np.asarray, arrays))
        if result is not None:
            return [np.asarray(result, np.float64)]
    return bound(eqn, arrays, jnp.float64)


def moved(eqn: Any, arrays: list[Any]) -> list[Any] | None:
    """The results of an equation that only moves numbers, moved by NumPy; None if it is not one, or its numbers are traced."""
    move = _MOVES.get(eqn.primitive.name)
    if move is None or not is_on_host(*arrays):
        return None
    result = move(eqn.params, *map(np.asarray, arrays))
    return None if result is None else [jnp.asarray(result)]


def _broadcast(params: Any, x: np.ndarray, *lengths: Any) -> np.ndarray | None:
    if lengths:
        return None
    kept = dict(zip(params["broadcast_dimensions"], x.shape, strict=True))
    return np.broadcast_to(x.reshape([kept.get(axis, 1) for axis in range(len(params["shape"]))]), params["shape"])


def _reshaped(params: Any, x: np.ndarray, *lengths: Any) -> np.ndarray | None:
    return None if lengths or params["dimensions"] is not None else x.reshape(params["new_sizes"])


def _slice(params: Any, x: np.ndarray) -> np.ndarray:
    steps = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], steps))]


def _chosen(_: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray | None:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool and len(cases) == 2 else None


def _sum(params: Any, x: np.ndarray) -> np.ndarray:
    return np.sum(x, axis=tuple(params["axes"]))


def _largest(params: Any, x: np.ndarray) -> np.ndarray | None:
    return np.max(x, axis=tuple(params["axes"])) if x.size else None


def _logistic(_: Any, x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _plainly(compute: Callable[..., Any]) -> Callable[..., Any]:
    """For primitives whose parameters say nothing about values."""

    def ignoring(params: Any, *arrays: np.ndarray) -> Any:
        del params
        return compute(*arrays)

    return ignoring


_MOVES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *arrays: np.concatenate(arrays, axis=params["dimension"]),
    "copy": _plainly(lambda x: x),
    "copy_p": _plainly(lambda x: x),
    "reshape": _reshaped,
    "rev": lambda params, x: np.flip(x, tuple(params["dimensions"])),
    "select_n": _chosen,
    "slice": _slice,
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
}
_NUMPY: dict[str, Callable[..., Any]] = _MOVES | {
    "abs": _plainly(np.abs),
    "add": _plainly(np.add),
    "add_any": _plainly(np.add),
    "convert_element_type": _plainly(lambda x: x),
    "cos": _plainly(np.cos),
    "div": _plainly(np.divide),
    "exp": _plainly(np.exp),
    "integer_pow": lambda params, x: np.power(x, float(params["y"])),
    "log": _plainly(np.log),
    "log1p": _plainly(np.log1p),
    "logistic": _logistic,
    "max": _plainly(np.maximum),
    "min": _plainly(np.minimum),
    "mul": _plainly(np.multiply),
    "neg": _plainly(np.negative),
    "reduce_max": _largest,
    "reduce_sum": _sum,
    "rsqrt": _plainly(lambda x: 1.0 / np.sqrt(x)),
    "sign": _plainly(np.sign),
    "sin": _plainly(np.sin),
    "sqrt": _plainly(np.sqrt),
    "square": _plainly(np.square),
    "sub": _plainly(np.subtract),
    "tanh": _plainly(np.tanh),
}
"""Each `compute(parameters, *float64 arrays)`, or None where it does not know this case."""
