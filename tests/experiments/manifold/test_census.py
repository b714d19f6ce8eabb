"""Row 1: the census at a small size, its judgement on arrays with known answers, and on shuffled labels."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.census import LATTICES, example, judge, measure
from precisionlab.experiments.manifold.pictures.lattices import draw_census
from precisionlab.runs.results import Labelled, Result

mpl.use("Agg")

_BITS = (4, 5, 6, 7)


def _made(slope_of, seeds=16, noise=0.05):
    """Counts whose slopes are given by a function of d."""
    random = np.random.default_rng(0)
    levels = np.array([[slope_of(d) * b + 10 for b in _BITS] for d in (1, 2, 3)])
    logs = levels + noise * random.normal(size=(seeds, 2, 3, len(_BITS)))
    coords = {"seed": range(seeds), "census_lattice": LATTICES, "census_points": (1, 2, 3), "census_bits": _BITS}
    return Measured(coords, {"census_count": Labelled(tuple(coords), np.exp2(logs))})


@pytest.fixture(scope="module")
def measured():
    seen = []
    found = measure(range(4), progress=lambda what, share: seen.append((what, share)))
    assert seen[-1][1] == 1.0
    return found


@pytest.mark.slow
def test_slopes_are_n_minus_d_on_both_lattices(measured):
    Result("test", {}, measured.coords, measured.arrays)  # axes and labels fit
    findings = judge(measured)
    assert len(findings) == 6
    for finding in findings:
        assert finding.geometry.held is True, finding
        assert abs(finding.geometry.measured - finding.geometry.predicted) < 0.15
    second = [finding for finding in findings if finding.representation is not None]
    assert len(second) == 4
    assert all(finding.representation.held is False and finding.p == 2 * 2.0**-4 for finding in second)


@pytest.mark.slow
def test_counts_are_numpys(measured):
    seed, d, bits = 2, 3, 6
    theta, inputs, targets = example(seed, d)
    np.testing.assert_allclose(theta[2] * np.tanh(theta[0] * inputs + theta[1]), targets, rtol=1e-15)
    axis = np.arange(-2 * 2**bits, 2 * 2**bits) / 2**bits
    first, second = np.meshgrid(axis, axis, indexing="ij")
    hidden = np.tanh(first[..., None] * inputs + second[..., None])
    count = sum(int((0.5 * ((w * hidden - targets) ** 2).sum(axis=-1) <= 2 * 4.0**-bits).sum()) for w in axis)
    counts = measured.arrays["census_count"].values
    assert counts[seed, 0, 2, measured.coords["census_bits"].index(bits)] == count > 0


def test_representation_is_found_where_it_holds():
    findings = judge(_made(lambda _: 2.0))
    for finding in findings:
        if finding.geometry.predicted != 2.0:
            assert finding.geometry.held is False
            assert finding.representation.held is True
            assert finding.p == 2 * 2.0**-16


def test_geometry_is_found_where_it_holds():
    for finding in judge(_made(lambda d: 3.0 - d)):
        assert finding.geometry.held is True
        assert finding.representation is None or (finding.representation.held is False and finding.p == 2 * 2.0**-16)


def test_labels_shuffled_within_seeds_support_neither():
    made = _made(lambda d: 3.0 - d)
    counts = made.arrays["census_count"].values.copy()
    random = np.random.default_rng(1)
    for seed in range(counts.shape[0]):
        for lattice in range(2):
            counts[seed, lattice] = counts[seed, lattice][random.permutation(3)]
    shuffled = made._replace(arrays={"census_count": made.arrays["census_count"]._replace(values=counts)})
    for finding in judge(shuffled):
        # For d = 2 the middle slope can be right by chance in the mean, but never to within the margin.
        assert finding.geometry.held is not True
        assert finding.representation is None or finding.representation.held is not True


def test_an_empty_census_decides_nothing():
    made = _made(lambda d: 3.0 - d)
    made.arrays["census_count"].values[3, 0, 2, 0] = 0
    decided = [finding.geometry.held for finding in judge(made)]
    assert decided == [True, True, None, True, True, True]


def test_one_seed_decides_nothing():
    assert all(finding.geometry.held is None for finding in judge(_made(lambda d: 3.0 - d, seeds=1)))


@pytest.mark.slow
def test_the_figure_names_every_series(measured):
    figure, axes = plt.subplots()
    assert draw_census(measured, axes) is axes
    labels = axes.get_legend_handles_labels()[1]
    assert len(labels) == 7
    assert all("slope" in label for label in labels)
    plt.close(figure)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "no seeds"),
        ({"seeds": [0], "points": ()}, "points"),
        ({"seeds": [0], "points": (3, 1)}, "ascending"),
        ({"seeds": [0], "points": (4,)}, "points"),
        ({"seeds": [0], "coarser": 3}, "coarser"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure(arguments.pop("seeds"), **arguments)
