"""Rounding to any format, by integer operations on the bits of a wide carrier.

Integers, because a cast is not a rounding: compilers elide a float32 -> bfloat16 -> float32 pair, contract products into
sums, fold (x + C) - C to x, and flush subnormals. There is nothing in an integer sum that they may take away.

The operations themselves are in `laws`; here is who asks for them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab._typing import Array, Float, PRNGKeyArray
from precisionlab.numerics.carriers import CARRIERS, Carrier, computed_once
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.derivatives import constant, straight_through
from precisionlab.numerics.formats import Format, is_concrete, name_of
from precisionlab.numerics.grids import entered
from precisionlab.numerics.laws import round_carrier
from precisionlab.numerics.modes import Mode, Stochastic, check_mode, mode_name, nearest_even
from precisionlab.numerics.randomness import check_key, counter_hash, hash_positions
from precisionlab.numerics.wide import in_float64
from precisionlab.numerics.words import FormatWords, is_number, words_of

__all__ = [
    "joined_format",
    "round_result",
    "round_to",
    "shared_words",
    "split_format",
    "stored",
]


def round_to(
    x: Float[Array, "..."] | float,
    fmt: Format,
    mode: Mode = nearest_even,
    *,
    key: PRNGKeyArray | None = None,
    backward: Format | None = None,
) -> Float[Array, "..."]:
    """Round every entry of x to a value of a format.

    Beyond `fmt.largest` the nearest and stochastic modes give the format's overflow value with the sign of x, `upward` does so
    for positive x alone, `downward` for negative x alone, and `toward_zero` and `to_odd` stop at the largest value. Infinities
    become the overflow value in every mode; NaN stays NaN. Works under jit, vmap, scan and differentiation: the derivative is
    one everywhere (straight-through).

    Args:
        x: any shape, float32 or float64 (a Python number counts as float32). What float32 does not hold, of NumPy or Python,
            is rounded once from the float64 it is, outside of 64-bit JAX too; the result then is float32.
        fmt: the format. Python numbers are compiled in; traced or stacked ones are arguments of one compiled program.
        mode: a rounding mode such as `nearest_even`, `upward`, `stochastic`.
        key: a JAX random key, needed by stochastic modes and ignored by the others.
        backward: a format for the cotangent, rounded to nearest even on its way back; None leaves it alone. With it only
            reverse-mode differentiation is possible.

    Returns:
        The rounded values, same shape and dtype as x.

    Raises:
        TypeError: if x is not float32 or float64, if fmt is not a Format, or mode not a function.
        ValueError: if the format does not fit the dtype of x, or a stochastic mode has no key.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT8_E4M3FN, upward
        >>> float(round_to(0.1, BFLOAT16)), float(round_to(0.1, BFLOAT16, upward))
        (0.10009765625, 0.10009765625)
        >>> float(round_to(1 + 2**-8 + 2**-40, BFLOAT16))      # in float32 it would be a tie
        1.0078125
        >>> round_to(jnp.array([500.0, -1e-3, 0.3]), FLOAT8_E4M3FN).tolist()
        [nan, -0.001953125, 0.3125]
    """
    for given, name in ((fmt, "fmt"), (backward, "backward")):
        if not (isinstance(given, Format) or (given is None and name == "backward")):
            raise TypeError(f"round_to: {name} must be a Format such as precisionlab.BFLOAT16; got {given!r}.")
    array, carrier = entered(x, fmt, "round_to")
    if backward is not None and is_concrete(backward):
        require_fits(backward, carrier, "round_to")
    check_mode(mode, "round_to")
    if isinstance(mode, Stochastic) and key is None:
        raise ValueError(
            f"round_to: {mode_name(mode)} rounding to {name_of(fmt) if is_concrete(fmt) else 'a traced format'} needs "
            f"random bits; pass key=jax.random.key(seed)."
        )
    if isinstance(array, np.ndarray):
        return in_float64(lambda: round_to(jnp.asarray(array), fmt, mode, key=key))  # a constant, which has no cotangent
    random = mode.generator(check_key(key, "round_to"), array.shape, carrier.uint) if isinstance(mode, Stochastic) else None
    if backward is not None:
        array = _rounded_cotangent(array, backward)
    fixed, traced = split_format(fmt)
    return straight_through(array, _round(constant(array), random, traced, fixed=fixed, mode=mode))


def round_result(x: Array, fmt: Format, mode: Mode, random: Array | None, traced: FormatWords | None = None) -> Array:
    """What `round_to` computes, for one of many operations: unchecked, and stored rather than computed anew for each use.

    Args:
        x: float32 or float64.
        fmt: a format that fits.
        mode: a rounding mode.
        random: for stochastic modes, the two words of a row of `randomness.key_rows`.
        traced: of a format that is not concrete, the `shared_words`, if they are there.
    """
    fixed, _ = split_format(fmt)
    if traced is None and not is_concrete(fmt):
        traced = shared_words(fmt, CARRIERS[x.dtype.name])
    return straight_through(x, _round_stored(constant(x), random, traced, fixed=fixed, mode=mode))


def shared_words(fmt: Format, carrier: Carrier) -> FormatWords:
    """Those words of a format that are traced, made once for all of its roundings."""
    fixed, traced = split_format(fmt)
    return _shared_words(traced, fixed=fixed, carrier=carrier)


@partial(jax.jit, static_argnames=("fixed", "carrier"))
def _shared_words(traced: Format, *, fixed: Format, carrier: Carrier) -> FormatWords:
    every, known = words_of(joined_format(traced, fixed), carrier), words_of(fixed, carrier)
    return FormatWords(
        *(computed_once(one) if other is None and one is not None else None for one, other in zip(every, known, strict=True))
    )


def stored(x: Array) -> Array:
    """X unrounded, but stored as results of `round_result` are."""
    return straight_through(x, _computed_once(constant(x)))


def split_format(fmt: Format) -> tuple[Format, Format]:
    """The numbers that are known, and those that are traced."""
    fixed = Format(*(field if is_number(field) else None for field in fmt))
    return fixed, Format(*(None if is_number(field) else field for field in fmt))


def joined_format(traced: Format, fixed: Format) -> Format:
    """The format whose numbers `split_format` parted."""
    return Format(*(field if number is None else number for field, number in zip(traced, fixed, strict=True)))


@partial(jax.jit, static_argnames=("fixed", "mode"))
def _round(x: Array, random: Array | None, traced: Format, *, fixed: Format, mode: Mode) -> Array:
    return round_carrier(x, joined_format(traced, fixed), mode, random, CARRIERS[x.dtype.name])


@partial(jax.jit, static_argnames=("fixed", "mode"))
def _round_stored(x: Array, words: Array | None, traced: FormatWords | None, *, fixed: Format, mode: Mode) -> Array:
    # Not inlined: hundreds of equal roundings are traced and lowered once.
    random, carrier = None, CARRIERS[x.dtype.name]
    if isinstance(mode, Stochastic) and words is not None:
        hashed = mode.generator is counter_hash
        random = hash_positions(words, x.shape, carrier.uint) if hashed else mode.generator(words, x.shape, carrier.uint)
    numbers = words_of(fixed, carrier)
    if traced is not None:
        numbers = FormatWords(*(one if other is None else other for one, other in zip(numbers, traced, strict=True)))
    return computed_once(round_carrier(x, fixed, mode, random, carrier, words=numbers))


_computed_once = jax.jit(computed_once)


@jax.custom_vjp
def _rounded_cotangent(x: Array, fmt: Format) -> Array:
    """The identity, whose cotangent is rounded to a format."""
    del fmt
    return x


def _rounded_cotangent_forward(x: Array, fmt: Format) -> tuple[Array, Format]:
    return x, fmt


def _rounded_cotangent_backward(fmt: Format, cotangent: Array) -> tuple[Array, None]:
    return round_to(cotangent, fmt), None


_rounded_cotangent.defvjp(_rounded_cotangent_forward, _rounded_cotangent_backward)
