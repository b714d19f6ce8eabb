"""Any JAX function, with every operation rounded.

`simulate` traces a function to its list of operations and makes it again with the result of each rounded to a format:

    simulate(f, BFLOAT16)                                       as if the hardware had bfloat16 alone
    simulate(jax.grad(f), BFLOAT16)                             the backward pass too
    jax.grad(simulate(f, BFLOAT16))                             the exact derivative at the rounded values (straight-through)
    simulate(f, Rules(FLOAT8_E4M3FN, scopes={"norm": FLOAT32})) layer norm in float32, the rest in e4m3fn
    simulate(f, None)                                           as written: each operation rounded to its own dtype

Hardware that has one format stores nothing else: the arguments and constants of the function are rounded as well
(`Rules(arguments=...)` exempts single ones), and an operation reads its operands in its own format. A cast is one rounding of
the exact number, from float64 and 64-bit integers too. Moves, comparisons, selections, minima and maxima are exact. Products of
matrices, convolutions and sums are what matrix units give: exact products, float32 partial sums, one rounding at the end;
`accumulation` chooses otherwise. A draw of `jax.random` is one operation. Complex numbers are pairs of real ones. Cholesky and
LU, triangular and tridiagonal solves, and Fourier transforms of powers of two are written out, with each of their operations
rounded; a rule that names their primitive rounds them as a whole, as other factorizations are anyway.

The carrier is float32 (float64 where the function itself uses it, or where `carrier` says so). Below 2^-126 the arithmetic of
most backends flushes float32 to zero: the subnormals of float32, bfloat16 and tfloat32, which lie there, need the float64
carrier. + - * / and the square root are correctly rounded in every mode; elementary functions are evaluated in the carrier and
rounded once.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

from precisionlab.arithmetic.frames import Arithmetic, Frame
from precisionlab.arithmetic.operations import operate
from precisionlab.arithmetic.policy import Policy
from precisionlab.arithmetic.programs.survey import program_of
from precisionlab.arithmetic.rules import Rules, check_mode_rules, check_rules, every_rule
from precisionlab.arithmetic.sums.accumulation import Accumulation, check_accumulation
from precisionlab.numerics.carriers import FLOAT32_CARRIER, carrier_of
from precisionlab.numerics.formats import Format
from precisionlab.numerics.modes import Mode, Stochastic, mode_name, nearest_even
from precisionlab.numerics.randomness import check_key, fold

__all__ = ["arithmetic_of", "check_function", "random_words", "simulate"]


def simulate(
    fun: Callable[..., Any],
    fmt_or_policy: Format | Rules | Policy | None,
    *,
    mode: Mode | Rules | Policy = nearest_even,
    accumulation: Accumulation | None = None,
    carrier: Any = None,
) -> Callable[..., Any]:
    """The function with every floating-point operation rounded.

    Works on any function that `jax.jit` could trace, and composes with jit, grad, vmap, scan and shard_map in either order.
    Formats may be traced numbers: many formats stacked under `jax.vmap` are one compilation.

    Args:
        fun: any function of arrays; other arguments (Python numbers, functions, strings) are closed over as they are.
        fmt_or_policy: a format for every operation; `Rules` by primitive and `jax.named_scope`; a `Policy`, whose `compute` it
            is; or None for the dtypes that the function names itself.
        mode: a rounding mode, or `Rules` of modes, or a `Policy` of them. Stochastic ones need `key=` in the call.
        accumulation: how terms are summed in products of matrices, convolutions, sums and running sums: see `Accumulation`.
        carrier: float64 to hold and compute all values in float64 (needs `jax.enable_x64`), at about twice the cost: elementary
            functions are then correctly rounded but for one case in 2^20 or so, and subnormals below 2^-126 are right.

    Returns:
        `simulated(*args, key=None, **kwargs)` with the results of `fun`, in the dtypes of `fun`.

    Raises:
        TypeError, ValueError: for what is no format, does not fit the carrier, or lacks a key.
        NotImplementedError: under `Rules(strict=True)`, for a primitive that cannot be looked into; before anything runs.

    Warns:
        ScopeWarning: for rules about scopes that do not occur.
        UnlistedWarning: for a primitive that cannot be looked into; its results alone are rounded.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT8_E4M3FN
        >>> f = lambda x: jnp.sum(x * x) / 3
        >>> float(f(jnp.array([1.1, 2.2]))), float(simulate(f, BFLOAT16)(jnp.array([1.1, 2.2])))
        (2.0166..., 2.015625)
        >>> float(jax.jit(simulate(jax.grad(lambda x: jnp.exp(x) * x), FLOAT8_E4M3FN))(1.5))
        12.0
    """
    check_function("simulate", fun)
    arithmetic = arithmetic_of("simulate", fmt_or_policy, mode, accumulation, carrier)

    @wraps(fun, assigned=("__doc__", "__name__", "__qualname__"), updated=())
    def simulated(*args: Any, key: Any = None, **kwargs: Any) -> Any:
        words, kwargs = random_words("simulate", arithmetic, key, kwargs)
        program = program_of("simulate", fun, args, kwargs, arithmetic)
        frame = Frame(arithmetic, operate, words=words, repeated=program.repeated)
        return program.finish(program.run(frame, program.arrays))

    return simulated


def check_function(where: str, fun: Any) -> None:
    """Raise unless it is a function.

    Raises:
        TypeError: with what to write instead.
    """
    if not callable(fun):
        raise TypeError(
            f"{where}: the first argument must be a function of arrays; got {type(fun).__name__}; pass the function itself, "
            f"and its arguments to what comes back: {where}(fun, fmt)(x)."
        )


def arithmetic_of(where: str, formats: Any, modes: Any, accumulation: Any, carrier: Any) -> Arithmetic:
    """The rules of a simulation, checked."""
    formats = formats.compute if isinstance(formats, Policy) else formats
    modes = modes.compute if isinstance(modes, Policy) else modes
    held = FLOAT32_CARRIER if carrier is None else carrier_of(carrier, where)
    if held.width == 64 and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise ValueError(f"{where}: the float64 carrier needs 64-bit JAX; call it inside `with jax.enable_x64(True):`.")
    if carrier is not None and held.width == 32:
        carrier = None
    check_rules(formats, where, held, wider="pass carrier=jnp.float64, inside `with jax.enable_x64(True):`")
    check_mode_rules(modes, where)
    if accumulation is not None:
        check_accumulation(accumulation, held, where)
    return Arithmetic(formats, modes, accumulation, None if carrier is None else held.dtype)


def random_words(where: str, arithmetic: Arithmetic, key: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The raw key for what is drawn, or None, and the arguments of the function, which has the key if nothing is drawn."""
    random = [mode for mode in every_rule(arithmetic.modes) if isinstance(mode, Stochastic)]
    if not random:
        return None, kwargs if key is None else {**kwargs, "key": key}
    if key is None:
        names = ", ".join(sorted({mode_name(mode) for mode in random}))
        raise ValueError(f"{where}: {names} rounding needs random bits; pass key=jax.random.key(seed) in the call.")
    return fold(check_key(key, where), 0), kwargs
