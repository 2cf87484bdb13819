"""Metadata in a directory: it comes and goes with its object, whenever a process dies, whoever sweeps."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from infra.stores.directory import safe_paths
from infra.stores.directory.metadata import Sidecars, staging_name
from infra.stores.directory.store import DirectoryStore
from schemas.errors import DreamError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

LATER = 7200.0  # seconds; then all that lies in staging is taken for a dead process's

#: Forks a writer for every step that it could die at, each in a folder of its own, until one lives to the end.
DYING = """
import asyncio, os, sys, time
from pathlib import Path
from infra.stores.directory.store import DirectoryStore
from infra.stores.directory.metadata import Sidecars, staging_name

STEPS = {"os.link", "os.rename", "os.remove", "open"}

async def work(root):
    async with DirectoryStore(root, fsync=False) as store:
        await store.create("results/a/0.png", b"1", metadata={"n": "1"})
        await store.create("results/a/0.png", b"2", metadata={"n": "2"})
        await store.create("results/b/0.png", b"1", metadata={"n": "1"})
        await store.put("results/b/0.png", b"3")
        await store.delete("results/a/0.png")
        await store.create("results/c/0.png", b"1", metadata={"n": "1"})
        os.link(root / "results/c/0.png", root / ".staging" / Path(LEFT).name)
    Sidecars(root, fsync=False).sweep(time.time() + 7200)

LEFT = "1-0123456789abcdef-" + "0" * 32

def live(root, last):
    done = 0
    def step(event, arguments):
        nonlocal done
        if event in STEPS and (event != "open" or ".json" in str(arguments[0])):
            done += 1
            if done == last:
                os._exit(9)
    sys.addaudithook(step)
    asyncio.run(work(root))

for last in range(1, 200):
    child = os.fork()
    if child == 0:
        live(Path(sys.argv[1]) / str(last), last)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(last - 1)
        break
"""


def sidecars(root: Path) -> list[Path]:
    return sorted((root / safe_paths.META).rglob("*.json"))


async def sidecars_of_objects(root: Path) -> int:
    """How many objects have metadata."""
    async with DirectoryStore(root, fsync=False) as store:
        infos = [await store.head(info.key) async for info in store.list("results/")]
    return sum(bool(info and info.metadata) for info in infos)


async def test_no_crash_leaves_a_sidecar_without_its_object(tmp_path: Path):
    """A writer dies before each single step of create, put, delete and sweep; the next sweep makes all whole."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", DYING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 20
    left = 0
    for root in tmp_path.iterdir():
        left += len(sidecars(root)) - await sidecars_of_objects(root)
        Sidecars(root, fsync=False).sweep(time.time() + LATER)
        assert len(sidecars(root)) == await sidecars_of_objects(root), f"after dying at step {root.name}"
        assert os.listdir(root / safe_paths.STAGING) == []
        for key, body in (("a", b"1"), ("c", b"1")):
            path = root / f"results/{key}/0.png"
            assert not path.exists() or path.read_bytes() == body
    assert left > 3, "the crashes did leave some, or this test shows nothing"


async def test_a_sweep_leaves_what_somebody_may_be_writing(tmp_path: Path):
    """What is younger than an hour stays, also when the object that goes is old."""
    async with DirectoryStore(tmp_path, fsync=False) as store:
        await store.create("results/a/0.png", b"1", metadata={"n": "1"})
        staging = tmp_path / safe_paths.STAGING
        name = f"{time.time_ns():x}-0123456789abcdef-{'0' * 32}"
        os.link(tmp_path / "results/a/0.png", staging / name)
        os.utime(staging / name, (1, 1))
        Sidecars(tmp_path, fsync=False).sweep(time.time())
        assert os.listdir(staging) == [name]
        Sidecars(tmp_path, fsync=False).sweep(time.time() + LATER)
        assert os.listdir(staging) == []


async def test_a_sweep_takes_no_metadata_from_a_writer_that_lives(tmp_path: Path):
    """Sweeps that take everybody for dead run beside writers: all that was created has its metadata."""
    over = threading.Event()

    def sweep() -> int:
        rounds = 0
        while not over.is_set():
            Sidecars(tmp_path, fsync=False).sweep(time.time() + LATER)
            rounds += 1
        return rounds

    made: set[str] = set()
    refused = 0

    async def write(lane: int, store: DirectoryStore) -> None:
        nonlocal refused
        for n in range(150):
            key = f"results/{lane}-{n}/0.png"
            try:
                if await store.create(key, b"x" * 100, metadata={"of": key.replace("/", ":")}):
                    made.add(key)
                if n % 3 == 0:
                    await store.delete(key)
                    made.discard(key)
            except DreamError:
                refused += 1  # taken for dead; the caller tries again, as after every fault of a store

    async with DirectoryStore(tmp_path, fsync=False) as store:
        sweeps = [asyncio.create_task(asyncio.to_thread(sweep)) for _ in range(2)]
        try:
            await asyncio.gather(*(write(lane, store) for lane in range(6)))
        finally:
            over.set()
        assert min(await asyncio.gather(*sweeps)) > 0
        Sidecars(tmp_path, fsync=False).sweep(time.time() + LATER)
        found = {info.key async for info in store.list("results/")}
        assert made <= found
        for key in found:
            info = await store.head(key)
            assert info is not None
            assert dict(info.metadata) == {"of": key.replace("/", ":")}
    assert made
    assert len(sidecars(tmp_path)) == len(found)


async def test_a_link_that_is_under_way_when_its_file_is_taken_for_dead_keeps_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """link(2) looks its source up first and makes the new name later, whatever the source is called by then."""
    async with DirectoryStore(tmp_path, fsync=False) as store:
        await store.create("results/a/0.png", b"1", metadata={"n": "1"})
        path, staging = tmp_path / "results/a/0.png", tmp_path / safe_paths.STAGING
        path.rename(staging / staging_name("results/a/0.png"))
        remove = Sidecars._remove

        def late(self: Sidecars, mark: str, version: str) -> None:
            remove(self, mark, version)
            os.link(staging / os.listdir(staging)[0], path)

        monkeypatch.setattr(Sidecars, "_remove", late)
        Sidecars(tmp_path, fsync=False).sweep(time.time() + LATER)
        info = await store.head("results/a/0.png")
        assert info is not None
        assert info.metadata == {"n": "1"}
        assert os.listdir(staging) == []


async def test_a_creator_that_was_taken_for_dead_keeps_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A sweep between a create's link and its end removes the staging name; the metadata stays."""
    real = os.link

    def slow(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        Sidecars(tmp_path, fsync=False).sweep(time.time() + LATER)

    async with DirectoryStore(tmp_path, fsync=False) as store:
        monkeypatch.setattr(os, "link", slow)
        assert await store.create("results/a/0.png", b"1", metadata={"n": "1"})
        assert dict((await store.get("results/a/0.png")).info.metadata) == {"n": "1"}
    assert json.loads(sidecars(tmp_path)[0].read_bytes()) == {"n": "1"}
