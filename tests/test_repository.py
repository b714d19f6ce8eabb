"""What the repository promises about itself: the floors of the imports, the commands of the README, versions."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import precisionlab

ROOT = Path(precisionlab.__file__).parents[1]
PACKAGE = ROOT / "precisionlab"


def floors() -> dict[str, int]:
    """The floor of every module, from the table in CONTRIBUTING."""
    found = {}
    for floor, names in re.findall(r"^ *F(\d+) +(.+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        for name in names.split():
            assert name not in found, f"CONTRIBUTING lists {name} on two floors"
            found[name] = int(floor)
    return found


def modules() -> dict[str, Path]:
    """Every module by the name CONTRIBUTING uses: `formats`, `runs/store`; a package's own module is `runs`."""
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


def test_every_module_has_a_floor():
    assert set(floors()) == set(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name):
    table, known = floors(), modules()
    for other in imported(known[name], known):
        within = name == other.rsplit("/", 1)[0] and "/" in other  # a package re-exports its own modules
        assert within or table[other] < table[name], f"{name} (F{table[name]}) imports {other} (F{table[other]})"


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
