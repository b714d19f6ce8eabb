"""Programs that a broken compiler gets wrong, each with the answer it should have given.

A result is worth nothing where the compiler computes something else, so these run in the tests and in `precisionlab
selftest`. Every expected value is a whole number small enough to be exact: a canary that sings differs by more than
any reordering of sums or contraction of products could explain. All three defects came with XLA handing fusions on
CPUs to a library of kernels, in jaxlib 0.10.2, which is excluded, as is 0.11.0.

`wrong_products` is with us still, so it is named rather than excluded. Compiled for a CPU by jaxlib 0.10.2, 0.11.0, 0.11.1,
0.11.2, 0.12.0 and 0.12.0.1 (0.10.1 is right), a product of matrices comes out wrong, and another each time, where

    its right operand holds one number throughout      ones, zeros, full, a NumPy constant, written in the program, in
                                                       float64, float32 and bfloat16 (not float16)
    it is reduced in the same compiled program         sum or max over rows, columns or all, operations between or not
    both are large enough                              31 x 31 in a batch, 200 x 200 alone (60 x 60 alone was right)

It is right where the constant is the left operand, a vector, an argument of the compiled function or behind
`jax.lax.optimization_barrier`, and uncompiled. To whom it matters: to averages by a matrix of ones and to layers of zeros that
are closed over. precisionlab multiplies by no such matrix; your own programs might.
"""

import os
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["BAD_VERSIONS", "crash", "wrong_products", "wrong_rows"]

BAD_VERSIONS = {
    "wrong_rows": "jaxlib 0.10.2 is known to compute wrong numbers here (jax-ml/jax#39103)",
    "wrong_products": "jaxlib 0.10.2 to 0.12.0.1 are known to compute wrong numbers here",
    "crash": "jaxlib 0.10.2 and 0.11.0 are known to crash or hang here (jax-ml/jax#39257, #40412)",
}

# What jax-ml/jax#40412 (a few kilobytes) and #39257 (57 MB) do: a reduction over a product of rank 7, of rank 8.
_CRASHERS = """
import jax, jax.numpy as jnp
ones = jnp.ones((3, 1, 2, 2, 8, 8, 8), jnp.float32)
total = jnp.sum(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(ones, ones))
few, many = jnp.ones((10, 4, 6) + 5 * (1,), jnp.float32), jnp.ones((10, 4, 6) + 5 * (9,), jnp.float32)
logs = jax.jit(lambda a, b: jnp.log(jnp.maximum(jnp.sum(a * b, axis=2), 1e-16)))(few, many)
print(int(total), logs.shape)
"""


def wrong_rows(dtype: Any, rows: int) -> int:
    """How many rows come out wrong when a matrix-vector product and a reduction are vmapped (jax-ml/jax#39103).

    Row i is (i, 0, 0), the matrix the identity, and the result the sum of squares: i^2, rounded once. The defect shows
    from 16,385 rows on in float64 and 32,769 in float32.

    Args:
        dtype: float32 or float64; float64 is switched on for this computation alone.
        rows: how many.

    Example:
        >>> wrong_rows(np.float32, 100)
        0
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        i = np.arange(rows).astype(dtype)
        identity = jnp.eye(3, dtype=dtype)
        squares = jax.jit(jax.vmap(lambda row: jnp.sum((identity @ row) ** 2)))
        found = np.asarray(squares(jnp.asarray(np.stack([i, 0 * i, 0 * i], axis=1))))
    return int(np.sum(found != i * i))


def wrong_products(dtype: Any, guarded: bool = False) -> int:
    """How many of 300 entries come out wrong when a product with a constant matrix is multiplied and summed.

    What exactly is wrong, in which versions and for whom, is said above.

    sum((E @ C) * E, axis=-1) for a batch of 5 matrices of 60 x 60 with every entry of C the same. Entries are whole
    numbers, so any order of summation gives the same.

    Args:
        dtype: float32 or float64; float64 is switched on for this computation alone.
        guarded: put the matrix behind `jax.lax.optimization_barrier`, which compilers do not look through.

    Example:
        >>> wrong_products(np.float32, guarded=True)
        0
    """
    matrices = np.random.default_rng(0).integers(-8, 9, (5, 60, 60)).astype(dtype)
    expected = np.sum((matrices @ np.full_like(matrices, 2)) * matrices, axis=-1)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        guard = jax.lax.optimization_barrier if guarded else lambda matrix: matrix
        derivative = jax.jit(lambda e, c: jnp.sum((e @ guard(jnp.full_like(e, c))) * e, axis=-1))
        found = np.asarray(derivative(jnp.asarray(matrices), jnp.asarray(2, dtype)))
    return int(np.sum(found != expected))


def crash(timeout: float = 60.0) -> str | None:
    """What happens to a process that reduces arrays of rank 7 and 8 on the CPU (jax-ml/jax#39257, #40412).

    Runs a fresh interpreter, so that what dies is not this one; with this one's environment, but on the CPU.

    Args:
        timeout: seconds after which the process counts as hung.

    Returns:
        None if it survived with the right result, else a few words.

    Raises:
        OSError: if a second interpreter cannot be started.
    """
    if not sys.executable:
        raise FileNotFoundError("this interpreter does not know its own path")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _CRASHERS]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"it hung for {timeout:g} s"
    if done.returncode < 0:
        return f"it was killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return f"it ended with status {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    right = "6144 (10, 4, 9, 9, 9, 9, 9)"
    return None if done.stdout.strip() == right else f"it printed {done.stdout.strip()!r} instead of {right!r}"
