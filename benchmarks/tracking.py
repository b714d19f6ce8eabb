"""What does watching cost?

A whole Adam step (loss, gradient, update) of a multilayer perceptron 64-width-width-10, batch 64, as it is and wrapped in
`track`: the counts of all fates in every step, the whole record (masses, descent quality, histogram) in every step, and in one
step of ten. Run with `python -m benchmarks.tracking`.
"""

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


def training(optimizer: optax.GradientTransformation, width: int) -> Callable[[], Any]:
    """A case that makes ten steps, one dispatch each, in place."""
    params = mlp_init(jax.random.key(0), (64, width, width, 10))
    images, labels = jax.random.uniform(jax.random.key(1), (64, 64)), jax.random.randint(jax.random.key(2), (64,), 0, 10)

    def loss(weights: Any) -> Any:
        return cross_entropy(mlp_apply(weights, images), labels)

    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [(params, optimizer.init(params))]

    def call() -> Any:
        for _ in range(STEPS):
            held[0] = jax.block_until_ready(compiled(*held[0]))
        return jnp.zeros(())

    return call


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    met = True
    for width in WIDTHS:
        adam = optax.adam(1e-3)
        cases = {
            "untracked": training(adam, width),
            "fates, every step": training(pl.optimizers.track(adam, detail=False), width),
            "whole record, every step": training(pl.optimizers.track(adam), width),
            "fates, one in ten": training(pl.optimizers.track(adam, every=10, detail=False), width),
            "whole record, one in ten": training(pl.optimizers.track(adam, every=10), width),
        }
        claims = [
            Claim("fates, every step", "untracked", 1.4 if width < 256 else 1.2),
            Claim("whole record, every step", "untracked", 1.5),
            Claim("fates, one in ten", "untracked", 1.05),
            Claim("whole record, one in ten", "untracked", 1.05),
        ]
        times = measure(cases, repeats=15 if width >= 512 else 31)
        met &= report(f"tracked Adam, width {width}", times, dict.fromkeys(times, STEPS * 1e-3), "ms/step", claims)
    return met


if __name__ == "__main__":
    main()
