"""Programs of other people's libraries, as they are: differential equations, root finding, Gaussian processes, densities.

In float32 a simulation computes what the program does, up to the last bits of fused products; in bfloat16 its gradient points
where the true one does. Nothing in them is opaque: the rules are strict.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import numpyro
import numpyro.distributions
import optimistix
import pytest
import tinygp
from jax import lax
from numpyro.infer.util import log_density

import precisionlab as pl
from precisionlab.arithmetic.rules import Rules

SCALE = jnp.float32(1.3)
MATRIX = jnp.float32([[3, 1], [1, 2]])
LOOSE = {"rtol": 1e-2, "atol": 1e-2}
TIMES = jnp.linspace(0, 1, 6)


def decay(_, y, rate):
    return -rate * y


def flow(solver: Any, **options: Any) -> Any:
    term = diffrax.ODETerm(decay)

    def loss(rate):
        solution = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.25, jnp.ones(2), args=rate, **options)
        return jnp.sum(solution.ys**2)

    return loss


def noisy_flow(rate):
    path = diffrax.VirtualBrownianTree(0.0, 1.0, tol=0.1, shape=(2,), key=jax.random.key(0))
    drift = diffrax.ODETerm(decay)
    noise = diffrax.ControlTerm(lambda *_: jnp.diag(jnp.full(2, 0.1)), path)
    solution = diffrax.diffeqsolve(diffrax.MultiTerm(drift, noise), diffrax.Euler(), 0.0, 1.0, 0.25, jnp.ones(2), args=rate)
    return jnp.sum(solution.ys**2)


def root(a):
    return optimistix.root_find(lambda y, a: y**2 - a, optimistix.Newton(**LOOSE), jnp.float32(1), args=a).value


def minimum(a):
    solver = optimistix.BFGS(**LOOSE)
    return jnp.sum(optimistix.minimise(lambda y, a: jnp.sum((y - a) ** 2) + jnp.sum(y**4), solver, jnp.ones(3), args=a).value)


def least_squares(a):
    solver = optimistix.LevenbergMarquardt(**LOOSE)
    problem = lambda y, a: jnp.sin(y) - 0.4 * a * jnp.arange(3.0) / 4  # noqa: E731
    return jnp.sum(optimistix.least_squares(problem, solver, jnp.zeros(3), args=a).value)


def solved(a):
    return jnp.sum(lineax.linear_solve(lineax.MatrixLinearOperator(MATRIX * a), jnp.ones(2)).value)


def conjugate_gradients(a):
    operator = lineax.MatrixLinearOperator(MATRIX * a, lineax.positive_semidefinite_tag)
    return jnp.sum(lineax.linear_solve(operator, jnp.ones(2), lineax.CG(**LOOSE)).value)


def gaussian_process(a):
    kernel = a * tinygp.kernels.ExpSquared(scale=0.5)
    return tinygp.GaussianProcess(kernel, TIMES, diag=0.1).log_probability(jnp.sin(3 * TIMES))


def quasiseparable(a):
    kernel = a * tinygp.kernels.quasisep.Matern32(scale=0.5)
    return tinygp.GaussianProcess(kernel, TIMES, diag=0.1).log_probability(jnp.sin(3 * TIMES))


def regression(x, y=None):
    slope = numpyro.sample("slope", numpyro.distributions.Normal(0, 1))
    width = numpyro.sample("width", numpyro.distributions.Gamma(2.0, 1.0))
    numpyro.sample("y", numpyro.distributions.StudentT(3.0, slope * x, width), obs=y)


def density(a):
    return log_density(regression, (TIMES,), {"y": jnp.sin(TIMES)}, {"slope": a, "width": jnp.exp(a)})[0]


def correlated():
    factor = numpyro.sample("factor", numpyro.distributions.LKJCholesky(3, 2.0))
    normal = numpyro.distributions.MultivariateNormal(jnp.zeros(3), scale_tril=factor)
    numpyro.sample("z", normal, obs=jnp.ones(3))


def correlated_density(a):
    factor = numpyro.distributions.transforms.CorrCholeskyTransform()(0.3 * a * jnp.arange(3.0))
    return log_density(correlated, (), {}, {"factor": factor})[0]


def spectral_layer(a):
    weights = jnp.asarray(a, jnp.complex64) * lax.complex(jnp.ones(5), 0.1 * jnp.arange(5.0))
    return jnp.sum(jnp.tanh(jnp.fft.irfft(jnp.fft.rfft(jnp.linspace(-1, 1, 8)) * weights, 8)) ** 2)


QUICK = {
    "root": root,
    "solved": solved,
    "gaussian process": gaussian_process,
    "density": density,
    "spectral layer": spectral_layer,
}
SLOW = {
    "minimum": minimum,
    "least squares": least_squares,
    "conjugate gradients": conjugate_gradients,
    "quasiseparable": quasiseparable,
    "correlated density": correlated_density,
    "Euler": flow(diffrax.Euler(), adjoint=diffrax.DirectAdjoint()),
    "Tsit5": flow(diffrax.Tsit5()),
    "adaptive": flow(diffrax.Dopri5(), stepsize_controller=diffrax.PIDController(**LOOSE)),
    "implicit": flow(diffrax.Kvaerno3(), stepsize_controller=diffrax.PIDController(**LOOSE)),
    "backsolve": flow(diffrax.Tsit5(), adjoint=diffrax.BacksolveAdjoint()),
    "noisy": noisy_flow,
}


@jax.numpy_dtype_promotion("standard")  # as they were written
def agrees(fun: Any, near: float = 0.1) -> None:
    """In bfloat16 a slope is that of a solution of some steps, each of a few roundings of 2^-8: `near` is what they come to."""
    value, slope = jax.jit(jax.value_and_grad(fun))(SCALE)
    exactly = jax.jit(pl.simulate(jax.value_and_grad(fun), Rules(pl.FLOAT32, strict=True)))(SCALE)
    np.testing.assert_allclose(exactly, (value, slope), rtol=2e-6)
    _, narrow = jax.jit(pl.simulate(jax.value_and_grad(fun), Rules(pl.BFLOAT16, strict=True)))(SCALE)
    assert narrow * slope > 0
    np.testing.assert_allclose(narrow, slope, rtol=near)
    outside = jax.jit(jax.grad(pl.simulate(fun, Rules(pl.BFLOAT16, strict=True))))(SCALE)
    np.testing.assert_allclose(outside, slope, rtol=near)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_programs_of_libraries(name):
    agrees(QUICK[name])


@pytest.mark.sampled(0, slow=4)
@pytest.mark.parametrize("name", SLOW)
def test_heavier_programs_of_libraries(name):
    agrees(SLOW[name], near=0.3)
