"""The main question: wrong requests, what follows from stored arrays, and that it can say no."""

from typing import Any

import numpy as np
import pytest

from precisionlab.experiments.common.measured import Measured, taken_apart
from precisionlab.experiments.manifold import planted
from precisionlab.experiments.manifold.pictures.figures import FIGURES
from precisionlab.experiments.manifold.question import MANIFOLD, ManifoldConfig, judged, run
from precisionlab.runs.configs import ConfigError
from precisionlab.runs.results import Labelled, Result


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"worlds": ("hinge",)}, 'worlds holds an unknown name "hinge"'),
        ({"worlds": ()}, "worlds is (); name each of square, square_with_decay, cross_entropy, cross_entropy_with_decay once"),
        ({"bits": 30}, "bits is 30; allowed are 3 to 24"),
        ({"free": (30,)}, "free are (30,); give ascending whole numbers from 3 to 24"),
        ({"dial": 20.0}, "dial is 20.0; allowed are 2 to 12"),
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
    quick = {**MANIFOLD.quick, "seeds": 3, "nets": ("tanh", "linear")}
    return run(ManifoldConfig(**quick))


@pytest.mark.slow
def test_a_small_run_decides_in_three_worlds(small: Result) -> None:
    found = judged(Measured(small.coords, small.arrays))
    assert (found.claims, found.verdict, found.decided) == (small.claims, small.verdict, small.decided)
    answers = {world: said["answer"] for world, said in small.decided["verdict"].items()}
    assert answers == {"square": "geometry", "square_with_decay": "representation", "cross_entropy": "representation"}
    assert small.decided["valid"] is True
    assert {item["world"]: item["answer"] for item in small.decided["planted"]} == planted.EXPECTED
    for world, said in small.decided["verdict"].items():
        assert said["sentence"] in small.verdict, world
    assert (
        "in real arithmetic training does not come to rest in any seed" in small.decided["verdict"]["cross_entropy"]["sentence"]
    )
    rows = {row["loss"]: row for row in small.rows if row["row"] == "deciding"}
    assert rows["square"]["flat_in_float64"] == 36
    assert rows["square_with_decay"]["flat_in_float64"] == 0


def changed(found: Result, name: str, values: Any) -> Measured:
    return Measured(found.coords, {**found.arrays, name: Labelled(found.arrays[name].dims, values)})


@pytest.mark.slow
def test_arithmetics_shuffled_within_seeds_decide_nothing(small: Result) -> None:
    """Each seed's counts in the format and in float64 under each other's names, where they differ: the worlds with decay."""
    flat = small.arrays["directions_flat"].values
    world = list(small.coords["directions_world"]).index("square_with_decay")
    for swapped in ([0, 2], [1, 3, 5]):
        values = np.array(flat)
        values[world][:, swapped] = values[world][::-1, swapped]
        said = judged(changed(small, "directions_flat", values)).decided["verdict"]
        assert said["square_with_decay"]["answer"] == "undecided"
        assert said["square"]["answer"] == "geometry"


@pytest.mark.slow
def test_a_run_that_names_a_planted_world_wrongly_is_invalid(small: Result) -> None:
    values = np.array(small.arrays["planted_flat"].values)
    values[list(small.coords["planted_world"]).index("half and half"), 1] = 0.0  # in float64
    found = judged(changed(small, "planted_flat", values))
    assert found.decided["valid"] is False
    assert {said["answer"] for said in found.decided["verdict"].values()} == {"undecided"}
    assert {row["speaks_for"] for row in found.rows if row["row"] == "deciding"} == {"undecided"}
    assert {said["sentence"] for said in found.decided["verdict"].values()} == {found.verdict}
    assert found.verdict.startswith('The run is invalid: of the worlds whose answer is known, "half and half" is mixture')


@pytest.mark.slow
def test_every_figure_can_be_drawn(small: Result) -> None:
    import matplotlib.pyplot as plt

    for caption, draw in FIGURES.items():
        figure = draw(small)
        assert figure.axes, caption
        figure.canvas.draw()
        plt.close(figure)


@pytest.mark.thorough
def test_one_world_alone() -> None:
    found = run(ManifoldConfig(seeds=3, deciding=3, data=("generic",), worlds=("cross_entropy",), described=()))
    assert {row["loss"] for row in found.rows} == {"cross_entropy"}
    assert all(name.startswith(("margins_", "directions_", "planted_")) for name in found.arrays)
    assert found.decided["valid"] is False  # three seeds name no planted world
