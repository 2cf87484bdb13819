"""The roll-up of a large batch: bounded memory, pages of bounded size, and nothing is read twice."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from consumer.jobs import row_spool, summary
from consumer.jobs.batches import Batches
from consumer.jobs.row_spool import RowSpool
from infra.claims.claim import Claim
from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from infra.stores.store import Info, Store, Stored
from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.limits import Limits
from schemas.result import Frozen
from tests.ended_batches import batch_of, end

pytestmark = pytest.mark.anyio


class CountingStore(MemoryStore):
    """Counts reads and listed keys, and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: Counter[str] = Counter()
        self.listed = 0

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        self.gets[key] += 1
        return await super().get(key, max_bytes=max_bytes)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        async for info in super().list(prefix, start_after=start_after):
            self.listed += 1
            yield info


def batches(store: Store) -> Batches:
    return Batches(store, Limits(), asyncio.get_running_loop().time, "s")


async def test_memory_does_not_grow_with_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A row more costs its line in the batch and its place in the spool, not its result and its figure.

    It is measured when every row was read. The peak depends on how many reads happen to be under way.
    """
    monkeypatch.setattr(row_spool, "_IN_MEMORY", 1)  # byte; 0 would mean that nothing goes to the disk
    monkeypatch.setattr(summary, "_EMBEDDED", 0)
    held_bytes = []
    write = summary.write

    async def measured(*args: Any) -> Any:
        gc.collect()
        held_bytes.append(tracemalloc.get_traced_memory()[0])
        return await write(*args)

    monkeypatch.setattr(summary, "write", measured)
    for rows in (400, 1400):
        store = DirectoryStore(tmp_path / str(rows), fsync=False)
        async with store:
            held = batch_of(rows)
            await end(store, held)
            tracemalloc.start()
            result = await batches(store).run(held)
            tracemalloc.stop()
            assert result.batch is not None
            assert result.batch.counts.succeeded == rows
    few, many = held_bytes
    assert (
        many - few
    ) / 1000 < 900  # bytes a row: 540; 1,230 with the spool in memory, 2,450 with every result


async def test_the_gallery_has_pages_that_lead_to_each_other():
    """Every picture is on one page, in the order of the file; each page has a bounded number of them."""
    store, held = MemoryStore(), batch_of(2 * summary.PER_PAGE + 5)
    await end(store, held)
    result = await batches(store).run(held)
    assert result.batch is not None
    assert (result.batch.gallery, result.batch.gallery_pages) == ("results/b/gallery.html", 3)
    names = ["gallery.html", "gallery-2.html", "gallery-3.html"]
    pages = [(await store.get(f"results/b/{name}")).body.decode() for name in names]
    shown = [re.findall(r'<a href="(row-\d+)/0\.png">', page) for page in pages]
    assert [len(rows) for rows in shown] == [summary.PER_PAGE, summary.PER_PAGE, 5]
    assert [row for rows in shown for row in rows] == [f"row-{i}" for i in range(2 * summary.PER_PAGE + 5)]
    links = [sorted(set(re.findall(r'href="(gallery[^"]*)"', page))) for page in pages]
    assert links == [["gallery-2.html", "gallery-3.html"], ["gallery-3.html", "gallery.html"], names[1::-1]]
    assert f"{2 * summary.PER_PAGE + 5} pictures" in pages[2]
    assert "page 3 of 3" in pages[2]
    assert await store.head("results/b/gallery-4.html") is None


async def test_a_small_batch_has_one_page_and_says_nothing_of_pages():
    """As it always was, in its files and in its result."""
    store, held = MemoryStore(), batch_of(3)
    await end(store, held)
    result = await batches(store).run(held)
    assert b"gallery_pages" not in result.to_json()
    assert b"page 1" not in (await store.get("results/b/gallery.html")).body


async def test_an_ended_row_is_read_once_and_not_listed_again(monkeypatch: pytest.MonkeyPatch):
    """The rows end in three waves, with a look after each: every look lists what follows the first open row."""
    store, held = CountingStore(), batch_of(900)
    looks = 0

    async def wave(_: float) -> None:
        nonlocal looks
        looks += 1
        await end(store, held, range(300 * (looks - 1), 300 * looks))

    monkeypatch.setattr("consumer.jobs.batches.asyncio.sleep", wave)
    # Padded names, so that the order of the keys is the order of the file.
    held.claim = batch_with_padded_names(900)
    result = await batches(store).run(held)
    assert result.status == "succeeded"
    assert looks == 3
    reads = [n for key, n in store.gets.items() if key.endswith("result.json")]
    assert (len(reads), max(reads)) == (900, 1)
    assert store.listed <= 900 * 2 + 10  # an image and a result for each row, once


def batch_with_padded_names(rows: int) -> Claim:
    lines = [json.dumps({"custom_id": f"row-{i:05}", "prompt": "x"}) for i in range(rows)]
    body = "\n".join(lines).encode()
    return batch_of(1).claim.model_copy(
        update={"frozen": Frozen.of(body), "fingerprint": layout.fingerprint(body)}
    )


async def test_the_last_rows_are_asked_for_and_not_listed(monkeypatch: pytest.MonkeyPatch):
    """One slow row among thousands of keys: a look for it costs one read, and no pages of a listing."""
    store, held = CountingStore(), batch_of(700)
    await end(store, held, range(1, 700))  # the first one is late, so all other keys follow it
    looks = 0

    async def wait(_: float) -> None:
        nonlocal looks
        looks += 1
        store.listed = 0
        if looks == 5:
            await end(store, held, range(1))

    monkeypatch.setattr("consumer.jobs.batches.asyncio.sleep", wait)
    await batches(store).run(held)
    assert looks == 5
    assert store.listed == 0
    assert store.gets["results/b/row-0/result.json"] <= 6


async def test_the_pause_is_not_longer_than_the_rest_takes(monkeypatch: pytest.MonkeyPatch):
    """A listing of many rows takes seconds; nine times that is not slept when the last rows end sooner.

    Rows end one a second. A look lists for 20 s, so it would be followed by a pause of 180 s.
    """
    store, held = CountingStore(), batch_of(600)
    now, slept = 0.0, list[float]()
    real = CountingStore.list

    async def slow(self: CountingStore, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        nonlocal now
        async for info in real(self, prefix, start_after=start_after):
            yield info
        now += 20.0

    async def wait(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds
        await end(store, held, range(min(600, int(now))))

    monkeypatch.setattr(CountingStore, "list", slow)
    monkeypatch.setattr("consumer.jobs.batches.asyncio.sleep", wait)
    await Batches(store, Limits(), lambda: now, "s").run(held)
    assert len(slept) > 2
    assert now < 600 + 30, "the last look is over soon after the last row"


async def test_reading_new_results_makes_no_pause(monkeypatch: pytest.MonkeyPatch):
    """They are read once, however often we look; only the cost of a look in vain asks for rare ones."""
    store, held = CountingStore(), batch_of(600)
    now, slept = 0.0, list[float]()
    real = CountingStore.get

    async def slow(self: CountingStore, key: str, *, max_bytes: int | None = None) -> Stored:
        nonlocal now
        now += 0.1
        return await real(self, key, max_bytes=max_bytes)

    async def wait(seconds: float) -> None:
        slept.append(seconds)
        await end(store, held, range(300, 600))

    await end(store, held, range(300))
    monkeypatch.setattr(CountingStore, "get", slow)
    monkeypatch.setattr("consumer.jobs.batches.asyncio.sleep", wait)
    await Batches(store, Limits(), lambda: now, "s").run(held)
    assert slept == [0.1]


async def test_an_unreadable_picture_does_not_stop_the_summary():
    """Somebody replaced a stored picture: the page has its figure, without a thumbnail."""
    store, held = MemoryStore(), batch_of(2)
    await end(store, held)
    await store.put("results/b/row-1/0.png", b"no picture at all")
    result = await batches(store).run(held)
    assert result.status == "succeeded"
    page = (await store.get("results/b/gallery.html")).body.decode()
    assert page.count("data:image/webp") == 1
    assert 'href="row-1/0.png"' in page


async def test_a_full_temporary_folder_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch):
    """It is the operator's disk, so it costs the batch no attempt."""

    def full(_: int) -> Any:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr("consumer.jobs.row_spool.tempfile.SpooledTemporaryFile", full)
    with RowSpool() as spool, pytest.raises(StoreUnavailable, match=r"temporary folder .*TMPDIR"):
        spool.add(1, {"a": 1})
