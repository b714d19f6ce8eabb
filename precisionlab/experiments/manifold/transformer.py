"""What holds the weights of a transformer that was trained in bfloat16 with AdamW: curvature, weight decay, or the format?

Near where training ends an update of AdamW is -lr (P^-1 H delta + mu delta) at the displacement delta, P = diag(sqrt(v) + eps).
Along an eigenvector of curvature in Adam's own metric, P^-1 H delta = lambda delta (`adam_metric`), every weight is asked for
-lr (lambda + mu) delta_j. Of a displacement as large as the weight that is lost where lr lambda <= 2^-p, and the pull of decay
where lr mu <= 2^-p: the half gap is between 2^-(p+1) and 2^-p of a weight. So of three numbers

    lr lambda,    lr mu,    2^-p

the largest **holds** the direction: geometry, decay, or the format. In real arithmetic there is no third one, and with mu > 0
every direction is held: minima are isolated. In bfloat16 with lr = 1e-3 and mu = 0.1, lr mu = 2^-13.3 is below 2^-8, and what
curvature does not hold, the format does.

That is about single pulls. Gradients of minibatches have noise, and noise dithers: an update that moves a weight anyway carries
decay with it. So it is also asked of training itself: how much smaller are the weights with decay than without, as a share of
how much smaller they are in float32? Stochastic rounding applies decay on average.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.common.claiming import above, equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.adam_metric import adam_curvature, counts_above
from precisionlab.experiments.manifold.settings import float_arms
from precisionlab.landscape.densities import Density
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import BFLOAT16, FLOAT32
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.numerics.rounding import round_to
from precisionlab.problems import text
from precisionlab.runs.results import Claim, Labelled
from precisionlab.training.loops import sweep
from precisionlab.training.steps import make_step, start

__all__ = ["ARMS", "HOLDERS", "claims", "held", "measure"]

ARMS = ("float32", "bfloat16", "bfloat16, stochastic")
HOLDERS = ("geometry", "decay", "format")

_EPS = 1e-8  # of Adam
_POWERS = tuple(range(-24, 9))  # log2 of lr lambda
_HEADS = 2
_RATIO = 0.15


def held(counts: Callable[[float], float], n: int, bits: int, lr: float, decay: float) -> tuple[float, float, float]:
    """How many directions each of the three holds.

    Args:
        counts: of a threshold, the number of directions with lr lambda above it.
        n: weights.
        bits: significand bits p.
        lr: the step size.
        decay: mu.

    Returns:
        Numbers of directions held by curvature, by decay, by the format; their sum is n.

    Example:
        >>> spectrum = np.array([2.0**-4, 2.0**-9, 0.0, 0.0])
        >>> above = lambda threshold: float((spectrum > threshold).sum())
        >>> held(above, 4, 8, 2.0**-10, 0.125), held(above, 4, 14, 2.0**-10, 0.125), held(above, 4, 14, 2.0**-10, 0.0)
        ((1.0, 0.0, 3.0), (2.0, 2.0, 0.0), (2.0, 0.0, 2.0))
    """
    pull, gap = lr * decay, 2.0**-bits
    curved = counts(max(pull, gap))
    return (curved, n - curved, 0.0) if pull > gap else (curved, 0.0, n - curved)


def measure(
    seeds: Iterable[int],
    *,
    bits: Sequence[int] = (8, 11, 14, 24, 53),
    context: int = 16,
    width: int = 32,
    layers: int = 1,
    batch_size: int = 16,
    limit: int = 500_000,
    lr: float = 1e-3,
    decay: float = 0.1,
    steps: int = 2000,
    windows: int = 32,
    probes: int = 4,
    depth: int = 120,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Train a transformer on bytes of text with and without decay, and count what holds it.

    Args:
        seeds: at least one; of first weights, minibatches and random bits.
        bits: significand bits p of the counts, 53 for float64.
        context: bytes seen at once.
        width: of the residual stream, a multiple of 2, the number of heads.
        layers: blocks.
        batch_size: windows in a minibatch.
        limit: size of the corpus in bytes.
        lr: of AdamW.
        decay: mu of AdamW, positive; the other arm has none.
        steps: of training.
        windows: of the corpus, at most 256, on which the curvature is taken; three times as many count 7 % more at 8 bits, and
            a fifth more at 11.
        probes: random vectors of the spectral density, at least 2.
        depth: of their Krylov spaces; eigenvalues below about the largest over depth^2 are blurred.
        progress: called with a few words and the share that is done.

    Returns:
        At the weights trained in bfloat16 with decay: `transformer_held` (transformer_bits, transformer_holder, seed), numbers
        of directions; `transformer_counts`, `transformer_errors` (transformer_power, seed), numbers with lr lambda above
        2^power, and their standard errors; `transformer_moved` (transformer_bits, seed), the share of the weights other than
        zero that decay alone moves when rounded to nearest. Over (transformer_arm, transformer_decay, seed): `transformer_rms`
        of the weights at the end, `transformer_loss`, in nats, on the text that was not trained on, and `transformer_lost`, the
        share of updates lost in the last step. Scalars `transformer_n`, `transformer_lr`, `transformer_mu`.

    Raises:
        ValueError: for no seeds, or numbers out of range.
        FileNotFoundError: if this Python came without its sources, which are the text.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or lr <= 0 or decay <= 0 or steps < 1 or not 1 <= windows <= 256:
        raise ValueError(
            "transformer: give at least one seed, a positive lr and decay, steps of at least 1 and 1 to 256 windows; got "
            f"{len(seeds)} seeds, lr={lr}, decay={decay}, steps={steps}, windows={windows}."
        )
    tell = progress or (lambda *_: None)
    problem = text(context, width, _HEADS, layers, batch_size, limit)
    evaluate = jax.jit(problem.evaluate)
    shape = (len(ARMS), 2, len(seeds))
    rms, loss, lost = np.empty(shape), np.empty(shape), np.empty(shape)
    ends: Any = None
    for i, mu in enumerate((0.0, decay)):
        done = 0
        for mode, formats in ((nearest_even, (FLOAT32, BFLOAT16)), (stochastic, (BFLOAT16,))):
            params, moments, gone = _trained(problem, seeds, formats, mode, lr, mu, steps)
            for arm in range(len(formats)):
                for s in range(len(seeds)):
                    one = jax.tree.map(lambda leaf, arm=arm, s=s: leaf[arm, s], params)
                    vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one)])
                    rms[done, i, s] = math.sqrt(float(np.mean(np.square(vector, dtype=np.float64))))
                    loss[done, i, s] = float(evaluate(one)["test_loss"])
                lost[done, i] = gone[arm]
                done += 1
            if mode is nearest_even:
                ends = jax.tree.map(lambda leaf: leaf[1], (params, moments))
            tell(f"transformer: training, decay {mu:g}", (2 * i + (mode is stochastic) + 1) / 5)
    found = [_looked_at(problem, ends, s, seed, windows, probes, depth, steps) for s, seed in enumerate(seeds)]
    n = int(np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(ends[0])]).size)
    counts, errors = np.moveaxis(np.array([counts_above(one, n, np.exp2(_POWERS) / lr) for one, _ in found]), 0, -1)
    shares = np.array([[_moved(weights, p, lr * decay) for _, weights in found] for p in bits])
    holders = np.array(
        [
            [held(lambda t, one=one: float(counts_above(one, n, [t / lr])[0][0]), n, p, lr, decay) for one, _ in found]
            for p in bits
        ]
    )
    tell("transformer: curvature", 1.0)
    by_arm = ("transformer_arm", "transformer_decay", "transformer_seed")
    arrays = {
        "held": Labelled(("transformer_bits", "transformer_holder", "transformer_seed"), np.moveaxis(holders, 2, 1)),
        "counts": Labelled(("transformer_power", "transformer_seed"), counts),
        "errors": Labelled(("transformer_power", "transformer_seed"), errors),
        "moved": Labelled(("transformer_bits", "transformer_seed"), shares),
        "rms": Labelled(by_arm, rms),
        "loss": Labelled(by_arm, loss),
        "lost": Labelled(by_arm, lost),
        "n": Labelled((), np.array(n)),
        "lr": Labelled((), np.array(lr)),
        "mu": Labelled((), np.array(decay)),
    }
    coords = {
        "transformer_seed": seeds,
        "transformer_bits": list(bits),
        "transformer_holder": list(HOLDERS),
        "transformer_power": list(_POWERS),
        "transformer_arm": list(ARMS),
        "transformer_decay": [0.0, decay],
    }
    return Measured(coords, {f"transformer_{name}": array for name, array in arrays.items()})


def _trained(problem: Any, seeds: Sequence[int], formats: Sequence[Any], mode: Any, lr: float, mu: float, steps: int) -> Any:
    """Weights and second moments, trees of (formats, seeds, ...), and the share of updates lost in the last step."""
    optimizer = optax.adamw(lr, eps=_EPS, weight_decay=mu)
    step = make_step(problem.loss, optimizer, modes=mode, every=steps, detail=False)

    def begin(key: Any, policy: Policy) -> Any:
        return start(problem.init(key), optimizer, policy, key=key)

    state, record = sweep(step, begin, problem.batch, [Policy(weights=fmt) for fmt in formats], seeds, steps=steps)
    lost = sum(np.asarray(tally.swamped + tally.underflowed)[..., -1] for tally in _tallies(record.tally))
    asked = lost + sum(np.asarray(tally.landed)[..., -1] for tally in _tallies(record.tally))
    moments = optax.tree.get(state.optimizer, "nu")
    return *jax.tree.map(np.asarray, (state.params, moments)), lost / np.maximum(asked, 1)


def _tallies(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "landed"))


def _looked_at(
    problem: Any, ends: Any, s: int, seed: int, windows: int, probes: int, depth: int, steps: int
) -> tuple[Density, np.ndarray]:
    """The spectrum at the end of a seed, and its weights as a vector."""
    params, moments = jax.tree.map(lambda leaf: np.asarray(leaf[s], np.float64), ends)
    settled = 1 - 0.999**steps  # what v has yet to grow by, as Adam corrects it
    scale = jax.tree.map(lambda v: np.sqrt(v / settled) + _EPS, moments)
    tokens = jax.tree.map(lambda part: part[np.linspace(0, len(part) - 1, windows).astype(int)], problem.train)
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return adam_curvature(params, scale, tokens, heads=_HEADS, probes=probes, depth=depth, seed=seed), weights


@in_float64
def _moved(weights: np.ndarray, bits: int, pull: float) -> float:
    """The share of the weights other than zero that move, to nearest, when pulled by this part of themselves."""
    (fmt,) = float_arms((bits,)).values()
    rounded = round_to(jnp.asarray(weights), fmt)
    there = round_to(rounded - pull * rounded, fmt)
    return float(jnp.sum(there != rounded) / jnp.sum(rounded != 0))


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What each explanation predicts of the weights of the transformer, beside what was found.

    Args:
        measured: what `measure` returned.

    Returns:
        Claims whose names begin with the side whose prediction it is.
    """
    arrays = {name.removeprefix("transformer_"): array.values for name, array in measured.arrays.items()}
    bits, n = list(measured.coords["transformer_bits"]), int(arrays["n"])
    where = f"n = {n:,}, lr = {float(arrays['lr']):g}, decay {float(arrays['mu']):g}"
    told: list[Claim] = []
    for p in (bits[0], bits[-1]):
        free = arrays["held"][bits.index(p), HOLDERS.index("format")] / n
        name = f"{p} bits: share of the directions that only the format holds ({where})"
        told.append(equal(f"geometry: {name}", free, 0.0, 0.01))
        if p == bits[0]:
            told.append(above(f"representation: {name}", free, 0.5))
        moved = arrays["moved"][bits.index(p)]
        told.append(equal(f"geometry: {p} bits: share of the weights that decay alone moves ({where})", moved, 1.0, 0.01))
    shrunk = np.log(arrays["rms"][:, 1] / arrays["rms"][:, 0])
    for arm in ARMS[1:]:
        found = shrunk[ARMS.index(arm)] / shrunk[0]
        name = f"{arm}: how much smaller decay makes the weights, of what it does in float32 ({where})"
        told.append(equal(f"geometry: {name}", found, 1.0, _RATIO))
        told.append(equal(f"representation: {name}", found, 0.0, _RATIO))
    return tuple(told)
