"""What simulated arithmetic means: a plain interpreter, one operation at a time, in NumPy on the host.

    reference = Reference(fmt, "nearest_even")
    reference.run(jax.make_jaxpr(fun)(*args), *args)     the value of fun where every operation rounds to fmt
    reference.undecided                                  how many roundings this law leaves open

Values are float64 arrays that hold values of the format. An operation on them is one of four kinds:

    exact        moving, comparing and selecting values: nothing is left to round
    correct      + - * / sqrt: the exact result, rounded once
    elementary   exp, tanh, ...: the real function's value, rounded once
    sums         dot products, convolutions, reductions: exact products, a float32 sum in some order, rounded once

The last two are open where a machine's float32 evaluation may fall on either side of a point at which the rounding changes:
elementary functions within 2^-22 of their value, sums within n 2^-24 times the sum of the n magnitudes, unless every partial
sum is a float32 number in whatever order. Such results count as `undecided`; everything else has a single right answer.

Nothing here comes from the library under test. Roundings are those of `tests.oracle`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.extend.core import Literal

from tests.oracle import round_array

Arrays = list[np.ndarray]


def is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.floating)


class Reference:
    """The interpreter of one format and mode.

    Attributes:
        undecided: results that a float32 evaluation may round either way.
        operations: floating-point operations rounded so far.
    """

    def __init__(self, numbers: Any, mode: str = "nearest_even") -> None:
        self.numbers, self.mode = numbers, mode
        self.undecided = self.operations = 0

    def run(self, closed: Any, *args: Any) -> list[np.ndarray]:
        """The outputs of a closed jaxpr; float32 where they are floating-point."""
        outputs = self.closed(closed, [self.enter(np.asarray(x)) for x in jax.tree.leaves(args)])
        return [x.astype(np.float32) if x.dtype == np.float64 else x for x in outputs]

    def round(self, x: Any) -> np.ndarray:
        return round_array(x, self.numbers, self.mode)

    def enter(self, x: Any) -> np.ndarray:
        """An input."""
        x = np.asarray(x)
        return self.round(x.astype(np.float64)) if is_float(x.dtype) else x

    def written(self, x: Any) -> np.ndarray:
        """A literal or constant. The extremes, where maxima and masks start, become those of the format."""
        x = np.asarray(x)
        if not is_float(x.dtype):
            return x
        wide, largest = x.astype(np.float64), float(self.numbers.largest)
        extreme = np.abs(wide) == float(np.finfo(x.dtype).max)
        if math.isfinite(self.numbers.overflow) or math.isnan(self.numbers.overflow):
            extreme |= np.isinf(wide)
        return self.round(np.where(extreme, np.copysign(largest, wide), wide))

    def closed(self, closed: Any, args: Arrays) -> Arrays:
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        values: dict[Any, np.ndarray] = {}

        def read(atom: Any) -> np.ndarray:
            if isinstance(atom, Literal):
                return self.written(np.asarray(atom.val, atom.aval.dtype))
            return values[atom]

        values.update(zip(jaxpr.constvars, map(self.written, consts), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [read(atom) for atom in equation.invars])
            for variable, value in zip(equation.outvars, outputs, strict=True):
                assert value.shape == variable.aval.shape, equation
                assert (value.dtype == np.float64) == is_float(variable.aval.dtype), equation
                values[variable] = value
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: Arrays) -> Arrays:
        name, params = equation.primitive.name, equation.params
        if name in CONTROL:
            return CONTROL[name](self, inputs, **params)
        if any(is_float(atom.aval.dtype) for atom in equation.outvars):
            self.operations += 1
        with np.errstate(all="ignore"):
            if name in SUMS:
                return [self.sum(*SUMS[name](*inputs, **params))]
            if name in PRODUCTS:
                return [self.product(*PRODUCTS[name](*inputs, **params))]
            if name in CORRECT and inputs[0].dtype == np.float64:
                return [self.round(CORRECT[name](*inputs, **params))]
            if name in ELEMENTARY:
                return [self.elementary(name, inputs, **params)]
            outputs = EXACT[name](*inputs, **params)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        outputs = [np.asarray(x) for x in outputs]
        # Exact results are values of the format already, but for the -0 of formats without one and numbers beyond
        # the largest (ceil); conversions and iota round here.
        return [
            self.round(x) if is_float(variable.aval.dtype) else np.asarray(x, variable.aval.dtype)
            for x, variable in zip(outputs, equation.outvars, strict=True)
        ]

    def elementary(self, name: str, inputs: Arrays, **params: Any) -> np.ndarray:
        inputs = [np.asarray(x, np.float64) for x in inputs]
        value = np.asarray(ELEMENTARY[name](*inputs, **params))
        width = np.abs(value) * 2.0**-22
        # Known exactly at zero (exp, cos, logistic, ...), for whole powers of two, and where a whole power is a float32
        # number.
        exact = np.broadcast_to(inputs[0] == 0, value.shape)
        if name == "integer_pow":
            exact = exact | (value == value.astype(np.float32))
        if name == "exp2":
            exact = exact | (inputs[0] == np.floor(inputs[0]))
        return self.decide(value, width, exact)

    def sum(self, total: np.ndarray, magnitude: np.ndarray, granule: float, count: int) -> np.ndarray:
        """A float32 sum of `count` multiples of `granule` whose magnitudes add up to `magnitude`."""
        return self.decide(total + 0.0 if count else total, magnitude * (count * 2.0**-24), magnitude <= granule * 2.0**24)

    def product(self, value: np.ndarray, count: int) -> np.ndarray:
        """A float32 product of `count` factors. If the whole of it is a float32 number, so is every part."""
        return self.decide(value, np.abs(value) * (count * 2.0**-24), value == value.astype(np.float32))

    def decide(self, value: np.ndarray, width: np.ndarray, exact: np.ndarray) -> np.ndarray:
        low, high = self.round(value - width), self.round(value + width)
        same = (low == high) | (np.isnan(low) & np.isnan(high))
        self.undecided += int(np.sum(~same & ~exact & np.isfinite(value)))
        return self.round(value)


# Control flow: the same law inside.


def _call(law: Reference, inputs: Arrays, **params: Any) -> Arrays:
    return law.closed(params["call_jaxpr"] if "call_jaxpr" in params else params["jaxpr"], inputs)


def _cond(law: Reference, inputs: Arrays, *, branches: Any, **_: Any) -> Arrays:
    index, *operands = inputs
    return law.closed(branches[int(np.clip(int(index), 0, len(branches) - 1))], operands)


def _while(law: Reference, inputs: Arrays, *, cond_jaxpr: Any, body_jaxpr: Any, cond_nconsts: int, body_nconsts: int) -> Arrays:
    test, body = inputs[:cond_nconsts], inputs[cond_nconsts : cond_nconsts + body_nconsts]
    carry = inputs[cond_nconsts + body_nconsts :]
    for _ in range(10_000):
        if not law.closed(cond_jaxpr, test + carry)[0]:
            return carry
        carry = law.closed(body_jaxpr, body + carry)
    raise AssertionError("the loop does not end")


def _scan(law: Reference, inputs: Arrays, *, jaxpr: Any, length: int, reverse: bool, **params: Any) -> Arrays:
    if "ft_in" in params:  # jax 0.12
        num_consts, num_carry, _ = [len(part) for part in params["ft_in"].unpack()]
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    slices = inputs[num_consts + num_carry :]
    stacked: list[Arrays] = [[] for _ in range(len(jaxpr.jaxpr.outvars) - num_carry)]
    for step in reversed(range(length)) if reverse else range(length):
        outputs = law.closed(jaxpr, consts + carry + [x[step] for x in slices])
        carry = outputs[:num_carry]
        for column, y in zip(stacked, outputs[num_carry:], strict=True):
            column.append(y)
    return carry + [np.stack(column[::-1] if reverse else column) for column in stacked]


def _high(law: Reference, inputs: Arrays, *, _prim: Any) -> Arrays:
    """One of JAX's high-level primitives, from jax 0.12 on: what it expands to."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in _prim.in_avals_flat]
    expand = lambda *args: jax.tree.leaves(_prim.expand(*jax.tree.unflatten(_prim.in_tree, args)))  # noqa: E731
    return law.closed(jax.make_jaxpr(expand)(*shapes), inputs)


def _polynomial(law: Reference, inputs: Arrays, **_: Any) -> Arrays:
    """By Horner's rule, from the highest coefficient."""
    x, *coefficients = inputs
    result = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result = law.round(odd_sum(law.round(result * x), coefficient))
    return [result]


CONTROL: dict[str, Callable[..., Arrays]] = {
    "jit": _call,
    "pjit": _call,
    "closed_call": _call,
    "core_call": _call,
    "remat2": _call,
    "checkpoint": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "call_hi_primitive": _high,
    "composite": _call,
    "eval_jaxpr": _call,
    "polynomial": _polynomial,
}


# Correct rounding. With p <= 25 bits a float64 result decides every rounding of the exact one: products have at most 50
# bits and are exact; a quotient or square root that is not itself a point where some mode changes its mind stays at least
# 2^-(2p+1) of its value away from all of them, and float64 errs by 2^-53. A sum may be longer than 53 bits, so it is
# rounded to odd, from which every shorter format rounds as from the exact sum.


def odd_sum(a: np.ndarray, b: np.ndarray, **_: Any) -> np.ndarray:
    """a + b in float64, rounded to odd: where the sum is inexact and even, one step towards what it lost (2Sum)."""
    total = np.asarray(a + b)
    shadow = total - a
    lost = np.asarray((a - (total - shadow)) + (b - shadow))
    even = total.view(np.int64) % 2 == 0
    inexact = np.isfinite(total) & (lost != 0) & even
    return np.where(inexact, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)


CORRECT: dict[str, Callable[..., np.ndarray]] = {
    "add": odd_sum,
    "add_any": odd_sum,
    "sub": lambda a, b, **_: odd_sum(a, -b),
    "mul": lambda a, b, **_: a * b,
    "square": lambda a, **_: a * a,
    "div": lambda a, b, **_: a / b,
    "sqrt": lambda a, **_: np.sqrt(a),
    "rem": lambda a, b, **_: np.fmod(a, b),
}

ELEMENTARY: dict[str, Callable[..., Any]] = {
    "acos": lambda x, **_: np.arccos(x),
    "acosh": lambda x, **_: np.arccosh(x),
    "asin": lambda x, **_: np.arcsin(x),
    "asinh": lambda x, **_: np.arcsinh(x),
    "atan": lambda x, **_: np.arctan(x),
    "atan2": lambda y, x, **_: np.arctan2(y, x),
    "atanh": lambda x, **_: np.arctanh(x),
    "cbrt": lambda x, **_: np.cbrt(x),
    "cos": lambda x, **_: np.cos(x),
    "cosh": lambda x, **_: np.cosh(x),
    "erf": lambda x, **_: scipy.special.erf(x),
    "erf_inv": lambda x, **_: np.copysign(scipy.special.erfinv(x), x),
    "erfc": lambda x, **_: scipy.special.erfc(x),
    "exp": lambda x, **_: np.exp(x),
    "exp2": lambda x, **_: np.exp2(x),
    "expm1": lambda x, **_: np.expm1(x),
    "integer_pow": lambda x, *, y: x**y if y >= 0 else 1 / x**-y,
    "log": lambda x, **_: np.log(x),
    "log2": lambda x, **_: np.log2(x),
    "one_minus_square": lambda x, **_: (1 - x) * (1 + x),
    "log1p": lambda x, **_: np.log1p(x),
    "logistic": lambda x, **_: scipy.special.expit(x),
    "pow": lambda x, y, **_: np.power(x, y),
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "sin": lambda x, **_: np.sin(x),
    "sinh": lambda x, **_: np.sinh(x),
    "tan": lambda x, **_: np.tan(x),
    "tanh": lambda x, **_: np.tanh(x),
}


# Sums: (the sum in float64, the sum of magnitudes, a power of two that divides every term, how many terms).

Sum = tuple[np.ndarray, np.ndarray, float, int]


def granule(x: np.ndarray) -> float:
    """The largest power of two that divides every entry (infinite if all are zero)."""
    significand, e = np.frexp(x[np.isfinite(x) & (x != 0)])
    whole = np.ldexp(significand, 53).astype(np.int64)
    return float(np.min(np.ldexp((whole & -whole).astype(np.float64), e - 53), initial=math.inf))


def _linear(sum_of: Callable[[np.ndarray], np.ndarray], x: np.ndarray, count: int) -> Sum:
    return sum_of(x), sum_of(np.abs(x)), granule(x), count


def _bilinear(sum_of: Callable[[np.ndarray, np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray, count: int) -> Sum:
    return sum_of(a, b), sum_of(np.abs(a), np.abs(b)), granule(a) * granule(b), count


def _dot_general(a: np.ndarray, b: np.ndarray, *, dimension_numbers: Any, **_: Any) -> Sum:
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    letters = itertools.count()
    name_a: dict[int, int] = {}
    name_b: dict[int, int] = {}
    for i, j in itertools.chain(zip(batch_a, batch_b, strict=True), zip(contract_a, contract_b, strict=True)):
        name_a[i] = name_b[j] = next(letters)
    free_a = [name_a.setdefault(i, next(letters)) for i in range(a.ndim) if i not in name_a]
    free_b = [name_b.setdefault(j, next(letters)) for j in range(b.ndim) if j not in name_b]
    out = [name_a[i] for i in batch_a] + free_a + free_b
    axes_a, axes_b = [name_a[i] for i in range(a.ndim)], [name_b[j] for j in range(b.ndim)]

    def apply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.einsum(x, axes_a, y, axes_b, out)

    if not contract_a:  # an outer product: nothing is added, not even +0
        signs = apply(np.copysign(1.0, a), np.copysign(1.0, b))
        return np.copysign(apply(a, b), signs), np.abs(apply(a, b)), granule(a) * granule(b), 0
    return _bilinear(apply, a, b, math.prod(a.shape[i] for i in contract_a))


def _spread(x: np.ndarray, config: Any, fill: Any) -> np.ndarray:
    """Padding as XLA means it: (low, high, interior) for each axis, negative amounts cut."""
    for axis, (low, high, interior) in enumerate(config):
        size = x.shape[axis]
        shape = list(x.shape)
        shape[axis] = max(size + max(size - 1, 0) * interior + max(low, 0) + max(high, 0), 0)
        wide = np.full(shape, fill, x.dtype)
        place = [slice(None)] * x.ndim
        place[axis] = slice(max(low, 0), max(low, 0) + size + max(size - 1, 0) * interior, interior + 1)
        wide[tuple(place)] = x
        place[axis] = slice(max(-low, 0), shape[axis] - max(-high, 0))
        x = wide[tuple(place)]
    return x


def _window_starts(shape: Any, window: Any, strides: Any) -> tuple[tuple[int, ...], Iterator[tuple[int, ...]]]:
    out = tuple(max((n - w) // s + 1, 0) for n, w, s in zip(shape, window, strides, strict=True))
    return out, np.ndindex(*out)


def _convolve(x: np.ndarray, kernel: np.ndarray, strides: Any, groups: int, batches: int) -> np.ndarray:
    """(batch, features, *space) with (out, in, *space)."""
    if batches > 1:
        parts = zip(np.split(x, batches, 0), np.split(kernel, batches, 0), strict=True)
        return np.concatenate([_convolve(u, k, strides, groups, 1) for u, k in parts], 1)
    if groups > 1:
        parts = zip(np.split(x, groups, 1), np.split(kernel, groups, 0), strict=True)
        return np.concatenate([_convolve(u, k, strides, 1, 1) for u, k in parts], 1)
    window = kernel.shape[2:]
    out, places = _window_starts(x.shape[2:], window, strides)
    result = np.zeros((x.shape[0], kernel.shape[0], *out))
    for place in places:
        corner = tuple(slice(i * s, i * s + w) for i, s, w in zip(place, strides, window, strict=True))
        patch = x[(slice(None), slice(None), *corner)].reshape(x.shape[0], -1)
        result[(slice(None), slice(None), *place)] = patch @ kernel.reshape(kernel.shape[0], -1).T
    return result


def _conv(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> Sum:
    x_spec, kernel_spec, out_spec = dimension_numbers
    x = x.transpose(x_spec)
    kernel = kernel.transpose(kernel_spec)
    plain = [(0, 0, 0)] * 2
    x = _spread(x, plain + [(lo, hi, d - 1) for (lo, hi), d in zip(padding, lhs_dilation, strict=True)], 0.0)
    kernel = _spread(kernel, plain + [(0, 0, d - 1) for d in rhs_dilation], 0.0)

    def apply(u: np.ndarray, k: np.ndarray) -> np.ndarray:
        result = _convolve(u, k, window_strides, feature_group_count, batch_group_count)
        return result.transpose(np.argsort(out_spec))

    return _bilinear(apply, x, kernel, math.prod(kernel.shape[1:]))


def _windows(
    x: np.ndarray, fill: float, window_dimensions: Any, window_strides: Any, padding: Any, base: Any, dilation: Any
) -> np.ndarray:
    """Every window, flattened, in a last axis."""
    x = _spread(x, [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base, strict=True)], fill)
    spans = [(w - 1) * d + 1 for w, d in zip(window_dimensions, dilation, strict=True)]
    out, places = _window_starts(x.shape, spans, window_strides)
    result = np.empty((*out, math.prod(window_dimensions)))
    for place in places:
        bounds = zip(place, window_strides, spans, dilation, strict=True)
        result[place] = x[tuple(slice(i * s, i * s + n, d) for i, s, n, d in bounds)].ravel()
    return result


def _reduce_window(
    x: np.ndarray,
    fill: float,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> np.ndarray:
    return _windows(x, fill, window_dimensions, window_strides, padding, base_dilation, window_dilation)


def _window_sum(x: np.ndarray, **params: Any) -> Sum:
    count = math.prod(params["window_dimensions"])
    return _linear(lambda v: _reduce_window(v, 0.0, **params).sum(-1), x, count)


def _cotangent_of_max_pool(
    source: np.ndarray,
    x: np.ndarray,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    select_prim: Any,
    **_: Any,
) -> Sum:
    """select_and_scatter_add: every window's cotangent goes to the first of its selected entries."""
    ones = [1] * x.ndim
    pick = np.argmax if select_prim.name == "ge" else np.argmin
    fill = -np.inf if select_prim.name == "ge" else np.inf
    positions = np.arange(1.0, x.size + 1).reshape(x.shape)
    shape = (window_dimensions, window_strides, padding, ones, ones)
    chosen = pick(_windows(x, fill, *shape), -1)
    target = np.take_along_axis(_windows(positions, 0.0, *shape), chosen[..., None], -1)[..., 0].astype(int)

    def apply(cotangent: np.ndarray) -> np.ndarray:
        result = np.zeros(x.size + 1)
        np.add.at(result, target.ravel(), cotangent.ravel())
        return result[1:].reshape(x.shape)

    return _linear(apply, source, math.prod(window_dimensions))


def _places(
    indices: np.ndarray, windows: Any, shape: Any, window: Any, batch: Any, index_batch: Any, index_map: Any, mode: Any
) -> tuple[Any, list[tuple[tuple[int, ...], tuple[int, ...] | None]]]:
    """For every entry of a gather's result, or of a scatter's updates: the operand's entry, or None if outside.

    `windows` are the axes of that array along which a slice of shape `window` of the operand lies.
    """
    clip = "CLIP" in str(mode).upper()
    shape_of_slice = [window[d] for d in range(len(shape)) if window[d] is not None]
    axes = [d for d in range(len(shape)) if window[d] is not None]
    extent = [1 if window[d] is None else window[d] for d in range(len(shape))]
    rank = indices.ndim - 1 + len(windows)
    outer = [d for d in range(rank) if d not in windows]
    full = [0] * rank
    for d, n in zip(outer, indices.shape[:-1], strict=True):
        full[d] = n
    for d, n in zip(windows, shape_of_slice, strict=True):
        full[d] = n
    result: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
    for entry in np.ndindex(*full):
        which = tuple(entry[d] for d in outer)
        start = [0] * len(shape)
        for component, d in enumerate(index_map):
            start[d] = int(indices[(*which, component)])
        if clip:
            start = [min(max(s, 0), n - w) for s, n, w in zip(start, shape, extent, strict=True)]
        for d, i in zip(batch, index_batch, strict=True):
            start[d] = which[i]
        inside = all(0 <= s <= n - w for s, n, w in zip(start, shape, extent, strict=True))
        for d, w in zip(axes, windows, strict=True):
            start[d] += entry[w]
        result.append((entry, tuple(start) if inside else None))
    return tuple(full), result


def _gather(
    x: np.ndarray,
    indices: np.ndarray,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    mode: Any = None,
    fill_value: Any = None,
    **_: Any,
) -> np.ndarray:
    n = dimension_numbers
    hidden = {*n.collapsed_slice_dims, *n.operand_batching_dims}
    window = [None if d in hidden else slice_sizes[d] for d in range(x.ndim)]
    shape, places = _places(
        indices, n.offset_dims, x.shape, window, n.operand_batching_dims, n.start_indices_batching_dims, n.start_index_map, mode
    )
    outside = np.nan if x.dtype == np.float64 and fill_value is None else fill_value
    result = np.empty(shape, x.dtype)
    for entry, place in places:
        result[entry] = outside if place is None else x[place]
    return result


def _scatter_places(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, dimension_numbers: Any, mode: Any) -> Any:
    n = dimension_numbers
    hidden = {*n.inserted_window_dims, *n.operand_batching_dims}
    sizes = iter([updates.shape[d] for d in n.update_window_dims])
    window = [None if d in hidden else next(sizes) for d in range(x.ndim)]
    _, places = _places(
        indices,
        n.update_window_dims,
        x.shape,
        window,
        n.operand_batching_dims,
        n.scatter_indices_batching_dims,
        n.scatter_dims_to_operand_dims,
        mode,
    )
    return places


def _scatter_add(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, dimension_numbers: Any, mode: Any = None, **_: Any
) -> Sum:
    places = _scatter_places(x, indices, updates, dimension_numbers, mode)

    def apply(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        result = u.copy()
        for entry, place in places:
            if place is not None:
                result[place] += v[entry]
        return result

    total, magnitude = apply(x, updates), apply(np.abs(x), np.abs(updates))
    return total, magnitude, min(granule(x), granule(updates)), updates.size + 1


def _scatter_mul(
    x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, dimension_numbers: Any, mode: Any = None, **_: Any
) -> tuple[np.ndarray, int]:
    result = x.copy()
    for entry, place in _scatter_places(x, indices, updates, dimension_numbers, mode):
        if place is not None:
            result[place] *= updates[entry]
    return result, updates.size + 1


def _scatter(combine: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def scatter(
        x: np.ndarray, indices: np.ndarray, updates: np.ndarray, *, dimension_numbers: Any, mode: Any = None, **_: Any
    ) -> np.ndarray:
        result = x.copy()
        for entry, place in _scatter_places(x, indices, updates, dimension_numbers, mode):
            if place is not None:
                result[place] = combine(result[place], updates[entry])
        return result

    return scatter


def _flip(x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    return np.flip(x, axis) if reverse else x


def _reduce_sum(x: np.ndarray, *, axes: Any, **_: Any) -> Sum:
    return _linear(lambda v: np.sum(v, axis=axes), x, math.prod(x.shape[a] for a in axes))


def _cumsum(x: np.ndarray, *, axis: int, reverse: bool) -> Sum:
    return _linear(lambda v: _flip(np.cumsum(_flip(v, axis, reverse), axis), axis, reverse), x, x.shape[axis])


SUMS: dict[str, Callable[..., Sum]] = {
    "conv_general_dilated": _conv,
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "reduce_sum": _reduce_sum,
    "reduce_window_sum": _window_sum,
    "scatter-add": _scatter_add,
    "select_and_scatter_add": _cotangent_of_max_pool,
}

PRODUCTS: dict[str, Callable[..., tuple[np.ndarray, int]]] = {
    "cumprod": lambda x, *, axis, reverse: (
        _flip(np.cumprod(_flip(x, axis, reverse), axis), axis, reverse),
        x.shape[axis],
    ),
    "scatter-mul": _scatter_mul,
    "reduce_prod": lambda x, *, axes, **_: (np.prod(x, axis=axes), math.prod(x.shape[a] for a in axes)),
}


# Exact: values move, or are compared.


def _broadcast_in_dim(x: np.ndarray, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> np.ndarray:
    wide = [1] * len(shape)
    for axis, d in enumerate(broadcast_dimensions):
        wide[d] = x.shape[axis]
    return np.broadcast_to(x.reshape(wide), shape)


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> np.ndarray:
    wide = [1] * len(shape)
    wide[dimension] = -1
    count = np.arange(shape[dimension], dtype=np.float64 if is_float(dtype) else dtype)
    return np.broadcast_to(count.reshape(wide), shape)


def _convert(x: np.ndarray, *, new_dtype: Any, **_: Any) -> np.ndarray:
    return x.astype(np.float64 if is_float(new_dtype) else new_dtype)


def _reshape(x: np.ndarray, *, new_sizes: Any, dimensions: Any = None, **_: Any) -> np.ndarray:
    return (x if dimensions is None else x.transpose(dimensions)).reshape(new_sizes)


def _corner(x: np.ndarray, starts: Any, sizes: Any) -> tuple[slice, ...]:
    clamped = [min(max(int(i), 0), n - w) for i, n, w in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(i, i + w) for i, w in zip(clamped, sizes, strict=True))


def _dynamic_slice(x: np.ndarray, *starts: Any, slice_sizes: Any, **_: Any) -> np.ndarray:
    return x[_corner(x, starts, slice_sizes)]


def _dynamic_update_slice(x: np.ndarray, update: np.ndarray, *starts: Any) -> np.ndarray:
    result = x.copy()
    result[_corner(x, starts, update.shape)] = update
    return result


def _sort(*operands: np.ndarray, dimension: int, num_keys: int, **_: Any) -> Arrays:
    order = np.lexsort([k + 0 for k in operands[:num_keys][::-1]], axis=dimension)
    return [np.take_along_axis(x, order, dimension) for x in operands]


def _top_k(x: np.ndarray, *, k: int, axis: int = -1, **_: Any) -> Arrays:
    order = np.take(np.argsort(-_order(x), axis=axis, kind="stable"), np.arange(k), axis=axis)
    return [np.take_along_axis(x, order, axis), order]


def _select_n(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(np.broadcast_to(which, cases[0].shape).astype(int), cases)


def _split(x: np.ndarray, *, sizes: Any, axis: int) -> Arrays:
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    strides = strides or [1] * x.ndim
    return x[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, strides, strict=True))]


def _round(x: np.ndarray, *, rounding_method: Any) -> np.ndarray:
    return np.round(x) if int(rounding_method) == 1 else np.copysign(np.floor(np.abs(x) + 0.5), x)


# The total order of IEEE 754 as integers: -0 lies below +0. The map from bits to order is its own inverse.
_LOWEST, _HIGHEST = np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max


def _swap(bits: np.ndarray) -> np.ndarray:
    return np.where(bits < 0, np.int64(np.iinfo(np.int64).min) - bits - 1, bits)


def _order(x: np.ndarray, nan: int = _HIGHEST) -> np.ndarray:
    if x.dtype != np.float64:
        return x.astype(np.int64)
    return np.where(np.isnan(x), nan, _swap(np.ascontiguousarray(x).view(np.int64).reshape(x.shape)))


def _ordered(compare: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda a, b: compare(_order(a), _order(b))


def _extreme(pick: Callable[..., Any], nan: int) -> Callable[..., np.ndarray]:
    """A maximum or minimum that NaN wins, and that tells the zeros apart."""

    def extreme(*operands: np.ndarray, **params: Any) -> np.ndarray:
        if operands[0].dtype != np.float64:
            return pick(*operands, **params)
        place = np.asarray(pick(*(_order(x, nan) for x in operands), **params))
        return np.where(place == nan, np.nan, _swap(place).view(np.float64))

    return extreme


maximum, minimum = _extreme(np.maximum, _HIGHEST), _extreme(np.minimum, _LOWEST)


def _divide_whole(a: np.ndarray, b: np.ndarray, **_: Any) -> np.ndarray:
    return np.trunc(a / np.where(b == 0, 1, b)).astype(a.dtype)


def _arg(pick: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *, axes, **_: pick(x, axis=axes[0])


def _over(reduce: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *, axes, **_: reduce(x, axis=axes)


def _running(ufunc: np.ufunc) -> Callable[..., np.ndarray]:
    return lambda x, *, axis, reverse: _flip(ufunc.accumulate(_flip(x, axis, reverse), axis), axis, reverse)


def _same(*operands: np.ndarray, **_: Any) -> Arrays:
    return list(operands)


def _bitcast(x: np.ndarray, *, new_dtype: Any, **_: Any) -> np.ndarray:
    """Bits of float32, or float32 from its bits; the programs here have no other floats."""
    return x.astype(np.float32).view(new_dtype) if x.dtype == np.float64 else x.view(new_dtype).astype(np.float64)


EXACT: dict[str, Callable[..., Any]] = {
    "bitcast_convert_type": _bitcast,
    "empty2": lambda *, dtype, **_: np.zeros((), np.float64 if is_float(dtype) else dtype),  # what nobody reads
    "abs": np.abs,
    "add": lambda a, b, **_: a + b,  # of integers, like the four after it
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "div": _divide_whole,
    "rem": lambda a, b, **_: np.fmod(a, b),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shift_right_logical": lambda x, n: (x.view(f"u{x.itemsize}") >> n.view(f"u{n.itemsize}")).view(x.dtype),
    "shift_left": np.left_shift,
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "broadcast_in_dim": _broadcast_in_dim,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: minimum(maximum(*np.broadcast_arrays(x, low)), high),
    "concatenate": lambda *x, dimension: np.concatenate(x, dimension),
    "convert_element_type": _convert,
    "copy": _same,
    "copy_p": _same,
    "cummax": _extreme(_running(np.maximum), _HIGHEST),
    "cummin": _extreme(_running(np.minimum), _LOWEST),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "eq": np.equal,
    "eq_to": _ordered(np.equal),
    "le_to": _ordered(np.less_equal),
    "lt_to": _ordered(np.less),
    "floor": np.floor,
    "gather": _gather,
    "ge": np.greater_equal,
    "gt": np.greater,
    "iota": _iota,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "lt": np.less,
    "max": maximum,
    "min": minimum,
    "ne": np.not_equal,
    "neg": np.negative,
    "optimization_barrier": _same,
    "pad": lambda x, fill, *, padding_config: _spread(x, padding_config, fill),
    "reduce_and": _over(np.all),
    "reduce_max": _extreme(_over(np.max), _HIGHEST),
    "reduce_min": _extreme(_over(np.min), _LOWEST),
    "reduce_or": _over(np.any),
    "reduce_window_max": lambda x, **params: np.max(_reduce_window(x, -np.inf, **params), -1),
    "reduce_window_min": lambda x, **params: np.min(_reduce_window(x, np.inf, **params), -1),
    "reshape": _reshape,
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "round": _round,
    "scatter": _scatter(lambda _, new: new),
    "scatter-max": _scatter(maximum),
    "scatter-min": _scatter(minimum),
    "select_n": _select_n,
    "sign": lambda x: np.where(x == 0, x, np.sign(x)),
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "stack": lambda *x, axis, **_: np.stack(x, axis),
    "stop_gradient": _same,
    "top_k": _top_k,
    "transpose": lambda x, *, permutation: x.transpose(permutation),
}
