"""A directory that keeps a bucket's promises, for many processes at once.

The one idea: a file is written whole under another name in `.staging/`, and then gets its key by
`link(2)`, which fails when the key is taken, or by `rename(2)`, which replaces. Either is one
step, so nobody ever sees half a file, and of many creators exactly one wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Self, TypeVar

from infra.stores.directory import safe_paths
from infra.stores.directory.errors import translated
from infra.stores.directory.metadata import Sidecars, staging_name
from infra.stores.directory.safe_paths import ABSENT, STAGING
from infra.stores.keys import check_metadata, check_prefix
from infra.stores.store import Info, Stored
from schemas.errors import NotFound, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

log = logging.getLogger(__name__)

PAGE = 1000  # keys that a listing reads per visit to a thread
THREADS = 8  # writers that wait for the disk together share its flush
PRUNED = "claims/"  # folders below here go when they are empty: they would slow every sweep


class DirectoryStore:
    """Keys are relative paths below root; safe for threads and processes that share the directory."""

    shows_partial_files = True
    is_remote = False

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = root.absolute()
        self.url = self.root.as_uri()
        self._fsync = fsync  # without it a power failure can lose or empty what was written last
        self._sidecars = Sidecars(self.root, fsync=fsync)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="directory-store")

    async def open(self) -> None:
        """Create the directory if need be, and sweep what dead processes left half-written."""
        await self._in_thread(str(self.root), self._open)

    async def close(self) -> None:
        self._threads.shutdown(wait=False)

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
        return await self._in_thread(key, lambda: self._create(key, body, dict(metadata or {})))

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._in_thread(key, lambda: self._put(key, body))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        check_prefix(prefix)
        found = self._listed(prefix, start_after)
        while page := await self._in_thread(prefix, lambda: [*islice(found, PAGE)]):
            for info in page:
                yield info

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        """Delete an object; a file edited in the instant between the look and the deletion is lost."""
        await self._in_thread(key, lambda: self._delete(key, etag))

    async def _in_thread(self, key: str, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except OSError as error:
                raise translated(error, key, self.root) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    # What follows blocks, and runs in a thread.

    def _open(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self._sidecars.sweep(time.time())

    def _get(self, key: str, max_bytes: int | None) -> Stored:
        *names, name = safe_paths.segments(key)
        with self._existing(key, names) as here:
            for _ in range(3):  # a file copied over while it is read is read again
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

    def _head(self, key: str) -> Info | None:
        *names, name = safe_paths.segments(key)
        with self._existing(key, names) as here:
            facts = None if here is None else safe_paths.look(name, here)
        if facts is None or (key.startswith(safe_paths.INBOX) and self._is_refused(key, facts)):
            return None
        return self._info(key, facts, with_metadata=True)

    def _is_being_written(self, key: str) -> bool | None:
        *names, name = safe_paths.segments(key)
        with self._existing(key, names) as here:
            fd = None if here is None else safe_paths.open_file(name, here)
            if fd is None:
                return False
            try:
                return safe_paths.has_writer(fd)
            finally:
                os.close(fd)

    def _create(self, key: str, body: bytes, metadata: dict[str, str]) -> bool:
        *names, name = safe_paths.segments(key)
        with self._existing(key, names) as here:
            if here is not None and _is_taken(name, here, key):
                return False  # before paying for a flush
        with self._staged(key, body) as (staging, staged, fd):
            version = safe_paths.etag(os.fstat(fd))
            if metadata:
                self._sidecars.write(key, version, metadata)
            try:
                return self._link(key, staging, staged, fd)
            finally:
                # Not by the link count: a sweep that took us for dead may have removed the staging name.
                if metadata and not self._is_at(key, version):
                    self._sidecars.forget(key, version)

    def _is_at(self, key: str, version: str) -> bool:
        *names, name = safe_paths.segments(key)
        with self._existing(key, names) as here:
            facts = None if here is None else safe_paths.look(name, here)
        return facts is not None and safe_paths.etag(facts) == version

    def _link(self, key: str, staging: int, staged: str, fd: int) -> bool:
        *names, name = safe_paths.segments(key)
        for attempt in range(safe_paths.PATIENCE):
            with safe_paths.folder(self.root, names, make=True, fsync=self._fsync) as here:
                try:
                    os.link(staged, name, src_dir_fd=staging, dst_dir_fd=here, follow_symlinks=False)
                except OSError as error:
                    if os.fstat(fd).st_nlink < 2:  # else a network file system did it, and asked again
                        if error.errno == errno.EEXIST:
                            _is_taken(name, here, key)
                            return False
                        if error.errno in (errno.ENOENT, errno.ESTALE) and attempt < safe_paths.PATIENCE - 1:
                            continue  # an empty folder was pruned under our feet
                        raise
                if self._fsync:
                    safe_paths.sync_folder(here)
                return True
        raise AssertionError("unreachable")

    def _put(self, key: str, body: bytes) -> None:
        *names, name = safe_paths.segments(key)
        with self._staged(key, body) as (staging, staged, _):
            for attempt in range(safe_paths.PATIENCE):
                with safe_paths.folder(self.root, names, make=True, fsync=self._fsync) as here:
                    old = safe_paths.look(name, here)
                    try:
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
        with self._existing(key, names) as here:
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
        """Remove folders that are empty now; creators that stand in one make it again."""
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
        with self._existing(key, names) as here:  # our own second name may have gone meanwhile
            now = None if here is None else safe_paths.look(name, here)
        if now is None or now.st_nlink == 1:
            return False
        safe_paths.warn_once(
            key, f"{key!r} is ignored: it is a hard link to another file; copy the file instead"
        )
        return True

    @contextlib.contextmanager
    def _existing(self, key: str, names: Sequence[str]) -> Iterator[int | None]:
        """The folder, or None when it, or something on the way, is not there."""
        with contextlib.ExitStack() as stack:
            try:
                here: int | None = stack.enter_context(safe_paths.folder(self.root, names))
            except OSError as error:
                if error.errno not in ABSENT or not self.root.is_dir():
                    raise
                here = None
            yield here

    @contextlib.contextmanager
    def _staged(self, key: str, body: bytes) -> Iterator[tuple[int, str, int]]:
        """A file with the body, written and flushed: (staging folder, its name, its descriptor)."""
        name = staging_name(key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with safe_paths.folder(self.root, [STAGING], make=True, fsync=self._fsync) as staging:
            fd = os.open(name, flags, 0o666, dir_fd=staging)
            try:
                safe_paths.write_all(fd, body)
                now = time.time_ns()
                os.utime(fd, ns=(now, now))  # finer than the kernel's own clock tick
                if self._fsync:
                    os.fsync(fd)
                yield staging, name, fd
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=staging)

    def _info(self, key: str, facts: os.stat_result, *, with_metadata: bool) -> Info:
        version = safe_paths.etag(facts)
        if not with_metadata:
            return Info(key, facts.st_size, version, facts.st_mtime)
        return Info(key, facts.st_size, version, facts.st_mtime, self._sidecars.read(key, version))


def _is_taken(name: str, here: int, key: str) -> bool:
    """Whether a plain file has the name; `StoreUnavailable` when it is something that is no object."""
    try:
        facts = os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISREG(facts.st_mode):
        return True
    what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no plain file"
    raise StoreUnavailable(f"cannot write {key!r}: {what} stands in its place; move that away")
