"""How many training steps of how many configurations in a second?

`sweep` on digits: 64-32-10, batch 32, Adam, eight formats by eight seeds, nearest_even, in one compiled program; without
looking, counting all fates in every step, and with the whole record. The peer is the same training under `jax.vmap` written by
hand, without formats and without looking. Run with `python -m benchmarks.sweeping`.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import optax

import precisionlab as pl
from benchmarks.harness import Claim, measure, report
from precisionlab.problems import digits

STEPS = 200
NAMES = ("float32", "tfloat32", "bfloat16", "float16", "float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
SEEDS = 8


def swept(every: int, detail: bool) -> Callable[[], Any]:
    """A case that advances all configurations by one chunk."""
    problem, optimizer = digits(), optax.adam(1e-3)
    step = pl.make_step(problem.loss, optimizer, every=every, detail=detail)
    chunks = pl.sweep_chunks(
        step,
        lambda key, policy: pl.start(problem.init(key), optimizer, policy, key=key),
        problem.batch,
        [pl.Policy(weights=pl.FORMATS[name]) for name in NAMES],
        range(SEEDS),
        steps=10**9,
        chunk=STEPS,
    )
    return lambda: next(chunks)[1].loss


def by_hand() -> Callable[[], Any]:
    """The same training without precisionlab."""
    problem, optimizer = digits(), optax.adam(1e-3)

    def one(carry: Any, key: Any) -> tuple[Any, Any]:
        params, state = carry
        value, gradient = jax.value_and_grad(problem.loss)(params, problem.batch(key))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def advance(carry: Any, keys: Any) -> Any:
        return jax.lax.scan(lambda now, key: jax.vmap(one)(now, key), carry, keys)

    compiled = jax.jit(advance, donate_argnums=0)
    params = jax.vmap(problem.init)(jax.random.split(jax.random.key(0), len(NAMES) * SEEDS))
    keys = jax.random.split(jax.random.key(1), (STEPS, len(NAMES) * SEEDS))
    held = [(params, jax.vmap(optimizer.init)(params))]

    def call() -> Any:
        held[0], losses = compiled(held[0], keys)
        return losses

    return call


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    cases = {
        "by hand, float32, not looking": by_hand(),
        "sweep, not looking": swept(10**9, False),
        "sweep, fates in every step": swept(1, False),
        "sweep, fates in one step of ten": swept(10, False),
        "sweep, whole record in one step of ten": swept(10, True),
        "sweep, whole record in every step": swept(1, True),
    }
    times = measure(cases, repeats=9)
    configurations = len(NAMES) * SEEDS * STEPS
    claims = [Claim(name, "by hand, float32, not looking", None) for name in cases if name.startswith("sweep")]
    met = report(
        "sweep on digits, 64 configurations",
        times,
        dict.fromkeys(times, configurations * 1e-6),
        "us/configuration-step",
        claims,
    )
    for name, values in times.items():
        rate = configurations / statistics.median(values)
        verdict = (
            ""
            if not name.startswith("sweep, fates in every")
            else f"   {'met' if rate >= 150_000 else 'MISSED'}: at least 150,000"
        )
        print(f"  {name}: {rate:,.0f} configuration-steps a second{verdict}")
    return met


if __name__ == "__main__":
    main()
