"""Stages resume after the last finished one, bit for bit, and refuse what does not fit together."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precisionlab.experiments.common.experiment import MemoryJournal, stages
from precisionlab.experiments.common.measured import Measured
from precisionlab.runs import store
from precisionlab.runs.results import Labelled, Result

SEEDS: dict[str, Sequence[Any]] = {"seed": range(2)}


def census() -> Measured:
    counts = np.array([[1, 2, 3], [4, 5, 2**60]])
    return Measured({**SEEDS, "bits": [3, 4, 5]}, {"census_count": Labelled(("seed", "bits"), counts)})


def extents() -> Measured:
    values = np.asfortranarray([[0.1, -0.0, np.nan], [np.inf, 5e-324, 1 / 3]])
    arrays = {
        "extents_length": Labelled(("seed", "extents_at"), values),
        "extents_reached": Labelled(("seed",), np.array([True, False])),
        "extents_scale": Labelled((), np.asarray(2.5, ml_dtypes.bfloat16)),
    }
    return Measured({"extents_at": [0.1, 0.2, 1e300], **SEEDS}, arrays)


def spectra() -> Measured:
    return Measured({"spectra_axis": ["normal", "tangent"]}, {"spectra_of": Labelled(("spectra_axis",), np.array(["é", "b"]))})


ALL: dict[str, Callable[[], Measured]] = {"census": census, "extents": extents, "spectra": spectra}


def finished(root: Path, measure: Any = ALL) -> tuple[store.Run, Result]:
    opened = store.open_run(root, "staged", {}, {})

    def compute(journal: store.Journal) -> Result:
        found = stages(measure, journal=journal)
        return Result("staged", {}, found.coords, found.arrays)

    return opened, store.complete(opened, compute)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


@pytest.mark.parametrize("stops", [["census"], ["extents"], ["spectra"], ["extents", "extents", "spectra"]])
def test_an_interrupted_run_ends_bit_for_bit_as_if_it_had_not(tmp_path: Path, stops: list[str]) -> None:
    whole, result = finished(tmp_path / "whole")
    worked: list[str] = []

    def counted(name: str, stop: str | None) -> Callable[[], Measured]:
        def work() -> Measured:
            worked.append(name)
            if name == stop:
                raise KeyboardInterrupt
            return ALL[name]()

        return work

    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path / "parts", {name: counted(name, stop) for name in ALL})
    parts, resumed = finished(tmp_path / "parts", {name: counted(name, None) for name in ALL})
    assert files(parts.folder) == files(whole.folder)
    assert {name: worked.count(name) for name in ALL} == {name: 1 + stops.count(name) for name in ALL}
    assert resumed.coords == result.coords
    for name, array in result.arrays.items():
        assert (array.dims, array.values.dtype) == (resumed.arrays[name].dims, resumed.arrays[name].values.dtype)
        assert array.values.tobytes() == resumed.arrays[name].values.tobytes()


def test_the_bits_of_every_stage_survive(tmp_path: Path) -> None:
    """What the journal gives back is what was measured, before and after an interruption."""
    opened = store.open_run(tmp_path, "staged", {}, {})
    first = stages(ALL, journal=store.Journal(opened))
    again = stages(ALL, journal=store.Journal(opened))
    assert (
        first.coords
        == again.coords
        == {"seed": (0, 1), "bits": (3, 4, 5), "extents_at": (0.1, 0.2, 1e300)} | {"spectra_axis": ("normal", "tangent")}
    )
    assert list(first.arrays) == list(again.arrays)
    for stage in ALL.values():
        for name, array in stage().arrays.items():
            for found in (first, again):
                assert found.arrays[name].dims == array.dims
                assert found.arrays[name].values.dtype == array.values.dtype
                assert found.arrays[name].values.tobytes() == array.values.tobytes()


def test_segments_are_a_table_of_contents(tmp_path: Path) -> None:
    opened, _ = finished(tmp_path)
    rows = store.query(opened, "SELECT stage, name, axes, entries FROM records")
    assert list(zip(*(column.tolist() for column in rows.values()), strict=True)) == [
        ("census", "census_count", "seed bits", 6),
        ("extents", "extents_length", "seed extents_at", 6),
        ("extents", "extents_reached", "seed", 2),
        ("extents", "extents_scale", "", 1),
        ("spectra", "spectra_of", "spectra_axis", 2),
    ]


def test_progress_names_the_stages_done_before_too(tmp_path: Path) -> None:
    def told(names: list[str]) -> list[Any]:
        seen: list[Any] = []
        opened = store.open_run(tmp_path, "staged", {}, {})
        stages({name: ALL[name] for name in names}, journal=store.Journal(opened), progress=lambda *each: seen.append(each))
        return seen

    assert told(["census"]) == [(0, 1, "census"), (1, 1, "census")]
    assert told(["census", "spectra"]) == [(1, 1, "census"), (0, 1, "spectra"), (1, 1, "spectra")]


@pytest.mark.parametrize("names", [["extents", "census", "spectra"], ["extents"], [], ["censsu", "extents"]])
def test_other_stages_than_before_are_refused(tmp_path: Path, names: list[str]) -> None:
    opened = store.open_run(tmp_path, "staged", {}, {})
    stages({"census": census}, journal=store.Journal(opened))
    with pytest.raises(
        store.RunError, match=rf"begun with other stages \(census\) than it has now \({', '.join(names)}\).*--fresh"
    ):
        stages(dict.fromkeys(names, census), journal=store.Journal(opened))


WRONG = [
    (Measured({"bits": [3, 4, 5]}, {"census_count": Labelled(("bits",), np.zeros(3))}), 'gives an array "census_count", which'),
    (Measured({"bits": [3, 4]}, {}), r'labels the axis "bits" \(3, 4\), an earlier stage \(3, 4, 5\)'),
    (Measured({}, {"x": Labelled(("bist",), np.zeros(3))}), 'axis "bist" without labels.*did you mean "bits"'),
]


@pytest.mark.parametrize(("second", "words"), WRONG)
def test_stages_that_do_not_fit_are_refused(second: Measured, words: str) -> None:
    journal = MemoryJournal()
    with pytest.raises(ValueError, match=words):
        stages({"census": census, "second": lambda: second}, journal=journal)
    assert len(journal.segments) == 1


def test_no_stage_and_a_stage_without_arrays(tmp_path: Path) -> None:
    assert stages({}, journal=MemoryJournal()) == Measured({}, {})
    opened, result = finished(tmp_path, {"census": census, "none": lambda: Measured({}, {}), "spectra": spectra})
    assert list(result.arrays) == ["census_count", "spectra_of"]
    assert len(store.query(opened, "SELECT * FROM records")["stage"]) == 2
    assert json.loads((opened.folder / "result.json").read_text())["dims"]["census_count"] == ["seed", "bits"]
