"""Polls the store for results on behalf of everybody who waits.

A look costs one listing page per thousand keys, or one HEAD for each awaited id, whichever was cheaper.
In a directory a new file ends the pause between two looks. In a bucket the pause grows while nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.claims.claim import answers
from infra.stores.changes import changes
from infra.stores.directory.store import DirectoryStore
from producer.request_state import read_result
from schemas.errors import StoreUnavailable
from schemas.layout import RESULTS, other_body_id, result_key
from schemas.result import Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable

    from infra.stores.store import Store
    from producer.requests import Ticket

Arrival = asyncio.Future[Result]


@dataclass(frozen=True, slots=True)
class PollInterval:
    """The pause between two looks, and how it grows."""

    shortest: float  # seconds between the first two looks
    longest: float  # seconds
    growth: float = 2.0  # of the pause, with each look that found nothing


REMOTE, LOCAL = PollInterval(0.5, 5.0), PollInterval(0.05, 2.0)
PAGE = 1000  # keys in a listing's page
FEW = 4  # so many ids are always looked for one by one
AT_ONCE = 16  # results read at the same time
PATIENCE = 60.0  # seconds of silence of the store before those who wait get its error


@dataclass(slots=True)
class ResultPoller:
    """The ids that somebody waits for, and the task that looks for their results."""

    store: Store
    interval: PollInterval | None = None  # by default `REMOTE` or `LOCAL`, as the store is
    _arrivals: dict[str, set[Arrival]] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _listing_cost: float = 0.0  # calls that the last listing took
    _delivered: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def result(self, ticket: Ticket | str) -> Result:
        """Wait until a request has ended."""
        async with contextlib.aclosing(self.follow([ticket])) as results:
            return (await anext(results))[1]

    async def follow(self, tickets: Iterable[Ticket | str]) -> AsyncGenerator[tuple[Ticket | str, Result]]:
        """Yield each request with its result, as they end."""
        arrived: asyncio.Queue[tuple[Ticket | str, Arrival]] = asyncio.Queue()
        expected: dict[Arrival, str] = {}

        def expect(ticket: Ticket | str, id: str) -> None:
            arrival: Arrival = asyncio.get_running_loop().create_future()
            self._arrivals.setdefault(id, set()).add(arrival)
            expected[arrival] = id
            arrival.add_done_callback(lambda done: arrived.put_nowait((ticket, done)))

        for ticket in dict.fromkeys(tickets):
            expect(ticket, ticket if isinstance(ticket, str) else ticket.id)
        try:
            await self._look(set(expected.values()))
            self._news.set()  # a new wait begins with the shortest pause
            while expected:
                self._keep_looking()
                ticket, arrival = await arrived.get()
                id = expected.pop(arrival)
                self._forget(id, arrival)
                result = arrival.result()
                if isinstance(ticket, str) or answers(result.fingerprint, ticket.fingerprint):
                    yield ticket, result
                else:  # another body was first under this id; ours is answered under `<id>~<hash>`
                    expect(ticket, other_body_id(id, ticket.fingerprint))
        finally:
            for arrival, id in expected.items():
                self._forget(id, arrival)

    async def close(self) -> None:
        """End the polling; everybody who still waits gets a `RuntimeError`."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail(RuntimeError("the client was closed while somebody waited"))

    def _keep_looking(self) -> None:
        if self._task is None or self._task.done() or self._stop.is_set():
            self._stop = asyncio.Event()
            self._task = asyncio.create_task(self._look_until_nobody_waits(self._stop))

    def _forget(self, id: str, arrival: Arrival) -> None:
        waiters = self._arrivals.get(id, set())
        waiters.discard(arrival)
        if not waiters:
            self._arrivals.pop(id, None)
        if not self._arrivals and not isinstance(self.store, DirectoryStore):
            # A directory goes on being watched: that costs nothing, but starting does, as each folder is registered.
            self._stop.set()

    async def _look_until_nobody_waits(self, stop: asyncio.Event) -> None:
        interval = self.interval or (REMOTE if self.store.is_remote else LOCAL)
        loop = asyncio.get_running_loop()
        answered = loop.time()
        looks = changes(
            self.store,
            stop,
            prefixes=(RESULTS,),
            found_work=lambda: self._delivered,
            shortest=interval.shortest,
            longest=interval.longest,
            growth=interval.growth,
            news=self._news,
        )
        async for _ in looks:
            try:
                self._delivered = False
                if self._arrivals:
                    await self._look(set(self._arrivals))
                answered = loop.time()
            except StoreUnavailable as error:
                if loop.time() - answered > PATIENCE:
                    self._fail(error)
            except Exception as error:
                self._fail(error)

    async def _look(self, ids: Collection[str]) -> None:
        """Find which of the ids have ended, and deliver their results."""
        if len(ids) > max(FEW, self._listing_cost):
            over = await self._listed(ids)
        else:
            self._listing_cost = max(0.0, self._listing_cost - 1)  # so that a listing is tried again some day
            names = sorted(ids)
            heads = await asyncio.gather(*(self.store.head(result_key(id)) for id in names))
            over = [id for id, info in zip(names, heads, strict=True) if info is not None]
        await asyncio.gather(*map(self._deliver, over))

    async def _listed(self, ids: Collection[str]) -> list[str]:
        keys = {result_key(id): id for id in ids}
        first, last, count, over = min(keys), max(keys), 0, []
        async for info in self.store.list(RESULTS, start_after=first[:-1]):
            count += 1
            if info.key in keys:
                over.append(keys[info.key])
            if info.key >= last:
                break
        self._listing_cost = 1 + count / PAGE
        return over

    async def _deliver(self, id: str) -> None:
        async with self._gate:
            if not self._arrivals.get(id):
                return
            result = await read_result(self.store, id)
        for arrival in list(self._arrivals.get(id, ())):
            if result is not None and not arrival.done():
                arrival.set_result(result)
                self._delivered = True

    def _fail(self, error: Exception) -> None:
        for arrivals in list(self._arrivals.values()):
            for arrival in list(arrivals):
                if not arrival.done():
                    arrival.set_exception(error)
