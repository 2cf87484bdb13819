"""The command line as its users meet it: prompts without quotes, short help, and words for what goes on."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from producer.commands import progress, show
from producer.request_state import State
from schemas.result import Frozen, Result
from tests.producer.facade import worker

Cli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[str]:
    """A store with a worker that takes its time."""
    with worker(tmp_path / "store", "--null", json.dumps({"seconds_per_step": 0.05})):
        yield str(tmp_path / "store")


def test_a_prompt_needs_no_quotes(tmp_path: Path, dreamdrop: Cli):
    """The words are joined."""
    dreamdrop("imagine", "a", "red", "circle", "--store", "store", "--timeout", "0")
    [request] = (tmp_path / "store/requests").rglob("*.json")
    assert json.loads(request.read_text())["prompt"] == "a red circle"


def test_help_is_short_and_in_the_users_words(dreamdrop: Cli, monkeypatch: pytest.MonkeyPatch):
    """-h everywhere, `up` and `imagine` first, whole sentences at 80 columns, no names of Python types."""
    monkeypatch.setenv("COLUMNS", "80")
    commands = dreamdrop("-h").stdout.partition("Commands:")[2]
    assert "..." not in commands
    names = re.findall(r"^  ([a-z-]+)  ", commands, re.MULTILINE)
    assert names[:2] == ["up", "imagine"]
    for name in set(names) - {"dead-letters", "setup", "keys"}:
        assert dreamdrop(name, "-h").stdout.startswith("Usage: ")
        assert not re.search(r"<\w+( range|\[)|<(str|int|float|path)>", dreamdrop(name, "-h").stdout), name
    assert "--timeout N" in dreamdrop("doctor", "-h").stdout
    assert "PROMPT" in dreamdrop("imagine", "-h").stdout


def test_submit_says_where_the_pictures_are(tmp_path: Path, dreamdrop: Cli, slow: str):
    """Ids on standard output, the place on standard error; and status has prompt, age and duration."""
    (tmp_path / "cat.json").write_text('{"prompt": "a sleepy cat", "steps": 2, "width": 64, "height": 64}')
    done = dreamdrop("submit", "cat.json", "--wait", "--store", slow)
    assert (done.returncode, len(done.stdout.split())) == (0, 1)
    assert f"the pictures are in {slow}/results/" in done.stderr
    table = dreamdrop("status", "--store", slow, COLUMNS="200").stdout
    assert re.search(r"a sleepy cat +\d+ s ago +\d+\.\d s", table)


def test_ctrl_c_says_what_goes_on(tmp_path: Path, slow: str):
    """Which id is left running, and how to end it or to get its pictures."""
    command = [sys.executable, "-m", "producer.cli", "imagine", "x", "--steps", "100", "--store", slow]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "store").glob("claims/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    [claim] = (tmp_path / "store/claims").iterdir()
    assert f"left running as {claim.name}; `dreamdrop cancel ID --store {slow}`" in err
    assert (process.returncode, "Traceback" in err) == (130, False)


def test_a_line_now_and_then_without_a_terminal(dreamdrop: Cli, slow: str, monkeypatch: pytest.MonkeyPatch):
    """Steps, in words; and no empty line before them."""
    monkeypatch.setattr(progress, "SAY_EVERY", 0.5)
    done = dreamdrop("imagine", "x", "--steps", "60", "--size", "64", "--store", slow)
    lines = done.stderr.splitlines()
    assert any(re.match(r"0 of 1 ended; \d+/60", line) for line in lines)
    assert lines[0].strip()


def test_a_bar_moves_by_steps_on_a_terminal(tmp_path: Path, slow: str):
    """Also for a single request."""
    ours, theirs = pty.openpty()
    command = ["imagine", "x", "--steps", "40", "--size", "64", "--store", slow]
    process = subprocess.Popen(
        [sys.executable, "-m", "producer.cli", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:
        pass  # Linux ends a terminal so
    os.close(ours)
    assert process.wait(60) == 0
    shares = {int(share) for share in re.findall(rb" (\d+)%", seen)}
    assert len(shares - {0, 100}) >= 2


def test_ages_are_said_in_one_unit():
    """Seconds, minutes, hours or days; a stamp that cannot be read has none."""

    def ended(stamp: str) -> State:
        result = Result.ended(
            "a", "canceled", None, request=Frozen.of(b"{}"), fingerprint="", finished_at=stamp
        )
        return State("a", "canceled", result=result)

    now = datetime.now(UTC)
    for ago, text in ((5, "5 s ago"), (200, "3 min ago"), (9000, "2 h ago"), (200_000, "2 d ago")):
        assert show._when(ended((now - timedelta(seconds=ago)).isoformat()), None) == text
    assert show._when(ended("soon"), None) == ""


def test_status_says_what_waits_and_what_is_drawn(tmp_path: Path, dreamdrop: Cli):
    """Prompts and ages of requests that have not ended, and the rows of a batch; for one id, too."""
    inbox = tmp_path / "store" / "requests"
    inbox.mkdir(parents=True)
    (inbox / "cat.json").write_text('{"prompt": "a sleepy cat"}')
    (inbox / "many.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    table = dreamdrop("status", "--store", "store", COLUMNS="80").stdout
    assert re.search(r"^cat +queued +a sleepy cat +\d+ s ago", table, re.MULTILINE)
    assert "batch of 2 rows" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    with worker(tmp_path / "store", "--null", json.dumps({"seconds_per_step": 2})):
        deadline = time.monotonic() + 240
        while "processing  " not in table and time.monotonic() < deadline:
            table = dreamdrop("status", "cat", "--store", "store", COLUMNS="100").stdout
    assert re.search(r"^cat +processing +a sleepy cat +\d+ s ago", table, re.MULTILINE)


def test_models_are_here_or_not(tmp_path: Path, dreamdrop: Cli):
    """In a word, and then why."""
    (workers := tmp_path / "store" / "workers").mkdir(parents=True)
    (workers / "one").write_text('{"seq": 1, "models": ["doodle", "sd21"], "available": ["doodle"]}')
    lines = dreamdrop("models", "--store", "store").stdout.splitlines()
    assert lines == [
        "doodle\ton disk\t1 worker; Apache-2.0",
        "sd21\tnot here: to be downloaded\t2.58 GB of weights at 16 bits; CreativeML Open RAIL++-M",
    ]


def test_watch_says_lines_where_there_is_no_terminal(dreamdrop: Cli, slow: str, tmp_path: Path):
    """It printed nothing: now each status, and the steps now and then."""
    (tmp_path / "cat.json").write_text('{"prompt": "a cat", "steps": 60, "width": 64, "height": 64}')
    dreamdrop("submit", "cat.json", "--id", "cat", "--store", slow)
    done = dreamdrop("watch", "cat", "--interval", "0.1", "--store", slow)
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("cat: succeeded, 1 image")
    assert 1 <= len(lines) <= 4, lines  # not one for each look
    assert done.stdout == ""


def test_up_passes_the_workers_options_on(tmp_path: Path, dreamdrop_process: Cli):
    """One that neither knows is named by the worker."""
    done = dreamdrop_process("up", "--port", "0", "--renderer", "null", "--max-rows", "1")
    assert "Invalid value for '--max-rows'" in done.stderr
    done = dreamdrop_process("up", "--port", "0", "--renderer", "null", "--nonesuch")
    assert "No such option: --nonesuch" in done.stderr
    assert done.returncode == 1
