"""Metadata beside the objects of a directory, and how none outlives its object.

The one idea: from before a sidecar is written until after its object is gone, the object has a
name in the staging folder whenever a crash could part the two, and that name says whose sidecar it
is. So who sweeps what the dead left in staging needs no search, and no clock decides: once that
name is changed its owner cannot begin to make a key of the file any more, and the link count tells
whether a key has it; it is asked again at the end, for a link(2) that had begun.
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

STAGING_AGE = 3600.0  # seconds after which a staging file belongs to a process that died
_MARKED = re.compile(r"(?P<born>[0-9a-f]+)-[0-9a-f]{16}-(?P<key>[0-9a-f]{32})")
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def staging_name(key: str) -> str:
    """A fresh name for the staging folder, that says which key it is for."""
    return f"{time.time_ns():x}-{secrets.token_hex(8)}-{_mark(key)}"


class Sidecars:
    """The metadata of the objects below root, each version's in a file of its own."""

    def __init__(self, root: Path, *, fsync: bool) -> None:
        self._root = root
        self._fsync = fsync

    def read(self, key: str, version: str) -> dict[str, str]:
        written = self._read(_mark(key), version)
        return {str(k): str(v) for k, v in json.loads(written).items()} if written else {}

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
        """Write it under the name of a version that has no key yet: it appears with the object."""
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
        """While a version, if there is one, loses its key (`name` in the folder `here`), and then its sidecar.

        Should we die in between, its second name in the staging folder leads a sweep to the sidecar.
        """
        if version is None or not self._has(key, version):  # most objects have no sidecar
            yield
            return
        second = staging_name(key)
        with safe_paths.folder(self._root, [STAGING], make=True, fsync=self._fsync) as staging:
            with contextlib.suppress(
                OSError
            ):  # gone or replaced by now; or no link may be made: then as without
                os.link(name, second, src_dir_fd=here, dst_dir_fd=staging, follow_symlinks=False)
            try:
                yield
                self.forget(key, version)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(second, dir_fd=staging)

    def sweep(self, now: float) -> None:
        """Remove what dead processes left in the staging folder, and the sidecars that belong to nothing.

        Args:
            now: seconds since 1970. One that is far too late costs living writers a try, and no metadata.
        """
        with safe_paths.folder(self._root, [STAGING], make=True, fsync=self._fsync) as staging:
            try:
                fcntl.flock(staging, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the folder is closed
            except BlockingIOError:
                return  # somebody else sweeps
            except OSError:
                pass  # a file system without locks
            for name in os.listdir(staging):
                facts = safe_paths.look(name, staging)
                # Born or given its second name (the change time) long ago; the file itself may be older.
                if facts is None or now - max(facts.st_mtime, _born(name)) <= STAGING_AGE:
                    continue
                self._bury(name, staging)

    def _has(self, key: str, version: str) -> bool:
        shard, name = _place(_mark(key), version)
        with contextlib.suppress(OSError), safe_paths.folder(self._root, [META, shard]) as here:
            return safe_paths.look(name, here) is not None
        return False

    def _bury(self, name: str, staging: int) -> None:
        marked = _MARKED.fullmatch(name)
        dead = f"{marked['born']}-{secrets.token_hex(8)}-{marked['key']}" if marked else name
        with contextlib.suppress(FileNotFoundError):  # another sweep was faster
            if marked:
                os.rename(name, dead, src_dir_fd=staging, dst_dir_fd=staging)
                # Only now: a creator that was merely slow could link until its name was gone.
                self._part(marked["key"], dead, staging)
            os.unlink(dead, dir_fd=staging)

    def _part(self, mark: str, dead: str, staging: int) -> None:
        """Remove the sidecar of a staged file, unless a key has the file."""
        fd = safe_paths.open_file(dead, staging)
        if fd is None:
            return
        with os.fdopen(fd, "rb"):
            facts = os.fstat(fd)
            if facts.st_nlink > 1:
                return
            version = safe_paths.etag(facts)
            saved = self._read(mark, version)
            self._remove(mark, version)
            os.unlink(dead, dir_fd=staging)
            if saved and os.fstat(fd).st_nlink:  # a link(2) had looked its old name up, and was not done yet
                self._write(mark, version, saved)

    def _remove(self, mark: str, version: str) -> None:
        shard, name = _place(mark, version)
        with contextlib.suppress(OSError), safe_paths.folder(self._root, [META, shard]) as here:
            os.unlink(name, dir_fd=here)


def _born(name: str) -> float:
    """When a staging name was given, in seconds since 1970; 0 for a name that is not ours."""
    marked = _MARKED.fullmatch(name)
    return int(marked["born"], 16) / 1e9 if marked else 0.0


def _mark(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _place(mark: str, version: str) -> tuple[str, str]:
    """A sidecar's folder below META, and its name there."""
    return mark[:2], f"{mark}-{version}.json"
