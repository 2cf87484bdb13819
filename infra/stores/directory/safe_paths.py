"""File access below one directory that never leaves it, whatever is put into it.

Every path is walked one segment at a time from an open directory, never through a symbolic link, and
only plain files are opened. Anything else that may be put into an inbox (a link out of the directory, a
pipe without a writer, a device) is skipped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import stat
from typing import TYPE_CHECKING

from infra.stores.keys import check_key
from infra.stores.store import InvalidKey
from schemas.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

STAGING = ".staging"  # half-written files, on the same file system as the keys
META = ".meta"  # metadata, beside the objects that have some
PRIVATE = frozenset({STAGING, META})
MAX_SEGMENT_BYTES = 255  # of every common file system
INBOX = "requests/"  # where people put files with any tool: editors, rsync, cp
UNFINISHED = (".tmp", ".part", "~")
PATIENCE = 100  # times that a folder is created again because another process removed it

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: Error numbers that mean "there is no such file", also because something else has its name.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

#: Devices whose file systems have no hard links. Most of those make inode numbers up, and forget them.
without_links: set[int] = set()
#: What lies where objects should be and is none: its key, and a sentence that says why. Each was logged once.
ignored: dict[str, str] = {}


def segments(key: str) -> tuple[str, ...]:
    """A key as path segments. Raises `InvalidKey` for what a file system cannot hold."""
    check_key(key)
    parts = tuple(key.split("/"))
    if parts[0] in PRIVATE:
        raise InvalidKey(f"the key {key!r} begins with {parts[0]!r}, which the store keeps for itself")
    for segment in parts:
        if len(os.fsencode(segment)) > MAX_SEGMENT_BYTES:
            raise InvalidKey(
                f"the key {key!r} has a segment of more than {MAX_SEGMENT_BYTES} bytes, the longest name "
                "that a file system takes; shorten it"
            )
    return parts


def etag(facts: os.stat_result) -> str:
    """A version's etag: it changes with every replacement (inode) and every edit in place (time, size)."""
    if facts.st_dev in without_links:
        return f"{facts.st_mtime_ns:x}-{facts.st_size:x}"
    return f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"


@contextlib.contextmanager
def folder(root: Path, names: Sequence[str], *, make: bool = False, fsync: bool = True) -> Iterator[int]:
    """Open the folder `root/names...` as a file descriptor, without following links below root.

    Raises:
        OSError: ENOENT where it is missing and `make` is not set; ENOTDIR or ELOOP where a file or a
            link is in its place. A missing root is `FileNotFoundError` with its path.
    """
    here = _descend(root, names, make=make, fsync=fsync)
    try:
        yield here
    finally:
        os.close(here)


def _descend(root: Path, names: Sequence[str], *, make: bool, fsync: bool) -> int:
    for _ in range(PATIENCE):
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                below = _step(here, name, make=make, fsync=fsync)
                os.close(here)
                here = below
        except FileNotFoundError:
            os.close(here)
            if not make:
                raise
            # Another process has removed an empty folder that we had open: again from the root.
        except OSError:
            os.close(here)
            raise
        else:
            return here
    raise OSError(errno.EAGAIN, "its folder is removed as fast as it is created", "/".join(names))


def _step(here: int, name: str, *, make: bool, fsync: bool) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _FOLDER, dir_fd=here)
    if not make:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=here)
        if fsync:
            sync_folder(here)
    return os.open(name, _FOLDER, dir_fd=here)


def look(name: str, here: int) -> os.stat_result | None:
    """A plain file's facts, or None when there is no plain file of this name."""
    try:
        facts = os.stat(name, dir_fd=here, follow_symlinks=False)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    return facts if stat.S_ISREG(facts.st_mode) else None


def open_file(name: str, here: int) -> int | None:
    """Open a plain file for reading; None when there is none. Never blocks, never follows a link."""
    if look(name, here) is None:  # opening a device could already do something
        return None
    try:
        fd = os.open(name, _FILE, dir_fd=here)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # replaced in between
        os.close(fd)
        return None
    return fd


def read_all(read: Callable[[int], bytes], key: str, size: int, max_bytes: int | None) -> bytes:
    """Read to the end, but never more than the limit, even if the file grows meanwhile."""
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(key, size, max_bytes)
    parts: list[bytes] = []
    total = 0
    while part := read(1 << 20):
        parts.append(part)
        total += len(part)
        if max_bytes is not None and total > max_bytes:
            raise TooLarge(key, total, max_bytes)
    return b"".join(parts)


def has_writer(fd: int) -> bool | None:
    """Whether any program has this file open for writing; None where the system does not say.

    Linux grants a read lease only on a file that nobody writes (fcntl(2), F_SETLEASE), to its owner or
    with CAP_LEASE. A program that opens the file while we hold the lease makes the kernel send us a
    signal; SIGURG is one that is ignored by default.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def write_all(fd: int, body: bytes) -> None:
    """Write every byte, even if the system takes only a few at a time."""
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_folder(fd: int) -> None:
    """Flush the names in a folder to the disk, where the file system can."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise


def is_foreign_link(facts: os.stat_result, root: Path) -> bool:
    """Whether a plain file has a name besides its key and our staging name.

    For dropped files: by a hard link somebody could make us read a file that only we may read. Our own
    files have a second name for a moment, in the staging folder.
    """
    if facts.st_nlink == 1:
        return False
    try:
        with folder(root, [STAGING]) as staging, os.scandir(staging) as entries:
            return facts.st_nlink > 2 or all(entry.inode() != facts.st_ino for entry in entries)
    except OSError:
        return True


def walk(root: Path, prefix: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
    """Keys that begin with prefix, with their facts, in ascending order of their UTF-8 bytes.

    Reads only the folder that the prefix names, and below it only what comes after start_after.
    """
    base, _, beginning = prefix.rpartition("/")
    names = base.split("/") if base else []
    if names and names[0] in PRIVATE:
        return
    try:
        with folder(root, names) as here:
            yield from _walk(here, f"{base}/" if base else "", beginning, start_after)
    except OSError as error:
        if error.errno not in ABSENT or not root.is_dir():
            raise


def _walk(here: int, base: str, beginning: str, start_after: str) -> Iterator[tuple[str, os.stat_result]]:
    for name, is_folder in _entries(here, base, beginning):
        key = base + name
        if not is_folder:
            facts = look(name, here) if key > start_after else None
            if facts is not None:
                yield key, facts
            continue
        below = f"{key}/"
        if start_after >= below and not start_after.startswith(below):
            continue  # all of its keys come before start_after
        try:
            fd = os.open(name, _FOLDER, dir_fd=here)
        except OSError as error:
            if error.errno in ABSENT:
                continue  # removed or replaced in between
            raise
        try:
            yield from _walk(fd, below, "", start_after)
        finally:
            os.close(fd)


def _entries(here: int, base: str, beginning: str) -> list[tuple[str, bool]]:
    """(name, is it a folder) of plain files and folders, in the order of their keys: a folder ends in "/"."""
    listed: list[tuple[str, bool]] = []
    with os.scandir(here) as entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(beginning) or not _is_listed(base, name):
                continue
            if entry.is_dir(follow_symlinks=False):
                listed.append((name, True))
            elif entry.is_file(follow_symlinks=False):
                listed.append((name, False))
            elif base.startswith(INBOX):
                text = "is ignored: it is a link, a pipe or a device; copy the file itself there"
                warn_once(base + name, f"{base + name!r} {text}")
    listed.sort(key=lambda e: f"{e[0]}/" if e[1] else e[0])
    return listed


def _is_listed(base: str, name: str) -> bool:
    if not base and name in PRIVATE:
        return False
    if base.startswith(INBOX) and (name.startswith(".") or name.endswith(UNFINISHED)):
        return False
    try:
        check_key(base + name)
    except InvalidKey as error:
        warn_once(base + name, f"a file is not listed: {error}")
        return False
    return True


def warn_once(about: str, message: str) -> None:
    """Log a warning the first time only, because listings come every second; at most 1,000 in all."""
    if about not in ignored and len(ignored) < 1000:
        ignored[about] = message
        log.warning(message)
