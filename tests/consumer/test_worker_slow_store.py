"""A store that is slower than the device: drawn pictures wait, and how many may wait is bounded."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping

import pytest
from PIL import Image

from consumer.worker import Worker
from infra.stores.memory import MemoryStore
from infra.stores.store import Stored
from schemas.errors import StoreUnavailable
from schemas.layout import is_request
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio

AHEAD = 4  # images that a renderer may hold


class StalledStore(MemoryStore):
    """Stores no image before `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        if key.endswith(".png"):
            await self.go.wait()
        return await super().create(key, body, metadata=metadata, content_type=content_type)


async def drop(store: MemoryStore, count: int, **fields: object) -> None:
    for i in range(count):
        size = {} if "image" in fields else {"width": 8, "height": 8}
        body = json.dumps({"prompt": f"picture {i}", "steps": 1, **size, **fields})
        await store.create(f"requests/r{i:03}.json", body.encode())


async def results(store: MemoryStore) -> list[dict[str, object]]:
    keys = [i.key async for i in store.list("results/") if i.key.endswith("/result.json")]
    return [json.loads((await store.get(key)).body) for key in keys]


def unstored(worker: Worker) -> int:
    """Pictures that are drawn and not in the store."""
    return sum(len(job.finishing) for job in worker.jobs.active.values())


async def highest_unstored(worker: Worker) -> int:
    """Wait for two allowances, then watch until nothing has been added for half a second."""
    await until(lambda: unstored(worker) >= 2 * AHEAD)
    highest, quiet = 0, 0
    while quiet < 50:
        await asyncio.sleep(0.01)
        now = unstored(worker)
        quiet = 0 if now > highest else quiet + 1
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize("images", [1, 24])
async def test_drawn_pictures_that_wait_for_the_store_are_bounded(images: int):
    """While the store stalls, only twice `ahead` images are drawn, of many requests or of large ones."""
    store = StalledStore()
    await drop(store, 96 // images, number_of_images=images)
    async with running(make_worker(store, ahead=AHEAD)) as worker:
        assert await highest_unstored(worker) == 2 * AHEAD
        left = [info.key async for info in store.list("requests/") if is_request(info.key)]
        assert len(left) >= (96 - 8 * images - 2 * AHEAD) // images  # the rest is left to other workers
        store.go.set()
        async with asyncio.timeout(120):
            while len(await results(store)) < 96 // images:
                await asyncio.sleep(0.02)
    assert {answer["status"] for answer in await results(store)} == {"succeeded"}
    assert sum(len(answer["images"]) for answer in await results(store)) == 96  # type: ignore[arg-type]


async def test_a_drain_while_the_store_stalls_ends_within_the_grace_period():
    """What cannot be stored in time is given back; another worker draws it."""
    store = StalledStore()
    await drop(store, 12)
    async with running(make_worker(store, ahead=AHEAD, grace=0.3)) as worker:
        await until(lambda: unstored(worker) == 2 * AHEAD)
    assert await results(store) == []
    store.go.set()
    async with running(make_worker(store, ahead=AHEAD)):
        async with asyncio.timeout(120):
            while len(await results(store)) < 12:
                await asyncio.sleep(0.02)
    assert {(a["status"], a["attempts"]) for a in await results(store)} == {("succeeded", 1)}


class SlowUploads(MemoryStore):
    """Refuses the first two reads of an input picture."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 2

    async def get(self, key: str, *, max_bytes: int | None = None):  # type: ignore[no-untyped-def]
        if key.startswith("uploads/") and self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("not now")
        return await super().get(key, max_bytes=max_bytes)


async def test_an_input_that_the_store_keeps_back_for_a_moment_costs_no_attempt():
    """The read is repeated, as every store call is: the request is not at fault."""
    store, png = SlowUploads(), io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(png, "PNG")
    await store.create("uploads/red.png", png.getvalue())
    await drop(store, 1, image="uploads/red.png")
    async with running(make_worker(store)):
        async with asyncio.timeout(120):
            while not await results(store):
                await asyncio.sleep(0.02)
    (answer,) = await results(store)
    assert (answer["status"], answer["attempts"], store.refusals) == ("succeeded", 1, 0)


class OneSlowStore(MemoryStore):
    """Answers the first read of a request only when every other request is over."""

    slow = ""

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        if is_request(key):
            self.slow = self.slow or key
            while key == self.slow and len(await results(self)) < 23:
                await asyncio.sleep(0.02)
        return await super().get(key, max_bytes=max_bytes)


async def test_a_request_that_is_read_slowly_holds_up_no_other():
    """It costs one of the places for claims under way, and no more."""
    store = OneSlowStore()
    await drop(store, 24)
    async with running(make_worker(store, ahead=AHEAD)), asyncio.timeout(120):
        while len(await results(store)) < 24:
            await asyncio.sleep(0.02)
    assert {answer["status"] for answer in await results(store)} == {"succeeded"}
