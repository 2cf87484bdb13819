"""What goes wrong again and again at intake: it is tried less and less often, and a request ends at last."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

import consumer.intake.claiming as claiming
from infra.stores.memory import MemoryStore
from infra.stores.store import Stored
from producer import AsyncClient
from schemas.errors import StoreUnavailable
from tests.worker_inside import make_worker, running

pytestmark = pytest.mark.anyio

CAT = json.dumps({"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}).encode()


class UnreadableStore(MemoryStore):
    """One object is listed and cannot be read, as one that is encrypted with somebody else's key."""

    reads = 0

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        if key == "requests/locked.json":
            self.reads += 1
            raise StoreUnavailable("cannot read 'requests/locked.json': KMS.DisabledException")
        return await super().get(key, max_bytes=max_bytes)


async def test_an_object_that_stays_unreadable_is_asked_for_less_and_less_often(
    caplog: pytest.LogCaptureFixture,
):
    """Three seconds see three tries, each with a warning that has the store's reason; others are drawn."""
    store = UnreadableStore()
    await store.create("requests/locked.json", CAT)
    await store.create("requests/cat.json", CAT)
    with caplog.at_level(logging.WARNING):
        async with running(make_worker(store)), AsyncClient(store) as client:
            assert (await client.wait("cat", timeout=120)).status == "succeeded"
            await asyncio.sleep(3)

    assert 1 <= store.reads <= 3
    warnings = [record for record in caplog.records if "stays in the inbox" in record.message]
    assert len(warnings) == store.reads
    assert "KMS.DisabledException" in warnings[0].why
    assert warnings[-1].again_in >= 2.0 or len(warnings) == 1


async def test_a_request_that_no_worker_can_read_ends_as_failed(monkeypatch: pytest.MonkeyPatch):
    """An unexpected error at intake, such as a fault of ours, costs a few looks and not an endless loop."""
    parse, looks = claiming.parse_manifest, 0

    def faulty(body: bytes, limits: object) -> object:
        nonlocal looks
        if b"odd" in body:
            looks += 1
            raise OverflowError("int too large to convert to float")
        return parse(body, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(claiming, "parse_manifest", faulty)
    store = MemoryStore()
    await store.create("requests/odd.json", json.dumps({"prompt": "odd"}).encode())
    async with running(make_worker(store)), AsyncClient(store) as client:
        ended = await client.wait("odd", timeout=120)

    assert ended.status == "failed"
    assert ended.failure is not None
    assert ended.failure.code == "worker_crashed"
    assert "OverflowError" in ended.failure.message
    assert looks == 3
    assert not [info async for info in store.list("requests/")]
