"""A store whose calls are timed: it passes everything on, and reports each call to whoever watches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from infra.stores.store import Info, Progress, Store, Stored
from schemas.errors import StoreUnavailable

T = TypeVar("T")


class Watcher(Protocol):
    """Learns of each call after it has ended."""

    def called(self, verb: str, seconds: float, failed: bool) -> None:
        """Take note of one call.

        Args:
            verb: the method of `Store`.
            seconds: for a listing those of all its pages, without the time that its reader took between them.
            failed: the store did not answer.
        """
        ...

    def created(self, key: str, body: bytes) -> None:
        """Take note of an object that a `create` of this process made."""
        ...

    def moved(self) -> None:
        """Take note that some bytes of a file were copied."""
        ...


class TimedStore(Store):
    """A view of a store; closing it leaves the store open. Cancelled calls are not reported."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self.whole = store
        self.url = store.url
        self.shows_partial_files = store.shows_partial_files
        self.is_remote = store.is_remote
        self._watcher = watcher

    async def _timed(self, verb: str, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            answer = await call
        except StoreUnavailable:
            self._watcher.called(verb, time.perf_counter() - began, True)
            raise
        except Exception:  # an answer too, such as that there is no such object
            self._watcher.called(verb, time.perf_counter() - began, False)
            raise
        self._watcher.called(verb, time.perf_counter() - began, False)
        return answer

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        return await self._timed("get", self.whole.get(key, max_bytes=max_bytes))

    async def is_being_written(self, key: str) -> bool | None:
        return await self.whole.is_being_written(key)

    async def head(self, key: str) -> Info | None:
        return await self._timed("head", self.whole.head(key))

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        call = self.whole.create(key, body, metadata=metadata, content_type=content_type)
        ours = await self._timed("create", call)
        if ours:
            self._watcher.created(key, body)
        return ours

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._timed("put", self.whole.put(key, body, content_type=content_type))

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        call = self.whole.create_file(key, path, sha256=sha256, progress=self._moving(progress))
        return await self._timed("create_file", call)

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        call = self.whole.fetch_file(key, path, progress=self._moving(progress))
        return await self._timed("fetch_file", call)

    def _moving(self, progress: Progress | None) -> Progress:
        def report(done: int) -> None:
            self._watcher.moved()
            if progress is not None:
                progress(done)

        return report

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        seconds, listing = 0.0, aiter(self.whole.list(prefix, start_after=start_after))
        failed = False
        try:
            while True:
                began = time.perf_counter()
                try:
                    info = await anext(listing)
                finally:
                    seconds += time.perf_counter() - began
                yield info
        except StopAsyncIteration:
            return
        except StoreUnavailable:
            failed = True
            raise
        finally:
            self._watcher.called("list", seconds, failed)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._timed("delete", self.whole.delete(key, etag=etag))

    async def close(self) -> None:
        """Do nothing; whoever opened the store closes it."""


def plain(store: Store) -> Store:
    """The store itself, without what times it: a directory can be watched, a view of one cannot."""
    return plain(store.whole) if isinstance(store, TimedStore) else store
