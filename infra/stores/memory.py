"""A store in a dict, for tests and notebooks: the same guarantees, until the process ends.

It never waits, reads a clock or draws a random number, so a simulation on it can be repeated exactly
from its seed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

from infra.stores.files import expect_content
from infra.stores.keys import check_key, check_metadata, check_prefix
from infra.stores.store import SHA256, Info, Progress, Stored, Versions
from schemas.errors import NotFound, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path


class MemoryStore:
    """Keys to objects; safe for the tasks of one event loop, not for threads."""

    shows_partial_files = False
    is_remote = False
    denied_for = 0.0

    def __init__(self, *, clock: Callable[[], float] = lambda: 0.0, url: str = "memory://") -> None:
        self.url = url
        self._clock = clock  # seconds since 1970, for `Info.modified` only
        self._objects: dict[str, Stored] = {}
        self._writes = 0  # gives every version its own etag

    async def open(self) -> None:
        """Do nothing; it is here because every store is opened."""

    async def versions(self) -> Versions:
        return "none"

    async def close(self) -> None:
        """Do nothing: the objects stay, so another user of this store still sees them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        check_key(key)
        stored = self._objects.get(key)
        if stored is None:
            raise NotFound(key)
        if max_bytes is not None and stored.info.size > max_bytes:
            raise TooLarge(key, stored.info.size, max_bytes)
        return stored

    async def is_being_written(self, key: str) -> bool:
        return False

    async def head(self, key: str) -> Info | None:
        check_key(key)
        stored = self._objects.get(key)
        return stored.info if stored else None

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        check_key(key)
        check_metadata(metadata or {})
        if key in self._objects:
            return False
        self._write(key, body, metadata or {})
        return True

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        check_key(key)
        self._write(key, body, {})

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        body = path.read_bytes()
        expect_content(hashlib.sha256(body).hexdigest(), sha256, path)
        created = await self.create(key, body, metadata={SHA256: sha256})
        if progress is not None:
            progress(len(body))
        return created

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        body = (await self.get(key)).body
        path.write_bytes(body)
        if progress is not None:
            progress(len(body))
        return hashlib.sha256(body).hexdigest()

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        check_prefix(prefix)
        # Code points sort as their UTF-8 bytes do, so this is the order that `Store.list` promises.
        for key in sorted(k for k in self._objects if k.startswith(prefix) and k > start_after):
            stored = self._objects.get(key)
            if stored is not None:  # else deleted since the listing began
                info = stored.info
                yield Info(info.key, info.size, info.etag, info.modified)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        check_key(key)
        stored = self._objects.get(key)
        if stored is not None and etag in (None, stored.info.etag):
            del self._objects[key]

    def _write(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        self._writes += 1
        info = Info(key, len(body), str(self._writes), self._clock(), dict(metadata))
        self._objects[key] = Stored(info, bytes(body))
