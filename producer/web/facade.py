"""The facade: takes a request to the express lane, and waits with the one who asked.

Everything is in the store, so a facade can be closed, or stand twice: what it knows by heart is only who
is waiting here and how crowded the lane was a moment ago.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from producer import ids, request_state
from producer.client import AsyncClient
from producer.errors import Conflict, StillWorking, UnknownRequest
from producer.overview import heartbeats
from producer.requests import Ticket, fresh_id
from producer.result_poller import Pace
from producer.web.api_keys import Key
from producer.web.cache import CachedCall
from producer.web.metrics import Metrics
from schemas.batch import numbered
from schemas.errors import DreamError, Rejected, Unavailable
from schemas.layout import EXPRESS, is_request
from schemas.manifest import validate_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from producer.overview import Overview
    from producer.web.settings import FacadeSettings
    from schemas.result import Result

PACE = Pace(
    0.05, 1.0, 1.15
)  # in a bucket, so about 15 % of the time that was waited already passes between two looks
LATEST = 200  # results that the gallery can show
RECENT = 50  # ended requests from which the lane's pace is told


class LaneFull(DreamError):
    """So many wait already that one more would wait too long."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests wait already; ask again in {retry_after} s")
        self.retry_after = retry_after  # seconds


class NoWorker(Unavailable):
    """Nobody is there to draw."""

    def __init__(self) -> None:
        super().__init__(
            "no worker is alive, so the picture would not come: start one with `dreamdrop worker`, or leave the "
            "request in the queue with `Prefer: respond-async`"
        )


class TooLate(DreamError, TimeoutError):
    """The caller's wait is over before the picture is there."""

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(
            f"{id} is not drawn after {seconds:g} s; the work goes on: fetch it with GET /jobs/{id}"
        )
        self.id = id


class CallerGone(DreamError):
    """Nobody is left to answer."""


def _make_sure_it_may_read(rows: bytes, caller: Key) -> None:
    """Look at the pictures that a batch's rows name. Raises `Rejected` with a line."""
    for number, line in numbered(rows):
        with suppress(ValueError, RecursionError):  # what is no JSON is refused later, in better words
            row = json.loads(line)
            try:
                caller.make_sure_it_may_read(row if isinstance(row, dict) else {})
            except Rejected as fault:
                text = f"line {number}: {fault.message}"
                raise Rejected(fault.code, text, field=fault.field, line=number) from fault


@dataclass
class Facade:
    """One store's front facade. For one event loop."""

    settings: FacadeSettings
    client: AsyncClient = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    waiting: Counter[str] = field(default_factory=Counter)  # callers that wait here, by id
    places: Counter[tuple[str, str]] = field(default_factory=Counter)  # the same, by key's name and id
    busy: Counter[str] = field(default_factory=Counter)  # synchronous requests under way, by key's name
    leaving: bool = False  # the server is being stopped, so streams end, and who still waits is told an id
    _coming: int = 0  # requests on their way to the lane
    _sent: int = 0  # those that got there since it was last listed
    _ended: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # when requests were over
    _states: dict[str, CachedCall[request_state.State]] = field(default_factory=dict)
    _overviews: dict[str, CachedCall[Overview]] = field(default_factory=dict)  # by what ids begin with

    def __post_init__(self) -> None:
        self.client = AsyncClient(self.settings.store, limits=self.settings.limits, pace=PACE)
        self.workers = CachedCall(self._workers)
        self._listed = CachedCall(self._count_lane)

    async def submit(self, document: Mapping[str, Any], caller: Key, *, id: str | None = None) -> Ticket:
        """Check a request and take it to the express lane.

        Args:
            document: the manifest; its own `id` counts where none is given.

        Raises:
            Rejected: it can never succeed; nothing was sent.
            Conflict: the id stands for another request.
            LaneFull: come back later.
        """
        name, body = await asyncio.to_thread(self._named, document, caller, id)
        chosen = bool(id or document.get("id"))
        if chosen:
            await self._make_sure_it_is_free(name, body, batch=False)
        await self._make_sure_of_room()
        if self.settings.queues:
            return (await self.client.send(body, queue=self.settings.queues[0]))[0]
        self._coming += 1
        try:
            ticket = await self.client.submit(body, express=True)
            self._sent += 1
        finally:
            self._coming -= 1
        if chosen:
            await ids.make_sure_it_came_first(self.client.store, ticket)
        return ticket

    def _named(self, document: Mapping[str, Any], caller: Key, id: str | None) -> tuple[str, bytes]:
        """A request's full name, and how it is stored. Raises `Rejected`, `Conflict`."""
        manifest = validate_manifest(document, self.settings.limits)
        caller.make_sure_it_may_read(document)
        if id and manifest.id and id != caller.id(manifest.id):
            raise Conflict(id, f"the manifest names itself {manifest.id!r}")
        name = id or caller.id(manifest.id or fresh_id())
        return name, json.dumps({**document, "id": name}, ensure_ascii=False, sort_keys=True).encode()

    async def _make_sure_it_is_free(self, id: str, body: bytes, *, batch: bool) -> None:
        await ids.make_sure_it_is_free(self.client.store, id, body, self.settings.limits, batch=batch)

    async def submit_batch(self, rows: bytes, id: str, caller: Key, *, chosen: bool = False) -> Ticket:
        """Queue a file of requests, in the slow lane. Raises `Rejected` with a line, `Conflict`.

        Args:
            chosen: its caller chose the id, so it may be taken.
        """
        if chosen:
            await self._make_sure_it_is_free(id, rows, batch=True)
        if caller.prefix:
            await asyncio.to_thread(_make_sure_it_may_read, rows, caller)
        if self.settings.queues:
            return await self.client.send_batch(rows, queue=self.settings.queues[-1], id=id)
        return await self.client.submit_batch(rows, id=id)

    async def draw(
        self, document: Mapping[str, Any], caller: Key, *, wait: float, gone: Callable[[], Awaitable[object]]
    ) -> Result:
        """Submit a request and wait until it is over, or until its caller has left.

        A request that nobody can ask for again, because we chose its id, is cancelled when its caller leaves.

        Args:
            wait: seconds.
            gone: returns when the caller has left.

        Raises:
            NoWorker, LaneFull: nothing was sent.
            TooLate: it goes on.
            CallerGone.
        """
        if not await self.workers():
            raise NoWorker
        with self._seat(caller):
            ticket = await self.submit(document, caller)
            place = (caller.name, ticket.id)
            self.places[place] += 1
            try:
                return await self._wait_with(ticket, wait, gone, ours=not document.get("id"))
            finally:
                self.places[place] -= 1
                self.places += Counter()  # forgets zeros

    async def overview(self, caller: Key) -> Overview:
        """The store at a glance, as far as a caller sees it."""
        begin = caller.begin  # one of a few: keys are in the settings
        look = self._overviews.setdefault(begin, CachedCall(lambda: self.client.known(LATEST, begin=begin)))
        return await look()

    def waits_of(self, caller: Key) -> list[str]:
        """The requests that this caller waits for here, the oldest first."""
        return [id for name, id in self.places if name == caller.name]

    async def interrupt(self, caller: Key) -> None:
        """Cancel what this caller waits for here, but for what somebody else waits for, too."""
        for id in self.waits_of(caller):
            if self.waiting[id] <= self.places[caller.name, id]:
                with suppress(UnknownRequest):  # a message in a queue that no worker has read yet
                    await self.client.cancel(id)

    async def _wait_with(
        self, ticket: Ticket, wait: float, gone: Callable[[], Awaitable[object]], *, ours: bool
    ) -> Result:
        result = asyncio.ensure_future(self.client.wait(ticket, wait))
        left = asyncio.ensure_future(gone())
        began = time.monotonic()
        self.waiting[ticket.id] += 1
        try:
            await asyncio.wait({result, left}, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                self._ended.append(time.monotonic())
                return result.result()
            if ours and self.waiting[ticket.id] == 1:
                await self.client.cancel(ticket)
            raise CallerGone(f"the caller of {ticket.id} has left")
        except StillWorking as error:
            raise TooLate(ticket.id, wait) from error
        except asyncio.CancelledError:
            if not self.leaving:
                raise
            raise TooLate(ticket.id, round(time.monotonic() - began, 1)) from None
        finally:
            self.waiting[ticket.id] -= 1
            self.waiting += Counter()  # forgets zeros
            for task in (result, left):
                task.cancel()
            await asyncio.gather(result, left, return_exceptions=True)

    async def state(self, id: str) -> request_state.State:
        """How far a request is; many who ask at once share one look. Raises `UnknownRequest`."""
        if len(self._states) > 10_000:
            self._states.clear()
        look = self._states.setdefault(id, CachedCall(lambda: self.client.status(id), seconds=0.2))
        state = await look()
        if state.over:
            self._states.pop(id, None)
        return state

    @contextmanager
    def _seat(self, caller: Key) -> Iterator[None]:
        """One of the caller's own places. Raises `LaneFull` when all are taken."""
        if caller.room and self.busy[caller.name] >= caller.room:
            raise LaneFull(self.busy[caller.name], self._patience(1))
        self.busy[caller.name] += 1
        try:
            yield
        finally:
            self.busy[caller.name] -= 1

    async def _make_sure_of_room(self) -> None:
        """Count what waits, and what went there since it was last counted. Raises `LaneFull`."""
        listed = await self._listed()
        if self._sent and listed + self._sent + self._coming >= self.settings.room:
            self._listed.forget()  # workers may have taken some since
            listed = await self._listed()
        waiting = max(listed + self._sent + self._coming, self.waiting.total())
        if waiting >= self.settings.room:
            raise LaneFull(waiting, self._patience(waiting - self.settings.room + 1))

    def _patience(self, places: int) -> int:
        """Seconds until so many places are free, as fast as requests end here just now; 1 to 60."""
        if len(self._ended) < 2:
            return 5
        pace = len(self._ended) / max(0.1, time.monotonic() - self._ended[0])  # a second
        return round(min(60.0, max(1.0, places / pace)))

    async def _count_lane(self) -> int:
        if self.settings.queues:
            return 0  # a queue is not listed; who waits here counts
        self._sent = 0
        listing = request_state.first(self.client.store.list(EXPRESS), self.settings.room)
        return sum([is_request(info.key) async for info in listing])

    async def _workers(self) -> list[dict[str, Any]]:
        return await heartbeats(self.client.store)
