"""The five operations that IEEE 754 rounds correctly: + - * / and the square root, in any format and mode.

The carrier's result, rounded once more, is one correct rounding of the exact result

    under nearest modes          if the carrier has 2p + 2 bits (Figueroa 1995)
    * / sqrt, in every mode      if it does: exact, or farther from every number of p bits than what the carrier drops
                                 (unless the result may be beyond the carrier's range)
    nearest even, carrier's own  always

Elsewhere (sums under directed modes, formats of 12 bits and more in float32) what the carrier dropped is computed too, and the
two are rounded together. Stochastic modes round the carrier's result. Formats known only when the program runs are taken to be
narrow enough: computing the remainders of all operations would double the cost, for formats of 12 to 23 bits alone.
"""

from functools import partial

import jax
import jax.numpy as jnp

from precisionlab._typing import Array
from precisionlab.arithmetic.exact.exact_sums import is_carrier_itself, product_remainder, round_once, two_sum
from precisionlab.numerics.carriers import CARRIERS, Carrier, computed_once, from_bits, to_bits, uncontracted
from precisionlab.numerics.derivatives import constant, straight_through
from precisionlab.numerics.formats import Format, is_concrete
from precisionlab.numerics.modes import Mode, Stochastic, nearest_away, nearest_even
from precisionlab.numerics.rounding import joined_format, split_format

__all__ = ["BASIC", "is_innocuous", "rounded_exactly"]

BASIC = frozenset({"add", "add_any", "sub", "mul", "square", "div", "sqrt"})
_SUMS = frozenset({"add", "add_any", "sub"})


def is_innocuous(name: str, fmt: Format, mode: Mode, carrier: Carrier) -> bool:
    """Whether the carrier's operation followed by one rounding is one rounding, or as good as."""
    if isinstance(mode, Stochastic) or (mode is nearest_even and is_carrier_itself(fmt, carrier)):
        return True
    if is_concrete(fmt) and 2 * fmt.precision + 2 > carrier.precision:
        return False
    if mode in (nearest_even, nearest_away) or name == "sqrt":
        return True
    return name not in _SUMS and not (is_concrete(fmt) and _leaves_range(fmt, carrier))


def _leaves_range(fmt: Format, carrier: Carrier) -> bool:
    """Whether finite operands can give a product or quotient beyond the carrier, which not every mode rounds to infinity."""
    half = carrier.bias // 2
    return bool(fmt.largest > 2.0**half or fmt.emin - fmt.precision + 1 < -half)


def rounded_exactly(name: str, operands: list[Array], result: Array, fmt: Format, mode: Mode) -> Array:
    """One rounding of the exact result of an operation of `BASIC`.

    Args:
        name: the primitive.
        operands: its operands, in one shape.
        result: the carrier's result.
        fmt: the format to round to.
        mode: a mode that is not stochastic.

    Returns:
        The rounded result, with the derivative of `result`.
    """
    fixed, traced = split_format(fmt)
    inputs = [constant(operand) for operand in operands]
    rounded = _rounded_stored(inputs, constant(result), traced, name=name, fixed=fixed, mode=mode)
    return straight_through(result, rounded)


@partial(jax.jit, static_argnames=("name", "fixed", "mode"))
def _rounded_stored(operands: list[Array], result: Array, traced: Format, *, name: str, fixed: Format, mode: Mode) -> Array:
    fmt, carrier = joined_format(traced, fixed), CARRIERS[result.dtype.name]
    return computed_once(_rounded(name, operands, result, fmt, mode, carrier))


def _rounded(name: str, operands: list[Array], result: Array, fmt: Format, mode: Mode, carrier: Carrier) -> Array:
    if name in _SUMS:
        left, right = operands
        total, remainder = two_sum(left, -right if name == "sub" else right, carrier)
        return round_once(total, remainder, (left, right), fmt, mode, None, carrier)
    if name in ("mul", "square"):
        left, right = (operands * 2)[:2]
        product = uncontracted(result)
        remainder = product_remainder(left, right, product, carrier, sign_only=True)
        return round_once(product, remainder, (left, right), fmt, mode, None, carrier)
    divisor = operands[-1] if name == "div" else result
    quotient, dividend = result, operands[0]
    remainder = _side(dividend, divisor, quotient, carrier)
    if name == "div":  # by zero, the infinity is exact
        by_zero = (to_bits(divisor, carrier) & carrier.word(carrier.sign - 1)) == 0
        divisor = jnp.where(by_zero, jnp.asarray(jnp.inf, divisor.dtype), divisor)
    return round_once(quotient, remainder, (dividend, divisor), fmt, mode, None, carrier)


def _side(dividend: Array, divisor: Array, quotient: Array, carrier: Carrier) -> Array:
    """A tiny number with the sign of dividend / divisor - quotient, or zero: such a remainder is never half a unit."""
    product = uncontracted(quotient * divisor)
    left = (dividend - product) - product_remainder(quotient, divisor, product, carrier, sign_only=True)
    word = carrier.word
    magnitude = to_bits(left, carrier) & word(carrier.sign - 1)
    exact = (magnitude == 0) | (magnitude >= word(carrier.infinity))
    sign = (to_bits(left, carrier) ^ to_bits(divisor, carrier)) & word(carrier.sign)
    smallest_normal = word(1 << carrier.fraction_bits)
    return jnp.where(exact, jnp.zeros((), left.dtype), from_bits(smallest_normal | sign, carrier))
