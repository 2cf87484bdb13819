"""Folders that the past left empty: they go, but never while somebody may be about to write into one."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from infra.claims.claim import Timing
from infra.claims.claims import Claims
from infra.stores.directory import safe_paths
from infra.stores.directory.empty_folders import OURS, THEIRS
from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from schemas import layout
from tests.worker_process import drop, result, worker

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    async with DirectoryStore(tmp_path / "store", fsync=False) as opened:
        await opened.make_folder(layout.EXPRESS)
        yield opened


def age(root: Path, seconds: float) -> None:
    """Make every folder below as old as this."""
    for folder, _, _ in os.walk(root):
        facts = os.stat(folder)
        os.utime(folder, (facts.st_atime, facts.st_mtime - seconds))


async def drained_batch(store: DirectoryStore, name: str, rows: int = 2) -> None:
    """What is left when a batch is over: its rows were dropped, drawn, and deleted."""
    for row in range(rows):
        await store.create(f"requests/{name}/row-{row}.json", b"{}")
        await store.put(f"status/{name}/row-{row}.json", b"{}")
    await store.create(f"results/{name}/result.json", b"{}")
    for row in range(rows):
        await store.delete(f"requests/{name}/row-{row}.json")
        await store.delete(f"status/{name}/row-{row}.json")


async def test_a_look_costs_what_waits_and_not_what_was(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """Folders that a listing of the inbox opens, with 300 batches of the past: as many as with none."""
    opened = 0
    real = safe_paths._entries

    def counted(*arguments: Any) -> Any:
        nonlocal opened
        opened += 1
        return real(*arguments)

    async def look() -> int:
        nonlocal opened
        opened = 0
        keys = [info.key async for info in store.list(layout.REQUESTS)]
        assert keys == ["requests/lone.json"]
        return opened

    monkeypatch.setattr(safe_paths, "_entries", counted)
    await store.create("requests/lone.json", b"{}")
    without_a_past = await look()
    for number in range(300):
        await drained_batch(store, f"batch-{number}")
    assert await look() == without_a_past + 300
    age(store.root, OURS + 1)
    assert await store.remove_empty_folders() == 2 * 300  # below requests/ and status/
    assert await look() == without_a_past == 2
    assert (store.root / "requests/express").is_dir()


async def test_what_a_killed_worker_leaves_below_claims_goes(store: DirectoryStore):
    """It was killed after it had deleted a claim, and before it removed the claim's folders."""
    (store.root / "claims/cats/a").mkdir(parents=True)
    await store.create("claims/dogs/a/000001", b"{}")
    assert await store.remove_empty_folders() == 0, "a creator may be about to write into it"
    age(store.root, OURS + 1)
    assert await store.remove_empty_folders() == 2
    assert not (store.root / "claims/cats").exists()
    assert [info.key async for info in store.list("claims/")] == ["claims/dogs/a/000001"]


async def test_a_clients_folder_stays_for_a_day(store: DirectoryStore):
    """`mkdir requests/cats`, lunch, `cp a.json requests/cats/`: the copy must not fail."""
    (store.root / "requests/cats/deep").mkdir(parents=True)
    (store.root / "requests/express/mine").mkdir()
    age(store.root, THEIRS - 60)
    assert await store.remove_empty_folders() == 0
    (store.root / "requests/cats/deep/a.json").write_bytes(b"{}")
    age(store.root, 2 * THEIRS)
    assert await store.remove_empty_folders() == 1
    assert (store.root / "requests/cats/deep/a.json").is_file()
    assert not (store.root / "requests/express/mine").exists()


async def test_hidden_and_unfinished_files_keep_their_folder(store: DirectoryStore):
    """rsync and editors write under other names first."""
    for name in (".a.json.x1", "a.part", "a.json~"):
        (store.root / f"requests/{name}-folder").mkdir()
        (store.root / f"requests/{name}-folder/{name}").write_bytes(b"")
    (store.root / "elsewhere").mkdir()
    (store.root / "requests/link").symlink_to(store.root / "elsewhere")
    age(store.root, 2 * THEIRS)
    assert await store.remove_empty_folders() == 0
    assert (store.root / "elsewhere").is_dir()


async def test_writers_and_the_removal_may_meet(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch):
    """Folders are removed as fast as they are made: no create and no put fails, and nothing is lost."""
    monkeypatch.setattr("infra.stores.directory.empty_folders.OURS", -1.0)
    monkeypatch.setattr("infra.stores.directory.empty_folders.THEIRS", -1.0)
    stop = False

    async def remove() -> int:
        removed = 0
        while not stop:
            removed += await store.remove_empty_folders()
        return removed

    async def write(writer: int) -> None:
        for number in range(60):
            for key in (f"claims/c/{number % 3}/{writer:06d}", f"requests/r-{number % 3}/{writer}.json"):
                assert await store.create(key, b"x")
                await store.put(f"status/s-{number % 3}/{writer}.json", b"x")
                assert (await store.get(key)).body == b"x"
                await store.delete(key)
            await store.delete(f"status/s-{number % 3}/{writer}.json")

    removal = asyncio.create_task(remove())
    await asyncio.gather(*map(write, range(4)))
    stop = True
    assert await removal > 0


async def test_a_worker_removes_them(tmp_path: Path):
    """A real one, at its start."""
    async with DirectoryStore(tmp_path, fsync=False) as opened:
        await drained_batch(opened, "past")
    age(tmp_path, OURS + 1)
    with worker(tmp_path):
        drop(tmp_path, "now.json", {"prompt": "a", "steps": 1})
        result(tmp_path, "now")
    assert not (tmp_path / "requests/past").exists()
    assert not (tmp_path / "status/past").exists()
    assert (tmp_path / "requests/express").is_dir()


async def test_a_status_without_a_claim_is_removed():
    """Its worker was killed between its last two writes. That of a request in hand stays."""
    store = MemoryStore()
    now = 0.0
    timing = Timing(forget=100.0)
    claims = Claims(store, session="s", clock=lambda: now, rng=random.Random(1), timing=timing)
    held = await claims.take(None, b'{"prompt": "a"}', id="b/alive", plan=None)
    assert held is not None
    for id in ("b/alive", "b/gone", "gone"):
        await store.put(layout.status_key(id), b"{}")
    await claims.sweep()
    assert [info.key async for info in store.list("status/")] == ["status/b/alive.json"]
    await store.put(layout.status_key("late"), b"{}")
    await claims.sweep()
    assert await store.head("status/late.json"), "a listing of every sweep would cost a call each"
    now = 101.0
    await claims.sweep()
    assert await store.head("status/late.json") is None
