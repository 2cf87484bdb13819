"""`dreamdrop estimate` as a user types it, beside a live worker's heartbeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from producer.input_files import gather
from schemas.errors import Rejected
from tests.producer.planning.heartbeat import IMAGE, ROW, alive, run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and files beside it in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DREAMDROP_STORE", raising=False)
    (tmp_path / "one.json").write_text('{"prompt": "a red circle", "number_of_images": 2}')
    (tmp_path / "many.jsonl").write_text('{"prompt": "a red circle", "steps": 10}\n' * 50)
    folder = tmp_path / "dreamdrop-data"
    folder.mkdir()
    return folder


def test_files_are_estimated_with_what_waits(store: Path):
    """52 images: 2 of 20 steps and 50 of 10, all with guidance; the same 50 wait already; two devices."""
    alive(store)
    (store / "requests").mkdir()
    (store / "requests" / "before.jsonl").write_bytes(Path("many.jsonl").read_bytes())
    done = run("one.json", "many.jsonl", "--price", "3.6", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    many = 50 * (10 * 2 * ROW + IMAGE)
    own = many + 2 * (20 * 2 * ROW + IMAGE)
    assert (told["requests"], told["images"], told["row_steps"]) == (51, 52, 1080)
    assert told["gpu_seconds"] == pytest.approx(own)
    assert told["pending"]["normal"] == {"requests": 50, "gpu_seconds": pytest.approx(many)}
    assert told["finish_seconds"]["normal"] == pytest.approx((own + many) / 2)
    assert told["cost"] == pytest.approx(own * 3.6 / 3600)
    assert told["notes"] == []


def test_people_read_a_few_lines(store: Path):
    """Every line says what it is; more workers finish sooner."""
    alive(store)
    done = run("one.json", "--workers", "4", "--price", "2", "--per", "day")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "requests",
        "work",
        "GPU",
        "waiting",
        "finish",
        "in",
        "cost",
    ]
    assert "80 row-steps of 5 ms, and 100 ms an image" in done.stdout
    assert "with 4 devices" in done.stdout
    assert "per device and day" in done.stdout


@pytest.mark.parametrize("worker", [True, False])
def test_without_a_measurement_it_says_so(store: Path, worker: bool):
    """The work is counted all the same, and the exit code says that there is no time; --step-ms gives one."""
    if worker:
        alive(store, measured=False)
    arguments = ["one.json"] if worker else ["one.json", "--model", "doodle"]
    done = run(*arguments)
    assert done.exit_code == 1
    assert "80 row-steps" in done.stdout
    assert "GPU time" not in done.stdout
    assert "no live worker has measured doodle" in done.stderr
    assert "--step-ms" in done.stderr
    assert ("no worker is running" in done.stderr) == (not worker)

    given = run(*arguments, "--step-ms", "50", "--json")
    assert given.exit_code == 0
    assert json.loads(given.stdout)["gpu_seconds"] == pytest.approx(2 * 20 * 0.05)


def test_another_size_is_scaled_and_told(store: Path):
    """Four times the pixels, four times the time: an assumption, so it is said."""
    alive(store)
    Path("large.json").write_text('{"prompt": "a red circle", "width": 256, "height": 256}')
    done = run("large.json", "--json")
    told = json.loads(done.stdout)
    assert told["gpu_seconds"] == pytest.approx(4 * (20 * 2 * ROW + IMAGE))
    assert told["notes"] == ["doodle was measured at 16,384 pixels, not at 65,536: scaled"]


@pytest.mark.parametrize(
    "text", ['{"prompt": ""}', '{"promt": "x"}', "{", '{"prompt": "x", "steps": 1000}'], ids=range(4)
)
def test_faults_are_those_of_submit(store: Path, text: str):
    """The same sentence, and the same exit code."""
    alive(store)
    Path("bad.json").write_text(text)
    with pytest.raises(Rejected) as submitted:
        gather(["bad.json"])
    done = run("bad.json")
    assert (done.exit_code, done.stderr) == (2, f"dreamdrop: {submitted.value}\n")


def test_what_no_worker_draws_is_named_with_its_file(store: Path):
    """A model that nobody knows, in a row."""
    alive(store)
    Path("rows.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x", "model": "nosuch"}\n')
    done = run("rows.jsonl", "--json")
    assert done.exit_code == 2
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("rows.jsonl: line 2: no model named 'nosuch'; known are doodle")
    assert (error["code"], error["field"], error["line"]) == ("unknown_model", "model", 2)


def test_a_store_that_is_not_there_is_not_made(store: Path):
    """A mistyped name is told."""
    done = run("one.json", "--store", "nowhere")
    assert done.exit_code == 3
    assert not Path("nowhere").exists()
