"""What a worker writes for people and programs says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from infra.stores.memory import MemoryStore
from producer import AsyncClient
from tests.worker_inside import make_worker, running

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}
TYPES = {"json": "application/json", "jsonl": "application/jsonl", "html": "text/html", "png": "image/png"}


class TypedStore(MemoryStore):
    """Remembers the type of each object under `results/`."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, str] = {}

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        if key.startswith("results/"):
            self.types[key] = content_type
        return await super().create(key, body, metadata=metadata, content_type=content_type)


async def test_every_object_of_a_result_has_its_content_type():
    """Images, result manifests, and the summary of a batch: a browser shows what a bucket's link leads to."""
    store = TypedStore()
    rows = [CAT | {"custom_id": "good"}, CAT | {"custom_id": "bad", "steps": -1}]
    await store.create("requests/sheet.jsonl", "\n".join(map(json.dumps, rows)).encode())
    async with running(make_worker(store)), AsyncClient(store) as client:
        await client.wait("sheet", timeout=60)

    assert len(store.types) >= 7
    wrong = {key: t for key, t in store.types.items() if not t.startswith(TYPES[key.rpartition(".")[2]])}
    assert wrong == {}
