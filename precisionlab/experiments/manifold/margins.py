"""The contrast: with cross-entropy, flatness does come from representation.

On separable data cross-entropy has no minimum in real arithmetic: no flat set at any finite margin, gradients that never
vanish, norms that grow for ever. Computed in a format it is exactly zero wherever every margin is beyond a threshold, which
`precisionlab.stagnation.margins` derives: an open set, flat in all n directions, that recedes by ln 2 for each bit, and another
set for each way to write the same loss. So here the hypothesis about representation is right, and a procedure that could not
say so would be worth nothing where it says the opposite.

Two parts. The thresholds of every form are searched for (`vanishing`). And a linear classifier of n = 6 weights is trained on
separable points, weights and every operation rounded, by full-batch gradient descent whose learning rate grows as fast as
gradients fall, so that margins grow evenly: each step's computed losses and gradients are compared with what the law says of
each point's margin. Then the last weights are looked at, and trained on, in float64.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from precisionlab.arithmetic import simulate
from precisionlab.arithmetic.policy import Policy
from precisionlab.experiments.common.claiming import estimate, mean_where
from precisionlab.experiments.common.measured import Finding, Measured
from precisionlab.experiments.common.requests import some_bits, some_seeds
from precisionlab.experiments.manifold.vanishing import LOSSES, PARTS, format_of, margin_of, parts_of, thresholds
from precisionlab.numerics.formats import Format, stack_formats
from precisionlab.runs.inference import slopes, tost
from precisionlab.runs.results import Claim, Labelled
from precisionlab.runs.seeds import sign_test_above
from precisionlab.runs.summary import interval
from precisionlab.stagnation.margins import FORMS, vanishing_margins
from precisionlab.training.loops import sweep_chunks
from precisionlab.training.steps import make_step, start

__all__ = ["SLOPE_MARGIN", "judge", "measure"]

ROW = 10
"""After the nine measurements of the square loss: the contrast."""
SLOPE_MARGIN = 0.05
"""How far the slope may be from ln 2 a bit and still count as equal."""

_BY_SEED = ("before", "after", "contradictions", "directions", "still", "true_loss", "true_gradient", "growth")
_RADIUS = 0.1  # of a step from the end, in norms of the weights: far inside of the flat set, far beyond a gap
_POINTS, _INPUTS = 4, 3
_FLIPPED = np.arange(_POINTS) >= _POINTS // 2
_WEIGHTS = 2 * _INPUTS
_LONGEST = 16.0
_FASTER = np.log(2.0) / 4  # how much faster the learning rate grows a step, and with it the margins


def _points(key: Any) -> Any:
    """Separable data: (4, 3) inputs; the second half has the second label, and lies on the other side of a random plane."""
    normal = jax.random.normal(jax.random.fold_in(key, 1), (_INPUTS,), jnp.float64)
    normal = normal / jnp.linalg.norm(normal)
    x = jax.random.normal(jax.random.fold_in(key, 2), (_POINTS, _INPUTS), jnp.float64)
    away = jax.random.uniform(jax.random.fold_in(key, 3), (_POINTS,), jnp.float64, 0.7, 1.3)
    return x + jnp.outer(away * jnp.where(jnp.asarray(_FLIPPED), -1.0, 1.0) - x @ normal, normal)


def _logits(params: Any) -> Any:
    """(points, 2) logits, the label's first."""
    # Data differ between seeds, and a step is given one batch for all: they travel with the weights, and are left alone.
    out = jax.lax.stop_gradient(params["x"]) @ params["w"]
    return jnp.where(jnp.asarray(_FLIPPED)[:, None], out[:, ::-1], out)


def _mean_loss(name: str) -> Callable[..., Any]:
    return lambda params, _=None: jnp.mean(jax.vmap(LOSSES[name])(_logits(params)))


def measure(
    seeds: Iterable[int],
    *,
    bits: Sequence[int] = (4, 6, 8, 11, 16, 24, 53),
    forms: Sequence[str] = tuple(LOSSES),
    steps: int = 760,
    further: int = 60,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Search the thresholds of every form, train in every format, and go on in float64.

    Args:
        seeds: at least one; they draw data and first weights.
        bits: significand bits, at least two, ascending, from 3 to 53.
        forms: names in `LOSSES`, log_softmax, which is trained, among them.
        steps: of training; margins grow by ln 2 / 4 in each.
        further: steps in float64 afterwards.
        progress: called with a few words and the share that is done.

    Returns:
        Over (margins_bits, margins_form, margins_part) the thresholds `margins_found` and `margins_predicted`. Over (seed,
        margins_bits): `margins_before` and `margins_after`, the last margin of a point with a computed loss and the first
        without; `margins_contradictions`, how many losses and gradients of points and steps are zero where the law says
        otherwise, or the reverse; `margins_directions`, in how many of 6 orthogonal directions the computed loss stays exactly
        zero; `margins_still`, whether the last computed gradient is exactly zero; `margins_true_loss` and
        `margins_true_gradient` (norm) there in float64, and `margins_growth`, the factor by which the norm of the weights
        grows in `further` steps from there.

    Raises:
        ValueError: if there is no seed, or a number is out of range.
    """
    seeds, bits = some_seeds("margins", seeds), some_bits("margins", bits)
    if "log_softmax" not in forms or not set(forms) <= set(LOSSES):
        raise ValueError(f"margins: forms are from {', '.join(LOSSES)}, the first among them; got {list(forms)}.")
    if steps < 1 or further < 1:
        raise ValueError(f"margins: steps and further must be at least 1; got {steps} and {further}.")
    tell = progress or (lambda *_: None)
    tell("margins: thresholds", 0.0)
    found = thresholds(bits, forms)
    predicted = np.array([[vanishing_margins(format_of(p), FORMS[name]) for name in forms] for p in bits])
    tell("margins: training", 0.3)
    trained = _trained(seeds, bits, steps, further, predicted[:, list(forms).index("log_softmax")], tell)
    coords = {"seed": seeds, "margins_bits": list(bits), "margins_form": list(forms), "margins_part": list(PARTS)}
    over = ("margins_bits", "margins_form", "margins_part")
    arrays = {"margins_found": Labelled(over, found), "margins_predicted": Labelled(over, predicted)}
    arrays |= {f"margins_{name}": Labelled(("seed", "margins_bits"), values) for name, values in trained.items()}
    return Measured(coords, arrays)


def _trained(
    seeds: list[int], bits: Sequence[int], steps: int, further: int, law: np.ndarray, tell: Callable[[str, float], Any]
) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        growing = optax.sgd(lambda count: jnp.exp(_FASTER * jnp.asarray(count, jnp.float64)))
        optimizer = optax.chain(growing, optax.clip(_LONGEST))  # what is stuck for long would leap out of all bounds
        step = make_step(_mean_loss("log_softmax"), optimizer, detail=False)

        def begin(key: Any, policy: Policy) -> Any:
            first = 0.1 * jax.random.normal(key, (_INPUTS, 2), jnp.float64)
            return start({"w": first, "x": _points(key)}, optimizer, policy, key=key)

        formats = [format_of(p) for p in bits]
        policies = [Policy(weights=fmt, compute=fmt) for fmt in formats]
        walk = []
        for state, _ in sweep_chunks(step, begin, lambda _: None, policies, seeds, steps=steps, chunk=1):
            walk.append(jax.tree.map(np.asarray, state.params))
            if len(walk) % 50 == 0:
                tell("margins: training", 0.3 + 0.6 * len(walk) / steps)
        x, last = walk[-1]["x"], walk[-1]["w"]
        weights = np.stack([params["w"] for params in walk], axis=2)  # bits, seeds, steps, 3, 2
        stacked = stack_formats(formats)
        margins, parts, still, kept, truth, slope, growth = (
            np.asarray(part) for part in jax.jit(_seen, static_argnums=4)(stacked, weights, x, last, further)
        )
    law = law[:, None, None, None, :]
    zero = parts == 0
    wrong = zero != (margins[..., None] >= law)
    lossless = zero[..., 0]
    return {
        "before": np.where(lossless, -np.inf, margins).max((2, 3)).T,
        "after": np.where(lossless, margins, np.inf).min((2, 3)).T,
        "contradictions": wrong.sum((2, 3, 4)).T,
        "directions": kept.T,
        "still": still.T,
        "true_loss": truth.T,
        "true_gradient": slope.T,
        "growth": growth.T,
    }


def _seen(formats: Any, weights: Any, x: Any, last: Any, further: int) -> Any:
    """What is asked of every arm: of its steps, of its end, and of what float64 makes of that."""
    softmax, exactly = _mean_loss("log_softmax"), _mean_loss("softplus")
    later = optax.chain(optax.normalize_by_update_norm(eps=0.0), optax.scale(-1.0))  # steps of length 1 downhill
    step = make_step(exactly, later, detail=False)

    def at_step(fmt: Format, w: Any, data: Any) -> Any:
        def look(w: Any, data: Any) -> Any:
            logits = _logits({"w": w, "x": data})
            return jax.vmap(margin_of)(logits), jax.vmap(lambda row: parts_of(LOSSES["log_softmax"], row))(logits)

        return simulate(look, fmt, carrier="float64")(w, data)

    def at_end(fmt: Format, w: Any, data: Any, key: Any) -> Any:
        rounded = jax.vmap(simulate(jax.value_and_grad(softmax), fmt, carrier="float64"), ({"w": 0, "x": None},))
        turned = jnp.linalg.qr(jax.random.normal(key, (_WEIGHTS, _WEIGHTS), jnp.float64))[0]
        moves = (_RADIUS * jnp.linalg.norm(w) * turned.T).reshape(_WEIGHTS, _INPUTS, 2)
        values, gradients = rounded({"w": jnp.concatenate([w[None], w[None] + moves, w[None] - moves]), "x": data})
        flat = (values[1:] == 0).reshape(2, _WEIGHTS).all(0)
        params = {"w": w, "x": data}
        value, slope = jax.value_and_grad(exactly)(params)
        after, _ = jax.lax.scan(lambda now, _: (step(now, None)[0], None), start(params, later), None, length=further)
        growth = jnp.linalg.norm(after.params["w"]) / jnp.linalg.norm(w)
        return (gradients["w"][0] == 0).all(), flat.sum(), value, jnp.linalg.norm(slope["w"]), growth

    margins, parts = jax.vmap(jax.vmap(jax.vmap(at_step, (None, 0, None)), (None, 0, 0)))(formats, weights, x)
    keys = jax.random.split(jax.random.key(0), x.shape[1])
    return margins, parts, *jax.vmap(jax.vmap(at_end, (None, 0, 0, 0)), (0, 0, 0, None))(formats, last, x, keys)


def judge(measured: Measured) -> tuple[Finding, ...]:
    """What the arrays say: the flat set is there, open, recedes by ln 2 a bit as representation predicts, and is an artefact.

    Args:
        measured: from `measure`.

    Returns:
        Findings of the loss "cross_entropy". Geometry predicts that no set of finite weights is flat. What is said of the end
        is said of the arms that came to rest there, whose last computed gradient is exactly zero; with less than half of them
        nothing holds.
    """
    bits = np.asarray(measured.coords["margins_bits"], np.float64)
    values = {name: measured.arrays[f"margins_{name}"].values for name in _BY_SEED}
    found = slopes(bits, values["after"])
    test = tost(found, np.log(2.0), SLOPE_MARGIN)
    recedes = Claim(
        "recession of the flat set (margin per bit)",
        f"{np.log(2.0):.3f} +- {SLOPE_MARGIN}",
        test.estimate,
        *interval(found),
        test.equal,
    )
    away = tost(found, 0.0, SLOPE_MARGIN)
    nowhere = Claim(
        "recession of the flat set (margin per bit)", f"0 +- {SLOPE_MARGIN}", away.estimate, *interval(found), away.equal
    )
    # An arm whose learning rate grew while it was stuck may leap to where two logits round to one, and never rest.
    still = values["still"].astype(bool)
    enough = 2 * still.sum() >= still.size
    directions, resting = mean_where(values["directions"], still, 1), values["directions"][still]
    dimension = f"dimension of the exactly flat set, in {still.sum()} of {still.size} arms at rest"
    around = estimate(directions)
    wrong = values["contradictions"].sum(1)
    law = Claim("losses and gradients that contradict the law", "0", *estimate(wrong), bool((wrong == 0).all()))
    sloping = (values["true_gradient"] > 0) & (values["true_loss"] > 0)
    true = Claim(
        "share of arms at rest whose true loss and gradient are positive",
        "1",
        *estimate(mean_where(sloping, still, 1)),
        bool(enough and sloping[still].all()),
    )
    least = np.where(still, values["growth"], np.inf).min(1)
    grows = Claim("growth of the norm in float64 from there (factor)", "> 1", *estimate(least), _above(least, 1.0))
    return (
        Finding(ROW, "cross_entropy", nowhere, recedes, sign_test_above(found, 0.0)),
        Finding(
            ROW,
            "cross_entropy",
            Claim(dimension, "0", *around, bool(enough and (resting == 0).all())),
            Claim(dimension, f"n = {_WEIGHTS}", *around, bool(enough and (resting == _WEIGHTS).all())),
            sign_test_above(directions, 0.0),
        ),
        Finding(ROW, "cross_entropy", true, None, np.nan),
        Finding(ROW, "cross_entropy", law, None, np.nan),
        Finding(ROW, "cross_entropy", grows, None, np.nan),
    )


def _above(samples: np.ndarray, bound: float) -> bool | None:
    if (samples > bound).all():
        return True
    return False if (samples <= bound).all() else None
