"""What a single request waits for on an idle worker, beyond the pipeline call itself."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import backlogs, contenders
from tests.benchmarks.models import SIDES
from tests.benchmarks.table import Row, Table
from tests.worker_process import drop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.engine.loading.registry import ModelRegistry
    from tests.benchmarks.contenders import Child

_STEPS = {"launch": 50, "mixed": 30, "flux": 30, "doodle": 10}
_ROOT = Path(__file__).parents[2]


def measure(
    registry: ModelRegistry,
    child: Child,
    folders: dict[str, Path],
    place: Path,
    table: Table,
    quick: bool,
) -> None:
    """Engine, renderer child and a whole worker on a directory, each beside the bare call."""
    samples = 4 if quick else 10
    for model in folders:
        steps = 10 if quick else _STEPS[model]
        table.head(f"One request on an idle machine, {model}", f"{steps} steps, {samples} samples")
        with _worker(place / f"store-{model}", model, folders[model]) as store:
            bare, rows = [], _Samples()
            for i in range(-1, samples):  # the first is the warm-up
                tasks = backlogs.homogeneous(model, SIDES[model], 1, steps, 100 + i)
                plain = contenders.one_at_a_time(registry, tasks)
                engine = contenders.engine(registry, tasks)
                drawn = child.draw(tasks)
                seconds, timings = _through(store, f"cat-{i}", tasks[0])
                if i < 0:
                    continue
                bare.append(plain.seconds_with_png)
                rows.engine.append(engine.seconds / plain.seconds)
                rows.child.append(drawn.seconds_with_png / plain.seconds_with_png)
                rows.worker.append(seconds / plain.seconds_with_png)
                rendered = timings["render"] + timings["encode"]
                rows.rendered.append(rendered / plain.seconds_with_png)
                rows.found.append(1000 * (seconds - timings["total"]))
                rows.claimed.append(1000 * (timings["total"] - rendered))
        table.add(Row("bare pipeline call and PNG", [1000 * s for s in bare], unit="ms"))
        table.add(Row("engine over bare call, pixels", rows.engine, "aim 1.05"))
        table.add(Row("renderer child over bare call, PNG", rows.child, "aim 1.05"))
        table.add(Row("worker over bare call, from first device call to PNG", rows.rendered, "aim 1.05"))
        table.add(Row("worker over bare call, from drop to result.json", rows.worker))
        table.add(Row("  of it: until the dropped file is found and read", rows.found, unit="ms"))
        table.add(Row("  of it: claim, hand over, store, commit", rows.claimed, unit="ms"))


class _Samples:
    def __init__(self) -> None:
        self.engine: list[float] = []
        self.child: list[float] = []
        self.worker: list[float] = []
        self.rendered: list[float] = []
        self.found: list[float] = []
        self.claimed: list[float] = []


@contextlib.contextmanager
def _worker(store: Path, model: str, folder: Path) -> Iterator[Path]:
    """A worker with its renderer child, idle and ready."""
    store.mkdir()
    command = [sys.executable, "-m", "consumer", "--store", str(store), "--model", model]
    command += ["--models", f"{model}={folder}", "--devices", "cpu", "--log-level", "warning"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(command, env=environment)
    try:
        _through(store, "warm", backlogs.homogeneous(model, SIDES[model], 1, 2, 99)[0], patience=120)
        yield store
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _through(store: Path, id: str, task: Any, patience: float = 60) -> tuple[float, dict[str, float]]:
    """Drop a request and wait for its result: seconds, and the worker's own timings."""
    fields = ("prompt", "steps", "cfg_scale", "seed", "width", "height", "scheduler")
    began = time.perf_counter()
    drop(store, f"{id}.json", {name: getattr(task, name) for name in fields})
    path = store / "results" / id / "result.json"
    while not path.exists():
        if time.perf_counter() - began > patience:
            raise RuntimeError(f"no result for {id!r} after {patience} s")
        time.sleep(0.001)
    seconds = time.perf_counter() - began
    result = json.loads(path.read_bytes())
    if result["status"] != "succeeded":
        raise RuntimeError(f"{id!r} {result['status']}: {result['failure']}")
    return seconds, result["timings"]
