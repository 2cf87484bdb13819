"""A result manifest that cannot be read ends its request, and harms no other."""

from __future__ import annotations

import json

import pytest

from infra.stores.memory import MemoryStore
from producer import AsyncClient
from tests.worker_inside import make_worker, running

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}


@pytest.mark.parametrize("body", [b"", b"not JSON", b'{"v": 2}'])
async def test_a_batch_with_a_damaged_result_of_a_row_ends(body: bytes):
    """The row counts as failed, and errors.jsonl names it."""
    store = MemoryStore()
    rows = [CAT | {"custom_id": "good"}, CAT | {"custom_id": "damaged"}]
    await store.create("results/sheet/damaged/result.json", body)
    await store.create("requests/sheet.jsonl", "\n".join(map(json.dumps, rows)).encode())
    async with running(make_worker(store)), AsyncClient(store) as client:
        ended = await client.wait("sheet", timeout=60)

    assert ended.batch is not None
    assert (ended.status, ended.batch.counts.succeeded, ended.batch.counts.failed) == ("partial", 1, 1)
    [error] = (await store.get("results/sheet/errors.jsonl")).body.splitlines()
    assert json.loads(error)["custom_id"] == "damaged"
    assert "cannot be read" in json.loads(error)["error"]["message"]
