"""`python -m consumer` as a command: its help, and what it says when it cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def command(*options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "consumer", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def test_the_help_names_every_option_with_its_variable():
    """Brackets in a help text are shown as they are: rich's markup once ended the help with an error."""
    done = command("--help")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "s3://bucket[/prefix]" in text
    assert text.count("env var: DREAMDROP_") == 38


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--devices", "cuda:77"], "devices 'cuda:77': this machine has no device 'cuda:77'; it has cpu"),
        (["--devices", "cpu", "--models", "cats"], "write name=folder"),
        (["--devices", "cpu", "--models", f"cats={'x' * 300}"], "File name too long"),
        (["--devices", "cpu", "--model", "doodel"], "did you mean 'doodle'"),
    ],
)
def test_a_setting_that_cannot_be_had_ends_the_worker_in_words(
    tmp_path: Path, options: list[str], reason: str
):
    """Exit status 3, one line, no traceback; a device is looked up by a child, whose answer is repeated."""
    done = command("--store", str(tmp_path), *options)
    assert done.returncode == 3
    assert "the worker cannot run: " in done.stderr
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [["--compile", "regional"], ["--exact", "--quantize", "fp8"]])
def test_the_log_says_which_settings_change_how_it_draws(tmp_path: Path, options: list[str]):
    """Those that are off are not repeated."""
    done = command("--store", str(tmp_path), "--renderer", "null", "--once", *options)
    assert done.returncode == 0, done.stderr
    ready = next(line for line in done.stderr.splitlines() if " ready " in f"{line} ")
    expected = {"--compile": "compile=regional", "--exact": "exact=True quantize=fp8"}[options[0]]
    assert expected in ready
    assert "off" not in ready
