"""Complex numbers, Fourier transforms, factorizations, windows and scatters inside `simulate`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import pytest
from jax import lax

import precisionlab as pl
from precisionlab import BFLOAT16, FLOAT8_E4M3FN, FLOAT32, Accumulation, Rules, error_profile, stochastic
from tests.arithmetic import reference_linear as twin
from tests.oracle import round_array

FORMATS = pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT8_E4M3FN], ids=["bfloat16", "float8_e4m3fn"])


def law(fmt):
    def rounds(x):
        with np.errstate(all="ignore"):
            return round_array(np.asarray(x, np.float64), fmt, "nearest_even")

    return rounds


def simulate(*args, **options):
    return jax.jit(pl.simulate(*args, **options))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def draw_complex(*shape, seed=0):
    return (draw(*shape, seed=seed) + 1j * draw(*shape, seed=seed + 1)).astype(np.complex64)


def positive(n, seed=0):
    a = draw(n, n, seed=seed)
    return a @ a.T / n + 2 * np.eye(n, dtype=np.float32)


def same(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(want, np.float64))


def pair(x):
    return np.asarray(x.real, np.float64), np.asarray(x.imag, np.float64)


def inner(x, rounds):
    return tuple(map(rounds, pair(x)))


# --- Complex numbers, entry by entry.


@FORMATS
def test_complex_products_quotients_and_sums_are_made_of_rounded_real_operations(fmt):
    rounds = law(fmt)
    x, y = draw_complex(40), draw_complex(40, seed=2)
    a, b = inner(x, rounds), inner(y, rounds)
    product, square, quotient, total = simulate(lambda x, y: (x * y, jnp.square(x), x / y, x + y), fmt)(x, y)
    assert product.dtype == jnp.complex64
    same(pair(product), twin.multiply(a, b, rounds))
    same(pair(square), twin.multiply(a, a, rounds))
    want = [twin.divide(p, q, rounds) for p, q in zip(zip(*a, strict=True), zip(*b, strict=True), strict=True)]
    same(pair(quotient), np.transpose(want))
    same(pair(total), [rounds(p + q) for p, q in zip(a, b, strict=True)])


@FORMATS
def test_complex_functions_are_rounded_once_in_both_parts(fmt):
    rounds = law(fmt)
    x = draw_complex(30)
    p, q = inner(x, rounds)
    held = (p + 1j * q).astype(np.complex64)
    size, grown, turned = simulate(lambda x: (jnp.abs(x), jnp.exp(x), jnp.conj(x)), fmt)(x)
    same(size, rounds(np.asarray(jnp.abs(held))))
    same(pair(grown), [rounds(np.asarray(part)) for part in pair(np.asarray(jnp.exp(held)))])
    same(pair(turned), (p, -q))


@FORMATS
def test_a_complex_matrix_product_is_four_real_ones(fmt):
    rounds = law(fmt)
    x, y = draw_complex(3, 5), draw_complex(5, 2, seed=4)
    (a, b), (c, d) = inner(x, rounds), inner(y, rounds)
    real = rounds(rounds(a @ c) - rounds(b @ d))
    imag = rounds(rounds(a @ d) + rounds(b @ c))
    same(pair(simulate(jnp.matmul, fmt)(x, y)), (real, imag))


def test_complex_constants_casts_and_choices():
    x = draw(6)
    rounds = law(BFLOAT16)

    def f(x):
        z = x.astype(jnp.complex64) + (0.1 + 0.7j)
        return jnp.where(x > 0, z, 2.0), jnp.sum(z), z == z

    chosen, total, equal = simulate(f, BFLOAT16)(x)
    real = rounds(rounds(x) + rounds(np.float32(0.1)))
    same(chosen.real, np.where(x > 0, real, 2.0))
    same(chosen.imag, np.where(x > 0, rounds(np.float32(0.7)), 0.0))
    same(total.real, rounds(real.sum()))
    assert equal.all()


@pytest.mark.slow
def test_complex_gradients_inside_and_outside():
    z = draw_complex(5)

    def loss(z):
        return jnp.sum(jnp.abs(z * z[::-1] / (z + 3) + jnp.exp(z)) ** 2)

    want = jax.grad(loss)(z)
    for gradient in (simulate(jax.grad(loss), None), jax.grad(simulate(loss, None))):
        np.testing.assert_allclose(gradient(z), want, rtol=1e-5)
    np.testing.assert_allclose(simulate(jax.grad(loss), BFLOAT16)(z), want, rtol=0.1, atol=0.3)


def test_complex_numbers_in_the_float64_carrier_and_in_an_error_profile():
    z = draw_complex(4)
    with jax.enable_x64(True):
        got = simulate(lambda z: z * z, BFLOAT16, carrier=jnp.float64)(z)
    assert got.dtype == jnp.complex64
    same(pair(got), pair(simulate(lambda z: z * z, BFLOAT16)(z)))
    profile = error_profile(lambda z: jnp.abs(z * z), BFLOAT16)(z)
    assert 1e-4 < profile.carried < 1e-2
    assert {op.primitive for op in profile.operations} >= {"mul", "sub", "add", "abs"}


# --- Fourier transforms.


@pytest.mark.sampled(2)
@FORMATS
@pytest.mark.parametrize("backwards", [False, True], ids=["fft", "ifft"])
def test_transforms_of_powers_of_two_are_butterflies(fmt, backwards):
    rounds = law(fmt)
    x = draw_complex(3, 8)
    got = simulate(jnp.fft.ifft if backwards else jnp.fft.fft, fmt)(x)
    for row, held in zip(got, x, strict=True):
        want = twin.fourier(*inner(held, rounds), 1 if backwards else -1, rounds)
        for _ in range(3 if backwards else 0):
            want = tuple(rounds(part * 0.5) for part in want)
        same(pair(row), want)


@pytest.mark.slow
def test_transforms_of_real_numbers_and_of_several_axes():
    rounds = law(BFLOAT16)
    x = draw(4, 8)
    half = simulate(jnp.fft.rfft, BFLOAT16)(x)
    for row, held in zip(half, x, strict=True):
        real, imag = twin.fourier(rounds(held), np.zeros(8), -1, rounds)
        same(pair(row), (real[:5], imag[:5]))
    plane = simulate(jnp.fft.rfft2, BFLOAT16)(x)
    for column in range(5):
        same(pair(plane[:, column]), twin.fourier(*pair(half[:, column]), -1, rounds))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("n", [1, 2, 4, 6, 16])
def test_transforms_there_and_back(n):
    x = draw(3, n) + 0j
    for there, back in ((jnp.fft.fft, jnp.fft.ifft), (jnp.fft.fft2, jnp.fft.ifft2)):
        np.testing.assert_allclose(simulate(there, None)(x), there(x), atol=2e-5)
        np.testing.assert_allclose(simulate(lambda x, f=there, g=back: g(f(x)), None)(x), x, atol=1e-5)
    y = draw(3, n)
    np.testing.assert_allclose(simulate(jnp.fft.rfft, None)(y), jnp.fft.rfft(y), atol=2e-5)
    np.testing.assert_allclose(simulate(lambda y: jnp.fft.irfft(jnp.fft.rfft(y), n), None)(y), y, atol=1e-5)


def test_a_transform_of_another_length_is_rounded_once():
    rounds = law(BFLOAT16)
    held = rounds(draw(6)).astype(np.float32)
    got = simulate(jnp.fft.fft, BFLOAT16)(held)
    same(pair(got), [rounds(part) for part in pair(np.asarray(jnp.fft.fft(held)))])


# --- Factorizations and solves.


@FORMATS
def test_cholesky_is_its_textbook_algorithm(fmt):
    rounds = law(fmt)
    a = positive(5)
    same(simulate(partial(jsl.cholesky, lower=True), fmt)(a), twin.cholesky(rounds(a), rounds))


def test_cholesky_of_what_is_not_positive_is_nan_throughout():
    a = np.diag(np.float32([1, -1, 1]))
    assert np.isnan(simulate(lax.linalg.cholesky, BFLOAT16)(a)[np.tril_indices(3)]).all()


@pytest.mark.sampled(3)
@FORMATS
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_lu_is_its_textbook_algorithm(fmt, shape):
    rounds = law(fmt)
    a = draw(*shape, seed=3)
    for got, want in zip(simulate(lax.linalg.lu, fmt)(a), twin.lu(rounds(a), rounds), strict=True):
        same(got, want)


@pytest.mark.sampled(2)
@FORMATS
@pytest.mark.parametrize("lower", [True, False], ids=["lower", "upper"])
def test_triangular_solve_is_substitution(fmt, lower):
    rounds = law(fmt)
    a, b = positive(4), draw(4, 2)
    want = twin.triangular_solve(rounds(a), rounds(b), lower, rounds)
    solve = partial(lax.linalg.triangular_solve, left_side=True, lower=lower)
    same(simulate(solve, fmt)(a, b), want)
    from_transposed = partial(lax.linalg.triangular_solve, left_side=True, lower=not lower, transpose_a=True)
    same(simulate(from_transposed, fmt)(a.T, b), want)
    from_right = partial(lax.linalg.triangular_solve, left_side=False, lower=not lower)
    same(simulate(from_right, fmt)(a.T, b.T), want.T)


@FORMATS
def test_tridiagonal_solve_eliminates_with_pivots(fmt):
    rounds = law(fmt)
    dl, d, du, b = (rounds(draw(6, seed=seed)) for seed in range(4))
    got = simulate(lax.linalg.tridiagonal_solve, fmt)(*(np.float32(x) for x in (dl, d, du)), np.float32(b)[:, None])
    same(got[:, 0], twin.tridiagonal_solve(dl, d, du, b, rounds))


def test_factorizations_in_a_batch_are_those_of_each():
    a = np.stack([positive(3), positive(3, seed=1)])
    both = simulate(jnp.linalg.cholesky, BFLOAT16)(a)
    same(both, [simulate(jnp.linalg.cholesky, BFLOAT16)(each) for each in a])
    same(jax.vmap(simulate(jnp.linalg.cholesky, BFLOAT16))(a), both)


def test_other_factorizations_are_rounded_once():
    rounds = law(BFLOAT16)
    a = rounds(positive(4)).astype(np.float32)
    for function in (lax.linalg.svd, lax.linalg.qr):
        for got, want in zip(simulate(function, BFLOAT16)(a), function(a), strict=True):
            same(got, rounds(np.asarray(want)))


def test_a_rule_for_a_factorization_rounds_it_as_a_whole():
    rounds = law(BFLOAT16)
    a = rounds(positive(4)).astype(np.float32)
    got = simulate(lax.linalg.cholesky, Rules(FLOAT32, primitives={"cholesky": BFLOAT16}))(a)
    same(got, rounds(np.asarray(lax.linalg.cholesky(a))))


SOLVES = {
    "solve": (jnp.linalg.solve, draw(3, 3), draw(3)),
    "complex solve": (jnp.linalg.solve, draw_complex(3, 3), draw_complex(3)),
    "slogdet": (lambda a: jnp.linalg.slogdet(a)[1], draw(3, 3)),
    "cho_solve": (lambda a, b: jsl.cho_solve(jsl.cho_factor(a), b), positive(3), draw(3)),
    "lu": (lambda a: lax.linalg.lu(a)[0], draw(4, 3)),
    "tridiagonal": (lambda d: lax.linalg.tridiagonal_solve(d / 2, d, d + 0.1, d[:, None]), draw(4) + 3),
    "rfft": (jnp.fft.rfft, draw(8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVES)
def test_gradients_of_solves_inside_and_outside(name):
    function, *args = SOLVES[name]

    def loss(*args):
        return jnp.sum(jnp.abs(function(*args)) ** 2)

    want = jax.grad(loss)(*args)
    size = np.max(np.abs(want))
    for gradient, close in ((simulate(jax.grad(loss), None), 1e-5), (jax.grad(simulate(loss, None)), 1e-5)):
        np.testing.assert_allclose(jax.jit(gradient)(*args), want, rtol=0, atol=close * size)
    coarse = jax.jit(jax.grad(simulate(loss, BFLOAT16)))(*args)
    np.testing.assert_allclose(coarse, want, rtol=0, atol=0.2 * size)


# --- Windows and scatters.


@FORMATS
def test_a_reduction_over_windows_goes_row_by_row(fmt):
    rounds = law(fmt)
    x = draw(4, 5)
    held = rounds(x)

    def products(x):
        return lax.reduce_window(x, 1.0, lax.mul, (2, 2), (1, 2), [(0, 0), (1, 0)])

    padded = np.pad(held, [(0, 0), (1, 0)], constant_values=1.0)
    want = np.ones((3, 3))
    for i, j in np.ndindex(3, 3):
        for entry in padded[i : i + 2, 2 * j : 2 * j + 2].ravel():
            want[i, j] = rounds(want[i, j] * entry)
    same(simulate(products, fmt)(x), want)


def test_window_sums_follow_the_accumulation():
    x = np.float32([256, 1, 1, 1, -256])
    summed = partial(lax.reduce_window, init_value=0.0, computation=lax.add, window_dimensions=(5,), window_strides=(1,))
    same(simulate(partial(summed, padding="VALID"), BFLOAT16)(x), [3.0])
    narrow = simulate(partial(summed, padding="VALID"), BFLOAT16, accumulation=Accumulation(accumulate=BFLOAT16))
    same(narrow(x), [0.0])


@pytest.mark.parametrize("how", [None, Accumulation(accumulate=BFLOAT16)], ids=["once", "in order"])
def test_scattered_updates_come_in_the_order_in_which_they_are_written(how):
    places = np.int32([0, 1, 0, 0, 2, 0, 9])
    terms = np.float32([256, 3, 1, 1, 5, 1, 7])
    added = simulate(lambda x, u: x.at[places].add(u, mode="drop"), BFLOAT16, accumulation=how)
    same(added(np.zeros(3, np.float32), terms), [260.0 if how is None else 256.0, 3.0, 5.0])
    backwards = simulate(lambda x, u: x.at[places[::-1]].add(u, mode="drop"), BFLOAT16, accumulation=how)
    same(backwards(np.zeros(3, np.float32), terms[::-1]), [260.0, 3.0, 5.0])
    sums = simulate(partial(jax.ops.segment_sum, num_segments=3), BFLOAT16, accumulation=how)
    same(sums(terms, places), [260.0 if how is None else 256.0, 3.0, 5.0])


def test_scattered_rows_products_and_differences_in_order():
    how, rounds = Accumulation(accumulate=FLOAT8_E4M3FN), law(FLOAT8_E4M3FN)
    x, rows, places = draw(4, 3), draw(6, 3, seed=1), np.int32([1, 3, 1, 1, 0, 3])
    for update in ("add", "subtract", "multiply"):
        got = simulate(lambda x, u, name=update: getattr(x.at[places], name)(u), FLOAT8_E4M3FN, accumulation=how)(x, rows)
        want, terms = rounds(x), rounds(rows)
        step = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply}[update]
        for place, row in zip(places, terms, strict=True):
            want[place] = rounds(step(want[place], row))
        same(got, want)


def test_scattered_updates_have_the_exact_derivative_and_draw_their_bits():
    places = np.int32([0, 1, 0])
    how = Accumulation(accumulate=BFLOAT16)

    def loss(x, u):
        return jnp.sum(x.at[places].add(u) ** 2)

    x, u = draw(2), draw(3, seed=1)
    got = jax.grad(simulate(loss, None, accumulation=Accumulation()), argnums=(0, 1))(x, u)
    for mine, want in zip(got, jax.grad(loss, argnums=(0, 1))(x, u), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-6)
    random = simulate(lambda u: jnp.zeros(2).at[places * 0].add(u), BFLOAT16, mode=stochastic, accumulation=how)
    draws = [float(random(np.float32([256, 0.5, 0.5]), key=jax.random.key(seed))[0]) for seed in range(12)]
    assert set(draws) <= {256.0, 258.0}
    assert len(set(draws)) == 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", [None, Accumulation(BFLOAT16, BFLOAT16)], ids=["once", "in order"])
def test_a_ragged_product_is_a_product_group_by_group(how):
    x, w, y = draw(6, 3), draw(2, 3, 4, seed=1), draw(6, 2, seed=2)
    sizes = np.int32([2, 3])  # the last row is in no group
    matmul = simulate(jnp.matmul, BFLOAT16, accumulation=how)
    got = simulate(lambda x, w: lax.ragged_dot(x, w, sizes), BFLOAT16, accumulation=how)(x, w)
    same(got, np.concatenate([matmul(x[:2], w[0]), matmul(x[2:5], w[1]), np.zeros((1, 4))]))
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    contracted = simulate(lambda x, y: lax.ragged_dot_general(x, y, sizes, numbers), BFLOAT16, accumulation=how)(x, y)
    same(contracted, np.stack([matmul(x[:2].T, y[:2]), matmul(x[2:5].T, y[2:5])]))


def test_a_scaled_product_rounds_the_scaled_entries():
    rounds = law(BFLOAT16)
    a, b = draw(1, 3, 8), draw(1, 2, 8, seed=1)
    scales, ones = np.abs(draw(1, 3, 2, seed=2)), np.ones((1, 2, 2), np.float32)
    scaled = rounds(rounds(a) * np.repeat(rounds(scales), 4, axis=2))
    got = simulate(lambda *args: jax.nn.scaled_matmul(*args, preferred_element_type=jnp.float32), BFLOAT16)(a, b, scales, ones)
    same(got[0], rounds(scaled[0] @ rounds(b)[0].T))
