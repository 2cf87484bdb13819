"""The commands of docs/training.md work as they are printed, one after the other."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.console import PATIENCE, Terminals, blocks

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(10 * PATIENCE)
def test_the_commands_of_the_page_work_as_they_stand(tmp_path: Path):
    """Ten pictures in, a named model out, which a worker draws with; and the report is there."""
    names = {entry.name for entry in entry_points(group="dreamdrop.commands")}
    assert "train" in names, "install it again: pip install --no-deps -e ."
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DREAMDROP_"))}
    environment = theirs | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    terminals = Terminals(tmp_path, environment)
    try:
        for block in blocks(ROOT / "docs" / "training.md"):
            for command in block.commands:
                terminals.run(command)
    finally:
        terminals.close()
    assert list((tmp_path / "out").rglob("*.png"))
    (report,) = (tmp_path / "dreamdrop-data" / "training-results").glob("*/report.html")
    assert "sks" in report.read_text()
