"""Every notebook runs from its first line to its last, as a script and as a notebook."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LIMIT = 900  # seconds; far beyond what one takes, so that a notebook that hangs fails rather than hangs the tests


@pytest.fixture(autouse=True)
def _as_a_newcomer_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No display, none of the notebooks' own settings, and this checkout importable in whatever process runs them."""
    for name in [name for name in os.environ if name.startswith(("PRECISIONLAB_", "MPLBACKEND", "DISPLAY", "WAYLAND"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem != "the_question" else pytest.mark.thorough) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_as_a_script(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECISIONLAB_NOTEBOOK_FIGURES", str(tmp_path / "figures"))
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.strip()
    # What it draws it saves where it was told to, and nowhere else.
    drawn = len(re.findall(r"^ *finish\(figure", path.read_text(), re.MULTILINE))
    assert len(list((tmp_path / "figures").glob("*.png"))) == drawn
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures"] * bool(drawn)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem == "the_question" else pytest.mark.thorough) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
# Of asyncio, zmq and jupyter, not of the notebook: its own come out as outputs, which are looked at below.
@pytest.mark.filterwarnings("default")
def test_runs_as_a_notebook(path: Path, tmp_path: Path) -> None:
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises at the first cell that does
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    complaints = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not [text for text in complaints if "Warning" in text]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == len(re.findall(r"^ *finish\(figure", path.read_text(), re.MULTILINE))
    assert not list(tmp_path.iterdir())
