"""Single findings of `dreamdrop doctor`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from infra.queues.sqs import QueueFacts
from infra.stores.memory import MemoryStore
from producer.checks import doctor
from tests.chaos.places import CREDENTIALS
from tests.producer.training_store import every_state
from tests.servers.s3_front import Fault, S3Front, running


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("apart", "status"), [(0, "pass"), (-2, "pass"), (60, "warn"), (-60, "warn"), (600, "fail")]
)
async def test_a_wrong_clock_is_noticed(apart: float, status: str):
    """A second or two is how S3 writes dates; a minute is worth saying, ten are refused."""
    store = MemoryStore(clock=lambda: time.time() + apart)
    found = await doctor.clock(store)
    assert found.status == status
    assert [info.key async for info in store.list("")] == []


@pytest.mark.parametrize(
    ("visibility", "slowest", "status"),
    [
        (60, 12.0, "pass"),
        (60, None, "pass"),
        (30, 900.0, "pass"),
        (10, 1.0, "warn"),
        (60, 12 * 3600.0, "fail"),
    ],
)
def test_visibility_is_judged_by_how_long_requests_take(
    visibility: float, slowest: float | None, status: str
):
    """A message can be renewed for hours, but not for twelve."""
    facts = QueueFacts(visibility, "arn", 0, 0)
    assert doctor.visibility(facts, slowest).status == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ([{"models": ["doodle", "sd21"], "default_model": "sd21"}], "pass", "default: sd21"),
        (
            [{"models": ["doodle"], "default_model": "sd21"}],
            "fail",
            "the workers do not know their default model sd21",
        ),
        (
            [{"models": ["a", "b"], "default_model": m} for m in ("a", "b")],
            "warn",
            "the workers have different default models: a, b",
        ),
    ],
)
async def test_models_are_those_that_workers_announce(
    tmp_path: Path, said: list[dict[str, Any]], status: str, words: str
):
    """The default must be one of them, and the same everywhere."""
    (tmp_path / "workers").mkdir()
    for number, facts in enumerate(said):
        (tmp_path / "workers" / f"w{number}").write_text(json.dumps(facts | {"state": "idle", "seq": 1}))
    found = {f.check: f async for f in doctor.examine(str(tmp_path), [])}
    assert (found["models"].status, words in found["models"].found) == (status, True)
    assert found["workers"].found == f"{len(said)} idle"


@pytest.mark.anyio
async def test_what_strangers_left_in_a_store_does_not_stop_the_doctor(tmp_path: Path):
    """Broken results and heartbeats are ignored."""
    for name in ("results/a/result.json", "workers/odd", "workers/list"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "results/a/result.json").write_text("{")
    (tmp_path / "workers/odd").write_text('{"seq": 1, "models": 5, "default_model": [], "state": {}}')
    (tmp_path / "workers/list").write_text("[1]")
    checks = [finding.check async for finding in doctor.examine(str(tmp_path), [])]
    assert {"store", "promises", "workers", "models"} <= set(checks)


@pytest.mark.anyio
async def test_a_store_that_lets_nothing_be_listed_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    """Credentials that may write but not list: the doctor says so and goes on to the end."""
    front = S3Front(faults=[Fault("denied", method="GET")])
    with running(front):
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": front.url}.items():
            monkeypatch.setenv(name, value)
        found = {f.check: f async for f in doctor.examine("s3://bucket", [])}
    assert found["workers"].status == "fail"
    assert "AccessDenied" in found["workers"].found or "denied" in found["workers"].found
    assert "clock" in found


@pytest.mark.anyio
async def test_files_that_no_worker_takes_are_named():
    """A name that is only an extension, or has another one; requests are not named."""
    store = MemoryStore()
    await store.create("requests/cat.json", b"{}")
    assert await doctor.inbox(store) is None
    await store.create("requests/.json", b"{}")
    await store.create("requests/cat.txt", b"{}")
    found = await doctor.inbox(store)
    assert found is not None
    assert (found.status, "'requests/.json', 'requests/cat.txt'" in found.found) == ("warn", True)


@pytest.mark.anyio
async def test_trainings_that_wait_without_a_trainer_are_told(tmp_path: Path):
    """Nothing is said where nobody trains; a trainer that is alive is counted; ended trainings do not wait."""

    async def found() -> dict[str, Any]:
        return {f.check: f async for f in doctor.examine(str(tmp_path), [])}

    assert not {"trainers", "trainings"} & (await found()).keys()
    await every_state(tmp_path)
    (tmp_path / "trainings" / "many.jsonl").write_text("{}\n")
    findings = await found()
    assert (findings["trainers"].status, findings["trainers"].found) == ("pass", "1 training")
    assert (findings["trainings"].status, "'trainings/many.jsonl'" in findings["trainings"].found) == (
        "warn",
        True,
    )
    (tmp_path / "trainers" / "trainer-1").unlink()
    alone = (await found())["trainers"]
    assert (alone.status, alone.found) == ("warn", "2 trainings wait, and no trainer is running")
    assert alone.fix == f"start one: dreamdrop trainer --store {tmp_path}"
