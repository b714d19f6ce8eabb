"""What each primitive of JAX does to floating-point values.

*Exact* ones move, compare or choose: what comes out was there before. *Rounded* ones compute something that the format may not
hold, and are rounded once. *Structural* ones hold programs of their own, which are walked. *Opaque* ones are programs for
something else than JAX (a callback, a kernel): they run as they are, their results are rounded once, and the user is told.
A primitive that stands nowhere here is asked for what it is made of (`arithmetic/programs/equations`), and is opaque if
that is not known.
"""

from jax.extend.core import primitives

__all__ = [
    "EXACT", "EXPANDED", "FACTORIZATIONS", "FLIPS_SIGN", "KNOWN", "OPAQUE", "PRODUCTS", "ROUNDED", "SAMPLERS", "STRUCTURAL",
    "WITHOUT_FLOATS",
]  # fmt: skip

# fmt: off
EXACT = frozenset({
    "abs", "all_gather", "all_gather_done", "all_gather_invariant", "all_gather_reduced", "all_gather_reduced_start",
    "all_gather_start", "all_to_all", "all_to_all_done", "all_to_all_start", "approx_top_k", "argmax", "argmin",
    "broadcast_in_dim", "broadcast_to", "clamp", "complex", "concatenate", "conj", "copy", "copy_p", "cummax", "cummin",
    "dce_sink", "debug_callback", "debug_print", "device_put", "dynamic_slice", "dynamic_update_slice", "empty",
    "empty2", "eq", "eq_to", "expand_dims", "gather", "ge", "global_array_to_host_local_array", "gt",
    "host_local_array_to_global_array", "imag", "is_finite", "layout_constraint", "le", "le_to", "lt", "lt_to", "max",
    "min", "name", "ne", "neg", "optimization_barrier", "pad", "pbroadcast", "pbroadcast_done", "pbroadcast_start",
    "pcast", "pin", "pmax", "pmin", "ppermute", "ppermute_done", "ppermute_start", "precv", "preduced", "psend",
    "pvary", "ragged_all_to_all", "real", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min",
    "reduced_vary_cast", "reduced_vary_cast_p", "relayout", "remove_memory_space", "reshape", "reshard", "rev",
    "scatter", "scatter-max", "scatter-min", "select_and_gather_add", "select_n", "shard_alike", "sharding_constraint",
    "slice", "sort", "split", "squeeze", "stack", "stop_gradient", "straight_through", "tie", "tile", "top_k", "transpose",
    "unpin",
    "unreduced_pmax", "unreduced_pmin", "unstack", "vary_unreduced_cast", "vary_unreduced_cast_p",
    "with_memory_space_constraint", "xla_metadata_value", "zeros_like",
})
"""Results are among the operands (or zero): on the grid if those are."""

FACTORIZATIONS = frozenset({
    "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "ormqr", "qr", "schur",
    "svd", "symmetric_product", "tridiagonal",
})
"""One operation each: made in the carrier, all that they give rounded once."""

EXPANDED = frozenset({"cholesky", "fft", "lu", "polynomial", "triangular_solve", "tridiagonal_solve"})
"""Programs that are written out, operation by operation; one rounding of the result if a rule names them."""

ROUNDED = EXPANDED | FACTORIZATIONS | frozenset({
    "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "bitcast_convert_type", "cbrt", "ceil", "conv_general_dilated", "convert_element_type", "cos", "cosh",
    "cumlogsumexp", "cumprod", "cumsum", "digamma", "div", "dot_general", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "igamma", "igamma_grad_a", "igammac", "integer_pow", "iota", "lgamma", "log", "log1p", "log2",
    "logistic", "mul", "nextafter", "one_minus_square", "polygamma", "pow", "psum", "psum_done", "psum_invariant",
    "psum_invariant_start", "psum_start", "ragged_dot_general", "random_gamma_grad", "reciprocal", "reduce_precision",
    "reduce_prod", "reduce_scatter", "reduce_scatter_done", "reduce_scatter_start", "reduce_sum", "reduce_window_sum",
    "regularized_incomplete_beta", "rem", "rng_uniform", "round", "rsqrt", "scatter-add", "scatter-mul", "scatter-sub",
    "select_and_scatter_add", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "unreduced_psum",
    "unreduced_psum_start", "unreduced_reduce_scatter", "unreduced_reduce_scatter_start", "zeta",
})
"""One rounding of the result."""

OPAQUE = frozenset({
    "bitcast", "buffer_callback", "call_exported", "core_map", "create_linear", "csr_spmm", "csr_spmv", "custom_lin",
    "ffi_call", "io_callback", "mpmd_map", "pallas_call", "pure_callback", "roll", "run_scoped", "select_and_scatter",
    "spsolve", "stage", "xla_metadata_call",
})
"""Programs for other machinery than JAX's own, or for Python, or of choices that no rule here knows."""

WITHOUT_FLOATS = frozenset({
    "after_all", "and", "axis_index", "check", "clz", "create_token", "dim_as_value", "dimension_size", "from_edtype",
    "inspect_sharding", "iota_2x32_shape", "mulhi", "multiple_of", "not", "or", "platform_index", "population_count",
    "program_order", "random_bits", "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap",
    "random_wrap", "reduce_and", "reduce_or", "reduce_xor", "rng_bit_generator", "shape_assertion", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "to_edtype", "unreachable", "xor",
})
"""Integers, truth values, random keys, tokens, effects."""

STRUCTURAL = frozenset({
    "addupdate", "call", "closed_call", "composite", "cond", "core_call", "custom_jvp_call", "custom_linear_solve",
    "custom_vjp_call", "empty_ref", "eval_jaxpr", "free_ref", "freeze", "get", "jit", "new_ref", "reduce", "remat2",
    "scan", "shard_map", "swap", "while",
})
"""Programs within the program, and references, which are changed in place."""

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

FLIPS_SIGN = frozenset({"conj", "neg"})
"""Exact, but for formats that have no -0 or no negative values."""

_PUBLIC = {getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")}
KNOWN = EXACT | ROUNDED | STRUCTURAL | OPAQUE | WITHOUT_FLOATS | _PUBLIC
"""What can be named whatever the function is: a slip in one of these names is told from a library's own primitive."""
