"""Rows 4 and 9: take stagnation away and keep the format; then take each away alone. Which part of a format costs what?

Stochastic rounding keeps every weight a p-bit number and loses no update on average; it is the lattice with noise, not the
lattice alone. Compensated (Kahan) weights lose none either, and carry a second number of p bits for it. Master weights (p-bit
copies of float64 weights) repair it too, but not within the format: they are measured beside these. What becomes of flatness
itself without lost updates is counted in `directions`.

The causal two by two asks which part of a format makes what one sees in it:

                       float64 weights                          p-bit weights
    updates land       neither                                  lattice: stochastic rounding
    updates stagnate   stagnation: those below half a gap       both: round to nearest
                       are set to zero, nothing is rounded

What is compared: the loss at the end; and the operational flat dimension, measured by pushing. From the minimum a displacement
as long as the weights, along eigenvector k, pulls back by u = -lr lambda_k |w| v_k (the quadratic law, so that only the
arithmetic differs between cells). Direction k counts as flat in a cell if the weights take up less than half of that, <w' - w,
u> / <u, u> < 1/2 (of stochastic rounding, in the mean over draws). In exact arithmetic that leaves the n - d r directions with
lambda = 0; a format adds soft ones: about the N_p - (n - d r) of `landscape.flatness`, at most three fewer, because a pull of
which the larger entries land is half taken up.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from precisionlab.experiments.common.claiming import above, below, equal
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.common.requests import some_seeds
from precisionlab.experiments.manifold.arms import train_arms, train_masked, visible
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import Setting, float_arms, residuals_of, setting
from precisionlab.landscape import jacobian, jacobian_spectrum, rank
from precisionlab.landscape.flatness import flat_dimension
from precisionlab.landscape.vectors import in_float64
from precisionlab.numerics.formats import FLOAT64, Format
from precisionlab.numerics.modes import stochastic
from precisionlab.numerics.rounding import round_to
from precisionlab.runs.results import Claim, Labelled

__all__ = ["ARMS", "CELLS", "REPAIRS", "causes", "measure", "repairs"]

CELLS = ("neither", "stagnation", "lattice", "both")
REPAIRS = ("lattice", "kahan", "master")
ARMS = (*CELLS, *REPAIRS[1:])
_MARGIN = 0.3
"""A factor of two between two losses still counts as the same (log10)."""


def measure(
    seeds: Iterable[int],
    *,
    net: Net = Net(),
    precisions: Sequence[int] = (4, 6, 8, 11),
    steps: int = 16384,
    draws: int = 256,
    progress: Callable[[str, float], Any] | None = None,
) -> Measured:
    """Train every cell in every format; count the flat directions of each.

    Args:
        seeds: at least one.
        net: what is trained.
        precisions: significand bits, with eight exponent bits.
        steps: of each descent, at most.
        draws: of stochastic rounding, for its mean.
        progress: called with a few words and the share that is done.

    Returns:
        Over (repair_arm, repair_format, seed): `repair_loss`. Over (repair_cell, repair_format, seed): `repair_flat`. Over
        (repair_format, seed): `repair_predicted`, N_p. `repair_size` is n, `repair_constraints` d r.

    Raises:
        ValueError: for no seeds, or what makes no fit or format.
    """
    seeds = some_seeds("repair", seeds)
    tell = progress or (lambda *_: None)
    given = setting(net, seeds)
    formats = float_arms(precisions)
    runs: dict[str, Callable[[], Any]] = {
        "neither": lambda: train_arms(given, {"float64": FLOAT64}, steps=steps),
        "stagnation": lambda: train_masked(given, formats, steps=steps),
        "lattice": lambda: train_arms(given, formats, rounding="stochastic", steps=steps),
        "both": lambda: train_arms(given, formats, steps=steps),
        "kahan": lambda: train_arms(given, formats, rounding="kahan", steps=steps),
        "master": lambda: train_arms(given, formats, rounding="master", steps=steps),
    }
    shape = (len(formats), len(seeds))
    losses = []
    for number, arm in enumerate(ARMS):
        tell(f"repair: {arm}", 0.1 + 0.7 * number / len(ARMS))
        losses.append(np.broadcast_to(runs[arm]().loss, shape))
    tell("repair: flat directions", 0.9)
    flat, predicted = _flat_directions(given, list(formats.values()), draws)
    arm_format_seed = ("repair_arm", "repair_format", "seed")
    arrays = {
        "repair_loss": Labelled(arm_format_seed, np.stack(losses)),
        "repair_flat": Labelled(("repair_cell", *arm_format_seed[1:]), flat),
        "repair_predicted": Labelled(arm_format_seed[1:], predicted),
        "repair_size": Labelled((), np.array(given.n)),
        "repair_constraints": Labelled((), np.array(given.constraints)),
    }
    tell("repair", 1.0)
    coords = {"seed": seeds, "repair_arm": ARMS, "repair_cell": CELLS, "repair_format": list(precisions)}
    return Measured(coords, arrays)


@in_float64
def _flat_directions(given: Setting, formats: Sequence[Format], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(cells, formats, seeds) directions that a push does not show; (formats, seeds) N_p."""
    seeds = len(given.starts)
    flat, predicted = np.empty((len(CELLS), len(formats), seeds)), np.empty((len(formats), seeds))
    for seed in range(seeds):
        residuals, theta = residuals_of(given.residuals, seed), given.minima[seed]
        spectrum = jacobian_spectrum(residuals, theta)
        steep = rank(spectrum)
        values = np.zeros(given.n)
        values[:steep] = spectrum.values[:steep] ** 2
        vectors = np.linalg.svd(jacobian(residuals, theta))[2]
        pulls = -given.lr[seed] * values[:steep, None] * np.linalg.norm(theta) * vectors[:steep]
        for i, fmt in enumerate(formats):
            taken = _taken(jnp.asarray(theta), jnp.asarray(pulls), jax.random.key(seed), fmt, draws)
            flat[:, i, seed] = given.n - steep + (np.asarray(taken) < 0.5).sum(axis=1)
            predicted[i, seed] = flat_dimension(values, fmt.precision, given.lr[seed])
    return flat, predicted


@partial(jax.jit, static_argnames="draws")
def _taken(theta: Any, pulls: Any, key: Any, fmt: Format, draws: int) -> Any:
    """The share of each pull that the weights take up in each cell, (cells, pulls)."""
    stored = round_to(theta, fmt)

    def share(moved: Any) -> Any:
        return jnp.sum(moved * pulls, axis=-1) / jnp.sum(jnp.square(pulls), axis=-1)

    def drawn(one: Any) -> Any:
        return share(round_to(stored[None, :] + pulls, fmt, stochastic, key=one) - stored[None, :])

    return jnp.stack(
        [
            share(pulls),
            share(jax.vmap(lambda pull: visible(pull, theta, fmt))(pulls)),
            jnp.mean(jax.vmap(drawn)(jax.random.split(key, draws)), axis=0),
            share(round_to(stored[None, :] + pulls, fmt) - stored[None, :]),
        ]
    )


def causes(measured: Measured) -> tuple[Claim, ...]:
    """Which cell alone gives what the format gives: its loss, and the directions that it adds to the flat ones.

    Args:
        measured: what `measure` returned.

    Returns:
        For stagnation and for the lattice: the loss beside that of both (log10), in the mean over formats, which is the same
        within a factor of two; and the directions added to n - d r, over all formats, less half of those that both add, which
        is above 0.
    """
    loss, flat = measured.arrays["repair_loss"].values, measured.arrays["repair_flat"].values
    added = (flat - flat[CELLS.index("neither")]).sum(axis=1)
    both, claims = CELLS.index("both"), []
    for cell in ("stagnation", "lattice"):
        with np.errstate(divide="ignore"):
            apart = np.log10(loss[ARMS.index(cell)] / loss[both]).mean(axis=0)
        more = added[CELLS.index(cell)] - 0.5 * added[both]
        beyond = f"{cell} alone adds over half of the flat directions that the format adds (how many beyond half)"
        claims += [
            equal(f"{cell} alone gives the loss of the format (log10 of the ratio)", apart, 0.0, _MARGIN),
            above(beyond, more, 0.0),
        ]
    return tuple(claims)


def repairs(measured: Measured) -> tuple[Claim, ...]:
    """By how much each repair alone lowers the loss at which the format stops.

    Args:
        measured: what `measure` returned.

    Returns:
        For each of `REPAIRS` the loss beside that of nearest rounding (log10), in the mean over formats, which is below 0.
    """
    loss = measured.arrays["repair_loss"].values
    names = {"lattice": "stochastic rounding", "kahan": "Kahan's compensation", "master": "float64 masters"}
    with np.errstate(divide="ignore"):
        beside = {arm: np.log10(loss[ARMS.index(arm)] / loss[ARMS.index("both")]).mean(axis=0) for arm in REPAIRS}
    return tuple(
        below(f"{names[arm]}: loss beside that of nearest rounding (log10 of the ratio)", ratios, 0.0)
        for arm, ratios in beside.items()
    )
