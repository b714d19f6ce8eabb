"""Run folders: nothing half-written, nothing lost, and every damage named."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from precisionlab.runs import files, folders, segments, store
from precisionlab.runs.results import Claim, Labelled, Result
from tests.cli.fake_experiment import BARE

CONFIG = {"rate": 0.5, "formats": ("float32", "bfloat16")}


@pytest.fixture
def run(tmp_path: Path) -> store.Run:
    return store.open_run(tmp_path / "runs", "demo", CONFIG, {"versions": {}})


def columns(start: int = 0, rows: int = 3) -> dict[str, np.ndarray]:
    steps = np.arange(start, start + rows)
    return {
        "step": steps,
        "loss": steps / 7,
        "narrow": steps.astype(ml_dtypes.bfloat16),
        "format": np.array(["a", "b", "c"])[steps % 3],
    }


def result(loss: float = 0.5) -> Result:
    return Result(
        "demo",
        {"rate": 0.5, "formats": ["float32", "bfloat16"]},
        {"step": [0, 1], "format": ["a"]},
        {
            "loss": Labelled(("step",), np.array([loss, np.nan])),
            "narrow": Labelled(("format", "step"), np.array([[0.1, -0.0]], ml_dtypes.float8_e5m2)),
        },
        ({"format": "a", "loss": loss, "loss_low": float("nan"), "big": np.float32(np.inf)},),
        (Claim("c", "< 1", loss, float("nan"), float("inf"), None), Claim("d", 1.0, loss, 0.0, 1.0, True)),
        "yes",
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# Names and folders


def test_hash_depends_on_what_is_asked_alone() -> None:
    found = store.config_hash("demo", {"a": 1, "b": (1, 2), "c": float("inf")})
    assert found == store.config_hash("demo", {"c": float("inf"), "b": [1, 2], "a": 1})
    assert len(found) == 12
    assert int(found, 16) >= 0
    others = [("dem", {"a": 1}), ("demo", {"a": 1.0}), ("demo", {"a": True}), ("demo", {"a": 2}), ("demo", {"a": "1"})]
    assert len({store.config_hash(*other) for other in [*others, ("demo", {"a": 1})]}) == 6


def test_open_makes_the_folder_once(tmp_path: Path) -> None:
    first = store.open_run(tmp_path, "demo", CONFIG, {"versions": {"numpy": "1"}})
    again = store.open_run(tmp_path, "demo", {"formats": ["float32", "bfloat16"], "rate": 0.5}, {"versions": {}})
    assert first == again
    assert names(first.folder) == ["run.json"]
    assert first.folder.name == store.config_hash("demo", CONFIG)
    assert first.config == {"rate": 0.5, "formats": ["float32", "bfloat16"]}
    assert set(first.record) == {"experiment", "config", "created", "provenance"}
    assert store.status(first) == "new"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"experiment": "demo", "config": 3}', "\xff\xfe"])
def test_damaged_run_json(run: store.Run, text: str) -> None:
    (run.folder / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(store.RunError, match=rf"{run.folder} is damaged.*--fresh"):
        store.open_run(run.folder.parent, "demo", CONFIG, {})
    with pytest.raises(store.RunError, match="is damaged"):
        store.find_run(run.folder.parent, run.folder.name)


def test_missing_run_json(run: store.Run) -> None:
    store.append_segment(run, columns(), [])
    (run.folder / "run.json").unlink()
    with pytest.raises(store.RunError, match=r"has no run\.json"):
        store.open_run(run.folder.parent, "demo", CONFIG, {})
    store.fresh(run.folder.parent, "demo", CONFIG)
    assert store.status(store.open_run(run.folder.parent, "demo", CONFIG, {})) == "new"


@pytest.mark.parametrize("change", [{"config": {"rate": 0.25}}, {"experiment": "other"}])
def test_foreign_config(run: store.Run, change: dict[str, Any]) -> None:
    files.write_json(run.folder / "run.json", {**run.record, **change})
    with pytest.raises(store.RunError, match="belongs to another configuration"):
        store.open_run(run.folder.parent, "demo", CONFIG, {})


@pytest.mark.parametrize("number", [28, 13, 30])  # disk full, permission denied, read-only
@pytest.mark.parametrize("where", ["replace", "fsync", "mkdir"])
def test_unwritable_root_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str) -> None:
    monkeypatch.setattr(*((Path, "mkdir") if where == "mkdir" else (os, where)), fail_with(number))
    with pytest.raises(store.RunError, match=os.strerror(number).lower()):
        store.open_run(tmp_path, "demo", CONFIG, {})
    assert names(tmp_path) == []


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(store.RunError, match="cannot write"):
        store.open_run(tmp_path / "runs", "demo", CONFIG, {})
    with pytest.raises(store.RunError, match="not a directory"):
        store.list_runs(tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "mine"


def test_fresh_deletes_ours_and_leaves_the_rest(run: store.Run) -> None:
    root = run.folder.parent
    store.append_segment(run, columns(), [np.ones(2)])
    (run.folder / "notes.txt").write_text("mine")
    store.fresh(root, "demo", {"rate": 0.25})
    assert store.status(run) == "partial"
    store.fresh(root, "demo", CONFIG)
    assert names(run.folder) == ["notes.txt"]
    assert store.status(store.open_run(root, "demo", CONFIG, {})) == "new"
    (run.folder / "notes.txt").unlink()
    store.fresh(root, "demo", CONFIG)
    assert not run.folder.exists()


@pytest.mark.parametrize("deleted", range(5))
def test_stopped_in_the_middle_of_fresh(run: store.Run, monkeypatch: pytest.MonkeyPatch, deleted: int) -> None:
    for start in (0, 3):
        store.append_segment(run, columns(start), [np.ones(2)])
    store.finish(run, result())
    left = [deleted]

    def remove(path: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(folders, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            store.fresh(run.folder.parent, "demo", CONFIG)
    again = store.open_run(run.folder.parent, "demo", CONFIG, {})
    assert store.status(again) == ("done" if deleted == 0 else "new")
    if deleted:
        assert store.resume_point(again) == (0, None)
        assert not list(run.folder.glob("segment-*"))


# Finding and listing


def make(root: Path, rate: float, created: str) -> store.Run:
    made = store.open_run(root, "demo", {"rate": rate}, {})
    files.write_json(made.folder / "run.json", {**made.record, "created": created})
    return made


def test_list_is_sorted_by_creation_and_names_damage(tmp_path: Path) -> None:
    made = [make(tmp_path, rate, f"2024-01-0{day}") for rate, day in ((1.0, 3), (2.0, 1), (3.0, 2), (4.0, 4))]
    (made[3].folder / "run.json").write_text("{")
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "0123456789ab").mkdir()
    store.finish(made[0], result())
    assert [found.config["rate"] for found in store.list_runs(tmp_path)] == [2.0, 3.0, 1.0]
    bad = dict(store.damaged_runs(tmp_path))
    assert set(bad) == {made[3].folder, tmp_path / "0123456789ab"}
    assert "not valid JSON" in bad[made[3].folder]
    (made[0].folder / "result.json").write_text("{")
    assert made[0].folder in dict(store.damaged_runs(tmp_path))
    assert store.list_runs(tmp_path / "absent") == []


def test_find(tmp_path: Path) -> None:
    made = [make(tmp_path, rate, f"2024-01-0{day}") for rate, day in ((1.0, 3), (2.0, 1))]
    assert store.find_run(tmp_path, made[1].folder.name).folder == made[1].folder
    assert store.find_run(tmp_path, made[1].folder.name[:6]).folder == made[1].folder
    assert store.find_run(tmp_path, "latest").folder == made[0].folder
    assert store.find_run("elsewhere", str(made[0].folder)).folder == made[0].folder
    for name in ("zzz", ""):
        with pytest.raises(store.RequestError, match=made[0].folder.name):
            store.find_run(tmp_path, name)
    twin = tmp_path / (made[0].folder.name[:4] + "00000000")
    twin.mkdir()
    with pytest.raises(store.RequestError, match=f"several runs begin with.*{twin.name}"):
        store.find_run(tmp_path, made[0].folder.name[:4])
    with pytest.raises(store.RequestError, match="candidates are none"):
        store.find_run(tmp_path / "absent", "latest")


# Segments and states

STATE: list[Any] = [
    np.arange(6.0).reshape(2, 3),
    np.array(3, np.int32),
    np.array([1.5, -0.0, np.nan, np.inf], ml_dtypes.bfloat16),
    np.array([[0.5], [448]], ml_dtypes.float8_e4m3fn),
    np.array(0.5, ml_dtypes.float8_e5m2),
    np.array([1, -2], ml_dtypes.int4),
    np.zeros((0, 3), np.float16),
    np.array([0x7FC00001], np.uint32).view(np.float32),  # a NaN with a payload
    np.arange(12.0).reshape(3, 4)[:, ::2],  # not contiguous
    np.array([True, False]),
]


def test_state_comes_back_bit_for_bit(run: store.Run) -> None:
    store.append_segment(run, columns(), STATE)
    done, state = store.resume_point(run)
    assert done == 1
    assert state is not None
    assert [(a.dtype, a.shape) for a in state] == [(a.dtype, a.shape) for a in STATE]
    assert [a.tobytes() for a in state] == [a.tobytes() for a in STATE]


def test_the_newest_state_alone_stays(run: store.Run) -> None:
    assert store.resume_point(run) == (0, None)
    for number in range(3):
        store.append_segment(run, columns(3 * number), [np.full(2, number)])
    assert names(run.folder) == ["run.json", *(f"segment-0000{i}.parquet" for i in range(3)), "state-00002.npz"]
    assert store.status(run) == "partial"
    done, state = store.resume_point(run)
    assert (done, state[0].tolist() if state else None) == (3, [2, 2])


class Killed(BaseException):
    """Stands for a crash: nothing catches it."""


@pytest.mark.parametrize("crash", range(1, 9))
def test_a_crash_between_any_two_system_calls_is_resumable(run: store.Run, monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    """Appending goes fsync, replace, fsync of the folder for segment and state, then removes the older state."""
    for number in range(2):
        store.append_segment(run, columns(3 * number), [np.full(2, number)])
    left = [crash]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(segments, "remove", counted(segments.remove))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a crash does not tidy up
        if crash <= 7:
            with pytest.raises(Killed):
                store.append_segment(run, columns(6), [np.full(2, 2)])
        else:
            store.append_segment(run, columns(6), [np.full(2, 2)])
    committed = 3 if crash >= 6 else 2
    before = store.query(run, "SELECT step FROM records")["step"]
    np.testing.assert_array_equal(before, np.arange(3 * committed))  # even before anything is cleaned
    done, state = store.resume_point(run)
    assert done == committed
    assert state is not None
    np.testing.assert_array_equal(state[0], np.full(2, committed - 1))
    assert names(run.folder) == [
        "run.json",
        *(f"segment-0000{i}.parquet" for i in range(committed)),
        f"state-0000{committed - 1}.npz",
    ]


@pytest.mark.parametrize("number", [28, 13])
def test_a_full_disk_loses_nothing(run: store.Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store.append_segment(run, columns(), [np.zeros(2)])
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(number))
        with pytest.raises(store.RunError, match=f"cannot write.*{os.strerror(number).lower()}.*same command again"):
            store.append_segment(run, columns(3), [np.ones(2)])
        with pytest.raises(store.RunError, match="cannot write"):
            store.finish(run, result())
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_interruption_removes_the_temporary(run: store.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.append_segment(run, columns(), [])
    assert names(run.folder) == ["run.json"]


@pytest.mark.parametrize("size", [0, 1, 100, -1])
@pytest.mark.parametrize("name", ["segment-00000.parquet", "segment-00001.parquet", "state-00001.npz"])
def test_truncated_files_are_named(run: store.Run, name: str, size: int) -> None:
    for number in range(2):
        store.append_segment(run, columns(3 * number), [np.ones(200)])
    path = run.folder / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(store.RunError, match=rf"{run.folder} is damaged: {name} is.*truncated.*--fresh"):
        store.resume_point(run)
    if name.startswith("segment"):
        with pytest.raises(store.RunError, match="is damaged"):
            store.query(run, "SELECT * FROM records")


def test_a_missing_segment_is_named(run: store.Run) -> None:
    for number in range(2):
        store.append_segment(run, columns(3 * number), [])
    (run.folder / "segment-00000.parquet").unlink()
    for ask in (store.resume_point, lambda run: store.query(run, "SELECT 1")):
        with pytest.raises(store.RunError, match=r"segment-00000\.parquet is missing"):
            ask(run)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"step": np.zeros((2, 2))},
        {"step": np.zeros(2), "loss": np.zeros(3)},
        {"step": np.zeros(3)},
        {**columns(3), "step": np.zeros(3)},
    ],
)
def test_columns_that_do_not_fit_are_refused(run: store.Run, bad: dict[str, np.ndarray]) -> None:
    store.append_segment(run, columns(), [])
    before = names(run.folder)
    with pytest.raises(ValueError, match="append: "):
        store.append_segment(run, bad, [])
    with pytest.raises(ValueError, match="objects"):
        store.append_segment(run, columns(3), [np.array([object()])])
    assert store.resume_point(run)[0] == 1
    assert names(run.folder) == before


# Queries


def test_query(run: store.Run) -> None:
    for number in range(2):
        store.append_segment(run, columns(3 * number), [])
    found = store.query(run, "SELECT * FROM records")
    assert list(found) == ["step", "loss", "narrow", "format"]
    np.testing.assert_array_equal(found["loss"], np.arange(6) / 7)
    np.testing.assert_array_equal(found["narrow"], np.arange(6.0))
    assert found["format"].tolist() == list("abcabc")
    found = store.Journal(run).query("SELECT nullif(step, 1) AS s, nullif(format, 'a') AS f FROM records LIMIT 2")
    np.testing.assert_array_equal(found["s"], [0.0, np.nan])
    assert found["f"].tolist() == [None, "b"]
    assert not any(isinstance(column, np.ma.MaskedArray) for column in found.values())


def test_query_over_several_runs(tmp_path: Path) -> None:
    root = tmp_path / "odd [name] *?'"
    runs = [store.open_run(root, "demo", {"rate": rate}, {}) for rate in (1.0, 2.0, 3.0)]
    store.append_segment(runs[0], columns(), [])
    store.append_segment(runs[1], {"step": np.arange(2), "other": np.ones(2)}, [])
    found = store.query(runs, "SELECT run, count(*) AS n, count(other) AS m FROM records GROUP BY run ORDER BY n")
    assert found["run"].tolist() == [runs[1].folder.name, runs[0].folder.name]
    assert (found["n"].tolist(), found["m"].tolist()) == ([2, 3], [2, 0])


def test_bad_queries_are_sentences(run: store.Run) -> None:
    with pytest.raises(store.RequestError, match="no records"):
        store.query(run, "SELECT 1")
    store.append_segment(run, columns(), [])
    for sql in ("SELEC 1", "SELECT los FROM records", "SELECT 1 FROM nowhere"):
        with pytest.raises(store.RequestError, match="the query cannot be answered") as caught:
            store.query(run, sql)
        assert "\n" not in str(caught.value)


# Results


def test_result_comes_back_whole(run: store.Run) -> None:
    store.append_segment(run, columns(), [np.ones(2)])
    with pytest.raises(store.RequestError, match="not finished"):
        store.load_result(run)
    assert store.verdict(run) is None
    given = result()
    store.finish(run, given)
    assert names(run.folder) == ["DONE", "arrays.npz", "result.json", "run.json", "segment-00000.parquet"]
    assert store.status(run) == "done"
    assert store.verdict(run) == "yes"
    found = store.load_result(run)
    assert (found.experiment, found.config, found.coords) == (given.experiment, given.config, given.coords)
    assert repr(found.claims) == repr(given.claims)  # repr, because NaN is not equal to itself
    assert repr(found.rows) == repr(({"format": "a", "loss": 0.5, "loss_low": np.nan, "big": np.inf},)).replace("np.", "")
    assert {name: (a.dims, a.values.dtype, a.values.tobytes()) for name, a in found.arrays.items()} == {
        name: (a.dims, a.values.dtype, a.values.tobytes()) for name, a in given.arrays.items()
    }
    assert found.provenance == {"versions": {}}
    json.loads((run.folder / "result.json").read_text(), parse_constant=pytest.fail)  # strict JSON on disk too


@pytest.mark.parametrize("name", ["result.json", "arrays.npz"])
@pytest.mark.parametrize("size", [None, 0, 20])
def test_a_damaged_result_is_named(run: store.Run, name: str, size: int | None) -> None:
    store.finish(run, result())
    path = run.folder / name
    path.unlink() if size is None else path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(store.RunError, match=rf"is damaged: {name}"):
        store.load_result(run)


def test_finish_counts_committed_segments_only(run: store.Run) -> None:
    store.append_segment(run, columns(), [np.ones(2)])
    (run.folder / "segment-00001.parquet").write_bytes(b"never committed")
    store.finish(run, result())
    assert len(store.query(run, "SELECT * FROM records")["step"]) == 3


def test_complete_computes_once(run: store.Run) -> None:
    calls = []

    def compute(journal: store.Journal) -> Result:
        calls.append(journal.resume())
        journal.append(columns(), [np.ones(2)])
        return result(len(calls))

    first, second = store.complete(run, compute), store.complete(run, compute)
    assert calls == [(0, None)]
    assert first.rows[0]["loss"] == second.rows[0]["loss"] == 1


def hold(folder: Path, ready: Any, release: Any) -> None:
    with folders.alone(folder):
        ready.set()
        release.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no lock of this kind")
def test_two_processes_do_not_share_a_run(run: store.Run) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run.folder, ready, release))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(store.RunError, match="another process"):
            store.complete(run, lambda _: result())
        with pytest.raises(store.RunError, match="another process"):
            store.fresh(run.folder.parent, "demo", CONFIG)
    finally:
        release.set()
        other.join()
    assert store.complete(run, lambda _: result()).verdict == "yes"


# Provenance


def test_provenance_tells_versions_and_nothing_private() -> None:
    found = store.provenance(device="cpu")
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"precisionlab", "jax", "jaxlib", "optax", "numpy", "ml_dtypes"}
    assert found["device"] == "cpu"
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert os.getcwd() not in text


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert store.provenance()["git"] is None


def test_git_state(tmp_path: Path) -> None:
    from precisionlab.runs.provenance import _git_state

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "code.py"
    source.write_text("1")
    assert _git_state(source) is None
    git("init")
    git("commit", "--allow-empty", "-m", "zero")
    assert _git_state(source) is None  # in a checkout that does not track it
    git("add", "code.py")
    git("commit", "-m", "one")
    assert _git_state(source) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    source.write_text("2")
    assert _git_state(source) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


@pytest.mark.slow
def test_the_host_half_needs_no_jax() -> None:
    """Each module, loaded past the package's own names, leaves JAX out."""
    code = BARE + (
        "import importlib\n"
        "for name in ('results', 'files', 'segments', 'folders', 'provenance', 'store', 'summary', 'plots'):\n"
        "    importlib.import_module(f'precisionlab.runs.{name}')\n"
        "assert not {'jax', 'jaxlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": "Agg"})
