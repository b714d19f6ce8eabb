"""Every product and partial sum against exact rationals, one operation at a time."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precisionlab as pl
from precisionlab.arithmetic.exact.exact_sums import fused, multiplies_exactly, product_remainder, sum_to_odd, two_sum
from precisionlab.arithmetic.sums.accumulation import (
    Accumulation,
    check_accumulation,
    contract,
    dot,
)
from precisionlab.arithmetic.sums.convolutions import rounded_convolution
from precisionlab.arithmetic.sums.reductions import rounded_cumprod, rounded_cumsum, rounded_prod, rounded_sum
from precisionlab.numerics.carriers import FLOAT32_CARRIER
from tests.cases import assert_same, scope
from tests.oracle import bracket, finish, goes_up, round_exact

BF16, E4M3, E5M2, F16, F32 = pl.BFLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2, pl.FLOAT16, pl.FLOAT32
WANG = pl.ieee_format(6, 9)
FORMATS = [
    BF16,
    E4M3,
    E5M2,
    F16,
    F32,
    WANG,
    pl.fixed_point(6, 3),
    pl.fixed_point(9, 14),
    pl.ieee_format(8, 11),
    pl.ieee_format(8, 15),
    pl.ieee_format(8, 21),
    pl.ieee_format(8, 22),
    pl.ieee_format(6, 22),
    pl.saturating(E4M3),
    F16._replace(subnormals=False),
    pl.FLOAT8_E4M3FNUZ,
]


# The reference: Python numbers, one exact operation and one rounding at a time.


def rounded(exact: Fraction, zero: float, fmt: Any, mode: str) -> float:
    """An exact result rounded to a format; a result that is exactly zero has the sign of `zero`."""
    if exact == 0:
        return round_exact(zero, fmt, mode)
    negative = exact < 0
    around = bracket(abs(exact), fmt)
    magnitude = around.above if goes_up(around, negative, mode) else around.below
    may_overflow = mode in ("nearest_even", "nearest_away") or mode == ("downward" if negative else "upward")
    return finish(magnitude, negative, fmt, may_overflow)


class Reference:
    """Accumulation as its definition reads."""

    def __init__(self, how: Accumulation, mode: str, carrier: Any = F32):
        self.how, self.mode, self.carrier = how, mode, carrier

    def _to(self, fmt: Any, exact: Callable[[], Fraction], native: float) -> float:
        fmt, mode = (self.carrier, "nearest_even") if fmt is None else (fmt, self.mode)
        if not math.isfinite(native):
            return round_exact(native, fmt, mode)
        return rounded(exact(), native, fmt, mode)

    def add(self, x: float, y: float) -> float:
        native = math.nan if math.isinf(x) and x == -y else x + y
        finite = math.isfinite(x) and math.isfinite(y)
        return self._to(self.how.accumulate, lambda: Fraction(x) + Fraction(y), 0.0 if finite and x + y != 0 else native)

    def multiply(self, x: float, y: float, fmt: Any) -> float:
        finite = math.isfinite(x) and math.isfinite(y)
        return self._to(
            fmt, lambda: Fraction(x) * Fraction(y), math.copysign(0.0, x) * math.copysign(1.0, y) if finite else x * y
        )

    def enter(self, s: float, term: tuple[float, ...]) -> float:
        if len(term) == 1:
            return self.add(s, term[0])
        if self.how.multiply is not None:
            return self.add(s, self.multiply(*term, self.how.multiply))
        x, y = term
        if not all(map(math.isfinite, (x, y, s))):
            return self.add(s, x * y)
        zero = math.copysign(0.0, x) * math.copysign(1.0, y) + s  # its sign counts only where all is zero
        return self._to(self.how.accumulate, lambda: Fraction(x) * Fraction(y) + Fraction(s), zero if zero == 0 else 0.0)

    def kahan(self, s: float, y: float) -> tuple[float, float]:
        total = self.add(s, y)
        return total, self.add(self.add(total, -s), -y)

    def part(self, terms: list[tuple[float, ...]]) -> float:
        if self.how.order == "pairwise":
            return self.tree([self.enter(0.0, term) for term in terms])
        s, lost = 0.0, 0.0
        for term in terms:
            if self.how.compensated:
                s, lost = self.kahan(s, self.enter(-lost, term))
            else:
                s = self.enter(s, term)
        return s

    def tree(self, nodes: list[float]) -> float:
        if len(nodes) == 1:
            return nodes[0]
        half = 1 << ((len(nodes) - 1).bit_length() - 1)
        return self.add(self.tree(nodes[:half]), self.tree(nodes[half:]))

    def total(self, terms: list[tuple[float, ...]]) -> float:
        chunk = self.how.chunk or len(terms)
        parts = [self.part(terms[i : i + chunk]) for i in range(0, len(terms), chunk)]
        s, lost = parts[0], 0.0
        for part in parts[1:]:
            if self.how.compensated:
                s, lost = self.kahan(s, self.add(part, -lost))
            else:
                s = self.add(s, part)
        return s

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(m, k) x (k, n)."""
        rows, columns = a.tolist(), b.T.tolist()
        with np.errstate(over="ignore"):
            return np.array([[self.total(list(zip(r, c, strict=True))) for c in columns] for r in rows]).astype(a.dtype)


def operands(
    seed: int, m: int, k: int, n: int, bits: int | None = None, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Normal numbers over some binades; with `bits`, of so few significand bits that products are exact."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, int]) -> np.ndarray:
        x = rng.normal(size=shape) * np.exp2(rng.integers(-4, 4, shape))
        if bits is not None:
            significand, e = np.frexp(x)
            x = np.ldexp(np.round(significand * 2**bits), e - bits)
        x[rng.random(shape) < 0.05] = -0.0
        return x.astype(dtype)

    return draw((m, k)), draw((k, n))


def check(how: Accumulation, mode: str, a: np.ndarray, b: np.ndarray, what: str = "") -> None:
    actual = dot(jnp.asarray(a), jnp.asarray(b), mode=pl.MODES[mode], **how._asdict())
    carrier = F32 if a.dtype == np.float32 else pl.FLOAT64
    assert_same(actual, Reference(how, mode, carrier).dot(a, b), what=f"{how} {mode} {what}")


HOWS = {
    "product": lambda f: Accumulation(f, f),
    "fused": lambda f: Accumulation(None, f),
    "carrier": lambda f: Accumulation(f, None),
    "raw": lambda f: Accumulation(F32, f),
    "chunk": lambda f: Accumulation(f, f, chunk=5),
    "fused chunk of a tree": lambda f: Accumulation(None, f, chunk=6, order="pairwise"),
    "tree": lambda f: Accumulation(f, f, order="pairwise"),
    "kahan": lambda f: Accumulation(f, f, compensated=True),
    "fused kahan in chunks": lambda f: Accumulation(None, f, chunk=4, compensated=True),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(pytest.param(name, "nearest_even", marks=[pytest.mark.slow] * (" " in name or name == "tree")) for name in HOWS),
        ("product", "upward"),
        ("fused", "upward"),
    ],
)
def test_stacked_formats_take_one_program_and_every_operation_rounds_once(name, mode):
    stacked = pl.stack_formats(FORMATS)
    compiled = jax.jit(
        jax.vmap(lambda fmt, a, b: dot(a, b, mode=pl.MODES[mode], **HOWS[name](fmt)._asdict()), in_axes=(0, None, None))
    )
    for bits in (None, 4):  # products with more bits than the carrier, and exact ones
        a, b = operands(1, 2, 14, 2, bits)
        results = compiled(stacked, a, b)
        for fmt, result in zip(FORMATS, results, strict=True):
            how = HOWS[name](fmt)
            assert_same(result, Reference(how, mode).dot(a, b), what=f"{how} {mode} {bits}")
    assert compiled._cache_size() == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", ["nearest_away", "downward", "to_odd"])
def test_the_other_modes(mode):
    compiled = jax.jit(
        jax.vmap(
            lambda fmt, a, b: [dot(a, b, mode=pl.MODES[mode], **HOWS[name](fmt)._asdict()) for name in ("product", "fused")],
            in_axes=(0, None, None),
        )
    )
    for bits in (None, 4):
        a, b = operands(2, 2, 14, 2, bits)
        results = compiled(pl.stack_formats(FORMATS), a, b)
        for name, of_name in zip(("product", "fused"), results, strict=True):
            for fmt, result in zip(FORMATS, of_name, strict=True):
                assert_same(result, Reference(HOWS[name](fmt), mode).dot(a, b), what=f"{name} {fmt} {mode} {bits}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("how", "mode"),
    [
        (Accumulation(BF16, BF16), "nearest_even"),
        (Accumulation(E4M3, E4M3, chunk=4), "nearest_even"),
        (Accumulation(E5M2, F16), "nearest_away"),
        (Accumulation(F16, BF16), "nearest_even"),  # terms with more bits than the sums
        (Accumulation(BF16, BF16, compensated=True), "nearest_even"),
        (Accumulation(None, WANG, chunk=3), "nearest_even"),
        (Accumulation(None, None), "nearest_even"),
        (Accumulation(None, F32), "toward_zero"),
        (Accumulation(F32, F32, chunk=2), "to_odd"),
        (Accumulation(F32, F32), "nearest_away"),
        (Accumulation(F32, None), "nearest_even"),
        (Accumulation(F32, None, order="pairwise"), "nearest_even"),
        (Accumulation(pl.ieee_format(8, 22), pl.ieee_format(8, 22)), "nearest_even"),
        (Accumulation(None, pl.fixed_point(6, 3), order="pairwise"), "downward"),
    ],
)
def test_constant_formats(how, mode):
    for bits in (None, 8):
        a, b = operands(3, 3, 21, 3, bits)
        check(how, mode, a, b, f"bits {bits}")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("count", [1, 3, 8, 9, 67, 130])
def test_the_shape_of_the_tree(count):
    a, b = operands(count, 1, count, 1, 3)
    check(Accumulation(E4M3, E4M3, order="pairwise"), "nearest_even", a, b, f"{count} terms")


@pytest.mark.parametrize(
    ("count", "options"), [(1, {}), (2, {"chunk": 1}), (9, {"order": "pairwise"}), (1, {"compensated": True})]
)
def test_a_sum_of_minus_zeros_is_zero(count, options):
    check(
        Accumulation(BF16, BF16, **options),
        "nearest_even",
        np.full((1, count), -0.0, np.float32),
        np.ones((count, 1), np.float32),
    )


def test_nothing_sums_to_zero():
    for shape in ((2, 0), (4, 2, 0)):
        result = dot(jnp.ones(shape), jnp.ones((0, 3)), multiply=None, accumulate=BF16)
        assert_same(result, np.zeros((*shape[:-1], 3), np.float32))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "upward"])
@pytest.mark.parametrize("multiply", [None, BF16, F32])
def test_infinities_and_nan(multiply, mode):
    inf, nan, large = np.inf, np.nan, np.float32(2.0**127)
    a = np.array([[1, inf, 2], [inf, -inf, 1], [nan, 1, 1], [-inf, 3, 0.1], [0, inf, 1], [large, large, 1]], np.float32)
    b = np.array([[1, 0], [1, 0], [1, -1]], np.float32)
    product = jax.vmap(lambda fmt: dot(a, b, multiply=multiply, accumulate=fmt, mode=pl.MODES[mode]))
    formats = [BF16, F32, E4M3, pl.saturating(F16)]
    for fmt, result in zip(formats, product(pl.stack_formats(formats)), strict=True):
        assert_same(result, Reference(Accumulation(multiply, fmt), mode).dot(a, b), what=f"{fmt}")


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        (Accumulation(F32, F32), "nearest_even"),
        (Accumulation(None, None), "nearest_even"),
        (Accumulation(pl.ieee_format(11, 51), pl.ieee_format(11, 51)), "upward"),
        (Accumulation(None, pl.FLOAT64), "nearest_away"),
    ],
)
def test_the_float64_carrier(how, mode):
    with scope("float64"):
        check(how, mode, *operands(4, 2, 9, 2, dtype=np.float64))


def test_remainders_are_exact():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 4000)) * np.exp2(rng.integers(-20, 20, (2, 4000)))).astype(np.float32)
    s, e = jax.jit(lambda a, b: two_sum(a, b, FLOAT32_CARRIER))(a, b)
    p = a * b
    r = jax.jit(lambda a, b, p: product_remainder(a, b, p, FLOAT32_CARRIER))(a, b, p)
    sums, products = zip(s.tolist(), e.tolist(), strict=True), zip(p.tolist(), r.tolist(), strict=True)
    for x, y, (high, low), (product, rest) in zip(a.tolist(), b.tolist(), sums, products, strict=True):
        assert Fraction(x) + Fraction(y) == Fraction(high) + Fraction(low)
        assert Fraction(x) * Fraction(y) == Fraction(product) + Fraction(rest)


def test_fused_multiply_add_beside_cancellation_and_midpoints():
    rng = np.random.default_rng(1)
    a, b = (1 + rng.integers(0, 2**23, (2, 3000)) * 2.0**-23).astype(np.float32)
    near = -(a * b)
    choices = [
        near,
        np.nextafter(near, np.float32(0)),
        near * np.float32(0.5),
        (2.0 ** rng.integers(-60, 60, 3000)).astype(np.float32),
    ]
    for c in choices:
        s, e = jax.jit(lambda a, b, c: fused(a, b, c, FLOAT32_CARRIER))(a, b, c)
        for x, y, z, high, low in zip(*(v.tolist() for v in (a, b, c, s, e)), strict=True):
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            assert high == rounded(exact, 0.0, F32, "nearest_even")
            assert np.sign(low) == np.sign(float(exact - Fraction(high)))


def test_a_product_just_below_a_midpoint_is_not_taken_for_it():
    """(1 + j 2^-23) (1 - j 2^-23) = 1 - j^2 2^-46: half an ulp of c, but for what no float beside it holds."""
    j = np.arange(1, 8) * 2.0**-23
    a, b, c = ((1 + j) * 2.0**-24).astype(np.float32), (1 - j).astype(np.float32), np.full(7, 1 + 2.0**-23, np.float32)
    s, e = jax.jit(lambda a, b, c: fused(a, b, c, FLOAT32_CARRIER))(a, b, c)
    assert_same(s, c)  # the midpoint itself would go up, to the even neighbour
    assert np.all(np.asarray(e) > 0)


def test_a_term_on_a_midpoint_still_sees_the_sum_it_enters():
    """2^-30 + (1 + 2^-8) is above the midpoint of 1 and 1 + 2^-7 in bfloat16; in float32 it is the midpoint."""
    a, b = np.array([[2.0**-30, 1 + 2.0**-8]], np.float32), np.ones((2, 1), np.float32)
    check(Accumulation(pl.TFLOAT32, BF16), "nearest_even", a, b)
    assert float(dot(jnp.asarray(a), jnp.asarray(b), multiply=pl.TFLOAT32, accumulate=BF16)[0, 0]) == 1 + 2.0**-7


def test_sum_to_odd():
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(2, 2000)) * np.exp2(rng.integers(-20, 20, (2, 2000)))).astype(np.float32)
    largest = np.float32(np.finfo(np.float32).max)
    a, b = np.append(a, [largest, np.inf, -largest]).astype(np.float32), np.append(b, [largest, 1, -largest]).astype(np.float32)
    expected = [Reference(Accumulation(None, F32), "to_odd").add(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert_same(jax.jit(sum_to_odd)(a, b), np.array(expected, np.float32))


def test_products_that_are_exact_are_seen():
    eight = jnp.asarray([1.0, 255.0, -0.0, 0.5, np.inf])
    wide = jnp.asarray([1.0, 2.0**16 + 1])
    assert bool(multiplies_exactly(eight, eight, FLOAT32_CARRIER))
    assert bool(multiplies_exactly(wide[:1], wide, FLOAT32_CARRIER))
    assert not bool(multiplies_exactly(eight, wide, FLOAT32_CARRIER))
    assert jax.vmap(lambda x: multiplies_exactly(eight, x, FLOAT32_CARRIER))(wide[:, None]).tolist() == [False, False]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((5,), (5,)),
        ((2, 5), (5,)),
        ((5,), (5, 3)),
        ((4, 2, 5), (5, 3)),
        ((2, 1, 3, 5), (4, 5, 2)),
        ((3, 5), (2, 5, 2)),
        ((2, 5), (2, 5, 1)),
    ],
)
def test_shapes_are_those_of_matmul(left, right):
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-8, 8, shape).astype(np.float32) for shape in (left, right))
    assert_same(dot(jnp.asarray(a), jnp.asarray(b), multiply=None, accumulate=None), np.matmul(a, b) + np.float32(0))


def test_jit_eager_vmap_and_a_batch_agree():
    a, b = operands(5, 12, 10, 3)
    a = a.reshape(4, 3, 10)
    options: Any = {"multiply": BF16, "accumulate": WANG, "chunk": 5}
    eager = dot(jnp.asarray(a), jnp.asarray(b), **options)
    assert_same(jax.jit(lambda a, b: dot(a, b, **options))(a, b), eager)
    assert_same(jax.vmap(lambda x, y: dot(x, y, **options))(a, jnp.broadcast_to(b, (4, 10, 3))), eager)


@pytest.mark.slow
def test_the_derivative_is_that_of_the_exact_product():
    a, b = (jnp.asarray(x) for x in operands(6, 3, 8, 2))
    weights = jnp.arange(6.0).reshape(3, 2)

    def loss(product: Callable[..., Any]) -> Callable[..., Any]:
        return lambda a, b: jnp.sum(weights * product(a, b))

    low = loss(lambda a, b: dot(a, b, multiply=E4M3, accumulate=E4M3, mode=pl.stochastic, key=key()))
    for actual, expected in zip(jax.grad(low, (0, 1))(a, b), jax.grad(loss(exactly), (0, 1))(a, b), strict=True):
        assert_same(actual, expected)
    second = jax.jacfwd(jax.grad(low))(a, b)
    assert_same(second, jnp.zeros_like(second))


def exactly(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


# Sums, running sums, products


@pytest.mark.sampled(2)
@pytest.mark.parametrize("axes", [(0,), (1, 2), (2, 0), (0, 1, 2), ()])
def test_sums_over_axes(axes):
    x = operands(7, 24, 5, 1)[0].reshape(2, 12, 5)
    terms = np.transpose(x, (*axes, *(axis for axis in range(3) if axis not in axes)))
    rows = terms.reshape(math.prod(terms.shape[: len(axes)]), -1).T.tolist()
    for how, mode in ((Accumulation(None, WANG), "downward"), (Accumulation(accumulate=BF16, chunk=4), "nearest_even")):
        reference = Reference(how, mode)
        expected = np.array([reference.total([(v,) for v in row]) for row in rows], np.float32).reshape(
            terms.shape[len(axes) :]
        )
        assert_same(rounded_sum(jnp.asarray(x), axes, how, pl.MODES[mode], None), expected, what=f"{axes} {how}")
    assert_same(jax.grad(lambda x: jnp.sum(rounded_sum(x, axes, how, pl.nearest_even, None)))(jnp.asarray(x)), np.ones_like(x))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("compensated", [False, True])
def test_running_sums(reverse, compensated):
    x, how = operands(8, 3, 17, 1)[0], Accumulation(accumulate=BF16, compensated=compensated, chunk=2)
    plain, expected = how._replace(chunk=None), np.empty_like(x)
    for row, line in enumerate(x.tolist()):
        line = line[::-1] if reverse else line
        sums = [Reference(plain, "upward").total([(v,) for v in line[: i + 1]]) for i in range(len(line))]
        expected[row] = sums[::-1] if reverse else sums
    assert_same(rounded_cumsum(jnp.asarray(x), 1, reverse, how, pl.upward, None), expected)


@pytest.mark.parametrize("fmt", [BF16, pl.ieee_format(8, 22), None])
def test_products_and_running_products(fmt):
    x, how = operands(9, 3, 11, 1)[0] + np.float32(1), Accumulation(None, fmt)
    reference, running = Reference(how, "toward_zero"), np.empty_like(x)
    for row, line in enumerate(x.tolist()):
        so_far = 1.0
        for column, value in enumerate(line):
            so_far = reference.multiply(so_far, value, fmt)
            running[row, column] = so_far
    assert_same(rounded_cumprod(jnp.asarray(x), 1, False, how, pl.toward_zero, None), running)
    assert_same(rounded_prod(jnp.asarray(x), (1,), how, pl.toward_zero, None), running[:, -1])
    backward = rounded_cumprod(jnp.asarray(x[:, ::-1]), 1, True, how, pl.toward_zero, None)
    assert_same(backward, running[:, ::-1])


CONVOLUTIONS = {
    "plain": ((1, 2, 5, 6), (3, 2, 2, 3), {}),
    "strided, padded": ((2, 2, 7, 5), (2, 2, 3, 2), {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))}),
    "cropped": ((1, 2, 7, 5), (2, 2, 2, 2), {"padding": ((-1, 0), (1, -2))}),
    "dilated": ((1, 2, 4, 5), (2, 2, 2, 2), {"lhs_dilation": (2, 3), "rhs_dilation": (3, 2), "padding": ((1, 0), (2, 1))}),
    "groups of channels": ((2, 4, 4, 4), (6, 2, 2, 2), {"feature_group_count": 2}),
    "groups of the batch": ((4, 2, 4, 4), (6, 2, 2, 2), {"batch_group_count": 2}),
    "channels last": ((1, 5, 6, 2), (2, 3, 2, 3), {"layout": ("NHWC", "HWIO", "NHWC")}),
    "one dimension": ((2, 9, 2), (3, 2, 4), {"layout": ("NWC", "WIO", "NCW"), "window_strides": (2,)}),
    "no space": ((3, 4), (2, 4), {}),
    "nothing left": ((1, 1, 2, 2), (1, 1, 3, 1), {}),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    shape, kernel, options = CONVOLUTIONS[name]
    rank = len(shape) - 2
    if name == "one dimension":
        kernel = (4, 2, 3)
    layout = options.get("layout", ("NCHW"[: rank + 2], "OIHW"[: rank + 2], "NCHW"[: rank + 2]))
    numbers = lax.conv_dimension_numbers(shape, kernel, layout)
    params: dict[str, Any] = {
        "window_strides": (1,) * rank,
        "padding": ((0, 0),) * rank,
        "lhs_dilation": (1,) * rank,
        "rhs_dilation": (1,) * rank,
        "feature_group_count": 1,
        "batch_group_count": 1,
        **{key: value for key, value in options.items() if key != "layout"},
        "dimension_numbers": numbers,
    }
    rng = np.random.default_rng(10)
    # Small whole numbers: nothing is rounded, and the order does not matter.
    x, w = rng.integers(1, 8, shape).astype(np.float32), rng.integers(1, 8, kernel).astype(np.float32)
    exact = Accumulation(F32, None)
    assert_same(
        rounded_convolution(jnp.asarray(x), jnp.asarray(w), exact, pl.nearest_even, None, **params),
        lax.conv_general_dilated(x, w, **params),
        what=name,
    )
    if name not in ("dilated", "groups of the batch"):
        return
    gradient = jax.grad(lambda w: jnp.sum(rounded_convolution(jnp.asarray(x), w, exact, pl.nearest_even, None, **params)))(w)
    assert_same(gradient, jax.grad(lambda w: jnp.sum(lax.conv_general_dilated(x, w, **params)))(w))


def test_a_convolution_adds_channels_outermost_then_taps_in_row_major_order():
    rng = np.random.default_rng(11)
    x, w = rng.normal(size=(1, 3, 4, 4)).astype(np.float32), rng.normal(size=(2, 3, 2, 2)).astype(np.float32)
    how = Accumulation(E4M3, E4M3)
    result = rounded_convolution(
        jnp.asarray(x),
        jnp.asarray(w),
        how,
        pl.nearest_even,
        None,
        window_strides=(1, 1),
        padding=((0, 0), (0, 0)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        dimension_numbers=lax.conv_dimension_numbers(x.shape, w.shape, ("NCHW", "OIHW", "NCHW")),
        feature_group_count=1,
        batch_group_count=1,
    )
    windows = np.stack([x[0, :, i : i + 2, j : j + 2].reshape(-1) for i in range(3) for j in range(3)])
    expected = Reference(how, "nearest_even").dot(windows, w.reshape(2, -1).T)
    assert_same(result, expected.T.reshape(1, 2, 3, 3))


# Laws


@pytest.mark.slow
def test_long_sums_stall_where_wang_et_al_found_them_to():
    """Uniform terms, mean 1 and deviation 1 (at most 1 + sqrt 3 = 2.73), in their 16 bits: (1, 6, 9), precision 10.

    In [2^e, 2^(e+1)) the ulp is 2^(e-9), and nothing lands once half of it exceeds every term: 2^(e-10) > 2.73 from e = 12 on.
    Below, at S in [2048, 4096), sums move in steps of 4, so that they meet 4096 and stay there (their figure 3).
    """
    count = 1 << 14
    terms = np.random.default_rng(12).uniform(1 - math.sqrt(3), 1 + math.sqrt(3), (4, count)).astype(np.float32)
    exact = terms.astype(np.float64).sum(1)

    def summed(mode: Any = pl.nearest_even, key: Any = None, **options: Any) -> np.ndarray:
        return np.asarray(rounded_sum(jnp.asarray(terms), (1,), Accumulation(accumulate=WANG, **options), mode, key))

    assert summed().tolist() == [4096.0] * 4
    assert summed(chunk=1).tolist() == [4096.0] * 4
    assert np.all(np.abs(summed(chunk=32) / exact - 1) < 0.01)
    assert np.all(np.abs(summed(chunk=64) / exact - 1) < 0.01)
    assert np.all(np.abs(summed(order="pairwise") / exact - 1) < 0.01)
    assert np.all(np.abs(summed(compensated=True) / exact - 1) < 0.002)
    # Unbiased: each step errs by at most sqrt(|t| ulp), so the sum by sqrt(n 2.73 16), 5 % of it at most, at one deviation.
    stochastic = summed(pl.stochastic, jax.random.key(0))
    assert np.all(np.abs(stochastic / exact - 1) < 0.05)


def test_stochastic_rounding_is_unbiased():
    """2^14 independent sums of 64 terms 0.3: the deviation of their mean is at most sqrt(64 / 4) ulp / 2^7; five of them."""
    terms = jnp.full((1 << 14, 64), 0.3)
    for fmt, top in ((BF16, 32.0), (E4M3, 32.0)):
        how = Accumulation(accumulate=fmt)
        mean = float(jnp.mean(rounded_sum(terms, (1,), how, pl.stochastic, jax.random.key(1))))
        bound = 5 * math.sqrt(64 / 4) * float(pl.ulp(top - 1, fmt)) / 2**7
        assert abs(mean - 64 * float(np.float32(0.3))) < bound


def test_draws_are_independent_of_each_other():
    ones, key = jnp.full((64, 64), 1.0), jax.random.key(2)
    term = jnp.full((64, 64), 2.0**-10)  # in bfloat16, 1 + 2^-10 rounds up once in eight times

    def landed(k: int) -> np.ndarray:
        sums = rounded_cumsum(
            jnp.concatenate([ones[None], jnp.broadcast_to(term, (k, 64, 64))]), 0, False, how, pl.stochastic, key
        )
        return np.asarray(sums[1:] != sums[:-1])

    how = Accumulation(accumulate=BF16)
    steps = landed(8).reshape(8, -1).astype(float)
    assert abs(steps.mean() - 1 / 8) < 5 * math.sqrt(7 / 64 / steps.size)
    correlation = np.corrcoef(steps) - np.eye(8)
    assert np.abs(correlation).max() < 5 / math.sqrt(4096)
    a, b = jnp.full((32, 2), 1 + 2.0**-9), jnp.ones((2, 32))
    first = dot(a, b, multiply=BF16, accumulate=F32, mode=pl.stochastic, key=key)
    again = dot(a, b, multiply=BF16, accumulate=F32, mode=pl.stochastic, key=key)
    other = dot(a, b, multiply=BF16, accumulate=F32, mode=pl.stochastic, key=jax.random.key(3))
    assert_same(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))
    # Two products of each entry, which round up independently: 0, 1 or 2 times with odds 9 : 6 : 1.
    shares = [float(jnp.mean(first == value)) for value in (2.0, 2 + 2.0**-7, 2 + 2.0**-6)]
    assert np.allclose(shares, [9 / 16, 6 / 16, 1 / 16], atol=5 * 0.5 / 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [Accumulation(None, BF16, chunk=8, compensated=True), Accumulation(BF16, BF16, chunk=7, order="pairwise")]
)
def test_every_order_can_be_stochastic(how):
    a, b = operands(13, 4, 16, 4)
    result = np.asarray(
        contract(jnp.asarray(a)[None], jnp.asarray(b)[None], how, pl.stochastic_bits(8), jax.random.key_data(key()))
    )
    assert_same(result, np.asarray(pl.round_to(jnp.asarray(result), BF16)))
    # Fewer than 16 roundings lie between any term and the result.
    assert np.all(np.abs(result[0] - a.astype(float) @ b) <= 16 * 2.0**-7 * (np.abs(a.astype(float)) @ np.abs(b)))


def key() -> Any:
    return jax.random.key(0)


# Mistakes


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"a": np.ones((2, 3))[:, :2]}, ValueError, r"dot: the shapes \(2, 2\) and \(3, 2\) do not contract"),
        ({"a": np.float32(1)}, ValueError, r"dot: the shapes \(\) and \(3, 2\) do not contract"),
        ({"a": np.ones((2, 1, 3)), "b": np.ones((3, 3, 2))}, ValueError, "leading dimensions"),
        ({"a": np.ones((2, 3), np.int32)}, TypeError, "dot: values of dtype int32 cannot carry"),
        ({"b": jnp.ones((3, 2), jnp.bfloat16)}, TypeError, "dot: values of dtype bfloat16 cannot carry"),
        ({"mode": pl.stochastic}, ValueError, r"dot: stochastic rounding needs random bits; pass key=jax.random.key\(seed\)"),
        ({"mode": pl.stochastic, "key": 3}, TypeError, "dot: key must be a JAX random key"),
        ({"mode": "upward"}, TypeError, "dot: mode must be a rounding function"),
        ({"chunk": 0}, ValueError, "dot: chunk must be at least 1 term, or None for all of them; got 0"),
        ({"chunk": 2.0}, TypeError, "dot: chunk must be a whole number of terms"),
        ({"order": "backwards"}, ValueError, "dot: order must be one of 'sequential', 'pairwise'; got 'backwards'"),
        ({"order": "pairwise", "compensated": True}, ValueError, "dot: compensated=True carries what is lost"),
        ({"compensated": 1}, TypeError, "dot: compensated must be True or False; got 1"),
        ({"multiply": "bfloat16"}, TypeError, "dot: multiply must be a Format such as"),
        ({"accumulate": pl.FLOAT64}, ValueError, "dot: float64 does not fit its carrier float32"),
    ],
)
def test_mistakes_raise_before_tracing(options, error, sentence):
    given = {"a": np.ones((2, 3)), "b": np.ones((3, 2)), "multiply": BF16, "accumulate": BF16, **options}
    a, b = (
        jnp.asarray(x, jnp.float32) if getattr(x, "dtype", None) == np.float64 else jnp.asarray(x)
        for x in (given.pop("a"), given.pop("b"))
    )
    with pytest.raises(error, match=sentence):
        dot(a, b, **given)


def test_the_check_stands_alone():
    check_accumulation(Accumulation(BF16, None, chunk=3))
    with pytest.raises(TypeError, match="here: expected an Accumulation"):
        check_accumulation(BF16, None, "here")
    with pytest.raises(ValueError, match="rounded_sum: stochastic rounding needs random bits"):
        rounded_sum(jnp.ones(3), (0,), Accumulation(accumulate=BF16), pl.stochastic, None)
