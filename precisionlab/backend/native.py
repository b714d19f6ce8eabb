"""What did the native run compute? The hardware's and the compiler's arithmetic beside the faithful one.

A program written in bfloat16 asks for every operation rounded to bfloat16. Compilers give something else, mostly something
better: they compute in float32 and leave roundings out between operations that they fuse. So a native run is no measurement of
the format, and the same program gives other bits eagerly, under jit, and on another backend. `native_difference` counts where,
for any function; `compare_one` does so for the usual operations.

    python -m precisionlab.backend.native           prints the table for this backend
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.arithmetic import simulate

__all__ = ["OPERATIONS", "Difference", "compare_one", "native_difference"]

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


class Difference(NamedTuple):
    """How the native results of a function differ from those with every operation rounded as written.

    Attributes:
        entries: results compared.
        different: those whose bits differ (any NaN equals any other, and the zeros each other).
        largest: the largest relative difference among finite results.
        refused: why the backend does not run it; empty if it does.
    """

    entries: int
    different: int
    largest: float
    refused: str = ""

    @property
    def share(self) -> float:
        """Of the entries that differ."""
        return self.different / self.entries if self.entries else 0.0


def native_difference(fun: Callable[..., Any], *, jit: bool = True) -> Callable[..., Difference]:
    """How a function run natively differs from the same function with each operation rounded to its own dtype.

    Args:
        fun: a function of arrays in any float dtypes, as you run it.
        jit: run it compiled as a whole; False runs it operation by operation.

    Returns:
        `difference(*args) -> Difference`, over all floating-point results.

    Example:
        >>> x = jnp.arange(1.0, 5.0, dtype=jnp.bfloat16)
        >>> native_difference(lambda x: x * x)(x).different
        0
    """

    def difference(*args: Any) -> Difference:
        found = jax.tree.leaves((jax.jit(fun) if jit else fun)(*args))
        expected = jax.tree.leaves(jax.jit(simulate(fun, None))(*args))
        results = zip(found, expected, strict=True)
        pairs = [(_widened(a), _widened(b)) for a, b in results if jnp.issubdtype(a.dtype, jnp.floating)]
        a, b = (np.concatenate([pair[side].reshape(-1) for pair in pairs] or [np.zeros(0)]) for side in (0, 1))
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        with np.errstate(all="ignore"):
            relative = np.abs(a - b) / np.abs(b)
        finite = relative[differs & np.isfinite(relative)]
        return Difference(a.size, int(np.sum(differs)), float(finite.max(initial=0.0)))

    return difference


def _widened(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _softmax(x: Any) -> Any:
    weights = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True, dtype=x.dtype)


def _norm(x: Any) -> Any:
    centered = x - jnp.mean(x, axis=-1, keepdims=True, dtype=x.dtype)
    return centered * jax.lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True, dtype=x.dtype))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "a + b": lambda a, b, *_: a + b,
    "a * b": lambda a, b, *_: a * b,
    "a / b": lambda a, b, *_: a / b,
    "a / 3": lambda a, *_: a / jnp.asarray(3, a.dtype),
    "sqrt(a * a)": lambda a, *_: jnp.sqrt(a * a),
    "exp(a)": lambda a, *_: jnp.exp(a),
    "tanh(a)": lambda a, *_: jnp.tanh(a),
    "a * b + c": lambda a, b, c: a * b + c,
    "(a + b) - a": lambda a, b, *_: (a + b) - a,
    "sum of 256": lambda a, *_: jnp.sum(a, axis=-1, dtype=a.dtype),
    "dot of 256": lambda a, b, *_: jnp.einsum("ik,jk->ij", a, b),
    "softmax of 256": lambda a, *_: _softmax(a),
    "layer norm of 256": lambda a, *_: _norm(a),
}
"""Functions of three arrays of shape (64, 256), by what they compute."""


def compare_one(name: str, dtype: str) -> Difference:
    """One of `OPERATIONS` in one dtype, on 16,384 normal numbers."""
    draws = np.random.default_rng(0).standard_normal((3, 64, 256)).astype(np.float32)
    arrays = [jnp.asarray(draw).astype(dtype) for draw in draws]
    try:
        return native_difference(OPERATIONS[name])(*arrays)
    except (jax.errors.JaxRuntimeError, TypeError, NotImplementedError, ValueError) as error:
        return Difference(0, 0, 0.0, str(error).splitlines()[0])


def main() -> None:
    """Print the table."""
    print(f"{jax.devices()[0].platform}, jax {jax.__version__}; the largest relative difference in brackets\n")
    print(f"| operation | {' | '.join(DTYPES)} |")
    print(f"|---|{'---|' * len(DTYPES)}")
    for name in OPERATIONS:
        cells = [_cell(compare_one(name, dtype)) for dtype in DTYPES]
        print(f"| {name} | {' | '.join(cells)} |")


def _cell(difference: Difference) -> str:
    if difference.refused:
        return "refused"
    return f"{100 * difference.share:.3g} % ({difference.largest:.1g})" if difference.different else "0"


if __name__ == "__main__":
    main()
