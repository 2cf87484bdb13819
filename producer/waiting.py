"""Many waiters, one pair of eyes: results are looked for together.

A look costs one listing page per thousand keys, or one question for each awaited id; whichever
was cheaper. In a directory a new file ends the pause between two looks; a bucket is asked less
often the longer nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.inbox import changes
from producer.lookup import read_result
from schemas.errors import StoreUnavailable
from schemas.layout import COMMIT, RESULTS, other_body_id, result_key

if TYPE_CHECKING:
    from infra.store import Store
    from producer.requests import Ticket
    from schemas.result import Result

PAUSES = {True: (0.5, 5.0), False: (0.05, 2.0)}  # seconds, shortest and longest: a bucket, a directory
PAGE = 1000  # keys in a listing's page
PATIENCE = 60.0  # seconds for which a silent store is asked again before the waiters are told


@dataclass(slots=True)
class Waiting:
    """The ids that somebody waits for, and the task that looks for them while there are any."""

    store: Store
    _futures: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _listing_cost: float = 0.0  # calls that the last listing took
    _found: bool = False

    async def result(self, ticket: Ticket | str) -> Result:
        """Wait until a request is over."""
        id = ticket if isinstance(ticket, str) else ticket.id
        while True:
            result = await read_result(self.store, id)
            if result is not None:
                break
            await self._seen(id)
        if isinstance(ticket, str) or result.fingerprint in (ticket.fingerprint, ""):
            return result
        # another body was first under this id; ours is answered beside it
        return await self.result(other_body_id(id, ticket.fingerprint))

    async def close(self) -> None:
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _seen(self, id: str) -> None:
        """Return when the result's key has been seen."""
        future = asyncio.get_running_loop().create_future()
        self._futures.setdefault(id, []).append(future)
        if self._task is None or self._task.done():
            self._stop = asyncio.Event()
            self._task = asyncio.create_task(self._look_until_nobody_waits(self._stop))
        try:
            await future
        finally:
            self._forget(id, future)

    def _forget(self, id: str, future: asyncio.Future[None]) -> None:
        waiters = self._futures.get(id, [])
        if future in waiters:
            waiters.remove(future)
        if not waiters:
            self._futures.pop(id, None)
        if not self._futures:
            self._stop.set()

    async def _look_until_nobody_waits(self, stop: asyncio.Event) -> None:
        shortest, longest = PAUSES[self.store.url.startswith("s3:")]
        loop = asyncio.get_running_loop()
        answered = loop.time()
        looks = changes(
            self.store,
            stop,
            prefixes=(RESULTS,),
            found_work=lambda: self._found,
            shortest=shortest,
            longest=longest,
        )
        async with contextlib.aclosing(looks):  # type: ignore[type-var]
            async for _ in looks:
                try:
                    await self._look()
                    answered = loop.time()
                except StoreUnavailable as error:
                    if loop.time() - answered > PATIENCE:
                        self._tell(error)
                except Exception as error:
                    self._tell(error)

    async def _look(self) -> None:
        self._found = False
        ids = set(self._futures)
        if len(ids) > self._listing_cost and len(ids) > 4:
            await self._list(ids)
            return
        self._listing_cost = max(0.0, self._listing_cost - 1)  # try a listing again some day
        heads = await asyncio.gather(*(self.store.head(result_key(id)) for id in sorted(ids)))
        for id, info in zip(sorted(ids), heads, strict=True):
            if info is not None:
                self._wake(id)

    async def _list(self, ids: set[str]) -> None:
        first, last = min(map(result_key, ids)), max(map(result_key, ids))
        count = 0
        async for info in self.store.list(RESULTS, start_after=first[:-1]):
            count += 1
            if info.key > last:
                break
            if info.key.endswith(f"/{COMMIT}"):
                self._wake(info.key[len(RESULTS) : -len(COMMIT) - 1])
        self._listing_cost = 1 + count / PAGE

    def _wake(self, id: str) -> None:
        for future in self._futures.get(id, []):
            if not future.done():
                future.set_result(None)
                self._found = True

    def _tell(self, error: Exception) -> None:
        for futures in self._futures.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
