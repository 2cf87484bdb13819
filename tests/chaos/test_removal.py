"""`dreamdrop clean` beside workers and clients, in thousands of orders of their store calls.

Two workers draw, a client drops the same requests again and again, and somebody cleans without a pause, as if every
result were old at once. The invariants of docs/design.md hold at each call.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from infra.claims import retention
from infra.stores.memory import MemoryStore
from infra.stores.store import Info, Stored
from schemas import layout
from tests.infra.claims_bench import BODY, PLAN, Bench, work

pytestmark = pytest.mark.anyio

SEEDS = 150
OLD = 400 * 86_400.0  # seconds


class Interleaved:
    """A store in which anybody may be overtaken at each call; it checks what the invariants say."""

    url = "interleaved://"
    is_remote = False

    def __init__(self, store: MemoryStore, rng: random.Random) -> None:
        self.store, self.rng = store, rng
        self.drawn = self.removed = self.calls = 0
        self.dropped: dict[str, int] = {}  # by key, the number of the call
        self.looked_for: dict[str, int] = {}

    async def _pause(self) -> None:
        for _ in range(self.rng.choice((0, 0, 1, 2, 60))):  # now and then somebody is overtaken by many calls
            await asyncio.sleep(0)

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        await self._pause()
        return await self.store.get(key, max_bytes=max_bytes)

    async def head(self, key: str) -> Info | None:
        await self._pause()
        self.calls += 1
        self.looked_for[key] = self.calls
        return await self.store.head(key)

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._pause()
        self.calls += 1
        self.dropped[key] = self.calls
        await self.store.put(key, body)

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        await self._pause()
        made = await self.store.create(key, body, metadata=metadata)
        if made and layout.parse_result(key):
            self.drawn += 1
            for image in json.loads(body)["images"]:
                assert await self.store.head(image["key"]) is not None, f"{key} names an image that is gone"
        return made

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._pause()
        before = await self.store.head(key)
        if key.startswith(layout.REQUESTS):
            id = layout.request_id(key)
            carried = [info async for info in self.store.list(layout.claims_prefix(id))]
            # Only what comes after the last look, within the moment of the removal, is answered by what is going.
            late = self.dropped[key] > self.looked_for.get(key, math.inf)
            assert carried or late or await self.store.head(layout.result_key(id)), f"{key} is forgotten"
        await self.store.delete(key, etag=etag)
        gone = before is not None and await self.store.head(key) is None
        self.removed += bool(gone and layout.parse_result(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        await self._pause()
        for info in [i async for i in self.store.list(prefix, start_after=start_after)]:
            await self._pause()
            # Results are old at once; the clock that a survey reads, an object under workers/, is not.
            yield replace(info, modified=-OLD) if prefix.startswith(layout.RESULTS) else info


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_what_is_removed_beside_workers_is_whole_or_gone(seed: int) -> None:
    """No result names an image that is gone, and no request that was there is forgotten, in any order of calls."""
    rng = random.Random(seed)
    store = Interleaved(MemoryStore(), rng)
    bench = Bench(store)
    ids = ("cat", "cat", "cats/dog")

    async def client() -> None:
        for _ in range(8):
            await store.put(layout.request_key(rng.choice(ids)), BODY)
            await store._pause()

    async def worker(name: str) -> None:
        claims = bench.session(name)
        await claims.beat()
        while True:
            async for source in store.list(layout.REQUESTS):
                id = layout.request_id(source.key)
                held = await claims.take(source, BODY, id=id, plan=PLAN)
                if held is not None:
                    await work(claims, held)
            await claims.sweep()

    async def cleaner() -> None:
        while True:
            found = await retention.survey(store, 30 * 86_400.0)
            await retention.remove(store, found.going)

    async def quiet() -> None:
        prefixes = (layout.REQUESTS, layout.CLAIMS, layout.RESULTS)
        while [info for prefix in prefixes async for info in store.store.list(prefix)]:
            await asyncio.sleep(0)

    others: list[Any] = [worker("one"), worker("two"), cleaner()]
    tasks = [asyncio.create_task(other) for other in others]
    try:
        async with asyncio.timeout(300):
            await client()
            ended = asyncio.create_task(quiet())
            tasks.append(ended)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert ended.done(), [task.exception() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert 1 <= store.removed == store.drawn
