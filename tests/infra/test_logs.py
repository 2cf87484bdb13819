"""Log lines: a cause that stays is one line a minute, with the number of those that were not shown."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from infra.logs import Fold, JsonLine
from tests.worker_process import drop, result, worker


def record(message: str, level: int = logging.WARNING, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("infra", level, __file__, 1, message, (), None)
    made.__dict__ |= facts
    return made


def test_a_cause_that_stays_is_one_line_a_minute():
    """Whatever its keys and waits; another cause, an error and a queue's message are lines of their own."""
    now = 0.0
    fold = Fold(lambda: now)
    text = "a request stays in the inbox for now"
    first = [
        fold.filter(record(text, why=f"cannot write 'claims/{n}/1': Read-only", key=n)) for n in range(40)
    ]
    assert first == [True] + [False] * 39
    assert fold.filter(record(text, why="cannot write 'claims/1/1': No space left"))
    assert fold.filter(record("the sweep is put off", why="cannot write 'claims/1/1': Read-only"))
    for _ in range(2):
        assert fold.filter(record(text, logging.ERROR, why="cannot write 'claims/1/1': Read-only"))
        assert fold.filter(record(text, why="cannot write 'claims/1/1': Read-only", message_id="m"))
        assert fold.filter(record("no cause"))
    now = 61.0
    again = record(text, why="cannot write 'claims/77/1': Read-only")
    assert fold.filter(again)
    assert again.not_shown == 39
    assert not fold.filter(record(text, why="cannot write 'claims/77/1': Read-only"))


def test_a_store_that_became_read_only_does_not_fill_the_log(tmp_path: Path):
    """Thirty requests wait while claims cannot be written: a line for each cause, not for each request."""
    with worker(tmp_path) as process:
        drop(tmp_path, "first.json", {"prompt": "x", "steps": 1})
        result(tmp_path, "first")
        claims = tmp_path / "claims"
        claims.rename(tmp_path / "kept")
        claims.write_text("a file is in its place")
        for number in range(30):
            drop(tmp_path, f"{number}.json", {"prompt": "x", "steps": 1})

        time.sleep(6)
        claims.unlink()
        (tmp_path / "kept").rename(claims)
        for number in range(30):
            result(tmp_path, str(number))
        process.terminate()
        _, logged = process.communicate(timeout=120)
    warnings = [line for line in logged.splitlines() if " warning " in line]
    assert warnings
    assert len(warnings) <= 8, "\n".join(warnings)


def test_a_workers_log_is_one_json_object_a_line(tmp_path: Path):
    """Time, level, logger, event and facts; the request's id is `id`, and its prompt is nowhere."""
    with worker(tmp_path, "--log-format", "json", null={"fail_on": "secret"}) as process:
        drop(tmp_path, "good.json", {"prompt": "a quiet cat", "steps": 1})
        drop(tmp_path, "bad.json", {"prompt": "secret", "steps": 1})
        drop(tmp_path, "wrong.json", {"prompt": "a quiet cat", "steps": "a quiet cat"})
        for id in ("good", "bad", "wrong"):
            result(tmp_path, id)
        process.terminate()
        _, logged = process.communicate(timeout=120)
    lines = [json.loads(line) for line in logged.splitlines()]
    assert {"time", "level", "logger", "event"} <= set.intersection(*map(set, lines))
    ended = {line["id"]: line for line in lines if line["event"] == "request ended"}
    assert ended["good"]["status"] == "succeeded"
    assert ended["good"]["images"] == 1
    assert ended["good"]["logger"] == "consumer.jobs.delivery"
    assert ended["bad"]["status"] == "failed"
    refused = next(line for line in lines if line["event"] == "refused")
    assert (refused["id"], refused["code"], refused["field"]) == ("wrong", "invalid_manifest", "steps")
    assert "quiet" not in logged
    assert "secret" not in logged


def test_json_lines_hold_any_fact():
    """Odd values are text, no text ends the line, a fact may have a field's name, and errors are redacted."""
    facts = {"nan": float("nan"), "many": ("a", 1), "none": None, "path": Path("/x")}
    made = record("one\nline\u2028" + "x" * 3000, **facts)
    made.level = "atomic"
    line = json.loads(text := JsonLine().format(made))
    assert text.isascii()
    assert "\n" not in text
    assert len(line["event"]) == 2000
    assert (line["level"], line["level_"], line["nan"], line["many"]) == (
        "warning",
        "atomic",
        "nan",
        ["a", 1],
    )
    assert (line["none"], line["path"], line["time"][-1]) == (None, "/x", "Z")
    try:
        raise ValueError("a prompt")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = json.loads(JsonLine().format(made))
    assert line["error"].startswith("ValueError at test_logs.py:")
    assert "traceback" not in line
    assert "a prompt" in json.loads(JsonLine(own=("infra",)).format(made))["traceback"]
