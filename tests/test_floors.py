"""The floor plan: imports run downwards, and only the device's process has torch."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "accelerate", "transformers")


def imported(modules: list[str]) -> str:
    """Import modules in a fresh process; tell which heavy libraries came with them."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)\n"
        f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_imports_run_downwards():
    """The contracts of import-linter in pyproject.toml hold."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["schemas", "infra", "producer"])
def test_a_client_loads_without_torch(package: str):
    """Every module of the lower floors and of the client loads without a heavy library."""
    assert imported(modules_of(package)) == ""


def parent_rooms() -> list[str]:
    """Every room and file of the worker but the engine's: what the parent process may load."""
    entries = sorted((ROOT / "consumer").iterdir())
    return [
        e.name
        for e in entries
        if e.name != "engine" and (e.is_dir() or e.suffix == ".py") and e.name[0] != "_"
    ]


def test_the_workers_parent_loads_without_torch():
    """A parent process that had torch could not outlive what torch does to a process."""
    names = [name for name in modules_of("consumer") if not name.startswith("consumer.engine")]
    assert len(names) > 25
    assert imported(names) == ""


@pytest.mark.parametrize("room", parent_rooms())
def test_torch_in_a_parent_room_is_found(room: str, tmp_path: Path):
    """`import torch` in any file of a parent room breaks the contract, also inside a function."""
    for package in ("consumer", "infra", "producer", "schemas", "training"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "doodle")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / "consumer" / room
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    planted = max(files, key=lambda file: file.stat().st_size)
    planted.write_text(planted.read_text() + "\n\ndef planted() -> None:\n    import torch\n")

    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 1
    assert f"consumer.{room.removesuffix('.py')}" in done.stdout
    assert "-> torch" in done.stdout


def test_a_client_is_installed_with_all_that_it_imports():
    """What the lower floors and the client import by name is among the dependencies, by its own name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["web"]]
    named = {re.split(r"[\[<>=!~; ]", line)[0].lower().replace("-", "_") for line in lines}
    named = {{"pillow": "pil"}.get(name, name) for name in named}
    # botocore comes with aiobotocore, starlette with fastapi; traces are off without the extra `otel`
    named |= {"botocore", "starlette", "opentelemetry", *(name.lower() for name in sys.stdlib_module_names)}
    ours = {"schemas", "infra", "producer"}
    for package in sorted(ours):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                else:
                    continue
                tops = {name.partition(".")[0].lower() for name in names}
                assert tops <= named | ours, f"{file}:{node.lineno} imports what pyproject.toml does not name"


def test_tests_folders_are_no_packages():
    """Two test files may share a name; an `__init__.py` would make them collide."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
