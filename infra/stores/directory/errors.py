"""Errors of a directory store, as messages that say what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from infra.stores.directory.naming import NO_LINKS
from infra.stores.store import InvalidKey
from schemas.errors import DreamError, StoreUnavailable, Unsupported

if TYPE_CHECKING:
    from pathlib import Path

_NO_CREATES = NO_LINKS | {errno.EXDEV, errno.EINVAL}
_IN_THE_WAY = {errno.ENOTDIR, errno.ELOOP, errno.EISDIR}
_HINTS = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "raise the quota, or free some space",
    errno.EROFS: "mount its file system for writing",
    errno.EACCES: "give this user the right to read and write below it",
    errno.EPERM: "give this user the right to read and write below it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def translated(error: OSError, key: str, root: Path) -> DreamError:
    """Our error for one of the operating system's: what failed, why, and what to do."""
    reason = error.strerror or str(error)
    if not root.is_dir():
        return StoreUnavailable(f"the store directory {root} is not there: create it, or mount its disk")
    if error.errno == errno.ENAMETOOLONG:
        return InvalidKey(f"the key {key!r} is too long for this file system; shorten it")
    if error.errno in _NO_CREATES and error.filename2 is not None:
        return Unsupported(
            f"the file system of {root} has no hard links ({reason}), nor a rename that replaces nothing, so "
            "creates cannot be atomic there; "
            "put the store on a local disk or NFS, or use an S3 bucket"
        )
    if error.errno in _IN_THE_WAY:
        return StoreUnavailable(
            f"cannot write {key!r}: a file or a link is where one of its folders should be, or a folder is in "
            "its place; move that away"
        )
    hint = _HINTS.get(error.errno or 0, "the call will be tried again later")
    return StoreUnavailable(f"the store directory {root} failed at {key!r} ({reason}): {hint}")
