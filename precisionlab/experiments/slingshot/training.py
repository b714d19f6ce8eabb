"""Networks trained side by side, all registers and seeds in one compiled program, whose length is an argument.

`training.loops` compiles anew for every number of networks and of steps, and keeps a record of every update. A slingshot has
two dozen short trainings of the same networks and reads their losses alone: it takes the same step, and leaves the rest out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy, stack_policies
from precisionlab.experiments.slingshot.tasks import Task
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode
from precisionlab.training.shrinking import shrink
from precisionlab.training.steps import State, batch_key, make_step

__all__ = ["Trained", "Training", "flattened", "unflatten"]


class Trained(NamedTuple):
    """What came of networks, leaves with the axes (formats, seeds, ...).

    Attributes:
        params: after the look that was asked for.
        moments: the optimizer's state at the end.
        seen: `train_loss`, `test_loss`, `memorized` and `norm` (of all weights), each (formats, seeds, looks) in float64.
    """

    params: Any
    moments: Any
    seen: dict[str, np.ndarray]


class Training:
    """One problem, its data for every seed, and the program that trains as many registers at a time as it was made for."""

    def __init__(self, task: Task, seeds: int, *, learning_rate: float, mode: Mode, dtype: Any = None) -> None:
        """Draw the data.

        Args:
            task: the problem.
            seeds: how many; each has data, initial weights, batches and random bits of its own.
            learning_rate: Adam's.
            mode: how weights are rounded where the register is simulated.
            dtype: of a native register, which rounds by itself.
        """
        self._task, self._seeds, self._dtype = task, seeds, dtype
        self._keys = jnp.stack([jax.random.key(seed) for seed in range(seeds)])
        self.data = jax.jit(jax.vmap(lambda key: task.data(jax.random.fold_in(key, 1))))(self._keys)
        optimizer = optax.chain(
            optax.scale_by_adam(),
            optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=0.0),
            optax.scale(-learning_rate),
        )
        rounding: dict[str, Any] = {"modes": mode} if dtype is None else {"dtypes": Policy(weights=dtype)}
        self._step = make_step(task.loss, optimizer, detail=False, **rounding)
        self._anew = jax.jit(jax.vmap(jax.vmap(optimizer.init)))
        self._evaluate = jax.jit(jax.vmap(jax.vmap(task.evaluate), in_axes=(0, None)))
        self._advance: Callable[..., State] | None = None

    def begin(self, formats: Sequence[Format]) -> Any:
        """The parameters with which training begins, rounded to each format: leaves (formats, seeds, ...)."""
        params = jax.jit(jax.vmap(lambda key: self._task.init(jax.random.fold_in(key, 0))))(self._keys)
        rounded = [jax.tree.map(lambda leaf, fmt=fmt: shrink(np.asarray(leaf), 1.0, fmt=fmt), params) for fmt in formats]
        return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), self._dtype or jnp.float32), *rounded)

    def train(
        self,
        params: Any,
        formats: Sequence[Format],
        looks: Sequence[int],
        *,
        done: int = 0,
        moments: Any = None,
        decay: float = 0.0,
        keep: int = -1,
        tell: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Train, and look at losses and norms on the way.

        Args:
            params: leaves (formats, seeds, ...), values of the formats.
            formats: the register of each; always as many.
            looks: after how many updates, rising.
            done: updates made before: batches and random bits go on from there.
            moments: the optimizer's state to go on with, from an earlier call; Adam begins anew without.
            decay: weight decay.
            keep: the look whose parameters are given back.
            tell: called after each look.
        """
        numbers, complete = stack_policies([Policy() if self._dtype else Policy(weights=fmt) for fmt in formats])
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        first, second, *rest = self._anew(wide) if moments is None else moments
        rates = {"weight_decay": jnp.full((len(formats), self._seeds), decay, jnp.float32)}
        state = State(jnp.int32(done), params, (first, second._replace(hyperparams=rates), *rest), self._keys, None)
        if self._advance is None:  # what formats share, whether they have subnormals or a -0, no arm changes
            self._advance = self._compiled(complete)
        seen: list[dict[str, np.ndarray]] = []
        kept, at = None, 0
        for number, look in enumerate(looks):
            if look > at:
                state, at = self._advance(state, numbers, self.data, jnp.int32(look - at)), look
            wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
            found = {name: np.asarray(values, np.float64) for name, values in self._evaluate(wide, self.data).items()}
            seen.append(found | {"norm": np.linalg.norm(flattened(state.params).astype(np.float64), axis=-1)})
            kept = state.params if number == range(len(looks))[keep] else kept
            tell()
        return Trained(kept, state.optimizer, {name: np.stack([each[name] for each in seen], -1) for name in seen[0]})

    def _compiled(self, complete: Callable[[Any], Policy]) -> Callable[..., State]:
        """A loop of steps, vmapped over seeds and formats; the step count and the keys are those of all formats."""
        inner = State(None, 0, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
        outer = inner._replace(key=None)  # pyright: ignore[reportArgumentType]

        def one(state: State, policy: Any, data: Any) -> State:
            return self._step(state, self._task.batch(batch_key(state), data), complete(policy))[0]

        seeds = jax.vmap(one, in_axes=(inner, None, 0), out_axes=inner)
        every = jax.vmap(seeds, in_axes=(outer, None if self._dtype else 0, None), out_axes=outer)

        @jax.jit
        def advance(state: State, policy: Any, data: Any, steps: Any) -> State:
            return jax.lax.fori_loop(0, steps, lambda _, now: every(now, policy, data), state)

        return advance


def flattened(params: Any) -> np.ndarray:
    """Leaves with two leading axes as one float32 array (., seeds, n)."""
    return np.concatenate([np.asarray(leaf, np.float32).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(params)], -1)


def unflatten(params: Any) -> Callable[[np.ndarray], Any]:
    """The way back, for any leading axes."""
    structure, shapes = jax.tree.structure(params), [leaf.shape[2:] for leaf in jax.tree.leaves(params)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def tree(values: np.ndarray) -> Any:
        pieces = zip(np.split(values, ends, axis=-1), shapes, strict=True)
        return jax.tree.unflatten(structure, [piece.reshape(*values.shape[:-1], *shape) for piece, shape in pieces])

    return tree
