"""Gives a finished file its key, unless the key is taken: by a hard link, or where there are none by a rename.

exFAT, FAT, most SMB shares and some FUSE file systems have no hard links. There `renameat2(2)` with
RENAME_NOREPLACE does it: it fails when the new name exists, in one step, on the file server too. A lock and a
look would do within one machine only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import sys

from schemas.errors import StoreUnavailable

_RENAME_NOREPLACE = 1
#: What link(2) says where it cannot link at all.
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def has_links(folder: int) -> bool:
    """Whether the file system of an open folder has hard links, by trying."""
    name = f"link-probe-{secrets.token_hex(8)}"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    os.close(fd)
    try:
        os.link(name, f"{name}-2", src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        return error.errno not in NO_LINKS
    finally:
        for each in (name, f"{name}-2"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each, dir_fd=folder)
    return True


def rename_noreplace(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """Rename a file unless the new name exists, atomically.

    Raises:
        FileExistsError: it exists.
        OSError: with both names; ENOSYS, EINVAL or ENOTSUP where the system cannot do it.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), old, None, new)
    if call(src_dir_fd, os.fsencode(old), dst_dir_fd, os.fsencode(new), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def is_taken(name: str, here: int, key: str) -> bool:
    """Whether a plain file has the name. Raises `StoreUnavailable` when it is something else."""
    try:
        facts = os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISREG(facts.st_mode):
        return True
    what = "a folder" if stat.S_ISDIR(facts.st_mode) else "something that is not a plain file"
    raise StoreUnavailable(f"cannot write {key!r}: {what} is in its place; move that away")
