"""The cache of published models: by content, verified, by size, shared, and never without what is in use."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from infra.models import published
from infra.models.cache import ModelCache, default_folder
from infra.stores.directory.store import DirectoryStore
from infra.stores.files import DiskTrouble
from infra.stores.store import WrongContent
from schemas.models import PublishedCard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Publish = Callable[..., Awaitable[PublishedCard]]

pytestmark = pytest.mark.anyio


class CountingStore(DirectoryStore):
    """A directory that says what was fetched, and can be slow."""

    fetched: list[str]
    gate: asyncio.Event | None = None

    async def fetch_file(self, key, path, *, progress=None):
        self.fetched.append(key)
        if self.gate is not None:
            await self.gate.wait()
        return await super().fetch_file(key, path, progress=progress)


@pytest.fixture
async def shelf(tmp_path: Path):
    store = CountingStore(tmp_path / "store")
    store.fetched = []
    async with store:
        yield store


@pytest.fixture
def publish(shelf: CountingStore, tmp_path: Path) -> Publish:
    """Publish a model whose files have the given contents."""

    async def make(name: str = "dog", **files: bytes) -> PublishedCard:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        (folder / "unet").mkdir(parents=True)
        for file, body in files.items():
            (folder / "unet" / f"{file}.safetensors").write_bytes(body)
        card = PublishedCard(name=name, kind="full")
        return await published.publish(shelf, folder, card)

    return make


def held(cache: ModelCache) -> set[bytes]:
    return {path.read_bytes() for path in cache.folder.glob("sha256/*/*")}


async def test_a_version_is_a_folder_of_its_files(shelf: CountingStore, publish: Publish, tmp_path: Path):
    """As it was published; the second use fetches nothing, also in another process's cache."""
    card = await publish(unet=b"weights", vae=b"others")
    cache = ModelCache(tmp_path / "cache")
    first, second = await cache.use(shelf, card), await cache.use(shelf, card)
    assert first.folder == second.folder
    assert (first.folder / "unet" / "unet.safetensors").read_bytes() == b"weights"
    assert len(shelf.fetched) == 2
    await ModelCache(tmp_path / "cache").use(shelf, card)
    assert len(shelf.fetched) == 2
    assert not list(cache.folder.rglob("*.part"))


async def test_equal_files_of_two_versions_are_kept_once(
    shelf: CountingStore, publish: Publish, tmp_path: Path
):
    cache = ModelCache(tmp_path / "cache")
    one, two = await publish(unet=b"one", vae=b"same"), await publish(unet=b"two", vae=b"same")
    folders = {(await cache.use(shelf, card)).folder for card in (one, two)}
    assert len(folders) == 2
    assert len(shelf.fetched) == 3


async def test_many_users_fetch_once(shelf: CountingStore, publish: Publish, tmp_path: Path):
    """In one process and over two, while it is being fetched."""
    card = await publish(unet=b"weights")
    shelf.gate = asyncio.Event()
    caches = [ModelCache(tmp_path / "cache") for _ in range(2)]
    uses = [asyncio.create_task(caches[n % 2].use(shelf, card)) for n in range(6)]
    while not shelf.fetched:
        await asyncio.sleep(0.01)
    shelf.gate.set()
    await asyncio.gather(*uses)
    assert len(shelf.fetched) == 1


async def test_a_damaged_file_in_the_store_is_not_used(
    shelf: CountingStore, publish: Publish, tmp_path: Path
):
    """It is fetched once more, then refused by name; nothing of it stays."""
    card = await publish(unet=b"weights")
    await shelf.put("models/dog/1/unet/unet.safetensors", b"WEIGHTS")
    cache = ModelCache(tmp_path / "cache")
    with pytest.raises(WrongContent, match=r"models/dog/1/unet/unet.safetensors is damaged"):
        await cache.use(shelf, card)
    assert len(shelf.fetched) == 2
    assert not [p for p in cache.folder.rglob("*") if p.is_file()]


async def test_a_damaged_file_in_the_cache_is_fetched_again(
    shelf: CountingStore, publish: Publish, tmp_path: Path
):
    """Also when its size and its time are what they were."""
    card = await publish(unet=b"weights")
    cache = ModelCache(tmp_path / "cache")
    (await cache.use(shelf, card)).release()
    [file] = cache.folder.glob("sha256/*/*")
    facts = file.stat()
    file.write_bytes(b"Weights")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    used = await ModelCache(tmp_path / "cache").use(shelf, card)
    assert (used.folder / "unet" / "unet.safetensors").read_bytes() == b"weights"
    assert len(shelf.fetched) == 2


async def test_the_least_recently_used_goes_first(shelf: CountingStore, publish: Publish, tmp_path: Path):
    """By bytes; what was used again stays; a version that went is fetched again into the same folder."""
    cache = ModelCache(tmp_path / "cache", max_bytes=30)
    cards = [await publish(f"m{n}", unet=bytes([n]) * 10) for n in range(4)]
    for number, card in enumerate(cards[:3]):
        used = await cache.use(shelf, card)
        used.release()
        os.utime(next(iter(used.folder.rglob("*.safetensors"))).resolve(), (number, number))
    (await cache.use(shelf, cards[0])).release()
    (await cache.use(shelf, cards[3])).release()
    assert held(cache) == {bytes([n]) * 10 for n in (0, 2, 3)}
    used = await cache.use(shelf, cards[1])
    assert (used.folder / "unet" / "unet.safetensors").read_bytes() == bytes([1]) * 10


async def test_what_is_in_use_stays(shelf: CountingStore, publish: Publish, tmp_path: Path):
    """In this process and in others, even over the limit; released, it goes."""
    folder = tmp_path / "cache"
    mine, others = ModelCache(folder, max_bytes=10), ModelCache(folder, max_bytes=10)
    cards = [await publish(f"m{n}", unet=bytes([n]) * 10) for n in range(4)]
    used = await mine.use(shelf, cards[0])
    theirs = await others.use(shelf, cards[1])
    (await mine.use(shelf, cards[2])).release()
    assert held(mine) == {bytes([n]) * 10 for n in (0, 1, 2)}
    used.release()
    used.release()
    theirs.release()
    (await mine.use(shelf, cards[3])).release()
    assert held(mine) == {bytes([3]) * 10}


async def test_a_fetch_that_is_cancelled_leaves_no_lock(
    shelf: CountingStore, publish: Publish, tmp_path: Path
):
    card = await publish(unet=b"weights")
    shelf.gate = asyncio.Event()
    cache = ModelCache(tmp_path / "cache")
    task = asyncio.create_task(cache.use(shelf, card))
    while not shelf.fetched:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    shelf.gate = None
    assert (await cache.use(shelf, card)).folder.is_dir()


async def test_a_full_disk_is_said(shelf: CountingStore, publish: Publish, tmp_path: Path, monkeypatch):
    """Before anything is fetched."""
    card = await publish(unet=b"weights")
    cache = ModelCache(tmp_path / "cache")
    usage = sys.modules["shutil"].disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("infra.models.cache.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskTrouble, match="has no room for 7 bytes"):
        await cache.use(shelf, card)
    assert shelf.fetched == []


def test_the_folder_is_a_setting(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DREAMDROP_MODEL_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("DREAMDROP_MODEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert str(default_folder()) == "/var/cache/dreamdrop/models"
