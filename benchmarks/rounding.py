"""How much does a rounding cost?

2^24 float32 values, rounded in place (donated), against the floor of any elementwise pass, an in-place `x + 1`; formats as
constants and as traced numbers; beside gfloat and pychop, both jitted. Block formats against the rounding of their elements
alone. Run with `python -m benchmarks.rounding`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import precisionlab as pl
from benchmarks.harness import Claim, measure, report

SIZE, PEER_SIZE = 1 << 24, 1 << 22


def in_place(function: Callable[..., Any], *arguments: Any, size: int = SIZE) -> Callable[[], Any]:
    """A case that applies a jitted function to its own donated result, so that no call allocates."""
    compiled = jax.jit(function, donate_argnums=0)
    held = [jax.random.normal(jax.random.key(0), (size,))]

    def call() -> Any:
        held[0] = compiled(held[0], *arguments)
        return held[0]

    return call


def gfloat_case(name: str) -> Callable[[], Any]:
    import gfloat
    from gfloat import formats

    info = {"bfloat16": formats.format_info_bfloat16, "float8_e4m3fn": formats.format_info_ocp_e4m3}[name]
    return in_place(lambda x: gfloat.round_ndarray(info, x).astype(jnp.float32), size=PEER_SIZE)  # pyright: ignore[reportArgumentType]


def pychop_case(name: str) -> Callable[[], Any]:
    from pychop.jx.lightchop import LightChop_

    fmt = pl.FORMATS[name]
    exponent_bits = {"bfloat16": 8, "float8_e4m3fn": 4}[name]
    chop = LightChop_(exp_bits=exponent_bits, sig_bits=fmt.precision - 1, rmode=1)
    return in_place(lambda x: jnp.asarray(chop.quantize(x) if hasattr(chop, "quantize") else chop(x)), size=PEER_SIZE)


def main() -> bool:
    """Measure, print, and say whether every claim was met."""
    key = jax.random.key(1)
    cases: dict[str, Callable[[], Any]] = {"x + 1": in_place(lambda x: x + 1)}
    claims = []
    for name, nearest, random in (("bfloat16", 1.5, 2.0), ("float8_e4m3fn", 2.0, 3.0)):
        fmt = pl.FORMATS[name]
        traced = jax.tree.map(jnp.asarray, fmt)
        cases[f"{name} nearest_even"] = in_place(lambda x, fmt=fmt: pl.round_to(x, fmt))
        cases[f"{name} nearest_even traced"] = in_place(lambda x, f: pl.round_to(x, f), traced)
        cases[f"{name} stochastic"] = in_place(lambda x, k, fmt=fmt: pl.round_to(x, fmt, pl.stochastic, key=k), key)
        claims += [
            Claim(f"{name} nearest_even", "x + 1", nearest),
            Claim(f"{name} stochastic", "x + 1", random),
            Claim(f"{name} nearest_even traced", f"{name} nearest_even", 1.05),
        ]
    threefry = pl.Stochastic(generator=jax.random.bits)
    cases["bfloat16 stochastic, threefry"] = in_place(lambda x, k: pl.round_to(x, pl.BFLOAT16, threefry, key=k), key)
    claims.append(Claim("bfloat16 stochastic, threefry", "bfloat16 stochastic", None))
    times = measure(cases, repeats=15)
    met = report("round_to, 2^24 float32 in place", times, dict.fromkeys(times, SIZE * 1e-9), "ns/element", claims)
    del cases
    cases, claims = {}, []
    for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp4", "nvfp4"):
        blocks = pl.BLOCK_FORMATS[name]
        cases[f"elements of {name}"] = in_place(lambda x, fmt=pl.saturating(blocks.element): pl.round_to(x, fmt))
        cases[name] = in_place(lambda x, blocks=blocks: pl.round_blocks(x, blocks))
        claims.append(Claim(name, f"elements of {name}", 1.5))
    times = measure(cases, repeats=15)
    met &= report("round_blocks, 2^24 float32 in place", times, dict.fromkeys(times, SIZE * 1e-9), "ns/element", claims)
    del cases
    cases, claims = {}, []
    for name in ("bfloat16", "float8_e4m3fn"):
        cases[f"{name} precisionlab"] = in_place(lambda x, fmt=pl.FORMATS[name]: pl.round_to(x, fmt), size=PEER_SIZE)
        for peer, make in (("gfloat", gfloat_case), ("pychop", pychop_case)):
            try:
                case = make(name)
                jax.block_until_ready(case())
            except Exception as error:
                print(f"  {peer} cannot be measured here for {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            cases[f"{name} {peer}"] = case
            claims.append(Claim(f"{name} {peer}", f"{name} precisionlab", 10.0, at_least=True))
    times = measure(cases, repeats=9)
    return (
        report(
            "round_to beside its peers, 2^22 float32 in place",
            times,
            dict.fromkeys(times, PEER_SIZE * 1e-9),
            "ns/element",
            claims,
        )
        and met
    )


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
