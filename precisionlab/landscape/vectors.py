"""Parameters as one float64 vector, and functions of it that are really computed in float64.

A singular value of 1e-9 beside one of 1 is a fact in float64 and noise in float32, so everything in `landscape` runs in
float64, inside a scoped switch that leaves the caller's JAX as it was. A function that falls back to float32 somewhere is
refused: its spectrum would have a floor of 1e-7 and look like one with a floor of 1e-16.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

__all__ = ["EPS", "check_function", "check_points", "flatten", "in_float64", "losses_at", "traceable"]

EPS = float(np.finfo(np.float64).eps)
"""2^-52, the gap above 1."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def in_float64(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Runs a function with 64-bit JAX, and only that function.

    Example:
        >>> in_float64(lambda: jnp.asarray(1 / 3).dtype.name)(), jnp.asarray(1 / 3).dtype.name
        ('float64', 'float32')
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapped


@in_float64
def flatten(fun: Callable[[Any], Any], params: Any) -> tuple[Callable[[Any], Any], np.ndarray]:
    """The same function, of a vector.

    Args:
        fun: of a tree of parameters. Data that it closes over should be float64 or numpy.
        params: a tree of floating arrays, of any real format up to float64.

    Returns:
        The function of a float64 vector, and `params` as such a vector (n,). The leaves that `fun` sees are float64.

    Raises:
        ValueError: if a leaf is not real floating, or there is none.

    Example:
        >>> fun, theta = flatten(lambda p: p["a"] * jnp.sum(p["b"]), {"a": jnp.float32(2), "b": jnp.ones(3)})
        >>> theta.tolist(), float(fun(theta))
        ([2.0, 1.0, 1.0, 1.0], 6.0)
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    if not paths:
        raise ValueError("flatten: params has no leaves; give a tree with at least one array.")
    for path, leaf in paths:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = jax.tree_util.keystr(path) or "params"
            raise ValueError(
                f"flatten: every leaf must be real floating, since it becomes float64; {where} is {jnp.result_type(leaf)}. "
                "Close over what is not trained."
            )
    theta, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float64), params))
    vector = np.asarray(theta)

    def of_vector(values: Any) -> Any:
        with jax.enable_x64(True):
            return fun(unravel(jnp.asarray(values, jnp.float64)))

    return of_vector, vector


def traceable(function: Callable[..., Any]) -> Partial:
    """A function as an argument of a jitted one: the function itself is compiled in, the arrays of a `Partial` are passed in.

    So the same function, or one function with other data in a `jax.tree_util.Partial`, compiles once.
    """
    if isinstance(function, Partial):
        return function
    try:
        hash(function)
    except TypeError:  # a method of a tuple that holds arrays; it compiles anew each time
        return Partial(lambda *args: function(*args))
    return Partial(function)


def check_points(where: str, theta: Any, *, one: bool = False) -> np.ndarray:
    """Parameters as float64, (n,) or rows (..., n); refused if empty or not finite."""
    points = np.asarray(theta, np.float64)
    allowed = "a vector (n,)" if one else "a vector (n,) or rows (..., n)"
    if not points.ndim or not points.size or (one and points.ndim != 1):
        raise ValueError(f"{where}: theta must be {allowed} with n >= 1; got shape {points.shape}. See landscape.flatten.")
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).sum())
        raise ValueError(f"{where}: theta must be finite; {bad} of {points.size} entries are not. Did the training diverge?")
    return points


def check_function(where: str, fun: Partial, n: int, *, scalar: bool) -> tuple[int, ...]:
    """The shape of what a function of (n,) gives; refused if it is not a float64 scalar, or not a float64 vector."""
    with jax.enable_x64(True):
        out = jax.eval_shape(fun, jax.ShapeDtypeStruct((n,), jnp.float64))
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    wanted = "one number, of shape ()" if scalar else "a vector of residuals, of shape (m,)"
    if shape is None or len(shape) != (0 if scalar else 1) or 0 in shape:
        given = type(out).__name__ if shape is None else f"shape {shape}"
        raise ValueError(f"{where}: the function must give {wanted}; it gives {given}.")
    if dtype != jnp.float64:
        raise ValueError(
            f"{where}: the function gives {dtype} for a float64 vector, and its noise would pass for a spectrum; "
            "compute in the dtype of the parameters, with float64 data and without casts."
        )
    return shape


@in_float64
def losses_at(where: str, loss: Partial, points: np.ndarray) -> np.ndarray:
    """The loss at each of some points (m, n), as (m,); refused if it is not one float64 number for each."""
    check_function(where, loss, points.shape[1], scalar=True)
    return np.asarray(_mapped(loss, jnp.asarray(points)))


@jax.jit
def _mapped(loss: Any, points: Any) -> Any:
    return jax.lax.map(loss, points, batch_size=1024)
