"""Row 2: the extents at a small size, their judgement on arrays with known answers, and on shuffled labels."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold.extents import DIRECTIONS, LATTICES, example, judge, measure
from precisionlab.experiments.manifold.pictures.lattices import draw_extents
from precisionlab.runs.results import Labelled, Result

mpl.use("Agg")

_BITS = (10, 16, 22)


def _made(predicted, seeds=16, noise=0.05):
    """Extents whose slopes are given for each direction, and the isolated minimum's, which are -1."""
    random = np.random.default_rng(0)
    bits = np.array(_BITS)
    shape = (seeds, 2, 2, 2, len(_BITS))
    logs = np.array(predicted)[None, None, :, None, None] * bits + noise * random.normal(size=shape)
    isolated = -1.0 * bits + noise * random.normal(size=(seeds, 3, 2, len(_BITS)))
    lattice = {"extents_lattice": LATTICES, "extents_bits": _BITS}
    one = {"seed": range(seeds), "extents_points": (1, 2), "extents_direction": list(DIRECTIONS), **lattice}
    other = {"seed": range(seeds), "extents_eigenvector": ["stiffest", "middle", "softest"], **lattice}
    arrays = {
        "extents_length": Labelled(tuple(one), np.exp2(logs)),
        "extents_censored": Labelled(tuple(one), np.zeros(shape, bool)),
        "extents_isolated": Labelled(tuple(other), np.exp2(isolated)),
    }
    return Measured(one | other, arrays)


@pytest.fixture(scope="module")
def measured():
    seen = []
    found = measure(range(4), progress=lambda what, share: seen.append((what, share)))
    assert seen[-1][1] == 1.0
    return found


@pytest.mark.slow
def test_slopes_are_those_of_a_manifold(measured):
    Result("test", {}, measured.coords, measured.arrays)  # axes and labels fit
    findings = judge(measured)
    assert len(findings) == 10
    for finding in findings:
        assert finding.geometry.held is True, finding
        assert abs(finding.geometry.measured - finding.geometry.predicted) < 0.05
        if finding.geometry.predicted == -1.0:  # both sides say so
            assert finding.representation is None
        else:
            assert finding.representation is not None
            assert finding.representation.held is False
            assert finding.p == 2 * 2.0**-4  # four seeds know no more


@pytest.mark.slow
def test_no_extent_is_where_one_stopped_looking(measured):
    assert not measured.arrays["extents_censored"].values.any()


@pytest.mark.slow
def test_a_minimum_that_newton_alone_runs_away_from_is_found():
    assert np.isfinite(measure([128], points=(1,), bits=_BITS).arrays["extents_isolated"].values).all()


@pytest.mark.slow
def test_a_normal_extent_is_that_of_the_linearized_net(measured):
    # With one point and h = 2^-25 the normal is unique up to sign, J / |J|, and g = J^T |J| t.
    _, inputs, targets = example(3, 1)
    lengths = measured.arrays["extents_length"].values[3, 0, 0, 0]
    random = np.random.default_rng([3, 1, 3])
    w = example(3, 1)[0] + random.normal(0.0, 0.05, 3)

    def row(w):
        hidden = np.tanh(w[0] * inputs[0] + w[1])
        slope = w[2] * (1 - hidden**2)
        return np.array([slope * inputs[0], slope, hidden]), w[2] * hidden - targets[0]

    for _ in range(60):  # Gauss-Newton in numpy: near the start, not the same minimum, but a nearby one
        jacobian, residual = row(w)
        w = w - jacobian * residual / (jacobian @ jacobian)
    jacobian, _ = row(w)
    expected = 2.0**-25 / (2 * 0.1 * np.abs(jacobian).max() * np.linalg.norm(jacobian))
    assert abs(lengths[-1] / expected - 1) < 0.02


def test_representation_is_found_where_it_holds():
    for finding in judge(_made([-1.0, -1.0])):
        assert finding.geometry.held is (finding.geometry.predicted == -1.0)
        if finding.representation is not None:
            assert finding.representation.held is True
            assert finding.p == 2 * 2.0**-16


def test_geometry_is_found_where_it_holds():
    for finding in judge(_made(list(DIRECTIONS.values()))):
        assert finding.geometry.held is True
        assert finding.representation is None or finding.representation.held is False


def test_labels_shuffled_within_seeds_support_neither():
    made = _made(list(DIRECTIONS.values()))
    lengths = made.arrays["extents_length"].values
    random = np.random.default_rng(1)
    for seed in range(lengths.shape[0]):
        for lattice in range(2):
            for d in range(2):
                lengths[seed, d, :, lattice] = lengths[seed, d, random.permutation(2), lattice]
    for finding in judge(made):
        if "isolated" not in finding.geometry.name:
            assert finding.geometry.held is not True
            assert finding.representation is None or finding.representation.held is not True


def test_what_was_not_reached_decides_nothing():
    made = _made(list(DIRECTIONS.values()))
    made.arrays["extents_length"].values[2, 0, 1, 0] = np.nan
    made.arrays["extents_length"].values[2, 1, 0, 1, 0] = 0.0
    undecided = [finding.geometry.name for finding in judge(made) if finding.geometry.held is None]
    assert len(undecided) == 2
    assert "straight tangent, fixed point, d = 1" in undecided[0]
    assert "normal, floating point, d = 2" in undecided[1]


@pytest.mark.slow
def test_the_figure_names_every_series(measured):
    figure, axes = plt.subplots()
    assert draw_extents(measured, axes) is axes
    assert len(axes.get_legend_handles_labels()[1]) == 7
    plt.close(figure)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seeds": []}, "no seeds"),
        ({"seeds": [0], "points": ()}, "points"),
        ({"seeds": [0], "points": (3,)}, "points"),
        ({"seeds": [0], "bits": (10,)}, "bits"),
        ({"seeds": [0], "bits": (10, 40)}, "bits"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        measure(arguments.pop("seeds"), **arguments)
