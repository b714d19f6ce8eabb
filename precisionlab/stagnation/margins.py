"""From which margin on a computed cross-entropy is exactly zero, in exact arithmetic, without computing one.

On separable data cross-entropy has no minimum: with the label's logit a margin m above the k - 1 others (equal ones) it is
log(1 + (k-1) exp(-m)), positive for every m. Computed in a format it is zero from some margin on, and its gradient too, but
not from the same one: each form of writing it throws another thing away. Let e = RN(exp(-m)), let h be half the gap above 1,
2^-p, and let t be half the smallest positive value, 2^(emin-p):

    sum         log(1 + e), as in log_softmax   zero once 1 + (k-1) e rounds to 1, (k-1) e <= h       m ~ p ln 2 + ln(k-1)
    tail        log1p(e), as in softplus        zero once exp(-m) rounds to 0, exp(-m) < t            m ~ (p - emin) ln 2
    normalizer  (log(1 + e) + z) - z            zero once log(1 + e) is at most half the gap at z     m ~ (p - a) ln 2 + ln(k-1)

where z, the label's logit, lies in [2^a, 2^(a+1)), a > 0: each bit moves every one of them by ln 2. The gradient in the
label's logit is 1/s - 1 in the softmax forms, s the rounded sum, and vanishes with the sum; that in the others' is e/s, and
vanishes with the tail; in a form of the margin alone both are e/s or exp(-m - loss), and vanish with the tail. So the loss can
be zero where its gradient is not (naive, normalizer), one logit be at rest while the others go on (softmax forms), or all end
together (softplus): where training stops depends on the form as much as on the format.

These are equalities, not estimates. RN(x) <= y for a value y holds exactly if x < c(y), halfway to the next value, and exp(-m)
is transcendental and no such halfway point; so e <= y exactly if m > -ln c(y), and the margin is the first value of the format
beyond a logarithm. That is 24 ln 2 - ln(1 + 2^-24) for the sum in float32. It holds for arithmetic that rounds every operation
correctly (`simulate`); a library whose exp is off by an ulp moves the bound by 2^-p at most, and changes the answer only if a
value of the format, whose gap there is larger by far, lies between. Everything here is a Python number on the host.
"""

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from precisionlab.numerics.checks import check_numbers
from precisionlab.numerics.formats import Format, is_concrete, name_of
from precisionlab.stagnation.rationals import Rationals

__all__ = [
    "FORMS",
    "INTEGER_LABELS",
    "LOG1P",
    "LOG_SOFTMAX",
    "NAIVE",
    "ONE_HOT",
    "SIGMOID",
    "SOFTPLUS",
    "Form",
    "Margins",
    "vanishing_margins",
]

_EXACTLY = Context(prec=120)  # digits: beyond what tells a logarithm from a value of 53 bits
_MOST_STEPS = 1 << 16


class Form(NamedTuple):
    """A way to write cross-entropy, by what it throws away; see the module.

    Attributes:
        loss: "sum", "tail" or "normalizer".
        label: what makes the gradient in the label's logit vanish: "sum", "tail" or "exponent" (of the difference -m - loss).
        other: the same of the other logits. For a form of the margin alone the two are one.
    """

    loss: str
    label: str
    other: str


LOG_SOFTMAX = Form("sum", "sum", "tail")
"""-log_softmax(logits)[label]."""
ONE_HOT = Form("sum", "sum", "tail")
"""`optax.softmax_cross_entropy` of a one-hot row."""
INTEGER_LABELS = Form("normalizer", "sum", "tail")
"""`optax.softmax_cross_entropy_with_integer_labels`: logsumexp(logits) - logits[label]."""
NAIVE = Form("sum", "tail", "tail")
"""log(1 + exp(-m))."""
LOG1P = Form("tail", "tail", "tail")
"""log1p(exp(-m))."""
SOFTPLUS = Form("tail", "exponent", "exponent")
"""softplus(-m), the same as logaddexp(-m, 0)."""
SIGMOID = Form("tail", "exponent", "exponent")
"""`optax.sigmoid_binary_cross_entropy` of the logit m and the label 1."""

FORMS = {
    "log_softmax": LOG_SOFTMAX,
    "one_hot": ONE_HOT,
    "integer_labels": INTEGER_LABELS,
    "naive": NAIVE,
    "log1p": LOG1P,
    "softplus": SOFTPLUS,
    "sigmoid": SIGMOID,
}


class Margins(NamedTuple):
    """The smallest margins at which a computed cross-entropy and its gradients are exactly zero; inf where none is.

    They are so at every larger margin too, but for the normalizer in formats of few exponents: there a tie may stay at even
    logits and go on at odd ones, up to the next value of log(1 + e).

    Attributes:
        loss: of the loss.
        label: of the gradient in the label's logit.
        other: of the gradient in the other logits.
    """

    loss: float
    label: float
    other: float


def vanishing_margins(
    fmt: Format, form: Form, *, others: int = 1, label_share: float = 1.0, sums: Format | None = None, flushed: bool = False
) -> Margins:
    """The margins from which the computed loss, and its gradients, are exactly zero.

    Args:
        fmt: the format of the margins and of every operation, under nearest_even.
        form: how the loss is written; one of `FORMS`.
        others: how many exponentials of other logits, all equal, are summed before they meet the label's 1. It is the number
            of other classes where the sum is exact or wide and rounded once; where partial sums are rounded, those before
            the label (at least one, since each of the rest is then too small by itself; for the normalizer only if the
            label is last). Compilers that group partial sums lie between.
        label_share: where the margin sits: the label's logit is this part of it and the others' what is left, below zero. 1
            (the others at 0), 1/2 or 0. Only what is absorbed by a logit, as in `INTEGER_LABELS`, depends on it.
        sums: the format in which the sum stays until its logarithm or reciprocal is taken, if it is wider: compilers keep
            bfloat16 sums in float32. None rounds it to `fmt`.
        flushed: whether results below 2^emin become zero after they have been rounded, as in float32 and bfloat16 on CPUs.

    Returns:
        `Margins`, each exactly the value of the format.

    Raises:
        TypeError: if fmt is not a concrete format or form not a Form.
        ValueError: if the format has no zero, less than two bits after the point at 1, or too few exponents for so many
            others, or another argument is out of range.

    Example:
        >>> from precisionlab import BFLOAT16, FLOAT16, FLOAT32
        >>> vanishing_margins(FLOAT32, LOG_SOFTMAX, flushed=True)
        Margins(loss=16.63553237915039, label=16.63553237915039, other=87.3365478515625)
        >>> vanishing_margins(FLOAT32, INTEGER_LABELS).loss, vanishing_margins(FLOAT32, INTEGER_LABELS, label_share=0).loss
        (14.438307762145996, 16.63553237915039)
        >>> vanishing_margins(BFLOAT16, NAIVE, flushed=True), vanishing_margins(FLOAT16, SOFTPLUS).loss
        (Margins(loss=5.5625, label=87.5, other=87.5), 17.34375)
    """
    _check(fmt, form, others, label_share, sums)
    grid = Rationals(fmt, flushed)
    wide = grid if sums is None else Rationals(sums, flushed)
    share = Fraction(label_share)

    def beyond(exponential: Fraction) -> float:
        """The first margin whose e is at most some number."""
        return grid.first_above(-_log(grid.cut(exponential)))

    def most(total: Fraction) -> Fraction:
        """The largest e whose sum with 1 rounds to at most a value of the wide grid."""
        room = (wide.cut(total) - 1) / others
        return room if wide.is_even(total) or grid.floor(room) != room else grid.below(room)

    def tail() -> float:
        return beyond(Fraction(0))

    def label_sum() -> float:
        # 1/s rounds to 1 down to halfway to the value below; 1 is even.
        return beyond(most(wide.floor(2 / (1 + grid.below(Fraction(1))))))

    rules: dict[str, Callable[[], float]] = {
        "sum": lambda: beyond(most(Fraction(1))),
        "tail": tail,
        "normalizer": lambda: _absorbed(grid, wide, share, beyond, most),
        "exponent": lambda: _shifted(grid, tail()),
    }
    found = [rules[form.loss]()]
    found += [label_sum() if rule == "sum" else rules[rule]() for rule in (form.label, form.other)]
    return Margins(*found)


def _absorbed(
    grid: Rationals, wide: Rationals, share: Fraction, beyond: Callable[[Fraction], float], most: Callable[[Fraction], Fraction]
) -> float:
    """The first margin m with RN(l + z) = z, for l = RN(log s) and the label's logit z = share m."""
    if share == 0:
        return beyond(most(Fraction(1)))

    def bound(largest: Fraction) -> Fraction:
        """The margin beyond which l is at most a value."""
        return -_log(grid.cut(most(wide.floor(_exp(grid.cut(largest))))))

    for low, high, gap in grid.ranges(Fraction(0)):
        if high <= Fraction(1, 4):
            continue  # there the loss is as large as the logit
        half, start = gap / 2, max(low, gap)
        # A tie stays if z is even; then l may be half the gap itself.
        even = max(start, (math.floor(share * bound(half) / (2 * gap)) + 1) * 2 * gap)
        even += gap * (even / gap % 2)
        strict = max(start, (math.floor(share * bound(grid.below(half)) / gap) + 1) * gap)
        z = min(even, strict)
        if z < high:
            return grid.finite(z / share)
    raise AssertionError("the sum itself rounds to 1 in the end")


def _shifted(grid: Rationals, tail: float) -> float:
    """The first margin with RN(exp(-RN(m + l))) = 0, l = RN(log1p(e)), from that with e = 0 downwards.

    The loss is about e, and shifts the exponent only in formats of few exponents, where the smallest positive value is not
    small beside the gap at the margin.
    """
    if tail == math.inf:
        return tail
    first = found = Fraction(tail)
    for _ in range(_MOST_STEPS):
        m = grid.below(found)
        if m <= 0:
            break
        loss = grid.nearest(_log(1 + grid.nearest(_exp(-m))))
        if grid.nearest(m + loss) < first:
            break
        found = m
    return float(found)


def _log(x: Fraction) -> Fraction:
    return Fraction(_EXACTLY.ln(_EXACTLY.divide(Decimal(x.numerator), Decimal(x.denominator))))


def _exp(x: Fraction) -> Fraction:
    return Fraction(_EXACTLY.exp(_EXACTLY.divide(Decimal(x.numerator), Decimal(x.denominator))))


def _check(fmt: Any, form: Any, others: Any, label_share: Any, sums: Any) -> None:
    where = "vanishing_margins"
    for name, given in (("fmt", fmt), ("sums", sums)):
        if given is None and name == "sums":
            continue
        if not isinstance(given, Format) or not is_concrete(given):
            raise TypeError(f"{where}: {name} must be a Format of Python numbers such as precisionlab.BFLOAT16; got {given!r}.")
        check_numbers(given)
        if given.zeros == 0 or Rationals(given).gap(Fraction(1)) > Fraction(1, 4) or given.largest < 1:
            raise ValueError(
                f"{where}: {name} must hold 0 and 1, and values a quarter from 1 or closer; {name_of(given)} does not."
            )
    if not isinstance(form, Form):
        raise TypeError(
            f"{where}: form must be one of precisionlab.stagnation.margins.FORMS, such as LOG_SOFTMAX; got {form!r}."
        )
    if isinstance(others, bool) or not isinstance(others, int) or others < 1:
        raise ValueError(f"{where}: others must be a whole number of at least 1; got {others!r}.")
    if 2 * others * Rationals(fmt).gap(Fraction(0)) > 1:
        raise ValueError(
            f"{where}: with {others} others the probabilities themselves, e/s, are too small for {name_of(fmt)} at any margin; "
            "ask about fewer, or a format of more exponents."
        )
    if label_share not in (0, 0.5, 1):
        raise ValueError(f"{where}: label_share must be 1, 0.5 or 0, which lose nothing of the margin; got {label_share!r}.")
