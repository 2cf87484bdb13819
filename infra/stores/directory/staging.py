"""Files that are written whole before they get a key, and folders that may be missing."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from infra.stores.directory import safe_paths
from infra.stores.directory.metadata import staging_name
from infra.stores.directory.safe_paths import ABSENT, STAGING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@contextlib.contextmanager
def existing(root: Path, names: Sequence[str]) -> Iterator[int | None]:
    """A folder's file descriptor; None when it is not there."""
    with contextlib.ExitStack() as stack:
        try:
            here: int | None = stack.enter_context(safe_paths.folder(root, names))
        except OSError as error:
            if error.errno not in ABSENT or not root.is_dir():
                raise
            here = None
        yield here


@contextlib.contextmanager
def staged_file(
    root: Path, key: str, write: Callable[[int], None], *, fsync: bool
) -> Iterator[tuple[int, str, int]]:
    """A file, written and flushed: (staging folder, its name, its file descriptor).

    Args:
        write: writes the whole file to a file descriptor.
    """
    name = staging_name(key)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with safe_paths.folder(root, [STAGING], make=True, fsync=fsync) as staging:
        fd = os.open(name, flags, 0o666, dir_fd=staging)
        try:
            write(fd)
            now = time.time_ns()
            os.utime(fd, ns=(now, now))  # finer than the kernel's clock tick; the etag needs it
            if fsync:
                os.fsync(fd)
            yield staging, name, fd
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=staging)


def writer(body: bytes) -> Callable[[int], None]:
    """Writes a body that is in memory."""
    return lambda fd: safe_paths.write_all(fd, body)
