"""When a trainer last got anywhere, and what it tells people of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from schemas import layout
from schemas.errors import StoreUnavailable
from schemas.result import Failure

if TYPE_CHECKING:
    from infra.claims.trainings import TrainingStore
    from schemas.training import TrainingProgress

T = TypeVar("T")

_STATUS_EVERY = 2.0  # seconds between two writes of the status
_TOUCH_EVERY = 5.0  # seconds


class Pulse:
    """When there was progress: a report of the child, or bytes of a file. A `infra.stores.timed.Watcher`.

    Small objects do not count: heartbeats are such, and go on while everything else hangs.
    """

    def __init__(self) -> None:
        self.at = time.monotonic()

    def touch(self) -> None:
        self.at = time.monotonic()

    def moved(self) -> None:
        self.touch()

    def called(self, verb: str, seconds: float, failed: bool) -> None:
        """Nothing: see above."""

    def created(self, key: str, body: bytes) -> None:
        """Nothing: see above."""

    async def during(self, work: Awaitable[T]) -> T:
        """Wait for work that shows no progress, and that has time-outs of its own."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self.touch()
                await asyncio.wait([task], timeout=_TOUCH_EVERY)
        finally:
            task.cancel()
        return task.result()


class Status:
    """`training-status/<id>.json`: written at most every two seconds within a phase."""

    def __init__(self, view: TrainingStore, progress: TrainingProgress) -> None:
        self.progress = progress
        self._view = view
        self._at = 0.0

    def hang_failure(self) -> Failure:
        """Why an attempt was ended that made no progress."""
        phase = self.progress.phase or "fetching"
        message = f"the training made no progress for too long (phase: {phase})"
        return Failure(code="worker_crashed", message=message)

    async def tell(self, **facts: Any) -> None:
        before, self.progress = self.progress, self.progress.model_copy(update=facts)
        now = time.monotonic()
        if self.progress.phase == before.phase and now - self._at < _STATUS_EVERY:
            return
        self._at = now
        with contextlib.suppress(StoreUnavailable):
            key = layout.status_key(self.progress.id)
            await self._view.put(key, self.progress.model_dump_json().encode())
