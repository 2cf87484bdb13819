"""`dreamdrop clean` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from producer.commands.clean import _age
from schemas import layout
from schemas.result import Frozen, Result

DAY = 86_400


def dreamdrop(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def ended(store: Path, id: str, age: float) -> Path:
    """A failed request's result, so many seconds old."""
    path = store / layout.result_key(id)
    path.parent.mkdir(parents=True)
    path.write_bytes(Result.ended(id, "failed", None, request=Frozen(text="{}"), fingerprint="").to_json())
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_clean_says_what_would_go_and_then_removes_it(tmp_path: Path):
    """The dry run changes nothing; --apply removes the same; the folder goes, too; then there is nothing to do."""
    old, young = ended(tmp_path, "cats/old", 40 * DAY), ended(tmp_path, "young", DAY)
    size = old.stat().st_size
    words = ["clean", "--older-than", "30d", "--store", tmp_path]

    dry = dreamdrop(*words)
    assert (dry.returncode, old.exists()) == (0, True)
    assert dry.stdout.splitlines()[0] == f"cats/old: 1 objects, {size} bytes"
    assert "1 requests, and 0 batches with 0 rows; 1 objects" in dry.stdout
    assert "add --apply" in dry.stderr

    document = json.loads(dreamdrop(*words, "--apply", "--json").stdout)
    assert document["removed"] is True
    assert document["ids"] == [{"id": "cats/old", "rows": 0, "objects": 1, "bytes": size}]
    assert not old.parent.exists()
    assert young.exists()
    assert "nothing was removed" in dreamdrop(*words, "--apply").stdout


@pytest.mark.parametrize("age", ["30", "0d", "-1d", "30m", "d", "1.5d", "٣d", ""])
def test_an_age_that_is_none_is_refused(tmp_path: Path, age: str):
    """The option and the right form are named; nothing is removed."""
    path = ended(tmp_path, "old", 400 * DAY)
    refused = dreamdrop("clean", f"--older-than={age}", "--apply", "--store", tmp_path)
    assert refused.returncode == 2
    assert "such as 30d" in " ".join(refused.stderr.split())
    assert path.exists()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path):
    """A mistyped directory is an error."""
    refused = dreamdrop("clean", "--older-than", "30d", "--store", tmp_path / "typo")
    assert refused.returncode == 3
    assert not (tmp_path / "typo").exists()


def test_ages():
    """Hours, days and weeks."""
    assert [_age(text) for text in ("1h", "30d", "2w")] == [3600, 30 * DAY, 14 * DAY]
