"""A store in a directory, for many processes at once, with the guarantees of a bucket.

A file is written whole under another name in `.staging/`, and then gets its key by `link(2)`, which fails
when the key is taken (see `naming` for file systems without), or by `rename(2)`, which replaces. Both are
atomic: nobody ever sees half a file, and of many creators exactly one wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Self, TypeVar

from infra.stores.directory import naming, safe_paths
from infra.stores.directory.empty_folders import remove_empty_folders
from infra.stores.directory.errors import translated
from infra.stores.directory.metadata import Sidecars
from infra.stores.directory.safe_paths import STAGING
from infra.stores.directory.staging import existing, staged_file, writer
from infra.stores.files import copy, copying, expect_content, local
from infra.stores.keys import check_metadata, check_prefix
from infra.stores.store import SHA256, Info, Progress, Stored, Versions
from schemas.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

PAGE = 1000  # keys that a listing reads per call in a thread
THREADS = 8  # writers that wait for the disk at the same time share a flush
PRUNED = "claims/"  # empty folders below here are removed: they would slow every sweep


class DirectoryStore:
    """Keys are relative paths below root; safe for threads and processes that share the directory."""

    shows_partial_files = True
    is_remote = False
    denied_for = 0.0

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = root.absolute()
        self.url = self.root.as_uri()
        self._has_links = True  # until `open` has looked
        self._fsync = fsync  # without it a power failure can lose or empty the last writes
        self._sidecars = Sidecars(self.root, fsync=fsync)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="directory-store")

    async def open(self) -> None:
        """Create the directory if it is missing, and sweep what dead processes left in the staging folder."""
        await self._in_thread(str(self.root), self._open)

    async def close(self) -> None:
        self._threads.shutdown(wait=False)  # calls under way end by themselves; files need no closing

    async def versions(self) -> Versions:
        return "none"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        return await self._in_thread(key, lambda: self._get(key, max_bytes))

    async def is_being_written(self, key: str) -> bool | None:
        return await self._in_thread(key, lambda: self._is_being_written(key))

    async def head(self, key: str) -> Info | None:
        return await self._in_thread(key, lambda: self._head(key))

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        check_metadata(metadata or {})
        return await self._in_thread(key, lambda: self._create(key, writer(body), dict(metadata or {})))

    async def create_file(
        self, key: str, path: Path, *, sha256: str, progress: Progress | None = None
    ) -> bool:
        def work(done: Callable[[int], None]) -> bool:
            with local(path):
                source = path.open("rb", buffering=0)
            with source:

                def write(fd: int) -> None:
                    expect_content(copy(source.fileno(), fd, done), sha256, path)

                return self._guarded(key, lambda: self._create(key, write, {SHA256: sha256}))

        return await copying(work, progress, self._threads)

    async def fetch_file(self, key: str, path: Path, *, progress: Progress | None = None) -> str:
        return await copying(lambda done: self._fetch(key, path, done), progress, self._threads)

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._in_thread(key, lambda: self._put(key, body))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        check_prefix(prefix)
        infos = self._listed(prefix, start_after)
        while page := await self._in_thread(prefix, lambda: [*islice(infos, PAGE)]):
            for info in page:
                yield info

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """See `Store.delete`. An edit of the file between the comparison and the deletion is lost."""
        await self._in_thread(key, lambda: self._delete(key, etag))

    async def make_folder(self, prefix: str) -> None:
        """Make the folder of a prefix ending in "/", and those above it; no key needs it to be there."""
        check_prefix(prefix)
        await self._in_thread(prefix, lambda: (self.root / prefix).mkdir(parents=True, exist_ok=True))

    async def remove_empty_folders(self, *tops: str) -> int:
        """Remove folders that requests, claims and statuses, or others, of the past have left. Returns how many."""
        return await self._in_thread(str(self.root), lambda: remove_empty_folders(self.root, *tops))

    async def _in_thread(self, key: str, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._guarded, key, work)

    def _guarded(self, key: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise translated(error, key, self.root) from error

    # The rest blocks and runs in a thread.

    def _open(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with safe_paths.folder(self.root, [STAGING], make=True, fsync=self._fsync) as staging:
            if not naming.has_links(staging):
                self._has_links = False
                safe_paths.without_links.add(os.fstat(staging).st_dev)
        self._sidecars.sweep(time.time())

    def _get(self, key: str, max_bytes: int | None) -> Stored:
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:
            for _ in range(3):  # a file that is overwritten in place while it is read is read again
                fd = None if here is None else safe_paths.open_file(name, here)
                if fd is None:
                    raise NotFound(key)
                with os.fdopen(fd, "rb", buffering=0) as file:
                    before = os.fstat(fd)
                    if key.startswith(safe_paths.INBOX) and self._is_refused(key, before):
                        raise NotFound(key)
                    body = safe_paths.read_all(file.read, key, before.st_size, max_bytes)
                    after = os.fstat(fd)
                if safe_paths.etag(before) == safe_paths.etag(after) and len(body) == after.st_size:
                    break
        return Stored(self._info(key, after, with_metadata=True), body)

    def _fetch(self, key: str, path: Path, done: Callable[[int], None]) -> str:
        *names, name = safe_paths.segments(key)

        def opened() -> int:
            with existing(self.root, names) as here:
                fd = None if here is None else safe_paths.open_file(name, here)
            if fd is None:
                raise NotFound(key)
            return fd

        with (
            os.fdopen(self._guarded(key, opened), "rb", buffering=0) as source,
            local(path),
            path.open("wb", buffering=0) as target,
        ):
            return copy(source.fileno(), target.fileno(), done)

    def _head(self, key: str) -> Info | None:
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:
            facts = None if here is None else safe_paths.look(name, here)
        if facts is None or (key.startswith(safe_paths.INBOX) and self._is_refused(key, facts)):
            return None
        return self._info(key, facts, with_metadata=True)

    def _is_being_written(self, key: str) -> bool | None:
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:
            fd = None if here is None else safe_paths.open_file(name, here)
            if fd is None:
                return False
            try:
                return safe_paths.has_writer(fd)
            finally:
                os.close(fd)

    def _create(self, key: str, write: Callable[[int], None], metadata: dict[str, str]) -> bool:
        *names, name = safe_paths.segments(key)
        # First the cheap check: most losers pay for no write and no flush.
        with existing(self.root, names) as here:
            if here is not None and naming.is_taken(name, here, key):
                return False
        # The whole file is on the disk before it gets its key.
        with staged_file(self.root, key, write, fsync=self._fsync) as (staging, staged, fd):
            version = safe_paths.etag(os.fstat(fd))
            # The metadata before the key: whoever sees the object sees its metadata too.
            if metadata:
                self._sidecars.write(key, version, metadata)
            try:
                return self._link(key, staging, staged, fd)
            finally:
                # The loser's sidecar last. The link count would not tell who lost: a sweep that took us for
                # dead may have removed the staging name.
                if metadata and not self._has_key(key, version):
                    self._sidecars.forget(key, version)

    def _has_key(self, key: str, version: str) -> bool:
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:
            facts = None if here is None else safe_paths.look(name, here)
        return facts is not None and safe_paths.etag(facts) == version

    def _link(self, key: str, staging: int, staged: str, fd: int) -> bool:
        *names, name = safe_paths.segments(key)
        for attempt in range(safe_paths.PATIENCE):
            with safe_paths.folder(self.root, names, make=True, fsync=self._fsync) as here:
                try:
                    if self._has_links:
                        os.link(staged, name, src_dir_fd=staging, dst_dir_fd=here, follow_symlinks=False)
                    else:
                        naming.rename_noreplace(staged, name, src_dir_fd=staging, dst_dir_fd=here)
                except OSError as error:
                    if not self._is_named(
                        fd, name, here
                    ):  # else a network file system did it, then tried again
                        if error.errno == errno.EEXIST:
                            naming.is_taken(name, here, key)
                            return False
                        if error.errno in (errno.ENOENT, errno.ESTALE) and attempt < safe_paths.PATIENCE - 1:
                            continue  # an empty folder was pruned in between
                        raise
                if self._fsync:  # before the answer: a created object survives a power failure
                    safe_paths.sync_folder(here)
                return True
        raise AssertionError("unreachable")

    def _is_named(self, fd: int, name: str, here: int) -> bool:
        """Whether our file has got this key after all."""
        ours = os.fstat(fd)
        if self._has_links:
            return ours.st_nlink >= 2
        facts = safe_paths.look(name, here)
        return facts is not None and os.path.samestat(facts, ours)

    def _put(self, key: str, body: bytes) -> None:
        *names, name = safe_paths.segments(key)
        with staged_file(self.root, key, writer(body), fsync=self._fsync) as (staging, staged, _):
            for attempt in range(safe_paths.PATIENCE):
                with safe_paths.folder(self.root, names, make=True, fsync=self._fsync) as here:
                    old = safe_paths.look(name, here)
                    try:
                        # The old version's sidecar goes after the old version: see `leaving`.
                        with self._sidecars.leaving(key, old and safe_paths.etag(old), name, here):
                            os.rename(staged, name, src_dir_fd=staging, dst_dir_fd=here)
                            if self._fsync:
                                safe_paths.sync_folder(here)
                    except OSError as error:
                        if error.errno in (errno.ENOENT, errno.ESTALE) and attempt < safe_paths.PATIENCE - 1:
                            continue
                        raise
                    break

    def _listed(self, prefix: str, start_after: str) -> Iterator[Info]:
        for key, facts in safe_paths.walk(self.root, prefix, start_after):
            if not (key.startswith(safe_paths.INBOX) and self._is_refused(key, facts)):
                yield self._info(key, facts, with_metadata=False)

    def _delete(self, key: str, expected: str | None) -> None:
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:
            facts = None if here is None else safe_paths.look(name, here)
            if here is None or facts is None or expected not in (None, safe_paths.etag(facts)):
                return
            with (
                self._sidecars.leaving(key, safe_paths.etag(facts), name, here),
                contextlib.suppress(FileNotFoundError),
            ):
                os.unlink(name, dir_fd=here)
        if key.startswith(PRUNED) and len(names) > 1:
            self._prune(names)

    def _prune(self, names: Sequence[str]) -> None:
        """Remove folders that are empty now; a creator that has one open creates it again."""
        for depth in range(len(names), 1, -1):
            try:
                with safe_paths.folder(self.root, names[: depth - 1]) as here:
                    os.rmdir(names[depth - 1], dir_fd=here)
            except OSError:
                return

    def _is_refused(self, key: str, facts: os.stat_result) -> bool:
        if not safe_paths.is_foreign_link(facts, self.root):
            return False
        *names, name = safe_paths.segments(key)
        with existing(self.root, names) as here:  # our own second name may be gone by now
            now = None if here is None else safe_paths.look(name, here)
        if now is None or now.st_nlink == 1:
            return False
        text = f"{key!r} is ignored: it is a hard link to another file; copy the file instead"
        safe_paths.warn_once(key, text)
        return True

    def _info(self, key: str, facts: os.stat_result, *, with_metadata: bool) -> Info:
        version = safe_paths.etag(facts)
        metadata = self._sidecars.read(key, version) if with_metadata else {}
        return Info(key, facts.st_size, version, facts.st_mtime, metadata)
