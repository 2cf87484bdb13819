"""A worker as its user sees it: real processes, real files, the null renderer."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import time
from pathlib import Path

from PIL import Image

from tests.worker_process import drop, files, result, worker


def test_a_dropped_manifest_becomes_images_and_a_result(tmp_path: Path):
    """Every image is stored, as its hash says, with its own seed and its recipe inside."""
    with worker(tmp_path):
        drop(tmp_path, "cats/a.json", {"prompt": "a cat", "steps": 2, "number_of_images": 3, "seed": 7})
        answer = result(tmp_path, "cats/a")
    assert answer["status"] == "succeeded"
    assert [image["seed"] for image in answer["images"]] == [7, 8, 9]
    for image in answer["images"]:
        body = (tmp_path / image["key"]).read_bytes()
        assert hashlib.sha256(body).hexdigest() == image["sha256"]
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
            assert f"Seed: {image['seed']}" in picture.info["parameters"]
            assert json.loads(picture.info["dreamdrop"])["seed"] == image["seed"]
    assert not (tmp_path / "requests" / "cats" / "a.json").exists()
    assert not files(tmp_path / "claims", "0*")


def test_a_batch_is_fanned_out_and_summed_up(tmp_path: Path):
    """Each row ends on its own; the summary files list them by custom_id, and the page shows them."""
    rows = [{"custom_id": f"row-{i}", "prompt": f"<b>{i}</b>", "steps": 1, "seed": i} for i in range(5)]
    text = "\n\n".join(json.dumps(row) for row in [*rows, {"custom_id": "bad", "prompt": "x", "stesp": 1}])
    with worker(tmp_path):
        drop(tmp_path, "many.jsonl", text.encode())
        answer = result(tmp_path, "many")
    assert answer["status"] == "partial"
    assert answer["batch"]["counts"] == {
        "total": 6,
        "succeeded": 5,
        "partial": 0,
        "failed": 1,
        "canceled": 0,
        "expired": 0,
    }
    folder = tmp_path / "results" / "many"
    good = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    bad = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in good] == [row["custom_id"] for row in rows]
    assert bad[0]["custom_id"] == "bad"
    assert bad[0]["error"]["line"] == 11
    page = (folder / "gallery.html").read_text()
    assert "&lt;b&gt;3&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "row-4/0.png" in page
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width > 128
    assert json.loads((folder / "batch.json").read_text())["counts"]["succeeded"] == 5


def test_repeated_row_names_are_refused_with_both_lines(tmp_path: Path):
    """Results are matched by name, so a name can be given only once."""
    row = json.dumps({"custom_id": "same", "prompt": "x"})
    with worker(tmp_path):
        drop(tmp_path, "twice.jsonl", f"{row}\n\n{row}\n".encode())
        failure = result(tmp_path, "twice")["failure"]
    assert "lines 1 and 3" in failure["message"]
    assert failure["line"] == 3


def test_a_crash_of_the_renderer_is_charged_to_its_cause_only(tmp_path: Path):
    """Nine succeed; the one that kills the renderer each time fails after three attempts."""
    with worker(tmp_path, null={"crash_on": "poison", "seconds_per_step": 0.01}) as process:
        for i in range(9):
            drop(tmp_path, f"good-{i}.json", {"prompt": "fine", "steps": 3})
        drop(tmp_path, "guilty.json", {"prompt": "poison", "steps": 1})
        assert {result(tmp_path, f"good-{i}")["status"] for i in range(9)} == {"succeeded"}
        failure = result(tmp_path, "guilty")
        assert process.poll() is None
    assert failure["failure"]["code"] == "worker_crashed"
    assert failure["attempts"] == 3


def test_a_hung_renderer_is_replaced(tmp_path: Path):
    """A child that makes no progress for `--patience` seconds is replaced, and other requests are drawn."""
    with worker(tmp_path, "--patience", "2", "--max-attempts", "1", null={"hang_on": "stuck"}):
        drop(tmp_path, "stuck.json", {"prompt": "stuck", "steps": 1})
        assert result(tmp_path, "stuck")["failure"]["code"] == "worker_crashed"
        drop(tmp_path, "next.json", {"prompt": "fine", "steps": 1})
        assert result(tmp_path, "next")["status"] == "succeeded"


def test_sigterm_gives_back_what_has_not_begun(tmp_path: Path):
    """The image being drawn is finished, the others are released for the next worker at once."""
    with worker(tmp_path, null={"seconds_per_step": 0.1}) as process:
        for i in range(4):
            drop(tmp_path, f"r{i}.json", {"prompt": "x", "steps": 20})
        _until(lambda: len(files(tmp_path / "claims", "000001")) == 4 and files(tmp_path / "status"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert files(tmp_path / "claims", "*.released")
    assert files(tmp_path / "results", "result.json")
    with worker(tmp_path):
        answers = [result(tmp_path, f"r{i}") for i in range(4)]
    assert {a["status"] for a in answers} == {"succeeded"}
    assert {a["attempts"] for a in answers} == {1}  # a drain is not an attempt


def test_a_cancelled_request_stops(tmp_path: Path):
    """A client cancels by creating the result; the worker notices and goes on with other requests."""
    from producer import Client

    with worker(tmp_path, null={"seconds_per_step": 0.2}), Client(str(tmp_path)) as client:
        ticket = client.submit({"prompt": "long", "steps": 100})
        _until(lambda: files(tmp_path / "claims", "000001"))
        client.cancel(ticket.id)
        assert result(tmp_path, ticket.id)["status"] == "canceled"
        drop(tmp_path, "next.json", {"prompt": "x", "steps": 1})
        assert result(tmp_path, "next")["status"] == "succeeded"


def test_a_request_survives_its_worker(tmp_path: Path):
    """A killed worker's request is drawn by another, which takes it over after the lease."""
    with worker(tmp_path, null={"seconds_per_step": 0.3}) as first:
        drop(tmp_path, "orphan.json", {"prompt": "x", "steps": 50, "seed": 3})
        _until(lambda: files(tmp_path / "claims", "000001"))
        first.kill()
        first.wait()
    with worker(tmp_path):
        answer = result(tmp_path, "orphan")
    assert answer["status"] == "succeeded"
    assert answer["attempts"] == 2
    assert answer["images"][0]["seed"] == 3


def test_the_same_name_with_another_body_gets_a_result_of_its_own(tmp_path: Path):
    """Same body: the first result stands. Another body: `<id>~<hash>`."""
    with worker(tmp_path):
        drop(tmp_path, "same.json", {"prompt": "one", "steps": 1, "seed": 1})
        first = result(tmp_path, "same")
        again = drop(tmp_path, "same.json", {"prompt": "one", "steps": 1, "seed": 1})
        _until(lambda: not again.exists())
        drop(tmp_path, "same.json", {"prompt": "two", "steps": 1, "seed": 1})
        _until(lambda: len(files(tmp_path / "results", "result.json")) == 2)
    assert result(tmp_path, "same") == first


def _until(condition: object, seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
