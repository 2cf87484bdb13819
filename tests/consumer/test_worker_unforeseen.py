"""Unexpected errors: each costs the request that it happened with, never the worker or other requests."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from consumer.intake.claiming import RequestClaimer
from consumer.intake.listing import BATCHES
from infra.claims.claims import Claims, Timing
from infra.models.cards import Cards, ModelCard
from infra.queues.leases import MessageLeases
from infra.stores.memory import MemoryStore
from infra.stores.store import Info
from schemas import layout
from schemas.errors import Unsupported
from schemas.limits import Limits
from schemas.result import Result
from tests.worker_inside import make_worker, running, until

if TYPE_CHECKING:
    from infra.queues.sqs import Message

pytestmark = pytest.mark.anyio


async def drop(store: MemoryStore, name: str, *rows: dict[str, object]) -> None:
    await store.create(f"requests/{name}", b"\n".join(json.dumps(row).encode() for row in rows))


async def over(store: MemoryStore, *ids: str) -> None:
    """Wait until all have their result."""
    async with asyncio.timeout(120):
        while not all([await store.head(layout.result_key(id)) for id in ids]):
            await asyncio.sleep(0.01)


class Trap(Cards):
    """Raises an unexpected error for one model."""

    def get(self, name: str) -> ModelCard:
        if name == "trap":
            raise RuntimeError("nobody foresaw this")
        return super().get(name)


async def test_a_request_that_nobody_can_even_read_costs_no_worker():
    """It stays in the inbox, the log names it, and the other request is drawn."""
    store = MemoryStore()
    await drop(store, "a.json", {"prompt": "x", "model": "trap"})
    await drop(store, "b.json", {"prompt": "x", "steps": 1})
    async with running(make_worker(store, cards=Trap(Cards.of().cards))) as worker:
        await over(store, "b")
        assert not worker.stop.is_set()
    assert await store.head("requests/a.json") is not None


class Broken(MemoryStore):
    """Raises an unexpected error when heartbeats are listed."""

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        if prefix == layout.WORKERS:
            raise RuntimeError("nobody foresaw this")
        async for info in super().list(prefix, start_after=start_after):
            yield info


async def test_a_worker_that_cannot_go_on_says_that_it_failed():
    """It drains by itself, and its exit status tells that from a normal stop."""
    async with running(make_worker(Broken())) as worker:
        await until(worker.stop.is_set)
        assert worker.failed


class Silent(MemoryStore):
    """Never answers the second heartbeat."""

    beats = 0

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        if key.startswith(layout.WORKERS):
            self.beats += 1
            if self.beats == 2:
                await asyncio.Event().wait()
        await super().put(key, body, content_type=content_type)


async def test_a_heartbeat_without_an_answer_does_not_end_the_beating():
    """The next one is tried while the lease still runs."""
    store = Silent()
    async with running(make_worker(store)):
        await until(lambda: store.beats > 3)


class Denied:
    """A queue that denies the first receive, because its policy was changed."""

    url = "https://sqs.eu-west-1.amazonaws.com/123456789012/q"
    receives = 0

    async def receive(self, most: int, *, wait: float = 0, visibility: float = 0) -> list[Message]:
        self.receives += 1
        if self.receives == 1:
            raise Unsupported("access denied")
        await asyncio.sleep(0.05)
        return []

    async def renew(self, messages: object, visibility: float) -> list[Message]:
        raise Unsupported("access denied")

    delete = renew


async def test_a_queue_that_is_denied_for_a_while_costs_no_worker():
    """Requests are found by listing meanwhile, and the worker tries to receive again."""
    store, queue = MemoryStore(), Denied()
    leases = MessageLeases(queue, time.monotonic, random.Random(1))  # type: ignore[arg-type]
    async with running(make_worker(store, queues=[leases], reconcile=0.1)) as worker:
        await drop(store, "a.json", {"prompt": "x", "steps": 1})
        await over(store, "a")
        await until(lambda: queue.receives > 1)
        assert not worker.stop.is_set()


async def test_a_worker_holds_only_so_many_batches():
    """Each is kept in memory, so the others wait in the inbox; in the end all have a result."""
    store, names = MemoryStore(), [f"b{i:02}" for i in range(BATCHES + 8)]
    for name in names:
        await drop(store, f"{name}.jsonl", {"prompt": "x", "steps": 1, "width": 8, "height": 8})
    most = 0
    async with running(make_worker(store, ahead=64, null={"seconds_per_step": 0.05})) as worker:
        ended = asyncio.create_task(over(store, *names))
        while not ended.done():
            most = max(most, len(worker.jobs.batches))
            await asyncio.sleep(0)
        await ended
    assert most == BATCHES


@pytest.mark.parametrize("largest", [1000, 8], ids=["wrong", "too large"])
async def test_a_refusal_that_its_worker_did_not_live_to_tell_is_told_by_the_next(largest: int):
    """With the same message, under the same id: the claim holds both, even if the body was never read."""
    store, limits = MemoryStore(), Limits(max_body_bytes=largest)
    await drop(store, "a.json", {"prompt": "x", "steps": "many"})
    timing, rng = Timing(beat=0.5, lease=2.0), random.Random(1)
    dead = Claims(store, session="dead", clock=time.monotonic, rng=rng, timing=timing)
    claimer = RequestClaimer(store, dead, Cards.of(), "doodle", limits, time.monotonic, rng)
    outcome = await claimer.claim_object((await store.get("requests/a.json")).info)
    assert outcome.held is not None
    assert [info.key async for info in store.list("requests/")] == []
    async with running(make_worker(store)):
        await over(store, "a")
    result = Result.model_validate_json((await store.get("results/a/result.json")).body)
    assert (result.status, result.attempts) == ("failed", 2)
    assert result.failure is not None
    assert result.failure.code == ("invalid_manifest" if largest == 1000 else "too_large")
    assert result.failure.field == ("steps" if largest == 1000 else None)
