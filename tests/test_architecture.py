"""Imports run one way: every module stands on a floor, and imports only from its own floor or below.

Imports inside functions count as well. The package's own `__init__` is a way in for users: it holds
functions that import when they are called, so it may be imported by all and stands on no floor.
"""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edgesparse", "passes", "runtimes", "models")

FLOORS: tuple[tuple[str, ...], ...] = (
    ("edgesparse.errors",),
    # values, and pure functions of them
    (
        "pattern",
        "target",
        "select",
        "recipe",
        "sections",
        "budget",
        "environment",
        "yamltext",
        "lowering.program",
        "measuring.calm",
        "measuring.cores",
        "measuring.intervals",
        "measuring.stats",
    ),
    # the makers: each room of this floor is closed to the others, see CLOSED
    ("passes", "kernels", "models", "*"),
    ("artifacts",),
    ("runtimes",),
    ("pipeline", "artifacts.verify", "web", "training"),
    ("measuring", "advice", "demonstration", "sweeping", "nodetests"),
    ("console", "commands", "cli", "__main__"),
)
"""From the ground up; `*` is every module and folder of the compiler that has no floor of its own."""

CLOSED: dict[str, tuple[str, ...]] = {
    "passes": ("kernels", "models", "runtimes", "*"),
    "models": ("passes", "kernels", "runtimes", "*"),
    "kernels": ("passes", "models", "runtimes"),
    "*": ("models", "runtimes"),
    "runtimes": ("passes", "kernels", "models"),
}
"""What a room never imports, on whatever floor that is."""

TVM = ("kernels", "*", "pipeline")
"""Rooms that may import tvm."""


def modules() -> dict[str, Path]:
    """All modules of the package by dotted name."""
    found = {}
    for room in ROOMS:
        prefix = "edgesparse" if room == "edgesparse" else f"edgesparse.{room}"
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((prefix, *parts))] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """The name under which a module stands in FLOORS."""
    if module == "edgesparse.errors":
        return module
    own = module.removeprefix("edgesparse.")
    named = [own, own.split(".")[0]]
    return next((name for name in named if any(name in floor for floor in FLOORS)), "*")


def floor_of(module: str) -> int:
    room = room_of(module)
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def imports_of(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, those of this package resolved to modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write imports in full"
            base = node.module or ""
            dotted = {f"{base}.{alias.name}" for alias in node.names}
            inside = {name for name in dotted if name in MODULES}
            found |= inside
            if len(inside) < len(dotted):
                found.add(base)
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != "edgesparse"])
def test_imports_run_one_way(module: str) -> None:
    room, floor = room_of(module), floor_of(module)
    for name in imports_of(MODULES[module]):
        if name == "tvm" or name.startswith("tvm."):
            assert room in TVM, f"{module} must not know TVM"
        if name == "edgesparse" or not name.startswith("edgesparse."):
            continue
        assert floor_of(name) <= floor, f"{module} imports {name} from a floor above"
        assert room_of(name) not in CLOSED.get(room, ()), f"{module} must not know {name}"


def test_the_public_package_imports_nothing_when_loaded() -> None:
    tree = ast.parse(MODULES["edgesparse"].read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names <= {"__future__", "collections.abc", "pathlib", "typing"}


def test_every_folder_with_code_is_packaged() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = set(config["options"]["packages"].split())
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert folders <= packages, "add it to setup.cfg"
