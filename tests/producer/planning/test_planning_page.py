"""The commands of docs/planning.md work as they are printed, beside the heartbeat of a live worker."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.console import blocks
from tests.producer.planning.heartbeat import alive, run

ROOT = Path(__file__).parents[3]


def test_the_estimates_of_the_page_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each says a time. Those that need a machine to measure are like those of `tests/consumer/test_bench.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DREAMDROP_STORE", raising=False)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    alive(tmp_path / "dreamdrop-data")
    commands = [c for block in blocks(ROOT / "docs/planning.md") if not block.needs for c in block.commands]
    assert len(commands) == 4
    for command in commands:
        program, name, *arguments = shlex.split(command.text, comments=True)
        assert (program, name) == ("dreamdrop", "estimate")
        files = [str(p) for a in arguments for p in (sorted(Path().glob(a)) if "*" in a else [a])]
        done = run(*files)
        assert done.exit_code == 0, (command.text, done.output)
        assert "finish" in done.stdout
