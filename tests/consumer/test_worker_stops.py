"""How a worker stops: in order, and in a hurry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.claims.claims import Claims
from infra.stores.memory import MemoryStore
from tests.worker_inside import make_worker, running
from tests.worker_inside import until as until_it
from tests.worker_process import drop, files, result, worker

SLOW = {"seconds_per_step": 0.1}


def test_sigterm_releases_what_is_not_begun_before_the_rest_is_drawn(tmp_path: Path):
    """The next worker does not wait until this one has finished its drawing."""
    with worker(tmp_path, null=SLOW) as process:
        for i in range(4):
            drop(tmp_path, f"r{i}.json", {"prompt": "x", "steps": 40})
        until(lambda: len(claims(tmp_path)) == 4 and statuses(tmp_path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    (drawn,) = (path.stat().st_mtime_ns for path in results(tmp_path))
    assert len(released(tmp_path)) == 3
    assert all(path.stat().st_mtime_ns < drawn for path in released(tmp_path))


def test_what_outlasts_the_grace_period_is_given_back(tmp_path: Path):
    """It does not count as an attempt; the next worker draws it at once, with the same seed."""
    with worker(tmp_path, "--grace", "0.3", null=SLOW) as process:
        drop(tmp_path, "long.json", {"prompt": "x", "steps": 100, "seed": 9})
        until(lambda: statuses(tmp_path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert len(released(tmp_path)) == 1
    with worker(tmp_path):
        answer = result(tmp_path, "long")
    assert (answer["status"], answer["attempts"]) == ("succeeded", 1)
    assert answer["images"][0]["seed"] == 9


def test_sigterm_while_a_renderer_is_being_started_ends_the_worker(tmp_path: Path):
    """It does not wait for the model to load, and leaves no heartbeat."""
    with worker(tmp_path, "--renderer", "diffusers", "--model", "doodle") as process:
        until(lambda: any("loading" in beat.read_text() for beat in files(tmp_path / "workers")))
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait(120) == 0
    assert "Traceback" not in log
    assert "never retrieved" not in log
    assert not list((tmp_path / "workers").glob("*"))


def test_a_worker_shows_life_while_its_first_model_is_loaded(tmp_path: Path):
    """A large model may take many leases to load, and clients must see the worker all the while."""

    def beats() -> list[int]:
        texts = [beat.read_text() for beat in files(tmp_path / "workers")]
        return [json.loads(text)["seq"] for text in texts if '"loading"' in text]

    with worker(tmp_path, "--renderer", "diffusers", "--model", "doodle", "--lease", "0.5"):
        until(lambda: max(beats(), default=0) > 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_worker_at_once(tmp_path: Path, number: signal.Signals):
    """Its renderer ends with it; another worker takes over its requests when the lease has run out."""
    with worker(tmp_path, null=SLOW) as process:
        for i in range(3):
            drop(tmp_path, f"r{i}.json", {"prompt": "x", "steps": 120, "seed": i})
        until(lambda: len(claims(tmp_path)) == 3 and statuses(tmp_path))
        children = [
            int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
        assert children
        process.send_signal(number)
        until(lambda: len(released(tmp_path)) == 2)
        process.send_signal(number)
        assert process.wait(120) == 130
        until(lambda: not any(alive(pid) for pid in children))
    assert not results(tmp_path)
    with worker(tmp_path):
        answers = [result(tmp_path, f"r{i}") for i in range(3)]
    assert {answer["status"] for answer in answers} == {"succeeded"}
    assert sorted(answer["attempts"] for answer in answers) == [1, 1, 2]


def test_a_file_overwritten_while_it_is_drawn_gets_two_results(tmp_path: Path):
    """The claim has frozen the first body; the second one is a request of its own."""
    with worker(tmp_path, null={"seconds_per_step": 0.05}):
        drop(tmp_path, "same.json", {"prompt": "one", "steps": 30, "seed": 1})
        until(lambda: claims(tmp_path) and statuses(tmp_path))
        drop(tmp_path, "same.json", {"prompt": "two", "steps": 1, "seed": 2})
        first = result(tmp_path, "same")
        until(lambda: len(results(tmp_path)) == 2)
        (other,) = [path.parent.name for path in results(tmp_path) if path.parent.name != "same"]
        second = result(tmp_path, other)
    assert other.startswith("same~")
    assert [answer["parameters"]["prompt"] for answer in (first, second)] == ["one", "two"]
    assert [answer["images"][0]["seed"] for answer in (first, second)] == [1, 2]
    assert [answer["images"][0]["key"] for answer in (first, second)] == [
        "results/same/0.png",
        f"results/{other}/0.png",
    ]
    assert not list((tmp_path / "requests").glob("*.json"))
    until(lambda: not claims(tmp_path))


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def claims(store: Path) -> list[Path]:
    return files(store / "claims", "00000?")


def released(store: Path) -> list[Path]:
    return files(store / "claims", "*.released")


def results(store: Path) -> list[Path]:
    return files(store / "results", "result.json")


def statuses(store: Path) -> list[Path]:
    """Written after a second of work."""
    return files(store / "status")


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class SlowTakeover(MemoryStore):
    """Creates a claim of a later epoch at once, and answers late."""

    taken_over = False

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        made = await super().create(key, body, metadata=metadata, content_type=content_type)
        if key.endswith("/000002"):
            self.taken_over = True
            await asyncio.sleep(0.3)
        return made


@pytest.mark.anyio
async def test_what_a_sweep_takes_over_while_the_worker_stops_is_given_back_uncounted() -> None:
    """Otherwise the request would wait for a lease, lose an attempt, and be drawn alone from then on."""
    store = SlowTakeover()
    body = b'{"prompt": "x", "steps": 1}'
    dead = Claims(store, session="dead", clock=time.monotonic, rng=random.Random(1))
    await store.put("requests/a.json", body)
    source = (await store.get("requests/a.json")).info
    held = await dead.take(source, body, id="a", plan=None)
    assert held is not None
    await dead.release(held, "drain")
    async with running(make_worker(store)):
        await until_it(lambda: store.taken_over)
    assert await store.head("claims/a/000002.released") is not None
