"""Real workers on a real directory, killed and paused at random: nothing is lost, doubled or torn."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import signal
import subprocess
import time
from pathlib import Path

from PIL import Image

from tests.worker_process import drop, files, worker

WORKERS = 3
REQUESTS = 150
SECONDS = 12.0  # of killing and pausing
LEASE = 2.0  # seconds, as `tests/worker_process.py` starts them


def test_killed_and_paused_workers_lose_nothing(tmp_path: Path):
    """After a dozen seconds of SIGKILL, SIGSTOP past the lease and SIGTERM, each request has one true result."""
    rng = random.Random(20)
    faults = {"kill": 0, "pause": 0, "drain": 0}
    with contextlib.ExitStack() as fleet:
        workers = [_start(fleet, tmp_path) for _ in range(WORKERS)]
        dropped, ends = 0, time.monotonic() + SECONDS
        while time.monotonic() < ends or dropped < REQUESTS:
            for _ in range(min(4, REQUESTS - dropped)):
                drop(
                    tmp_path, f"r{dropped}.json", {"prompt": f"p{dropped}", "steps": 2, "number_of_images": 2}
                )
                dropped += 1
            time.sleep(rng.uniform(0.05, 0.4))
            k = rng.randrange(WORKERS)
            fault = rng.choice(list(faults))
            faults[fault] += 1
            workers[k] = _harm(fleet, workers[k], fault, tmp_path)
        seen = _wait_for_all(tmp_path)
    assert min(faults.values()) > 0, faults
    assert len(seen) == REQUESTS
    for name, body in seen.items():
        assert json.loads(body)["status"] == "succeeded", (name, body)
        _check_images(tmp_path, json.loads(body))
        path = tmp_path / "results" / name / "result.json"
        assert path.read_bytes() == body, "a result changed after it was first seen"


def test_a_crashed_workers_request_runs_again_soon(tmp_path: Path):
    """With a lease of two seconds, another worker goes on within a few."""
    with worker(tmp_path, null={"seconds_per_step": 0.5}) as victim:
        drop(tmp_path, "orphan.json", {"prompt": "x", "steps": 100})
        _until(lambda: (tmp_path / "claims" / "orphan" / "000001").exists())
        with worker(tmp_path):  # another, which has nothing to do so far
            _until(lambda: len(list((tmp_path / "workers").glob("[!.]*"))) == 2)
            victim.kill()
            killed = time.monotonic()
            _until(lambda: (tmp_path / "results" / "orphan" / "result.json").exists())
    print(f"{time.monotonic() - killed:.1f} s from the kill to the result")
    assert json.loads((tmp_path / "results" / "orphan" / "result.json").read_bytes())["attempts"] == 2


def _start(fleet: contextlib.ExitStack, store: Path) -> subprocess.Popen[str]:
    # On a busy machine a request may lose more workers than the usual three attempts allow.
    options = ("--grace", "1", "--max-attempts", "20")
    return fleet.enter_context(worker(store, *options, null={"seconds_per_step": 0.005}))


def _harm(
    fleet: contextlib.ExitStack, process: subprocess.Popen[str], fault: str, store: Path
) -> subprocess.Popen[str]:
    """Do something to a worker; one that is gone is replaced."""
    if process.poll() is None:
        if fault == "kill":
            process.kill()
        elif fault == "drain":
            process.terminate()
        else:
            process.send_signal(signal.SIGSTOP)
            time.sleep(LEASE * 1.5)
            process.send_signal(signal.SIGCONT)
            return process
        process.wait(120)
    return _start(fleet, store)


def _wait_for_all(store: Path, seconds: float = 300.0) -> dict[str, bytes]:
    """Every result, once no request object and no claim is left."""
    ends = time.monotonic() + seconds
    while True:
        results = {p.parent.name: p.read_bytes() for p in (store / "results").glob("*/result.json")}
        claims = files(store / "claims", "0*")
        requests = list((store / "requests").glob("*.json"))
        if len(results) >= REQUESTS and not claims and not requests:
            return results
        assert time.monotonic() < ends, (
            f"{len(results)} results, {len(claims)} claims, {len(requests)} requests"
        )
        time.sleep(0.1)


def _check_images(store: Path, result: dict[str, object]) -> None:
    images = result["images"]
    assert isinstance(images, list)
    assert [image["index"] for image in images] == [0, 1]
    for image in images:
        body = (store / image["key"]).read_bytes()
        assert hashlib.sha256(body).hexdigest() == image["sha256"]
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()


def _until(condition: object, seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)
