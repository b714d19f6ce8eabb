"""The main question: wrong requests, what follows from stored arrays, and that it can say no."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured, taken_apart
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.experiments.manifold.question import MANIFOLD, ManifoldConfig, judged, run
from precisionlab.runs.configs import ConfigError
from precisionlab.runs.results import Labelled, Result

# The axes along which arms differ; before and after are arms too.
ARMS = {
    "census_points", "extents_direction", "stagnation_arm", "stagnation_format", "repair_arm", "repair_cell", "repair_format",
    "dimension_points", "dimension_precision", "dimension_floor_precision", "margins_bits",
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"losses": ("hinge",)}, 'losses holds an unknown name "hinge"'),
        ({"losses": ()}, "losses is (); name each of square, cross_entropy once at most, and at least one"),
        ({"data": ("digits", "digits")}, "name each of generic, digits once at most"),
        ({"activation": "relu"}, "the theorem asks for a smooth one, and linear and ReLU nets are among the controls already"),
        ({"placements": ("all",)}, "weights come first"),
        ({"points": 8}, "hidden=8, points=8: the theorem asks for more units than points"),
        (
            {"hidden": 500},
            "2501 weights, whose Hessian is not taken densely beyond 2000; take fewer units, or look at larger nets",
        ),
        ({"precisions": (2, 8, 24)}, "precisions are (2, 8, 24); give ascending whole numbers from 3 to 53"),
        ({"repaired": ()}, "repaired are (); give ascending whole numbers from 3 to 53"),
        ({"precisions": (8, 24)}, "slopes need three or more"),
        ({"steps": 3000}, "steps is 3000; it must be a power of two of at least 2048"),
        ({"seeds": 0}, "seeds is 0; allowed are 1 to"),
        ({"coarser": 3}, "coarser is 3; allowed are 0, 1 and 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]") as refused:
        ManifoldConfig(**wrong)
    assert sentence in str(refused.value)


def test_another_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"manifold: expected a ManifoldConfig; got \{\}"):
        run({})  # type: ignore[arg-type]


def test_measurements_are_taken_apart_by_name_and_data() -> None:
    array = Labelled(("seed", "repair_cell"), np.zeros((1, 2)))
    other = Labelled(("seed", "digits_repair_cell"), np.ones((1, 2)))
    found = Measured(
        {"seed": [7], "repair_cell": ["a", "b"], "digits_repair_cell": ["c", "d"]},
        {"repair_flat": array, "digits_repair_flat": other},
    )
    parts = taken_apart(found)
    assert list(parts) == [("repair", ""), ("repair", "digits")]
    assert parts["repair", "digits"].coords == {"seed": [7], "repair_cell": ["c", "d"]}
    assert parts["repair", "digits"].arrays["repair_flat"].values.tolist() == [[1, 1]]


@pytest.fixture(scope="module")
def small() -> Result:
    return run(ManifoldConfig(**{**MANIFOLD.quick, "seeds": 8, "nets": ("tanh", "linear")}))


def shuffled(found: Result, seed: int) -> Measured:
    """Each seed's arms under each other's names; what came before and after too. The control stays as it was."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, (dims, values) in found.arrays.items():
        moved = np.array(values)
        if "seed" in dims and not name.startswith(("ring_", "theorem_")):
            by_seed = np.moveaxis(moved, dims.index("seed"), 0)
            rest = [dim for dim in dims if dim != "seed"]
            for row in by_seed:
                for axis, dim in enumerate(rest):
                    if dim in ARMS:
                        row[...] = np.take(row, random.permutation(row.shape[axis]), axis=axis)
        arrays[name] = Labelled(dims, moved)
    before, after = arrays["stagnation_loss"].values, arrays["stagnation_loss_after"].values
    swap = random.random(before.shape) < 0.5
    last = after[..., -1].copy()
    after[..., -1], before[...] = np.where(swap, before, last), np.where(swap, last, before)
    return Measured(found.coords, arrays)


@pytest.mark.slow
def test_a_small_run_decides_and_shuffled_labels_do_not(small: Result) -> None:
    (square, entropy), claims = judged(Measured(small.coords, small.arrays))
    assert claims == small.claims
    assert small.verdict.startswith(f"{square.sentence} {entropy.sentence}")
    assert (square.verdict, entropy.verdict) == ("mixture", "representation")
    for seed in range(5):
        (square, entropy), _ = judged(shuffled(small, seed))
        assert (square.verdict, entropy.verdict) == ("undecided", "undecided"), seed


@pytest.mark.slow
def test_a_run_whose_control_was_not_seen_is_invalid(small: Result) -> None:
    ring = small.arrays["ring_collapsed"]
    for wrong in (np.ones_like(ring.values), np.zeros_like(ring.values)):
        found = Measured(small.coords, {**small.arrays, "ring_collapsed": Labelled(ring.dims, wrong)})
        assert judged(found, ("square",))[0][0].verdict == "invalid"


@pytest.mark.slow
def test_every_figure_can_be_drawn(small: Result) -> None:
    import matplotlib.pyplot as plt

    for caption, draw in FIGURES.items():
        figure = draw(small)
        assert figure.axes, caption
        figure.canvas.draw()
        plt.close(figure)


@pytest.mark.thorough
def test_one_loss_alone() -> None:
    config = partial(ManifoldConfig, seeds=3, losses=("cross_entropy",))
    found = run(config())
    assert {row["loss"] for row in found.rows} == {"cross_entropy"}
    assert all(name.startswith("margins_") for name in found.arrays)
    assert "3 seeds cannot decide" in found.verdict
