"""Folders of a training in the store: checkpoints, class pictures and validation pictures.

A folder is complete when its commit file is there, which is written last. Nothing is overwritten: two attempts
write under different names, so the one that was presumed dead does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from infra.stores.store import Store
from schemas.errors import NotFound
from schemas.layout import CHECKPOINT_COMMIT, CHECKPOINTS, TRAINING_RESULTS

COMMIT = CHECKPOINT_COMMIT
_CHECKPOINT = re.compile(r"(?P<step>\d{9})\.(?P<epoch>\d{6})")


def folder_of(id: str) -> str:
    """The prefix of all that a training leaves behind."""
    return f"{TRAINING_RESULTS}{id}/"


@dataclass(frozen=True, order=True, slots=True)
class Checkpoint:
    """A complete checkpoint in the store, ordered by how far it is."""

    step: int
    epoch: int  # of the claim under which it was written

    @property
    def name(self) -> str:
        return f"{self.step:09d}.{self.epoch:06d}"


async def checkpoints(store: Store, id: str) -> list[Checkpoint]:
    """The complete checkpoints of a training, oldest first."""
    prefix = f"{folder_of(id)}{CHECKPOINTS}"
    found = []
    async for info in store.list(prefix):
        name, _, file = info.key.removeprefix(prefix).partition("/")
        match = _CHECKPOINT.fullmatch(name)
        if match and file == COMMIT:
            found.append(Checkpoint(int(match["step"]), int(match["epoch"])))
    return sorted(found)


async def save_checkpoint(store: Store, id: str, folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Store a checkpoint; then, and only then, delete all but the newest `keep`."""
    await save_folder(store, folder, f"{folder_of(id)}{CHECKPOINTS}{checkpoint.name}/", last=COMMIT)
    for old in (await checkpoints(store, id))[:-keep]:
        await _delete_checkpoint(store, id, old)


async def delete_checkpoints(store: Store, id: str) -> None:
    """Delete all checkpoints of a training."""
    for checkpoint in await checkpoints(store, id):
        await _delete_checkpoint(store, id, checkpoint)


async def _delete_checkpoint(store: Store, id: str, checkpoint: Checkpoint) -> None:
    prefix = f"{folder_of(id)}{CHECKPOINTS}{checkpoint.name}/"
    await store.delete(prefix + COMMIT)  # first: without it the rest is no checkpoint
    for key in [info.key async for info in store.list(prefix)]:
        await store.delete(key)


async def load_checkpoint(store: Store, id: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Fetch a checkpoint into a folder that does not exist yet. Raises `NotFound` when it was just deleted."""
    prefix = f"{folder_of(id)}{CHECKPOINTS}{checkpoint.name}/"
    await load_folder(store, prefix, folder)
    if not (folder / COMMIT).is_file():
        raise NotFound(prefix + COMMIT)


async def save_folder(store: Store, folder: Path, prefix: str, *, last: str = "") -> None:
    """Store every file of a folder under a prefix, `last` last. What is there already stays."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == last):
        await save_file(store, path, prefix + path.relative_to(folder).as_posix())


async def save_file(store: Store, path: Path, key: str) -> None:
    """Store a file, unless the key is taken."""
    await store.create_file(key, path, sha256=await asyncio.to_thread(_sha256, path))


async def load_folder(store: Store, prefix: str, folder: Path) -> None:
    """Fetch all objects under a prefix into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in [info.key async for info in store.list(prefix)]:
        path = folder / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(NotFound):
            await store.fetch_file(key, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
