"""The contrast: cross-entropy's computed flat set, found by search and by training, beside the law."""

import math

import matplotlib as mpl
import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured
from precisionlab.experiments.manifold import margins
from precisionlab.experiments.manifold.pictures.margins import draw_margins
from precisionlab.experiments.manifold.vanishing import LOSSES
from precisionlab.runs.results import Labelled

mpl.use("agg")
BITS = (*range(3, 17), 24, 53)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return margins.measure(range(4), bits=BITS)


@pytest.mark.slow
def test_searched_margins_are_those_of_the_law(measured: Measured) -> None:
    """Every form and part, with every operation rounded to p bits: exactly."""
    found, predicted = (measured.arrays[f"margins_{name}"].values for name in ("found", "predicted"))
    for i, p in enumerate(BITS):
        for j, form in enumerate(LOSSES):
            assert found[i, j].tolist() == predicted[i, j].tolist(), (p, form)


@pytest.mark.slow
def test_training_agrees_with_the_law(measured: Measured) -> None:
    arrays = {name: array.values for name, array in measured.arrays.items()}
    assert not arrays["margins_contradictions"].any()
    law = arrays["margins_predicted"][:, list(LOSSES).index("log_softmax"), 0]
    assert (arrays["margins_before"] < law).all()
    assert (arrays["margins_after"] >= law).all()
    assert arrays["margins_still"].all()
    assert (arrays["margins_directions"] == 6).all()
    assert (arrays["margins_true_gradient"] > 0).all()


@pytest.mark.slow
def test_representation_is_right_here(measured: Measured) -> None:
    recedes, open_set, true, law, grows = margins.judge(measured)
    assert {finding.loss for finding in (recedes, open_set, true, law, grows)} == {"cross_entropy"}
    for finding in (recedes, open_set):
        assert finding.geometry.held is False
        assert finding.representation is not None
        assert finding.representation.held is True
        assert finding.p == 2.0**-4  # four seeds know no more
    assert recedes.geometry.measured == pytest.approx(math.log(2), abs=0.01)
    assert true.geometry.held
    assert law.geometry.held
    assert grows.geometry.held


@pytest.mark.slow
def test_flatness_that_stays_where_it_is_would_not_be_representation(measured: Measured) -> None:
    """The same arrays as if the threshold knew nothing of the bits, and nothing were flat."""
    arrays = dict(measured.arrays)
    after = np.random.default_rng(0).permuted(arrays["margins_after"].values[:, :1].repeat(len(BITS), axis=1), axis=1)
    arrays["margins_after"] = Labelled(("seed", "margins_bits"), after)
    arrays["margins_directions"] = Labelled(("seed", "margins_bits"), np.zeros_like(arrays["margins_directions"].values))
    recedes, open_set, *_ = margins.judge(Measured(measured.coords, arrays))
    assert recedes.representation is not None
    assert (recedes.geometry.held, recedes.representation.held) == (True, False)
    assert open_set.representation is not None
    assert (open_set.geometry.held, open_set.representation.held) == (True, False)


@pytest.mark.slow
def test_arms_that_never_rest_are_left_out_of_what_is_said_of_rest(measured: Measured) -> None:
    arrays = dict(measured.arrays)

    def changed(name: str, value: float, places: object) -> Labelled:
        values = arrays[f"margins_{name}"].values.copy()
        values[places] = value
        return Labelled(arrays[f"margins_{name}"].dims, values)

    one = (0, 2)
    arrays |= {f"margins_{name}": changed(name, 0, one) for name in ("still", "directions", "true_gradient", "growth")}
    _, open_set, law, _, grows = margins.judge(Measured(measured.coords, arrays))
    assert open_set.representation is not None
    assert (open_set.geometry.held, open_set.representation.held) == (False, True)
    assert open_set.representation.name.endswith(f"in {4 * len(BITS) - 1} of {4 * len(BITS)} arms at rest")
    assert law.geometry.held
    assert grows.geometry.held
    # Where nothing rests, nothing is held of rest.
    arrays["margins_still"] = changed("still", 0, ...)
    _, open_set, law, _, grows = margins.judge(Measured(measured.coords, arrays))
    assert open_set.representation is not None
    assert not any(claim.held for claim in (open_set.geometry, open_set.representation, law.geometry))


@pytest.mark.slow
def test_figure(measured: Measured) -> None:
    from matplotlib.figure import Figure

    axes = draw_margins(measured, Figure().subplots())
    assert len(axes.lines) > len(LOSSES)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="got no seeds"):
        margins.measure([])
    with pytest.raises(ValueError, match="ascending, from 3 to 53"):
        margins.measure([0], bits=(8, 4))
    with pytest.raises(ValueError, match="steps and further"):
        margins.measure([0], steps=0)
