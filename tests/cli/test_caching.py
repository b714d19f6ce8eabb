"""Programs kept beside the runs: the same bits with and without, whatever has become of the folder."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import precisionlab as pl
from precisionlab.cli import caching, running
from precisionlab.cli import main as cli
from precisionlab.runs.results import Labelled, Result
from tests.cli import fake_experiment

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
during: list[Callable[[], None]] = []  # what a test wants to happen after the first program


def compiling(config: fake_experiment.FakeConfig, *, journal: Any, progress: Any) -> Result:
    """An experiment of two programs, with a rounding of each kind."""
    del journal, progress

    @jax.jit
    def forward(w: jax.Array) -> jax.Array:
        return pl.round_to(jnp.tanh(w @ w), pl.FLOAT8_E4M3FN)

    @jax.jit
    def land(w: jax.Array) -> jax.Array:
        return pl.round_to(w * 1.0001, pl.BFLOAT16, pl.stochastic, key=jax.random.key(1))

    found = np.asarray(forward(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8) * config.rate))
    for hook in during:
        hook()
    landed = Labelled(("entry",), np.asarray(land(found)).ravel())
    rows = ({"loss": float(landed.values.sum())},)
    return Result("fake", {}, {"entry": range(64)}, {"landed": landed}, rows=rows, verdict="compiled")


class Ran(NamedTuple):
    """What one run left behind: the answer, what was told, the bytes of the arrays, and what the cache was asked."""

    answer: dict[str, Any]
    err: str
    arrays: bytes
    programs: Counter[str]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As a process begins: no cache named. What these tests have set is put back after each."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()
    modules: dict[str, Any] = {}
    fake_experiment.install(modules, fake_experiment.FAKE._replace(run=compiling, figures={}))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(running, "_device", lambda: {"device": "none"})
    monkeypatch.delenv("PRECISIONLAB_NO_CACHE", raising=False)
    monkeypatch.setitem(globals(), "during", [])
    monkeypatch.chdir(tmp_path)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    seen: Counter[str] = Counter()

    def hear(event: str, **_: Any) -> None:
        if event.startswith("/jax/compilation_cache/cache_"):
            seen[event.removeprefix("/jax/compilation_cache/cache_")] += 1

    def call(*arguments: str) -> Ran:
        seen.clear()
        jax.clear_caches()
        with pytest.raises(SystemExit) as ended:
            cli.main(("run", "--fresh", "--json", *arguments))
        said = capfd.readouterr()
        assert ended.value.code == 0, said
        assert said.out.count("\n") == 1
        assert "Traceback" not in said.err
        (folder,) = (path for path in Path("runs").iterdir() if not path.name.startswith("."))
        return Ran(json.loads(said.out), said.err, (folder / "arrays.npz").read_bytes(), Counter(seen))

    jax.monitoring.register_event_listener(hear)
    yield call
    jax.monitoring.unregister_event_listener(hear)


def kept() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("runs").glob(".compiled/*/*")}


def test_a_second_run_compiles_nothing_and_finds_the_same_bits(run) -> None:
    plain = run("--no-cache")
    assert (plain.programs, kept()) == (Counter(), {})
    first = run()
    assert first.programs["misses"] == len(kept()) >= 2
    assert first.programs["hits"] == 0
    files = kept()
    second = run()
    assert second.programs == {"hits": first.programs["misses"]}
    assert kept() == files
    assert plain[:3] == first[:3] == second[:3]
    (place,) = Path("runs").glob(".compiled/*")
    assert place.stat().st_mode & 0o077 == 0


def test_other_numbers_in_the_same_programs(run, capfd: pytest.CaptureFixture[str]) -> None:
    first = run()
    shutil.rmtree(first.answer["run"])
    other = run("--set", "rate=0.25")
    assert other.programs == {"hits": first.programs["misses"]}
    assert other.arrays != first.arrays
    for verb in (["list"], ["show", "latest"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*verb, "--json"])
        assert ended.value.code == 0
        out = capfd.readouterr().out
        assert "compiled/" not in out
        assert [found["run"] for found in json.loads(out).get("runs", [])] in ([], [other.answer["run"]])


def test_settings_are_put_back(run) -> None:
    def settings() -> list[Any]:
        return [getattr(jax.config, name) for name in SETTINGS]

    before = settings()
    run()
    run("--no-cache")
    assert settings() == before

    def fail() -> None:
        assert settings() != before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caching.programs_kept(Path("runs")):
        fail()
    assert settings() == before


@pytest.mark.parametrize("given", ["1", "0", "perhaps"])
def test_the_switch_is_an_environment_variable_too(run, capfd, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("PRECISIONLAB_NO_CACHE", given)
    if given == "perhaps":
        with pytest.raises(SystemExit) as ended:
            cli.main(["run"])
        assert ended.value.code == 2
        assert "'perhaps' is not a valid boolean" in capfd.readouterr().err
        return
    run()
    assert bool(kept()) is (given == "0")


def test_a_cache_of_one_s_own_stays(run) -> None:
    jax.config.update("jax_compilation_cache_dir", str(Path("mine").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    own = run()
    assert own.programs["misses"] == len(list(Path("mine").iterdir())) >= 2
    assert not Path("runs/.compiled").exists()
    assert run("--no-cache").programs == {}


def test_who_has_turned_caches_off_gets_none(run) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    assert run().programs == {}
    assert not Path("runs/.compiled").exists()


def test_where_nothing_is_compiled_nothing_is_left() -> None:
    with caching.programs_kept(Path("runs")):
        pass
    assert not Path("runs/.compiled").exists()


@pytest.mark.parametrize("damage", ["empty", "cut off", "other bytes", "a folder"])
def test_damaged_programs_are_compiled_again(run, damage: str) -> None:
    first = run()
    for path in Path("runs").glob(".compiled/*/*"):
        whole = path.read_bytes()
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        else:
            path.write_bytes({"empty": b"", "cut off": whole[: len(whole) // 2], "other bytes": whole[::-1]}[damage])
    second = run()
    assert second[:3] == first[:3]
    if damage != "a folder":
        assert second.programs == first.programs
        assert run().programs == {"hits": first.programs["misses"]}


@pytest.mark.parametrize("trouble", ["a file", "a folder of somebody else", "denied"])
def test_a_folder_that_cannot_be_used_is_one_sentence(run, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    plain = run("--no-cache")
    if trouble == "a file":
        Path("runs/.compiled").write_text("mine")
        reason = os.strerror(errno.ENOTDIR).lower()
    elif trouble == "denied":
        monkeypatch.setattr(os, "access", lambda path, *_: ".compiled" not in str(path))
        reason = "permission denied"
    else:
        monkeypatch.setattr(os, "getuid", lambda: Path("runs").stat().st_uid + 1)
        reason = "it belongs to somebody else"
    found = run()
    assert found[0] == plain[0]
    assert found.arrays == plain.arrays
    (note,) = [line for line in found.err.splitlines() if line.startswith("note")]
    assert "compiled programs are not kept in" in note
    assert f"({reason})" in note
    assert len(found.err.splitlines()) == len(plain.err.splitlines()) + 1
    assert found.programs == {}


def test_programs_that_cannot_be_written_are_one_sentence(run) -> None:
    plain = run("--no-cache")

    def fill() -> None:
        (folder,) = Path("runs").glob(".compiled/*")
        shutil.rmtree(folder)
        folder.write_text("")

    during.append(fill)
    found = run()
    assert found[0] == plain[0]
    assert found.arrays == plain.arrays
    (note,) = [line for line in found.err.splitlines() if line.startswith("note")]
    assert "of the compiled programs 1 could not be kept in" in note
    assert os.strerror(errno.ENOTDIR) in note


def test_other_warnings_are_heard_as_ever(run) -> None:
    during.append(lambda: warnings.warn("something else", stacklevel=1))
    with pytest.warns(UserWarning, match="something else"):
        run()


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = ["a", "deep/b", "c", "deep/d"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (2e9 - age, 1e9))

    def left() -> list[str]:
        return [name for name in names if (tmp_path / name).exists()]

    caching.trim(tmp_path, 400)
    assert left() == names
    caching.trim(tmp_path, 399)
    assert left() == ["a", "deep/b", "c"]
    caching.trim(tmp_path, 150)
    assert left() == ["a"]
    caching.trim(tmp_path / "absent", 0)


def test_a_run_begins_by_making_room(run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(caching, "LIMIT", sum(map(len, kept().values())) + 999)
    Path("runs/.compiled/old").mkdir()
    old = Path("runs/.compiled/old/jit_f-0-cache")
    old.write_bytes(b"x" * 1000)
    os.utime(old, (1e9, 1e9))
    assert "hits" in run().programs
    assert not old.exists()


@pytest.mark.slow
def test_processes_at_once_do_each_other_no_harm(tmp_path: Path) -> None:
    """Real experiments, whose answers are those of a process that keeps nothing."""
    code = "from precisionlab.cli.main import main; main()"
    tiny = ["formats=bfloat16", "modes=stochastic", "optimizer=sgd", "seeds=2", "steps=4", "every=2", "chunk=4", "hidden=4"]

    def start(learning_rate: float, root: str, *more: str) -> subprocess.Popen[str]:
        settings = [part for setting in (*tiny, f"learning_rate={learning_rate}") for part in ("--set", setting)]
        command = [sys.executable, "-c", code, "run", "digits", "--json", "--runs", str(tmp_path / root), *settings, *more]
        repository = Path(cli.__file__).parents[2]
        return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "note:" not in err
        assert "cpu_aot_loader" not in err
        folder = Path(json.loads(out)["run"])
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npz", ".parquet")}
        return files | {"answer": json.loads(out) | {"run": folder.name}}

    plain = ended(start(0.001, "plain", "--no-cache"))
    first, other = start(0.001, "kept"), start(0.01, "kept")
    assert ended(first) == plain
    assert ended(other)["answer"] != plain["answer"]
    assert ended(start(0.001, "kept", "--fresh")) == plain
