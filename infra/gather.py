"""Many awaitable calls, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def gather_bounded(items: Iterable[T], limit: int, work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Await `work(item)` for each item, at most `limit` at a time; return the answers in the items' order.

    As with `asyncio.gather`, the first error is raised at once, and the other calls go on. There are `limit` tasks,
    however many items: a task for each of 50,000 would take more memory than most answers.
    """
    waiting = enumerate(items)
    answers: dict[int, R] = {}
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def worker() -> None:
        for number, item in waiting:
            try:
                answers[number] = await work(item)
            except Exception as error:
                if not failed.done():
                    failed.set_exception(error)

    workers = asyncio.gather(*(worker() for _ in range(limit)))
    try:
        await asyncio.wait((workers, failed), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        workers.cancel()
        raise
    if failed.done():
        failed.result()
    await workers
    return [answers[number] for number in range(len(answers))]
