"""How long an express request takes while the other lane is full, beside an idle worker."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.table import Row, Table
from tests.worker_process import drop

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_WAITING = (300, 20_000)  # requests in the other lane
_FAST: dict[str, Any] = {"prompt": "a red circle on a blue background", "steps": 4, "cfg_scale": 4}
_SLOW: dict[str, Any] = {"prompt": "a green star on a white background", "steps": 20, "cfg_scale": 4}


def measure(place: Path, table: Table, quick: bool) -> None:
    """From the drop of an express request to its result, on a directory with `doodle`."""
    samples = 4 if quick else 20
    table.head(
        "An express request while others wait, doodle",
        f"{_FAST['steps']} steps, the others {_SLOW['steps']}; {samples} samples each; aim: 3 times idle at most",
    )
    with _worker(place / "express-idle", 0) as store:
        idle, _ = _samples(store, samples)
    table.add(Row("nothing else to do", [1000 * s for s in idle], unit="ms"))
    for waiting in (30, 60) if quick else _WAITING:
        with _worker(place / f"express-{waiting}", waiting) as store:
            seconds, others = _samples(store, samples)
        table.add(Row(f"{waiting:,} wait in the other lane", [1000 * s for s in seconds], unit="ms"))
        table.add(Row("  over idle", [s / median(idle) for s in seconds], "aim 3"))
        table.add(Row("  others that ended between drop and result", others, unit="requests"))


def _samples(store: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds from drop to result, and how many other requests ended meanwhile."""
    seconds, others = [], []
    rng = random.Random(1)
    for number in range(count):
        time.sleep(rng.uniform(0.2, 0.8))
        before = _ended(store)
        seconds.append(_through(store, f"fast-{number}"))
        others.append(float(_ended(store) - before - 1))
    return seconds, others


def _through(store: Path, id: str, patience: float = 600) -> float:
    began = time.perf_counter()
    drop(store, f"express/{id}.json", _FAST | {"seed": 1})
    path = store / "results" / id / "result.json"
    while not path.exists():
        if time.perf_counter() - began > patience:
            raise RuntimeError(f"no result for {id!r} after {patience} s")
        time.sleep(0.002)
    seconds = time.perf_counter() - began
    result = json.loads(path.read_bytes())
    if result["status"] != "succeeded":
        raise RuntimeError(f"{id!r} {result['status']}: {result['failure']}")
    return seconds


def _ended(store: Path) -> int:
    return len(os.listdir(store / "results"))


@contextlib.contextmanager
def _worker(store: Path, waiting: int) -> Iterator[Path]:
    """A warm worker on a store in which so many requests wait."""
    inbox = store / "requests"
    inbox.mkdir(parents=True)
    for number in range(waiting):
        body = json.dumps(_SLOW | {"seed": number})
        (inbox / f"slow-{number:06}.json").write_text(body)
    command = [sys.executable, "-P", "-m", "consumer", "--store", str(store), "--model", "doodle"]
    command += ["--devices", "cpu", "--log-level", "warning"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(_ROOT)})
    try:
        _through(store, "warm", patience=300)
        yield store
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
