"""Which power of two the elements of a block share, by its largest value.

Scales that are powers of two, X = 2^k, move the largest value of a block, m = max|v|, beside the largest element, M. With
e(m) = floor(log2 m), every law takes k = e(m) - e(M) or one more:

    law              one more where                      names elsewhere                       what becomes of m
    scale_floor      never                               OCP MX 1.0, torchao FLOOR, ROUND_DOWN   above M X it is clamped to it
    scale_even       m rounded to the elements' grid     torchao EVEN, Quark Even                clamped where that is nearer to
                     reaches the next power of two                                               M X than to the next power
    scale_round_up   m > M 2^k                           torchao RCEIL, ROUND_UP, CUDA, MLX,     never clamped
                                                         `jax.nn.scaled_matmul`
    scale_ceil       m is no power of two                torchao CEIL                            never clamped

E4M3 ends at 448 = 1.75 * 2^8 and E2M1 at 6 = 1.5 * 4: by the law of the specification the upper eighth, in E2M1 the upper
quarter, of what a binade holds is clamped, up to 12.5 % and 25 % away from it; rounding up trades that for one bit less of all
others in such blocks (A. Mishra et al., "Recipes for Pre-training LLMs with MXFP8", arXiv:2506.08027; ml-explore/mlx#4353;
ROCm/aiter#3212). Libraries that divide by M in float32 before they round up leave a value clamped, by less than 2^-23 of it,
where the quotient rounds to the power of two; here nothing is divided, integers are compared.

A law is a small function of three words: the significand of m, that of M, and the spacing of the elements beside M, all in
units of the carrier's last bit. It says whether k is one more.
"""

from collections.abc import Callable
from typing import Any

from jax import lax

from precisionlab._typing import Array, UInt

__all__ = [
    "SCALE_LAWS",
    "ScaleLaw",
    "scale_ceil",
    "scale_even",
    "scale_floor",
    "scale_round_up",
]

ScaleLaw = Callable[..., Any]
"""`law(significand, top, step) -> whether the exponent is one above the floor's`."""


def scale_floor(significand: UInt[Array, "..."], top: UInt[Array, ""], step: UInt[Array, ""]) -> Any:
    """The law of the specification: max|v| comes into the binade of the largest element; what is above that is clamped."""
    del top, step
    return significand != significand


def scale_even(significand: UInt[Array, "..."], top: UInt[Array, ""], step: UInt[Array, ""]) -> Any:
    """The law of the specification for max|v| rounded to the elements' grid, ties up, as if it went on beyond them."""
    del top
    return lax.clz(significand + (step >> step.dtype.type(1))) < lax.clz(significand)


def scale_round_up(significand: UInt[Array, "..."], top: UInt[Array, ""], step: UInt[Array, ""]) -> Any:
    """The smallest power of two with which no element is beyond the largest: max|v| / M rounded up."""
    del step
    return significand > top


def scale_ceil(significand: UInt[Array, "..."], top: UInt[Array, ""], step: UInt[Array, ""]) -> Any:
    """One more wherever max|v| is no power of two: nothing is clamped, and the top of the elements is hardly used."""
    del top, step
    return (significand & (significand - significand.dtype.type(1))) != 0


SCALE_LAWS: dict[str, ScaleLaw] = {
    "floor": scale_floor,
    "even": scale_even,
    "round_up": scale_round_up,
    "ceil": scale_ceil,
}
