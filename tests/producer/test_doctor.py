"""`dreamdrop doctor`: what is in order, what is not, and at which hop the canary fell."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from infra.claims.claims import Claims
from infra.queues.setup_check import Finding
from infra.queues.sqs import QueueFacts
from infra.stores.memory import MemoryStore
from infra.stores.store import Info
from producer.checks import doctor
from producer.checks.canary import Canary
from schemas.layout import WORKERS
from tests.chaos.places import CREDENTIALS
from tests.cloud import Cloud, wait_for
from tests.servers.s3_front import Fault, S3Front, running
from tests.worker_process import worker as worker_process

Cli = Callable[..., subprocess.CompletedProcess[str]]
Worker = Callable[..., Any]


def statuses(findings: list[dict[str, str]]) -> dict[str, str]:
    return {finding["check"]: finding["status"] for finding in findings}


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return found


# A directory --------------------------------------------------------------------------------------


def test_a_healthy_directory_passes_and_keeps_only_the_canarys_result(dreamdrop: Cli, tmp_path: Path):
    """Every check and every hop passes; the request is gone, its result is where the report says."""
    store = tmp_path / "store"
    store.mkdir()
    with worker_process(store):
        wait_for(lambda: list(store.glob("workers/[!.]*")), "no worker")
        found = report(dreamdrop("doctor", "--store", str(store), "--timeout", "30", "--json"))
    assert found["ok"], found
    assert statuses(found["checks"]).keys() >= {"store", "promises", "clock", "disk", "workers", "models"}
    hops = ["stored", "listed", "heard", "claimed", "drawn", "committed", "readable"]
    assert statuses(found["canary"]) == {f"canary {hop}": "pass" for hop in hops}
    assert (store / found["result"]).is_file()
    assert list(store.glob("requests/**/*.json")) == []


def test_without_a_worker_the_canary_says_whom_to_start(dreamdrop: Cli, tmp_path: Path):
    """The hop that broke, what to do, exit code 1, and nothing left behind."""
    store = tmp_path / "store"
    store.mkdir()
    found = report(dreamdrop("doctor", "--store", str(store), "--timeout", "0.2", "--json"))
    assert statuses(found["checks"])["workers"] == "warn"
    (*passed, broken) = found["canary"]
    assert {hop["status"] for hop in passed} == {"pass"}
    assert (broken["status"], broken["found"]) == ("fail", "no worker is alive within 0.2 s")
    assert "dreamdrop worker" in broken["fix"]
    assert [p for p in store.rglob("*") if p.is_file()] == []


def test_without_a_canary_it_only_looks(dreamdrop: Cli, tmp_path: Path):
    """--no-canary: nothing is dropped; people read a table and a last line."""
    (tmp_path / "store").mkdir()
    done = dreamdrop("doctor", "--store", "store", "--no-canary")
    assert done.returncode == 0
    assert "promises" in done.stdout
    assert "canary" not in done.stdout
    assert done.stderr.strip().endswith("all is well")


def test_a_store_that_is_not_there_is_a_finding(dreamdrop: Cli, tmp_path: Path):
    """A mistyped directory is not made, and the canary stays home."""
    found = report(dreamdrop("doctor", "--store", "nowhere", "--json"))
    assert statuses(found["checks"]) == {"store": "fail"}
    assert "canary" not in found
    assert not (tmp_path / "nowhere").exists()


def test_a_worker_that_cannot_draw_is_found_out(dreamdrop: Cli, tmp_path: Path):
    """The request is claimed, and fails: the report repeats why."""
    store = tmp_path / "store"
    store.mkdir()
    with worker_process(store, null={"fail_on": "red circle"}):
        wait_for(lambda: list(store.glob("workers/[!.]*")), "no worker")
        found = report(dreamdrop("doctor", "--store", str(store), "--timeout", "30", "--json"))
    broken = found["canary"][-1]
    assert (broken["check"], broken["status"]) == ("canary drawn", "fail")
    assert "told to fail" in broken["found"]


# A bucket and a queue -----------------------------------------------------------------------------


@pytest.fixture
def examine(dreamdrop: Cli, cloud: Cloud) -> Callable[..., dict[str, Any]]:
    """Run `dreamdrop doctor` on the account's bucket."""

    def run(*options: str) -> dict[str, Any]:
        where = ["--store", f"{cloud.store}/studio", "--json"]
        return report(dreamdrop("doctor", *where, *options, **cloud.environment()))

    return run


@pytest.fixture
def wired(dreamdrop: Cli, cloud: Cloud) -> str:
    """A queue that is wired to the bucket."""
    options = ["--store", f"{cloud.store}/studio", "--name", cloud.bucket, "--apply", "--json"]
    return str(json.loads(dreamdrop("setup", "queue", *options, **cloud.environment()).stdout)["queue"])


def test_a_wired_bucket_passes_from_drop_to_picture(
    examine: Callable[..., dict[str, Any]], wired: str, cloud: Cloud
):
    """The notification of a nasty key reaches a worker at once."""
    with worker_process(f"{cloud.store}/studio", "--queue", wired, "--reconcile", "600"):
        wait_for(lambda: [k for k in cloud.keys(f"studio/{WORKERS}") if ".probe" not in k], "no worker")
        found = examine("--queue", wired, "--timeout", "40")
    assert found["ok"], found
    wrong = {check for check, status in statuses(found["checks"]).items() if status != "pass"}
    assert wrong <= {"promises"}, "this server's creates are not always atomic"
    assert {"credentials", "queue", "queue policy", "notifications", "visibility", "dead letters"} <= {
        check["check"] for check in found["checks"]
    }
    assert set(statuses(found["canary"]).values()) == {"pass"}
    assert cloud.keys("studio/requests/") == []


def test_a_notification_without_a_worker_is_told_from_none(
    examine: Callable[..., dict[str, Any]], wired: str, cloud: Cloud
):
    """It waits in the queue: so the wiring is right, and a worker is missing."""
    found = examine("--queue", wired, "--timeout", "0.2")
    hops = statuses(found["canary"])
    assert (hops["canary heard"], hops["canary claimed"]) == ("pass", "fail")
    assert "--queue" in found["canary"][-1]["fix"]
    assert cloud.keys("studio/requests/") == []
    assert cloud.depth(wired) >= 1


def test_a_bucket_that_announces_nothing_is_found_out(examine: Callable[..., dict[str, Any]], cloud: Cloud):
    """Policy and notification are missing: a warning, for it may be meant so; the canary falls there."""
    queue, _ = cloud.pair()
    found = examine("--queue", queue, "--timeout", "0.2")
    assert statuses(found["checks"])["notifications"] == "warn"
    assert "queue policy" not in statuses(found["checks"])
    broken = found["canary"][-1]
    assert broken["check"] == "canary heard"
    assert "no notification came to the queue" in broken["found"]
    assert "setup queue --check" in broken["fix"]


def test_a_policy_that_was_taken_away_is_found_out(
    examine: Callable[..., dict[str, Any]], wired: str, cloud: Cloud
):
    """The bucket still announces, but may not send: that is no choice, it fails."""
    cloud.sqs.set_queue_attributes(QueueUrl=wired, Attributes={"Policy": ""})
    found = examine("--queue", wired, "--no-canary")
    assert statuses(found["checks"])["queue policy"] == "fail"


def test_two_queues_are_both_looked_at(examine: Callable[..., dict[str, Any]], wired: str, cloud: Cloud):
    """One that is gone fails by its name; the other passes."""
    gone = cloud.queue() + "-gone"
    found = examine("--queue", gone, "--queue", wired, "--no-canary")
    checks = statuses(found["checks"])
    assert checks[f"queue of {gone.rpartition('/')[2]}"] == "fail"
    assert checks[f"queue of {wired.rpartition('/')[2]}"] == "pass"


def test_a_bucket_that_is_not_there_fails_with_its_reason(dreamdrop: Cli, cloud: Cloud):
    """The message is the store's own."""
    done = dreamdrop("doctor", "--store", "s3://no-such-bucket-here", "--json", **cloud.environment())
    (found,) = [c for c in report(done)["checks"] if c["check"] == "store"]
    assert "there is no bucket" in found["found"]


# Single findings ----------------------------------------------------------------------------------


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
    """Renewing carries a request through hours, but not through twelve."""
    facts = QueueFacts(visibility, "arn", 0, 0)
    assert doctor.visibility(facts, slowest).status == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ([{"models": ["doodle", "sd21"], "default_model": "sd21"}], "pass", "by default sd21"),
        ([{"models": ["doodle"], "default_model": "sd21"}], "fail", "sd21 is none that the workers know"),
        (
            [{"models": ["a", "b"], "default_model": m} for m in ("a", "b")],
            "warn",
            "workers differ in their default model: a, b",
        ),
    ],
)
async def test_models_are_those_that_workers_announce(
    tmp_path: Path, said: list[dict[str, Any]], status: str, words: str
):
    """The default must be one of them, and the same everywhere."""
    (tmp_path / "workers").mkdir()
    for number, facts in enumerate(said):
        (tmp_path / "workers" / f"w{number}").write_text(json.dumps(facts | {"state": "idle"}))
    found = {f.check: f async for f in doctor.examine(str(tmp_path), [])}
    assert (found["models"].status, words in found["models"].found) == (status, True)
    assert found["workers"].found == f"{len(said)} idle"


@pytest.mark.anyio
async def test_what_strangers_left_in_a_store_does_not_stop_the_doctor(tmp_path: Path):
    """Broken results and heartbeats are passed over."""
    for name in ("results/a/result.json", "workers/odd", "workers/list"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "results/a/result.json").write_text("{")
    (tmp_path / "workers/odd").write_text('{"models": 5, "default_model": [], "state": {}}')
    (tmp_path / "workers/list").write_text("[1]")
    checks = [finding.check async for finding in doctor.examine(str(tmp_path), [])]
    assert {"store", "promises", "workers", "models"} <= set(checks)


@pytest.mark.anyio
async def test_a_store_that_lets_nothing_be_listed_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    """Keys that may write and not look: the doctor says so and goes on to the end."""
    front = S3Front(faults=[Fault("denied", method="GET")])
    with running(front):
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": front.url}.items():
            monkeypatch.setenv(name, value)
        found = {f.check: f async for f in doctor.examine("s3://bucket", [])}
    assert found["workers"].status == "fail"
    assert "AccessDenied" in found["workers"].found or "denied" in found["workers"].found
    assert "clock" in found


# The canary's hops --------------------------------------------------------------------------------


class Mangling(MemoryStore):
    """A store that reads keys as if they were encoded, when it writes or when it lists."""

    def __init__(self, when: str) -> None:
        super().__init__(clock=time.time)
        self._when = when

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        where = unquote_plus(key) if self._when == "write" else key
        return await super().create(where, body, metadata=metadata, content_type=content_type)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        async for info in super().list("", start_after=start_after):
            key = unquote_plus(info.key) if self._when == "list" else info.key
            if key.startswith(prefix):
                yield replace(info, key=key)


async def flown(canary: Canary) -> dict[str, Finding]:
    return {finding.check: finding async for finding in canary.fly()}


@pytest.mark.anyio
@pytest.mark.parametrize(("when", "hop"), [("write", "stored"), ("list", "listed")])
async def test_a_store_that_mangles_keys_is_found_out_at_the_right_hop(when: str, hop: str):
    """At the write, or at the listing."""
    hops = await flown(Canary(Mangling(when), [], 0.1))
    assert list(hops)[-1] == hop
    assert hops[hop].status == "fail"


@pytest.mark.anyio
async def test_a_damaged_picture_is_found_out(worker: Worker):
    """Somebody changes the picture after it was committed: the last hop says so."""
    store = MemoryStore(clock=time.time)
    canary = Canary(store, [], 20)

    async def answer() -> None:
        while await store.head(canary.key) is None:
            await asyncio.sleep(0.01)
        result = await worker(store, canary.key)
        await store.put(result.images[0].key, b"no picture")

    await store.put(f"{WORKERS}somebody", b"{}")
    answering = asyncio.create_task(answer())
    hops = await flown(canary)
    await answering
    assert list(hops)[-1] == "readable"
    assert hops["readable"].status == "fail"
    assert "another sha256" in hops["readable"].found


@pytest.mark.anyio
async def test_a_claim_without_an_end_is_told_from_nobody_there():
    """Taken but not over in time: the hop is the drawing, and the request object is not touched."""
    store = MemoryStore(clock=time.time)
    canary = Canary(store, [], 0.3)
    await store.put(f"{WORKERS}somebody", b"{}")

    async def claim() -> None:
        while (info := await store.head(canary.key)) is None:
            await asyncio.sleep(0.01)
        claims = Claims(store, session="somebody", clock=time.monotonic, rng=random.Random(1))
        held = await claims.take(info, (await store.get(canary.key)).body, id=canary.id, plan={}, batch=False)
        assert held is not None

    claiming = asyncio.create_task(claim())
    hops = await flown(canary)
    await claiming
    assert hops["claimed"].status == "pass"
    assert list(hops)[-1] == "drawn"
    assert "not over after 0.3 s" in hops["drawn"].found
