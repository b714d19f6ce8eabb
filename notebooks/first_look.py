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
# # A first look at what a number format does to training
#
# A computer stores each weight with a few bits, so only some numbers can be stored at all. An optimizer asks for a
# small change, the sum is rounded to the nearest number that can be stored, and often that is the number which was
# there before. The update is gone. Nothing warns you: the loss is finite, the program runs, and part of the network
# does not learn.
#
# This notebook shows
#
# 1. which numbers a format has, and how far apart they are;
# 2. the four things that can happen to an update;
# 3. a network that silently does not learn, how one line finds out, and how one more line cures it;
# 4. real training on handwritten digits in five formats, with the results in hand.
#
# It runs as a notebook, and as a script: `python notebooks/first_look.py`. Two environment variables change what it
# does. `PRECISIONLAB_NOTEBOOK_RUN` names the folder of a finished `precisionlab run digits`, which part 4 then shows
# instead of training for itself; `PRECISIONLAB_NOTEBOOK_FIGURES` names a folder to save the pictures in.

# %%
import os
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.lines import Line2D

import precisionlab as pl
from precisionlab.experiments.common.experiment import MemoryJournal
from precisionlab.experiments.formats.digits import DIGITS, DigitsConfig
from precisionlab.optimizers import round_params, stagnation, track
from precisionlab.runs.plots import plot_fates, plot_histogram, plot_loss, plot_stagnation
from precisionlab.runs.results import Labelled, Result, select
from precisionlab.runs.store import find_run, load_result, query
from precisionlab.runs.summary import table

IN_NOTEBOOK = "ipykernel" in sys.modules
if not IN_NOTEBOOK:
    plt.switch_backend("Agg")  # a script draws without a window, and so never waits for one to be closed
RUN_FOLDER = os.environ.get("PRECISIONLAB_NOTEBOOK_RUN")
FIGURES = os.environ.get("PRECISIONLAB_NOTEBOOK_FIGURES")

# Colours that colour-blind eyes can tell apart (Okabe and Ito).
BLACK, BLUE, RED, GREEN, PINK, ORANGE = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"


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


def print_table(rows, columns=None):
    """Rows (mappings) as aligned text; quantities with an interval are shown with it."""
    cells = table(rows, columns)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def percent(share):
    """A share as text, in which what is almost everything does not read as everything."""
    text = f"{100 * share:.3g}"
    return f"{'almost ' if text == '100' and share < 1 else ''}{text} %"


# %% [markdown]
# ## 1. The numbers that exist
#
# A floating-point number is a **significand**, at least 1 and below 2 and written with a fixed count of bits, times a
# power of two. The count of bits, p, is the **precision**. Between one power of two and the next there are always
# 2^(p-1) evenly spaced numbers, so the spacing doubles at each power of two. Below the smallest power of two that the
# format has (2^emin) the spacing stops shrinking; the numbers there are called **subnormal**. In fixed point, where
# the spacing never changes, all numbers are of this kind.
#
# In precisionlab a format is just these numbers.

# %%
for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
    print(f"{name:14}", pl.FORMATS[name])

# %%
SMALL = {
    "fixed point, 3 + 1 bits": pl.fixed_point(3, 1),
    "float4_e2m1fn": pl.FLOAT4_E2M1FN,
    "float6_e2m3fn": pl.FLOAT6_E2M3FN,
    "float6_e3m2fn": pl.FLOAT6_E3M2FN,
    "float8_e4m3fn": pl.FLOAT8_E4M3FN,
    "float8_e5m2": pl.FLOAT8_E5M2,
}

figure, (linear, doubling) = plt.subplots(1, 2, figsize=(13, 4.8), sharey=True, layout="constrained")
for row, fmt in enumerate(SMALL.values()):
    values = pl.finite_values(fmt)
    values = values[values >= 0]
    normal = values >= 2.0**fmt.emin
    for ax in (linear, doubling):
        for chosen, colour in ((normal, BLUE), (~normal, ORANGE)):
            ax.vlines(values[chosen], row - 0.32, row + 0.32, color=colour, linewidth=1.1)
        ax.axhline(row, color="0.8", linewidth=0.8, zorder=0)
linear.set(xlim=(-0.1, 8.1), xlabel="value, from 0 to 8 (the negative half is the mirror image)", title="as they lie")
doubling.set_xscale("log", base=2)
doubling.set(
    xlim=(2.0**-18, 2.0**17), xlabel="value (each doubling has the same length)", title="the whole range, without zero"
)
labels = [f"{name}\n{len(pl.finite_values(fmt))} values, largest {fmt.largest:g}" for name, fmt in SMALL.items()]
linear.set_yticks(range(len(SMALL)), labels)
linear.invert_yaxis()
for ax in (linear, doubling):
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
keys = [Line2D([], [], color=BLUE, lw=3, label="normal: spacing doubles at each power of two")]
keys += [Line2D([], [], color=ORANGE, lw=3, label="subnormal (and zero): spacing constant")]
figure.legend(handles=keys, loc="outside upper center", ncols=2, frameon=False)
finish(figure, "1-values")

# %% [markdown]
# The spacing at x is called the **ulp** of x, for unit in the last place. It decides what an optimizer can do: a
# weight cannot move by less than about half an ulp when the result is rounded to the nearest value. Here it is for
# four formats in use and a fixed-point one. Wherever a staircase is above the grey line, an update of 0.001, which is
# about what Adam asks for at its usual learning rate, is lost.

# %%
UPDATE = 1e-3
STAIRS = {
    "bfloat16": (pl.BFLOAT16, BLUE),
    "float16": (pl.FLOAT16, RED),
    "float8_e4m3fn": (pl.FLOAT8_E4M3FN, GREEN),
    "float8_e5m2": (pl.FLOAT8_E5M2, PINK),
    "fixed point, 3 + 12 bits": (pl.fixed_point(3, 12), ORANGE),
}

figure, ax = plt.subplots(figsize=(10, 5.4), layout="constrained")
exponents = np.arange(-20, 18)
for name, (fmt, colour) in STAIRS.items():
    edges = np.float32(2.0) ** exponents[exponents <= np.floor(np.log2(fmt.largest))]
    ends = np.append(edges, min(fmt.largest, 2.0**18))
    ax.stairs(np.asarray(pl.ulp(jnp.asarray(edges), fmt)), ends, baseline=None, color=colour, linewidth=2.2, label=name)
    if fmt.largest < 2.0**17:
        ax.plot(fmt.largest, pl.ulp(float(fmt.largest), fmt), "o", color=colour, markersize=7)
ax.axhline(2 * UPDATE, color="0.45", linestyle="--", linewidth=1.3)
ax.text(2.0**17, UPDATE, f"lost above this line: an update of {UPDATE:g}", color="0.3", ha="right", va="top")
ax.set_xscale("log", base=2)
ax.set_yscale("log", base=2)
ax.set(xlim=(2.0**-20, 2.0**17.4), xlabel="|x|, size of the stored weight", ylabel="ulp(x), distance to the next value")
ax.grid(alpha=0.25)
handles, _ = ax.get_legend_handles_labels()
handles.append(Line2D([], [], color="0.35", marker="o", linestyle="", label="largest value"))
ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
finish(figure, "2-ulps")

# %% [markdown]
# ## 2. One update and its four fates
#
# Take a bfloat16 weight that is exactly 1.0, as the scales in normalization layers are at the start. Its neighbours
# are not equally far: 1.0 is a power of two, and below it the spacing is half as wide. `landing_threshold` says how
# large an update must be to move it, in each direction.

# %%
up, down = (float(size) for size in pl.landing_threshold(1.0, pl.BFLOAT16))
print(f"1.0 in bfloat16 moves up for an update of at least {up:.6g}, and down for one of at least {down:.6g}")


def fate(weight, update, fmt, update_format=None):
    """What becomes of one update, rounded to nearest: its fate, and the weight afterwards."""
    old, asked = jnp.float32(weight), jnp.float32(update)
    stored = asked if update_format is None else pl.round_to(asked, update_format)
    new = pl.round_to(old + stored, fmt)
    counts = pl.tally(old, asked, new, stored_update=stored)
    names = ("landed", "swamped", "underflowed", "zero")
    return next(name for name in names if getattr(counts, name) == 1), float(new)


# %%
FATE_COLOURS = {"landed": GREEN, "swamped": RED}
below, above = (float(value) for value in pl.neighbors(1.0, pl.BFLOAT16))
two_below, two_above = float(pl.neighbors(below, pl.BFLOAT16)[0]), float(pl.neighbors(above, pl.BFLOAT16)[1])

figure, ax = plt.subplots(figsize=(11, 4.2), layout="constrained")
ax.axvspan(1 - down, 1 + up, color=RED, alpha=0.16, linewidth=0)
ax.text(1 + (up - down) / 2, 3.55, "sums in here\nare rounded back to 1", ha="center", va="center")
ax.axhline(0, color="0.3", linewidth=1)
for value in (two_below, below, 1.0, above, two_above):
    ax.vlines(value, -0.18, 0.18, color=BLACK, linewidth=2.5)
    ax.text(value, -0.32, f"{value:.10g}", ha="center", va="top", fontweight="bold" if value == 1 else "normal")
for height, update in ((0.8, 0.006), (1.6, 0.003), (2.4, -0.003)):
    name, new = fate(1.0, update, pl.BFLOAT16)
    colour = FATE_COLOURS[name]
    ax.annotate("", (1 + update, height), (1, height), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2})
    ax.plot([1 + update, new], [height, 0], ":", color=colour, linewidth=1.5)
    ax.plot(new, 0, "o", color=colour, markersize=8, zorder=3)
    side, place = ("left", 0.0002) if update > 0 else ("right", -0.0002)
    ax.text(1 + update + place, height, f"update {update:+g}: {name}, {new:.10g} is stored", ha=side, va="center")
ax.set(xlim=(two_below - 0.0025, two_above + 0.0012), ylim=(-0.9, 4.0), yticks=[])
ax.set(xlabel="weight + update (ticks: the values that bfloat16 has)")
ax.spines[["top", "right", "left"]].set_visible(False)
finish(figure, "3-neighbours")

# %% [markdown]
# Each update has one of four fates, and precisionlab counts them by comparing stored bits:
#
# - **landed**: the weight changed;
# - **swamped**: the update was fine, but too small beside its weight;
# - **underflowed**: the update itself was rounded to zero, in the format that it was kept in;
# - **zero**: nothing was asked, so nothing was lost.
#
# The same update can land on one weight and be swamped by another, and large weights stop first.

# %%
EXAMPLES = (
    ("bfloat16", 1.0, 0.01, None, "more than half an ulp"),
    ("bfloat16", 1.0, 0.003, None, "less than half the gap above 1.0"),
    ("bfloat16", 1.0, -0.003, None, "below 1.0 the gap is half as wide"),
    ("bfloat16", 0.1, 0.003, None, "the same update on a smaller weight"),
    ("bfloat16", 256.0, 1.0, None, "a counter of steps stops here"),
    ("float8_e4m3fn", 0.25, 0.01, None, "eight bits need a larger push"),
    ("float32", 0.25, 2e-8, "float16", "would have landed, but is kept in float16"),
    ("float32", 0.25, 5e-6, "float8_e5m2", "would have landed, but is kept in float8_e5m2"),
    ("bfloat16", 1.0, 0.0, None, "no gradient, no update"),
)
examples = []
for name, weight, update, kept, why in EXAMPLES:
    ending, new = fate(weight, update, pl.FORMATS[name], kept and pl.FORMATS[kept])
    spacing = float(pl.ulp(weight, pl.FORMATS[name]))
    example = {"weights in": name, "weight": f"{weight:.10g}", "update": f"{update:g}"}
    example |= {"update / ulp": f"{update / spacing:.3g}", "stored": f"{new:.10g}", "fate": ending, "why": why}
    examples.append(example)
print_table(examples)

# %% [markdown]
# **What rounding does on average.** Rounding to nearest (`nearest_even`: of two equally near, the one whose last bit
# is zero) makes small updates vanish, every time, however often they are repeated. **Stochastic rounding** moves to
# the value above or below at random, the nearer one being more likely, with the odds chosen so that the average is
# exactly right: an update of a tenth of an ulp moves the weight by a whole ulp one time in ten. One step is noisier,
# but nothing is lost for good.

# %%
WEIGHT, DRAWS = 1.5, 4000
spacing = float(pl.ulp(WEIGHT, pl.BFLOAT16))
sizes = np.linspace(0, 2, 81)
sums = jnp.broadcast_to(jnp.asarray(WEIGHT + sizes * spacing, jnp.float32)[:, None], (len(sizes), DRAWS))
moves = {
    "nearest_even": np.asarray(pl.round_to(sums, pl.BFLOAT16)) - WEIGHT,
    "stochastic": np.asarray(pl.round_to(sums, pl.BFLOAT16, pl.stochastic, key=jax.random.key(0))) - WEIGHT,
}
MODE_LOOKS = {"nearest_even": {"color": RED, "linestyle": "-"}, "stochastic": {"color": BLUE, "linestyle": "--"}}

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
right.plot(sizes, sizes, color="0.75", linewidth=6, label="what was asked")
for mode, moved in moves.items():
    look = MODE_LOOKS[mode] | {"label": mode.replace("_", " "), "linewidth": 2.2}
    left.plot(sizes, (moved != 0).mean(axis=1), **look)
    right.plot(sizes, moved.mean(axis=1) / spacing, **look)
left.set(ylabel="share of updates that land", title="Does the weight move?")
right.set(ylabel="mean movement, in ulps", title="How far does it move on average?")
for ax in (left, right):
    ax.set(xlabel="size of the update, in ulps of the weight")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
finish(figure, "4-on-average")

worst = {mode: np.abs(moved.mean(axis=1) / spacing - sizes).max() for mode, moved in moves.items()}
for mode, error in worst.items():
    print(f"{mode:12}  the mean movement is wrong by up to {error:.3f} ulp ({DRAWS} draws for each size)")

# %% [markdown]
# ## 3. The silent failure, and its cure
#
# A normalization layer multiplies each feature by a scale, which begins at 1.0. Below, 64 such scales should learn
# values between 0.8 and 1.2 with Adam at learning rate 0.001: once with the scales in float32, once in bfloat16.
# Nothing else differs, and neither run gives an error or a warning.
#
# The one line is `track(...)` around the optimizer. It does not change training; it keeps in the optimizer's state a
# record of what became of the latest updates, which `stagnation` finds again. The float32 run is also asked what
# *would* be lost in other formats, before anything is changed.

# %%
FEATURES, STEPS, RATE = 64, 600, 1e-3
wanted = 1 + 0.2 * jax.random.uniform(jax.random.key(0), (FEATURES,), minval=-1)


def loss(params, inputs):
    """The mean squared difference between inputs times the scales and inputs times what the scales should be."""
    return jnp.mean((inputs * (params["norm"]["scale"].astype(jnp.float32) - wanted)) ** 2)


@partial(jax.jit, static_argnames=("optimizer", "dtype"))
def train(optimizer, dtype):
    """An ordinary training loop, which also keeps the record of every step."""

    def step(carry, key):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, jax.random.normal(key, (32, FEATURES)))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        # The scales leave in the type they are stored in: made float32 in here, under jit, they can come out unrounded.
        return (params, state), (value, params["norm"]["scale"], stagnation(state))

    params = {"norm": {"scale": jnp.ones(FEATURES, dtype)}}
    _, history = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), STEPS))
    return history


def summary(name):
    """One row of a table: what the record of a run says, over all of its steps."""
    losses, _, record = trained[name]
    fates = record.tally["norm"]["scale"]
    last_moved = np.asarray(record.ages.last_moved["norm"]["scale"][-1])
    row = {"scales in": name, "first loss": f"{losses[0]:.2g}", "last loss": f"{losses[-1]:.2g}"}
    row |= {fate: f"{int(getattr(fates, fate).sum()):,}" for fate in ("landed", "swamped", "zero")}
    return row | {"scales that never moved": percent(float(np.mean(last_moved == 0)))}


what_ifs = [pl.BFLOAT16, pl.FLOAT16, pl.FLOAT8_E4M3FN]
trained = {
    "float32": train(track(optax.adam(RATE), formats=what_ifs, ages=True), jnp.float32),
    "bfloat16": train(track(optax.adam(RATE), ages=True), jnp.bfloat16),
}
print_table([summary(name) for name in trained])

# %% [markdown]
# In bfloat16 every update was swamped, in every step, and the loss is where it began. (Float32 swamped some as well,
# at the end, when there was hardly anything left to change.) The float32 run could have told us. Its record holds
# what would have been lost, had the scales been stored in other formats:

# %%
for name, tallies in trained["float32"][2].what_if.items():
    fates = tallies["norm"]["scale"]
    lost, asked = int(fates.stagnated[0]), int(fates.asked[0])
    print(f"{name:14} would have lost {lost} of the {asked} updates in the first step")

# %% [markdown]
# **The cure.** `round_params(BFLOAT16, stochastic)`, last in the chain, changes each update so that the sum lands on
# a value of the format, chosen by stochastic rounding. The weights stay in bfloat16 and no further memory is needed.
# (The usual other cure, a second copy of all weights in float32, costs four more bytes for each weight.)
#
# Here the tracker goes around the rounding alone, the last link of the chain: its record compares the updates that went in
# with the weights that were stored. Most single updates are still swamped, but every scale moves.

# %%
cured = optax.chain(optax.adam(RATE), track(round_params(pl.BFLOAT16, pl.stochastic), ages=True))
trained["bfloat16, stochastic"] = train(cured, jnp.bfloat16)
print_table([summary(name) for name in trained])
floor = float(jnp.mean((pl.round_to(wanted, pl.BFLOAT16) - wanted) ** 2))
print(f"\nThe best scales that bfloat16 can store would have a loss of about {floor:.2g}.")

# %% [markdown]
# On the right, one scale on its way. Without the cure it stays at 1.0. With it, the scale moves rarely, by a whole
# ulp at a time and by chance, so it wanders around the path of float32 and ends about as near as bfloat16 allows.

# %%
LOOKS = {
    "float32": {"color": BLACK, "linewidth": 4, "alpha": 0.35},
    "bfloat16": {"color": RED, "linewidth": 2},
    "bfloat16, stochastic": {"color": BLUE, "linewidth": 1.4},
}
figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.6), layout="constrained")
farthest = int(np.argmax(np.asarray(wanted)))
for name, (losses, scales, _) in trained.items():
    left.plot(np.arange(1, STEPS + 1), losses, **LOOKS[name])
    right.plot(np.arange(1, STEPS + 1), scales[:, farthest].astype(jnp.float32), label=name, **LOOKS[name])
right.axhline(float(wanted[farthest]), color="0.4", linestyle="--", linewidth=1.2, label="what it should become")
left.set_yscale("log")
left.set(ylabel="loss (mean squared error)", title="The loss")
right.set(ylabel="value of the scale", title="One of the scales")
for ax in (left, right):
    ax.set(xlabel="step", xlim=(0, STEPS))
    ax.grid(alpha=0.25)
right.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
finish(figure, "5-silent-failure")

# %% [markdown]
# ## 4. Real data: handwritten digits in five formats
#
# `precisionlab run digits` trains a small network on 1,437 images of digits, with its weights stored in several
# formats, rounded to nearest and stochastically, and reads the fate of every update at regular steps. Here is a
# shorter version: three seeds and 400 steps instead of eight and 2,000. Each format starts from the same weights and
# sees the same images.

# %%
if RUN_FOLDER:
    stored_run = find_run("runs", RUN_FOLDER)
    if stored_run.experiment != "digits":
        raise ValueError(f"{RUN_FOLDER} holds a run of {stored_run.experiment}; give one of `precisionlab run digits`.")
    result, ask = load_result(stored_run), partial(query, stored_run)
else:
    journal = MemoryJournal()
    result, ask = DIGITS.run(DigitsConfig(**DIGITS.quick), journal=journal), journal.query
formats, modes = result.coords["format"], result.coords["mode"]
rows = {(row["format"], row["mode"]): row for row in result.rows}
print(result.verdict, end="\n\n")
print_table(result.rows, ["format", "mode", "train_loss", "test_accuracy"])

# %% [markdown]
# In brackets: where the mean over seeds lies with 95 % confidence. A few seeds give only a rough interval.
#
# The **stagnated fraction** is the share of updates that changed nothing, among the weights which were asked to
# change. It grows as training goes on, because updates become smaller. Rounding to nearest, a coarse format stops
# early, and the loss stays where it is. Rounding stochastically the share is nearly as high, and yet the loss falls
# as it does in float32: the five curves lie on each other. Both are true: most updates still leave their weight where
# it is, but those that move it go a whole ulp, far enough to make up for the others.


# %%
def only(mode):
    """The result for one rounding mode, its other axes as they were."""
    place = modes.index(mode)
    arrays = {
        name: Labelled(array.dims, array.values.take([place], axis=array.dims.index("mode")))
        for name, array in result.arrays.items()
    }
    return Result(result.experiment, result.config, {**result.coords, "mode": (mode,)}, arrays)


figure, axes = plt.subplots(
    2, len(modes), figsize=(2.5 + 5 * len(modes), 7.5), sharex=True, sharey="row", squeeze=False, layout="constrained"
)
for (top, bottom), mode in zip(axes.T, modes, strict=True):
    plot_loss(only(mode), ax=top).set(xlabel="", title=mode.replace("_", " "))
    plot_stagnation(only(mode), ax=bottom).set(xlabel="step (number of updates so far)", ylabel="stagnated fraction")
legend = axes[0, 0].get_legend()
keys, title = legend.legend_handles[: len(formats)], legend.get_title().get_text()
for ax in axes.flat:
    ax.get_legend().remove()
    ax.label_outer()
figure.legend(handles=keys, title=title, alignment="left", loc="outside right upper", frameon=False)
finish(figure, "6-digits")

# %% [markdown]
# **What became of the updates**, over all the steps that were read. The grey share is real: pixels that are blank in
# every image, and hidden units that have been silent so far, have no gradient and ask for nothing. Float32 swamps a
# few as well, mostly of units that have fallen silent, where Adam's average of old gradients fades away. Nothing
# underflowed, because here only the weights are kept in the small format, not the updates.

# %%
figure, axes = plt.subplots(
    1,
    len(modes),
    figsize=(6.6 * len(modes), 1.6 + 0.5 * len(formats)),
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for ax, mode in zip(axes[0], modes, strict=True):
    counts = {
        kind: dict(zip(result.coords["fate"], select(result, "fates", format=kind, mode=mode).values, strict=True))
        for kind in formats
    }
    for kind, fates in counts.items():
        strange = fates.pop("nonfinite")  # infinities and NaN have no fate; they are counted apart
        if strange:
            print(f"{kind}, {mode}: {int(strange):,} entries were not finite, and are left out")
    plot_fates(counts, ax=ax)
    ax.get_legend().remove()
    for text in ax.texts:
        if text.get_text().endswith("entries"):
            text.set_visible(False)  # the same for every bar
    ax.set(title=mode.replace("_", " "))
    ax.invert_yaxis()
axes[0, 0].invert_yaxis()
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
for ax in axes.flat:
    ax.set(xlabel=f"share of {int(sum(counts[formats[0]].values())):,} updates (%)")
finish(figure, "7-fates")

# %% [markdown]
# **Why they were lost.** Measure each update in ulps of its weight. Rounding to nearest keeps what is right of the
# line, at half an ulp, and loses what is left of it. (Towards zero from a power of two the line is at a quarter of an
# ulp, as part 2 showed.) Each significand bit less moves the hill one step to the left. Float32 is not shown: its
# hill is far to the right.

# %%
shown = [kind for kind in formats if kind != "float32"] or list(formats)
mode = "nearest_even" if "nearest_even" in modes else modes[0]
edges = np.array([-np.inf, *result.coords["bin"][1:], np.inf])
columns = min(2, len(shown))
lines = -(-len(shown) // columns)
figure, axes = plt.subplots(
    lines, columns, figsize=(6.5 * columns, 0.9 + 2.7 * lines), sharex=True, squeeze=False, layout="constrained"
)
for ax, kind in zip(axes.flat, shown, strict=False):
    counts = select(result, "histogram", format=kind, mode=mode).values
    plot_histogram(edges, counts / counts.sum() * 100, ax=ax)
    handles, labels = ax.get_legend_handles_labels()
    keys = {label: handle for label, handle in zip(labels, handles, strict=True) if not label.startswith("outermost")}
    ax.get_legend().remove()
    left_of_line = counts[edges[1:] <= -1].sum() / counts.sum()
    ax.set(title=f"{kind}: {percent(left_of_line)} left of the line", xlabel="", ylabel="share of updates (%)")
for ax in axes.flat[len(shown) :]:
    ax.set_visible(False)
note = "the outermost bars hold everything beyond"
figure.supxlabel(f"log2 of (size of the update / ulp of its weight); {note}", fontsize="medium")
figure.legend(keys.values(), keys.keys(), loc="outside upper center", ncols=3, frameon=False)
finish(figure, "8-histogram")

# %% [markdown]
# **Where.** Every record is a row that can be asked in SQL: one layer of one network at one step. The layers do not
# lose equally, and the one that loses most is where to look first.

# %%
layers = ask(
    "SELECT format, mode, leaf, sum(swamped + underflowed) / sum(landed + swamped + underflowed) AS share FROM records "
    f"WHERE step > {0.9 * result.config['steps']} GROUP BY format, mode, leaf ORDER BY leaf"
)
shares = {key: {} for key in rows}
for kind, mode, leaf, share in zip(*(layers[name] for name in ("format", "mode", "leaf", "share")), strict=True):
    shares[kind, mode][leaf] = percent(float(share))
worst_layers = [
    {"format": kind, "mode": mode, "worst layer": row["worst_layer"]} | shares[kind, mode] for (kind, mode), row in rows.items()
]
print("share of wanted updates that changed nothing, in the last tenth of training\n")
print_table(worst_layers)

# %% [markdown]
# **How much of what was asked was done?** The **lost mass** is the lost share of the updates' total size. The
# **descent quality** compares the movement that happened with the one that was asked for: 1 means all of it, 0 none,
# more than 1 too much. Stochastic rounding loses much mass in each step and still has a quality near 1 (the coarser
# the format, the noisier it is): that is why it works. Both are taken over the whole of training.

# %%
sums = ask(
    "SELECT format, mode, sum(stagnated_mass) / sum(update_mass) AS lost, "
    "sum(moved_along) / sum(update_square) AS quality FROM records GROUP BY format, mode"
)
for kind, mode, lost, quality in zip(*(sums[name] for name in ("format", "mode", "lost", "quality")), strict=True):
    rows[kind, mode] = rows[kind, mode] | {"lost mass": percent(float(lost)), "descent quality": f"{quality:.3f}"}
for row in rows.values():
    row |= {"lost at first": percent(row["stagnated_first"]), "lost in the end": percent(row["stagnated_fraction"])}
print_table(list(rows.values()), ["format", "mode", "lost at first", "lost in the end", "lost mass", "descent quality"])

# %% [markdown]
# ## What to take away
#
# Every number below comes from what ran above.

# %%
scale_rows = {name: summary(name) for name in trained}
print(f"- In bfloat16 a weight of 1.0 moves up for updates above {up:.2g}, and down for those above {down:.2g}.")
print(f"  With Adam at {RATE:g}, the share of norm scales that never moved in {STEPS} steps was:")
for name, row in scale_rows.items():
    print(f"    {name:22} {row['scales that never moved']:>8}   (loss {row['first loss']} -> {row['last loss']})")

for mode in modes:
    print(f"- Digits, {mode.replace('_', ' ')}, from most significand bits to least:")
    for kind in sorted(formats, key=lambda kind: -pl.FORMATS[kind].precision):
        row = rows[kind, mode]
        print(
            f"    {kind:14} {pl.FORMATS[kind].precision:2} bits   lost in the end {row['lost in the end']:>13}   "
            f"training loss {row['train_loss']:5.3f}   test accuracy {row['test_accuracy']:.3f}"
        )

if {"nearest_even", "stochastic"} <= set(modes):
    losses = {key: row["train_loss"] for key, row in rows.items()}
    gains = {kind: losses[kind, "nearest_even"] / losses[kind, "stochastic"] for kind in formats}
    best = max(gains, key=gains.get)
    print(f"- Stochastic rounding changed most in {best}: the training loss was {gains[best]:.3g} times lower than")
    still = rows[best, "stochastic"]["lost in the end"]
    print(f"  with rounding to nearest, while {still} of the updates in a step still did nothing.")

print("- What was claimed before the run, and what was measured (95 % intervals in brackets):\n")
answers = {True: "held", False: "failed", None: "undecided"}
claims = [claim._asdict() for claim in result.claims]
named = {"low": "measured_low", "high": "measured_high", "name": "claim"}
claims = [{named.get(field, field): value for field, value in claim.items()} for claim in claims]
claims = [claim | {"answer": answers[claim["held"]]} for claim in claims]
print_table(claims, ["answer", "claim", "predicted", "measured"])
