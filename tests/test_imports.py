"""Imports run one way: the mathematics knows nothing of its launcher, nor the launcher of the tools beside it."""
from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "ebm": {"hydra", "omegaconf", "submitit", "wandb", "launch", "tools", "tests"},
    "launch": {"tools", "tests"},
}
FOLDERS = ["ebm", "launch", "tools"]
PLACELESS = {"utils", "util", "helpers", "helper", "misc", "common"}


def named(source: str, package: str) -> set[str]:
    """All that ``source``, a module of ``package``, imports at any depth, also by ``importlib``, by its dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{package if node.level else node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            names |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def imported(source: str, package: str) -> set[str]:
    """The top-level names of what it imports."""
    return {name.split(".")[0] for name in named(source, package)}


def neighbours(source: str, package: str) -> set[str]:
    """The rooms of its own package, folders and the modules beside them, from which it imports."""
    return {name.split(".")[1] for name in named(source, package) if name.startswith(f"{package}.")}


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no Python files in {folder}/"
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_import_runs_back(folder: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): found
        for path in sources(folder)
        if (found := imported(path.read_text(encoding="utf-8"), folder) & FORBIDDEN[folder])
    }
    assert not faults


@pytest.mark.parametrize(
    "source",
    [
        "import hydra",
        "import hydra.utils as h",
        "from hydra.core import x",
        "def f():\n    from hydra import y",
        "import os, hydra",
        "importlib.import_module('hydra.utils')",
        "__import__('hydra')",
    ],
)
def test_every_way_of_importing_is_seen(source: str) -> None:
    assert "hydra" in imported(source, "ebm")
    assert "hydra" not in imported("from . import hydra\nimport ebm.hydra\nhydra = 'hydra'", "ebm")


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_two_rooms_need_each_other(folder: str) -> None:
    rooms: dict[str, set[str]] = {}
    for path in sources(folder):
        room = path.relative_to(ROOT / folder).with_suffix("").parts[0]
        rooms.setdefault(room, set()).update(neighbours(path.read_text(encoding="utf-8"), folder) - {room})
    assert sum(map(len, rooms.values())) > 3, "no imports were found"
    graphlib.TopologicalSorter(rooms).prepare()  # raises CycleError, which names them


def test_no_room_of_launch_needs_an_entry() -> None:
    entries = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"__init__", "entry"}
    assert len(entries) > 6
    rooms = [path for path in sources("launch") if path.parent != ROOT / "launch"]
    faults = {path.name: found for path in rooms if (found := neighbours(path.read_text(encoding="utf-8"), "launch") & entries)}
    assert not faults


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_is_named_after_what_it_holds(folder: str) -> None:
    named = [path for path in (ROOT / folder).rglob("*") if PLACELESS & set(path.stem.lower().split("_"))]
    assert not named


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_has_grown_too_long(folder: str) -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources(folder)}
    assert not {name: count for name, count in lines.items() if count > 260}


@pytest.mark.parametrize("module", ["launch.study.launcher", "launch.status", "launch.job.epilogue", "launch.job.process"])
def test_what_runs_on_a_login_node_stays_small(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'numpy', 'matplotlib'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
