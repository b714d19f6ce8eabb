"""Life after zero loss: the exact law of two weights, the laws of rounded noise against brute force, and claims either way."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.tree_util import Partial
from matplotlib.figure import Figure

from precisionlab import BFLOAT16, nearest_even, stochastic
from precisionlab.experiments.common.measured import Measured, on_other_data, taken_apart
from precisionlab.experiments.manifold import drift, drift_law, hyperbola
from precisionlab.experiments.manifold.nets import Net
from precisionlab.experiments.manifold.noisy import World, descend_noisily
from precisionlab.experiments.manifold.pictures.drift import draw_drift, draw_hyperbola
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.experiments.manifold.settings import Setting, float_arms
from precisionlab.runs.results import Claim, Labelled, Result
from tests import oracle

mpl.use("Agg")


def product(target: Any, weights: Any) -> Any:
    return weights[:1] * weights[1:] - target


def two_weights(fmt: Any, mode: Any = nearest_even, **world: float) -> Any:
    made = [np.array([[2.0, 0.5], [1.5, 0.7]]), np.full(2, 0.125), [World(), World(**world)], [3, 4], [fmt], mode]
    return descend_noisily(Partial(product, np.ones((2, 1))), *made, steps=8, looks=2)


# noisy


def test_a_step_is_that_of_the_noisy_label_and_every_format_sees_the_same_noise():
    """From one step: r from where x went, then y from it, and the square that was recorded; in bfloat16 the same r, rounded."""
    float64, start = float_arms((53,))["p53e8"], np.array([[2.0, 0.5]])
    made = [np.array([0.125]), [World(gaussian=0.25)], [7], [BFLOAT16, float64], nearest_even]
    path = descend_noisily(Partial(product, np.ones((1, 1))), start, *made, steps=1, looks=1)
    before, (narrow, after) = path.theta[0, 1, 0, 0], path.theta[-1, :, 0, 0]
    r = (before[0] - after[0]) / (0.125 * before[1])
    assert abs(r) > 1e-3
    assert after[1] == pytest.approx(before[1] - 0.125 * r * before[0], abs=1e-15)
    assert path.squares[0, 0, 0] == pytest.approx(r * r, rel=1e-12)
    assert (narrow == oracle.round_array(after, BFLOAT16, "nearest_even")).all()


def test_without_noise_exact_minima_stand_still_and_decay_shrinks():
    path = two_weights(float_arms((53,))["p53e8"], decay=2.0**-4)
    assert (path.theta[:, 0, 0, 0] == [2.0, 0.5]).all()
    norms = np.linalg.norm(path.theta[:, 0, 1, 0], axis=-1)
    assert (np.diff(norms) < 0).all()
    assert path.theta.shape == (3, 1, 2, 2, 2)


def test_batches_are_single_points():
    """Two points far apart: a step follows one of them, with twice its gradient, and both have their turn."""
    line = Partial(lambda data, w: w * data[:, 0] - data[:, 1], np.tile([[1.0, 4.0], [1.0, -4.0]], (8, 1, 1)))
    made = [np.full(8, 0.125), [World()], range(8), [float_arms((53,))["p53e8"]], nearest_even]
    ends = descend_noisily(line, np.zeros((8, 1)), *made, steps=1, looks=1).theta[-1]
    assert set(ends.ravel().tolist()) == {1.0, -1.0}


def test_steps_that_cannot_be_looked_at_are_refused():
    with pytest.raises(ValueError, match="multiple of the 2 looks"):
        descend_noisily(
            Partial(product, np.ones((1, 1))), np.ones((1, 2)), np.ones(1), [World()], [0], [BFLOAT16], stochastic, steps=3,
            looks=2,
        )  # fmt: skip


# drift_law


def test_mean_moves_and_gains_are_those_of_drawn_numbers():
    random = np.random.default_rng(0)
    for spread in (0.15, 0.3, 0.8):
        noise = spread * random.standard_normal(2_000_000)
        for step in (0.05, 0.4):
            drawn = np.rint(step + noise).mean()
            assert drift_law.mean_move(step, spread, 1.0) == pytest.approx(drawn, abs=4 * 0.6 / 2_000_000**0.5)
        gain, follow = (float(part) for part in drift_law.gains(np.array(spread), np.array(1.0)))
        h = 1e-4
        ends = [drift_law.mean_move(h, spread * (1 + e), 1.0) / h * spread * (1 + e) for e in (-h, h)]
        assert gain == pytest.approx(float(drift_law.mean_move(h, spread, 1.0)) / h, rel=1e-4)
        assert follow == pytest.approx((ends[1] - ends[0]) / (2 * h * spread), rel=1e-3)


def test_in_real_arithmetic_noise_goes_down_the_trace():
    """1/2 Phi''[lr^2 s^2 H] is -(lr^2 s^2 / 4) P grad tr H, here of x^2 + y^2 on a hyperbola; fine formats keep it all."""
    place, lr, size = np.array([[2.0, 0.5]]), 2.0**-6, 0.5
    yes = np.array([True])
    given = Setting(Partial(product, np.ones((1, 1))), place, place, yes, np.array([lr]), n=2, constraints=1)
    found = drift_law.laws(given, given.lr, size, 2.0**-10, list(float_arms((3, 24)).values()))
    assert found.noise[1] == pytest.approx(1.0, abs=2e-3)
    assert found.decay[1] == pytest.approx(1.0, abs=1e-3)
    assert found.fall == pytest.approx(lr**2 * size**2 / 4 * (4 * 2 - 1 * 0.5) ** 2 / 4.25, rel=1e-12)
    for frozen in (found.noise, found.decay, found.noise_alone, found.decay_alone):
        assert np.abs(frozen[0]).max() < 0.01


def test_the_law_of_a_rounded_step_is_that_of_many_walks():
    """Two weights in eight bits, one of them between frozen and free: walked by numpy, every step rounded by frexp and rint."""
    lr, place = 2.0**-4, np.array([1.25, 51 / 64])
    size = 0.25 * 2.0**-7 / lr / place[1]  # steps of x have a standard deviation of a quarter of its gap
    yes = np.array([True])
    given = Setting(Partial(product, np.ones((1, 1))), place[None], place[None], yes, np.array([lr]), n=2, constraints=1)
    law = drift_law.laws(given, given.lr, size, 2.0**-10, list(float_arms((8,)).values()))

    def rounded(values: np.ndarray) -> np.ndarray:
        significands, exponents = np.frexp(values)
        return np.ldexp(np.rint(np.ldexp(significands, 8)), exponents - 8)

    random, ends = np.random.default_rng(0), {}
    x, y = (np.full(40_000, value) for value in place)
    for step in range(240):
        r = x * y - 1 - size * random.standard_normal(len(x))
        x, y = rounded(x - lr * r * y), rounded(y - lr * r * x)
        ends[step] = x.mean() * place[0] - y.mean() * place[1]
    x, y = place
    real = -(lr**2) * size**2 / 2 * (x * x - y * y)  # in a step: -(lr^2 s^2 / 4) grad tr H, along (x, -y)
    walked = (ends[239] - ends[79]) / 160 / real
    assert law.noise.item() == pytest.approx(walked, rel=0.12)  # 3.5: the law is that of small lr
    assert walked > 3


def test_noise_out_of_the_row_space_bends_with_the_manifold():
    """On the ring x^2 + y^2 = 1 noise along it would leave it outward: descent brings it back, by half the variance."""
    second, matrix = np.array([[[2.0, 0.0], [0.0, 2.0]]]), np.array([[2.0, 0.0]])
    noise = np.diag([0.0, 1e-4])
    drift_of = drift_law.mean_step_of_noise(np.ones(2), np.ones((1, 2)), noise, matrix, second, 1e-2)
    assert drift_of == pytest.approx([-0.5e-4, 0.0], abs=1e-12)


# hyperbola


@pytest.fixture(scope="module")
def small() -> Measured:
    return hyperbola.measure(range(4), bits=(3, 6, 8, 53), steps=1024)


@pytest.mark.slow
def test_the_law_of_two_weights_is_exact_and_drift_ends_below_the_law(small: Measured):
    for name, array in small.arrays.items():
        assert array.values.shape == tuple(len(small.coords[dim]) for dim in array.dims), name
    kept = small.arrays["hyperbola_kept"].values
    assert small.arrays["hyperbola_error"].values.max() < 1e-11
    assert (kept[0, :, -1] == 1).all()
    assert np.abs(kept[0, 0, 0]).max() < 0.2
    assert np.abs(kept[0, 0, 2] - 1).max() < 0.2
    assert (small.arrays["hyperbola_predicted"].values <= 6).all()
    scan, sizes = small.arrays["hyperbola_scan"].values.mean(axis=-1), list(small.coords["hyperbola_size"])
    assert scan[1, sizes.index(0.6)] < 0 < scan[0, sizes.index(0.6)]
    assert scan[1, sizes.index(0.2)] == 0
    assert len(draw_hyperbola(small, Figure(layout="constrained")).axes) == 2


def test_the_law_of_two_weights_is_exact_step_by_step():
    path = two_weights(float_arms((53,))["p53e8"], gaussian=0.5)
    q = path.theta[:, 0, ..., 0] ** 2 - path.theta[:, 0, ..., 1] ** 2
    assert q[-1] / q[0] == pytest.approx(np.prod(1 - path.squares / 64, axis=-1), rel=1e-12)
    assert (q[-1, 1] < q[0, 1]).all()


def test_the_mean_of_rounded_steps_is_that_of_a_walk():
    """One weight held, the other where it is in the long run, drawn; both noises, above and below half a gap."""
    random, x, lr, gap = np.random.default_rng(1), 1.5, 0.125, 2.0**-5
    for noise in hyperbola.NOISES:
        for c in (0.4, 0.6):
            size, y = c * gap * x / lr, np.full(400_000, 1 / x)
            for _ in range(40):
                e = random.standard_normal(len(y)) if noise == "gaussian" else random.choice([-1.0, 1.0], len(y))
                step, y = -lr * (x * y - 1 - size * e) * y, y - lr * (x * y - 1 - size * e) * x
            exact = -(lr**2) * size**2 * x / (2 - lr * x * x)
            error = 4 * gap / len(y) ** 0.5 / abs(exact)
            drawn = np.rint(step / gap).mean() * gap / exact
            assert hyperbola.left_of_drift(x, size, gap, lr, noise) == pytest.approx(drawn, abs=error)


def changed(measured: Measured, name: str, **arrays: Any) -> Measured:
    new = {f"{name}_{key}": np.asarray(values, np.float64) for key, values in arrays.items()}
    return measured._replace(
        arrays={key: Labelled(array.dims, new.get(key, array.values)) for key, array in measured.arrays.items()}
    )


def held(claims: tuple[Claim, ...], *words: str) -> list[bool | None]:
    return [claim.held for claim in claims if all(word in claim.name for word in words)]


SEEDS = 4
JITTER = 0.01 * np.arange(SEEDS)


def a_hyperbola(nearest: Any) -> Measured:
    """Bits 4, 6, 8, 10, 53, of which the step passes from 6 on and the drift alone from 10 on."""
    bits = (4, 6, 8, 10, 53)
    kept = np.ones((2, 2, 5, SEEDS)) + JITTER
    kept[0, 0] = np.asarray(nearest, np.float64)[:, None] + JITTER
    kept[0, 1] = 0.0
    labels = {"seed": range(SEEDS), "hyperbola_mode": ["nearest_even", "stochastic"], "hyperbola_noise": hyperbola.NOISES}
    arrays = {
        "kept": kept, "trace": 2 + 0 * kept, "error": np.zeros((2, SEEDS)), "predicted": np.full(SEEDS, 6.0),
        "alone": np.full(SEEDS, 10.0), "scan": np.stack([np.ones((2, SEEDS)), [-1 + JITTER, 1 + JITTER]]),
        "scan_law": [[1, 1], [-1, 1]],
    }  # fmt: skip
    dims = {"kept": ("mode", "noise", "bits", "seed")}
    named = {f"hyperbola_{key}": Labelled(dims.get(key, ()), np.asarray(values, np.float64)) for key, values in arrays.items()}
    return Measured({**labels, "hyperbola_bits": bits, "hyperbola_size": (0.6, 1.0)}, named)


@pytest.mark.parametrize(
    ("nearest", "between", "coarse", "laws"),
    [
        ((1, 1, 1, 1, 1), [True, False, True], [True, False, False], [None, False]),  # geometry
        ((0, 0, 0, 1, 1), [False, True, False], [False, True, True], [False, True]),  # of the drift alone
        ((0, 1, 1, 1, 1), [True, False, True], [False, True, True], [True, False]),  # of what is stored
    ],
)
def test_two_weights_can_speak_for_each_side(nearest: Any, between: Any, coarse: Any, laws: Any):
    claims = hyperbola.claims(a_hyperbola(nearest))
    assert held(claims, "above the law of the step", "drift kept") == between
    assert held(claims, "below the law of the step", "drift kept") == coarse
    assert held(claims, "less those by the law") == ([False, False] if laws[0] is None else laws)
    assert held(claims, "two values") == [True, True]


def test_a_broken_law_is_not_held():
    world = a_hyperbola((0, 1, 1, 1, 1))
    claims = hyperbola.claims(
        changed(world, "hyperbola", error=np.full((2, SEEDS), 1e-3), trace=3 + 0 * world.arrays["hyperbola_kept"].values)
    )
    assert [claim.held for claim in claims[:2]] == [False, False]


# drift


def a_drift(nearest: Mapping[str, Any], walk: float = 0.5) -> Measured:
    """Bits 4, 8, 11, 53. With noise the step passes from 8 on, the drift alone at 53; decay alone from 11 on."""
    bits, times = (4, 8, 11, 53), np.array([256.0, 512, 768, 1024])
    shape = (4, 2, len(drift.WORLDS), len(bits), SEEDS)
    kept, along, trace = np.ones(shape) + JITTER, np.ones(shape), -np.ones(shape)
    for world, shares in nearest.items():
        kept[:, 0, drift.WORLDS.index(world)] = np.asarray(shares, np.float64)[:, None] + JITTER
    trace[:, 0, drift.WORLDS.index("two_valued"), 0] = 0.1 * JITTER
    size = 2.0 ** -np.array(bits)[:, None] * (1 + JITTER)
    along[:, 0, 0], along[:, 1, 0] = size, 4 * size * (times[:, None, None] / 256) ** walk
    along[:, :, 0, -1] = 0
    alone, stored = np.full(shape[2:], np.nan), np.full(shape[2:], np.nan)
    for world, one, other in (
        ("gaussian", (0, 0, 0, 1), (0, 1, 1, 1)),
        ("decay", (0, 0, 1, 1), (0, 0, 1, 1)),
        ("gaussian_decay", (0, 0, 1, 1), (0, 1, 1, 1)),
    ):
        k = drift.WORLDS.index(world)
        alone[k], stored[k] = (np.repeat(np.array(law, np.float64)[:, None], SEEDS, axis=1) for law in (one, other))
    arrays = {
        "kept": kept, "along": along, "off": along, "trace": trace, "alone": alone, "stored": stored, "norm": np.ones(SEEDS),
        "minimum_trace": np.ones(SEEDS), "fall": (1 + JITTER) / 256, "decay": 2.0**-11,
    }  # fmt: skip
    every = ("drift_time", "drift_mode", "drift_world", "drift_bits", "seed")
    coords = {
        "seed": range(SEEDS),
        "drift_time": times,
        "drift_mode": ["nearest_even", "stochastic"],
        "drift_world": drift.WORLDS,
    }
    dims = {5: every, 3: every[2:], 1: ("seed",), 0: ()}
    named = {f"drift_{key}": Labelled(dims[np.ndim(v)], np.asarray(v)) for key, v in arrays.items()}
    return Measured({**coords, "drift_bits": bits}, named)


ALL, NONE, STEP, DECAY = (1, 1, 1, 1), (0, 0, 0, 1), (0, 1, 1, 1), (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("left", "between", "lost"),
    [
        (ALL, [True, False, True], [True, False, False]),
        (NONE, [False, True, False], [False, True, True]),
        (STEP, [True, False, True], [False, True, True]),
    ],
)
def test_noise_can_speak_for_each_side(left: Any, between: Any, lost: Any):
    claims = drift.claims(a_drift({"gaussian": left}))
    assert held(claims, " gaussian, where the drift alone is lost and the step is not") == between
    assert held(claims, " gaussian, where the step is lost") == lost


@pytest.mark.parametrize(
    ("left", "lost", "threshold"), [(ALL, [True, False, False], [False]), (DECAY, [False, True, True], [True])]
)
def test_decay_can_speak_for_either_side(left: Any, lost: Any, threshold: Any):
    claims = drift.claims(a_drift({"decay": left}))
    assert held(claims, " decay, where the step is lost") == lost
    assert held(claims, "bits from which on half is kept") == threshold


def test_a_walk_is_told_from_rest_and_from_a_straight_way():
    assert held(drift.claims(a_drift({})), "stochastic, still") == [False, True]
    assert held(drift.claims(a_drift({}, walk=1.0)), "stochastic, still") == [False, False]
    rest = a_drift({}, walk=0.0)
    assert held(drift.claims(rest), "stochastic, still") == [True, False]
    assert held(drift.claims(rest), "nearest, still") == [True]


def test_stochastic_rounding_and_two_values_can_fail_too():
    world = a_drift({})
    assert held(drift.claims(world), "drift, stochastic, ", "drift kept") == [True] * 3
    assert held(drift.claims(world), "two-valued") == [True]
    kept, trace = world.arrays["drift_kept"].values.copy(), world.arrays["drift_trace"].values.copy()
    kept[:, 1], trace[:, 0, drift.WORLDS.index("two_valued")] = 0.0, -2.0 - JITTER
    trace[:, 0, drift.WORLDS.index("two_valued"), -1] = -1.0
    claims = drift.claims(changed(world, "drift", kept=kept, trace=trace))
    assert held(claims, "drift, stochastic, ", "drift kept") == [False] * 3
    assert held(claims, "two-valued") == [False]


@pytest.mark.slow
def test_nets_drift_as_predicted():
    found = drift.measure(range(3), net=Net(points=3, inputs=2, hidden=5), bits=(5, 12, 53), steps=512)
    for name, array in found.arrays.items():
        assert array.values.shape == tuple(len(found.coords[dim]) for dim in array.dims), name
    assert taken_apart(found)["drift", ""].arrays.keys() == found.arrays.keys()
    still, decay, gaussian = (drift.WORLDS.index(world) for world in ("still", "decay", "gaussian"))
    along, kept, trace = (found.arrays[f"drift_{name}"].values for name in ("along", "kept", "trace"))
    assert along[:, 0, still, -1].max() < 1e-12
    assert np.isnan(kept[:, :, still]).all()
    assert (kept[:, 0, 1:, -1] == 1).all()
    assert np.abs(kept[-1, 0, decay, 0]).max() < 0.05
    assert np.abs(kept[-1, 0, decay, 1] - 1).max() < 0.05
    assert (trace[-1, 0, gaussian, -1] < 0).all()
    fall = -trace[0, 0, gaussian, -1] / (found.arrays["drift_fall"].values * found.coords["drift_time"][0])
    assert fall.mean() == pytest.approx(1.0, abs=0.5)  # three seeds, 128 steps
    assert (along[-1, 1, still, 0] > 3 * along[-1, 0, still, 0]).all()
    assert len(draw_drift(found, Figure(layout="constrained")).axes) == 3


def test_figures_show_what_was_measured_and_say_what_was_not():
    world = a_drift({"gaussian": STEP})
    both = on_other_data(world, "digits")
    found = Measured({**world.coords, **both.coords}, {**world.arrays, **both.arrays})
    made = Result("manifold", {"data": ("generic", "digits")}, found.coords, found.arrays)
    drawn = {caption: draw(made) for caption, draw in FIGURES.items()}
    parts = drawn.pop("Drift: what is left of it after zero loss, in nets").subfigs
    assert [(len(part.axes), part.get_suptitle()) for part in parts] == [(3, "random points"), (3, "digits")]
    assert all("was not measured in this run" in figure.axes[0].texts[0].get_text() for figure in drawn.values())
    plt.close("all")


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="the last of them 53"):
        drift.measure([0], bits=(5, 8))
    with pytest.raises(ValueError, match="positive multiple of 4"):
        drift.measure([0], steps=6)
    with pytest.raises(ValueError, match="decay above 0"):
        drift.measure([0], decay=0.0)
    with pytest.raises(ValueError, match="drift: got no seeds"):
        drift.measure([])
    with pytest.raises(ValueError, match="got no seeds"):
        hyperbola.measure([])
    with pytest.raises(ValueError, match="the last of them 53"):
        hyperbola.measure([0], bits=(8,))
    with pytest.raises(ValueError, match="diverges"):
        hyperbola.measure([0], lr=0.5)
