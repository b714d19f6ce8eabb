"""The law of vanishing margins: against step-by-step exact rounding, against every float, and against what people call."""

import math
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import precisionlab as pl
from precisionlab.experiments.manifold.vanishing import LOSSES
from precisionlab.stagnation.margins import FORMS, INTEGER_LABELS, LOG_SOFTMAX, NAIVE, SOFTPLUS, Margins, vanishing_margins
from tests.oracle import round_exact

# --- every operation rounded, one after the other, in rationals: the definition and not the derivation ---

_EXACTLY = Context(prec=60)
BINARY = ("naive", "log1p", "softplus", "sigmoid")


def elementary(name: str, x: Fraction) -> Fraction:
    return Fraction(getattr(_EXACTLY, name)(_EXACTLY.divide(Decimal(x.numerator), Decimal(x.denominator))))


def computed(name: str, fmt: Any, m: Fraction, others: int = 1, share: Fraction = Fraction(1)) -> tuple[bool, bool, bool]:
    """Whether loss, label's and others' gradient are zero, with each result rounded to the format."""

    def rnd(x: Fraction) -> Fraction:
        return Fraction(round_exact(x, fmt, "nearest_even"))

    e = rnd(elementary("exp", -m))
    if name in ("softplus", "sigmoid", "log1p"):
        loss = rnd(elementary("ln", 1 + e))
        slope = rnd(rnd(1 / rnd(1 + e)) * e) if name == "log1p" else rnd(elementary("exp", -rnd(m + loss)))
        return loss == 0, slope == 0, slope == 0
    s = rnd(1 + others * e)
    log = rnd(elementary("ln", s))
    r = rnd(1 / s)
    other = rnd(r * e) == 0
    if name == "naive":
        return log == 0, other, other
    z = share * m
    return (rnd(log + z) == z if name == "integer_labels" else log == 0), rnd(r - 1) == 0, other


def positive_values(fmt: Any, low: float, high: float) -> list[Fraction]:
    grid, values = Fraction(2) ** (int(fmt.emin) - int(fmt.precision) + 1), []
    value = Fraction(low)
    while value <= high:
        values.append(value)
        exponent = max(math.frexp(float(value))[1] - 1, int(fmt.emin))
        value += max(Fraction(2) ** (exponent - int(fmt.precision) + 1), grid)
    return values


SMALL = {
    "e4m3": pl.FLOAT8_E4M3,
    "e5m2": pl.FLOAT8_E5M2,
    "e3m4": pl.FLOAT8_E3M4,
    "e2m3": pl.FLOAT6_E2M3FN,
    "p4": pl.ieee_format(6, 3),
    "p6": pl.ieee_format(5, 5),
    "fixed": pl.fixed_point(4, 4),
    "fixed fine": pl.fixed_point(4, 6),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "fixed fine")) for n in SMALL])
def test_law_is_what_rounding_every_operation_gives(name: str) -> None:
    fmt = SMALL[name]
    values = positive_values(fmt, 0.25, min(float(fmt.largest), 14.0 if fmt.precision > 7 else 48.0))
    for form in FORMS:
        for others, share in ((1, 1.0), (1, 0.5), (1, 0.0), (3, 1.0), (4, 0.0), (9, 0.5)):
            if others > 1 and (form in BINARY or (others == 9 and name in ("e2m3", "fixed"))):
                continue
            zero = [computed(form, fmt, m, others, Fraction(share)) for m in values]
            law = vanishing_margins(fmt, FORMS[form], others=others, label_share=share)
            for part, predicted in enumerate(law):
                first = next((float(m) for m, parts in zip(values, zero, strict=True) if parts[part]), math.inf)
                assert predicted == first, (form, others, share, Margins._fields[part])


def test_each_bit_moves_every_margin_by_log_two() -> None:
    for form in FORMS.values():
        for part in range(3):
            margins = [vanishing_margins(pl.ieee_format(8, p - 1), form)[part] for p in range(20, 51)]
            slope = np.polyfit(range(20, 51), margins, 1)[0]
            absorbed = form is INTEGER_LABELS and part == 0  # also steps down where its logit enters a binade
            assert slope == pytest.approx(math.log(2), abs=0.05 if absorbed else 1e-5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="float8_e8m0fnu does not"):
        vanishing_margins(pl.FLOAT8_E8M0FNU, NAIVE)
    with pytest.raises(ValueError, match="a quarter from 1 or closer"):
        vanishing_margins(pl.FLOAT4_E2M1FN, NAIVE)
    with pytest.raises(ValueError, match=r"label_share must be 1, 0\.5 or 0"):
        vanishing_margins(pl.BFLOAT16, NAIVE, label_share=0.3)
    with pytest.raises(ValueError, match="others must be a whole number of at least 1; got 0"):
        vanishing_margins(pl.BFLOAT16, NAIVE, others=0)
    with pytest.raises(ValueError, match="with 9 others the probabilities themselves"):
        vanishing_margins(pl.FLOAT6_E2M3FN, LOG_SOFTMAX, others=9)
    with pytest.raises(TypeError, match="form must be one of"):
        vanishing_margins(pl.BFLOAT16, "softplus")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="fmt must be a Format"):
        vanishing_margins("bfloat16", NAIVE)  # pyright: ignore[reportArgumentType]


def test_a_format_that_ends_before_the_margin_has_none() -> None:
    short = pl.Format(8, -126, 4.0, math.inf)
    assert vanishing_margins(short, LOG_SOFTMAX) == (math.inf, math.inf, math.inf)
    assert vanishing_margins(short, SOFTPLUS) == (math.inf, math.inf, math.inf)


# --- what people call, natively ---

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


def margins_between(dtype: Any, low: float, high: float) -> np.ndarray:
    word = np.dtype(f"u{np.dtype(dtype).itemsize}")
    first, last = (int(np.array(end, dtype).view(word)) for end in (low, high))
    return np.arange(first, last + 1, dtype=np.uint64).astype(word).view(dtype)


def zeros(
    form: str,
    margins: np.ndarray,
    *,
    jit: bool = True,
    excess: bool = True,
    classes: int = 2,
    label: int = 0,
    share: float = 1.0,
    together: bool = True,
) -> Any:
    """(margins, 3) of what a library computes natively: whether loss and gradients are exactly zero.

    All of them together (vmapped), where compilers group the partial sums of a row, or each by itself.
    """

    def parts(m: Any) -> Any:
        top, rest = m * np.asarray(share, m.dtype), -m * np.asarray(1 - share, m.dtype)
        others = jnp.broadcast_to(rest[None], (classes - 1,))
        logits = jnp.concatenate([others[:label], top[None], others[label:]])
        loss = LOSSES[form] if classes == 2 and label == 0 else many(form, label)
        value, gradient = jax.value_and_grad(loss)(logits)
        return jnp.stack([value, gradient[label], gradient[label - 1]])

    found = jax.vmap(parts) if together else lambda m: jax.lax.map(parts, m)
    if jit:
        found = jax.jit(found, compiler_options={"xla_allow_excess_precision": excess})
    with jax.enable_x64(margins.dtype == np.float64):
        values = np.asarray(found(jnp.asarray(margins)))
    word = np.dtype(f"u{values.itemsize}")
    return (values.view(word) & word.type((1 << (8 * values.itemsize - 1)) - 1)) == 0


def many(form: str, label: int) -> Any:
    import optax

    if form == "log_softmax":
        return lambda logits: -jax.nn.log_softmax(logits)[label]
    return lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, jnp.int32(label))


def law_of(form: str, dtype: str, **options: Any) -> Margins:
    # Half precision is computed in float32 and cast, where subnormals stay; the others' are flushed by this backend.
    return vanishing_margins(pl.FORMATS[dtype], FORMS[form], flushed=dtype != "float16", **options)


def check(zero: np.ndarray, margins: np.ndarray, law: Margins) -> None:
    wide = margins.astype(np.float64)
    for part in range(3):
        wrong = wide[zero[:, part] != (wide >= law[part])]
        assert not len(wrong), (Margins._fields[part], law[part], wrong[:4])


on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="what is flushed or kept wide is the CPU's")


@pytest.mark.sampled(4)
@on_cpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_half_precision_margin(form: str, dtype: str) -> None:
    """All non-negative finite margins, compiled; bfloat16 sums of log_softmax are kept in float32.

    In jaxlib 0.10 they are so even where `xla_allow_excess_precision=False` asks for their rounding; later ones heed that.
    """
    margins = margins_between(DTYPES[dtype], 0.0, float(pl.FORMATS[dtype].largest))
    kept = dtype == "bfloat16" and form in ("log_softmax", "one_hot")
    law = law_of(form, dtype, sums=pl.FLOAT32 if kept else None)
    check(zeros(form, margins), margins, law)
    if kept and form == "log_softmax":
        heeded = jax.__version_info__ >= (0, 11)
        check(zeros(form, margins, excess=False), margins, law_of(form, dtype) if heeded else law)


@pytest.mark.sampled(1)
@on_cpu
@pytest.mark.parametrize("form", ["log_softmax", "integer_labels", "naive"])
def test_every_bfloat16_margin_without_compilation(form: str) -> None:
    margins = margins_between(ml_dtypes.bfloat16, 0.0, 256.0)
    check(zeros(form, margins, jit=False), margins, law_of(form, "bfloat16"))


@pytest.mark.sampled(6)
@on_cpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_neighbours_of_the_margin_and_a_grid(form: str, dtype: str) -> None:
    law, kind = law_of(form, dtype), DTYPES[dtype]
    word = np.dtype(f"i{np.dtype(kind).itemsize}")
    near = [np.array(margin, kind).view(word) + np.arange(-500, 501, dtype=word) for margin in set(law)]
    margins = np.concatenate([*(words.view(kind) for words in near), np.linspace(0.0, 1000.0, 4001).astype(kind)])
    check(zeros(form, margins), margins, law)


@on_cpu
@pytest.mark.parametrize(("classes", "label", "others"), [(3, 0, 1), (3, 2, 2), (10, 0, 1), (10, 9, 9)])
def test_many_classes_depend_on_where_the_label_stands(classes: int, label: int, others: int) -> None:
    """Partial sums of float32 are rounded: what comes after the label's 1 is too small one by one."""
    law = law_of("log_softmax", "float32", others=others)
    margins = np.unique(np.concatenate([margins_between(np.float32, m - 1e-3, m + 1e-3) for m in set(law)]))
    check(zeros("log_softmax", margins, classes=classes, label=label, together=False), margins, law)
    # Vmapped, some of the others are summed before they meet the 1: in two halves since jaxlib 0.11, where these are many.
    least, most = law_of("log_softmax", "float32", others=1), law_of("log_softmax", "float32", others=classes - 1)
    grid = np.linspace(16.0, 20.0, 2001).astype(np.float32)
    loss = zeros("log_softmax", grid, classes=classes, label=label)[:, 0]
    assert not loss[grid < least.loss].any()
    assert loss[grid >= most.loss].all()


@on_cpu
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_integer_labels_depend_on_where_zero_is(share: float) -> None:
    law = law_of("integer_labels", "float32", label_share=share)
    margins = np.concatenate([margins_between(np.float32, m - 1e-3, m + 1e-3) for m in set(law)])
    check(zeros("integer_labels", margins, share=share), margins, law)
