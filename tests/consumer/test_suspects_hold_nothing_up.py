"""A worker that draws a suspect alone claims nothing that would wait behind it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from infra.claims.claim import Claim
from infra.claims.claims import Claims
from infra.stores.memory import MemoryStore
from producer import AsyncClient
from tests.worker_inside import TIMING, make_worker, running, until

pytestmark = pytest.mark.anyio

CAT: dict[str, Any] = {"prompt": "a cat", "steps": 2, "width": 8, "height": 8}


async def a_suspect(store: MemoryStore) -> None:
    """A slow request with which a worker has died twice: it is drawn alone."""
    await store.create("requests/slow.json", json.dumps(CAT | {"steps": 100, "id": "slow"}).encode())
    info = await store.head("requests/slow.json")
    assert info is not None
    dead = make_worker(store)
    dead.claims.session = "dead"
    outcome = await dead._inbox.claimer.claim_object(info)
    assert outcome.held is not None
    claim = outcome.held.claim.model_copy(update={"epoch": 2, "attempt": 2, "solo": True})
    assert isinstance(claim, Claim)
    await store.create("claims/slow/000002", claim.body())


async def test_what_comes_while_a_suspect_is_drawn_is_left_to_idle_workers():
    """Three requests come when the suspect has begun; the other worker, which starts later, draws them at once."""
    store = MemoryStore()
    await a_suspect(store)
    busy = make_worker(store, null={"seconds_per_step": 1.5})
    busy.claims.session = "busy"
    async with running(busy), AsyncClient(store) as client:
        await until(lambda: any(job.suspect and job.progress for job in busy.jobs.active.values()))
        for number in range(3):
            await store.create(f"requests/r{number}.json", json.dumps(CAT).encode())
        looks = busy._inbox
        await until(lambda: not looks.busy)
        await asyncio.sleep(1.5)  # several looks at the inbox
        assert [key async for key in _keys(store, "requests/")] == [f"requests/r{n}.json" for n in range(3)]
        idle = make_worker(store)
        idle.claims.session = "idle"
        async with running(idle):
            ended = [await client.wait(f"r{number}", timeout=60) for number in range(3)]
            assert "slow" in busy.jobs.active
    assert [(result.status, result.worker) for result in ended] == [("succeeded", "idle")] * 3


async def test_a_worker_alone_goes_on_after_the_suspect():
    """What it left is drawn when the suspect has ended."""
    store = MemoryStore()
    await a_suspect(store)
    other = Claims(store, session="x", clock=time.monotonic, rng=random.Random(1), timing=TIMING)
    assert await other.is_claimed("slow")
    async with running(make_worker(store, null={"seconds_per_step": 0.02})), AsyncClient(store) as client:
        await client.wait("slow", timeout=60)
        await store.create("requests/after.json", json.dumps(CAT).encode())
        assert (await client.wait("after", timeout=60)).status == "succeeded"


async def _keys(store: MemoryStore, prefix: str) -> Any:
    async for info in store.list(prefix):
        yield info.key
