"""Five stories that show what Dreamdrop does; read them first, from top to bottom.

The stores, workers and clients are real. Only the renderer is a stand-in: it fills each picture with one colour.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from infra.claims.claims import Claims
from infra.stores.memory import MemoryStore
from infra.stores.open import open_store
from infra.stores.store import Store
from producer import AsyncClient
from tests.worker_inside import make_worker, running, until
from tests.worker_process import drop, files, result, worker

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a red circle", "steps": 4, "width": 8, "height": 8}


async def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def test_a_dropped_file_becomes_a_result(tmp_path: Path):
    """A worker takes the file out of `requests/`, draws it, and leaves the images and a result."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "cat.json").write_text(json.dumps(CAT | {"number_of_images": 2}))

    async with open_store(str(tmp_path)) as store, AsyncClient(store) as client:
        async with running(make_worker(store)):
            ended = await client.wait("cat", timeout=120)

        assert ended.status == "succeeded"
        assert [image.key for image in ended.images] == ["results/cat/0.png", "results/cat/1.png"]
        assert await keys(store) == ["results/cat/0.png", "results/cat/1.png", "results/cat/result.json"]


async def test_two_workers_see_one_file_and_one_gets_the_claim(tmp_path: Path):
    """Both try to create the same claim; the store lets one of them, and the other does nothing."""
    async with open_store(str(tmp_path)) as store:
        await store.create("requests/cat.json", body := json.dumps(CAT).encode())
        [listed] = [info async for info in store.list("requests/")]
        workers = [
            Claims(store, session=name, clock=time.monotonic, rng=random.Random(name))
            for name in ("first", "second")
        ]
        plan = {"seeds": [5]}
        held = await asyncio.gather(*(one.take(listed, body, id="cat", plan=plan) for one in workers))

        [winner] = [one for one in held if one is not None]
        assert await keys(store) == ["claims/cat/000001"]  # it carries the request now
        claim = json.loads((await store.get("claims/cat/000001")).body)
        assert claim["session"] == winner.claim.session
        assert json.loads(claim["frozen"]["text"]) == CAT


def test_a_worker_dies_and_the_next_adopts_its_images(tmp_path: Path):
    """The second worker waits until the lease has run out, keeps what is stored, and draws the rest."""
    store, diary = tmp_path / "store", tmp_path / "diary"
    null = {"diary": str(diary)}  # it gets a line for each image drawn
    with worker(store, null=null | {"seconds_per_step": 0.2}) as first:
        drop(store, "cat.json", CAT | {"number_of_images": 10})
        while not files(store / "results", "0.png"):
            time.sleep(0.01)
        first.kill()
        first.wait()
    stored = [image.stem for image in files(store / "results", "*.png")]

    with worker(store, null=null):
        ended = result(store, "cat", timeout=120)

    assert (ended["status"], ended["attempts"], len(ended["images"])) == ("succeeded", 2, 10)
    drawn = diary.read_text().splitlines()
    assert "0" in stored
    assert [drawn.count(f"cat {index}") for index in stored] == [1] * len(stored)


async def test_a_batch_is_a_file_of_requests_and_ends_with_a_summary():
    """Each line is a request of its own; when the last one is over, the batch gets its result."""
    store = MemoryStore()
    lines = [CAT | {"custom_id": "red"}, CAT | {"custom_id": "bad", "steps": -1}]
    await store.create("requests/palette.jsonl", "\n".join(map(json.dumps, lines)).encode())
    async with running(make_worker(store)), AsyncClient(store) as client:
        ended = await client.wait("palette", timeout=120)
        red = await client.result("palette/red")

    assert ended.status == "partial"
    assert (ended.batch.counts.succeeded, ended.batch.counts.failed) == (1, 1)
    assert [image.key for image in red.images] == ["results/palette/red/0.png"]
    [error] = (await store.get("results/palette/errors.jsonl")).body.splitlines()
    assert (json.loads(error)["custom_id"], json.loads(error)["error"]["field"]) == ("bad", "steps")
    assert await store.head("results/palette/gallery.html")


async def test_a_client_cancels_by_creating_the_result_first():
    """A result is written once: the client's `canceled` stands, and the worker stops drawing."""
    store = MemoryStore()
    slow = {"seconds_per_step": 0.1}
    async with running(make_worker(store, null=slow)) as worker, AsyncClient(store) as client:
        ticket = await client.submit(CAT | {"steps": 150}, id="cat")
        await until(lambda: worker.jobs.active)
        await client.cancel(ticket)
        await until(lambda: not worker.jobs.busy)

    assert await keys(store, "results/") == ["results/cat/result.json"]
    assert json.loads((await store.get("results/cat/result.json")).body)["status"] == "canceled"
    assert not await keys(store, "claims/")
