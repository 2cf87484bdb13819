"""The part of a store in which trainings live, with the keys that the protocol expects.

A training goes through the same protocol as a request: a dropped file, claims, heartbeats, a result. Its
objects lie under prefixes of their own, because workers sweep `claims/` and would take over, and fail, what
they find there. `TrainingStore` gives `Claims` and the readers of states a store in which `requests/` means
`trainings/`, and so on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from infra.stores.store import Info, Progress, Store, Stored
from schemas.errors import NotFound
from schemas.layout import (
    CLAIMS,
    REQUESTS,
    RESULTS,
    STATUS,
    TRAINERS,
    TRAINING_CLAIMS,
    TRAINING_RESULTS,
    TRAINING_STATUS,
    TRAININGS,
    WORKERS,
)

MAX_BODY = 64 << 20  # bytes of a training's file that are read, inline pictures included

_RENAMED = (
    (REQUESTS, TRAININGS),
    (CLAIMS, TRAINING_CLAIMS),
    (RESULTS, TRAINING_RESULTS),
    (STATUS, TRAINING_STATUS),
    (WORKERS, TRAINERS),
)


def in_store(key: str) -> str:
    """The key, in the whole store, of one of the protocol's keys. Raises `ValueError` for another key."""
    for protocols, trainings in _RENAMED:
        if key.startswith(protocols):
            return trainings + key.removeprefix(protocols)
    raise ValueError(f"{key!r} is not a key of the protocol")


def _in_protocol(key: str) -> str:
    for protocols, trainings in _RENAMED:
        if key.startswith(trainings):
            return protocols + key.removeprefix(trainings)
    raise ValueError(f"{key!r} does not belong to a training")


class TrainingStore(Store):
    """A view of a store; closing it leaves the store open."""

    def __init__(self, store: Store) -> None:
        self.whole = store
        self.url = store.url
        self.shows_partial_files = store.shows_partial_files
        self.is_remote = store.is_remote

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        try:
            stored = await self.whole.get(in_store(key), max_bytes=max_bytes)
        except NotFound:
            raise NotFound(key) from None
        return replace(stored, info=replace(stored.info, key=key))

    async def is_being_written(self, key: str) -> bool | None:
        return await self.whole.is_being_written(in_store(key))

    async def head(self, key: str) -> Info | None:
        info = await self.whole.head(in_store(key))
        return info and replace(info, key=key)

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        return await self.whole.create(in_store(key), body, metadata=metadata, content_type=content_type)

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self.whole.put(in_store(key), body, content_type=content_type)

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        return await self.whole.create_file(in_store(key), path, sha256=sha256, progress=progress)

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        try:
            return await self.whole.fetch_file(in_store(key), path, progress=progress)
        except NotFound:
            raise NotFound(key) from None

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        after = in_store(start_after) if start_after else ""
        async for info in self.whole.list(in_store(prefix), start_after=after):
            yield replace(info, key=_in_protocol(info.key))

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self.whole.delete(in_store(key), etag=etag)

    async def close(self) -> None:
        """Nothing to close."""
