"""A time-limited cache of one asynchronous call, whose simultaneous callers share one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class CachedCall(Generic[T]):
    """A call whose answer is reused for some seconds. An error is not kept."""

    call: Callable[[], Awaitable[T]]
    seconds: float = 1.0
    _task: asyncio.Task[T] | None = None
    _until: float = 0.0

    def forget(self) -> None:
        """Call again next time, unless a call is in progress."""
        self._until = 0.0

    async def __call__(self) -> T:
        if self._task is None or (self._task.done() and time.monotonic() > self._until):
            self._until = time.monotonic() + self.seconds
            self._task = asyncio.create_task(_as_coroutine(self.call))
        try:
            return await asyncio.shield(self._task)
        except BaseException:
            if self._task is not None and self._task.done():
                self._task = None  # it failed
            raise


async def _as_coroutine(call: Callable[[], Awaitable[T]]) -> T:
    return await call()
