"""Several renderers in one worker, and what happens when they are lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from infra.stores.memory import MemoryStore
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio


async def drop(store: MemoryStore, names: list[str], **fields: object) -> None:
    body = {"prompt": "a cat", "steps": 4, "width": 8, "height": 8, **fields}
    for name in names:
        await store.create(f"requests/{name}.json", json.dumps(body).encode())


async def answers(store: MemoryStore, count: int) -> list[dict[str, Any]]:
    """The results, once there are `count` of them."""
    async with asyncio.timeout(120):
        while True:
            keys = [i.key async for i in store.list("results/") if i.key.endswith("/result.json")]
            if len(keys) >= count:
                return [json.loads((await store.get(key)).body) for key in keys]
            await asyncio.sleep(0.02)


async def test_two_devices_draw_side_by_side_and_one_may_be_lost(tmp_path: Path):
    """Both work at the same time. What the dead one held is drawn again; what the other held is not."""
    store, diary = MemoryStore(), tmp_path / "diary"
    names = [f"r{i:02}" for i in range(16)]
    await drop(store, names)
    null = {"seconds_per_step": 0.02, "diary": str(diary)}
    async with running(make_worker(store, renderers=2, null=null)) as worker:
        first, second = worker.renderers
        await until(lambda: first.pending > 1 and second.pending > 1)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        results = await answers(store, len(names))
        await until(lambda: first.ready is not None)  # a new child has come in its place
    assert sorted(result["id"] for result in results) == names
    assert {result["status"] for result in results} == {"succeeded"}
    twice = [result for result in results if result["attempts"] == 2]
    assert 1 <= len(twice) <= 4  # as many as the dead one may have held
    assert {result["attempts"] for result in results} == {1, 2}
    drawn = diary.read_text().splitlines()
    assert len(set(drawn)) == len(names)
    assert len(drawn) <= len(names) + len(twice)


async def test_a_large_request_is_handed_out_in_parts_and_ends_after_a_loss():
    """More images than a renderer may hold: those that are stored stay, the others are drawn by a new child."""
    store = MemoryStore()
    await drop(store, ["large"], number_of_images=20, seed=5)
    async with running(make_worker(store, renderers=2, null={"seconds_per_step": 0.005})) as worker:
        busy = lambda: [one for one in worker.renderers if one.pending]  # noqa: E731
        await until(lambda: worker.jobs.active and len(worker.jobs.active["large"].images) >= 6)
        assert all(one.pending <= 4 for one in worker.renderers)
        (one,) = busy()
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        (result,) = await answers(store, 1)
    assert (result["status"], result["attempts"]) == ("succeeded", 2)
    assert [image["seed"] for image in result["images"]] == list(range(5, 25))


async def test_a_worker_whose_device_is_gone_gives_its_requests_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While no child starts, the worker writes no heartbeat, claims nothing, and gives back what it holds."""
    gone = tmp_path / "gone"
    (tmp_path / "dying_child.py").write_text(
        "import pathlib, sys\nfrom consumer.renderer import null as null_renderer\n"
        f"if pathlib.Path({str(gone)!r}).exists():\n    sys.exit('no device')\nnull_renderer.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setattr("consumer.renderer.process._MODULES", {"null": "dying_child"})
    monkeypatch.setattr("consumer.renderer.process._BACK_OFF", (0.05, 0.1))
    store = MemoryStore()
    await drop(store, ["a", "b", "c"])
    async with running(make_worker(store, null={"seconds_per_step": 0.5})) as worker:
        (renderer,) = worker.renderers
        await until(lambda: len(worker.jobs.active) == 3 and renderer.pending)
        gone.touch()
        assert renderer.pid is not None
        os.kill(renderer.pid, signal.SIGKILL)
        await until(lambda: renderer.hopeless and not worker.jobs.active)
        assert not renderer.healthy
        assert worker.jobs.room() <= 0
        async with asyncio.timeout(120):
            while len([i async for i in store.list("claims/") if i.key.endswith(".released")]) < 3:
                await asyncio.sleep(0.02)
        gone.unlink()
        await until(lambda: renderer.ready is not None and renderer.healthy)
        results = await answers(store, 3)
    assert {result["status"] for result in results} == {"succeeded"}
