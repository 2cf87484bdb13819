"""A directory store on a file system without hard links, such as exFAT, FAT and most SMB shares."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from infra.stores.directory import naming, safe_paths
from infra.stores.directory.store import DirectoryStore
from infra.stores.probe import probe
from producer import AsyncClient
from schemas.errors import Unsupported
from tests.worker_inside import make_worker, running

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], autouse=True)
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """link(2) fails as it does there."""

    def refuse(old: str, new: str, **_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param), old, None, new)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(safe_paths, "without_links", set())


async def test_creates_are_atomic_and_keep_their_metadata(tmp_path: Path):
    """The probe finds one winner of each race, across two openers of the directory; nothing is left in between."""
    async with DirectoryStore(tmp_path) as one, DirectoryStore(tmp_path) as two:
        assert (await probe(one)).is_atomic
        for n in range(20):
            answers = await asyncio.gather(
                *(store.create(f"claims/a/{n:06d}", b"%d" % i) for i in range(8) for store in (one, two))
            )
            assert answers.count(True) == 1
        assert await one.create("results/a/0.png", b"png", metadata={"plan": "ab"})
        assert not await two.create("results/a/0.png", b"other", metadata={"plan": "cd"})
        info = await two.head("results/a/0.png")
        assert info is not None
        assert dict(info.metadata) == {"plan": "ab"}
        await two.delete("results/a/0.png", etag=info.etag)
        assert await one.head("results/a/0.png") is None
    assert os.listdir(tmp_path / ".staging") == []


async def test_a_version_does_not_depend_on_inode_numbers(tmp_path: Path):
    """Such file systems make them up: a copy with the same time has another one, and is the same version."""
    async with DirectoryStore(tmp_path) as store:
        await store.create("results/a/0.png", b"png", metadata={"plan": "ab"})
        path = tmp_path / "results/a/0.png"
        facts = path.stat()
        path.rename(tmp_path / "old")
        path.write_bytes(b"png")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        info = await store.head("results/a/0.png")
        assert info is not None
        assert dict(info.metadata) == {"plan": "ab"}


async def test_a_request_is_drawn_there(tmp_path: Path):
    """From the dropped file to its result."""
    async with DirectoryStore(tmp_path) as store:
        await store.create("requests/cat.json", b'{"prompt": "a cat", "steps": 1, "width": 8, "height": 8}')
        async with running(make_worker(store)), AsyncClient(store) as client:
            assert (await client.wait("cat", timeout=120)).status == "succeeded"
        assert [info.key async for info in store.list("requests/")] == []


async def test_a_file_system_that_has_neither_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message says what is missing and what to use."""

    def refuse(old: str, new: str, **_: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), old, None, new)

    monkeypatch.setattr(naming, "rename_noreplace", refuse)
    async with DirectoryStore(tmp_path) as store:
        with pytest.raises(Unsupported, match="no hard links"):
            await probe(store)
