"""What each primitive of JAX does to floating-point values.

Four kinds. *Exact* ones move, compare or choose: what comes out was there before. *Rounded* ones compute something that the
format may not hold, and are rounded once. *Structural* ones hold programs of their own, which are walked. Anything else works
on floats in a way that one rounding at the end would misrepresent (a factorization, a Fourier transform, a callback), and is
refused unless its user names it.
"""

from jax.extend.core import primitives

__all__ = ["EXACT", "FLIPS_SIGN", "KNOWN", "PRODUCTS", "ROUNDED", "SAMPLERS", "STRUCTURAL"]

# fmt: off
EXACT = frozenset({
    "abs", "all_gather", "all_gather_invariant", "all_to_all", "approx_top_k", "argmax", "argmin", "broadcast_in_dim",
    "broadcast_to", "clamp", "concatenate", "copy", "copy_p", "cummax", "cummin", "dce_sink", "debug_callback",
    "debug_print", "device_put", "dynamic_slice", "dynamic_update_slice", "empty", "empty2", "eq", "eq_to",
    "expand_dims", "gather", "ge", "gt", "is_finite", "layout_constraint", "le", "le_to", "lt", "lt_to", "max", "min",
    "name", "ne", "neg", "optimization_barrier", "pad", "pbroadcast", "pcast", "pmax", "pmin", "ppermute", "pvary",
    "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "reshape", "reshard", "rev", "scatter",
    "scatter-max", "scatter-min", "select_and_gather_add", "select_n", "shard_alike", "sharding_constraint", "slice",
    "sort", "split", "squeeze", "stack", "stop_gradient", "tie", "tile", "top_k", "transpose", "unstack", "zeros_like",
})
"""Results are among the operands (or zero): on the grid if those are."""

ROUNDED = frozenset({
    "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "bitcast_convert_type", "cbrt", "ceil", "conv_general_dilated", "convert_element_type", "cos", "cosh",
    "cumlogsumexp", "cumprod", "cumsum", "digamma", "div", "dot_general", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "igamma", "igamma_grad_a", "igammac", "integer_pow", "iota", "lgamma", "log", "log1p",
    "logistic", "mul", "nextafter", "polygamma", "pow", "psum", "psum_invariant", "random_gamma_grad",
    "reduce_precision", "reduce_prod", "reduce_scatter", "reduce_sum", "reduce_window_sum",
    "regularized_incomplete_beta", "rem", "rng_uniform", "round", "rsqrt", "scatter-add", "scatter-mul", "scatter-sub",
    "select_and_scatter_add", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "unreduced_psum", "zeta",
})
"""One rounding of the result."""

STRUCTURAL = frozenset({
    "call", "closed_call", "composite", "cond", "core_call", "custom_jvp_call", "custom_linear_solve", "custom_vjp_call", "jit",
    "reduce", "remat2", "scan", "shard_map", "while",
})
"""Programs within the program."""

SAMPLERS = frozenset({
    "_ball", "_bernoulli", "_beta", "_binomial", "_cauchy", "_chisquare", "_dirichlet", "_double_sided_maxwell",
    "_exponential", "_f", "_gamma", "_generalized_normal", "_geometric", "_gumbel", "_laplace", "_logistic",
    "_lognormal", "_maxwell", "_multivariate_normal", "_normal", "_normal_real", "_orthogonal", "_pareto", "_poisson",
    "_rademacher", "_randint", "_rayleigh", "_t", "_triangular", "_truncated_normal", "_uniform", "_wald",
    "_weibull_min",
})
"""The jitted functions of `jax.random`. A draw is one operation: rounded step by step, a uniform number could become 1."""

PRODUCTS = ROUNDED - {
    "add", "add_any", "ceil", "convert_element_type", "floor", "iota", "nextafter", "rem", "round", "sign", "sqrt",
    "sub",
}
"""Rounded ones that may end in a multiplication, which compilers like to contract with a sum that follows."""
# fmt: on

FLIPS_SIGN = frozenset({"neg"})
"""Exact, but for formats that have no -0 or no negative values."""

KNOWN = EXACT | ROUNDED | STRUCTURAL | {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
"""All that can be named before a function has been seen: a slip in one of these names is told from a library's own primitive."""
