"""What a directory store guarantees to many processes at once, and for many keys."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from infra.stores.directory import safe_paths
from infra.stores.directory.store import DirectoryStore
from tests.infra.directory_bench import keys, start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


RACER = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, name, rounds):
    async with DirectoryStore(Path(root), fsync=False) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(rounds):
            key = f"claims/race-{n}/000001"
            won = await asyncio.gather(*(
                store.create(key, f"{name}-{task}".encode() * 1000, metadata={"winner": f"{name}-{task}"})
                for task in range(4)
            ))
            for task, mine in enumerate(won):
                if mine:
                    print(n, f"{name}-{task}", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_of_sixteen_creators_in_four_processes_one_wins(folder: DirectoryStore):
    """In each of 200 races exactly one creator is told so, and its body and metadata are what stays."""
    rounds = 200
    racers = [start(RACER, str(folder.root), f"p{n}", str(rounds)) for n in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=300)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0] * 4

    winners = {int(number): name for number, name in lines}
    assert sorted(int(number) for number, _ in lines) == list(range(rounds))
    for number, name in winners.items():
        found = await folder.get(f"claims/race-{number}/000001")
        assert found.body == name.encode() * 1000
        assert dict(found.info.metadata) == {"winner": name}
    assert os.listdir(folder.root / safe_paths.STAGING) == []


CHURN = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, rounds):
    async with DirectoryStore(Path(root), fsync=False) as store:
        for n in range(rounds):
            await store.create("claims/a/b/000001", b"x")
            await store.put("claims/a/c/000001", b"y")
            async for _ in store.list("claims/"):
                pass
            await store.delete("claims/a/b/000001")
            await store.delete("claims/a/c/000001")

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_folders_that_come_and_go_disturb_nobody(folder: DirectoryStore):
    """Empty claim folders are removed while other processes create in them, and no verb fails."""
    churners = [start(CHURN, str(folder.root), "150") for _ in range(3)]
    for churner in churners:
        churner.communicate(timeout=300)
    assert [churner.returncode for churner in churners] == [0] * 3
    assert await keys(folder) == []
    assert os.listdir(folder.root / "claims") == []


async def test_a_reader_never_sees_half_an_object(folder: DirectoryStore):
    """While an object is overwritten again and again, every read is one of the bodies, whole."""
    await folder.put("workers/w", b"0" * 50_000)
    done = asyncio.Event()

    async def write() -> None:
        for n in range(60):
            await folder.put("workers/w", b"%d" % (n % 10) * 50_000)
        done.set()

    writer = asyncio.create_task(write())
    while not done.is_set():
        found = await folder.get("workers/w")
        assert len(found.body) == found.info.size == 50_000
        assert len(set(found.body)) == 1
    await writer


async def test_every_version_has_an_etag_of_its_own(tmp_path: Path):
    """Versions written in the same tick of the kernel's clock, in a reused inode, still differ."""
    etags = []
    async with DirectoryStore(tmp_path / "store", fsync=False) as store:
        for n in range(300):
            await store.put("workers/w", b"%d" % (n % 10))
            info = await store.head("workers/w")
            assert info is not None
            etags.append(info.etag)
    assert len(set(etags)) == 300


# Size ---------------------------------------------------------------------------------------------


async def test_a_narrow_listing_reads_only_its_own_folder(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """The claims of one request are found without a look at the other thousand."""
    for n in range(50):
        (folder.root / f"claims/{n:03d}").mkdir(parents=True)
        (folder.root / f"claims/{n:03d}/000001").write_bytes(b"")
    opened = []
    real = os.scandir

    def spy(path: int) -> object:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", spy)
    assert await keys(folder, "claims/007/") == ["claims/007/000001"]
    assert len(opened) == 1


async def test_thousands_of_requests_are_listed_whole_and_in_order(folder: DirectoryStore):
    """A listing goes on over its internal pages without a gap or a repeat."""
    inbox = folder.root / "requests"
    inbox.mkdir()
    for n in range(2_500):
        os.close(os.open(inbox / f"{n:05d}.json", os.O_CREAT | os.O_WRONLY))
    assert await keys(folder, "requests/") == [f"requests/{n:05d}.json" for n in range(2_500)]
