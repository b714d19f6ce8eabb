"""The bridge: axes are checked, selections are right, and JSON is strict."""

import json
from typing import Any

import numpy as np
import pytest

from precisionlab.runs.results import Claim, Labelled, Result, plain, select, to_columns, to_json_object


def example() -> Result:
    loss = np.arange(12.0).reshape(2, 3, 2)
    steps: Any = np.array([0, 10, 20])  # an array of labels is fine too
    return Result(
        experiment="demo",
        config={"rate": 0.1, "formats": ("a", "b")},
        coords={"format": ["a", "b"], "step": steps, "seed": range(2)},
        arrays={
            "loss": Labelled(("format", "step", "seed"), loss),
            "turned": Labelled(("seed", "format"), np.array([[1, 2], [3, 4]])),
            "n": Labelled((), np.array(7)),
        },
        rows=({"format": "a", "loss": np.float32(0.5), "loss_low": np.nan},),
        claims=(Claim("c", "< 1", 0.5, float("nan"), float("inf"), None),),
        verdict="yes",
    )


def test_labels_become_plain_values() -> None:
    result = example()
    assert result.coords == {"format": ("a", "b"), "step": (0, 10, 20), "seed": (0, 1)}
    assert all(type(label) is int for label in result.coords["step"])


def test_select_keeps_the_other_axes_in_order() -> None:
    result = example()
    chosen = select(result, "loss", step=0, format="b")
    assert chosen.dims == ("seed",)
    np.testing.assert_array_equal(chosen.values, [6.0, 7.0])
    assert select(result, "loss").dims == ("format", "step", "seed")


def test_columns_are_one_row_for_each_cell() -> None:
    columns = to_columns(example())
    assert list(columns) == ["format", "step", "seed", "loss", "turned", "n"]
    assert {len(column) for column in columns.values()} == {12}
    for row in range(12):
        i = "ab".index(str(columns["format"][row]))
        j, k = int(columns["step"][row]) // 10, int(columns["seed"][row])
        assert columns["loss"][row] == 6 * i + 2 * j + k
        assert columns["turned"][row] == [[1, 2], [3, 4]][k][i]
        assert columns["n"][row] == 7


def test_columns_span_only_the_axes_that_are_needed() -> None:
    columns = to_columns(example(), ["turned"])
    assert list(columns) == ["format", "seed", "turned"]
    np.testing.assert_array_equal(columns["turned"], [1, 3, 2, 4])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": Labelled(("format", "step"), np.zeros(2))}, "give each of its 1 axes a name"),
        ({"x": Labelled(("format", "format"), np.zeros((2, 2)))}, "give each of its 2 axes a name"),
        ({"x": Labelled(("formt",), np.zeros(2))}, 'did you mean "format"'),
        ({"x": Labelled(("format",), np.zeros(3))}, r'3 entries along "format", and coords\["format"\] has 2 labels'),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Labelled], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Result("demo", {}, {"format": ["a", "b"]}, arrays)


def test_config_and_claims_are_checked() -> None:
    with pytest.raises(ValueError, match="JSON-able"):
        Result("demo", {"x": object()}, {}, {})
    with pytest.raises(TypeError, match="Claim"):
        Result("demo", {}, {}, {}, claims=(("a", "b", 1.0, 0.0, 2.0, True),))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "labels", "sentence"),
    [
        ("los", {}, 'no array "los".*did you mean "loss"'),
        ("loss", {"sede": 0}, 'no axis "sede".*did you mean "seed"'),
        ("loss", {"step": 5}, "no label 5; allowed are 0, 10, 20"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, labels: dict[str, int], sentence: str) -> None:
    with pytest.raises(KeyError, match=sentence):
        select(example(), name, **labels)
    with pytest.raises(KeyError, match='no array "x"'):
        to_columns(example(), ["x"])


def test_json_is_strict_and_has_exactly_the_promised_keys() -> None:
    found = to_json_object(example(), "runs/abc")
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "experiment": "demo",
        "run": "runs/abc",
        "verdict": "yes",
        "claims": [{"name": "c", "predicted": "< 1", "measured": 0.5, "low": None, "high": None, "held": None}],
        "rows": [{"format": "a", "loss": 0.5, "loss_low": None}],
    }


def test_what_was_decided_takes_the_place_of_the_sentences() -> None:
    claim = Claim("c", "a: 1; b: 0", 0.5, 0.4, 0.6, None, "a")
    result = Result(
        "demo", {}, {}, {}, claims=(claim,), verdict="In words.", decided={"verdict": {"w": np.True_}, "valid": True}
    )
    found = to_json_object(result, "runs/abc")
    assert (found["verdict"], found["valid"]) == ({"w": True}, True)
    assert found["claims"][0]["says"] == "a"


def test_plain_leaves_nothing_of_numpy() -> None:
    found = plain({1: np.array([[True], [False]]), "s": np.str_("x"), "f": -np.inf, "n": None, "i": np.int64(3)})
    assert found == {"1": [[True], [False]], "s": "x", "f": None, "n": None, "i": 3}
    assert type(found["i"]) is int
    assert type(found["1"][0][0]) is bool
