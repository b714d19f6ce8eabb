"""What a format sees does not grow with the data, real arithmetic does; and from planted counts either side can win."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured, taken_apart
from precisionlab.experiments.manifold import sizes
from precisionlab.experiments.manifold.counts import SLOWER, by_spectrum, swept_fit
from precisionlab.experiments.manifold.pictures.sizes import draw_sizes
from precisionlab.runs.results import Labelled

mpl.use("Agg")
POINTS, BITS = (20, 100, 300), (8, 14, 53)


@pytest.fixture(scope="module")
def seen() -> np.ndarray:
    """Of n = 2,113 weights, (place, points, slower, bits)."""
    return by_spectrum(range(1), POINTS, 32, BITS)["seen"].values[..., 0]


def test_float64_sees_every_point_and_few_bits_few_of_many(seen: np.ndarray) -> None:
    np.testing.assert_array_equal(seen[:, :, 0, BITS.index(53)], [POINTS, POINTS])
    for place in seen[:, :, 0, BITS.index(8)]:
        assert place[0] >= 10
        assert place[2] < 0.2 * 300
        assert place[2] < 1.6 * place[1]  # three times the data


def test_a_64th_of_the_step_is_six_bits(seen: np.ndarray) -> None:
    assert SLOWER == (1, 64)
    np.testing.assert_array_equal(seen[:, :, 1, BITS.index(14)], seen[:, :, 0, BITS.index(8)])
    assert (seen[:, :, 1, BITS.index(8)] < seen[:, :, 0, BITS.index(8)]).all()


@pytest.fixture(scope="module")
def measured() -> Measured:
    return sizes.measure(
        range(2),
        points=(5, 40, 120), hidden=16, bits=BITS, pushed=(20, 60), trained=(60,), pushed_hidden=16, batch_size=8,
        trained_bits=(8, 53), steps=256, swept_hidden=(1, 3, 4, 6, 8),
    )  # fmt: skip


@pytest.mark.slow
def test_real_rounding_answers_what_curvature_says(measured: Measured) -> None:
    arrays = {name.removeprefix("sizes_"): array.values for name, array in measured.arrays.items()}
    for name, array in measured.arrays.items():
        assert array.values.shape == tuple(len(measured.coords[dim]) for dim in array.dims), name
    assert arrays["rests"].all()
    assert (arrays["rms"] < 1e-9).all()
    answered, known = arrays["answered"], arrays["pushed_seen"]
    np.testing.assert_array_equal(answered[:, :, BITS.index(53)], np.broadcast_to(np.array([20, 60])[:, None, None], (2, 2, 2)))
    np.testing.assert_array_equal(known[:, :, BITS.index(53)], answered[:, :, BITS.index(53)])
    assert (answered[-1, 0, BITS.index(8)] < 30).all()
    np.testing.assert_allclose(answered[-1, 1, BITS.index(14)], answered[-1, 0, BITS.index(8)], rtol=0.25)
    assert (arrays["wrong"] <= 0.1 * np.maximum(answered, 10)).all()
    # The wider count cannot tell: with 53 bits some weight moves along every direction, with curvature or without.
    assert (arrays["moved"][:, :, BITS.index(53)] == 1).all()
    assert (arrays["moved_null"][:, :, BITS.index(53)] == 1).all()


@pytest.mark.slow
def test_training_loses_directions_to_nearest_rounding_alone(measured: Measured) -> None:
    reduced = measured.arrays["sizes_reduced"].values[:, :, 0]
    assert list(measured.coords["sizes_rounding"]) == ["nearest_even", "stochastic"]
    exact, nearest, random = reduced[0, 0, 1], reduced[0, 0, 0], reduced[0, 1, 0]
    assert (nearest < 0.8 * exact).all()
    assert (random > nearest).all()
    assert (reduced[1, 0, 0] > nearest).all()  # the noise of minibatches dithers


@pytest.mark.slow
def test_claims_and_figure(measured: Measured) -> None:
    from matplotlib.figure import Figure

    told = {claim.name: claim for claim in sizes.claims(measured)}
    kink = "53 bits, directions not answered: kink of their number where n passes d r = 20"
    assert told[f"geometry: {kink}"].held
    assert told[f"representation: {kink}"].held is False
    assert list(taken_apart(measured)) == [("sizes", "")]
    assert len(draw_sizes(measured, Figure()).axes) == 4
    # Without training there are three panels.
    none = {**measured.coords, "sizes_trained": []}
    assert not draw_sizes(measured._replace(coords=none), Figure()).axes[3].patches


def planted(counted: Any, swept: Any) -> Measured:
    """Counts that are functions of (d, bits) and of (n, bits), in three seeds."""
    points, bits, slower, weights = (20, 100, 400), (8, 14, 53), (1, 64), (6, 16, 21, 31, 41)
    table = np.array([[[[counted(d, p - np.log2(s))] * 3 for p in bits] for s in slower] for d in points], np.float64)
    through = np.array([[[swept(n, p)] * 3 for p in (8, 53)] for n in weights], np.float64)
    arrays = {
        "seen": Labelled(("sizes_place", "sizes_points", "sizes_slower", "sizes_bits", "sizes_seed"), np.stack([table, table])),
        "answered": Labelled(("sizes_pushed", "sizes_slower", "sizes_bits", "sizes_seed"), table + 2.0),
        "wrong": Labelled(("sizes_pushed", "sizes_slower", "sizes_bits", "sizes_seed"), np.full_like(table, 2.0)),
        "swept_seen": Labelled(("sizes_swept", "sizes_swept_bits", "sizes_seed"), through),
        "swept_answered": Labelled(("sizes_swept", "sizes_swept_bits", "sizes_seed"), through),
        "reduced": Labelled(
            ("sizes_batch", "sizes_rounding", "sizes_trained", "sizes_trained_bits", "sizes_seed"), np.empty((2, 2, 0, 2, 3))
        ),
        "n": Labelled((), np.array(8449)),
        "pushed_n": Labelled((), np.array(4225)),
        "swept_points": Labelled((), np.array(20)),
    }
    coords = {
        "sizes_seed": [0, 1, 2], "sizes_points": points, "sizes_pushed": points, "sizes_bits": bits, "sizes_slower": slower,
        "sizes_swept": weights, "sizes_swept_bits": (8, 53), "sizes_trained": (), "sizes_trained_bits": (8, 53),
        "sizes_batch": ("all", "32"), "sizes_rounding": ("nearest_even", "stochastic"), "sizes_place": ("start", "zero"),
    }  # fmt: skip
    return Measured(coords, {f"sizes_{name}": array for name, array in arrays.items()})


def test_either_side_can_win() -> None:
    geometric = planted(lambda d, _: d, lambda n, _: min(n, 20))
    format_made = planted(lambda d, p: min(d, 2.0 ** (p / 2)), lambda n, p: min(n, p / 2, 20))
    for found, winner, loser in ((geometric, "geometry", "representation"), (format_made, "representation", "geometry")):
        told = [claim for claim in sizes.claims(found) if claim.name.split(": ")[1].startswith("8 bits")]
        assert len(told) == 8
        for claim in told:
            side = claim.name.split(":")[0]
            assert side in (winner, loser)
            assert claim.held is (side == winner), claim
    # With 53 bits that format, too, sees all there is.
    for claim in (claim for claim in sizes.claims(format_made) if ": 53 bits" in claim.name):
        assert claim.held is claim.name.startswith("geometry"), claim
    (same,) = (claim for claim in sizes.claims(format_made) if "lr / 64" in claim.name)
    assert (same.measured, same.held) == (1.0, True)
    (other,) = (claim for claim in sizes.claims(geometric) if "lr / 64" in claim.name)
    assert (other.measured, other.held) == (1.0, True)  # what no format changes is the same at every step too
    slow = planted(lambda d, p: 20 if p == 8 and d else 10, lambda n, _: n)
    halved = slow.arrays["sizes_answered"].values.copy() - 2.0
    halved[:, 1] /= 2
    halved += 2.0
    arrays = {**slow.arrays, "sizes_answered": slow.arrays["sizes_answered"]._replace(values=halved)}
    (wrong,) = (claim for claim in sizes.claims(slow._replace(arrays=arrays)) if "lr / 64" in claim.name)
    assert (wrong.measured, wrong.held) == (0.5, False)


def test_kinks_of_whole_lines() -> None:
    n, d = np.array([6, 11, 16, 21, 31, 41]), 20
    real = np.maximum(0, n - d)[:, None] * np.ones(2)
    np.testing.assert_allclose(sizes.kinks(real[[0, 1, 2, 3, 5]], n[[0, 1, 2, 3, 5]], d), 1.0)
    np.testing.assert_allclose(sizes.kinks((n - 4.0)[:, None] * np.ones(2), n, d), 0.0, atol=1e-12)


def test_the_swept_nets_pass_through_d() -> None:
    assert [swept_fit(0, hidden).n for hidden in (3, 4)] == [16, 21]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="sizes: got no seeds"):
        sizes.measure([])
    with pytest.raises(ValueError, match="sizes: points are whole numbers, ascending, at least two; got"):
        sizes.measure([0], points=(20, 5))
    with pytest.raises(ValueError, match="trained_bits must hold 53"):
        sizes.measure([0], trained_bits=(8, 11))
