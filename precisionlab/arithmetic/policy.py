"""What is rounded where in a training step.

A `Policy` names the sites of one step, and holds for each whatever is asked about it: a `Format`, a rounding mode, a native
dtype, or None for "left as it is" (the carrier: float32, or float64 where the parameters are float64).

    gradient --(gradients)--> optimizer.update --(updates)--> w + u --(weights)--> w'
                                  moments: the optimizer's own averages
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from precisionlab.arithmetic.rules import check_rules, describe_rules
from precisionlab.numerics.blocks import BlockFormat
from precisionlab.numerics.carriers import FLOAT32_CARRIER, Carrier
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import FLOAT32, Format, is_concrete, stack_formats

__all__ = ["PLACEMENTS", "Policy", "check_policy", "describe", "split_policy", "stack_policies"]

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "weights": ("weights",),
    "gradients": ("weights", "gradients"),
    "all": ("weights", "compute", "gradients"),
}
"""Common choices of sites by name: what is stored, what is exchanged as well, and the arithmetic too."""

_BLOCKS = ("weights", "gradients", "updates")


class Policy(NamedTuple):
    """One entry for each site of a training step; None leaves the site alone.

    Attributes:
        weights: the stored parameters.
        compute: every operation of the loss and its gradient, which also reads its arguments (weights, batch) in that format;
            `Rules` give each primitive or named scope its own.
        gradients: the gradients, as handed to the optimizer.
        updates: the optimizer's updates, before they are added.
        moments: the optimizer's per-parameter state.

    Weights, gradients and updates also take a `BlockFormat`, with blocks along the last axis; a single number is a block.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> Policy(weights=BFLOAT16, gradients=BFLOAT16).updates is None
        True
    """

    weights: Any = None
    compute: Any = None
    gradients: Any = None
    updates: Any = None
    moments: Any = None


def check_policy(policy: Any, where: str, carrier: Carrier = FLOAT32_CARRIER) -> Policy:
    """The policy itself, if every site holds a format that fits the carrier.

    Args:
        policy: what was given.
        where: the name of the calling function, for the error message.
        carrier: what holds the simulated values: that of the parameters.

    Raises:
        TypeError: if it is no policy of formats.
        ValueError: if a format does not fit, or a site cannot be rounded.
    """
    if isinstance(policy, Format):
        raise TypeError(f"{where}: got a Format where a Policy is expected; say which site it is for: Policy(weights=...).")
    if not isinstance(policy, Policy):
        raise TypeError(f"{where}: expected a Policy, such as Policy(weights=precisionlab.BFLOAT16); got {policy!r}.")
    for site, fmt in policy._asdict().items():
        if site == "compute":
            check_rules(fmt, f"{where}: Policy.compute", carrier)
            continue
        if fmt is None or (isinstance(fmt, BlockFormat) and site in _BLOCKS):
            continue
        if not isinstance(fmt, Format):
            allowed = "a Format, a BlockFormat or None" if site in _BLOCKS else "a Format or None"
            raise TypeError(f"{where}: Policy.{site} must be {allowed}; got {fmt!r}.")
        if is_concrete(fmt):
            require_fits(fmt, carrier, f"{where}: Policy.{site}")
    return policy


def describe(policy: Policy) -> str:
    """A policy in words.

    Example:
        >>> from precisionlab import BFLOAT16
        >>> describe(Policy(weights=BFLOAT16))
        'weights bfloat16'
    """
    parts = [f"{site} {describe_rules(entry)}" for site, entry in policy._asdict().items() if entry is not None]
    return ", ".join(parts) or "float32 throughout"


Complete = Callable[[Policy], Policy]
"""Puts back into a traced policy what was kept out of it."""


def split_policy(policy: Policy) -> tuple[Policy, Complete]:
    """A policy as an argument of a jitted function: its formats are numbers, its block formats are structure.

    Returns:
        `(numbers, complete)`: the policy with None in place of block formats, and a function that puts them back.

    Example:
        >>> from precisionlab import MXFP8_E4M3
        >>> numbers, complete = split_policy(Policy(weights=MXFP8_E4M3))
        >>> numbers.weights is None, complete(numbers).weights == MXFP8_E4M3
        (True, True)
    """
    leaves, structure = jax.tree.flatten(policy, is_leaf=_is_entry)
    blocks = [leaf if isinstance(leaf, BlockFormat) else {} for leaf in leaves]
    numbers = [None if isinstance(leaf, BlockFormat) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, numbers), lambda traced: _completed(traced, blocks)


def stack_policies(policies: Sequence[Policy], alone: Format = FLOAT32) -> tuple[Policy, Complete]:
    """Many policies as one traced argument with a leading axis, for a single compilation over all.

    Numbers in which all the policies agree need not be traced: whether there are subnormals, or a -0, is nearly always the
    same throughout, and knowing it makes the rounding a third cheaper. Block formats are never traced, so all the policies must
    agree in them.

    Args:
        policies: at least one; where only some leave a site alone, theirs count as `alone`.
        alone: the format of the carrier itself, to which nothing is rounded.

    Returns:
        `(stacked, complete)`: the stacked policy with None in place of what is shared, and a function that puts the shared
        numbers back into one traced slice of it.

    Raises:
        ValueError: if there is nothing to stack, or the policies differ in more than the numbers of their formats.
    """
    policies = list(policies)
    if not policies:
        raise ValueError("stack_policies: got no policies; give at least one, such as [Policy(weights=BFLOAT16)].")
    stacked, shared = [], []
    for site in Policy._fields:
        entries = [getattr(policy, site) for policy in policies]
        structures = [jax.tree.structure(entry, is_leaf=_is_entry) for entry in entries if entry is not None]
        if not structures:
            stacked.append(None)
            shared.append({})
            continue
        if any(structure != structures[0] for structure in structures):
            raise ValueError(
                f"stack_policies: the policies have different rules at {site}, and what is stacked differs in numbers alone; "
                f"give the same primitives and scopes a format in each of them, or sweep them one by one."
            )
        empty = [None] * structures[0].num_leaves
        leaves = [empty if entry is None else jax.tree.leaves(entry, is_leaf=_is_entry) for entry in entries]
        columns = [_stacked(column, site, alone) for column in zip(*leaves, strict=True)]
        stacked.append(jax.tree.unflatten(structures[0], [column for column, _ in columns]))
        shared += [same for _, same in columns]
    return Policy(*stacked), lambda traced: _completed(traced, shared)


def _is_entry(node: Any) -> bool:
    return node is None or isinstance(node, Format | BlockFormat)


def _stacked(entries: Sequence[Any], site: str, alone: Format) -> tuple[Format | None, Any]:
    """Entries of one place in all policies: what is traced, and what they share."""
    if any(isinstance(entry, BlockFormat) for entry in entries):
        if any(entry != entries[0] for entry in entries):
            names = ", ".join(dict.fromkeys("none" if entry is None else describe_rules(entry) for entry in entries))
            raise ValueError(
                f"stack_policies: {site} differ in a block format, which is compiled in and cannot be stacked ({names}); "
                f"give all the policies the same there, or sweep them one by one."
            )
        return None, entries[0]
    if all(entry is None for entry in entries):
        return None, {}
    formats = [alone if entry is None else entry for entry in entries]
    same = {
        field: getattr(formats[0], field)
        for field in ("subnormals", "zeros")
        if len({getattr(fmt, field) for fmt in formats}) == 1
    }
    return stack_formats(formats)._replace(**dict.fromkeys(same)), same


def _completed(traced: Policy, shared: Sequence[Any]) -> Policy:
    leaves, structure = jax.tree.flatten(traced, is_leaf=_is_entry)
    pairs = zip(leaves, shared, strict=True)
    return jax.tree.unflatten(structure, [same if isinstance(same, BlockFormat) else _with(leaf, same) for leaf, same in pairs])


def _with(leaf: Format | None, same: dict[str, Any]) -> Format | None:
    return None if leaf is None else leaf._replace(**same)
