"""A look at an update from outside of the training step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from precisionlab._typing import Array, PyTree
from precisionlab.numerics.formats import Format
from precisionlab.optimizers.tracking.reading import asked_of, begun, check_params, fitting, read
from precisionlab.optimizers.tracking.records import Record, TrackState, is_tracked, stagnation
from precisionlab.optimizers.tracking.sights import Asked, Event

__all__ = ["observer"]


def observer(
    optimizer: Any,
    formats: Sequence[Format] | Mapping[str, Format] | None = None,
    *,
    detail: bool = True,
    state: bool | None = None,
) -> Callable[..., Record]:
    """What `track` would record of an update, found out beside the training step rather than in it.

    The step stays as it is, and between two looks nothing is spent. Each look is a program of its own, compiled once, that
    makes the update again, of the weights and the state as they are before it. Take `track` where the step is one call for many
    updates (a scan), where gradients do not leave it, or where the record should be saved with the optimizer's state.

    Args:
        optimizer: the whole optimizer, as the training step has it.
        formats: as in `track`, as are detail and state.
        detail: False counts fates alone.
        state: whether to look at the optimizer's own state.

    Returns:
        `observe(params, grads, opt_state, step=None, **extra)`, which returns the `Record` that `stagnation` would. Call it
        outside of jit, before these are donated: `step` is the number of the update (by default that of the look), `extra` what
        the optimizer's `update` takes besides. What the last reads lost is remembered from call to call. Whether the weights
        arrive where the record says is not looked at: nobody sees the next ones.

    Raises:
        TypeError: as `track`; when called in a traced function.
        ValueError: as `track`.

    Example:
        >>> import optax
        >>> optimizer = optax.sgd(1e-3)
        >>> observe = observer(optimizer)
        >>> params = {"scale": jnp.ones(4, jnp.bfloat16)}
        >>> record = observe(params, {"scale": jnp.ones(4, jnp.bfloat16)}, optimizer.init(params), step=100)
        >>> float(record.tally["scale"].stagnated_fraction), int(record.step)
        (1.0, 100)
    """
    asked = asked_of(optimizer, formats, detail, state, "observer")
    look = jax.jit(lambda *given: _looked(asked, *given))
    held: list[Record] = []

    def observe(params: PyTree[Array], grads: PyTree[Array], opt_state: Any, step: int | None = None, **extra: Any) -> Record:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, grads, opt_state, extra))):
            raise TypeError(
                "observer: observe was called inside of jit, scan or another transformation; call it between the steps, on "
                "arrays, or wrap the optimizer in `track` to look inside."
            )
        if not held:
            check_params(params, "observer")
            _check_state(asked, params, opt_state)
        record = held[0] if held else begun(asked, params, opt_state, None, "observer")
        number = jnp.asarray(record.reads + 1 if step is None else step, jnp.int32)
        found = look(record, number, params, grads, opt_state, extra)
        held[:] = [found._replace(arrival=record.arrival)]
        return stagnation(TrackState(opt_state, number, held[0]))

    return observe


def _looked(
    asked: Asked, record: Record, number: Any, params: PyTree[Array], grads: PyTree[Array], state: Any, extra: dict[str, Any]
) -> Record:
    updates, after = asked.optimizer.update(grads, state, params, **extra)
    return read(asked, Event(params, grads, updates, state, after, extra), fitting(asked, record, state), number)


def _check_state(asked: Asked, params: PyTree[Array], state: Any) -> None:
    """Refuse the state of another optimizer."""
    if any(is_tracked(node) for node in jax.tree.leaves(state, is_leaf=is_tracked)):
        return  # which has a sentence of its own
    given, own = jax.tree.structure(state), jax.tree.structure(jax.eval_shape(asked.optimizer.init, params))
    if given != own:
        raise ValueError(
            f"observer: this is no state of the optimizer that was given for these parameters: {given} against {own}; make the "
            f"observer of the same optimizer as the training step, and pass what its `update` is given."
        )
