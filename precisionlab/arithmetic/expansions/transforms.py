"""Fourier transforms of power-of-two lengths: radix-2 butterflies, each product and sum rounded.

Cooley and Tukey's decimation in time, with the input in bit-reversed order and log2(n) passes of

    u + w v,  u - w v        w = exp(-2 pi i j / m), both parts rounded; its product with v is four products and two sums

A transform backwards conjugates w, and halves its result log2(n) times at the end. That of real numbers is the complex one of
numbers with imaginary part 0, of which n/2 + 1 are kept; back to real numbers, the other half is filled in with conjugates, and
the imaginary parts are dropped. Several axes are transformed one after the other, the last first (but last, back to real
numbers).

J. W. Cooley and J. W. Tukey, "An algorithm for the machine calculation of complex Fourier series", 1965.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from precisionlab._typing import Array

__all__ = ["by_butterflies", "fourier", "twiddles"]


def by_butterflies(lengths: tuple[int, ...]) -> bool:
    """Whether transforms of these lengths are simulated step by step: if all are powers of two."""
    return all(length > 0 and length & (length - 1) == 0 for length in lengths)


def fourier(x: Array, kind: str, lengths: tuple[int, ...]) -> Array:
    """The transform over the last axes.

    Args:
        x: shape (..., *lengths), complex; real for "RFFT"; for "IRFFT" the last axis has n/2 + 1 entries.
        kind: "FFT", "IFFT", "RFFT" or "IRFFT".
        lengths: of the transforms, powers of two.
    """
    axes = [x.ndim - len(lengths) + place for place in range(len(lengths))]
    if kind == "IRFFT":
        for axis in axes[:-1]:
            x = _along(x, axis, backwards=True)
        return lax.real(_along(_completed(x, lengths[-1]), axes[-1], backwards=True))
    if kind == "RFFT":
        x = lax.complex(x, jnp.zeros_like(x))
        kept = lengths[-1] // 2 + 1
        x = lax.slice_in_dim(_along(x, axes[-1], backwards=False), 0, kept, axis=axes[-1])
        axes = axes[:-1]
    for axis in reversed(axes):
        x = _along(x, axis, backwards=kind == "IFFT")
    return x


def _completed(half: Array, length: int) -> Array:
    """All entries of a spectrum whose transform is real, from its first n/2 + 1: those of 0 and n/2 count as real."""
    place = np.arange(half.shape[-1])
    own = (place == 0) | (2 * place == length)
    half = lax.complex(lax.real(half), jnp.where(own, jnp.zeros_like(half.real), lax.imag(half)))
    mirrored = lax.rev(lax.conj(half[..., 1 : (length + 1) // 2]), (half.ndim - 1,))
    return lax.concatenate([half[..., : length // 2 + 1], mirrored], half.ndim - 1)


def _along(x: Array, axis: int, backwards: bool) -> Array:
    n = x.shape[axis]
    stages = n.bit_length() - 1
    x = jnp.moveaxis(x, axis, -1)
    around = x.shape[:-1]
    x = x[..., _reversed_bits(stages)]
    for stage in range(stages):
        half = 1 << stage
        w = twiddles(2 * half, backwards).astype(x.dtype)
        pairs = x.reshape(*around, n // (2 * half), 2, half)
        u, v = pairs[..., 0, :], pairs[..., 1, :]
        turned = v * jnp.broadcast_to(w, v.shape)
        x = jnp.stack([u + turned, u - turned], axis=-2).reshape(*around, n)
    if backwards:
        real, imag = lax.real(x), lax.imag(x)
        for _ in range(stages):
            real, imag = real * np.asarray(0.5, real.dtype), imag * np.asarray(0.5, imag.dtype)
        x = lax.complex(real, imag)
    return jnp.moveaxis(x, -1, axis)


def _reversed_bits(stages: int) -> np.ndarray:
    order = np.zeros(1, np.int32)
    for _ in range(stages):
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def twiddles(m: int, backwards: bool) -> np.ndarray:
    """The first half of the m-th roots of one, each part from an angle within an eighth of a turn: zeros and ones are exact."""

    def root(j: int) -> complex:
        octant, sign = (8 * j) // m, 1 if backwards else -1
        quarter = (octant + 1) // 2  # the nearest quarter of a turn
        angle = 2 * math.pi * (4 * j - quarter * m) / (4 * m)
        c, s = math.cos(angle), math.sin(angle)
        for _ in range(quarter):
            c, s = -s, c
        return complex(c + 0.0, sign * s + 0.0)

    return np.array([root(j) for j in range(max(1, m // 2))])
