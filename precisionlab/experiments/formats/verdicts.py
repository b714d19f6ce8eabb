"""What the half-gap law predicts of formats, beside what was measured.

Both predictions are about stored weights, whatever else is rounded: of the updates that the optimizer asks for, nearest
rounding loses the more the fewer significand bits the weights have; and stochastic rounding, which lands small updates in
proportion to their size, trains further wherever nearest rounding loses most of them. Where gradients and arithmetic are
rounded too the second is no consequence of the law but a conjecture, since stochastic rounding then also adds noise to every
gradient. Where the weights are left alone nothing of the kind is predicted, and nothing claimed.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from precisionlab.numerics.formats import FORMATS
from precisionlab.runs.results import Claim
from precisionlab.runs.summary import interval, paired_ratio_interval

__all__ = ["format_claims", "verdict"]


def format_claims(
    formats: Sequence[str], modes: Sequence[str], sites: Sequence[str], samples: Mapping[str, np.ndarray]
) -> tuple[Claim, ...]:
    """The claims, each with its interval over the seeds.

    Args:
        formats: names, along the first axis of the samples.
        modes: names, along the second.
        sites: what was rounded.
        samples: `stagnated_fraction` and `train_loss`, shape (formats, modes, seeds).
    """
    if "weights" not in sites or "nearest_even" not in modes:
        return ()
    claims = []
    stagnated, loss, nearest = samples["stagnated_fraction"], samples["train_loss"], modes.index("nearest_even")
    bits = [FORMATS[name].precision for name in formats]
    for finer, coarser in pairwise(sorted(range(len(formats)), key=lambda i: -bits[i])):
        if bits[finer] == bits[coarser]:
            continue
        more = stagnated[coarser, nearest] - stagnated[finer, nearest]
        low, high = interval(more)
        name = f"nearest_even loses more updates in {formats[coarser]} than in {formats[finer]}"
        claims.append(Claim(name, "> 0", float(np.mean(more)), low, high, _sign(low, high)))
    if "stochastic" not in modes:
        return tuple(claims)
    random = modes.index("stochastic")
    for i, fmt in enumerate(formats):
        # Where nearest rounding loses less than half there is little for stochastic rounding to bring back.
        if not np.mean(stagnated[i, nearest]) > 0.5:
            continue
        claims.append(_trains_further(fmt, loss[i, random], loss[i, nearest]))
    return tuple(claims)


def _trains_further(fmt: str, random: np.ndarray, nearest: np.ndarray) -> Claim:
    name = f"{fmt}: training loss, stochastic / nearest_even"
    if np.isfinite(nearest).all() and not np.isfinite(random).any():
        return Claim(name, "< 1", np.inf, np.nan, np.nan, False)  # every seed diverged, and that is no training
    low, high = paired_ratio_interval(random, nearest)
    ratio = float(np.exp(np.mean(np.log(random / nearest))))
    return Claim(name, "< 1", ratio, low, high, True if high < 1 else False if low > 1 else None)


def _sign(low: float, high: float) -> bool | None:
    return True if low > 0 else False if high < 0 else None


def verdict(formats: Sequence[str], modes: Sequence[str], samples: Mapping[str, np.ndarray], claims: Sequence[Claim]) -> str:
    """The arm that loses most, and how many of the claims held."""
    shares = np.mean(samples["stagnated_fraction"], axis=-1)
    if not np.isfinite(shares).any():
        return "no arm was asked for a finite update to the end, so nothing can be said of what was lost."
    i, j = map(int, np.unravel_index(np.nanargmax(shares), shares.shape))
    worst = f"{formats[i]} under {modes[j]} loses {100 * shares[i, j]:.2f} % of its updates"
    if not claims:
        return f"{worst}; with these arms there is nothing to compare."
    tested = [claim for claim in claims if claim.held is not None]
    held = sum(bool(claim.held) for claim in tested)
    undecided = len(claims) - len(tested)
    return f"{worst}; of {len(claims)} claims {held} held, {len(tested) - held} failed, {undecided} undecided."
