"""What is rounded where in a training step.

A `Policy` names the sites of one step, and holds for each whatever is asked about it: a `Format`, a rounding mode, a native
dtype, or None for "left as it is" (float32, the carrier).

    gradient --(gradients)--> optimizer.update --(updates)--> w + u --(weights)--> w'
                                  moments: the optimizer's own averages
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from precisionlab.carriers import FLOAT32_CARRIER
from precisionlab.checks import require_fits
from precisionlab.formats import FLOAT32, Format, is_concrete, name_of, stack_formats

__all__ = ["Policy", "check_policy", "describe", "stack_policies"]


class Policy(NamedTuple):
    """One entry for each site of a training step; None leaves the site alone.

    Attributes:
        weights: the stored parameters.
        compute: every operation of the loss and its gradient.
        gradients: the gradients, as handed to the optimizer.
        updates: the optimizer's updates, before they are added.
        moments: the optimizer's per-parameter state.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> Policy(weights=BFLOAT16, gradients=BFLOAT16).updates is None
        True
    """

    weights: Any = None
    compute: Any = None
    gradients: Any = None
    updates: Any = None
    moments: Any = None


def check_policy(policy: Any, where: str) -> Policy:
    """The policy itself, if every site holds a format that fits float32.

    Raises:
        TypeError: if it is no policy of formats.
        ValueError: if a format does not fit, or a site cannot be rounded.
    """
    if isinstance(policy, Format):
        raise TypeError(f"{where}: got a Format where a Policy is expected; say which site it is for: Policy(weights=...).")
    if not isinstance(policy, Policy):
        raise TypeError(f"{where}: expected a Policy, such as Policy(weights=precisionlab.BFLOAT16); got {policy!r}.")
    for site, fmt in policy._asdict().items():
        if fmt is None:
            continue
        if not isinstance(fmt, Format):
            raise TypeError(f"{where}: Policy.{site} must be a Format or None; got {fmt!r}.")
        if site == "compute":
            raise ValueError(
                f"{where}: a training step rounds what is stored and exchanged (weights, gradients, updates, moments), not "
                f"each operation of the loss; leave Policy.compute at None."
            )
        if is_concrete(fmt):
            require_fits(fmt, FLOAT32_CARRIER, f"{where}: Policy.{site}")
    return policy


def describe(policy: Policy) -> str:
    """A policy in words.

    Example:
        >>> from precisionlab.formats import BFLOAT16
        >>> describe(Policy(weights=BFLOAT16))
        'weights bfloat16'
    """
    parts = [f"{site} {name_of(fmt)}" for site, fmt in policy._asdict().items() if fmt is not None]
    return ", ".join(parts) or "float32 throughout"


def stack_policies(policies: Sequence[Policy]) -> tuple[Policy, Callable[[Policy], Policy]]:
    """Many policies as one traced argument with a leading axis, for a single compilation over all.

    Numbers in which all the policies agree need not be traced: whether there are subnormals, or a -0, is nearly always the
    same throughout, and knowing it makes the rounding a third cheaper.

    Args:
        policies: at least one; where only some leave a site alone, the others' sites count as float32.

    Returns:
        `(stacked, complete)`: the stacked policy with None in place of what is shared, and a function that puts the shared
        numbers back into one traced slice of it.

    Raises:
        ValueError: if there is nothing to stack.
    """
    policies = list(policies)
    if not policies:
        raise ValueError("stack_policies: got no policies; give at least one, such as [Policy(weights=BFLOAT16)].")
    stacked, shared = {}, {}
    for site in Policy._fields:
        formats = [getattr(policy, site) for policy in policies]
        if all(fmt is None for fmt in formats):
            continue
        formats = [FLOAT32 if fmt is None else fmt for fmt in formats]
        columns = stack_formats(formats)
        same = {
            field: getattr(formats[0], field)
            for field in ("subnormals", "zeros")
            if len({getattr(fmt, field) for fmt in formats}) == 1
        }
        stacked[site] = columns._replace(**dict.fromkeys(same))
        shared[site] = same

    def complete(traced: Policy) -> Policy:
        return traced._replace(**{site: getattr(traced, site)._replace(**same) for site, same in shared.items()})

    return Policy(**stacked), complete
