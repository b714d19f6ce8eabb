"""The command line: exit statuses, one sentence for each mistake, one JSON object, and runs that resume."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from precisionlab.arithmetic.policy import PLACEMENTS
from precisionlab.cli import main as cli
from precisionlab.cli import running, terminal
from precisionlab.runs import store
from tests.cli import fake_experiment


class Said(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as one strict JSON object."""
        return json.loads(self.out, parse_constant=pytest.fail)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modules: dict[str, Any] = {}
    fake_experiment.install(modules)
    placed = fake_experiment.FAKE._replace(name="placed", config=PlacedConfig, full={})
    modules["precisionlab.experiments"].EXPERIMENTS["placed"] = placed
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(running, "_device", lambda: {"device": "none"})
    monkeypatch.setattr(fake_experiment, "calls", [])
    monkeypatch.setattr(fake_experiment, "before_append", [])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("PRECISIONLAB_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, *map(str, capfd.readouterr()))

    return call


def sentence(said: Said, status: int) -> str:
    """The one sentence of a command that failed."""
    assert said.status == status, said
    assert said.out == ""
    last = said.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("precisionlab: ")
    assert "Traceback" not in said.err
    return last


def only_run(root: str = "runs") -> Path:
    (folder,) = (path for path in Path(root).iterdir() if not path.name.startswith("."))
    return folder


# run


def test_run_prints_verdict_claims_table_and_places(say) -> None:
    said = say("run", "fake")
    folder = only_run()
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[0] == "numbers add up"
    assert any("✓" in line and "held" in line and "sum is small" in line for line in lines)
    assert any("✗" in line and "not held" in line and "sum [of all] is large" in line for line in lines)
    assert any("?" in line and "undecided" in line for line in lines)
    assert any(line.split() == ["format", "loss"] for line in lines)
    assert "extra" not in said.out
    assert f"run     {folder}" in lines
    assert f"figure  {folder / 'figure.png'}" in lines
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "chatter" not in said.out
    assert [line for line in said.err.splitlines() if line.startswith("adding")] == ["adding: 1 of 4"]
    assert not list(folder.glob(".*"))


def test_run_without_a_name_is_the_main_question(say) -> None:
    assert say("run", "--json").json["experiment"] == "fake"


def test_json_is_one_strict_object(say) -> None:
    said = say("run", "fake", "--json")
    assert said.status == 0
    assert said.out.count("\n") == 1
    found = said.json
    assert set(found) == {"experiment", "run", "verdict", "claims", "rows"}
    assert found["run"] == str(only_run())
    assert [set(claim) for claim in found["claims"]] == [{"name", "predicted", "measured", "low", "high", "held"}] * 3
    assert found["claims"][1]["measured"] is None  # infinite
    assert [claim["held"] for claim in found["claims"]] == [True, False, None]
    assert [row["format"] for row in found["rows"]] == ["float32", "bfloat16"]
    assert "running fake" in said.err


def test_a_done_run_is_shown_again(say) -> None:
    first = say("run", "fake", "--json")
    second = say("run", "fake", "--json")
    assert first.out == second.out
    assert fake_experiment.calls == [0, 1, 2, 3]
    assert "was run before" in second.err
    third = say("run", "fake", "--json", "--fresh")
    assert third.out == first.out
    assert fake_experiment.calls == [0, 1, 2, 3] * 2


def test_where_settings_come_from_and_which_wins(say, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('segments = 3\nrate = 2\nformats = ["a"]\n')
    (tmp_path / "c.json").write_text('{"segments": 3}')

    def config(*arguments: str) -> dict[str, Any]:
        run = say("run", "--json", *arguments).json["run"]
        return say("show", run, "--json").json["config"]

    default = {"formats": ["float32", "bfloat16"], "segments": 4, "rate": 0.5, "pause": 0.0}
    assert config() == default
    assert config("--quick") == {**default, "segments": 2}
    assert config("--full") == {**default, "segments": 6}
    assert config("--full", "--set", "segments=1") == {**default, "segments": 1}
    assert config("--config", "c.json") == {**default, "segments": 3}
    assert config("--config", "c.toml", "--quick") == {**default, "segments": 2, "rate": 2.0, "formats": ["a"]}
    assert config("--config", "c.toml", "--quick", "--set", "segments=1", "--set", "formats=b,c") == {
        **default,
        "segments": 1,
        "rate": 2.0,
        "formats": ["b", "c"],
    }


@dataclasses.dataclass(frozen=True)
class PlacedConfig(fake_experiment.FakeConfig):
    """A configuration with sites."""

    sites: tuple[str, ...] = ("weights",)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_is_short_for_its_sites(say, placement: str) -> None:
    asked = say("run", "placed", "--json", "--placement", placement, "--set", "segments=1").json["run"]
    sites, config = list(PLACEMENTS[placement]), say("show", asked, "--json").json["config"]
    assert (config["sites"], config["segments"]) == (sites, 1)
    again = say("run", "placed", "--json", "--set", f"sites={','.join(sites)}", "--set", "segments=1")
    assert again.json["run"] == asked
    assert "was run before" in again.err


@pytest.mark.parametrize("way", ["option", "environment"])
def test_where_runs_go(say, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "environment":
        monkeypatch.setenv("PRECISIONLAB_RUNS", "elsewhere/deep")
    option = ["--runs", "elsewhere/deep"] if way == "option" else []
    assert say("run", "--quick", *option).status == 0
    assert only_run("elsewhere/deep").is_dir()
    assert not Path("runs").exists()
    assert len(say("list", "--json", *option).json["runs"]) == 1


@pytest.mark.parametrize("flag", [[], ["--json"]])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "fkae"], 'unknown experiment "fkae"; allowed are fake, placed; did you mean "fake"?'),
        (["run", "fake", "--set", "segmnts=3"], 'unknown key "segmnts"; allowed are formats, segments'),
        (["run", "fake", "--set", "segments=many"], '"segments" is "many", allowed is a whole number'),
        (["run", "fake", "--set", "segments=0"], "segments is 0, allowed is 1 or more"),
        (["run", "fake", "--set", "segments"], "write it as key=value"),
        (["run", "--config", "absent.toml"], "absent.toml cannot be read (no such file or directory)"),
        (["run", "--config", "bad.toml"], "bad.toml is not valid TOML"),
        (["run", "--config", "bad.json"], "bad.json is not valid JSON"),
        (["run", "--config", "list.json"], "list.json holds no table of keys"),
        (["run", "--config", "c.yaml"], "ends in neither .toml nor .json"),
        (["run", "--config", "key.toml"], 'key.toml: unknown key "segmnts"'),
        (["run", "--quik"], "No such option"),
        (["run", "placed", "--placement", "al"], 'unknown placement "al"; allowed are weights, gradients, all; did you mean'),
        (["run", "fake", "--placement", "all"], "--placement: fake has no sites to round; run it without"),
        (["run", "placed", "--placement", "all", "--set", "sites=weights"], "say the same thing; give one of them"),
        (["run", "fake", "--quick", "--full"], "--quick and --full ask for a smaller and a larger version; give one of them"),
        (["run", "placed", "--full"], "--full: placed has no larger version than its default; run it without"),
        (["run", "a", "b"], "unexpected extra argument"),
        (
            ["rnu"],
            'unknown command "rnu"; allowed are compare, forecast, list, report, run, selftest, show; did you mean "run"?',
        ),
        (["show"], "Missing argument 'RUN'"),
        (["report"], "Missing argument 'RUN'"),
        (["report", "latest"], 'no run begins with "latest" under runs: candidates are none'),
        (
            ["report", "x", "--output", "."],
            "--output: . cannot be written (it is a folder); name a file in a folder that exists",
        ),
        (["report", "x", "--output", "no/r.html"], "--output: no/r.html cannot be written (there is no folder"),
        (["show", "latest"], 'no run begins with "latest" under runs: candidates are none'),
    ],
)
def test_wrong_requests_are_one_sentence_and_leave_nothing(
    say, tmp_path: Path, arguments: list[str], words: str, flag: list[str]
) -> None:
    (tmp_path / "bad.toml").write_text("segments = \n")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "key.toml").write_text("segmnts = 3")
    said = say(*arguments, *(flag if arguments != ["rnu"] else []))
    assert words in sentence(said, 2)
    assert said.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_unwritable_folder(say, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        said = say("run", "fake", "--json")
    assert os.strerror(number).lower() in sentence(said, 1)
    assert not any(Path("runs").iterdir())


def test_disk_full_halfway_resumes(say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(segment: int) -> None:
        if segment == 2:
            patch.setattr(os, "fsync", fail)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        fake_experiment.before_append.append(fill)
        assert "no space left on device" in sentence(say("run", "fake"), 1)
    fake_experiment.before_append.clear()
    assert say("run", "fake").status == 0
    assert fake_experiment.calls == [0, 1, 2, 2, 3]


@pytest.mark.parametrize("damage", ["run.json", "segment-00000.parquet", "state-00001.npz"])
def test_damaged_folders_are_named_and_fresh_repairs(say, damage: str) -> None:
    def stop(segment: int) -> None:
        if segment == 2:
            raise KeyboardInterrupt

    fake_experiment.before_append.append(stop)
    assert say("run", "fake").status == 130
    fake_experiment.before_append.clear()
    path = only_run() / damage
    path.write_bytes(path.read_bytes()[:20])
    before = {path.name: path.read_bytes() for path in only_run().iterdir()}
    said = sentence(say("run", "fake", "--json"), 1)
    assert f"{only_run()} is damaged: {damage}" in said
    assert "--fresh" in said
    assert {path.name: path.read_bytes() for path in only_run().iterdir()} == before
    assert say("run", "fake", "--fresh").status == 0


def test_foreign_config(say) -> None:
    say("run", "fake")
    path = only_run() / "run.json"
    record = json.loads(path.read_text())
    record["config"]["rate"] = 0.25
    path.write_text(json.dumps(record))
    assert "belongs to another configuration" in sentence(say("run", "fake"), 1)


def test_a_failed_run_says_so_and_resumes(say) -> None:
    def fail(segment: int) -> None:
        if segment == 3:
            raise FloatingPointError("a number\nwent wrong")

    fake_experiment.before_append.append(fail)
    said = sentence(say("run", "fake", "--json"), 1)
    assert "fake failed: FloatingPointError: a number (traceback in" in said
    assert "went wrong" in (only_run() / "failure.txt").read_text()
    fake_experiment.before_append.clear()
    assert say("run", "fake").status == 0
    assert fake_experiment.calls == [0, 1, 2, 3, 3]
    assert not (only_run() / "failure.txt").exists()


def test_a_request_found_wrong_by_the_experiment_leaves_nothing(say) -> None:
    from precisionlab.runs.configs import ConfigError

    def refuse(_: int) -> None:
        raise ConfigError("formats: no such thing.")

    fake_experiment.before_append.append(refuse)
    assert sentence(say("run", "fake"), 2) == "precisionlab: formats: no such thing."
    assert not any(Path("runs").iterdir())


def test_a_figure_that_fails_does_not_cost_the_result(say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no ink")

    broken = fake_experiment.FAKE._replace(figures={"Sums": fail})
    experiments = sys.modules["precisionlab.experiments"]
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "EXPERIMENTS", {"fake": broken})
        said = say("run", "fake")
    assert said.status == 0
    assert "no ink" in said.err
    assert "figure" not in said.out
    assert "figure.png" in say("run", "fake").out  # drawn when asked again
    assert fake_experiment.calls == [0, 1, 2, 3]


def test_other_versions_are_told(say) -> None:
    say("run", "fake")
    path = only_run() / "run.json"
    record = json.loads(path.read_text())
    record["provenance"]["versions"]["numpy"] = "1.0"
    path.write_text(json.dumps(record))
    assert "was computed with numpy 1.0 (now " in say("run", "fake").err


# Interruption


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("run.json", "result.json")}


def without_moment(folder: Path, name: str) -> dict[str, Any]:
    found = json.loads((folder / name).read_text())
    found.pop("created", None)
    return found


@pytest.mark.sampled(4)
@pytest.mark.parametrize("stops", [[0], [1], [3], [1, 2]])
@pytest.mark.parametrize("halfway", [False, True])
def test_resumed_runs_are_identical(say, monkeypatch: pytest.MonkeyPatch, stops: list[int], halfway: bool) -> None:
    """Stopped before a segment, or between a segment and its state, and asked again."""
    uninterrupted = say("run", "fake", "--json", "--runs", "whole").json
    for stop in stops:
        with monkeypatch.context() as patch:

            def interrupt(segment: int, stop: int = stop, patch: pytest.MonkeyPatch = patch) -> None:
                if segment == stop and halfway:
                    patch.setattr("precisionlab.runs.segments.write_arrays", kill)
                elif segment == stop:
                    kill()

            def kill(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(fake_experiment, "before_append", [interrupt])
            said = sentence(say("run", "fake", "--json", "--runs", "parts"), 130)
            assert f"run the same command again to resume {only_run('parts')}" in said
            assert (only_run("parts") / f"segment-{stop:05d}.parquet").exists() is halfway
    resumed = say("run", "fake", "--json", "--runs", "parts")
    assert ("resuming" in resumed.err) is (stops != [0])
    assert resumed.json | {"run": ""} == uninterrupted | {"run": ""}
    whole, parts = only_run("whole"), only_run("parts")
    assert everything(parts) == everything(whole)
    for name in ("run.json", "result.json"):
        assert without_moment(parts, name) == without_moment(whole, name)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT of this kind")
def test_sigint_and_sigkill(say, tmp_path: Path) -> None:
    code = f"{fake_experiment.BARE}from tests.cli.fake_experiment import main; main()"
    command = [sys.executable, "-c", code, "run", "--json", "--set", "pause=0.2"]
    command += ["--runs", str(tmp_path / "parts")]
    repository = Path(cli.__file__).parents[2]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(pattern: str, process: subprocess.Popen[str]) -> None:
        for _ in range(1200):
            if list((tmp_path / "parts").glob(pattern)) or process.poll() is not None:
                return
            time.sleep(0.05)

    interrupted = start()
    wait_for("*/state-00000.npz", interrupted)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, out) == (130, "")
    assert "run the same command again to resume" in err.splitlines()[-1]
    assert "Traceback" not in err

    killed = start()
    wait_for("*/state-00001.npz", killed)
    killed.kill()
    killed.communicate(timeout=60)

    last = start()
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert "resuming" in err
    whole = say("run", "--json", "--set", "pause=0.2", "--runs", "whole").json["run"]
    (Path(whole) / "figure.png").unlink()
    assert everything(only_run(str(tmp_path / "parts"))) == everything(Path(whole))


# list, show, selftest


def test_list(say) -> None:
    empty = say("list")
    assert (empty.status, empty.out) == (0, "")
    assert "no runs in runs yet" in empty.err
    assert say("list", "--json").json == {"runs": []}
    done = say("run", "--quick", "--json").json["run"]
    part = str(store.open_run("runs", "fake", {"rate": 1.0}, {}).folder)
    Path("runs/0123456789ab").mkdir()
    found = say("list", "--json").json["runs"]
    assert [(item["run"], item["status"]) for item in found] == [
        (done, "done"),
        (part, "new"),
        ("runs/0123456789ab", "damaged"),
    ]
    assert [item["verdict"] for item in found] == ["numbers add up", None, None]
    text = say("list")
    assert text.status == 0
    assert all(Path(item["run"]).name in text.out for item in found)
    assert "has no run.json" in text.err


def test_show(say) -> None:
    ran = say("run", "fake", "--json").json
    name = Path(ran["run"]).name
    for asked in (name, name[:5], "latest", ran["run"]):
        found = say("show", asked, "--json").json
        assert set(found) == {*ran, "config", "provenance"}
        assert {key: found[key] for key in ran} == ran
        assert found["provenance"]["device"] == "none"
    text = say("show", "latest").out
    assert text.startswith("numbers add up\n")
    assert '"segments": 4' in text
    assert f"figure      {ran['run']}/figure.png" in text


def test_show_an_unfinished_run(say) -> None:
    store.open_run("runs", "fake", {"rate": 1.0}, {"device": "x"})
    found = say("show", "latest", "--json").json
    assert (found["verdict"], found["claims"], found["rows"]) == (None, [], [])
    assert (found["config"], found["provenance"]) == ({"rate": 1.0}, {"device": "x"})
    said = say("show", "latest")
    assert said.status == 0
    assert "is not finished" in said.err


def test_sql(say) -> None:
    run = say("run", "--quick", "--json").json["run"]
    query = "SELECT step, loss, 'nan'::float AS none FROM records WHERE step < 2 ORDER BY step"
    found = say("show", "latest", "--sql", query, "--json").json
    assert (found["experiment"], found["run"]) == ("fake", run)
    assert [list(row) for row in found["rows"]] == [["step", "loss", "none"]] * 2
    assert found["rows"][0]["step"] == 0
    assert found["rows"][0]["none"] is None
    assert say("show", "latest", "--sql", query).out.split()[:3] == ["step", "loss", "none"]
    assert "the query cannot be answered" in sentence(say("show", "latest", "--sql", "SELEC"), 2)


def test_tables_are_not_cut_where_nobody_watches(say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    say("run", "--quick")
    long = "x" * 300
    assert long in say("show", "latest", "--sql", f"SELECT step, '{long}' AS a, '{long}' AS b FROM records").out


def test_a_table_that_is_too_wide_goes_on_below_with_its_first_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"quantity_{number}" for number in range(5)]
    rows = [[kind, *(f"{number}.25 [{number}.0, {number}.5]" for number in range(5)), "a word"] for kind in ("one", "other")]
    cells = [["kind", *names, "note"], *rows]
    terminal.show_table(cells, quantities=True)
    piped = capsys.readouterr().out
    assert [line.split()[1:6] for line in piped.splitlines() if line.startswith(" kind")] == [names]
    assert not any(line.endswith(" ") for line in piped.splitlines())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.show_table(cells, quantities=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, shown)) <= 80
    assert [line.split() for line in shown if line.startswith(" kind")] == [
        ["kind", *names[:4]],
        ["kind", *names[4:], "note"],
    ]
    for row in rows:
        assert sum(line.startswith(f" {row[0]} ") for line in shown) == 2
        assert all(any(cell in line for line in shown) for cell in row)


def test_claims_that_are_too_wide_are_records_and_sentences_end_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a share of many words, of which there are so many that no table of eighty columns has room for them"
    cells = [
        ["", "", "claim", "predicted", "measured"],
        ["✓", "held", name, "1", "0.97 [0.9, 1.0]"],
        ["", "this side", name, "this side: 1; that side: 0", "1.0"],
    ]
    verdict = "One world is " + "so " * 40 + "and so.\nThe other is not."
    terminal.show_records(cells)
    terminal.tell(verdict)
    piped = capsys.readouterr().out
    assert sum(name in line for line in piped.splitlines()) == 2
    assert verdict in piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.show_records(cells)
    terminal.tell(verdict)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, shown)) <= 80
    words = " ".join(" ".join(shown).split())
    assert (
        f"✓ held: {name} predicted 1, measured 0.97 [0.9, 1.0] this side: {name} predicted this side: 1; that side: 0," in words
    )
    assert words.endswith("so and so. The other is not.")
    assert shown[-2] == ""  # a line between paragraphs


# report


def test_report_is_a_page_beside_the_run(say) -> None:
    run = say("run", "fake", "--json").json["run"]
    path = Path(run, "report.html")
    said = say("report", "latest")
    assert (said.status, said.out, said.err) == (0, f"report  {path}\n", "")
    page = path.read_text()
    assert page.index("numbers add up") < page.index("sum is small") < page.index("<svg") < page.index("segments")
    assert "Do numbers add up?" in page
    assert ">extra<" not in page  # no column that `run` does not print
    assert f"report      {path}" in say("show", run).out
    other = say("report", run, "--output", "other.html", "--json")
    assert other.json == {"experiment": "fake", "run": run, "report": "other.html"}
    assert Path("other.html").read_bytes() == path.read_bytes()
    assert say("run", "fake", "--fresh").status == 0
    assert not path.exists()


@pytest.mark.parametrize("verb", ["run", "show"])
def test_others_mention_the_report(say, verb: str) -> None:
    said = say("run", "fake")
    said = said if verb == "run" else say("show", "latest")
    assert said.err.splitlines()[-1] == f"as one page, with its figures: precisionlab report {only_run()}"


def test_report_of_an_experiment_that_is_gone_has_no_figures(say) -> None:
    found = store.open_run("runs", "gone", {"rate": 1.0}, {"device": "x"})
    store.finish(found, store.Result("gone", {"rate": 1.0}, {}, {}, rows=({"extra": 1},), verdict="who knows"))
    said = say("report", "latest")
    assert said.status == 0
    assert 'this version knows no experiment "gone"; the report has no figures' in said.err
    page = (found.folder / "report.html").read_text()
    assert "<svg" not in page
    assert ">extra<" in page


def test_report_without_a_figure_that_fails(say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no ink")

    say("run", "fake")
    figures = {"Bad": fail, "Sums": fake_experiment.draw_fake}
    experiments = sys.modules["precisionlab.experiments"]
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"fake": fake_experiment.FAKE._replace(figures=figures)})
    said = say("report", "latest")
    assert said.status == 0
    assert 'note: the figure "Bad" could not be drawn (RuntimeError: no ink); it is left out.' in said.err
    page = (only_run() / "report.html").read_text()
    assert (page.count("<svg"), ">Bad<" in page, ">Sums<" in page) == (1, False, True)


def test_report_of_an_unfinished_run(say) -> None:
    store.open_run("runs", "fake", {"rate": 1.0}, {})
    assert "is not finished; run the same command again to resume it" in sentence(say("report", "latest"), 2)
    assert not (only_run() / "report.html").exists()


def test_report_that_cannot_be_written(say, monkeypatch: pytest.MonkeyPatch) -> None:
    say("run", "fake")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        said = sentence(say("report", "latest"), 1)
    assert "cannot write" in said
    assert "report.html: no space left on device" in said
    assert sorted(path.suffix for path in only_run().iterdir() if "report" in path.name) == []


class Check(NamedTuple):
    name: str
    question: str
    found: str
    ok: bool
    remedy: str


@pytest.mark.parametrize("ok", [True, False])
def test_selftest(say, monkeypatch: pytest.MonkeyPatch, ok: bool) -> None:
    module: Any = types.ModuleType("precisionlab.backend.selftest")
    checks = (
        Check("flush", "Are subnormals kept?", "no", True, "integers"),
        Check("fma", "Fused?", "[yes]", ok, "bits"),
    )
    module.run_checks = lambda: checks
    monkeypatch.setitem(sys.modules, "precisionlab.backend.selftest", module)
    said = say("selftest", "--json")
    assert said.status == (0 if ok else 1)
    assert said.json == {"ok": ok, "checks": [check._asdict() for check in checks]}
    text = say("selftest")
    assert text.status == (0 if ok else 1)
    assert "[yes]" in text.out
    assert ("fma failed" in text.err) is not ok


def test_selftest_that_cannot_run(say, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("precisionlab.backend.selftest")
    monkeypatch.setitem(sys.modules, "precisionlab.backend.selftest", module)
    assert "selftest could not run: AttributeError" in sentence(say("selftest"), 1)


# Help


@pytest.mark.parametrize("verb", [[], ["run"], ["list"], ["show"], ["report"], ["selftest"]])
def test_help(say, verb: list[str]) -> None:
    said = say(*verb, "--help")
    assert said.status == 0
    assert said.out.startswith("Usage: precisionlab")
    assert verb == [] or "--json" in said.out


def test_no_arguments_is_help(say) -> None:
    assert say().out == say("--help").out
    assert say().status == 0


def test_help_loads_nothing_slow() -> None:
    """Past the package's own names, which the library's users want at once."""
    code = fake_experiment.BARE + (
        "from precisionlab.cli import main\n"
        "try:\n"
        "    main.main(['run', '--help'])\n"
        "except SystemExit:\n"
        "    slow = {'jax', 'duckdb', 'pyarrow', 'matplotlib', 'scipy', 'pydantic'} & set(sys.modules)\n"
        "    assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
