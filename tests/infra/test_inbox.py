"""When a listing loop looks again: at news, after a pause that grows, and never after stop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from infra.stores.changes import changes
from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

NEVER = 1000.0  # seconds; longer than any test


async def test_the_first_look_is_at_once():
    """A worker that starts looks before it waits."""
    async with (
        asyncio.timeout(120),
        aclosing(changes(MemoryStore(), asyncio.Event(), shortest=NEVER)) as looks,
    ):
        await anext(looks)


async def test_stop_ends_the_longest_pause_at_once():
    """Setting the event ends the loop in the middle of a pause."""
    stop = asyncio.Event()
    looks = 0
    async with asyncio.timeout(120):
        async for _ in changes(MemoryStore(), stop, shortest=NEVER, longest=NEVER):
            looks += 1
            asyncio.get_running_loop().call_later(0.01, stop.set)
    assert looks == 1


async def test_stop_before_the_first_look_means_none():
    """A worker that was told to stop while it started looks at nothing."""
    stop = asyncio.Event()
    stop.set()
    assert [look async for look in changes(MemoryStore(), stop)] == []


async def test_the_pause_doubles_while_nothing_comes_and_shrinks_with_work(monkeypatch: pytest.MonkeyPatch):
    """0.5 s, doubled to 15 s at most; back to 0.5 s after a look that found something."""
    pauses: list[float] = []

    async def noted(stop: asyncio.Event, news: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("infra.stores.changes._wait_for_either", noted)
    found = iter([False] * 7 + [True, True, False, False])
    stop = asyncio.Event()

    def found_work() -> bool:
        answer = next(found)
        if not answer and len(pauses) == 10:
            stop.set()
        return answer

    async for _ in changes(MemoryStore(), stop, found_work=found_work):
        pass
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 0.5, 0.5, 1, 2]


async def test_a_new_file_ends_the_pause(tmp_path: Path):
    """A file dropped into a directory, at any depth, is looked for long before the pause is over."""
    stop = asyncio.Event()
    looks: asyncio.Queue[None] = asyncio.Queue()

    async with DirectoryStore(tmp_path) as store:

        async def loop() -> None:
            async for _ in changes(store, stop, shortest=NEVER, longest=NEVER):
                looks.put_nowait(None)

        task = asyncio.create_task(loop())
        async with asyncio.timeout(120):
            await looks.get()
            await _until_heard(tmp_path / "requests/a.json", looks)
            (tmp_path / "requests/cats").mkdir()
            await _until_heard(tmp_path / "requests/cats/a.json", looks)
            stop.set()
            await task


async def _until_heard(path: Path, looks: asyncio.Queue[None]) -> None:
    """Drop a file, and touch it again in case the watch was not set up yet."""
    while not looks.empty():
        looks.get_nowait()
    heard = asyncio.create_task(looks.get())
    while not heard.done():
        path.write_text("{}")
        await asyncio.wait([heard], timeout=0.3)


async def test_a_directory_that_cannot_be_watched_is_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Too few inotify watches cost a warning and some seconds, not requests."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("watchfiles.awatch", refuse)
    stop = asyncio.Event()
    looks = 0
    async with DirectoryStore(tmp_path) as store, asyncio.timeout(120):
        async for _ in changes(store, stop, shortest=0.01, longest=0.01):
            looks += 1
            if looks == 3:
                stop.set()
    assert "found by listing only" in caplog.text
