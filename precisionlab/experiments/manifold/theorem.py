"""The theorem's own numbers, and the nets that must fail it.

At a zero of the square loss of a wide smooth net on d generic points with r outputs the Hessian is J^T J, of rank d r: n - d
r of its n parameters' directions are flat, and in float64 orders of magnitude lie between the last steep eigenvalue and what
rounding makes of the first flat one. Three controls each break a condition:

    linear                  a deep linear net cannot fit generic labels on more points than inputs: no zero
    under-parameterized     n < d r: no zero
    relu                    smooth only between kinks; the rank is d r wherever a zero is reached, but nothing is claimed of it

Rank and nullity are whole numbers, so the claim is that they are right in every seed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax.tree_util import Partial

from precisionlab.experiments.common.claiming import agreement
from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.settings import half_square, minima_of, residuals_of
from precisionlab.landscape import gap, hessian_spectrum, rank
from precisionlab.runs.results import Claim, Labelled

__all__ = ["CONTROLS", "GAP", "SMOOTH", "claims", "measure"]

GAP = 1e8
"""The least ratio of eigenvalues across rank d r that counts as a gap; their median over seeds is 1e10 or more."""


SMOOTH: dict[str, Net] = {
    "tanh": Net(4, inputs=2),
    "tanh, 2 outputs": Net(3, outputs=2),
    "tanh, 2 layers": Net(5, inputs=2, layers=2),
    "softplus": Net(5, inputs=2, hidden=10, activation="softplus"),
    "softplus, 3 outputs": Net(3, outputs=3, inputs=4, activation="softplus"),
    "gelu": Net(6, activation="gelu"),
    "gelu, digits": Net(6, outputs=2, inputs=4, activation="gelu", data="digits"),
    "tanh, digits": Net(8, inputs=6, hidden=12, data="digits"),
}
"""Nets that meet the conditions, by name."""

CONTROLS: dict[str, Net] = {
    "linear": Net(8, inputs=2, layers=2, activation="linear"),
    "under-parameterized": Net(24, inputs=2, hidden=3),
    "relu": Net(5, inputs=2, hidden=12, activation="relu"),
}
"""Nets that do not."""


def measure(
    seeds: Iterable[int], *, nets: Sequence[str] | None = None, progress: Callable[[str, float], Any] | None = None
) -> Measured:
    """Look for a zero of the loss of every net, and at the Jacobian there.

    Args:
        seeds: at least one; they draw data and first weights.
        nets: names in `SMOOTH` and `CONTROLS`; all by default.
        progress: called with a few words and the share that is done.

    Returns:
        Over (theorem_net, seed): `theorem_reached`, `theorem_rank` of the Hessian above its noise floor, `theorem_gap` at d r
        (NaN where d r is not less than n). Over (theorem_net): `theorem_size`, n, and `theorem_constraints`, d r. Over
        (theorem_net, seed, theorem_index): `theorem_values`, the n eigenvalues, and NaN for the rest.

    Raises:
        ValueError: if there is no seed, or an unknown net.
    """
    seeds = [int(seed) for seed in seeds]
    known = {**SMOOTH, **CONTROLS}
    chosen = list(known) if nets is None else list(nets)
    if not seeds or not chosen or not set(chosen) <= set(known):
        raise ValueError(f"theorem: give at least one seed, and nets from {', '.join(known)}; got {seeds} and {chosen}.")
    reached, ranks = np.zeros((len(chosen), len(seeds)), bool), np.zeros((len(chosen), len(seeds)), np.int64)
    gaps, sizes, constraints = np.full(ranks.shape, np.nan), np.zeros(len(chosen), np.int64), np.zeros(len(chosen), np.int64)
    spectra = []
    for index, name in enumerate(chosen):
        net = known[name]
        residuals, found = minima_of(net, seeds)
        sizes[index], constraints[index], reached[index] = found.theta.shape[1], net.points * net.outputs, found.reached
        losses = [Partial(half_square, residuals_of(residuals, s)) for s in range(len(seeds))]
        rows = [hessian_spectrum(loss, point) for loss, point in zip(losses, found.theta, strict=True)]
        ranks[index] = [rank(row) for row in rows]
        if constraints[index] < sizes[index]:
            gaps[index] = [gap(row, constraints[index]) for row in rows]
        spectra.append(np.stack([row.values for row in rows]))
        if progress is not None:
            progress(f"theorem: {name}", (index + 1) / len(chosen))
    values = np.full((*ranks.shape, max(part.shape[1] for part in spectra)), np.nan)
    for index, part in enumerate(spectra):
        values[index, :, : part.shape[1]] = part
    axes = ("theorem_net", "seed")
    coords = {"theorem_net": chosen, "seed": seeds, "theorem_index": list(range(values.shape[2]))}
    arrays = {
        "theorem_reached": Labelled(axes, reached),
        "theorem_rank": Labelled(axes, ranks),
        "theorem_gap": Labelled(axes, gaps),
        "theorem_size": Labelled(axes[:1], sizes),
        "theorem_constraints": Labelled(axes[:1], constraints),
        "theorem_values": Labelled((*axes, "theorem_index"), values),
    }
    return Measured(coords, arrays)


def claims(measured: Measured) -> tuple[Claim, ...]:
    """Rank and nullity in every seed where the theorem holds; no zero where it cannot.

    Args:
        measured: from `measure`.
    """
    of = {name.removeprefix("theorem_"): array.values for name, array in measured.arrays.items()}
    found = []
    for index, name in enumerate(measured.coords["theorem_net"]):
        n, dr = int(of["size"][index]), int(of["constraints"][index])
        if name in SMOOTH:
            right = of["reached"][index] & (of["rank"][index] == dr) & (of["gap"][index] >= GAP)
            found.append(agreement(f"theorem, {name}: rank {dr}, nullity {n - dr}, a gap of {GAP:.0e}", right))
        elif name == "relu":
            right = of["reached"][index] & (of["rank"][index] == dr)
            found.append(agreement(f"control, {name}: a zero of rank {dr} is reached (not claimed)", right)._replace(held=None))
        else:
            found.append(agreement(f"control, {name}: there is no zero of the loss", ~of["reached"][index]))
    return tuple(found)
