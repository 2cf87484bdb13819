"""Opens a store by its URL: `./folder`, `file://`, `s3://bucket/prefix`, `memory://name`.

Each kind is imported when it is needed, so a directory works without the AWS library.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

from infra.stores.store import Store, Versions
from schemas.errors import Unsupported

if TYPE_CHECKING:
    from infra.stores.memory import MemoryStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CUT_SCHEME = re.compile(r"(s3|file|memory):(?!//)", re.IGNORECASE)  # it would be a directory of that name
_memories: dict[str, MemoryStore] = {}  # one per name: two users of "memory://demo" meet


class OpenableStore(Store, Protocol):
    """A store from `open_store`, used as `async with open_store(url) as store`."""

    async def open(self) -> None:
        """Create what can be created, and report early what is missing. Raises `StoreUnavailable`."""
        ...

    async def versions(self) -> Versions:
        """What becomes of old versions of its objects."""
        ...

    @property
    def denied_for(self) -> float:
        """Seconds for which it has denied every call; 0 where it needs no credentials."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_store(url: str) -> OpenableStore:
    """The store of a URL, not opened yet.

    Args:
        url: a directory's path, `file:///path`, `s3://bucket[/prefix]`, or `memory://[name]`
            (stores with a name are shared within the process).

    Raises:
        Unsupported: it is not the URL of a store; the message lists what is.
    """
    if cut := _CUT_SCHEME.match(url):
        raise Unsupported(
            f"{url!r} is not a store: after {cut[1]}: two slashes are missing; write {cut[1]}://... "
            f"(or ./{url}, for a directory of that name)"
        )
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if scheme == "s3":
        return _s3(url)
    if scheme == "memory":
        return _memory(url.partition("://")[2])
    if scheme not in ("", "file") or not url:
        raise Unsupported(
            f"{url!r} is not a store: give a directory (./dreamdrop-data), file:///a/directory, "
            f"s3://bucket or s3://bucket/prefix, or memory://{_hint(scheme)}"
        )
    if os.name != "posix":
        raise Unsupported(f"{url!r}: a directory store needs Linux or macOS; use s3://bucket, or WSL")
    from infra.stores.directory.store import DirectoryStore

    return DirectoryStore(_path(url) if scheme else Path(url).expanduser())


def _hint(scheme: str) -> str:
    if scheme in ("http", "https", "minio", "r2"):
        return "; for a server that speaks S3 use s3://bucket and set AWS_ENDPOINT_URL_S3 to its address"
    return ""


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise Unsupported(
            f"{url!r} is not a directory's URL: write file:///absolute/path, with three slashes"
        )
    return Path(unquote(url.partition("://")[2].removeprefix("localhost")))


def _s3(url: str) -> OpenableStore:
    try:
        from infra.stores.s3 import S3Store
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"{url!r} needs {error.name}, which is not installed: pip install aiobotocore"
        ) from error
    return S3Store(url)


def _memory(name: str) -> OpenableStore:
    from infra.stores.memory import MemoryStore

    if not name:
        return MemoryStore(clock=time.time)
    return _memories.setdefault(name, MemoryStore(clock=time.time, url=f"memory://{name}"))
