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
# # Where does the flatness come from?
#
# Overparameterized networks have flat minima. Two explanations: *geometry* (n weights and d data points leave an
# (n - d)-dimensional manifold of minima, in real arithmetic) and *representation* (updates below what the number format
# can represent are lost, so everything near a minimum looks flat). This notebook asks a network with three weights, small
# enough to look at every number that its weights can be. What `precisionlab run` asks of larger ones is in
# `docs/the-question.md`.
#
# It runs as a notebook, and as a script: `python notebooks/the_question.py`.

# %%
import os
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import precisionlab as pl
from precisionlab.landscape import (
    census,
    chart,
    extents_along_line,
    extents_along_walk,
    fixed_axis,
    plane_along,
    reach_minimum,
    retract,
    split_spaces,
    walk,
)

IN_NOTEBOOK = "ipykernel" in sys.modules
if not IN_NOTEBOOK:
    plt.switch_backend("Agg")
FIGURES = os.environ.get("PRECISIONLAB_NOTEBOOK_FIGURES")

# Colours that colour-blind eyes can tell apart (Okabe and Ito).
BLACK, BLUE, RED, GREEN, ORANGE = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00"


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
# ## Three weights
#
# f(x) = w3 tanh(w1 x + w2), and one, two or three data points that it can fit. One point leaves a surface of minima, two
# leave a curve, three leave isolated ones.

# %%
INPUTS = np.array([-0.9, 0.1, 1.0])
TEACHER = np.array([1.1, 0.4, -1.2])
TARGETS = TEACHER[2] * np.tanh(TEACHER[0] * INPUTS + TEACHER[1])


def residuals(w, d):
    return w[2] * jnp.tanh(w[0] * INPUTS[:d] + w[1]) - TARGETS[:d]


def loss(w, d):
    return 0.5 * jnp.sum(residuals(w, d) ** 2)


# %% [markdown]
# ## Every lattice point
#
# Weights of 4 fraction bits are multiples of h = 1/16. Of the points in the box, these fit the data as well as their
# spacing allows: |residuals| <= 2 h. Nothing is sampled, and nothing is trained.

# %%
BITS, REACH = 4, 2.0
figure = plt.figure(figsize=(13, 4.8))
figure.subplots_adjust(left=0, right=0.96, bottom=0.02, top=0.95, wspace=0.08)
for place, (d, colour) in enumerate(((1, BLUE), (2, RED), (3, GREEN)), 1):
    found = census(partial(loss, d=d), [fixed_axis(-2, 2, BITS)] * 3, 0.5 * (REACH * 2.0**-BITS) ** 2, points=True)
    ax = figure.add_subplot(1, 3, place, projection="3d")
    ax.scatter(*found.points.T, s=3 if d == 1 else 12, color=colour, alpha=0.5 if d == 1 else 0.8, linewidth=0)
    ax.set(xlim=(-2, 2), ylim=(-2, 2), zlim=(-2, 2), xlabel="w1", ylabel="w2", zlabel="w3")
    ax.set(xticks=(-2, 0, 2), yticks=(-2, 0, 2), zticks=(-2, 0, 2))
    ax.set_box_aspect((1, 1, 0.9), zoom=0.95)
    ax.set_title(f"{d} data point{'s' * (d > 1)}: {found.hits:,} of {found.total:,} points")
    ax.view_init(elev=22, azim=-58)
finish(figure, "1-lattice-points")

# %% [markdown]
# Each comes twice, because tanh is odd: the weights (-w1, -w2, -w3) are the same function. The sheet, the line and the
# dot are there in the exact loss; the lattice only puts points on them. So the number of
# points says what dimension they have: with each bit it grows by a factor 2^(n - d). If flatness came from the lattice, it
# would grow alike for every d.

# %%
figure, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
for d, colour, bits in ((1, BLUE, (3, 4, 5, 6)), (2, RED, (4, 5, 6, 7)), (3, GREEN, (5, 6, 7, 8))):
    steep = float(np.sqrt(np.sum(4 * (INPUTS[:d] ** 2 + 1) + 1)))  # no slope of a residual in the box is steeper
    counts = [
        census(
            partial(loss, d=d), [fixed_axis(-2, 2, b)] * 3, 0.5 * (REACH * 2.0**-b) ** 2, slope_bound=steep, most_points=1 << 40
        ).hits
        for b in bits
    ]
    slope = np.polyfit(bits, np.log2(counts), 1)[0]
    print(f"{d} data point{'s' * (d > 1)}: {counts} lattice points fit at {list(bits)} bits, slope {slope:.2f}")
    ax.plot(bits, np.log2(counts), "o-", color=colour, label=f"d = {d}: slope {slope:.2f}, geometry says {3 - d}")
ax.set(xlabel="fraction bits of the weights", ylabel="log2 of the points that fit", xticks=range(3, 9))
ax.legend(frameon=False)
ax.grid(alpha=0.25)
finish(figure, "2-census")

# %% [markdown]
# ## How far until something moves?
#
# Rounding does freeze a neighbourhood of each minimum: gradient descent leaves a weight alone while lr |g| is at most
# half a spacing. But the neighbourhood has a shape. Out of the valley it shrinks with the spacing h; straight along the
# valley with its root, since the valley bends away; along the valley itself it does not end at all.

# %%
LR, D = 0.1, 2
fit, error = partial(loss, d=D), partial(residuals, d=D)
minimum = reach_minimum(error, TEACHER + 0.05).theta
split = split_spaces(error, minimum)
bits = np.arange(6, 25)
spacings = list(2.0**-bits)
out = extents_along_line(fit, minimum, split.row[:, 0], spacings, lr=LR)
straight = extents_along_line(fit, minimum, split.null[:, 0], spacings, lr=LR)
path = walk(error, minimum, split.null[:, 0], length=1.0, steps=200)
along = extents_along_walk(fit, path.points, spacings, lr=LR, back=lambda point: retract(error, point))

figure, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
kinds = ((out, RED, "out of the valley"), (straight, ORANGE, "straight along it"), (along, BLUE, "along it"))
for extent, colour, name in kinds:
    logs = np.log2(extent.length)
    tail = slice(6, None)
    slope = np.polyfit(bits[tail], logs[tail], 1)[0]
    ax.plot(bits, logs, "o-", color=colour, markersize=4, label=f"{name}: slope {slope:.2f}")
ax.set(xlabel="fraction bits of the weights", ylabel="log2 of the distance until a weight moves", xticks=bits[::3])
ax.legend(frameon=False)
ax.grid(alpha=0.25)
finish(figure, "3-extents")

# %% [markdown]
# ## The frozen cells, drawn
#
# The plane that holds the valley's direction (to the right) and the steepest way out of it (up), with weights in 5
# significand bits. Dots are the stored weights that the plane meets; full ones are frozen. Coarse as the format is, the
# frozen ones lie along the valley of the exact loss.

# %%
plane = plane_along(minimum, split.null[:, 0], split.row[:, 0])
seen = chart(fit, plane, (-0.8, 0.8, -0.25, 0.25), size=161, fmt=pl.ieee_format(8, 4), lr=LR)
figure, ax = plt.subplots(figsize=(10, 4.6), layout="constrained")
levels = np.linspace(-7, 0, 15)
filled = ax.contourf(seen.right, seen.up, np.log10(seen.loss + 1e-12), levels=levels, cmap="Greys_r", extend="both")
near = seen.cells.offset < 0.04
for frozen, face in ((False, "none"), (True, RED)):
    chosen = near & (seen.cells.frozen == frozen)
    ax.scatter(seen.cells.right[chosen], seen.cells.up[chosen], s=22, facecolor=face, edgecolor=RED, linewidth=0.8)
figure.colorbar(filled, ax=ax, label="log10 of the exact loss")
ax.set(xlabel="along the valley", ylabel="out of it", xlim=(-0.8, 0.8), ylim=(-0.25, 0.25))
ax.set_title(f"{int(seen.cells.frozen[near].sum())} of {int(near.sum())} stored weights near this plane are frozen")
finish(figure, "4-frozen-cells")
