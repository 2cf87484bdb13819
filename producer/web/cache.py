"""A costly answer that many ask for is asked for once, and believed for a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class CachedCall(Generic[T]):
    """A costly answer that many ask for, believed for a moment."""

    ask: Callable[[], Awaitable[T]]
    seconds: float = 1.0
    _answer: asyncio.Task[T] | None = None
    _until: float = 0.0

    def forget(self) -> None:
        """Ask anew at the next call, unless that is being done."""
        self._until = 0.0

    async def __call__(self) -> T:
        if self._answer is None or (self._answer.done() and time.monotonic() > self._until):
            self._until = time.monotonic() + self.seconds
            self._answer = asyncio.create_task(_as_task(self.ask))
        try:
            return await asyncio.shield(self._answer)
        except BaseException:
            if self._answer is not None and self._answer.done():
                self._answer = None  # a failure is not remembered
            raise


async def _as_task(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()
