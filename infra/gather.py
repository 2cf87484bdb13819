"""Many awaitable calls, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def gather_bounded(items: Iterable[T], limit: int, work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Await `work(item)` for each item, at most `limit` at a time; return the answers in the items' order.

    As with `asyncio.gather`, the first error is raised at once, and the other calls go on.
    """
    gate = asyncio.Semaphore(limit)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*map(one, items))
