"""What one rounding did to its entries, as sums: over entries here, over the turns of a loop by whoever walks it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from precisionlab._typing import Array
from precisionlab.arithmetic.carrying import is_on_host

__all__ = ["NEVER", "Counts", "Seen", "compared"]

NEVER = np.int32(2**31 - 1)


class Counts(NamedTuple):
    """Sums over entries.

    Attributes:
        entries: how many there are.
        introduced_square: of (rounded - exact on the same operands)^2, where both are finite.
        local_square: of that exact value.
        carried_square: of (simulated - float64 program)^2, where both are finite.
        exact_square: of the value of the float64 program.
        underflowed: zero, and the exact result of the same operands is not.
        nonfinite: not finite, and it is this operation that made them so (see `compared`).
        everywhere: not finite out of finite operands, in the float64 program as well.
    """

    entries: Any
    introduced_square: Any
    local_square: Any
    carried_square: Any
    exact_square: Any
    underflowed: Any
    nonfinite: Any
    everywhere: Any


_WIDTH, _NONFINITE = len(Counts._fields), Counts._fields.index("nonfinite")


class Seen(NamedTuple):
    """`Counts` as one float64 vector, added up over the turns of a loop, and the first turn that had non-finite entries."""

    sums: Array
    turn: Array

    def over_turns(self) -> "Seen":
        """The same over the leading axis."""
        bad = self.sums[:, _NONFINITE] > 0
        turns = jnp.where(bad, jnp.arange(bad.shape[0], dtype=jnp.int32), NEVER)
        return Seen(jnp.sum(self.sums, axis=0), jnp.min(turns, initial=NEVER))

    def at_turn(self, turn: Array) -> "Seen":
        """The same, in one turn of a loop."""
        return self._replace(turn=jnp.where(self.sums[_NONFINITE] > 0, turn.astype(jnp.int32), NEVER))

    def joined(self, other: "Seen | None") -> "Seen":
        """Both together."""
        return self if other is None else Seen(self.sums + other.sums, jnp.minimum(self.turn, other.turn))

    def blank(self) -> "Seen":
        """Nothing seen."""
        return Seen(jnp.zeros((_WIDTH,), jnp.float64), jnp.asarray(NEVER))


def compared(simulated: Any, exact: Any, local: Any, operands: Sequence[tuple[Any, Any]], named: Any = None) -> Seen:
    """What a rounding did.

    A result that is not finite has its origin here if the exact result of the same operands is finite (it overflowed), or if
    the float64 program's is and no operand was broken already (0 / 0 of a divisor that underflowed). An operand is broken where
    the simulation has infinity or NaN and the float64 program a number. Which operands an entry has is known where they have
    its shape; elsewhere (sums, products of matrices) an operand that is broken anywhere counts as broken.

    Complex numbers count as their parts.

    Args:
        simulated: the rounded result, in float64.
        exact: the result of the float64 program.
        local: the exact result of the operands that the simulation has.
        operands: each in the simulation and in the float64 program.
        named: where the difference is meant, and no error; None if nowhere.
    """
    if np.iscomplexobj(simulated):  # the entries are those of both parts
        simulated, exact, local = map(_parted, (simulated, exact, local))
        operands = [(_parted(mine), _parted(theirs)) for mine, theirs in operands]
    simulated, exact, local = map(_in_parts, (simulated, exact, local))
    named = None if named is None or named.shape != simulated.shape else named
    operands = [(_in_parts(mine), _in_parts(theirs)) for mine, theirs in operands]
    there = [array for array in (simulated, exact, local, named, *sum(operands, ())) if array is not None]
    if not is_on_host(*there):
        return _sums(jnp, simulated, exact, local, operands, named)
    with np.errstate(all="ignore"):
        host = [(np.asarray(mine), np.asarray(theirs)) for mine, theirs in operands]
        return _sums(np, np.asarray(simulated), np.asarray(exact), np.asarray(local), host, named)


def _parted(x: Any) -> Any:
    xp = np if is_on_host(x) else jnp
    return xp.stack([xp.real(x), xp.imag(x)])


def _in_parts(x: Any) -> Any:
    """Complex numbers as their real parts and then their imaginary ones, which are rounded each by itself."""
    if not jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x
    return np.stack([np.real(x), np.imag(x)]) if not isinstance(x, Tracer) else jnp.stack([jnp.real(x), jnp.imag(x)])


def _sums(xp: Any, simulated: Any, exact: Any, local: Any, operands: Sequence[tuple[Any, Any]], named: Any) -> Seen:
    def total(x: Any, where: Any) -> Any:
        return xp.sum(xp.where(where, xp.square(xp.where(where, x, 0.0)), 0.0))

    def everywhere(flags: Any) -> Any:
        return flags if flags.shape in ((), simulated.shape) else xp.all(flags)

    finite, shadow, near = xp.isfinite(simulated), xp.isfinite(exact), xp.isfinite(local)
    sound, whole = xp.asarray(True), xp.asarray(True)
    for mine, theirs in operands:
        if xp.issubdtype(mine.dtype, np.inexact):
            is_number = xp.isfinite(mine)
            sound, whole = sound & everywhere(is_number | ~xp.isfinite(theirs)), whole & everywhere(is_number)
    compares = finite & near if named is None else finite & near & ~named
    broken = ~finite & (near | (shadow & sound))
    count = xp.sum(broken, dtype=np.float64)
    counts = Counts(
        entries=xp.asarray(float(simulated.size)),
        introduced_square=total(simulated - local, compares),
        local_square=total(local, finite & near),
        carried_square=total(simulated - exact, finite & shadow),
        exact_square=total(exact, finite & shadow),
        underflowed=xp.sum((simulated == 0) & (local != 0), dtype=np.float64),
        nonfinite=count,
        everywhere=xp.sum(~finite & ~shadow & ~near & whole, dtype=np.float64),
    )
    return Seen(xp.stack([xp.asarray(field, np.float64) for field in counts]), xp.where(count > 0, np.int32(0), NEVER))
