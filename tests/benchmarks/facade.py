"""What HTTP costs: the facade beside a direct call of the same renderer, and answers with and without pictures.

Facade and worker are processes of their own, as in use. The S3 and SQS servers are those of the other
benchmarks, so their own time is part of the figure.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from consumer.jobs import picture
from schemas.manifest_parts import Output
from tests.benchmarks import backlogs
from tests.benchmarks.contenders import Child
from tests.benchmarks.models import SIDES
from tests.benchmarks.protocol import s3_on_loopback
from tests.benchmarks.queue import sqs_on_loopback
from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.renderer.protocol import ImageTask

_ROOT = Path(__file__).parents[2]
_MODEL, _STEPS = "launch", 20
_SIDE = 512  # pixels of a picture for the payload: 790 kB of PNG, for it is noise
_CALLERS = 32


def measure(child: Child, folders: dict[str, Path], place: Path, table: Table, quick: bool) -> None:
    """Overhead on a directory and on S3 with SQS; then the payload."""
    samples = 5 if quick else 40
    model = ["--model", _MODEL, "--models", f"{_MODEL}={folders[_MODEL]}", "--devices", "cpu"]
    table.head(
        f"The facade, {_MODEL}",
        f"{_STEPS} steps, {samples} samples; beyond a direct call of the renderer, PNG included",
    )
    with serving(str(place / "facade"), model) as address:
        table.add(Row("on a directory", _overheads(child, address, samples), "aim p50 30", "ms"))
    with (
        s3_on_loopback(place, 0) as (url, _, _),
        sqs_on_loopback() as (_, queue),
        serving(url, [*model, "--queue", queue], ["--queue", queue]) as address,
    ):
        table.add(Row("on S3 with a queue", _overheads(child, address, samples), "aim p50 120", "ms"))
    rounds, count = (1, 64) if quick else (5, 320)
    null = ["--renderer", "null", "--null", json.dumps({"grain": True})]
    with serving(str(place / "payload"), null) as address:
        asyncio.run(_load(address, count // 4, "", 0))
        ratios, rates = [], []
        for turn in range(rounds):
            order = ("", "return=minimal") if turn % 2 else ("return=minimal", "")
            rate = {
                how: asyncio.run(_load(address, count, how, 1 + 2 * turn + n)) for n, how in enumerate(order)
            }
            ratios.append(rate[""] / rate["return=minimal"])
            rates.append(rate[""])
    table.head("Pictures in the answers", f"{_CALLERS} callers, {_SIDE} x {_SIDE} of noise, null renderer")
    table.add(Row("answers a second with pictures over without", ratios, "aim 0.9"))
    table.add(Row("answers a second with pictures", rates, unit="1/s"))


@contextlib.contextmanager
def serving(
    store: str, worker: list[str], facade: list[str] | None = None, **variables: str
) -> Iterator[str]:
    """A worker and a facade of a store; yields the facade's address once a picture came through.

    Args:
        variables: of their environment.
    """
    command = [sys.executable, "-m", "producer.cli"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), **variables}
    behind = [*command, "worker", "--store", store, "--log-level", "warning", *worker]
    front = [*command, "serve", "--store", store, "--port", "0", *(facade or [])]
    processes = [
        subprocess.Popen(behind, env=environment),
        subprocess.Popen(front, env=environment, stderr=subprocess.PIPE, text=True),
    ]
    try:
        stderr = processes[1].stderr
        assert stderr is not None
        address = next(match[1] for line in stderr if (match := re.search(r"ready: (http://\S+)", line)))
        _until_it_draws(address)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_it_draws(address: str) -> None:
    end = time.monotonic() + 120
    body = {"prompt": "warm up", "steps": 2, "width": 64, "height": 64}
    while (answer := httpx.post(f"{address}/generate/", json=body, timeout=120)).status_code != 200:
        if time.monotonic() > end:
            raise RuntimeError(f"the facade answers {answer.status_code}: {answer.text[:500]}")
        time.sleep(0.1)


def _overheads(child: Child, address: str, samples: int) -> list[float]:
    """Milliseconds that a call of the facade takes longer than one of the renderer, in turn."""
    overheads = []
    with httpx.Client(base_url=address, timeout=60) as http:
        for i in range(-2, samples):  # the first two warm up
            task = backlogs.homogeneous(_MODEL, SIDES[_MODEL], 1, _STEPS, 100 + i)[0]
            direct = child.draw([task])
            began = time.perf_counter()
            answer = http.post("/generate/", json=manifest(task))
            seconds = time.perf_counter() - began
            answer.raise_for_status()
            same(base64.b64decode(answer.json()["images"][0]), direct.pictures[0])
            if i >= 0:
                overheads.append(1000 * (seconds - direct.seconds_with_png))
    return overheads


def manifest(task: ImageTask) -> dict[str, Any]:
    names = ("prompt", "steps", "cfg_scale", "seed", "width", "height", "scheduler")
    return {name: getattr(task, name) for name in names}


def same(png: bytes, drawn: Any) -> None:
    """End the run if a server did not draw what the renderer drew; one grey level is rounding."""
    import io

    import numpy as np
    from PIL import Image

    ours = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)
    pixels = Image.open(io.BytesIO(picture.encode(drawn, Output(), {})[0])).convert("RGB")
    if np.abs(ours - np.asarray(pixels, dtype=np.int16)).max() > 1:
        raise RuntimeError("the pixels differ")


async def _load(address: str, count: int, prefer: str, round_: int) -> float:
    """Answers a second, with so many callers at once."""
    gate = asyncio.Semaphore(_CALLERS)
    headers = {"Prefer": prefer} if prefer else {}
    async with httpx.AsyncClient(base_url=address, timeout=120, headers=headers) as http:

        async def one(seed: int) -> None:
            body = {"prompt": f"noise {round_}", "steps": 1, "width": _SIDE, "height": _SIDE, "seed": seed}
            async with gate:
                (await http.post("/generate/", json=body)).raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*map(one, range(count)))
        return count / (time.perf_counter() - began)
