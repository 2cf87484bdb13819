"""The whole product on a simulated device, through HTTP: how much of what the device could do reaches the callers.

A UNet's forward sleeps a + b x rows milliseconds, as a GPU would be busy, and leaves the cores to the rest: facade,
worker, renderer child, encoding, store. 32 callers post again as soon as they are answered. The ideal is full calls
without a pause. The figure is taken between two answers while every caller waits for one, so that it has no ramps.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.benchmarks.contenders import MAX_ROWS
from tests.benchmarks.facade import serving
from tests.benchmarks.models import SIDES, available
from tests.benchmarks.peers.measure import serving_peer
from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_CALLERS = 32
_IMAGES = MAX_ROWS // 2  # in a full call: guidance takes two rows
DEVICES = ("12,3", "4,8")  # milliseconds of a call, and of each row


def measure(place: Path, table: Table, quick: bool) -> None:
    """Both devices, equal and mixed steps, and LitServe beside ours where it is installed."""
    folders, _ = available(["launch"], place / "simulated")
    model = folders["launch"]
    for device in DEVICES:
        call, row = device.split(",")
        table.head(
            f"Simulated device, {call} + {row} x rows ms a call",
            f"share of the ideal, {_CALLERS} callers, {MAX_ROWS} rows, {os.cpu_count()} cores",
        )
        for server in ("Dreamdrop", "LitServe"):
            if server == "LitServe" and importlib.util.find_spec("litserve") is None:
                table.say("LitServe is skipped: litserve is not installed")
                continue
            with _server(server, place / f"store-{call}-{row}", model, device) as address:
                shares: dict[str, list[float]] = {"20 steps": [], "10 to 50 steps": []}
                for round_ in range(1 if quick else 3):
                    for name, got in shares.items():
                        rng = random.Random(round_)
                        count = _CALLERS * (2 if quick else 4)
                        steps = [20 if name == "20 steps" else rng.randint(10, 50) for _ in range(count)]
                        got.append(asyncio.run(share_of_ideal(address, steps, device, round_)))
            for name, got in shares.items():
                aim = "aim 97" if name == "20 steps" else "aim 95"
                table.add(Row(f"{server}, {name}", got, aim if server == "Dreamdrop" else "", "%"))


@contextlib.contextmanager
def _server(name: str, store: Path, model: Path, device: str) -> Iterator[str]:
    slow = {
        "SLOW_DEVICE": device,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests/benchmarks/slow_device")]),
    }
    if name == "LitServe":
        with serving_peer("litserve_batched", model, **slow) as address:
            yield f"{address}/generate"
        return
    worker = ["--model", "launch", "--models", f"launch={model}", "--devices", "cpu"]
    with serving(str(store), [*worker, "--max-rows", str(MAX_ROWS)], **slow) as address:
        yield f"{address}/generate/"


async def share_of_ideal(url: str, steps: list[int], device: str, round_: int) -> float:
    """Draw images with so many steps; the share of a device that is always full."""
    answered: list[tuple[float, int]] = []
    todo = iter(enumerate(steps))
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=_CALLERS)) as http:

        async def caller() -> None:
            for number, wanted in todo:
                answer = await http.post(url, json=_body(f"{round_} {number}", wanted, number))
                answer.raise_for_status()
                answered.append((time.perf_counter(), wanted))

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    first = _IMAGES * 2  # whole groups: with equal steps a group is answered at once
    last = len(steps) - _CALLERS
    drawn = sum(wanted for _, wanted in answered[first:last])
    call, row = map(float, device.split(","))
    ideal = drawn / _IMAGES * (call + row * MAX_ROWS) / 1000
    return ideal / (answered[last - 1][0] - answered[first - 1][0])


def _body(prompt: str, steps: int, seed: int) -> dict[str, Any]:
    side = SIDES["launch"]
    body = {"prompt": prompt, "steps": steps, "cfg_scale": 7.5, "seed": seed, "width": side, "height": side}
    return {**body, "scheduler": "DPM++ 2M"}
