"""How near `dreamdrop estimate` is: a real worker with `doodle`, the estimate of a batch, and the time that it took.

The worker has measured other requests before: one alone, and some together.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_BEAT = 1.0  # seconds between two heartbeats


def measure(place: Path, table: Table, quick: bool) -> None:
    """The estimated finish over the true one, for batches of several mixes."""
    rows, rounds = (12, 1) if quick else (60, 3)
    table.head("dreamdrop estimate, doodle", f"batches of {rows} images, each estimated before it is dropped")
    with _worker(place / "estimate") as store:
        _through(store, "alone", [_row(random.Random(0), 12)])
        _through(store, "together", [_row(random.Random(1), 12) for _ in range(16)])
        time.sleep(3 * _BEAT)
        for mix, most in (("steps 2 to 10", 10), ("steps 2 to 30", 30)):
            ratios = []
            for turn in range(rounds):
                rng = random.Random(f"{mix} {turn}")
                batch = [_row(rng, rng.randint(2, most)) for _ in range(rows)]
                told = _estimated(store, batch)
                ratios.append(told / _through(store, f"{most}-{turn}", batch))
            table.add(Row(f"estimated over true, {mix}", ratios, "aim 1"))


def _row(rng: random.Random, steps: int) -> dict[str, Any]:
    cfg = rng.choice((1.0, 4.0, 7.0))
    return {"prompt": "a red circle", "steps": steps, "cfg_scale": cfg, "seed": rng.getrandbits(30)}


def _estimated(store: Path, batch: list[dict[str, Any]]) -> float:
    """Seconds to the finish, as the command says them."""
    file = store.parent / "batch.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in batch))
    command = [sys.executable, "-m", "producer.cli", "estimate", str(file), "--store", str(store), "--json"]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=300, check=True
    )
    return float(json.loads(done.stdout)["finish_seconds"]["normal"])


def _through(store: Path, name: str, batch: list[dict[str, Any]], patience: float = 1800) -> float:
    """Seconds from the drop of requests to the last result."""
    began = time.perf_counter()
    for number, row in enumerate(batch):
        beside = store / f".{name}-{number}"
        beside.write_text(json.dumps(row))
        beside.rename(store / "requests" / f"{name}-{number}.json")
    results = [store / "results" / f"{name}-{number}" / "result.json" for number in range(len(batch))]
    while not all(result.exists() for result in results):
        if time.perf_counter() - began > patience:
            raise RuntimeError(f"{name} has not ended after {patience:.0f} s")
        time.sleep(0.02)
    return time.perf_counter() - began


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


@contextlib.contextmanager
def _worker(store: Path) -> Iterator[Path]:
    (store / "requests").mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "consumer", "--store", str(store), "--model", "doodle"]
    command += ["--devices", "cpu", "--lease", str(3 * _BEAT), "--log-level", "warning"]
    process = subprocess.Popen(command, env=_environment())
    try:
        yield store
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
