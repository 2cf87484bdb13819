"""The canary: at which hop it stops."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_plus

import pytest

from infra.claims.claims import Claims
from infra.queues.setup_check import Finding
from infra.stores.memory import MemoryStore
from infra.stores.store import Info
from producer.checks.canary import Canary
from schemas.layout import WORKERS

Worker = Callable[..., Any]


class Mangling(MemoryStore):
    """A store that reads keys as if they were encoded, when it writes or when it lists."""

    def __init__(self, when: str) -> None:
        super().__init__(clock=time.time)
        self._when = when

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        where = unquote_plus(key) if self._when == "write" else key
        return await super().create(where, body, metadata=metadata, content_type=content_type)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        async for info in super().list("", start_after=start_after):
            key = unquote_plus(info.key) if self._when == "list" else info.key
            if key.startswith(prefix):
                yield replace(info, key=key)


async def hops_of(canary: Canary) -> dict[str, Finding]:
    return {finding.check: finding async for finding in canary.run()}


@pytest.mark.anyio
@pytest.mark.parametrize(("when", "hop"), [("write", "stored"), ("list", "listed")])
async def test_a_store_that_mangles_keys_is_found_out_at_the_right_hop(when: str, hop: str):
    """At the write, or at the listing."""
    hops = await hops_of(Canary(Mangling(when), [], 0.1))
    assert list(hops)[-1] == hop
    assert hops[hop].status == "fail"


@pytest.mark.anyio
async def test_a_damaged_picture_is_found_out(worker: Worker):
    """Somebody changes the picture after it was committed: the last hop says so."""
    store = MemoryStore(clock=time.time)
    canary = Canary(store, [], 20)

    async def answer() -> None:
        while await store.head(canary.key) is None:
            await asyncio.sleep(0.01)
        result = await worker(store, canary.key)
        await store.put(result.images[0].key, b"no picture")

    await store.put(f"{WORKERS}somebody", b"{}")
    answering = asyncio.create_task(answer())
    hops = await hops_of(canary)
    await answering
    assert list(hops)[-1] == "readable"
    assert hops["readable"].status == "fail"
    assert "another sha256" in hops["readable"].found


@pytest.mark.anyio
async def test_a_claim_without_an_end_is_told_from_nobody_there():
    """Taken but not finished in time: it stops at the drawing, and the request object is not touched."""
    store = MemoryStore(clock=time.time)
    canary = Canary(store, [], 0.3)
    await store.put(f"{WORKERS}somebody", b"{}")

    async def claim() -> None:
        while (info := await store.head(canary.key)) is None:
            await asyncio.sleep(0.01)
        claims = Claims(store, session="somebody", clock=time.monotonic, rng=random.Random(1))
        held = await claims.take(info, (await store.get(canary.key)).body, id=canary.id, plan={}, batch=False)
        assert held is not None

    claiming = asyncio.create_task(claim())
    hops = await hops_of(canary)
    await claiming
    assert hops["claimed"].status == "pass"
    assert list(hops)[-1] == "drawn"
    assert "not finished after 0.3 s" in hops["drawn"].found
