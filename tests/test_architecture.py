"""Imports go one way: each room may look only at the rooms listed for it."""

import ast
from pathlib import Path

import pytest

import siglightning

ROOT = Path(siglightning.__file__).parent
# room -> what it must not import, by prefix
FORBIDDEN = {
    "losses": ("lightning", "siglightning.models", "siglightning.tasks", "siglightning.data"),
    "models": ("lightning", "siglightning.losses", "siglightning.tasks", "siglightning.data"),
    "evaluation": ("lightning", "siglightning.tasks", "siglightning.data", "siglightning.models"),
    "distributed": ("siglightning.losses", "siglightning.models", "siglightning.tasks", "siglightning.data"),
    "optim.py": ("lightning", "siglightning."),
    "batch.py": ("lightning", "siglightning."),
    "data": ("siglightning.tasks", "siglightning.callbacks", "siglightning.models", "siglightning.losses"),
    "tasks": ("siglightning.data", "siglightning.callbacks"),
    "callbacks": ("siglightning.data", "siglightning.tasks"),
    "commands": ("siglightning.callbacks",),
    "runtime": ("siglightning.data", "siglightning.callbacks", "siglightning.tasks", "siglightning.models"),
    "__init__.py": ("torch", "lightning", "siglightning."),
}


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_listed():
    rooms = {path.name for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == {*FORBIDDEN, "cli", "__main__.py"}


def test_the_ring_serves_without_lightning():
    for path in (ROOT / "distributed").glob("*.py"):
        if path.name not in ("__init__.py", "strategy.py", "launcher.py"):
            assert not any((name + ".").startswith("lightning.") for name in imported_names(path)), path


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_what_it_must_not_know(room):
    files = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))
    for path in files:
        for name in imported_names(path):
            assert not (name + ".").startswith("siglightning.cli."), f"{path}: nothing imports the command line"
            assert not any((name + ".").startswith(prefix.rstrip(".") + ".") for prefix in FORBIDDEN[room]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_every_process_group_has_a_time_out():
    """Torch's own is half an hour, whatever a run was told."""
    makers = {"new_group", "init_process_group"}
    calls = [
        (path.name, node.lineno, {keyword.arg for keyword in node.keywords})
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in makers
    ]
    assert len(calls) >= 4
    assert [call for call in calls if "timeout" not in call[2]] == []
