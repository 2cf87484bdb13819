"""What a worker does before its model is loaded, and what it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.worker_process import result, worker

FIRST = '{"prompt": "a red circle on a blue background", "steps": 2}'


def until_it_says(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines of its log up to the one that has the text."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def test_requests_can_be_dropped_while_the_model_is_being_loaded(tmp_path: Path):
    """The folders are there and the log names them before the model; what is dropped then is drawn."""
    store = tmp_path / "my-bucket"
    with worker(store, "--renderer", "diffusers", "--model", "doodle") as process:
        lines = until_it_says(process, f"drop .json and .jsonl files into {store}/requests/")
        (store / "requests" / "first.json").write_text(FIRST)
        (store / "requests" / "express" / "second.json").write_text(FIRST)
        lines += until_it_says(process, "ready")
        assert [result(store, id, 60)["status"] for id in ("first", "second")] == ["succeeded"] * 2
    order = [text for line in lines for text in ("drop .json", "loading model", "ready") if text in line]
    assert order == ["drop .json", "loading model", "ready"]


def test_a_store_that_keeps_its_promises_is_not_explained(tmp_path: Path):
    """How it was probed is for somebody who looks for a fault."""
    with worker(tmp_path) as process:
        assert "level=" not in "".join(until_it_says(process, "ready"))
    with worker(tmp_path, "--log-level", "debug") as process:
        assert "level=A" in "".join(until_it_says(process, "ready"))


def test_a_file_that_is_called_like_the_express_lane_does_not_stop_a_worker(tmp_path: Path):
    """Clients write below `requests/`; what one of them does there must not harm the others."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "express").write_text("in the way")
    (tmp_path / "requests" / "first.json").write_text(FIRST)
    with worker(tmp_path) as process:
        assert "cannot be made" in "".join(until_it_says(process, "ready"))
        assert result(tmp_path, "first")["status"] == "succeeded"
