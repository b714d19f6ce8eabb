"""What does it cost to round every operation?

The loss and gradient of a small transformer (2 layers, width 128, 16 x 64 tokens), every operation rounded, against the same
step in native float32; and the time from the function to the compiled program (tracing, lowering, compiling), each in the same
run; and that of six equal layers, each a jitted function. Run with `python -m benchmarks.simulating`.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import precisionlab as pl
from benchmarks.harness import Claim, measure, report

COMPILATIONS, REPEATS = 5, 25


def cases() -> dict[str, tuple[Callable[[], Any], tuple[Any, ...]]]:
    """By name: what makes the jitted function anew, and its arguments."""
    problem = pl.problems.text(context=64, width=128, heads=4, layers=2, batch_size=16)
    step = jax.value_and_grad(problem.loss)
    data = (problem.init(jax.random.key(0)), problem.batch(jax.random.key(1)))
    traced = jax.tree.map(jnp.asarray, pl.BFLOAT16)

    def simulated(fmt: pl.Format) -> Callable[[], Any]:
        return lambda: jax.jit(pl.simulate(step, fmt))

    def stochastic() -> Any:
        random = pl.simulate(step, pl.BFLOAT16, mode=pl.stochastic)
        return jax.jit(lambda params, batch, key: random(params, batch, key=key))

    return {
        "native float32": (lambda: jax.jit(lambda params, batch: step(params, batch)), data),
        "bfloat16": (simulated(pl.BFLOAT16), data),
        "float8_e4m3fn": (simulated(pl.FLOAT8_E4M3FN), data),
        "float32": (simulated(pl.FLOAT32), data),
        "bfloat16 stochastic": (stochastic, (*data, jax.random.key(2))),
        "bfloat16 traced": (lambda: jax.jit(lambda params, batch, fmt: pl.simulate(step, fmt)(params, batch)), (*data, traced)),
    }


def layers() -> dict[str, tuple[Callable[[], Any], tuple[Any, ...]]]:
    """The same for loss and gradient of six equal layers, each a jitted function."""

    @jax.jit
    def layer(x: Any, w: Any) -> Any:
        hidden = jnp.tanh(x @ w)
        hidden = hidden / jnp.sqrt(1e-3 + jnp.mean(hidden * hidden, axis=-1, keepdims=True))
        return x + hidden * jax.nn.sigmoid(hidden) * 1.7

    def loss(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = layer(x, weight)
        return jnp.mean(x * x)

    step = jax.value_and_grad(loss)
    data = (list(jax.random.normal(jax.random.key(0), (6, 64, 64)) / 8), jax.random.normal(jax.random.key(1), (32, 64)))
    return {
        "layers, native float32": (lambda: jax.jit(lambda w, x: step(w, x)), data),
        "layers, bfloat16": (lambda: jax.jit(pl.simulate(step, pl.BFLOAT16)), data),
    }


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    compiled, seconds = {}, {}
    for _ in range(COMPILATIONS):
        for name, (make, arguments) in (cases() | layers()).items():
            jax.clear_caches()
            begin = time.perf_counter()
            compiled[name] = (make().lower(*arguments).compile(), arguments)
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
    run = {
        name: (lambda program=program, arguments=arguments: program(*arguments))
        for name, (program, arguments) in compiled.items()
        if not name.startswith("layers")
    }
    times = measure(run, REPEATS)
    bounds = {"bfloat16": 1.05, "float8_e4m3fn": 1.15, "float32": None, "bfloat16 stochastic": 1.15, "bfloat16 traced": 1.3}
    programs = {"bfloat16": 1.8, "float8_e4m3fn": 1.8, "float32": None, "bfloat16 stochastic": 2.5, "bfloat16 traced": 2.5}
    claims = [Claim(name, "native float32", bound) for name, bound in bounds.items()]
    met = report("value_and_grad of a transformer", times, dict.fromkeys(times, 1e-3), "ms", claims)
    compile_claims = [Claim(name, "native float32", bound) for name, bound in programs.items()]
    compile_claims.append(Claim("layers, bfloat16", "layers, native float32", 1.8))
    return report("from function to program", seconds, dict.fromkeys(seconds, 1.0), "s", compile_claims) and met


if __name__ == "__main__":
    main()
