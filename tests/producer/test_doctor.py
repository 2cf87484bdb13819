"""`dreamdrop doctor`: what works, what does not, and at which hop the canary stops."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.layout import WORKERS
from tests.cloud import Cloud, wait_for
from tests.worker_process import worker as worker_process

Cli = Callable[..., subprocess.CompletedProcess[str]]


def statuses(findings: list[dict[str, str]]) -> dict[str, str]:
    return {finding["check"]: finding["status"] for finding in findings}


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] == (done.returncode == 0)
    return found


def test_a_healthy_directory_passes_and_keeps_only_the_canarys_result(dreamdrop: Cli, tmp_path: Path):
    """Every check and every hop passes; the request is gone, its result is where the report says."""
    store = tmp_path / "store"
    store.mkdir()
    with worker_process(store):
        wait_for(lambda: list(store.glob("workers/[!.]*")), "no worker")
        found = report(dreamdrop("doctor", "--store", str(store), "--timeout", "120", "--json"))
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
    assert (broken["status"], broken["found"]) == (
        "fail",
        "no worker is running, and none took it within 0.2 s",
    )
    assert "dreamdrop worker" in broken["fix"]
    assert [p for p in store.rglob("*") if p.is_file()] == []


def test_without_a_canary_it_only_looks(dreamdrop: Cli, tmp_path: Path):
    """--no-canary: nothing is dropped; people read a table and a last line."""
    (tmp_path / "store").mkdir()
    done = dreamdrop("doctor", "--store", "store", "--no-canary")
    assert done.returncode == 0
    assert "promises" in done.stdout
    assert "canary" not in done.stdout
    assert done.stderr.strip().endswith("everything works")


def test_a_store_that_is_not_there_is_a_finding(dreamdrop: Cli, tmp_path: Path):
    """A mistyped directory is not made, and no test request is sent."""
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
        found = report(dreamdrop("doctor", "--store", str(store), "--timeout", "120", "--json"))
    broken = found["canary"][-1]
    assert (broken["check"], broken["status"]) == ("canary drawn", "fail")
    assert "told to fail" in broken["found"]


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
    """The notification of a key with unusual characters reaches a worker at once."""
    with worker_process(f"{cloud.store}/studio", "--queue", wired, "--reconcile", "600"):
        wait_for(lambda: [k for k in cloud.keys(f"studio/{WORKERS}") if ".probe" not in k], "no worker")
        found = examine("--queue", wired, "--timeout", "120")
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
    """Policy and notification are missing: a warning, as it may be intended; the canary stops there."""
    queue, _ = cloud.pair()
    found = examine("--queue", queue, "--timeout", "0.2")
    assert statuses(found["checks"])["notifications"] == "warn"
    assert "queue policy" not in statuses(found["checks"])
    broken = found["canary"][-1]
    assert broken["check"] == "canary heard"
    assert "no notification arrived in the queue" in broken["found"]
    assert "setup queue --check" in broken["fix"]


def test_a_policy_that_was_taken_away_is_found_out(
    examine: Callable[..., dict[str, Any]], wired: str, cloud: Cloud
):
    """The bucket still notifies, but may not send: that cannot be intended, so the check fails."""
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
