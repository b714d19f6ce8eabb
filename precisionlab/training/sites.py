"""Roundings at the sites of a training step: of gradients and updates, of weights, of an optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab._typing import Array, PRNGKeyArray, PyTree
from precisionlab.arithmetic.exact.chances import carried_sum, round_sum
from precisionlab.arithmetic.policy import Policy
from precisionlab.numerics.blocks import BlockFormat, round_blocks
from precisionlab.numerics.carriers import CARRIERS, Carrier, uncontracted, widened
from precisionlab.numerics.checks import require_fits
from precisionlab.numerics.formats import FORMATS, Format
from precisionlab.numerics.modes import Mode, Stochastic
from precisionlab.numerics.rounding import round_to

__all__ = [
    "check_moments",
    "checked_dtypes",
    "grid_of",
    "move_weights",
    "round_moments",
    "round_site",
    "store_natively",
]


def checked_dtypes(dtypes: Policy | None, where: str) -> Policy:
    """Native dtypes by site, as numpy's; refused where a site has none, or the dtype is no narrow float."""
    if dtypes is None:
        return Policy()
    if not isinstance(dtypes, Policy):
        raise TypeError(f"{where}: dtypes must be a Policy of dtypes, such as Policy(weights=jnp.bfloat16); got {dtypes!r}.")
    for site, dtype in dtypes._asdict().items():
        if dtype is None:
            continue
        if site in ("compute", "moments"):
            raise ValueError(f"{where}: native storage is for weights, gradients and updates; leave dtypes.{site} at None.")
        if np.dtype(dtype).name not in FORMATS or np.dtype(dtype) == np.float64:
            raise ValueError(f"{where}: dtypes.{site} must be float32 or a narrower float; got {np.dtype(dtype).name}.")
    return Policy(*(None if dtype is None else np.dtype(dtype) for dtype in dtypes))


def round_site(tree: PyTree[Array], fmt: Format | BlockFormat | None, mode: Mode, key: PRNGKeyArray) -> PyTree[Array]:
    """Every leaf of a tree rounded, with random bits of its own; the tree itself where the site has no format."""
    if fmt is None:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    if not isinstance(mode, Stochastic):
        return jax.tree.unflatten(structure, [_rounded(leaf, fmt, mode, None) for leaf in leaves])
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [_rounded(leaf, fmt, mode, keys[i]) for i, leaf in enumerate(leaves)])


def move_weights(weights: Any, updates: Any, fmt: Format | BlockFormat | None, mode: Mode, key: PRNGKeyArray) -> PyTree[Array]:
    """The weights and their updates, added and rounded: under stochastic modes in proportion to the exact sum."""
    if fmt is None or not isinstance(mode, Stochastic):
        return round_site(jax.tree.map(lambda w, u: w + uncontracted(u), weights, updates), fmt, mode, key)
    leaves, structure = jax.tree.flatten(weights)
    rows = zip(leaves, structure.flatten_up_to(updates), jax.random.split(key, len(leaves)), strict=True)
    return jax.tree.unflatten(structure, [_rounded_sum(w, u, fmt, mode, bits) for w, u, bits in rows])


def _rounded_sum(w: Array, u: Array, fmt: Format | BlockFormat, mode: Mode, key: PRNGKeyArray) -> Array:
    if isinstance(fmt, Format):
        return round_sum(w, u, fmt, mode, key=key)
    return _rounded(carried_sum(w, u, mode, key=jax.random.fold_in(key, 0)), fmt, mode, key)


def _rounded(leaf: Array, fmt: Format | BlockFormat, mode: Mode, key: PRNGKeyArray | None) -> Array:
    if isinstance(fmt, Format):
        return round_to(leaf, fmt, mode, key=key)
    return round_blocks(jnp.atleast_1d(leaf), fmt, -1, mode, key=key).reshape(jnp.shape(leaf))


def grid_of(fmt: Format | BlockFormat, carrier: Carrier) -> tuple[Any, Any]:
    """Precision and emin of the stored weights, for the histogram; elements of a block have the spacing of their own binade."""
    return (fmt.precision, fmt.emin) if isinstance(fmt, Format) else (fmt.element.precision, carrier.emin)


def round_moments(optimizer: optax.GradientTransformation, state: Any, fmt: Format) -> Any:
    """An optimizer's state with what it keeps for each parameter rounded to nearest even, and the rest as it was."""

    def rounded(leaf: Array) -> Array:
        return round_to(leaf, fmt) if leaf.dtype.name in CARRIERS else leaf

    return optax.tree.map_params(optimizer, rounded, state, transform_non_params=lambda leaf: leaf)


def check_moments(optimizer: optax.GradientTransformation, state: Any, fmt: Format) -> None:
    """Raise a ValueError if what an optimizer keeps for a parameter does not hold a concrete format."""

    def checked(leaf: Array) -> Array:
        # An optimizer may keep its averages in a dtype of its own, narrower than the parameters.
        if leaf.dtype.name in CARRIERS:
            require_fits(fmt, CARRIERS[leaf.dtype.name], "start: Policy.moments, in the dtype of the optimizer's state")
        return leaf

    optax.tree.map_params(optimizer, checked, state)


def store_natively(tree: PyTree[Array], dtype: Any) -> PyTree[Array]:
    """Through a narrow dtype and back, as values in memory that no compiler may see through."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: widened(leaf.astype(dtype)), tree)
