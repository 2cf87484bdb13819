"""The interface of an object store, and the guarantees that the protocol needs.

A key is UTF-8 text of at most 1,024 bytes: segments joined by `/`, none of them empty, `.` or `..`, and no
control character. Every method raises `InvalidKey` for any other text. (Strangers can drop objects under other
keys into a bucket. Its listings hold those under `requests/` as `keys.BucketKey`, to be read and deleted.) In a
directory a key cannot lie below another object's key, nor have a segment of more than 255 bytes. The protocol's
safety rests on `create` alone (see docs/design.md): it never overwrites what it has created.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from schemas.errors import DreamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

_NO_METADATA: dict[str, str] = {}


#: What becomes of an object's old versions: there are none, they are all kept, or a lifecycle rule ends them.
Versions = Literal["none", "kept", "expire"]


#: Called in the event loop with how many bytes of a file are copied so far; never for each byte, and not in order
#: where parts are copied side by side.
Progress = Callable[[int], None]
SHA256 = "sha256"  # the metadata name under which `create_file` stores a file's hash


class InvalidKey(DreamError):
    """This text is not a valid key."""


class WrongContent(DreamError):
    """A file is not the one that its SHA-256 names: it was changed, or is damaged."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a listing or `head` says about an object."""

    key: str
    size: int  # bytes
    etag: str  # opaque; changes whenever the content is replaced
    modified: float  # seconds since 1970, by the store's clock: for people, never for the protocol
    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA)  # empty in listings


@dataclass(frozen=True, slots=True)
class Stored:
    """An object with its whole content."""

    info: Info
    body: bytes


class Store(Protocol):
    """A bucket, or a directory that behaves like one.

    Every method raises `StoreUnavailable` when the store does not answer in time. Reads are strongly
    consistent: a `get`, `head` or `list` that starts after a write returned sees that write.
    """

    url: str  # such as "s3://bucket" or "file:///srv/dream"
    shows_partial_files: bool  # clients write into it with ordinary tools, so a file may be half written
    is_remote: bool  # each call is a request over a network, so whoever polls does it less often

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        """Read an object. Raises `NotFound`, and `TooLarge` before reading more than max_bytes."""
        ...

    async def is_being_written(self, key: str) -> bool | None:
        """Whether a program has the object open for writing; None when that cannot be known here.

        False in a bucket, where an object is whole from the moment it is there.
        """
        ...

    async def head(self, key: str) -> Info | None:
        """An object's facts with its metadata; None when there is no object."""
        ...

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        """Create an object if its key is free; atomic against every other `create` of the key.

        Args:
            metadata: lower-case ASCII names with dashes to short ASCII values, 1,900 bytes in all; stored
                with the object, atomically.

        Returns:
            True: the object is there and it is ours, also when the answer to the write was lost and had
            to be read back. False: another object was there first and is untouched. No reader ever sees
            a part of the body.

        Raises:
            StoreUnavailable: the outcome is unknown: the object may or may not appear, now or later, whole.
            ValueError: the metadata is not valid.
        """
        ...

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        """Create or replace an object atomically: heartbeats, status objects and a client's own files."""
        ...

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        """Create an object from a file of any size, as `create` does; only a few MiB of it are in memory.

        Args:
            sha256: of the file, in hexadecimal; stored as the object's metadata `sha256`.

        Returns:
            As `create`. The object appears whole, or not at all.

        Raises:
            StoreUnavailable: as `create`.
            WrongContent: the file has another hash; nothing was created.
            DiskTrouble: the file cannot be read.
        """
        ...

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        """Copy an object of any size to a file, which is overwritten; only a few MiB of it are in memory.

        Returns:
            The SHA-256 of what was written, in hexadecimal. Nobody has compared it yet.

        Raises:
            NotFound: there is no such object.
            StoreUnavailable: as `get`, or the object was replaced meanwhile; the file holds the beginning.
            DiskTrouble: the file cannot be written.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        """Objects whose key begins with prefix, in ascending order of the keys' UTF-8 bytes.

        A directory skips what is not an object: links, pipes, and below `requests/` also hidden files
        and names that end in `.tmp`, `.part` or `~`.
        """
        ...

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """Delete an object if it is there; with etag, where the store can, only that version."""
        ...

    async def close(self) -> None:
        """Close connections; the store cannot be used afterwards."""
        ...
