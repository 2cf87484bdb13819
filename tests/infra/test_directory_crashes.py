"""What is left of a directory store whose processes die, or whose disk goes away."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from infra.stores.directory import safe_paths
from infra.stores.directory.store import DirectoryStore
from schemas.errors import StoreUnavailable
from tests.infra.directory_bench import keys, start

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio


WRITER = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, name):
    async with DirectoryStore(Path(root)) as store:
        async def write(lane):
            for n in range(100_000):
                key = f"results/{name}-{lane}-{n}/0.png"
                assert await store.create(key, key.encode() * 500, metadata={"of": key.replace("/", ":")})
                print(key, flush=True)
        await asyncio.gather(*(write(lane) for lane in range(6)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_a_killed_writer_leaves_whole_objects_or_none(folder: DirectoryStore):
    """Writers are killed in full flight: what they had reported is there, and nothing is half there."""
    reported: set[str] = set()
    for run in range(4):
        writer = start(WRITER, str(folder.root), f"run{run}")
        assert writer.stdout is not None
        first = writer.stdout.readline()
        await asyncio.sleep(0.03 * run)
        writer.kill()
        whole_lines = (first + writer.communicate(timeout=120)[0]).split("\n")[:-1]
        reported.update(whole_lines)

    found = [info.key async for info in folder.list("results/")]
    assert reported <= set(found)
    assert len(reported) >= 4
    for key in found:
        stored = await folder.get(key)
        assert stored.body == key.encode() * 500
        assert dict(stored.info.metadata) == {"of": key.replace("/", ":")}


async def test_leftovers_of_the_dead_are_swept_after_an_hour(folder: DirectoryStore):
    """Opening removes old staging files, and leaves those that somebody may be writing."""
    staging = folder.root / safe_paths.STAGING
    (staging / "old").write_bytes(b"half")
    (staging / "new").write_bytes(b"half")
    os.utime(staging / "old", (time.time() - 3700, time.time() - 3700))

    async with DirectoryStore(folder.root):
        assert os.listdir(staging) == ["new"]
    assert await keys(folder) == []


async def test_an_object_whose_creator_died_before_tidying_is_whole(folder: DirectoryStore):
    """With its staging name still there an object is read and listed like any other."""
    await folder.create("requests/a.json", b"{}")
    os.link(folder.root / "requests/a.json", folder.root / safe_paths.STAGING / "left")

    assert (await folder.get("requests/a.json")).body == b"{}"
    assert await keys(folder) == ["requests/a.json"]


async def test_a_link_that_worked_but_was_reported_as_failed_counts(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """A network file system may answer EEXIST to its own repeated request; the link count tells."""
    real = os.link

    def twice(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", twice)
    assert await folder.create("claims/a/000001", b"mine", metadata={"n": "1"})
    assert dict((await folder.get("claims/a/000001")).info.metadata) == {"n": "1"}
    assert not await folder.create("claims/a/000001", b"other")


async def test_a_missing_disk_is_not_an_empty_store(folder: DirectoryStore):
    """When the directory itself is gone every verb says so; nothing is taken for absent."""
    shutil.rmtree(folder.root)
    with pytest.raises(StoreUnavailable, match="is not there: create it, or mount its disk"):
        await folder.head("results/a/result.json")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await folder.get("results/a/result.json")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await folder.create("results/a/result.json", b"")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await keys(folder, "requests/")


async def test_a_store_that_was_emptied_under_us_goes_on(folder: DirectoryStore):
    """Removing everything inside the directory, staging too, is a fresh start and no error."""
    await folder.put("requests/a.json", b"1")
    for child in folder.root.iterdir():
        shutil.rmtree(child)
    assert await keys(folder) == []
    assert await folder.create("requests/a.json", b"2", metadata={"n": "1"})
    assert (await folder.get("requests/a.json")).body == b"2"
