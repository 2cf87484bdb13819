"""Removes folders that the past left empty: every listing opens each of them, so they would slow it for ever.

A batch leaves `requests/<batch>/` behind, and a worker that is killed between two deletions leaves `claims/<id>/`.
`rmdir(2)` removes only what is empty, in one step. But somebody may have made a folder in order to write into it,
so a folder goes only when nothing in it has changed for a while. Our own writers make a folder again that is gone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from infra.stores.directory import safe_paths
from infra.stores.directory.safe_paths import ABSENT, STAGING
from schemas.layout import CLAIMS, EXPRESS, REQUESTS, RESULTS, STATUS, TRAINING_RESULTS, result_key

if TYPE_CHECKING:
    from pathlib import Path

OURS = 60.0  # seconds after which an empty folder goes that only this program writes into
THEIRS = (
    86_400.0  # seconds after which one goes that a client may have made: people do other things in between
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_empty_folders(root: Path, *tops: str) -> int:
    """Remove what has been empty for long below `requests/`, `claims/` and `status/`. Returns how many.

    Args:
        tops: other prefixes than these; below `results/` and `training-results/` what is empty goes at once.
    """
    now = _now(root)
    removed = 0
    for top in tops or (REQUESTS, CLAIMS, STATUS):
        try:
            with safe_paths.folder(root, [top.rstrip("/")]) as here:
                removed += _below(root, here, top, now)[0]
        except OSError as error:
            if error.errno not in ABSENT or not root.is_dir():
                raise
    return removed


def _now(root: Path) -> float:
    """The time by the clock that dates the folders, which is a file server's where there is one."""
    name = f"clock-{secrets.token_hex(8)}"
    with safe_paths.folder(root, [STAGING], make=True) as staging:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=staging)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=staging)


def _below(root: Path, here: int, base: str, now: float) -> tuple[int, bool]:
    """Remove the empty folders below an open one: (how many, whether nothing is left in it)."""
    with os.scandir(here) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    removed = left = 0
    for name, is_folder in found:
        count, is_gone = _remove(root, here, name, base, now) if is_folder else (0, False)
        removed += count
        left += not is_gone
    return removed, not left


def _remove(root: Path, here: int, name: str, base: str, now: float) -> tuple[int, bool]:
    """Remove a folder if it has been empty for long, and those in it: (how many, whether it is gone)."""
    try:
        fd = os.open(name, _FOLDER, dir_fd=here)
    except OSError as error:
        if error.errno in ABSENT:
            return 0, False  # removed or replaced in between
        raise
    try:
        changed = os.fstat(fd).st_mtime  # before we change it ourselves
        removed, is_empty = _below(root, fd, f"{base}{name}/", now)
    finally:
        os.close(fd)
    if not is_empty or now - changed <= _patience(root, base + name):
        return removed, False
    try:
        os.rmdir(name, dir_fd=here)
    except OSError:  # it is not empty any more, or not ours to remove
        return removed, False
    return removed + 1, True


def _patience(root: Path, key: str) -> float:
    """Seconds for which a folder must have been empty; infinite for the express lane's own."""
    if f"{key}/" == EXPRESS:
        return float("inf")
    if key.startswith((RESULTS, TRAINING_RESULTS)):
        return -1.0  # `clean` emptied it just now
    if not key.startswith(REQUESTS):
        return OURS
    # A folder under the name of a request that has ended had the rows of a batch, which a worker dropped.
    *names, name = result_key(key.removeprefix(REQUESTS)).split("/")
    with contextlib.suppress(OSError), safe_paths.folder(root, names) as folder:
        return OURS if safe_paths.look(name, folder) is not None else THEIRS
    return THEIRS
