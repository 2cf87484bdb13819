"""Stores checkpoints beside a training that goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.stores.store import Store
from schemas.errors import Unavailable
from training.lease import saved

log = logging.getLogger("dreamdrop.trainer")


async def trying(id: str, work: Callable[[], Awaitable[None]]) -> bool:
    """A store that is away for a while costs a file, not the training; returns whether it was stored."""
    try:
        await work()
    except Unavailable as error:
        log.warning("a file was not stored", extra={"id": id, "why": str(error)})
        return False
    return True


@dataclass
class CheckpointSaver:
    """Stores the checkpoints of one attempt; of those that come while one is stored, only the last is next."""

    store: Store
    id: str  # of the training
    epoch: int  # of its claim
    folder: Path  # for links to the checkpoints that are being stored
    _task: asyncio.Task[None] | None = None
    _waiting: tuple[Path, int, int] | None = None  # folder, step, how many to keep

    async def add(self, checkpoint: Path, step: int, keep: int) -> None:
        """Take a checkpoint that the child has just written."""
        kept = self.folder / checkpoint.name
        try:  # links, because the child removes old checkpoints when it likes
            await asyncio.to_thread(shutil.copytree, checkpoint, kept, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            shutil.rmtree(kept, ignore_errors=True)
            return  # it was faster than we: there is a newer one
        if self._waiting is not None:
            shutil.rmtree(self._waiting[0], ignore_errors=True)
        self._waiting = (kept, step, keep)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._save())

    async def finish(self) -> None:
        """Wait until the last one is stored, or given up."""
        if self._task is not None:
            await self._task

    def give_up(self) -> None:
        """Store nothing more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _save(self) -> None:
        while self._waiting is not None:
            (folder, step, keep), self._waiting = self._waiting, None
            store = partial(self._store, folder, step, keep)
            if await trying(self.id, store):
                log.info("checkpoint stored", extra={"id": self.id, "step": step})
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _store(self, folder: Path, step: int, keep: int) -> None:
        await saved.save_checkpoint(self.store, self.id, folder, saved.Checkpoint(step, self.epoch), keep)
