"""The order in which terms are added, and what is rounded on the way.

Terms are arrays with a leading axis, one position a term: numbers, or pairs of factors that broadcast to the result's shape. A
step takes one term of all entries at once, so that a scan over the terms is one fused pass over the result for each, whatever
the formats; only a tree holds more than a few results at a time: four for every fourfold of the terms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from precisionlab._typing import Array
from precisionlab.arithmetic.exact.exact_sums import (
    fused,
    is_carrier_itself,
    product_remainder,
    round_once,
    sum_is_innocuous,
    two_sum,
)
from precisionlab.numerics.carriers import Carrier, uncontracted
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode, Stochastic, nearest_even
from precisionlab.numerics.randomness import fold
from precisionlab.numerics.words import is_number

__all__ = ["ORDERS", "Accumulation", "Operations", "reduced", "running"]

ORDERS = ("sequential", "pairwise")
_LEVELS = 2
_LEAVES = 2**_LEVELS  # terms or subtrees of a tree that are held at once


class Accumulation(NamedTuple):
    """How many terms become one: the formats, and the order.

    Attributes:
        multiply: the format of every product; None for the exact product, which then enters the sum with one rounding (a fused
            multiply-add).
        accumulate: the format of every partial sum; None for the carrier, rounded to nearest even whatever the mode.
        chunk: how many consecutive terms are summed at a time; the sums of the chunks, the last of which may be short, are then
            added one after the other, beginning with the first. None for all.
        order: "sequential", from +0 (so that a sum of -0 alone is +0); or "pairwise": every term is added to +0, then the first
            to the second, the third to the fourth, and so on, and so again with their sums; one that is left over waits. The
            tree of n terms thus has 2^j of them on its left, the largest power of two below n, and the rest on its right.
        compensated: whether what each addition lost is carried to the next (Kahan), with each of its four operations rounded to
            `accumulate`; within the chunks, and again across their sums. An infinite partial sum makes it NaN.

    Example:
        >>> from precisionlab import ieee_format
        >>> Accumulation(accumulate=ieee_format(6, 9), chunk=64).chunk
        64
    """

    multiply: Format | None = None
    accumulate: Format | None = None
    chunk: int | None = None
    order: str = "sequential"
    compensated: bool = False


class Operations(NamedTuple):
    """The elementary operations of one accumulation; `draw` = (kind, index) names what each rounding draws."""

    how: Accumulation
    mode: Mode
    key: Any
    carrier: Carrier
    exact: bool = False  # whether products are known to be values of the carrier

    def words(self, draw: tuple[int, Any], shape: tuple[int, ...]) -> Array | None:
        """Random words for one rounding of many entries."""
        if not isinstance(self.mode, Stochastic):
            return None
        return self.mode.generator(fold(fold(self.key, draw[0]), draw[1]), shape, self.carrier.uint)

    def multiply(self, a: Array, b: Array, fmt: Format | None, draw: tuple[int, Any]) -> Array:
        """The product rounded to a format; to the carrier if it is None."""
        p = a * b
        if fmt is None or is_carrier_itself(fmt, self.carrier):
            p = uncontracted(p)  # there may be no rounding to keep it from the sum that follows
        if fmt is None:
            return p
        remainder = None
        nearest = self.mode is nearest_even and is_carrier_itself(fmt, self.carrier)
        if not (self.exact or nearest or isinstance(self.mode, Stochastic)):
            remainder = product_remainder(a, b, p, self.carrier, sign_only=True)
        return round_once(p, remainder, (a, b), fmt, self.mode, self.words(draw, p.shape), self.carrier)

    def add(self, x: Array, y: Array, draw: tuple[int, Any], bits: int | None = 0) -> Array:
        """The sum of a partial sum and something of so many significand bits (0: another partial sum; None: unknown)."""
        fmt = self.how.accumulate
        if fmt is None:
            return x + y
        s, remainder = x + y, None
        if not sum_is_innocuous(fmt, bits, self.mode, self.carrier):
            s, remainder = two_sum(x, y, self.carrier)
        return round_once(s, remainder, (x, y), fmt, self.mode, self.words(draw, s.shape), self.carrier)

    def enter(self, s: Array, term: tuple[Array, ...], index: Any) -> Array:
        """A partial sum with one more term: a number, or the two factors of a product."""
        fmt = self.how.accumulate
        if len(term) == 1:
            return self.add(s, term[0], (1, index), bits=None)
        a, b = term
        if self.how.multiply is not None:
            product = self.multiply(a, b, self.how.multiply, (0, index))
            bits = self.how.multiply.precision
            return self.add(s, product, (1, index), bits=bits if is_number(bits) else None)
        if self.exact:
            return self.add(s, uncontracted(a * b), (1, index), bits=None)
        total, remainder = fused(a, b, s, self.carrier)
        if fmt is None:
            return total
        return round_once(total, remainder, (a, b, s), fmt, self.mode, self.words((1, index), total.shape), self.carrier)


Terms = tuple[Array, ...]


def reduced(operations: Operations, terms: Terms, shape: tuple[int, ...]) -> Array:
    """The sum of all terms, in the order that the accumulation says."""
    count, chunk = terms[0].shape[0], operations.how.chunk
    part = _tree if operations.how.order == "pairwise" else _sequence
    # A constant zero would be folded away with the sum, and with it the sign of 0 + -0.
    zero = lax.optimization_barrier(jnp.zeros(shape, terms[0].dtype))
    if count == 0:
        return zero
    if chunk is None or chunk >= count:
        return part(operations, terms, zero, 0)
    full, short = divmod(count, chunk)
    chunked = tuple(term[: full * chunk].reshape(full, chunk, *term.shape[1:]) for term in terms)

    def step(carry: _Carry, numbered: tuple[Terms, Array]) -> tuple[_Carry, None]:
        some, number = numbered
        return _with_chunk(operations, carry, part(operations, some, zero, number * chunk), number), None

    # From -0, to which every sum is added without a change.
    carry, _ = lax.scan(step, _Carry(-jnp.zeros(shape, zero.dtype), zero), (chunked, jnp.arange(full)))
    if short:
        rest = tuple(term[full * chunk :] for term in terms)
        carry = _with_chunk(operations, carry, part(operations, rest, zero, full * chunk), full)
    return carry.sum


def running(operations: Operations, terms: Terms, start: Array, advance: Callable[..., Array] | None = None) -> Array:
    """All partial sums, one after the other; or whatever else `advance(partial, term, index)` accumulates."""

    def step(carry: _Carry, numbered: tuple[Terms, Array]) -> tuple[_Carry, Array]:
        term, index = numbered
        carry = (
            _with_term(operations, carry, term, index)
            if advance is None
            else _Carry(advance(carry.sum, term, index), carry.lost)
        )
        return carry, carry.sum

    count = terms[0].shape[0]
    return lax.scan(step, _Carry(start, jnp.zeros_like(start)), (terms, jnp.arange(count)))[1]


class _Carry(NamedTuple):
    sum: Array
    lost: Array  # what the sum has too much, if it is compensated


def _sequence(operations: Operations, terms: Terms, zero: Array, first: Any) -> Array:
    def step(carry: _Carry, numbered: tuple[Terms, Array]) -> tuple[_Carry, None]:
        term, index = numbered
        return _with_term(operations, carry, term, index), None

    indices = first + jnp.arange(terms[0].shape[0])
    return lax.scan(step, _Carry(zero, zero), (terms, indices))[0].sum


def _with_term(operations: Operations, carry: _Carry, term: Terms, index: Any) -> _Carry:
    if not operations.how.compensated:
        return _Carry(operations.enter(carry.sum, term, index), carry.lost)
    return _compensated(operations, carry, operations.enter(-carry.lost, term, index), index, kind=2)


def _with_chunk(operations: Operations, carry: _Carry, chunk: Array, index: Any) -> _Carry:
    if not operations.how.compensated:
        return _Carry(operations.add(carry.sum, chunk, (5, index)), carry.lost)
    return _compensated(operations, carry, operations.add(-carry.lost, chunk, (5, index)), index, kind=6)


def _compensated(operations: Operations, carry: _Carry, y: Array, index: Any, kind: int) -> _Carry:
    total = operations.add(carry.sum, y, (kind, index))
    gained = operations.add(total, -carry.sum, (kind + 1, index))
    return _Carry(total, operations.add(gained, -y, (kind + 2, index)))


def _tree(operations: Operations, terms: Terms, zero: Array, first: Any) -> Array:
    """The root of the tree over all terms: small trees written out, larger ones by a map over their parts."""

    def root(start: Any, count: int) -> Array:
        if count <= _LEAVES:
            leaves = []
            for index in range(count):
                term = tuple(lax.dynamic_index_in_dim(factor, start + index, keepdims=False) for factor in terms)
                leaves.append(operations.enter(zero, term, first + start + index))
            return joined(leaves, start, level=0)
        size, level = _LEAVES, _LEVELS
        while size * _LEAVES < count:
            size, level = size * _LEAVES, level + _LEVELS
        full, rest = divmod(count, size)
        parts = lax.map(lambda number: root(start + number * size, size), jnp.arange(full))
        roots = [parts[number] for number in range(full)]
        if rest:
            roots.append(root(start + full * size, rest))
        return joined(roots, start, level)

    def joined(nodes: list[Array], start: Any, level: int) -> Array:
        """Neighbours added until one is left; the level and the first leaf below name what an addition draws."""
        while len(nodes) > 1:
            places = range(0, len(nodes) - 1, 2)
            sums = [operations.add(nodes[i], nodes[i + 1], (16 + level, first + start + (i << level))) for i in places]
            nodes, level = sums + nodes[2 * len(sums) :], level + 1
        return nodes[0]

    return root(0, terms[0].shape[0])
