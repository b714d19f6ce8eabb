"""How much does a rounded matrix product cost?

`dot` of two 256 x 256 matrices on the bfloat16 grid, per multiply-add, with every product and partial sum rounded: by format,
mode, and order of the sums, against bfloat16 throughout in sequence; and, 64 x 64, beside gfloat and pychop, whose roundings
are applied in the same loop over the terms, jitted. MPTorch publishes 30 to 55 ns for such a multiply-add (not measured here).
Run with `python -m benchmarks.accumulating`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import precisionlab as pl
from benchmarks.harness import Claim, measure, report
from precisionlab.arithmetic.sums.accumulation import dot

SIZE, PEER_SIZE = 256, 64
BOUND = 0.5  # ns a multiply-add, bfloat16 in sequence on two cores


def matrices(size: int, on_grid: bool = True) -> tuple[Any, Any]:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    return (pl.round_to(left, pl.BFLOAT16), pl.round_to(right, pl.BFLOAT16)) if on_grid else (left, right)


def case(multiply: Any, accumulate: Any, *, size: int = SIZE, on_grid: bool = True, **options: Any) -> Callable[[], Any]:
    a, b = matrices(size, on_grid)
    key = jax.random.key(1)
    compiled = jax.jit(lambda a, b, key: dot(a, b, multiply=multiply, accumulate=accumulate, key=key, **options))
    return lambda: compiled(a, b, key)


def traced_case(fmt: Any) -> Callable[[], Any]:
    a, b = matrices(SIZE)
    compiled = jax.jit(lambda a, b, f: dot(a, b, multiply=f, accumulate=f))
    numbers = jax.tree.map(jnp.asarray, fmt)
    return lambda: compiled(a, b, numbers)


def peer_case(rounding: Callable[[Any], Any]) -> Callable[[], Any]:
    """The same sequence with somebody else's rounding."""
    a, b = matrices(PEER_SIZE)

    def product(a: Any, b: Any) -> Any:
        def step(sums: Any, term: Any) -> tuple[Any, None]:
            return rounding(sums + rounding(term[0][:, None] * term[1][None, :])), None

        return lax.scan(step, jnp.zeros((a.shape[0], b.shape[1]), a.dtype), (a.T, b))[0]

    compiled = jax.jit(product)
    return lambda: compiled(a, b)


def gfloat_case() -> Callable[[], Any]:
    import gfloat
    from gfloat import formats

    info = formats.format_info_bfloat16
    return peer_case(lambda x: gfloat.round_ndarray(info, x).astype(jnp.float32))  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def pychop_case() -> Callable[[], Any]:
    from pychop.jx.lightchop import LightChop_

    chop: Any = LightChop_(exp_bits=8, sig_bits=7, rmode=1)
    return peer_case(lambda x: jnp.asarray(chop.quantize(x) if hasattr(chop, "quantize") else chop(x)))


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    bf16, e4m3fn = pl.BFLOAT16, pl.FLOAT8_E4M3FN
    cases = {
        "float32 in sequence": case(pl.FLOAT32, None),
        "bfloat16": case(bf16, bf16),
        "float8_e4m3fn": case(e4m3fn, e4m3fn),
        "bfloat16, stochastic": case(bf16, bf16, mode=pl.stochastic),
        "bfloat16, upward": case(bf16, bf16, mode=pl.upward),
        "bfloat16, fused": case(None, bf16),
        "bfloat16, chunk=32": case(bf16, bf16, chunk=32),
        "bfloat16, pairwise": case(bf16, bf16, order="pairwise"),
        "bfloat16, compensated": case(bf16, bf16, compensated=True),
        "bfloat16, traced": traced_case(bf16),
        "bfloat16, float32 operands": case(bf16, bf16, on_grid=False),
        "bfloat16, fused, float32 operands": case(None, bf16, on_grid=False),
    }
    claims = [Claim(name, "bfloat16", None) for name in cases if name != "bfloat16"]
    times = measure(cases, repeats=9)
    met = report(f"dot, {SIZE} x {SIZE}", times, dict.fromkeys(times, SIZE**3 * 1e-9), "ns/multiply-add", claims)
    cost = float(np.median(times["bfloat16"])) / SIZE**3 * 1e9
    held = cost <= BOUND
    print(f"  bfloat16 in sequence: {cost:.3f} ns a multiply-add   {'met' if held else 'MISSED'}: at most {BOUND}")
    cases, claims = {"precisionlab": case(bf16, bf16, size=PEER_SIZE)}, []
    for peer, make in (("gfloat", gfloat_case), ("pychop", pychop_case)):
        try:
            cases[peer] = make()
            jax.block_until_ready(cases[peer]())
        except Exception as error:
            cases.pop(peer, None)
            print(f"  {peer} cannot be measured here: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        claims.append(Claim(peer, "precisionlab", 5.0, at_least=True))
    times = measure(cases, repeats=9)
    title = f"dot beside its peers, {PEER_SIZE} x {PEER_SIZE}, bfloat16"
    beside = report(title, times, dict.fromkeys(times, PEER_SIZE**3 * 1e-9), "ns/multiply-add", claims)
    return met and held and beside


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
