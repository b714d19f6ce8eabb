"""Life after zero loss: what a net does at its minimum, under minibatches, label noise and weight decay, by format.

Where every residual is zero, so is every gradient: minibatch descent does not move. What moves a net along its minima is noise
in its labels, towards a smaller trace of the Hessian and by order lr^2 a step, and weight decay, towards smaller weights and by
lr mu of them. Both steps are small. Two hypotheses, three predictions of how much of the drift is left in a format of p bits:

    geometry                             all of it, at every p: minima and drift are those of real arithmetic
    representation, of the drift alone   nothing, where the drift of a step is below half a gap: with decay below
                                         p = -log2(lr mu), with label noise far higher up (order lr^2)
    representation, of what is stored    what has to pass half a gap is the whole step, noise included: noise dithers, and both
                                         drifts live on to where the noise itself no longer passes (`drift_law`)

Five worlds: `still`, without noise or decay; `gaussian` and `two_valued` noise in the labels; `decay`; and `gaussian_decay`,
both. Weights start at exact minima, cast to the format. Stochastic rounding loses nothing on average, but is noise itself: it
moves a net along its minima where nothing else does, as the square root of time.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.experiments.common.claiming import below, equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.requests import some_bits, some_seeds
from precisionlab.experiments.manifold.drift_law import laws
from precisionlab.experiments.manifold.hyperbola import sides
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.noisy import World, descend_noisily
from precisionlab.experiments.manifold.settings import Setting, float_arms, residuals_of, setting
from precisionlab.landscape import project_null, split_spaces
from precisionlab.landscape.minima import newton
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.modes import nearest_even, stochastic
from precisionlab.runs.results import Claim, Labelled

__all__ = ["BITS", "WORLDS", "claims", "measure"]

BITS = (3, 4, 5, 6, 8, 9, 10, 11, 14, 53)
"""Of the stored weights; 53 is float64."""

WORLDS = ("still", "gaussian", "two_valued", "decay", "gaussian_decay")
_MODES = {"nearest_even": nearest_even, "stochastic": stochastic}
_PREDICTED = {"gaussian": "noise", "decay": "decay_alone", "gaussian_decay": "decay"}
_LOOKS = 4
_SLOWER = 8
"""The step size is this many times smaller than what descent on all points allows: one point has d times its gradient."""
_LOST, _LEFT = 0.25, 0.75
"""Below the first a law says that the drift is lost, from the second on that it is left."""


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    bits: Sequence[int] = BITS,
    steps: int = 2048,
    size: float = 0.5,
    decay: float = 2.0**-10,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Bring nets to their minima in float64, cast them, and go on with minibatches of one point, in every world and format.

    Args:
        seeds: at least one: of data, weights and noise.
        net: what is trained.
        bits: significand bits of the stored weights, ascending, the last of them 53, with eight exponent bits.
        steps: a multiple of 4.
        size: standard deviation of the labels' noise, labels being about 1.
        decay: lr mu, the share of itself that a weight loses in a step.
        progress: called with a few words and the share that is done.

    Returns:
        Over (drift_time, drift_mode, drift_world, drift_bits, seed), times in steps: `drift_along` and `drift_off`, how far the
        weights are from where they were first stored, in the null space of J at the minimum and out of it; `drift_trace`, the
        change of tr H at the minimum beneath; `drift_kept`, the displacement along the manifold projected on that of float64
        with the same noise, beside it (NaN in the still world). Over (drift_world, drift_bits, seed): `drift_alone` and
        `drift_stored`, the same shares by the two laws of representation, NaN where there is none. Over seed: `drift_norm` of
        the weights, `drift_minimum_trace`, tr H at the minimum, and `drift_fall`, by how much it should fall in a step of the
        Gaussian world. `drift_decay` is lr mu.

    Raises:
        ValueError: for no seeds, bits or steps out of range, or what makes no fit.
    """
    seeds, bits = some_seeds("drift", seeds), some_bits("drift", bits, real=True)
    tell = progress or (lambda *_: None)
    if steps < _LOOKS or steps % _LOOKS:
        raise ValueError(f"drift: steps must be a positive multiple of {_LOOKS}; got {steps}.")
    if not 0 < size < np.inf or not 0 < decay < 1:
        raise ValueError(f"drift: size must be a positive number, decay above 0 and below 1; got {size}, {decay}.")
    given, formats = setting(net, seeds), list(float_arms(bits).values())
    lr = given.lr / _SLOWER
    tell("drift: laws", 0.2)
    law = laws(given, lr, size, decay, formats)
    worlds = [World(), World(gaussian=size), World(two_valued=size), World(decay=decay), World(gaussian=size, decay=decay)]
    found = []
    for number, (name, mode) in enumerate(_MODES.items()):
        tell(f"drift: {name}", 0.3 + 0.3 * number)
        path = descend_noisily(given.residuals, given.minima, lr, worlds, seeds, formats, mode, steps=steps, looks=_LOOKS)
        found.append(_displaced(given, np.swapaxes(path.theta, 1, 2)))
    tell("drift", 1.0)
    along, off, trace = (np.stack([arm[k] for arm in found], axis=1) for k in range(3))
    real = along[:, :1, :, -1:]  # of float64, rounded to nearest, which is to itself
    squares = np.sum(real**2, axis=-1)
    moved = np.broadcast_to(np.reshape([world != "still" for world in WORLDS], (-1, 1, 1)), squares.shape)
    kept = np.where(moved, np.sum(along * real, axis=-1) / np.where(moved, squares, 1.0), np.nan)
    every = ("drift_time", "drift_mode", "drift_world", "drift_bits", "seed")
    predicted = {
        kind: np.stack([getattr(law, names[world]) if world in names else np.full(law.noise.shape, np.nan) for world in WORLDS])
        for kind, names in (("alone", _alone()), ("stored", _PREDICTED))
    }
    return Measured(
        {
            "seed": seeds,
            "drift_time": [steps // _LOOKS * (look + 1) for look in range(_LOOKS)],
            "drift_mode": list(_MODES),
            "drift_world": WORLDS,
            "drift_bits": list(bits),
        },
        {
            "drift_along": Labelled(every, np.linalg.norm(along, axis=-1)),
            "drift_off": Labelled(every, off),
            "drift_trace": Labelled(every, trace),
            "drift_kept": Labelled(every, kept),
            "drift_alone": Labelled(every[2:], predicted["alone"]),
            "drift_stored": Labelled(every[2:], predicted["stored"]),
            "drift_norm": Labelled(("seed",), np.linalg.norm(given.minima, axis=-1)),
            "drift_minimum_trace": Labelled(("seed",), _beneath(given, given.minima[None])[0]),
            "drift_fall": Labelled(("seed",), law.fall),
            "drift_decay": Labelled((), np.array(decay)),
        },
    )


def _alone() -> dict[str, str]:
    return {"gaussian": "noise_alone", "decay": "decay_alone", "gaussian_decay": "decay_alone"}


def _displaced(given: Setting, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (looks + 1, ..., seeds, n): the displacements along (looks, ..., seeds, n), their size off, the changes of tr H."""
    steps = theta[1:] - theta[:1]
    along = np.empty_like(steps)
    for seed, minimum in enumerate(given.minima):
        split = split_spaces(residuals_of(given.residuals, seed), minimum)
        along[..., seed, :] = project_null(split, steps[..., seed, :])
    traces = _beneath(given, theta)
    return along, np.linalg.norm(steps - along, axis=-1), traces[1:] - traces[:1]


@in_float64
def _beneath(given: Setting, theta: np.ndarray) -> np.ndarray:
    """(..., seeds) tr H at the zeros of the loss that Newton's steps reach from (..., seeds, n)."""
    rows = np.moveaxis(theta, -2, 0).reshape(theta.shape[-2], -1, theta.shape[-1])
    found = np.asarray(_traces(given.residuals, jnp.asarray(rows)))
    return np.moveaxis(found.reshape(theta.shape[-2], *theta.shape[:-2]), 0, -1)


@jax.jit
def _traces(residuals: Any, rows: Any) -> Any:
    def one(data: Any, point: Any) -> Any:
        return jnp.sum(jnp.square(jax.jacrev(data)(newton(data, point)[0])))

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(residuals, rows)


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What each hypothesis says of what is left of the drift, where they differ, and what rounding adds.

    Args:
        measured: what `measure` returned.

    Returns:
        Of float64: that nothing moves without noise, and how fast the trace falls with it. Of every world with a drift, under
        nearest rounding: the share left where the drift alone is lost but the step with its noise is not, where that is lost
        too, by three predictions; with decay the bits from which on half is left. Under stochastic rounding: the share left at
        all bits from there on, and the walk of the still world.
    """
    arrays = {name.removeprefix("drift_"): array.values for name, array in measured.arrays.items()}
    bits = np.asarray(measured.coords["drift_bits"], np.float64)
    kept, along, norm = arrays["kept"][-1], arrays["along"], arrays["norm"]
    narrow = bits < bits[-1]
    still = along[:, :, WORLDS.index("still")]
    fall = -arrays["trace"][0, 0, WORLDS.index("gaussian"), -1] / (arrays["fall"] * measured.coords["drift_time"][0])
    made = [
        below("drift, float64, no noise: way along the manifold, of the weights' norm", still[-1, 0, -1] / norm, 1e-9),
        equal("drift, float64, Gaussian noise: fall of tr H, beside lr^2 s^2 c |P grad tr H|^2 / 4", fall, 1.0, 0.25),
    ]
    for world in _PREDICTED:
        k = WORLDS.index(world)
        made += _by_law(world, kept[0, k], arrays["alone"][k], arrays["stored"][k], narrow)
    made += _of_decay(bits, kept[0, WORLDS.index("decay")], float(arrays["decay"]))
    lost = (np.median(arrays["stored"][WORLDS.index("gaussian")], axis=1) < _LEFT) & narrow
    if lost.any():
        normal, signs = (arrays["trace"][-1, 0, WORLDS.index(world)] for world in ("gaussian", "two_valued"))
        # Of some seeds the trace hardly falls: each is set beside the mean.
        less = (signs / signs[-1].mean() - normal / normal[-1].mean())[lost].mean(axis=0)
        name = f"drift, nearest, {_spelled(bits[lost])} bits: fall of tr H beside float64's, two-valued noise less Gaussian"
        made.append(below(name, less, 0.0))
    for world in _PREDICTED:
        k = WORLDS.index(world)
        passes = np.median(arrays["stored"][k if world == "gaussian" else WORLDS.index("gaussian_decay")], axis=1) > _LOST
        if (passes & narrow).any():
            left = kept[1, k][passes & narrow].mean(axis=0)
            made.append(
                equal(f"drift, stochastic, {world}, {_spelled(bits[passes & narrow])} bits: drift kept", left, 1.0, _LOST)
            )
    if narrow.any():
        made += _of_walk(still[:, :, narrow], norm, bits[narrow])
    return tuple(made)


def _spelled(bits: np.ndarray) -> str:
    return f"{int(bits.min())} to {int(bits.max())}" if len(bits) > 1 else str(int(bits[0]))


def _by_law(world: str, kept: np.ndarray, alone: np.ndarray, stored: np.ndarray, narrow: np.ndarray) -> list[Claim]:
    """The three predictions for (bits, seeds) shares, where the laws of representation say different or the same things."""
    by_alone, by_stored = np.median(alone, axis=1), np.median(stored, axis=1)
    made, bits = [], np.arange(len(narrow))
    for chosen, where in (
        (narrow & (by_alone < _LOST) & (by_stored >= _LEFT), "where the drift alone is lost and the step is not"),
        (narrow & (by_alone < _LOST) & (by_stored < _LOST), "where the step is lost"),
    ):
        if chosen.any():
            left = kept[bits[chosen]].mean(axis=0)
            said = {"alone": float(by_alone[chosen].mean()), "step": float(by_stored[chosen].mean())}
            made += sides(f"drift, nearest, {world}, {where}", left, **said)
    return made


def _of_decay(bits: np.ndarray, kept: np.ndarray, decay: float) -> list[Claim]:
    """Decay without noise: from how many bits on half of it is left."""
    free = np.logical_and.accumulate(kept[::-1] > 0.5, axis=0)[::-1]
    first = np.where(free.any(axis=0), bits[np.argmax(free, axis=0)], np.nan)
    name = "drift, nearest, decay: bits from which on half is kept, by representation -log2(lr mu)"
    return [equal(name, first, -float(np.log2(decay)), 1.0)]


def _of_walk(still: np.ndarray, norm: np.ndarray, bits: np.ndarray) -> list[Claim]:
    """Without noise and decay (looks, modes, bits, seeds): nearest rounding comes to rest, stochastic rounding walks."""
    later = np.abs(still[-1] - still[0]) / (norm * 2.0 ** -bits[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.log2(still[-1, 1] / still[0, 1]).mean(axis=0) / np.log2(len(still))
    return [
        below(
            "drift, nearest, still: way along after a quarter of the steps, in 2^-p of the norm", later[0].mean(axis=0), 0.25
        ),
        below("drift, stochastic, still: the same, by geometry", later[1].mean(axis=0), 0.25),
        equal("drift, stochastic, still: power of time in the way along, by representation (a walk)", power, 0.5, 0.25),
    ]
