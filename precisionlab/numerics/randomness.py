"""Random words by hashing a counter.

Stochastic rounding needs one random word an entry and little more from it than that each bit be fair and that neighbours,
steps and leaves be unrelated. Hashing the position of the entry together with the key gives that for about ten integer
operations, which the compiler fuses into the rounding; a counter-based cryptographic one (threefry) costs some
twenty times as much as rounding and hashing together (`benchmarks.rounding`).

The mixing steps (a multiplication by an odd constant, a right shift folded in with xor) are invertible, so that within one
key no word repeats before 2^32 entries. The constants are those found by C. Wellons' search for low bias in 32-bit
multiply-xorshift hashes ("Prospecting for hash functions", 2018).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array, PRNGKeyArray, UInt
from precisionlab.numerics.carriers import computed_once

__all__ = [
    "check_key",
    "counter_hash",
    "first_row",
    "fold",
    "hash_counters",
    "hash_positions",
    "key_rows",
    "key_words",
    "next_row",
]

_FIRST, _SECOND, _GOLDEN = np.uint32(0x7FEB352D), np.uint32(0x846CA68B), np.uint32(0x9E3779B9)


def check_key(key: Any, where: str) -> PRNGKeyArray:
    """The key itself, if it is one: typed, or the raw uint32 words of one.

    Raises:
        TypeError: for anything else.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and (jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and key.shape[-1:] == (2,))):
        return key
    raise TypeError(f"{where}: key must be a JAX random key, such as jax.random.key(0); got {key!r}.")


def _mix(word: Array) -> Array:
    word = (word ^ (word >> np.uint32(16))) * _FIRST
    word = (word ^ (word >> np.uint32(15))) * _SECOND
    return word ^ (word >> np.uint32(16))


def _key_words(key: PRNGKeyArray) -> tuple[Array, Array]:
    """Two well-mixed words of a key, or of each of an array of raw keys; consecutive seeds give unrelated ones."""
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.asarray(key)
    data = data.astype(jnp.uint32)
    first = second = jnp.uint32(0)
    for position in range(data.shape[-1]):
        first = _mix(first ^ data[..., position] + _GOLDEN)
        second = _mix(second + first + _GOLDEN)
    return first, second


def key_words(key: PRNGKeyArray) -> UInt[Array, "... 2"]:
    """The two words for `hash_positions` with which `counter_hash` draws from a key; of an array of raw keys, for each."""
    return jnp.stack(_key_words(key), -1)


def fold(key: PRNGKeyArray, index: Any) -> UInt[Array, "... 2"]:
    """A raw key for the index-th use of a key.

    It does what `jax.random.fold_in` does, by the hash of this module: a dozen scalar operations where threefry has hundreds,
    which matters where every operation of a program draws its own bits.

    Args:
        key: a JAX random key, typed or raw.
        index: a whole number, or a uint32 or int32 array; different ones give different keys.

    Returns:
        A raw key for each: two uint32 words, which `counter_hash` and `jax.random.bits` take.

    Example:
        >>> fold(jax.random.key(0), 3).shape
        (2,)
    """
    first, second = _key_words(key)
    index = jnp.asarray(index).astype(jnp.uint32)
    return jnp.stack([_mix(first + index * _GOLDEN), _mix(second ^ _mix(index + _FIRST))], -1)


def counter_hash(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = np.uint32) -> UInt[Array, "..."]:
    """Uniform unsigned words, a function of the key and the position alone.

    Args:
        key: a JAX random key, typed or raw.
        shape: the shape of the result; positions count in row-major order, modulo 2^32.
        dtype: uint32 or uint64.

    Returns:
        Words of the given shape and dtype, each of whose bits is fair.

    Example:
        >>> counter_hash(jax.random.key(0), (2, 3)).shape
        (2, 3)
    """
    return hash_positions(key_words(key), shape, dtype)


def key_rows(key: PRNGKeyArray, start: int, count: int) -> UInt[Array, "count 2"]:
    """Many keys at once, each two words for `hash_positions`: one vector operation in place of a dozen scalar ones for each.

    Args:
        key: a JAX random key, typed or raw.
        start: the number of the first; the same key and number give the same words.
        count: how many.

    Returns:
        Words of shape (count, 2); a row is also a raw key.
    """
    first, second = _key_words(key)
    number = jnp.arange(count, dtype=jnp.uint32) + np.uint32(start)
    rows = jnp.stack([_mix(_mix(first + number * _GOLDEN) + second), _mix(second ^ _mix(number + _FIRST))], axis=1)
    return computed_once(rows)


@jax.jit
def first_row() -> Array:
    """The number of the first row of a table of keys, for `next_row`."""
    nothing = lax.population_count(lax.iota(jnp.uint32, 2)) >> np.uint32(7)  # as no compiler knows before its last stage
    return lax.platform_dependent(cpu=lambda: jnp.max(nothing), default=lambda: jnp.uint32(0))


@jax.jit
def next_row(rows: UInt[Array, "count 2"], number: Array) -> tuple[UInt[Array, "2"], Array]:
    """A row of a table of keys, and the number of the next one.

    On CPUs the number is computed when the program runs, by the same instructions for every row. The kernels that read rows are
    then the same wherever their shapes are, and XLA compiles equal kernels once. Elsewhere, where a kernel of its own is dear,
    the number is a constant.
    """
    words = lax.dynamic_slice(rows, (number, np.uint32(0)), (1, 2)).reshape(2)
    return words, lax.platform_dependent(
        number, cpu=lambda n: computed_once(n + np.uint32(1)), default=lambda n: n + np.uint32(1)
    )


def hash_positions(words: UInt[Array, "2"], shape: tuple[int, ...], dtype: Any = np.uint32) -> UInt[Array, "..."]:
    """Uniform words, as `counter_hash` gives them, from two words that are well mixed already."""
    first, second = words[0], words[1]
    counter = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        # Counting by axes rather than by reshaping keeps the words the same, and local, however the array is sharded.
        counter = counter + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return hash_counters(first, second, counter, dtype)


def hash_counters(first: Array, second: Array, counter: UInt[Array, "..."], dtype: Any = np.uint32) -> UInt[Array, "..."]:
    """Uniform words for given positions, as `hash_positions` gives them for all of an array.

    Args:
        first: the first word of the key, uint32, of any shape that broadcasts with the positions: one for each of several keys.
        second: the second.
        counter: positions in row-major order.
        dtype: uint32 or uint64.
    """
    words = _hash(counter, first, second)
    if np.dtype(dtype) == np.uint32:
        return words
    low = _hash(counter, second, first + _GOLDEN)
    return words.astype(dtype) << np.asarray(32, dtype) | low.astype(dtype)


def _hash(counter: Array, first: Array, second: Array) -> Array:
    word = counter + first
    word = (word ^ (word >> np.uint32(16))) * _FIRST
    word = (word ^ (word >> np.uint32(15)) ^ second) * _SECOND
    return word ^ (word >> np.uint32(16))
