"""Cross-entropy written in seven ways, and the margins from which each is exactly zero once computed in a format.

They are searched for without the law (`precisionlab.stagnation.margins`), with every operation rounded to a format
(`simulate`), in brackets over the format's own values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic import simulate
from precisionlab.numerics.formats import Format, ieee_format, stack_formats

__all__ = ["LOSSES", "PARTS", "format_of", "margin_of", "parts_of", "thresholds"]

PARTS = ("loss", "label", "other")
"""Of what is computed: the loss, and its gradient in either logit."""
_EXPONENT_BITS = 8
_FARTHEST = 256.0
_WIDTH = 256  # values looked at in a bracket at once


def margin_of(logits: Any) -> Any:
    """How far the label's logit, the first of two, is above the other."""
    return logits[0] - logits[1]


LOSSES: dict[str, Callable[[Any], Any]] = {
    "log_softmax": lambda logits: -jax.nn.log_softmax(logits)[0],
    "one_hot": lambda logits: optax.softmax_cross_entropy(logits, jnp.asarray([1.0, 0.0], logits.dtype)),
    "integer_labels": lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, jnp.int32(0)),
    "naive": lambda logits: jnp.log(1 + jnp.exp(-margin_of(logits))),
    "log1p": lambda logits: jnp.log1p(jnp.exp(-margin_of(logits))),
    "softplus": lambda logits: jax.nn.softplus(-margin_of(logits)),
    "sigmoid": lambda logits: optax.sigmoid_binary_cross_entropy(margin_of(logits), jnp.ones((), logits.dtype)),
}
"""The forms of `precisionlab.stagnation.margins.FORMS` as functions of two logits, the label's first."""


def parts_of(loss: Callable[[Any], Any], logits: Any) -> Any:
    """(3,): the loss and its gradients in both logits."""
    value, gradient = jax.value_and_grad(loss)(logits)
    return jnp.concatenate([value[None], gradient])


def format_of(bits: int) -> Format:
    """The format of some significand bits in this measurement, with the exponents of float32."""
    return ieee_format(_EXPONENT_BITS, bits - 1)


def thresholds(bits: Sequence[int], forms: Sequence[str] = tuple(LOSSES)) -> np.ndarray:
    """Search for the smallest margins at which computed losses and gradients are exactly zero.

    Args:
        bits: significand bits, 3 to 53.
        forms: names in `LOSSES`.

    Returns:
        (len(bits), len(forms), 3) margins, found without the law: by bisection over the values of each format, in brackets.
    """
    with jax.enable_x64(True):
        formats = stack_formats([format_of(p) for p in bits])

        def zeros(fmt: Format, margins: Any) -> Any:
            rows = []
            for index, loss in enumerate(LOSSES[name] for name in forms):
                rounded = simulate(lambda m, loss=loss: parts_of(loss, jnp.stack([m, m * 0])), fmt, carrier="float64")
                found = jax.vmap(jax.vmap(rounded))(margins[index])
                rows.append(jnp.stack([found[part, :, part] == 0 for part in range(3)]))
            return jnp.stack(rows)

        look = jax.jit(jax.vmap(zeros))
        shift = np.array([53 - p for p in bits], np.int64)[:, None, None]
        shape = (len(bits), len(forms), len(PARTS))
        # Positive floats in order are integers in order; the margins are in [1/4, 256).
        low = np.broadcast_to(np.float64(0.25).view(np.int64) >> shift, shape).copy()
        high = np.broadcast_to(np.float64(_FARTHEST).view(np.int64) >> shift, shape).copy()
        while (high - low).max() > 1:
            stride = np.maximum(1, -(-(high - low) // (_WIDTH - 1)))
            places = np.minimum(low[..., None] + stride[..., None] * np.arange(_WIDTH), high[..., None])
            zero = np.asarray(look(formats, jnp.asarray((places << shift[..., None]).view(np.float64))))
            first = np.argmax(zero, axis=-1)[..., None]
            if not zero.any(-1).all():
                raise ValueError(f"margins: a loss is positive at every margin up to {_FARTHEST:g}; the formats reach too far.")
            low, high = (np.take_along_axis(places, np.maximum(first - back, 0), -1)[..., 0] for back in (1, 0))
        return (high << shift).view(np.float64)
