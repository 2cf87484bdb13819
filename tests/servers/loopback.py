"""Serving on loopback from a thread of the test's own process, for as long as a block lasts."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager


@contextmanager
def serving(server: Callable[[], AbstractAsyncContextManager[str]], name: str) -> Iterator[str]:
    """Run an asynchronous server in a thread; gives what it gives, usually its URL."""
    started: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with server() as url:
            started.set_result(url)
            await stop.wait()

    def main() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    url = started.result(timeout=120)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=120)


@dataclass
class Doors:
    """Where a server listens; used from other threads than its own."""

    runner: web.AppRunner
    loop: asyncio.AbstractEventLoop
    port: int
    site: web.TCPSite | None = None

    def move(self, how: str) -> None:
        work = self.open() if how == "open" else self.close()
        asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=120)

    async def open(self) -> None:
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await self.site.start()
        self.port = self.runner.addresses[0][1]

    async def close(self) -> None:
        assert self.site is not None
        await self.site.stop()
