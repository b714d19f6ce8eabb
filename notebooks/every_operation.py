# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Any function, with every operation rounded
#
# What would my model compute if the hardware had one format and nothing else? Casting the weights does not answer
# that: the compiler computes in float32 behind the cast, and leaves roundings out where it fuses. `simulate` makes any
# JAX function again with the result of every operation rounded.
#
# It runs as a notebook, and as a script: `python notebooks/every_operation.py`.

# %%
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import precisionlab as pl

IN_NOTEBOOK = "ipykernel" in sys.modules
if not IN_NOTEBOOK:
    plt.switch_backend("Agg")
FIGURES = os.environ.get("PRECISIONLAB_NOTEBOOK_FIGURES")


def finish(figure, name):
    """Show a figure in a notebook; draw it in a script; save it if a folder was given."""
    if FIGURES:
        Path(FIGURES).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(FIGURES) / f"{name}.png", dpi=120)
    if IN_NOTEBOOK:
        plt.show()
    else:
        figure.canvas.draw()
        plt.close(figure)


# %% [markdown]
# ## One function in four formats
#
# A layer norm and a softmax, and the gradient of a loss through both. `simulate(jax.grad(loss), fmt)` rounds the
# backward pass too.


# %%
def norm(x):
    with jax.named_scope("norm"):
        centered = x - jnp.mean(x)
        return centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered)) + 1e-5)


def loss(weights, x):
    hidden = jnp.tanh(norm(x) @ weights)
    with jax.named_scope("loss"):
        return -jnp.sum(jax.nn.log_softmax(hidden) * jnp.array([0.5, 0.25, 0.125, 0.125]))


weights = jax.random.normal(jax.random.key(0), (16, 4)) / 4
x = jnp.linspace(-2.0, 3.0, 16)
exact = jax.grad(loss)(weights, x)
for fmt in (pl.FLOAT32, pl.BFLOAT16, pl.FLOAT8_E4M3FN, pl.FLOAT8_E5M2):
    gradient = jax.jit(pl.simulate(jax.grad(loss), fmt))(weights, x)
    error = jnp.linalg.norm(gradient - exact) / jnp.linalg.norm(exact)
    print(f"{pl.name_of(fmt):16s} relative error of the gradient {float(error):.2e}")

# %% [markdown]
# ## Which part needs more bits?
#
# A rule for a `jax.named_scope` is one line. Here the layer norm keeps float32.

# %%
for name, rules in {
    "e4m3fn throughout": pl.FLOAT8_E4M3FN,
    "norm in float32": pl.Rules(pl.FLOAT8_E4M3FN, scopes={"norm": pl.FLOAT32}),
    "loss in float32": pl.Rules(pl.FLOAT8_E4M3FN, scopes={"loss": pl.FLOAT32}),
    "products in MXFP8": pl.Rules(pl.BFLOAT16, primitives={"dot_general": pl.MXFP8_E4M3}),
}.items():
    gradient = pl.simulate(jax.grad(loss), rules)(weights, x)
    print(f"{name:18s} {float(jnp.linalg.norm(gradient - exact) / jnp.linalg.norm(exact)):.2e}")

# %% [markdown]
# ## Where does the error come from?
#
# `error_profile` runs the function beside its float64 self. *Introduced* is what the rounding of one operation added;
# *carried* is the error of its result, with everything that came before.

# %%
profile = pl.error_profile(jax.grad(loss), pl.FLOAT8_E4M3FN)(weights, x)
print(profile.table(8))
figure, ax = plt.subplots(figsize=(9.0, 4.5), layout="constrained")
profile.plot(ax)
finish(figure, "error_profile")

# %% [markdown]
# ## Many formats, one compilation
#
# A format is numbers. Stacked, they are an argument like any other.

# %%
formats = [pl.ieee_format(8, bits) for bits in range(1, 24)]
stacked = pl.stack_formats(formats)
gradients = jax.jit(jax.vmap(lambda fmt: pl.simulate(jax.grad(loss), fmt)(weights, x)))(stacked)
errors = jnp.linalg.norm((gradients - exact).reshape(len(formats), -1), axis=1) / jnp.linalg.norm(exact)
figure, ax = plt.subplots(figsize=(8.0, 4.0), layout="constrained")
precision = [fmt.precision for fmt in formats]
ax.semilogy(precision, errors, "o-", color="#0072B2", label="error of the gradient")
ax.semilogy(precision, [2.0**-p for p in precision], "--", color="#000000", label="unit roundoff $2^{-p}$")
ax.set(xlabel="significand bits p", ylabel="relative error")
ax.legend(frameon=False)
finish(figure, "error_by_precision")

# %% [markdown]
# ## How sums are made
#
# Adding ones in bfloat16 stops at 256, where the next number is 258 and one is half of the gap. The order of a sum is part of
# the arithmetic: in chunks the sum goes on.

# %%
ones = jnp.ones(4096)
for name, options in {"sequential": {}, "chunks of 64": {"chunk": 64}, "pairwise": {"order": "pairwise"}}.items():
    total = pl.dot(ones, ones, multiply=pl.BFLOAT16, accumulate=pl.BFLOAT16, **options)
    print(f"{name:14s} {float(total):g}")

# %% [markdown]
# ## What did the native run compute?
#
# The same function, written in float16 and run natively under jit, beside every operation rounded as written.

# %%
half = [array.astype(jnp.float16) for array in (weights, x)]
print(pl.native_difference(jax.grad(loss))(*half))
