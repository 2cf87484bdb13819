"""Published models on this machine: each file once, under its hash, in a folder that has a size.

    sha256/ab/abcd...         a file of some version; its time of change says when it was used last
    sha256/ab/abcd....part    being fetched; whoever fetches it holds a lock on it
    folders/<hash>/...        a version as its programs expect it: links to the files above

Many processes may share a cache. A file is hashed while it is fetched, and again when a process first uses it.
Whoever uses a file holds a shared lock on it, so that nobody removes it meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.stores.files import DiskTrouble, local
from infra.stores.store import WrongContent
from schemas.models import version_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.stores.store import Store
    from schemas.models import CardFile, PublishedCard

log = logging.getLogger(__name__)

DEFAULT_BYTES = 50 << 30
_SPARE = 64 << 20  # bytes of the disk that stay free
_POLL = 0.2  # seconds between two looks at whether another process has fetched a file
_TRIES = 2  # at a file that arrives damaged


def default_folder() -> Path:
    """DREAMDROP_MODEL_CACHE, else a folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DREAMDROP_MODEL_CACHE") or f"{home}/dreamdrop/models").expanduser()


@dataclass(eq=False)
class InUse:
    """A version whose files stay on this machine until `release`."""

    cache: ModelCache
    folder: Path
    hashes: tuple[str, ...]

    def release(self) -> None:
        """Let the files be removed when room is needed; a second call does nothing."""
        hashes, self.hashes = self.hashes, ()
        for sha256 in hashes:
            self.cache.let_go(sha256)


class ModelCache:
    """One process's view of a cache folder. For one event loop."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_BYTES) -> None:
        """
        Args:
            max_bytes: of files; more only while more are in use.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self._locks: dict[str, asyncio.Lock] = {}  # by hash: one fetch of a file at a time
        self._used: dict[str, list[int]] = {}  # by hash: the locked file descriptor, and how many use it
        self._verified: set[tuple[str, int]] = set()  # hash and inode of files that this process has hashed

    async def use(self, store: Store, card: PublishedCard) -> InUse:
        """Fetch what is missing of a version, and keep it until it is released.

        Raises:
            NotFound: a file is not in the store (any more).
            WrongContent: a file in the store is damaged.
            StoreUnavailable: the store does not answer.
            DiskTrouble: there is no room on this machine, or the cache cannot be written.
        """
        held: list[str] = []
        try:
            for file in card.weights:
                await self._use_file(store, version_prefix(card.name, card.version) + file.path, file)
                held.append(file.sha256)
            folder = await asyncio.to_thread(self._link, card)
        except BaseException:
            for sha256 in held:
                self.let_go(sha256)
            raise
        return InUse(self, folder, tuple(held))

    def let_go(self, sha256: str) -> None:
        entry = self._used[sha256]
        entry[1] -= 1
        if not entry[1]:
            del self._used[sha256]
            os.close(entry[0])  # and with it the lock

    async def _use_file(self, store: Store, key: str, file: CardFile) -> None:
        path = self._path(file.sha256)
        async with self._locks.setdefault(file.sha256, asyncio.Lock()):
            if (entry := self._used.get(file.sha256)) is not None:
                entry[1] += 1
                return
            while True:
                fd = await asyncio.to_thread(self._open, path, file.sha256)
                if fd is not None:
                    self._used[file.sha256] = [fd, 1]
                    return
                await self._fetch(store, key, file, path)

    def _open(self, path: Path, sha256: str) -> int | None:
        """A file that is here and sound, locked against removal; None when there is none. Blocks."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)  # waits for a process that is about to remove it
            inode = os.fstat(fd).st_ino
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino != inode:
                    raise FileNotFoundError  # replaced before we had the lock
                if (sha256, inode) not in self._verified:
                    with os.fdopen(os.dup(fd), "rb") as stream:
                        found = hashlib.file_digest(stream, "sha256").hexdigest()
                    if found != sha256:
                        log.warning(
                            "a cached file is damaged; it is fetched again", extra={"file": str(path)}
                        )
                        path.unlink()
                        raise FileNotFoundError
                    self._verified.add((sha256, inode))
                os.utime(path)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    async def _fetch(self, store: Store, key: str, file: CardFile, path: Path) -> None:
        """Fetch a file, or wait until another process has done so."""
        part = path.with_name(f"{path.name}.part")
        with local(part):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _locked(fd):
                if not _is_at(part, fd):
                    return
                await asyncio.sleep(_POLL)
            if path.exists() or not _is_at(part, fd):
                return  # another process has fetched it, or has given up
            await asyncio.to_thread(self._make_room, file.size)
            log.info("fetching a file of a model", extra={"key": key, "bytes": file.size})
            for attempt in range(_TRIES):
                found = await store.fetch_file(key, part)
                if found == file.sha256:
                    break
                if attempt == _TRIES - 1:
                    raise WrongContent(
                        f"{key} is damaged: its sha256 is {found}, and the card says {file.sha256}; "
                        "publish the model again"
                    )
            with local(part):
                os.fsync(fd)
                part.rename(path)
            self._verified.add((file.sha256, os.fstat(fd).st_ino))
        except BaseException:
            if _locked(fd) and _is_at(part, fd):
                part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def size(self) -> int:
        """Bytes of all files that are here. Blocks."""
        return sum(facts.st_size for _, facts in self._files())

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for longest. Blocks. Raises `DiskTrouble` when the disk has no room."""
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        total = sum(facts.st_size for _, facts in files)
        for path, facts in files:
            free = shutil.disk_usage(self.folder).free
            if total + needed <= self.max_bytes and free >= needed + _SPARE:
                return
            if path.name not in self._used and _remove(path):
                total -= facts.st_size
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE:
            raise DiskTrouble(
                f"the model cache {self.folder} has no room for {needed:,} bytes: its disk has {free:,} bytes left"
            )

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("sha256/*/*"):
            with contextlib.suppress(FileNotFoundError):
                if not path.name.endswith(".part"):
                    yield path, path.stat()

    def _link(self, card: PublishedCard) -> Path:
        """A folder with the version's files, as links. Blocks."""
        listed = "".join(sorted(f"{file.sha256} {file.path}\n" for file in card.weights))
        folder = self.folder / "folders" / hashlib.sha256(listed.encode()).hexdigest()[:32]
        if folder.is_dir():
            return folder
        new = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
        with local(new):
            for file in card.weights:
                link = new / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._path(file.sha256).absolute())
            try:
                new.rename(folder)
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
                if not folder.is_dir():  # else another process was faster
                    raise
        return folder

    def _path(self, sha256: str) -> Path:
        return self.folder / "sha256" / sha256[:2] / sha256


def _locked(fd: int) -> bool:
    """Whether we have the file for ourselves now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _remove(path: Path) -> bool:
    """Remove a file unless some process uses it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _locked(fd):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)
