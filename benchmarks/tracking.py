"""What does watching cost?

A whole Adam step (loss, gradient, update), as it is and wrapped in `track`: perceptrons 64-width-width-10 at batch 64,
and a byte-level transformer (2 layers, width 128, 16 x 64 tokens). The counts of all fates in every step, the whole record
(masses, descent quality, histogram) in every step and in one step of ten, and what three other formats would lose. Before it,
the time from AdamW's update of 300 leaves to its compiled program. Run with `python -m benchmarks.tracking`.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import precisionlab as pl
from benchmarks.harness import Claim, measure, report
from precisionlab.problems import cross_entropy, mlp_apply, mlp_init

WIDTHS = (64, 256, 512, 1024)
STEPS = 10
"""Steps in one timed call: a multiple of ten, so that one read in ten is counted whole."""

FORMATS = [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN]


def perceptron(width: int) -> tuple[Any, Callable[[Any], Any]]:
    """Parameters and their loss."""
    images, labels = jax.random.uniform(jax.random.key(1), (64, 64)), jax.random.randint(jax.random.key(2), (64,), 0, 10)
    params = mlp_init(jax.random.key(0), (64, width, width, 10))
    return params, lambda weights: cross_entropy(mlp_apply(weights, images), labels)


def transformer() -> tuple[Any, Callable[[Any], Any]]:
    """Parameters and their loss."""
    problem = pl.problems.text(context=64, width=128, heads=4, layers=2, batch_size=16)
    batch = problem.batch(jax.random.key(1))
    return problem.init(jax.random.key(0)), lambda weights: problem.loss(weights, batch)


def training(optimizer: optax.GradientTransformation, model: tuple[Any, Callable[[Any], Any]]) -> Callable[[], Any]:
    """A case that makes ten steps, one dispatch each, in place."""
    params, loss = model

    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [(jax.tree.map(jnp.copy, params), optimizer.init(params))]

    def call() -> Any:
        for _ in range(STEPS):
            held[0] = jax.block_until_ready(compiled(*held[0]))
        return jnp.zeros(())

    return call


def compiling() -> bool:
    """Tracing, lowering and compiling the update of a model of a hundred blocks, as it is and tracked."""
    block = {"kernel": jnp.ones((64, 64), jnp.bfloat16), "bias": jnp.ones(64, jnp.bfloat16), "norm": jnp.ones(64)}
    params = {f"block_{number}": block for number in range(100)}
    adamw = optax.adamw(1e-3)
    optimizers = {"untracked": adamw, "whole record": pl.optimizers.track(adamw)}
    given = {name: (params, optimizer.init(params), params) for name, optimizer in optimizers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(3):
        for name, optimizer in optimizers.items():
            jax.clear_caches()
            begin = time.perf_counter()
            jax.jit(optimizer.update).lower(*given[name]).compile()
            seconds[name].append(time.perf_counter() - begin)
    claims = [Claim("whole record", "untracked", 5.0)]
    return report("from AdamW of 300 leaves to program", seconds, dict.fromkeys(seconds, 1.0), "s", claims)


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    adam, track = optax.adam(1e-3), pl.optimizers.track
    met = compiling()
    models = {f"width {width}": perceptron(width) for width in WIDTHS} | {"transformer": transformer()}
    for name, model in models.items():
        tracked = {
            "fates, every step": (track(adam, detail=False), 1.4 if name == "width 64" else 1.2),
            "whole record, every step": (track(adam), 1.2),
            "fates, one in ten": (track(adam, every=10, detail=False), 1.05),
            "whole record, one in ten": (track(adam, every=10), 1.05),
            "fates in three formats, every step": (track(adam, FORMATS, detail=False), None),
            "fates in three formats, one in ten": (track(adam, FORMATS, every=10, detail=False), 1.4),
            "whole record in three formats, one in ten": (track(adam, FORMATS, every=10), 1.4),
        }
        cases = {"untracked": training(adam, model)}
        cases |= {case: training(optimizer, model) for case, (optimizer, _) in tracked.items()}
        claims = [Claim(case, "untracked", bound) for case, (_, bound) in tracked.items()]
        times = measure(cases, repeats=31 if name in ("width 64", "width 256") else 9)
        met &= report(f"tracked Adam, {name}", times, dict.fromkeys(times, STEPS * 1e-3), "ms/step", claims)
    return met


if __name__ == "__main__":
    main()
