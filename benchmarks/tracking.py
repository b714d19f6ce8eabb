"""What does watching cost?

A whole Adam step (loss, gradient, update), as it is and wrapped in `track`: perceptrons 64-width-width-10 at batch 64, and a
byte-level transformer of 6 layers (65 leaves; with `--device` one of width 512, 32 x 64 tokens, alone). The counts of all
fates, the whole record (masses, descent quality, histogram), and what three other formats would lose; in every step, in one of
ten, in one of a hundred; one dispatch a step, and in a scan. Run with `python -m benchmarks.tracking`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import precisionlab as pl
from benchmarks.harness import Claim, measure, report
from benchmarks.models import Model, perceptron, transformer

FORMATS = [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN]


def training(optimizer: Any, model: Model, steps: int, *, scanned: bool = False, observe: Any = None) -> Callable[[], Any]:
    """A case that makes some steps in place: one dispatch each, or all in one."""
    params, loss = model

    def step(weights: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    def many(weights: Any, state: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda held, _: (step(*held), None), (weights, state), length=steps)[0]

    compiled = jax.jit(many if scanned else step, donate_argnums=(0, 1))
    held = [(jax.tree.map(jnp.copy, params), optimizer.init(params))]
    if observe is not None:
        gradients = jax.jit(jax.grad(loss))(params)
        observe(held[0][0], gradients, held[0][1])

    def call() -> Any:
        for _ in range(1 if scanned else steps):
            held[0] = jax.block_until_ready(compiled(*held[0]))
        return jnp.zeros(())

    return call


def compared(
    name: str, model: Model, cases: Mapping[str, tuple[Any, float | None]], steps: int, repeats: int, **how: Any
) -> bool:
    """Steps with each optimizer against those of Adam alone."""
    adam = optax.adam(1e-3)
    runs = {"untracked": training(adam, model, steps, **how)}
    for case, (optimizer, _) in cases.items():
        observe = pl.optimizers.observer(adam) if optimizer is None else None
        runs[case] = training(adam if optimizer is None else optimizer, model, steps, observe=observe, **how)
    times = measure(runs, repeats=repeats)
    claims = [Claim(case, "untracked", bound) for case, (_, bound) in cases.items()]
    return report(f"tracked Adam, {name}", times, dict.fromkeys(times, steps * 1e-3), "ms/step", claims)


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    adam, track = optax.adam(1e-3), pl.optimizers.track
    met = []
    small = [("width 64", perceptron(64), None, None, 31), ("width 256", perceptron(256), None, None, 31)]
    models = [*small, ("width 1024", perceptron(1024), 1.25, 1.05, 9), ("transformer", transformer(6), 1.1, 1.02, 9)]
    if "--device" in sys.argv:
        sys.argv.remove("--device")
        models = [("transformer of width 512", transformer(6, 512, 32), 1.15, 1.03, 9)]
    for name, model, each, tenth, repeats in models:
        cases = {
            "fates, every step": (track(adam, detail=False), each),
            "whole record, every step": (track(adam), each),
            "fates, one in ten": (track(adam, every=10, detail=False), tenth),
            "whole record, one in ten": (track(adam, every=10), tenth),
            "three formats, one in ten": (track(adam, FORMATS, every=10), 1.05 if name.startswith("transformer") else None),
            "between two looks of an observer": (None, 1.01),
        }
        met.append(compared(name, model, cases, 10, repeats))
        if repeats < 10:
            scanned = {case: cases[case] for case in ("whole record, every step", "whole record, one in ten")}
            met.append(compared(f"{name}, in a scan", model, scanned, 10, repeats, scanned=True))
            rare = {"whole record, one in a hundred": (track(adam, every=100), 1.01)}
            met.append(compared(f"{name}, seldom", model, rare, 100, 5))
    return all(met)


if __name__ == "__main__":
    main()
