"""Metadata of a directory's objects, in sidecar files; no sidecar outlives its object.

Whenever a crash could separate a sidecar from its object, the object has a name in the staging folder, and
that name says which key the sidecar is for. So a sweep of the staging folder finds every stale sidecar
without a search. It relies on no clock: it first renames the staging file, and from then on its owner cannot
start to link it to a key. Then the link count says whether a key has the file. The sweep reads the count
again at the end, because a link(2) may have begun before the rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from typing import TYPE_CHECKING

from infra.stores.directory import safe_paths
from infra.stores.directory.safe_paths import META, STAGING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

STAGING_AGE = 3600.0  # seconds after which the process that wrote a staging file is presumed dead
_MARKED = re.compile(r"(?P<time>[0-9a-f]+)-[0-9a-f]{16}-(?P<key>[0-9a-f]{32})")
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def staging_name(key: str) -> str:
    """A new name for the staging folder; it says which key the file is for."""
    return f"{time.time_ns():x}-{secrets.token_hex(8)}-{_mark(key)}"


class Sidecars:
    """The metadata of the objects below root: one file for each version of an object."""

    def __init__(self, root: Path, *, fsync: bool) -> None:
        self._root = root
        self._fsync = fsync

    def read(self, key: str, version: str) -> dict[str, str]:
        body = self._read(_mark(key), version)
        return {str(k): str(v) for k, v in json.loads(body).items()} if body else {}

    def _read(self, mark: str, version: str) -> bytes:
        shard, name = _place(mark, version)
        try:
            with safe_paths.folder(self._root, [META, shard]) as here:
                fd = safe_paths.open_file(name, here)
        except OSError as error:
            if error.errno not in safe_paths.ABSENT or not self._root.is_dir():
                raise
            return b""
        if fd is None:
            return b""
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def write(self, key: str, version: str, metadata: Mapping[str, str]) -> None:
        """Write the metadata of a version that has no key yet; it becomes visible with the object."""
        self._write(_mark(key), version, json.dumps(dict(metadata)).encode())

    def _write(self, mark: str, version: str, body: bytes) -> None:
        shard, name = _place(mark, version)
        with safe_paths.folder(self._root, [META, shard], make=True, fsync=self._fsync) as here:
            fd = os.open(name, _WRITE, 0o666, dir_fd=here)
            try:
                safe_paths.write_all(fd, body)
                if self._fsync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if self._fsync:
                safe_paths.sync_folder(here)

    def forget(self, key: str, version: str) -> None:
        self._remove(_mark(key), version)

    @contextlib.contextmanager
    def leaving(self, key: str, version: str | None, name: str, here: int) -> Iterator[None]:
        """In this context a version loses its key (`name` in the folder `here`); then its sidecar goes.

        Args:
            version: None when there is none.
        """
        if version is None or not self._has(key, version):  # most objects have no sidecar
            yield
            return
        second = staging_name(key)
        with safe_paths.folder(self._root, [STAGING], make=True, fsync=self._fsync) as staging:
            # First a second name: if we die before the sidecar is gone, a sweep finds it by that name.
            with contextlib.suppress(OSError):  # the object is gone or replaced by now, or cannot be linked
                os.link(name, second, src_dir_fd=here, dst_dir_fd=staging, follow_symlinks=False)
            try:
                yield
                self.forget(key, version)  # after the object: a reader never misses its metadata
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(second, dir_fd=staging)

    def sweep(self, now: float) -> None:
        """Remove what dead processes left in the staging folder, and the sidecars without an object.

        Args:
            now: seconds since 1970. A clock that is far ahead costs a living writer a try, but no metadata.
        """
        with safe_paths.folder(self._root, [STAGING], make=True, fsync=self._fsync) as staging:
            try:
                fcntl.flock(staging, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the folder is closed
            except BlockingIOError:
                return  # another process sweeps
            except OSError:
                pass  # a file system without locks
            for name in os.listdir(staging):
                facts = safe_paths.look(name, staging)
                # The name's own time counts too: a second name may be younger than its file.
                if facts is None or now - max(facts.st_mtime, _named_at(name)) <= STAGING_AGE:
                    continue
                self._remove_stale(name, staging)

    def _has(self, key: str, version: str) -> bool:
        shard, name = _place(_mark(key), version)
        with contextlib.suppress(OSError), safe_paths.folder(self._root, [META, shard]) as here:
            return safe_paths.look(name, here) is not None
        return False

    def _remove_stale(self, name: str, staging: int) -> None:
        marked = _MARKED.fullmatch(name)
        renamed = f"{marked['time']}-{secrets.token_hex(8)}-{marked['key']}" if marked else name
        with contextlib.suppress(FileNotFoundError):  # another sweep was faster
            if marked:
                # First the new name: a creator that was only slow cannot start to link the file any more.
                os.rename(name, renamed, src_dir_fd=staging, dst_dir_fd=staging)
                self._remove_sidecar(marked["key"], renamed, staging)
            os.unlink(renamed, dir_fd=staging)

    def _remove_sidecar(self, mark: str, name: str, staging: int) -> None:
        """Remove the sidecar of a staging file, unless a key has the file."""
        fd = safe_paths.open_file(name, staging)
        if fd is None:
            return
        with os.fdopen(fd, "rb"):
            facts = os.fstat(fd)
            if facts.st_nlink > 1:
                return
            version = safe_paths.etag(facts)
            saved = self._read(mark, version)
            self._remove(mark, version)
            os.unlink(name, dir_fd=staging)
            # Last, the count again: a link(2) that had found the old name may have ended only now.
            if saved and os.fstat(fd).st_nlink:
                self._write(mark, version, saved)

    def _remove(self, mark: str, version: str) -> None:
        shard, name = _place(mark, version)
        with contextlib.suppress(OSError), safe_paths.folder(self._root, [META, shard]) as here:
            os.unlink(name, dir_fd=here)


def _named_at(name: str) -> float:
    """When a staging name was created, in seconds since 1970; 0 for a name that is not ours."""
    marked = _MARKED.fullmatch(name)
    return int(marked["time"], 16) / 1e9 if marked else 0.0


def _mark(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _place(mark: str, version: str) -> tuple[str, str]:
    """A sidecar's folder below META, and its name there."""
    return mark[:2], f"{mark}-{version}.json"
