"""What this backend does to numbers, and what precisionlab does about it, in sentences.

Most answers are information, and `ok` whatever they are: precisionlab is built not to depend on them. A check fails
only if precisionlab's own rounding is not exact or the compiler computes wrong numbers (`canaries`), unless these are of a
kind that precisionlab does not compute: then it says who has to mind, and how.
"""

from importlib.metadata import version
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np

from precisionlab.backend import canaries, native
from precisionlab.backend import facts as backend
from precisionlab.numerics.formats import FORMATS
from precisionlab.numerics.rounding import round_to

__all__ = ["Check", "run_checks"]

INTEGERS = "precisionlab rounds with integer operations on the bits of a float32 or float64 carrier"


class Check(NamedTuple):
    """One question put to the backend.

    Attributes:
        name: a short name.
        question: what was asked.
        found: the answer, with the numbers measured.
        ok: False only where results cannot be trusted.
        remedy: what precisionlab does about it, or what to do.
    """

    name: str
    question: str
    found: str
    ok: bool
    remedy: str


def run_checks() -> tuple[Check, ...]:
    """Every check, on JAX's default backend; some ten seconds, most of them compilation.

    JAX's global configuration is left as it is. One check starts a second Python process, because it may crash.

    Example:
        >>> [check.name for check in run_checks() if not check.ok]
        []
    """
    return (*_facts(), _native(), _own_rounding(), _rows(), _products(), _crash())


def _facts() -> tuple[Check, ...]:
    n = backend.SAMPLES

    def yes(count: int) -> str:
        return f"{'yes' if count else 'no'}: {count:,} of {n:,} entries"

    elided, dropped = backend.elided_products(), backend.elided_round_trips()
    seen, true = backend.stagnation_seen()
    fused, folded = backend.contracted_products(), backend.folded_constants()
    wrong, zeros = backend.reduce_precision_errors()
    arithmetic = "; ".join(
        f"{name}: x + x is {'flushed to 0' if flushed else 'kept'}, x == 0 is {equal}"
        for name, (flushed, equal) in backend.subnormal_arithmetic().items()
    )
    casts = "; ".join(
        f"{name} {'flushes them to 0' if flushed else 'keeps them'}" for name, flushed in backend.flushed_casts().items()
    )
    return (
        Check(
            "elided rounding of a product",
            "Does jit skip the rounding of a bfloat16 product that is then widened to float32?",
            f"{yes(elided)} differ from the rounded product.",
            True,
            f"A cast is not a rounding: {INTEGERS}, which leaves nothing to skip.",
        ),
        Check(
            "elided round trip",
            "Does jit drop the pair of casts float32 -> bfloat16 -> float32?",
            f"{yes(dropped)} differ from the rounded value.",
            True,
            f"{INTEGERS}, not with a pair of casts, which other backends may drop (openxla/xla#41605).",
        ),
        Check(
            "stagnation seen by subtraction",
            "Does f32(p + u) - f32(p) under jit show which bfloat16 parameters an update leaves unchanged?",
            f"{'yes' if seen == true else 'no'}: it shows {seen:,} of the {true:,} unchanged parameters.",
            True,
            "precisionlab compares the bits that were stored before and after, never a difference of floats.",
        ),
        Check(
            "subnormals in arithmetic and comparisons",
            "Is a subnormal x flushed to zero, and does it compare equal to zero?",
            f"{arithmetic}.",
            True,
            f"Nothing is decided by comparing floats: {INTEGERS}, which know no flushing.",
        ),
        Check(
            "subnormals in casts",
            "Do casts keep numbers that are subnormal on one side?",
            f"{casts}.",
            True,
            f"{INTEGERS}, not with casts.",
        ),
        Check(
            "fused multiply-add",
            "Does jit contract a * b + c in float32 into one operation with a single rounding?",
            f"{yes(fused)} ({fused / n:.1%}) differ from a product and a sum rounded one after the other.",
            True,
            "A product that precisionlab rounds with integers before the sum cannot be fused into it.",
        ),
        Check(
            "folded constants",
            "Does jit simplify (|x| + C) - C, the usual trick for rounding with float operations, to |x|?",
            f"{yes(folded)} are not rounded, with C = 2^16.",
            True,
            f"{INTEGERS}, which no algebra of reals simplifies.",
        ),
        Check(
            "lax.reduce_precision",
            "Does lax.reduce_precision(x, 5, 10) round to float16, subnormals included?",
            f"{'no' if wrong else 'yes'}: {wrong:,} of 65,536 bfloat16 patterns come out wrong, {zeros:,} as zero.",
            True,
            f"{INTEGERS}, and keeps subnormals; lax.reduce_precision is used only with the exponents of float32 or float64.",
        ),
    )


def _native() -> Check:
    asked = [
        (name, dtype) for dtype in ("bfloat16", "float16") for name in ("a * b + c", "a / 3", "sum of 256", "softmax of 256")
    ]
    shares = {pair: native.compare_one(*pair) for pair in asked}
    facts = [f"{name} in {dtype}: {found.refused or f'{found.share:.1%}'}" for (name, dtype), found in shares.items()]
    return Check(
        "native arithmetic",
        "In how many results does native arithmetic under jit differ from every operation rounded to its dtype?",
        f"{'; '.join(facts)}.",
        True,
        "precisionlab.simulate rounds every operation; `python -m precisionlab.backend.native` prints the whole comparison.",
    )


def _own_rounding() -> Check:
    x = backend.bfloat16_patterns()
    wrong = {}
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        with np.errstate(all="ignore"):
            expected = x.astype(dtype).astype(np.float32)
        wrong[name] = backend.different(backend.jitted(lambda x, fmt=FORMATS[name]: round_to(x, fmt), x), expected)
    total = sum(wrong.values())
    counts = ", ".join(f"{count:,} to {name}" for name, count in wrong.items())
    return Check(
        "precisionlab's rounding",
        "Does round_to under jit agree bit for bit with the casts of ml_dtypes and numpy?",
        f"{'no' if total else 'yes'}: of {x.size:,} bfloat16 patterns, rounded wrong are {counts}.",
        total == 0,
        f"Do not trust results here; report this with {_versions()}." if total else "Nothing to do.",
    )


def _rows() -> Check:
    cases = ((np.float64, 16_385), (np.float32, 32_769))
    counts = [canaries.wrong_rows(dtype, rows) for dtype, rows in cases]
    facts = [
        f"{count:,} of {rows:,} {dtype.__name__} rows are wrong" for count, (dtype, rows) in zip(counts, cases, strict=True)
    ]
    return _canary(
        "wrong_rows",
        "miscompiled rows",
        "Is a vmapped matrix-vector product followed by a reduction right?",
        not any(counts),
        "; ".join(facts),
    )


def _products() -> Check:
    name, question = "miscompiled sums", "Is a batched product with a constant matrix, multiplied and summed, right?"
    counts, guarded = (
        {dtype.__name__: canaries.wrong_products(dtype, guard) for dtype in (np.float64, np.float32)} for guard in (False, True)
    )
    found = "; ".join(f"{count} of 300 {name} sums are wrong" for name, count in counts.items())
    if not any(counts.values()) or any(guarded.values()):
        return _canary("wrong_products", name, question, not any(counts.values()), found)
    # Wrong, but where it is known and has a way around it, and nowhere in what precisionlab computes.
    return Check(
        name,
        question,
        f"no: {found}; behind jax.lax.optimization_barrier none is.",
        True,
        f"precisionlab computes nothing this way. If your own program multiplies by a matrix that holds one number throughout "
        f"(ones, zeros, full) and reduces the result, pass that matrix as an argument or through "
        f"jax.lax.optimization_barrier; with {_versions()} that program is wrong: {canaries.BAD_VERSIONS['wrong_products']}.",
    )


def _crash() -> Check:
    name, question = "crash in reductions", "Does a process that reduces arrays of rank 7 and 8 on the CPU survive?"
    try:
        happened = canaries.crash()
    except OSError as error:
        known = f"not tried: a second Python process could not be started ({error})."
        return Check(name, question, known, True, f"Mind the version: {canaries.BAD_VERSIONS['crash']}.")
    return _canary("crash", name, question, happened is None, happened or "it ended with the right result")


def _canary(key: str, name: str, question: str, good: bool, found: str) -> Check:
    known = canaries.BAD_VERSIONS[key]
    remedy = f"Nothing to do with {_versions()}; {known}." if good else f"Do not use {_versions()}: {known}."
    return Check(name, question, f"{'yes' if good else 'no'}: {found}.", good, remedy)


def _versions() -> str:
    return f"jax {jax.__version__}, jaxlib {version('jaxlib')}"
