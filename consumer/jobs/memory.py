"""A bound on the bytes of decoded pictures that a worker's parent holds at once.

Whoever wants to hold some takes a share first, and waits until there is room. The express lane goes first, and
a quarter of the bytes is kept for it. A share larger than everything there is goes when it is alone.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiter:
    order: tuple[bool, int]  # not express, and when it came: the smallest goes first
    size: int  # bytes
    ready: asyncio.Future[None]


class Budget:
    """Bytes that may be held. For one event loop."""

    def __init__(self, size: int) -> None:
        self.held = 0  # bytes
        self._size = size
        self._waiting: list[_Waiter] = []
        self._numbers = itertools.count()

    async def take(self, size: int, *, express: bool) -> Share:
        """Wait for room; give the share back by `Share.release`."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter((not express, next(self._numbers)), size, ready)
        insort(self._waiting, waiter, key=lambda one: one.order)
        self._admit()
        try:
            await ready
        except asyncio.CancelledError:
            if ready.cancelled():
                self._admit()  # it may have been in front of a smaller one
            else:
                self._give_back(size)  # it was admitted in the same moment
            raise
        return Share(self, size)

    def _admit(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if first.ready.cancelled():
                self._waiting.pop(0)
                continue
            room = self._size - (self._size // 4 if first.order[0] else 0)
            if self.held and self.held + first.size > room:
                return  # those behind it wait, too: else small ones would overtake a large one for ever
            self._waiting.pop(0)
            self.held += first.size
            first.ready.set_result(None)

    def _give_back(self, size: int) -> None:
        self.held -= size
        self._admit()


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.size = size  # bytes
        self._budget = budget

    def shrink(self, size: int) -> None:
        """Give back what is not needed after all."""
        if size < self.size:
            self.size, less = size, self.size - size
            self._budget._give_back(less)

    def release(self) -> None:
        """Give all of it back; a second call does nothing."""
        self.shrink(0)
