"""The public functions of JAX, each with small arguments that it takes: what `simulate` has to work on.

Nobody lists them. `surface()` walks the modules of the installed release, and tries on each function the arguments below, one
after the other, until one is taken that has floating-point numbers in it or gives some; where none fits, `GIVEN` says which.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import jax.scipy.special as jss
import numpy as np
from jax import lax

MODULES = {
    "jnp": jnp,
    "jnp.fft": jnp.fft,
    "jnp.linalg": jnp.linalg,
    "jax.nn": jax.nn,
    "lax": lax,
    "lax.linalg": lax.linalg,
    "jax.scipy.special": jss,
    "jax.scipy.linalg": jsl,
    "jax.random": jax.random,
}

V = np.float32([0.3, 0.6, 0.45, 0.8])
W = np.float32([0.7, 0.2, 0.5, 0.9])
M = np.float32([[2.0, 0.3, 0.1, 0.2], [0.3, 3.0, 0.4, 0.1], [0.1, 0.4, 2.5, 0.3], [0.2, 0.1, 0.3, 4.0]])
C = (M + 1j * np.tril(M, -1) - 1j * np.triu(M, 1)).astype(np.complex64)
N = np.int32([1, 0, 3, 2])
IMAGE = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 4, 4, 2)
KERNEL = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 2, 2, 2)

CANDIDATES: list[tuple[Any, ...]] = [
    (V,),
    (M,),
    (V, W),
    (M, V),
    (M, M),
    (V, W, W),
    (M, V, V),
    (V, N),
    (M, N),
    (V, 2),
    (M, 2),
    (M, 1, 0),
    (2, V),
    (V, V, 2),
    (C,),
    ([V, W],),
    (V, V, V, V),
    (N, V),
    (V > 0.4, V),
    (N,),
    (N, N),
    (3,),
    (0.0, 1.0, 4),
    (3, 2),
    ((2, 3),),
    ((2, 3), 1.5),
]


class Call(NamedTuple):
    """One public function with arguments: `run(*arrays)` for the arrays among them, the others closed over."""

    name: str
    run: Callable[..., Any]
    arrays: tuple[Any, ...]


def _key() -> Any:
    return jax.random.key(0)


def _reflectors(a: Any) -> tuple[Any, Any]:
    packed, scales = jnp.linalg.qr(a, mode="raw")
    return packed.T, scales


def _sums(x: Any, y: Any) -> Any:
    return lax.add(x, y)


def _over_axis(name: str) -> Any:
    """A collective, over the axis of a vmap."""
    options = {"ppermute": {"perm": [(0, 1), (1, 0)]}, "all_to_all": {"split_axis": 0, "concat_axis": 0}}.get(name, {})
    options = {"axis": 0} | options if name == "pswapaxes" else options
    return jax.vmap(lambda x: getattr(lax, name)(x, "i", **options), axis_name="i"), (M[:2, :2],)


def _over_first(name: str) -> Any:
    options = {"index_dtype": jnp.int32} if name.startswith("arg") else {}
    axes = {"axis": 0} if name.startswith("arg") else {"axes": (0,)}
    return lambda x: getattr(lax, name)(x, **axes, **options), (M,)


_COLLECTIVES = ("all_gather", "all_to_all", "pmax", "pmean", "pmin", "ppermute", "pswapaxes", "psum", "psum_scatter")
_dot = (((1,), (0,)), ((), ()))
_conv = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
GIVEN: dict[str, Callable[[], Callable[..., Any] | tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "jnp.apply_along_axis": lambda: (lambda x: jnp.apply_along_axis(jnp.sum, 0, x), (M,)),
    "jnp.apply_over_axes": lambda: (lambda x: jnp.apply_over_axes(jnp.sum, x, [0]), (M,)),
    "jnp.array_repr": lambda: None,
    "jnp.bincount": lambda: (lambda w: jnp.bincount(N, weights=w, length=4), (V,)),
    "jnp.block": lambda: (lambda x: jnp.block([[x, x], [x, x]]), (M,)),
    "jnp.choose": lambda: (lambda x: jnp.choose(N % 2, [x, 2 * x], mode="clip"), (V,)),
    "jnp.compress": lambda: (lambda x: jnp.compress(np.array([True, False, True, True]), x, size=3), (V,)),
    "jnp.concat": lambda: (lambda x: jnp.concat([x, x]), (V,)),
    "jnp.delete": lambda: (lambda x: jnp.delete(x, 1), (V,)),
    "jnp.einsum": lambda: (lambda x, y: jnp.einsum("ij,jk->ik", x, y), (M, M)),
    "jnp.einsum_path": lambda: None,
    "jnp.extract": lambda: (lambda x: jnp.extract(x > 0.4, x, size=2), (V,)),
    "jnp.fill_diagonal": lambda: (lambda x: jnp.fill_diagonal(x, 1.5, inplace=False), (M,)),
    "jnp.frombuffer": lambda: None,
    "jnp.fromfile": lambda: None,
    "jnp.fromfunction": lambda: None,
    "jnp.fromiter": lambda: None,
    "jnp.frompyfunc": lambda: (lambda x: jnp.frompyfunc(_sums, 2, 1, identity=0).reduce(x), (V,)),
    "jnp.fromstring": lambda: None,
    "jnp.histogram": lambda: (lambda x: jnp.histogram(x, bins=3), (V,)),
    "jnp.histogram2d": lambda: (lambda x, y: jnp.histogram2d(x, y, bins=3), (V, W)),
    "jnp.histogramdd": lambda: (lambda x: jnp.histogramdd(x, bins=2), (M[:, :2],)),
    "jnp.insert": lambda: (lambda x: jnp.insert(x, 1, 2.0), (V,)),
    "jnp.intersect1d": lambda: (lambda x, y: jnp.intersect1d(x, y, size=2), (V, W)),
    "jnp.load": lambda: None,
    "jnp.mask_indices": lambda: None,
    "jnp.nonzero": lambda: (lambda x: x * jnp.nonzero(x > 0, size=4)[0].astype(jnp.float32), (V,)),
    "jnp.argwhere": lambda: (lambda x: jnp.argwhere(x, size=4), (V,)),
    "jnp.flatnonzero": lambda: (lambda x: jnp.flatnonzero(x, size=4), (V,)),
    "jnp.pad": lambda: (lambda x: jnp.pad(x, 1, mode="linear_ramp"), (M,)),
    "jnp.piecewise": lambda: (lambda x: jnp.piecewise(x, [x < 0.5, x >= 0.5], [jnp.sin, jnp.cos]), (V,)),
    "jnp.place": lambda: (lambda x: jnp.place(x, x > 0.4, W, inplace=False), (V,)),
    "jnp.poly": lambda: (jnp.poly, (V,)),
    "jnp.polyfit": lambda: (lambda x, y: jnp.polyfit(x, y, 1), (V, W)),
    "jnp.printoptions": lambda: None,
    "jnp.put": lambda: (lambda x, y: jnp.put(x, N, y, inplace=False), (V, W)),
    "jnp.put_along_axis": lambda: (lambda x, y: jnp.put_along_axis(x, N, y, 0, inplace=False), (V, W)),
    "jnp.roots": lambda: (lambda x: jnp.roots(x, strip_zeros=False), (V,)),
    "jnp.save": lambda: None,
    "jnp.savez": lambda: None,
    "jnp.select": lambda: (lambda x: jnp.select([x < 0.5, x > 0.5], [x, 2 * x], 1.0), (V,)),
    "jnp.setdiff1d": lambda: (lambda x, y: jnp.setdiff1d(x, y, size=4), (V, W)),
    "jnp.setxor1d": lambda: (lambda x, y: jnp.setxor1d(x, y, size=8), (V, W)),
    "jnp.union1d": lambda: (lambda x, y: jnp.union1d(x, y, size=8), (V, W)),
    "jnp.unique": lambda: (lambda x: jnp.unique(x, size=4), (V,)),
    "jnp.unique_all": lambda: (lambda x: jnp.unique_all(x, size=4), (V,)),
    "jnp.unique_counts": lambda: (lambda x: jnp.unique_counts(x, size=4), (V,)),
    "jnp.unique_inverse": lambda: (lambda x: jnp.unique_inverse(x, size=4), (V,)),
    "jnp.unique_values": lambda: (lambda x: jnp.unique_values(x, size=4), (V,)),
    "jnp.vectorize": lambda: (lambda x: jnp.vectorize(jnp.sum, signature="(n)->()")(x), (M,)),
    "jnp.linalg.multi_dot": lambda: (lambda x: jnp.linalg.multi_dot([x, x, x]), (M,)),
    "jnp.linalg.tensorinv": lambda: (lambda x: jnp.linalg.tensorinv(x.reshape(2, 2, 2, 2), ind=2), (M,)),
    "jnp.linalg.tensorsolve": lambda: (
        lambda x, y: jnp.linalg.tensorsolve(x.reshape(2, 2, 2, 2), y),
        (M, np.ones((2, 2), np.float32)),
    ),
    "jax.nn.dot_product_attention": lambda: (jax.nn.dot_product_attention, (IMAGE, IMAGE, IMAGE)),
    "jax.nn.scaled_matmul": lambda: (
        jax.nn.scaled_matmul,
        (
            np.ones((1, 4, 4), np.float32),
            np.ones((1, 4, 4), np.float32),
            np.full((1, 4, 2), 2.0, np.float32),
            np.ones((1, 4, 2), np.float32),
        ),
    ),
    "jax.nn.scaled_dot_general": lambda: None,
    "jax.nn.get_scaled_dot_general_config": lambda: None,
    "jnp.astype": lambda: (lambda x: jnp.astype(x, jnp.bfloat16), (V,)),
    "jnp.cross": lambda: (jnp.cross, (V[:3], W[:3])),
    "jnp.linalg.cross": lambda: (jnp.linalg.cross, (V[:3], W[:3])),
    "jnp.dsplit": lambda: (lambda x: jnp.dsplit(x, 2), (IMAGE[0],)),
    "jnp.permute_dims": lambda: (lambda x: jnp.permute_dims(x, (1, 0)), (M,)),
    "jnp.reshape": lambda: (lambda x: jnp.reshape(x, (2, 8)), (M,)),
    "jnp.trim_zeros": lambda: None,
    "lax.rng_bit_generator": lambda: (lambda key: lax.rng_bit_generator(key, (3,))[1], (np.arange(4, dtype=np.uint32),)),
    **{f"lax.{name}": partial(_over_axis, name) for name in _COLLECTIVES},
    **{f"lax.arg{end}": partial(_over_first, f"arg{end}") for end in ("max", "min")},
    **{f"lax.reduce_{kind}": partial(_over_first, f"reduce_{kind}") for kind in ("max", "min", "prod", "sum")},
    "lax.axis_index": lambda: (
        jax.vmap(lambda x: x * lax.axis_index("i").astype(jnp.float32), axis_name="i"),
        (M[:2],),
    ),
    "lax.broadcast": lambda: (lambda x: lax.broadcast(x, (2,)), (V,)),
    "lax.index_take": lambda: (lambda x: lax.index_take(x, (N,), (0,)), (V,)),
    "lax.platform_dependent": lambda: (lambda x: lax.platform_dependent(x, default=jnp.sin), (V,)),
    "lax.rev": lambda: (lambda x: lax.rev(x, (0,)), (V,)),
    "lax.rng_uniform": lambda: None,
    "lax.squeeze": lambda: (lambda x: lax.squeeze(x, (0,)), (V[None],)),
    "lax.tile": lambda: (lambda x: lax.tile(x, (2,)), (V,)),
    "lax.transpose": lambda: (lambda x: lax.transpose(x, (1, 0)), (M,)),
    "lax.broadcasted_iota": lambda: (lambda x: x * lax.broadcasted_iota(jnp.float32, (4, 4), 0), (M,)),
    "lax.iota": lambda: (lambda x: x * lax.iota(jnp.float32, 4), (V,)),
    "jax.scipy.linalg.leslie": lambda: (lambda f, s: jsl.leslie(f, s[:3]), (V, W)),
    "jax.scipy.linalg.solve_sylvester": lambda: (jsl.solve_sylvester, (M, M, M)),
    "jax.random.multinomial": lambda: (lambda k, p: jax.random.multinomial(k, 5.0, p / p.sum()), (_key(), V)),
    "lax.approx_max_k": lambda: (lambda x: lax.approx_max_k(x, 2), (V,)),
    "lax.approx_min_k": lambda: (lambda x: lax.approx_min_k(x, 2), (V,)),
    "lax.associative_scan": lambda: (lambda x: lax.associative_scan(jnp.multiply, x), (V,)),
    "lax.batch_matmul": lambda: (lax.batch_matmul, (M[None], M[None])),
    "lax.betainc": lambda: (lax.betainc, (V, W, V)),
    "lax.bitcast_convert_type": lambda: (lambda x: lax.bitcast_convert_type(x, jnp.int32), (V,)),
    "lax.broadcast_in_dim": lambda: (lambda x: lax.broadcast_in_dim(x, (2, 4), (1,)), (V,)),
    "lax.broadcast_to_rank": lambda: (lambda x: lax.broadcast_to_rank(x, 2), (V,)),
    "lax.clamp": lambda: (lambda x: lax.clamp(0.4, x, 0.7), (V,)),
    "lax.complex": lambda: (lax.complex, (V, W)),
    "lax.composite": lambda: (lambda x: lax.composite(lambda x: x * x, "own.square")(x), (V,)),
    "lax.concatenate": lambda: (lambda x, y: lax.concatenate([x, y], 0), (V, W)),
    "lax.cond": lambda: (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), (V,)),
    "lax.conv": lambda: (lambda x, k: lax.conv(x, k, (1, 1), "SAME"), (np.moveaxis(IMAGE, 3, 1), KERNEL)),
    "lax.conv_general_dilated": lambda: (
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", **_conv),
        (IMAGE, KERNEL),
    ),
    "lax.conv_general_dilated_local": lambda: (
        lambda x, k: lax.conv_general_dilated_local(x, k, (1,), "VALID", (2,)),
        (V[None, None], np.ones((1, 2, 3), np.float32)),
    ),
    "lax.conv_general_dilated_patches": lambda: (
        lambda x: lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "VALID"),
        (np.moveaxis(IMAGE, 3, 1),),
    ),
    "lax.conv_transpose": lambda: (lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME"), (IMAGE, KERNEL)),
    "lax.conv_with_general_padding": lambda: (
        lambda x, k: lax.conv_with_general_padding(x, k, (1, 1), [(0, 0), (1, 1)], None, None),
        (np.moveaxis(IMAGE, 3, 1), KERNEL),
    ),
    "lax.convert_element_type": lambda: (lambda x: lax.convert_element_type(x, jnp.bfloat16), (V,)),
    "lax.custom_linear_solve": lambda: (
        lambda a, b: lax.custom_linear_solve(lambda x: a @ x, b, lambda _, b: jnp.linalg.solve(a, b), symmetric=True),
        (M, V),
    ),
    "lax.custom_root": lambda: (
        lambda a: lax.custom_root(
            lambda z: z * z - a, a, lambda f, z: z - f(z) / (2 * z), lambda g, y: y / g(jnp.float32(1.0))
        ),
        (np.float32(2.0),),
    ),
    "lax.dot_general": lambda: (lambda x, y: lax.dot_general(x, y, _dot), (M, M)),
    "lax.dynamic_index_in_dim": lambda: (lambda x: lax.dynamic_index_in_dim(x, 1), (V,)),
    "lax.dynamic_slice": lambda: (lambda x: lax.dynamic_slice(x, (1,), (2,)), (V,)),
    "lax.dynamic_slice_in_dim": lambda: (lambda x: lax.dynamic_slice_in_dim(x, 1, 2), (V,)),
    "lax.dynamic_update_index_in_dim": lambda: (lambda x: lax.dynamic_update_index_in_dim(x, 9.0, 1, 0), (V,)),
    "lax.dynamic_update_slice": lambda: (lambda x, y: lax.dynamic_update_slice(x, y[:2], (1,)), (V, W)),
    "lax.dynamic_update_slice_in_dim": lambda: (lambda x, y: lax.dynamic_update_slice_in_dim(x, y[:2], 1, 0), (V, W)),
    "lax.expand_dims": lambda: (lambda x: lax.expand_dims(x, (0,)), (V,)),
    "lax.fft": lambda: (lambda x: lax.fft(x, "FFT", (4,)), (C,)),
    "lax.fori_loop": lambda: (lambda x: lax.fori_loop(0, 3, lambda _, x: x * 1.5, x), (V,)),
    "lax.gather": lambda: (lambda x: jnp.take(x, N), (V,)),
    "lax.integer_pow": lambda: (lambda x: lax.integer_pow(x, 3), (V,)),
    "lax.map": lambda: (lambda x: lax.map(jnp.sin, x), (V,)),
    "lax.pad": lambda: (lambda x: lax.pad(x, jnp.float32(1), [(1, 1, 1)]), (V,)),
    "lax.polynomial": lambda: (lambda x: lax.polynomial(x, [1.0, 2.0, 3.0]), (V,)),
    "lax.ragged_dot": lambda: (lambda x, y: lax.ragged_dot(x, y, jnp.array([1, 3])), (M, np.stack([M, M]))),
    "lax.ragged_dot_general": lambda: (
        lambda x, y: lax.ragged_dot_general(
            x, y, jnp.array([1, 3]), lax.RaggedDotDimensionNumbers((((1,), (0,)), ((), ())), [1], [])
        ),
        (M, M),
    ),
    "lax.random_gamma_grad": lambda: (lax.random_gamma_grad, (V, W)),
    "lax.reduce": lambda: (lambda x: lax.reduce(x, jnp.float32(1), lambda x, y: x * y, (0,)), (M,)),
    "lax.reduce_precision": lambda: (lambda x: lax.reduce_precision(x, 5, 3), (V,)),
    "lax.reduce_window": lambda: (lambda x: lax.reduce_window(x, 1.0, lax.mul, (2, 2), (1, 1), "SAME"), (M,)),
    "lax.scan": lambda: (lambda x: lax.scan(lambda c, y: (c * 0.5 + y, c), jnp.float32(0), x), (V,)),
    "lax.scaled_dot": lambda: None,
    "lax.scatter": lambda: (lambda x, y: x.at[N[:2]].set(y[:2]), (V, W)),
    "lax.scatter_add": lambda: (lambda x, y: x.at[N[:2]].add(y[:2]), (V, W)),
    "lax.scatter_apply": lambda: (lambda x: x.at[N[:2]].apply(jnp.sin), (V,)),
    "lax.scatter_max": lambda: (lambda x, y: x.at[N[:2]].max(y[:2]), (V, W)),
    "lax.scatter_min": lambda: (lambda x, y: x.at[N[:2]].min(y[:2]), (V, W)),
    "lax.scatter_mul": lambda: (lambda x, y: x.at[N[:2]].multiply(y[:2]), (V, W)),
    "lax.scatter_sub": lambda: (lambda x, y: x.at[N[:2]].subtract(y[:2]), (V, W)),
    "lax.select": lambda: (lambda x, y: lax.select(x > y, x, y), (V, W)),
    "lax.select_n": lambda: (lambda x, y: lax.select_n(x > y, x, y), (V, W)),
    "lax.slice": lambda: (lambda x: lax.slice(x, (1,), (3,)), (V,)),
    "lax.slice_in_dim": lambda: (lambda x: lax.slice_in_dim(x, 1, 3), (V,)),
    "lax.split": lambda: (lambda x: lax.split(x, (1, 3)), (V,)),
    "lax.switch": lambda: (lambda x: lax.switch(1, [jnp.sin, jnp.cos], x), (V,)),
    "lax.while_loop": lambda: (lambda x: lax.while_loop(lambda x: x[0] < 2, lambda x: x * 2, x), (V,)),
    "lax.zeros_like_array": lambda: None,
    "lax.linalg.ormqr": lambda: (lambda a: lax.linalg.ormqr(*_reflectors(a), a), (M,)),
    "lax.linalg.householder_product": lambda: (lambda a: lax.linalg.householder_product(*_reflectors(a)), (M,)),
    "lax.linalg.symmetric_product": lambda: (lambda a, c: lax.linalg.symmetric_product(a, c, alpha=2.0, beta=1.0), (M, M)),
    "lax.linalg.triangular_solve": lambda: (lambda a, b: lax.linalg.triangular_solve(a, b, left_side=True, lower=True), (M, M)),
    "lax.linalg.tridiagonal_solve": lambda: (
        lambda d, e, b: lax.linalg.tridiagonal_solve(e / 4, d, e / 4, b[:, None]),
        (V, W, V),
    ),
    "jax.scipy.linalg.cho_solve": lambda: (lambda a, b: jsl.cho_solve((a, True), b), (M, V)),
    "jax.scipy.linalg.lu_solve": lambda: (lambda a, b: jsl.lu_solve(jsl.lu_factor(a), b), (M, V)),
    "jax.scipy.linalg.eigh_tridiagonal": lambda: (lambda d, e: jsl.eigh_tridiagonal(d, e[:3], eigvals_only=True), (V, W)),
    "jax.scipy.linalg.block_diag": lambda: (jsl.block_diag, (M, M)),
    "jax.scipy.linalg.funm": lambda: (lambda a: jsl.funm(a, jnp.exp), (M,)),
    "jax.scipy.linalg.hilbert": lambda: (lambda x: x * jsl.hilbert(4).astype(jnp.float32), (M,)),
    "jax.scipy.linalg.rsf2csf": lambda: (lambda a: jsl.rsf2csf(*jsl.schur(a)), (M,)),
    "jax.scipy.special.bessel_jn": lambda: (lambda x: jss.bessel_jn(x, v=2, n_iter=10), (V,)),
    "jax.scipy.special.lpmn": lambda: None,
    "jax.scipy.special.lpmn_values": lambda: None,
    "jax.scipy.special.sph_harm": lambda: None,
    "jax.scipy.special.sph_harm_y": lambda: (
        lambda x, y: jss.sph_harm_y(np.int32([1]), np.int32([1]), x[:1], y[:1], n_max=2),
        (V, W),
    ),
    "jax.scipy.special.multigammaln": lambda: (lambda x: jss.multigammaln(x + 2, 2), (V,)),
    "jax.scipy.special.polygamma": lambda: (lambda x: jss.polygamma(1, x), (V,)),
    "jax.random.ball": lambda: (lambda k: jax.random.ball(k, 2), (_key(),)),
    "jax.random.binomial": lambda: (lambda k, p: jax.random.binomial(k, 5.0, p), (_key(), V)),
    "jax.random.choice": lambda: (lambda k, p: jax.random.choice(k, p, (2,), p=p / p.sum()), (_key(), V)),
    "jax.random.multivariate_normal": lambda: (lambda k, m, c: jax.random.multivariate_normal(k, m, c), (_key(), V, M)),
    "jax.random.randint": lambda: (lambda k: jax.random.randint(k, (3,), 0, 5), (_key(),)),
    "jax.random.triangular": lambda: (lambda k: jax.random.triangular(k, 0.0, 0.5, 1.0, (3,)), (_key(),)),
    "jax.random.truncated_normal": lambda: (lambda k, v: jax.random.truncated_normal(k, -v, v), (_key(), V)),
    "jax.random.orthogonal": lambda: (lambda k: jax.random.orthogonal(k, 3), (_key(),)),
    "jax.random.wald": lambda: (jax.random.wald, (_key(), V)),
}
"""What the candidates do not fit, or fit badly; None for what is no function of arrays."""


def _public(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(dir(module)):
        function = getattr(module, name, None)
        if name.startswith("_") or not callable(function) or inspect.isclass(function) or inspect.ismodule(function):
            continue
        yield name, function


def calls(only: str | None = None) -> Iterator[Call | str]:
    """Every public function with arguments that it takes; its name alone, where there are none."""
    for path, module in MODULES.items():
        for name, function in _public(module):
            full = f"{path}.{name}"
            if only is None or full == only:
                found = _call(full, function, path == "jax.random")
                if found is not None:
                    yield found


def _call(full: str, function: Callable[..., Any], random: bool) -> Call | str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if full in GIVEN:
            given: Any = GIVEN[full]()
            return None if given is None else Call(full, *given)
        prefix = (_key(),) if random else ()
        for arguments in CANDIDATES if not random else [(), (V,), (V, W), (V, (4,)), ((3,),), (3,), (V, V, V), (V, W, (4,))]:
            run, arrays = _closed(function, prefix + arguments)
            try:
                results = jax.tree.leaves(jax.eval_shape(run, *arrays))
                assert results
                assert all(hasattr(leaf, "dtype") for leaf in results)
            except Exception:  # whatever it says, these are not its arguments
                continue
            return Call(full, run, arrays)
    return full


def _closed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A function of the arrays among the arguments alone."""
    leaves, tree = jax.tree.flatten(arguments)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, (np.ndarray, jax.Array))]

    def run(*arrays: Any) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return function(*jax.tree.unflatten(tree, filled))

    return run, tuple(leaves[place] for place in places)
