"""What the protocol asks of an object store, in words and types.

Keys are `/`-joined, UTF-8, at most 1,024 bytes, no empty, `.` or `..` segment, no control
character; a key that is not raises `InvalidKey` from every verb. In a directory no key can stand
below another object's key, nor have a segment of more than 255 bytes. Only `create` is load-bearing
(see docs/design.md): the protocol never overwrites what it has created.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from schemas.errors import DreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_NO_METADATA: dict[str, str] = {}


class InvalidKey(DreamError):
    """This text cannot be a key in any store."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a listing or `head` knows about an object."""

    key: str
    size: int  # bytes
    etag: str  # changes whenever the content is replaced; opaque
    modified: float  # seconds since 1970, by the store's clock: for people, never for the protocol
    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA)  # empty in listings


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, read whole."""

    info: Info
    body: bytes


class Store(Protocol):
    """A bucket, or a directory that behaves like one.

    Every verb raises `StoreUnavailable` when the store does not answer in time. Reads after
    writes are strong: a `get`, `head` or `list` that starts after a write returned sees it.
    """

    url: str  # such as "s3://bucket" or "file:///srv/dream"
    shows_partial_files: bool  # clients write into it with ordinary tools, so a file may be half written
    is_remote: bool  # each call is a request over a network, so whoever polls does it less often

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        """Read an object. Raises `NotFound`; `TooLarge` before reading when it exceeds max_bytes."""
        ...

    async def is_being_written(self, key: str) -> bool | None:
        """Whether a program has the object open for writing; None when that cannot be known here.

        False in a bucket, where an object is whole from the moment it is there.
        """
        ...

    async def head(self, key: str) -> Info | None:
        """An object's facts with its metadata, or None when there is none."""
        ...

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        """Create an object if its key is free; atomic against every other `create` of the key.

        True: it is there and it is ours, also when the answer to the write was lost and had to
        be read back. False: somebody else's object was there first and is untouched. No reader
        ever sees a part of the body. Raises `StoreUnavailable` when the outcome cannot be
        known: the object may or may not appear, now or later, whole.

        Args:
            metadata: ASCII keys in lower case with dashes, to short ASCII values (1,900 bytes in
                all), else `ValueError`; kept with the object, atomically.
        """
        ...

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        """Create or replace, atomically: for heartbeats, status pages and a client's own files."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        """Objects whose key begins with prefix, in ascending order of their UTF-8 bytes.

        A directory passes over what is no object: links, pipes, and below `requests/` also hidden
        files and names that end in `.tmp`, `.part` or `~`.
        """
        ...

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """Delete an object if it is there, and (with etag, where the store can) only that version."""
        ...

    async def close(self) -> None:
        """Let connections go; the store cannot be used afterwards."""
        ...
