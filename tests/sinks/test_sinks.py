"""Rows of a record against numbers written down by hand; sinks by what they left, read with other readers than theirs."""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from precisionlab.numerics.formats import BFLOAT16, FLOAT8_E4M3FN
from precisionlab.optimizers import StateRecord, master_weights, stagnation, track
from precisionlab.runs import store
from precisionlab.runs.files import RunError
from precisionlab.sinks import (
    COLUMNS,
    OpenSink,
    json_lines,
    parquet,
    record_rows,
    several,
    tensorboard,
    trackio_run,
    wandb_run,
)


def row(step: int = 7, path: str = "layer1/kernel", **others: Any) -> dict[str, Any]:
    blank = {"step": step, "site": "weights", "path": path, "format": None, "rounding": None, "entries": 4, "landed": 1}
    rates = {"stagnated_fraction": 0.75, "lost_mass": None, "descent_quality": 0.5}
    return blank | {"swamped": 3, "underflowed": 0, "zero": 0, "nonfinite": 0, "invisible": None} | rates | others


def tracked(**options: Any) -> Any:
    """A state after one update: of four weights, by 2^-9 at 1 (bfloat16: lost), and of one weight by nothing."""
    params = {"a": jnp.ones(4, jnp.bfloat16), "b": jnp.ones(1)}
    updates = {"a": jnp.array([2.0**-9, 2.0**-9, 2.0**-9, 0.5], jnp.bfloat16), "b": jnp.zeros(1)}
    optimizer = track(optax.identity(), **options)
    return optimizer.update(updates, optimizer.init(params), params)[1]


def nearest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows about the weights as they are stored, and as they would be to nearest."""
    return [found for found in rows if found["site"] == "weights" and found["rounding"] in (None, "nearest_even")]


# Rows of a record.


def test_rows_are_the_record_in_plain_numbers():
    rows = nearest(record_rows(stagnation(tracked(formats=[FLOAT8_E4M3FN]))))
    columns = "step site path format rounding entries landed swamped underflowed zero nonfinite invisible"
    assert list(COLUMNS) == [*columns.split(), "stagnated_fraction", "lost_fraction", "lost_mass", "descent_quality"]
    assert [list(found) for found in rows] == [list(COLUMNS)] * 4
    labels = [(found["step"], found["site"], found["path"], found["format"], found["rounding"]) for found in rows]
    stored, asked = (None, None), ("float8_e4m3fn", "nearest_even")
    assert labels == [(1, "weights", path, *judged) for judged in (stored, asked) for path in ("a", "b")]
    assert all(type(value) in (int, float, str, type(None)) for found in rows for value in found.values())
    mass, lost, square = 0.5 + 3 * 2.0**-9, 3 * 2.0**-9, 0.25 + 3 * 2.0**-18
    counts = {"entries": 4, "landed": 1, "swamped": 3, "underflowed": 0, "zero": 0, "nonfinite": 0, "invisible": None}
    assert {name: rows[0][name] for name in counts} == counts
    assert rows[0]["stagnated_fraction"] == 0.75
    assert rows[0]["lost_mass"] == np.float32(lost) / np.float32(mass)
    assert rows[0]["descent_quality"] == pytest.approx(0.25 / square, rel=1e-6)
    # Nothing was asked of b: its rates have no value.
    assert (rows[1]["zero"], rows[1]["stagnated_fraction"], rows[1]["lost_mass"], rows[1]["descent_quality"]) == (
        1,
        *[None] * 3,
    )
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_rows_without_detail_hold_counts():
    found = record_rows(stagnation(tracked(detail=False)))[0]
    assert (found["swamped"], found["stagnated_fraction"], found["lost_mass"], found["descent_quality"]) == (
        3,
        0.75,
        None,
        None,
    )


def test_a_number_that_is_not_finite_is_none():
    record = stagnation(tracked())
    sums = dict.fromkeys(("update_mass", "stagnated_mass", "moved_along", "update_square"), jnp.float32(jnp.inf))
    for given in (sums, sums | {"update_square": jnp.float32(1)}):
        found = record_rows(record._replace(tally={"a": record.tally["a"]._replace(**given)}))[0]
        assert (found["lost_mass"], found["descent_quality"], found["stagnated_fraction"]) == (None, None, 0.75)


def test_what_is_told_of_the_state_is_not_told_of_the_weights():
    seen = stagnation(tracked(formats=[FLOAT8_E4M3FN]))
    own = StateRecord(seen.tally, seen.what_if, seen.stochastic, seen.compensated, recent=None, kept=None, told=None)
    rows = record_rows(seen._replace(state=own))
    of_weights, of_state = ([found for found in rows if found["site"] == site] for site in ("weights", "state"))
    assert of_weights == record_rows(seen)
    assert of_state == [found | {"site": "state"} for found in of_weights]


@pytest.mark.slow
def test_every_site_and_rounding_of_a_record_has_its_rows():
    optimizer, params = track(optax.trace(0.9), [BFLOAT16], state=True), {"w": jnp.ones(2)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    labels = [tuple(found[key] for key in ("site", "path", "format", "rounding")) for found in record_rows(stagnation(state))]
    ways = [(None, None), *(("bfloat16", rounding) for rounding in ("nearest_even", "stochastic", "compensated"))]
    assert labels == [(site, path, *way) for site, path in (("weights", "w"), ("state", "trace/w")) for way in ways]


@pytest.mark.slow
def test_what_something_wider_has_kept_is_invisible():
    optimizer, params = track(master_weights(optax.sgd(1e-3), BFLOAT16)), {"w": jnp.ones(2)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    (row,) = record_rows(stagnation(state))
    assert (row["swamped"], row["invisible"], row["stagnated_fraction"], row["lost_fraction"]) == (2, 2, 1.0, 0.0)


def test_the_step_can_be_given_and_a_record_that_has_not_looked_has_no_rows():
    record = stagnation(tracked())
    assert {found["step"] for found in record_rows(record, step=jnp.int32(40))} == {40}
    assert {found["step"] for found in record_rows(record, step=np.int64(41))} == {41}
    waiting = stagnation(track(optax.identity(), every=2).init({"a": jnp.ones(3)}))
    assert record_rows(waiting) == record_rows(waiting, step=40) == []


def test_everything_is_fetched_at_once_and_ages_are_not(monkeypatch):
    state = tracked(formats=[BFLOAT16, FLOAT8_E4M3FN], ages=True)
    fetched = []
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(jax.tree.leaves(tree)) or fetch(tree))
    record_rows(stagnation(state))
    assert len(fetched) == 1
    assert {leaf.shape for leaf in fetched[0]} == {()}


@pytest.mark.parametrize(
    ("given", "step", "error", "says"),
    [
        (lambda _: {"tally": 1}, None, TypeError, r"expected the record of optimizers.track, got dict; .*stagnation\(opt"),
        (lambda _: tracked(), None, TypeError, r"got TrackState; take it out of the optimizer's state"),
        (lambda _: tracked().record, None, TypeError, r"where a Tally belongs; pass what stagnation\("),
        (
            lambda record: record._replace(tally={"a": {"b": record.tally["a"]}, "a/b": record.tally["b"]}),
            None,
            ValueError,
            "a/b",
        ),
        (lambda record: jax.tree.map(lambda x: x[None], record), None, ValueError, r"the step has shape \(1,\).*x\[0\]"),
        (
            lambda record: record._replace(tally=jax.tree.map(lambda x: x[None], record.tally)),
            None,
            ValueError,
            r'tally of "a" has shape \(1,\)',
        ),
        (lambda record: record, 1.5, TypeError, r"step must be a whole number, such as 100; got 1.5"),
        (lambda record: record, True, TypeError, "got True"),
        (lambda record: record, jnp.ones(2, jnp.int32), TypeError, "whole number"),
    ],
)
def test_what_is_no_record_is_refused(given, step, error, says):
    with pytest.raises(error, match=says) as caught:
        record_rows(given(stagnation(tracked())), step=step)
    assert str(caught.value).startswith("record_rows: ")


def test_a_traced_record_is_refused():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda state: record_rows(stagnation(state)))(tracked())


# The protocol.


def test_a_sink_closes_once_and_says_so_afterwards():
    calls: list[str] = []
    with OpenSink("somewhere", lambda _: calls.append("write"), lambda: calls.append("close")) as sink:
        sink.write([row()])
        sink.write([])
        sink.write(iter([row()]))
    sink.close()
    assert calls == ["write", "write", "close"]
    assert repr(sink) == "<closed sink somewhere>"
    with pytest.raises(ValueError, match=r"^somewhere: this sink is closed; write before close\(\)"):
        sink.write([row()])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (stagnation(tracked()), "got Record"),
        (row(), "got dict"),
        ([3], "got int among them"),
        ([{"step": 1, "path": "w", "format": None}], "got a row without site, rounding"),
        ([row(loss=jnp.float32(1))], r"the column 'loss' holds ArrayImpl; .* float\(\)"),
        ([row() | {3: 1}], "the column 3 holds int"),
    ],
)
def test_what_is_no_rows_is_refused(rows, says):
    seen: list[Any] = []
    with pytest.raises(TypeError, match=f"^a list: .*{says}"):
        OpenSink("a list", seen.extend, lambda: None).write(rows)
    assert not seen


def test_several_sinks_get_the_same_rows_and_all_close():
    class Own:
        def __init__(self, broken=False):
            self.rows, self.closed, self.broken = [], 0, broken

        def write(self, rows):
            self.rows += rows

        def close(self):
            self.closed += 1
            if self.broken:
                raise OSError("the disk is gone")

    first, second, third = Own(), Own(broken=True), Own()
    all_three = several(first, second, third)
    all_three.write([row()])
    with pytest.raises(OSError, match="the disk is gone"):
        all_three.close()
    assert first.rows == second.rows == third.rows == [row()]
    assert (first.closed, second.closed, third.closed) == (1, 1, 1)
    with pytest.raises(TypeError, match=r"^several: expected sinks, such as json_lines\(path\), .* got \[\]"):
        several(second, [])


# JSON lines.


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_are_added_to(tmp_path):
    path = tmp_path / "training.jsonl"
    for step in (1, 2):
        with json_lines(path) as sink:
            sink.write([row(step), row(step, "b", seed=3, loss=float("nan"))])
            assert len(lines(path)) == 2 * step  # at once
    assert lines(path) == [kept for step in (1, 2) for kept in (row(step), row(step, "b", seed=3, loss=None))]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ('{"step": 1}\n{"step": 2, "pa', ['{"step": 1}']),
        ('{"step', []),
        ('{"step": 1}\n{"step": 2}', ['{"step": 1}', '{"step": 2}']),
        ('{"step": 1}\n', ['{"step": 1}']),
        ("", []),
    ],
)
def test_a_half_line_of_an_interrupted_run_is_cut_off(tmp_path, left, kept):
    path = tmp_path / "training.jsonl"
    path.write_text(left)
    with json_lines(str(path)) as sink:
        sink.write([row()])
    assert path.read_text().splitlines() == [*kept, json.dumps(row())]


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x93NUMPY", b"[1,\n2"])
def test_a_file_of_another_kind_is_left_alone(tmp_path, content):
    path = tmp_path / "weights.npy"
    path.write_bytes(content)
    with pytest.raises(RunError, match="does not end in a line of JSON, and nothing was changed in it"):
        json_lines(path)
    assert path.read_bytes() == content


def test_what_cannot_be_written_in_full_is_taken_back(tmp_path):
    path = tmp_path / "training.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with json_lines(path) as sink:
        sink.write([row(1)])
        try:  # the system takes a part of the second write, and no more
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
            with pytest.raises(RunError, match=r"training.jsonl\): cannot write there \(file too large\)"):
                sink.write([row(2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert lines(path) == [row(1)]
        sink.write([row(3)])
    assert lines(path) == [row(1), row(3)]


@pytest.mark.parametrize(("name", "why"), [("no/such/folder.jsonl", "no such file"), (".", "is a directory"), ("a\0b", "null")])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name, why):
    with pytest.raises(RunError, match=rf"^json_lines\(.*: cannot write there \(.*{why}.*\); .* name another path"):
        json_lines(f"{tmp_path}/{name}")


def test_odd_names_survive(tmp_path):
    odd = [row(path="линейный/~/w\n\ud800 '\"")]
    with json_lines(tmp_path / "a.jsonl") as sink:
        sink.write(odd)
    assert lines(tmp_path / "a.jsonl") == odd


# The store.


def test_rows_in_the_store_answer_sql(tmp_path):
    asked = row(format="bfloat16", rounding="nearest_even")
    with parquet(tmp_path, {"lr": 1e-3}, rows_a_segment=1) as sink:
        sink.write([row(1), row(1, lost_mass=0.25)])
        sink.write([row(2, lost_mass=0.5, invisible=3), asked | {"step": 2}])
    found = store.find_run(tmp_path, "latest")
    assert (found.experiment, found.config, store.status(found)) == ("track", {"lr": 1e-3}, "partial")
    assert str(found.folder) in sink.where
    kept = store.query(found, "SELECT * FROM records")
    assert list(kept) == list(row())
    assert kept["step"].tolist() == [1, 1, 2, 2]
    assert kept["format"].tolist() == ["", "", "", "bfloat16"]
    assert np.array_equal(kept["lost_mass"], [np.nan, 0.25, 0.5, np.nan], equal_nan=True)
    assert np.array_equal(kept["invisible"], [np.nan, np.nan, 3, np.nan], equal_nan=True)
    kinds = {name: column.dtype.kind for name, column in kept.items()}
    assert (kinds["landed"], kinds["step"], kinds["lost_mass"], kinds["invisible"]) == ("i", "i", "f", "f")
    schemas = {pq.read_schema(segment) for segment in found.folder.glob("segment-*.parquet")}
    assert len(schemas) == 1


def test_the_command_line_shows_the_store(tmp_path):
    from precisionlab.cli.main import cli

    with parquet(tmp_path) as sink:
        sink.write(record_rows(stagnation(tracked(formats=[FLOAT8_E4M3FN]))))
    sql = "SELECT path, sum(swamped)::INT AS swamped FROM records WHERE format = '' GROUP BY path ORDER BY path"
    shown = CliRunner().invoke(cli, ["show", "latest", "--runs", str(tmp_path), "--sql", sql, "--json"])
    assert json.loads(shown.stdout)["rows"] == [{"path": "a", "swamped": 3}, {"path": "b", "swamped": 0}]
    listed = CliRunner().invoke(cli, ["list", "--runs", str(tmp_path), "--json"])
    assert [(run["experiment"], run["status"]) for run in json.loads(listed.stdout)["runs"]] == [("track", "partial")]


def segments(root: Path) -> int:
    return len(list(root.glob("*/segment-*.parquet")))


def test_segments_gather_rows_and_the_same_configuration_goes_on(tmp_path):
    with parquet(tmp_path, rows_a_segment=3) as sink:
        for count, step in ((1, 1), (1, 2), (1, 3), (2, 4), (2, 5)):  # the first at once, then three rows together
            sink.write([row(step)])
            assert segments(tmp_path) == count
    assert segments(tmp_path) == 3

    def interrupted():
        with parquet(tmp_path) as sink:
            sink.write([row(6)])
            sink.write([row(7)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    found = store.query(store.find_run(tmp_path, "latest"), "SELECT step FROM records")
    assert found["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_two_sinks_cannot_write_to_one_run(tmp_path):
    with parquet(tmp_path), pytest.raises(RunError, match="another process is computing the run"):
        parquet(tmp_path)
    parquet(tmp_path).close()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row(), row(seed=1)], "every row must have the columns of the first"),
        ([row(landed=None)], "the column landed holds whole numbers; got None"),
        ([row(lost_mass="much")], "the column lost_mass holds numbers or None; got 'much'; give every column one kind"),
        ([row(note="a"), row(note=3)], "the column note holds text or None; got 3"),
        ([row(path="\ud800")], "which is no valid text"),
    ],
)
def test_columns_of_mixed_kinds_are_refused(tmp_path, rows, says):
    with parquet(tmp_path) as sink:
        sink.write([row(note="a")]) if "note" in rows[0] else sink.write([row()])
        with pytest.raises(ValueError, match=says):
            sink.write(rows)
    assert segments(tmp_path) == 1


def test_columns_unlike_those_of_an_older_run_are_refused_at_once(tmp_path):
    with parquet(tmp_path) as sink:
        sink.write([row()])
    sink = parquet(tmp_path)
    with pytest.raises(ValueError, match="every segment must have the columns of the first one"):
        sink.write([row(seed=1)])
    with pytest.raises(ValueError, match="every segment"):
        sink.close()
    parquet(tmp_path).close()  # the lock is gone


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        (({"lr": jnp.float32(1)},), {}, TypeError, "^parquet: config must hold what JSON can spell"),
        (("lr",), {}, TypeError, "^parquet: config must hold what JSON can spell"),
        ((), {"rows_a_segment": 0}, ValueError, "^parquet: rows_a_segment must be a whole number of at least 1; got 0"),
        ((), {"rows_a_segment": True}, ValueError, "got True"),
    ],
)
def test_what_names_no_run_is_refused(tmp_path, arguments, options, error, says):
    with pytest.raises(error, match=says):
        parquet(tmp_path, *arguments, **options)
    assert not any(tmp_path.iterdir())


def test_a_finished_run_and_an_impossible_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for root, why in (("file", "cannot write"), ("a\0b", "null")):
        with pytest.raises(RunError, match=why):
            parquet(f"{tmp_path}/{root}")
    parquet(tmp_path / "runs").close()
    (next((tmp_path / "runs").iterdir()) / "DONE").write_text("")
    with pytest.raises(RunError, match="this run is finished"):
        parquet(tmp_path / "runs")


# Curves.


def events(folder: Path) -> list[tuple[int, str, float]]:
    """The scalars of all event files: TFRecords, whose checksums are checked, read without a reader of the library."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            size, header_crc = struct.unpack("<QI", data[:12])
            body, (body_crc,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
            assert (header_crc, body_crc) == (masked(data[:8]), masked(body))
            data, event = data[16 + size :], Event.FromString(body)
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_reads_what_was_written(tmp_path):
    asked = row(8, format="bfloat16", rounding="stochastic", stagnated_fraction=0.25, descent_quality=None)
    with tensorboard(tmp_path / "new" / "folder") as sink:
        sink.write([row(7), row(7, "")])
        written = events(tmp_path / "new" / "folder")
        sink.write([asked])
    place = "stagnation/weights"
    assert written == [
        (7, f"{place}/layer1/kernel/stagnated_fraction", 0.75),
        (7, f"{place}/layer1/kernel/descent_quality", 0.5),
        (7, f"{place}/stagnated_fraction", 0.75),
        (7, f"{place}/descent_quality", 0.5),
    ]
    after = events(tmp_path / "new" / "folder")
    assert after == [*written, (8, f"{place}/layer1/kernel/bfloat16/stochastic/stagnated_fraction", 0.25)]


def test_every_sink_has_an_event_file_of_its_own(tmp_path):
    for step in (1, 2, 3):  # within one second, which is what the library tells its files apart by
        with tensorboard(tmp_path, columns="landed", prefix="gan/actor") as sink:
            sink.write([row(step)])
    assert sorted(events(tmp_path)) == [(step, "gan/actor/weights/layer1/kernel/landed", 1.0) for step in (1, 2, 3)]


def test_odd_characters_become_underscores_unless_that_confuses(tmp_path):
    with tensorboard(tmp_path, columns=["landed"]) as sink:
        sink.write([row(path="linear/~/w b\n\ud800é")])
        assert events(tmp_path) == [(7, "stagnation/weights/linear/_/w_b__é/landed", 1.0)]
        with pytest.raises(ValueError, match=r"'stagnation/weights/a b' and .*/a~b' would both be drawn as .*/a_b'"):
            sink.write([row(path="a b"), row(path="a~b")])
        sink.write([row(1, path="a b"), row(2, path="a b")])
    assert len(events(tmp_path)) == 3


def test_a_full_disk_is_an_error_where_it_happens(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = tensorboard(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
        with pytest.raises(RunError, match=r"^tensorboard\(.*: cannot write there \(file too large\)"):
            sink.write([row()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sink.close()


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^tensorboard\(.*: cannot write there \(.*\); .* name another folder"):
        tensorboard(f"{tmp_path}/{name}")


class StandIn:
    """A run that remembers what it was told, with the signatures of wandb 0.31 and trackio 0.43."""

    def __init__(self):
        self.told: list[Any] = []

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.told.append((data, step))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.told.append((name, step_metric))


def test_runs_of_others_are_told_names_numbers_and_steps():
    place = "stagnation/weights/layer1/kernel"
    numbers = {f"{place}/stagnated_fraction": 0.75, f"{place}/descent_quality": 0.5}
    weights_and_biases, trackio = StandIn(), StandIn()
    with several(wandb_run(weights_and_biases), trackio_run(trackio)) as sink:
        sink.write([row(7), row(8)])
        sink.write([row(9, stagnated_fraction=None, descent_quality=None)])  # nothing to tell
    assert trackio.told == [(numbers, 7), (numbers, 8)]
    axis = "stagnation/step"
    assert weights_and_biases.told == [("stagnation/*", axis), ({axis: 7, **numbers}, None), ({axis: 8, **numbers}, None)]


@pytest.mark.parametrize("make", [wandb_run, trackio_run])
@pytest.mark.parametrize("run", [None, "my-project", StandIn])
def test_what_is_no_run_is_refused(make, run):
    with pytest.raises(TypeError, match=rf"^{make.__name__}: expected the run that \w+.init\(...\) returned, with log"):
        make(run)


@pytest.mark.parametrize("prefix", ["", "a b", "/a", "a/", "a\n", None])
def test_a_prefix_that_names_nothing_is_refused(prefix):
    with pytest.raises(ValueError, match=r"^trackio_run: prefix must be letters, digits and - _"):
        trackio_run(StandIn(), prefix=prefix)


def test_a_column_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"columns must be some of entries, landed, .*; got 'path'"):
        trackio_run(StandIn(), columns=["lost_mass", "path"])


def alone(script: str, folder: Path) -> str:
    """What a script prints in a process of its own, with warnings as errors, a home in `folder` and no network addresses."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "JAX_PLATFORMS": "cpu",
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(folder),
        "PYTHONPATH": str(Path(sys.modules["precisionlab"].__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ROWS = [row(7), row(8, format="bfloat16", rounding="nearest_even", lost_mass=0.25)]
NAMES = ("stagnation/weights/layer1/kernel", "stagnation/weights/layer1/kernel/bfloat16/nearest_even")


@pytest.mark.slow
def test_weights_and_biases_keeps_the_curves(tmp_path):
    script = f"""
import wandb
from precisionlab.sinks import wandb_run
run = wandb.init(project="p")
run.log({{"loss": 1.0}})
with wandb_run(run) as sink:
    sink.write({ROWS})
run.log({{"loss": 2.0}})
run.finish()
"""
    alone(script, tmp_path)
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    script = f"""
import json, pathlib, struct
from wandb.proto.wandb_internal_pb2 import Record
data, at, part = pathlib.Path({str(kept)!r}).read_bytes(), 7, b""
while at + 7 <= len(data):  # a log of LevelDB: chunks of records in blocks of 32 KiB
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    _, size, kind = struct.unpack("<IHB", data[at : at + 7])
    part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
    if kind in (1, 4):
        record, part = Record.FromString(part), b""
        if record.metric.glob_name:
            print(json.dumps([record.metric.glob_name, record.metric.step_metric]))
        named = {{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}}
        if named:
            print(json.dumps({{name: value for name, value in named.items() if name[0] != "_"}}))
"""
    assert [json.loads(line) for line in alone(script, tmp_path).splitlines()] == [
        {"loss": 1.0},
        ["stagnation/*", "stagnation/step"],
        {"stagnation/step": 7, f"{NAMES[0]}/stagnated_fraction": 0.75, f"{NAMES[0]}/descent_quality": 0.5},
        {
            "stagnation/step": 8,
            f"{NAMES[1]}/stagnated_fraction": 0.75,
            f"{NAMES[1]}/lost_mass": 0.25,
            f"{NAMES[1]}/descent_quality": 0.5,
        },
        {"loss": 2.0},
    ]


@pytest.mark.slow
def test_trackio_keeps_the_curves(tmp_path):
    script = f"""
import contextlib, io, json, trackio
from precisionlab.sinks import several, trackio_run
with contextlib.redirect_stdout(io.StringIO()):
    run = trackio.init(project="p", name="r", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    with several(trackio_run(run), trackio_run(trackio, prefix="module")) as sink:
        sink.write({ROWS})
    trackio.finish()
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("p", "r")))
"""
    found = json.loads(alone(script, tmp_path).splitlines()[-1])
    for entry in found:
        entry.pop("timestamp")
    ours = [entry for entry in found if any(name.startswith("stagnation") for name in entry)]
    assert ours == [
        {"step": 7, f"{NAMES[0]}/stagnated_fraction": 0.75, f"{NAMES[0]}/descent_quality": 0.5},
        {
            "step": 8,
            f"{NAMES[1]}/stagnated_fraction": 0.75,
            f"{NAMES[1]}/lost_mass": 0.25,
            f"{NAMES[1]}/descent_quality": 0.5,
        },
    ]
    assert [entry["step"] for entry in found if entry not in ours] == [7, 8]


# What is loaded, and when.


def test_nothing_is_loaded_before_a_sink_is_made(tmp_path):
    heavy = ("tensorboardX", "wandb", "trackio", "pyarrow", "duckdb")
    script = f"import sys, precisionlab.sinks\nprint([name for name in {heavy} if name in sys.modules])"
    assert alone(script, tmp_path) == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(("make", "library"), [("tensorboard", "tensorboardX"), ("parquet", "pyarrow"), ("parquet", "duckdb")])
def test_a_library_that_is_missing_is_named(tmp_path, make, library):
    script = f"""
import sys, precisionlab.sinks
sys.modules[{library!r}] = None
try:
    precisionlab.sinks.{make}("here")
except ImportError as error:
    print(error)
"""
    said = alone(script, tmp_path)
    assert said.startswith(f"{make}: ")
    assert library in said
    assert said.endswith("; run pip install 'precisionlab[sinks]'.\n")
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_a_loop_writes_everywhere(tmp_path):
    optimizer, params = track(optax.sgd(2.0**-10), [FLOAT8_E4M3FN], every=2), {"w": jnp.ones((2, 3), jnp.bfloat16)}
    state = optimizer.init(params)
    with several(json_lines(tmp_path / "a.jsonl"), parquet(tmp_path / "runs"), tensorboard(tmp_path / "events")) as sink:
        for step in range(1, 5):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
            if step % 2 == 0:
                sink.write(nearest(record_rows(stagnation(state))))
    assert [(kept["step"], kept["format"], kept["swamped"]) for kept in lines(tmp_path / "a.jsonl")] == [
        (2, None, 6),
        (2, "float8_e4m3fn", 6),
        (4, None, 6),
        (4, "float8_e4m3fn", 6),
    ]
    kept = store.query(store.find_run(tmp_path / "runs", "latest"), "SELECT count(*) AS n FROM records")
    assert kept["n"].tolist() == [4]
    assert len(events(tmp_path / "events")) == 2 * (3 + 1)
