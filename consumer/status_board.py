"""How far requests are, for people: an object each in `status/`. The protocol never reads one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas import layout
from schemas.errors import StoreUnavailable

if TYPE_CHECKING:
    from consumer.job import Job
    from infra.store import Store

_AFTER = 1.0  # seconds of work before a request gets a status object


@dataclass(frozen=True)
class StatusBoard:
    """One worker's part of it."""

    store: Store
    worker: str
    clock: Callable[[], float]

    async def tell(self, job: Job) -> None:
        """Say how far a job is, if it takes long enough for somebody to ask. Raises `StoreUnavailable`."""
        if self.clock() - job.began > _AFTER:
            job.told = True
            body = job.status(self.worker).model_dump_json().encode()
            await self.store.put(layout.status_key(job.id), body)

    async def wipe(self, job: Job) -> None:
        """It is over: its result says all."""
        if job.told:
            with contextlib.suppress(StoreUnavailable):
                await self.store.delete(layout.status_key(job.id))
