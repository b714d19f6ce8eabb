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
# # In your training loop
#
# A small network with a norm, its weights in bfloat16, trained by Adam at a small learning rate. It runs, it gives no
# error, and the loss hardly falls. This notebook asks why, does what the answer says, and looks again.
#
# It runs as a notebook, and as a script: `python notebooks/your_training_loop.py`. With more detail:
# `docs/your-training-loop.md`.

# %%
import os
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import precisionlab as pl
from precisionlab.optimizers import advise, in_float32, kahan, master_weights, round_params, stagnation, track

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
# ## The loop
#
# An ordinary one. `optimizer` is all that will change.

# %%
STEPS, RATE = 400, 1e-4
x = jax.random.normal(jax.random.key(0), (64, 64))
kernel = jax.random.normal(jax.random.key(1), (64, 256), jnp.bfloat16) / 8
narrow = {"dense": {"kernel": kernel}, "norm": {"scale": jnp.ones(256, jnp.bfloat16)}}
wide = jax.tree.map(lambda w: w.astype(jnp.float32), narrow)


def loss(params):
    hidden = jnp.tanh(x @ params["dense"]["kernel"]) * params["norm"]["scale"]
    return jnp.mean((hidden - jnp.sin(x[:, :1])) ** 2)


@partial(jax.jit, static_argnums=0)
def train(optimizer, params):
    """The state at the end, and the loss and the shares of every step."""

    def step(now, _):
        params, opt_state = now
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        tallies = pl.by_path(stagnation(opt_state).tally)
        shares = {path: (tally.stagnated_fraction, tally.lost_fraction) for path, tally in tallies.items()}
        return (optax.apply_updates(params, updates), opt_state), (value, shares)

    (_, opt_state), history = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
    return opt_state, *history


# %% [markdown]
# ## What is wrong?
#
# `track` goes around the optimizer, `stagnation` finds its record, `advise` says what it means.

# %%
states, losses, shares = {}, {}, {}
states["bfloat16"], losses["bfloat16"], shares["bfloat16"] = train(track(optax.adamw(RATE)), narrow)
for advice in advise(stagnation(states["bfloat16"]), learning_rate=RATE, weight_decay=1e-4):
    print(textwrap.fill(str(advice), 110), end="\n\n")

# %% [markdown]
# ## What would help?
#
# Three cures of the weights, and float32 for comparison. bfloat16 parameters give Optax bfloat16 moments, in which
# 0.999 is 1; `in_float32` keeps the moments wide, and `master_weights` does so by itself.

# %%
adam = in_float32(optax.adamw(RATE))
cures = {
    "stochastic": optax.chain(adam, round_params(pl.BFLOAT16, pl.stochastic)),
    "kahan": optax.chain(adam, kahan(pl.BFLOAT16)),
    "master weights": master_weights(optax.adamw(RATE), pl.BFLOAT16),
}
for name, optimizer in cures.items():
    states[name], losses[name], shares[name] = train(track(optimizer), narrow)
states["float32"], losses["float32"], shares["float32"] = train(track(optax.adamw(RATE), [pl.BFLOAT16]), wide)

print(f"{'':16}{'last loss':>10}{'stood still':>13}{'lost':>8}{'descent quality':>17}")
for name, state in states.items():
    whole = pl.total(stagnation(state).tally)
    fractions = [float(share) for share in (whole.stagnated_fraction, whole.lost_fraction, whole.descent_quality)]
    print(f"{name:16}{float(losses[name][-1]):10.4f}{fractions[0]:13.2f}{fractions[1]:8.2f}{fractions[2]:17.2f}")

# %% [markdown]
# With each cure the loss is that of float32. Note that most single updates still do not change their weight, whatever
# the cure. With a compensation or with masters these are *invisible*: something keeps them. Stochastic rounding keeps
# nothing and counts them as lost, but what lands is right on average: the descent quality says so.

# %%
LOOKS = {
    "float32": {"color": BLACK, "linewidth": 5, "alpha": 0.3},
    "bfloat16": {"color": RED, "linewidth": 2.2},
    "stochastic": {"color": BLUE, "linewidth": 1.6},
    "kahan": {"color": GREEN, "linewidth": 1.6, "linestyle": "--"},
    "master weights": {"color": ORANGE, "linewidth": 1.6, "linestyle": ":"},
}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
for name, look in LOOKS.items():
    left.plot(np.arange(1, STEPS + 1), losses[name], label=name, **look)
left.set(ylabel="loss", title="Each cure learns as float32 does")
left.legend(frameon=False)
for path, colour in (("dense/kernel", BLUE), ("norm/scale", RED)):
    lost = 100 * shares["bfloat16"][path][1]
    right.plot(np.arange(1, STEPS + 1), lost, color=colour, linewidth=2.2, label=f"bfloat16: {path}, lost")
still, lost = shares["master weights"]["dense/kernel"]
right.plot(np.arange(1, STEPS + 1), 100 * still, color=BLACK, linewidth=1.0, label="masters: dense/kernel, stood still")
right.plot(np.arange(1, STEPS + 1), 100 * lost, color=BLACK, linestyle="--", label="masters: dense/kernel, lost")
right.set(ylabel="share of the updates (%)", ylim=(-3, 103), title="Still, but not lost")
right.legend(frameon=False, loc="center", bbox_to_anchor=(0.6, 0.25))
for ax in (left, right):
    ax.set(xlabel="step", xlim=(0, STEPS))
    ax.grid(alpha=0.25)
finish(figure, "1-cures")

# %% [markdown]
# ## Why? Steps against gaps
#
# A tally holds a histogram of the size of each update in units of its weight's ulp, the distance to the next value.
# Rounding to nearest loses what is below one half.

# %%
figure, ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
edges = np.array(pl.HISTOGRAM_EDGES)
for path, colour in (("dense/kernel", BLUE), ("norm/scale", RED)):
    tally = pl.by_path(stagnation(states["bfloat16"]).tally)[path]
    counts = 100 * np.asarray(tally.histogram) / float(tally.asked)
    ax.bar(edges[:-1], counts, width=0.92, align="edge", color=colour, alpha=0.65, label=path)
ax.axvspan(edges[0], -1, color="0.6", alpha=0.2, linewidth=0, zorder=0)
ax.text(edges[0] + 0.4, ax.get_ylim()[1] * 0.94, "lost: below half an ulp", va="top", color="0.3")
ax.set(xlim=(edges[0], edges[-1]), ylabel="share of the updates (%)", title="The last step of the bfloat16 run")
ax.set_xlabel(r"$\log_2$ (size of the update / ulp of the weight)")
ax.legend(frameon=False)
ax.grid(axis="y", alpha=0.25)
finish(figure, "2-steps")
