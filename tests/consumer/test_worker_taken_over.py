"""What a worker does with requests that it no longer holds."""

from __future__ import annotations

import asyncio
import json

import pytest

from infra.stores.memory import MemoryStore
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio


class SlowStatus(MemoryStore):
    """The write of a status object waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.written = asyncio.Event()

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        if key.startswith("status/"):
            self.begun.set()
            await self.go.wait()
        await super().put(key, body, content_type=content_type)
        if key.startswith("status/"):
            self.written.set()


async def overtake(store: MemoryStore, id: str) -> None:
    """Another live worker creates the next claim."""
    claim = json.loads((await store.get(f"claims/{id}/000001")).body)
    claim |= {"epoch": 2, "session": "other", "nonce": "other", "attempt": 2}
    await store.put("workers/other", b"{}")
    await store.create(f"claims/{id}/000002", json.dumps(claim).encode())


@pytest.mark.parametrize("kind", ["request", "batch"])
async def test_what_another_worker_took_over_is_dropped(kind: str):
    """A worker that finds a newer claim of its request or batch drops it and goes on with other work."""
    store = MemoryStore()
    row = json.dumps({"prompt": "hang", "steps": 1, "width": 8, "height": 8}).encode()
    name = "requests/r.json" if kind == "request" else "requests/r.jsonl"
    await store.create(name, row)
    async with running(make_worker(store, null={"hang_on": "hang"}, grace=0.1)) as worker:
        jobs = worker.jobs
        await until(lambda: "r" in (jobs.active if kind == "request" else jobs.batches))
        await overtake(store, "r")
        await until(lambda: "r" not in jobs.active and "r" not in jobs.batches)
    assert await store.head("results/r/result.json") is None
    assert await store.head("claims/r/000002") is not None


async def test_no_status_outlives_its_request():
    """A status that is being written when its request ends is removed afterwards."""
    store = SlowStatus()
    body = {"prompt": "x", "steps": 30, "width": 8, "height": 8}
    await store.create("requests/r.json", json.dumps(body).encode())
    async with running(make_worker(store, null={"seconds_per_step": 0.06})) as worker:
        async with asyncio.timeout(120):
            await store.begun.wait()
        await until(lambda: not worker.jobs.busy and not worker.jobs.active)
        assert await store.head("results/r/result.json") is not None
        store.go.set()
        async with asyncio.timeout(120):
            await store.written.wait()
            while [info async for info in store.list("status/")]:
                await asyncio.sleep(0.01)
    assert not [info async for info in store.list("status/")]
