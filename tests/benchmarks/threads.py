"""What the waiting policy and the number of threads cost, on a quiet machine and beside other work.

Renderer children, one for each setting, live side by side and draw the bundled model's pictures in turn; who waits
for its turn sleeps. Each ratio is the time of one setting by that of a worker's own in the same round. Beside
them run as many busy processes as there are cores: at the lowest priority, then at the children's own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from infra.child_process import thread_settings
from tests.benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.benchmarks.table import Table

_ROOT = Path(__file__).parents[2]
_OURS = "as a worker sets them"
_PROGRAM = """
import sys, time
import torch
from consumer.engine.engine import Engine
from consumer.engine.loading.registry import ModelRegistry, quiet
from infra.models.cards import Cards
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
print("ready", flush=True)
for line in sys.stdin:
    count, steps = map(int, line.split())
    began = time.perf_counter()
    draw(count, steps)
    print(time.perf_counter() - began, flush=True)
"""


def measure(table: Table, quick: bool) -> None:
    """Pictures by a worker's settings and by others, in turn."""
    plain = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_", "MKL_"))}
    settings = {
        _OURS: plain | thread_settings(plain),
        "threads that spin (OpenMP's default)": plain,
        "threads that sleep at once": plain | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
        "threads that spin a tenth as long": plain | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
        "one thread": plain | {"OMP_NUM_THREADS": "1"},
    }
    cores = os.cpu_count() or 1
    places = {
        "a quiet machine": (0, 0),
        "beside one busy process for each core, nice 19": (cores, 19),
        "beside one busy process for each core, as urgent": (cores, 0),
    }
    steps, rounds = (2, 1) if quick else (20, 9)
    with contextlib.ExitStack() as stack:
        children = {name: stack.enter_context(_child(environment)) for name, environment in settings.items()}
        for place, (others, niceness) in places.items():
            with _busy(others, niceness):
                for count in (1, 2 if quick else 8):
                    table.head(f"Threads, on {place}", f"doodle, pictures of {steps} steps at once: {count}")
                    _compare(table, children, count, steps, rounds)


def _compare(
    table: Table, children: Mapping[str, subprocess.Popen[str]], count: int, steps: int, rounds: int
) -> None:
    times: dict[str, list[float]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, child in children.items():
            times[name].append(_seconds(child, count, steps))
    for name, seconds in times.items():
        table.add(Row(name, seconds, unit="s"))
        if name != _OURS:
            ratios = [other / ours for other, ours in zip(seconds, times[_OURS], strict=True)]
            table.add(Row("  in ratio to a worker's settings", ratios))


@contextlib.contextmanager
def _child(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    path = {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env=environment | path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        _line(child)
        yield child
    finally:
        child.kill()
        child.wait()


def _seconds(child: subprocess.Popen[str], count: int, steps: int) -> float:
    pipe: IO[str] | None = child.stdin
    assert pipe is not None
    pipe.write(f"{count} {steps}\n")
    pipe.flush()
    return float(_line(child))


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    if line := child.stdout.readline():
        return line
    raise RuntimeError(f"a renderer child ended with status {child.wait()}")


@contextlib.contextmanager
def _busy(count: int, niceness: int) -> Iterator[None]:
    """Processes that use all the time that they get, for an hour at most."""
    code = "import time\nends = time.time() + 3600\nwhile time.time() < ends: pass"
    command = ["nice", "-n", str(niceness), sys.executable, "-c", code]
    others = [subprocess.Popen(command) for _ in range(count)]
    time.sleep(0.5 if count else 0)
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()
