"""What the repository promises about itself: the order of its rooms, the commands of the README, versions."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import precisionlab

ROOT = Path(precisionlab.__file__).parents[1]
PACKAGE = ROOT / "precisionlab"


def rooms() -> list[str]:
    """The rooms in the order of imports, from the table in CONTRIBUTING."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## The rooms")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z_/]+)` \|", table, re.MULTILINE)


def room_of(name: str) -> str:
    """`numerics` of `numerics/grids`, `experiments/manifold` of all that is in it; nothing for what stands beside the rooms."""
    parts = name.split("/")
    inside = 2 if parts[0] == "experiments" else 1
    return "/".join(parts[:inside]) if (PACKAGE / parts[0]).is_dir() else ""


def modules() -> dict[str, Path]:
    """Every module: `numerics/grids`; a package's own module is `numerics`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if name not in ("__init__", "__main__"):
            found[name.removesuffix("/__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports at its top level, lazily or for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        targets = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "precisionlab":
            inside = node.module.split(".")[1:]
            targets = ["/".join([*inside, alias.name]) for alias in node.names] + ["/".join(inside)]
        elif isinstance(node, ast.Import):
            targets = ["/".join(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("precisionlab.")]
        exact = [target for target in targets if target in known]
        # `from precisionlab.runs import store` names the module, not the package around it.
        names |= {name for name in exact if not any(other.startswith(f"{name}/") for other in exact)}
    return names


def circle(links: dict[str, set[str]]) -> list[str]:
    """Names that can be reached from themselves, or none."""
    while ready := {name for name, others in links.items() if not others & set(links)}:
        links = {name: others for name, others in links.items() if name not in ready}
    return sorted(links)


def test_every_room_stands_in_the_table():
    assert sorted(rooms()) == sorted({room_of(name) for name in modules()} - {""})


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_up_the_table(name):
    table, known = ["", *rooms()], modules()
    for other in imported(known[name], known):
        assert table.index(room_of(other)) <= table.index(room_of(name)), f"{name} imports {other}, whose room comes later"


@pytest.mark.parametrize("room", ["", *rooms()])
def test_no_room_imports_in_a_circle(room):
    known = modules()
    inside = {name: path for name, path in known.items() if room_of(name) == room}
    assert circle({name: imported(path, known) - {name} for name, path in inside.items()}) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("room", sorted({str(path.parent.relative_to(PACKAGE)) for path in modules().values()} - {"."}))
def test_a_room_says_what_each_of_its_files_is_for(room):
    """Rooms that show their public names leave the files to CONTRIBUTING, and to the first line of each."""
    says = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    files = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"}
    if "Its files:" in says:
        named = set(re.findall(r"\w+", says))
        assert files <= named, f"{room}/__init__.py does not name {files - named}"
    for file in files:
        assert ast.get_docstring(ast.parse((PACKAGE / room / f"{file}.py").read_text()))


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("runs")))
def test_the_host_half_knows_no_jax(name):
    tree = ast.parse(modules()[name].read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(part.split(".")[0] in ("jax", "jaxlib", "optax") for part in names)


def test_top_level_names_exist_once():
    names = precisionlab.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(precisionlab, name) for name in names)


def test_ci_runs_the_readme_s_test_command():
    section = (ROOT / "README.md").read_text().split("## Quick start")[1].split("\n## ")[0]
    commands = re.findall(r"```sh\n(.+?)\n```", section, re.DOTALL)
    assert len(commands) == 2
    assert commands[0].endswith("precisionlab run")
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_bad_versions_of_jax_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in ("jax", "jaxlib"):
        assert f"{package}>=0.10.1,!=0.10.2,!=0.11.0" in project["dependencies"]
