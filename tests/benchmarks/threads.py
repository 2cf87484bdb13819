"""What the waiting policy and the number of threads cost, on a quiet machine and beside other work.

Each figure is the time of a renderer child that draws the bundled model's pictures, in ratio to one with the
settings that a worker gives it. Beside it run as many busy processes as there are cores, at the lowest priority.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infra.child_process import thread_settings
from tests.benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.table import Table

_ROOT = Path(__file__).parents[2]
_OURS = "as a worker sets them"
_PROGRAM = """
import sys, time
import torch
from consumer.engine.engine import Engine
from consumer.engine.registry import ModelRegistry, quiet
from consumer.models.cards import Cards
from consumer.renderer.protocol import ImageTask
quiet()
engine = Engine(ModelRegistry(Cards.of()), emit=lambda event: None, max_rows=16)
def draw(count, steps):
    for k in range(count):
        numbers = (128, 128, steps, 4.0, k)
        engine.submit(ImageTask("r", k, "text2img", "doodle", "a red circle", None, *numbers, "DPM++ 2M"))
    while engine.step():
        pass
draw(1, 2)
began = time.perf_counter()
draw(int(sys.argv[1]), int(sys.argv[2]))
print(time.perf_counter() - began)
"""


def measure(table: Table, quick: bool) -> None:
    """Pictures by OpenMP's own settings, by a worker's, and by one thread, in turn."""
    count, steps, rounds = (2, 2, 1) if quick else (8, 20, 5)
    plain = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_", "MKL_"))}
    settings = {
        _OURS: plain | thread_settings(plain),
        "threads that spin (OpenMP's default)": plain,
        "one thread": plain | {"OMP_NUM_THREADS": "1"},
    }
    for title, others in (
        ("a quiet machine", 0),
        ("beside one busy process for each core", os.cpu_count() or 1),
    ):
        table.head(f"Threads, on {title}", f"doodle, {count} pictures of {steps} steps in one child")
        times: dict[str, list[float]] = {name: [] for name in settings}
        with _busy(others):
            for _ in range(rounds):
                for name, environment in settings.items():
                    times[name].append(_seconds(environment, count, steps))
        for name, seconds in times.items():
            table.add(Row(name, seconds, unit="s"))
            if name != _OURS:
                ratios = [other / ours for other, ours in zip(seconds, times[_OURS], strict=True)]
                table.add(Row("  in ratio to a worker's settings", ratios))


def _seconds(environment: dict[str, str], count: int, steps: int) -> float:
    command = [sys.executable, "-c", _PROGRAM, str(count), str(steps)]
    path = {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        env=environment | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=1800,
    )
    return float(done.stdout)


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes that use all the time that they get, for an hour at most."""
    code = "import time\nends = time.time() + 3600\nwhile time.time() < ends: pass"
    others = [subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", code]) for _ in range(count)]
    time.sleep(0.5 if count else 0)
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()
