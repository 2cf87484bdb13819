"""`status`, `watch`, `fetch` and `cancel` of trainings, as processes on a real directory."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.stores.open import open_store
from producer.trainings.words import duration
from tests.producer.facade import command
from tests.producer.training_store import REPORT, FakeTrainer, drop, every_state
from tests.worker_process import drop as drop_request

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with a training in each state."""
    folder = tmp_path / "dreamdrop-data"
    folder.mkdir()
    asyncio.run(every_state(folder))
    return folder


def test_the_overview_has_a_part_for_trainings(dreamdrop_process: Cli, store: Path):
    """Queued, running with phase, step, loss and time left, and what came of those that ended."""
    shown = dreamdrop_process("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "trainings: 1 queued, 1 running, 3 ended; 1 trainer" in shown.stdout
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.stdout.splitlines() if line.strip()}
    assert lines["waiting"].startswith("waiting queued")
    assert "training, step 40 of 400, loss 0.1250, about 1 h 30 min left" in lines["running"]
    assert "my-dog@2" in lines["done"]
    assert "base names 'nothing', which is no model here" in lines["broken"]
    assert "canceled on request" in lines["unwanted"]
    document = json.loads(dreamdrop_process("status", "--json").stdout)
    assert document["counts"] == {"queued": 0, "processing": 0, "over": 0, "workers": 0}
    trainings = document["trainings"]
    assert trainings["counts"] == {"queued": 1, "processing": 1, "over": 3, "trainers": 1}
    assert trainings["queued"] == ["waiting"]
    assert trainings["processing"]["running"]["loss"] == 0.125
    ended = {one["id"]: (one["status"], one["model"]) for one in trainings["latest"]}
    assert ended == {
        "done": ("succeeded", "my-dog@2"), "broken": ("failed", None), "unwanted": ("canceled", None),
    }  # fmt: skip


def test_a_store_without_trainings_says_nothing_of_them(dreamdrop: Cli, tmp_path: Path):
    """And one whose trainings wait for a trainer says how to start one."""
    (tmp_path / "dreamdrop-data").mkdir()
    assert "training" not in dreamdrop("status").stdout
    drop(tmp_path / "dreamdrop-data", "waiting")
    assert "no trainer is running; start one with: dreamdrop trainer" in dreamdrop("status").stdout


def test_an_id_is_that_of_a_training_where_no_request_has_it(dreamdrop: Cli, store: Path):
    """By its id, by its file, and by its whole key; an unknown id is told as before."""
    for name in ("running", "running.json", "trainings/running.json", "trainings/running"):
        found = json.loads(dreamdrop("status", name, "--json").stdout)
        assert (found["id"], found["kind"], found["status"]) == ("running", "training", "processing")
    assert (found["progress"]["phase"], found["progress"]["loss"]) == ("training", 0.125)
    done = dreamdrop("status", "done").stdout
    assert done.split()[:2] == ["training", "status"]
    assert "my-dog@2" in done
    unknown = dreamdrop("status", "nobody")
    assert (unknown.returncode, "there is no request 'nobody'" in unknown.stderr) == (2, True)
    assert "there is no training 'runing'" in dreamdrop("status", "runing").stderr


def test_a_request_with_the_id_wins_and_it_is_said(dreamdrop: Cli, store: Path):
    """Then the training is found by its whole key, and only the request is canceled by the id."""
    drop_request(store, "waiting.json", {"prompt": "a red circle"})
    found = dreamdrop("status", "waiting")
    assert found.stdout.split()[:2] == ["request", "status"]
    assert "this is the request waiting; a training has the id, too: trainings/waiting" in found.stderr
    document = json.loads(dreamdrop("status", "waiting", "--json").stdout)
    assert ("kind" not in document, document["also_training"]) == (True, True)
    assert dreamdrop("cancel", "waiting").returncode == 0
    assert not (store / "requests" / "waiting.json").exists()
    assert (store / "trainings" / "waiting.json").exists()
    assert json.loads(dreamdrop("status", "trainings/waiting", "--json").stdout)["status"] == "queued"


@pytest.mark.parametrize("id", ["waiting", "running"])
def test_a_training_is_canceled(dreamdrop: Cli, store: Path, id: str):
    """One that waits and one that is under way; the result is the training's, and no request's."""
    canceled = dreamdrop("cancel", id)
    assert (canceled.returncode, canceled.stderr) == (0, f"{id} is canceled\n")
    assert json.loads((store / f"training-results/{id}/result.json").read_bytes())["status"] == "canceled"
    assert not (store / "results").exists()
    again = json.loads(dreamdrop("cancel", id, "--json").stdout)
    assert (again["was_over"], again["status"], again["kind"]) == (True, "canceled", "training")


def test_the_id_of_a_training_is_the_path_of_its_file(dreamdrop: Cli, store: Path):
    """Trainers refuse an `id` in the body; a cancellation by the path must not lose the file for it."""
    drop(store, "odd", id="other")
    assert dreamdrop("cancel", "odd").returncode == 0
    assert json.loads(dreamdrop("status", "odd", "--json").stdout)["status"] == "canceled"


def test_the_report_and_the_validation_pictures_are_saved(
    dreamdrop_process: Cli, store: Path, tmp_path: Path
):
    """Of a training that has ended; of one that failed early there is nothing, and that is said."""
    saved = dreamdrop_process("fetch", "done", "-o", "out")
    assert (saved.returncode, saved.stderr) == (0, "")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    pictures = {f"done/validation/{step}/0.png" for step in ("000000", "000200", "000400")}
    assert files == pictures | {"done/report.html", "done/validation/prompts.json"}
    assert (tmp_path / "out/done/report.html").read_bytes() == REPORT
    none = dreamdrop_process("fetch", "broken", "-o", "out")
    assert (none.returncode, none.stdout) == (1, "")
    assert "broken has no report (status: failed); base names 'nothing'" in none.stderr
    assert dreamdrop_process("fetch", "running").returncode == 4


def test_a_training_is_watched_until_it_ends(store: Path):
    """A line of JSON for each change, the last one with the result."""

    async def report(step: int) -> None:
        async with open_store(str(store)) as opened:
            await FakeTrainer(opened).report("running", step)

    process = command("watch", "running", "--store", str(store), "--json", "--interval", "0.1")
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        assert (first["kind"], first["progress"]["steps_done"]) == ("training", 40)
        asyncio.run(report(41))
        assert json.loads(process.stdout.readline())["progress"]["steps_done"] == 41
        canceled = command("cancel", "trainings/running", "--store", str(store))
        canceled.communicate(timeout=120)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert json.loads(out.splitlines()[-1])["status"] == "canceled"
    assert process.returncode == 1


def test_times_of_hours_are_said_in_hours():
    """A training may take them."""
    assert [duration(s) for s in (12.2, 150, 3600, 5400)] == ["12 s", "2 min", "1 h 0 min", "1 h 30 min"]
