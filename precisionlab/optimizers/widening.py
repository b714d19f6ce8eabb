"""An update made wide: what is stored narrow goes into the optimizer as float32, so that nothing on the way rounds to it."""

from typing import Any

import jax
import optax

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.carriers import widened
from precisionlab.optimizers.roundings import check_optimizer
from precisionlab.optimizers.sums import is_floating

__all__ = ["in_float32", "wide"]


def wide(tree: PyTree[Any]) -> PyTree[Any]:
    """The tree with every floating array in its carrier: float64 stays, everything narrower becomes float32."""
    return jax.tree.map(lambda leaf: widened(leaf) if is_floating(leaf) else leaf, tree)


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that it sees parameters and gradients in float32, whatever they are stored in.

    Optax makes moments in the dtype of the parameters, and rounds constants to it: in bfloat16 a decay of 0.999 is 1. Wrapped,
    it keeps float32 moments (4 bytes each) and gives float32 updates, which `optax.apply_updates` adds to weights of any dtype.

    Args:
        optimizer: any Optax gradient transformation.

    Returns:
        A gradient transformation. float64 stays float64.

    Raises:
        TypeError: if optimizer is no gradient transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, w = in_float32(optax.scale_by_rms(0.999)), jnp.ones(2, jnp.bfloat16)
        >>> updates, state = optimizer.update(w, optimizer.init(w), w)
        >>> updates.dtype.name, state.nu.dtype.name, float(state.nu[0])
        ('float32', 'float32', 0.0010000000474974513)
    """
    inner = check_optimizer(optimizer, "in_float32")

    def init(params: PyTree[Array]) -> Any:
        return inner.init(wide(params))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Any]:
        return inner.update(wide(updates), state, wide(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)
