"""The facade: sends requests to the express lane, and waits for their results on behalf of HTTP callers.

Everything that matters is in the store, so a facade can be restarted, or run many times. It remembers only
which callers wait here, and how full the lane was a moment ago.
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

from infra.lru import LruCache
from producer import ids, request_state
from producer.client import AsyncClient
from producer.errors import Conflict, StillWorking, UnknownRequest
from producer.liveness import Liveness
from producer.overview import heartbeats
from producer.requests import Ticket, fresh_id
from producer.result_poller import PollInterval
from producer.trainings.reader import TrainingReader
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

POLL_INTERVAL = PollInterval(
    0.05, 1.0, 1.15
)  # in a bucket, so about 15 % of the time that was waited already passes between two looks
LATEST = 200  # results that the gallery can show
RECENT = 50  # finished requests from which the current rate is estimated


class QueueFull(DreamError):
    """As many requests as are allowed wait already."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after} s")
        self.retry_after = retry_after  # seconds


class NoWorker(Unavailable):
    """No worker is alive, so a synchronous call would wait for nothing."""

    def __init__(self) -> None:
        super().__init__(
            "no worker is alive, so no picture would be drawn: start one with `dreamdrop worker`, or queue the "
            "request with `Prefer: respond-async`"
        )


class WaitExpired(DreamError, TimeoutError):
    """The caller's wait ended before its request did; the request goes on."""

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(
            f"{id} is not finished after {seconds:g} s; it is still being worked on: fetch it with GET /jobs/{id}"
        )
        self.id = id


class CallerGone(DreamError):
    """The caller closed its connection, so there is nobody to answer."""


def _check_rows(rows: bytes, caller: Key) -> None:
    """Check the pictures that a batch's rows name. Raises `Rejected` with a line."""
    for number, line in numbered(rows):
        with suppress(
            ValueError, RecursionError
        ):  # a line that is not JSON is refused later, with its column
            row = json.loads(line)
            try:
                caller.check_pictures(row if isinstance(row, dict) else {})
            except Rejected as error:
                text = f"line {number}: {error.message}"
                raise Rejected(error.code, text, field=error.field, line=number) from error


@dataclass
class Facade:
    """A store behind HTTP. For one event loop."""

    settings: FacadeSettings
    client: AsyncClient = field(init=False)
    trainings: TrainingReader = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    waiting: Counter[str] = field(default_factory=Counter)  # id to the callers that wait for it here
    waiters: Counter[tuple[str, str]] = field(default_factory=Counter)  # the same, by key's name and id
    busy: Counter[str] = field(default_factory=Counter)  # key's name to its synchronous calls in progress
    stopping: bool = False  # the server shuts down: streams end, and callers that wait are told the id
    _sending: int = 0  # requests on their way to the lane
    _sent: int = 0  # those that arrived there since it was last listed
    _finish_times: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # monotonic seconds
    _states: LruCache[str, CachedCall[request_state.State]] = field(default_factory=lambda: LruCache(10_000))
    _overviews: dict[str, CachedCall[Overview]] = field(default_factory=dict)  # by id prefix
    _trainings: dict[str, CachedCall[Overview]] = field(default_factory=dict)  # the same of trainings

    def __post_init__(self) -> None:
        self.client = AsyncClient(
            self.settings.store, limits=self.settings.limits, poll_interval=POLL_INTERVAL
        )
        self.trainings = TrainingReader(self.client)
        self.trainers = CachedCall(self.trainings.trainers)
        self._liveness = Liveness()
        self.workers = CachedCall(self._workers)
        self._listed = CachedCall(self._count_lane)

    async def submit(self, document: Mapping[str, Any], caller: Key, *, id: str | None = None) -> Ticket:
        """Check a request and send it to the express lane.

        Args:
            document: the manifest.
            id: the request's full id; by default the manifest's `id`, else a fresh one.

        Raises:
            Rejected: it can never succeed; nothing was sent.
            Conflict: the id stands for another request.
            QueueFull: nothing was sent; try again later.
        """
        name, body = await asyncio.to_thread(self._named, document, caller, id)
        chosen = bool(id or document.get("id"))
        if chosen:
            await self._make_sure_it_is_free(name, body, batch=False)
        await self._check_room()
        if self.settings.queues:
            return (await self.client.send(body, queue=self.settings.queues[0]))[0]
        self._sending += 1
        try:
            ticket = await self.client.submit(body, express=True)
            self._sent += 1
        finally:
            self._sending -= 1
        if chosen:
            await ids.make_sure_it_came_first(self.client.store, ticket)
        return ticket

    def _named(self, document: Mapping[str, Any], caller: Key, id: str | None) -> tuple[str, bytes]:
        """A request's full id, and its body as stored. Raises `Rejected`, `Conflict`."""
        manifest = validate_manifest(document, self.settings.limits)
        caller.check_pictures(document)
        if id and manifest.id and id != caller.id(manifest.id):
            raise Conflict(id, f"the manifest's own id is {manifest.id!r}")
        name = id or caller.id(manifest.id or fresh_id())
        return name, json.dumps({**document, "id": name}, ensure_ascii=False, sort_keys=True).encode()

    async def _make_sure_it_is_free(self, id: str, body: bytes, *, batch: bool) -> None:
        await ids.make_sure_it_is_free(self.client.store, id, body, self.settings.limits, batch=batch)

    async def submit_batch(self, rows: bytes, id: str, caller: Key, *, chosen: bool = False) -> Ticket:
        """Queue a file of requests outside the express lane. Raises `Rejected` with a line, `Conflict`.

        Args:
            chosen: the caller chose the id, so it may be in use.
        """
        if chosen:
            await self._make_sure_it_is_free(id, rows, batch=True)
        if caller.prefix:
            await asyncio.to_thread(_check_rows, rows, caller)
        if self.settings.queues:
            return await self.client.send_batch(rows, queue=self.settings.queues[-1], id=id)
        return await self.client.submit_batch(rows, id=id)

    async def draw(
        self, document: Mapping[str, Any], caller: Key, *, wait: float, gone: Callable[[], Awaitable[object]]
    ) -> Result:
        """Submit a request and wait until it is finished or its caller disconnects.

        Args:
            wait: seconds.
            gone: returns when the caller has disconnected.

        Raises:
            NoWorker, QueueFull: nothing was sent.
            WaitExpired: the request goes on.
            CallerGone: a request whose id we chose is canceled, because nobody can ask for it.
        """
        # 1. Refuse before anything is created, so that a refused call leaves nothing in the store.
        if not await self.workers():
            raise NoWorker
        # 2. Count the call before sending: calls that come at once must not all pass a limit that one fills.
        with self._slot(caller):
            ticket = await self.submit(document, caller)
            # 3. Register the waiter only now: `interrupt` cancels what it finds here, so the request must exist.
            waiter = (caller.name, ticket.id)
            self.waiters[waiter] += 1
            try:
                return await self._wait_with(ticket, wait, gone, cancel=not document.get("id"))
            finally:
                self.waiters[waiter] -= 1
                self.waiters += Counter()  # drops zeros

    async def overview(self, caller: Key) -> Overview:
        """The store at a glance, as far as a caller may see it."""
        prefix = caller.id_prefix  # few different ones: keys are in the settings
        cached = self._overviews.setdefault(
            prefix, CachedCall(lambda: self.client.known(LATEST, begin=prefix))
        )
        return await cached()

    async def overview_of_trainings(self, caller: Key) -> Overview:
        """The store's trainings at a glance, as far as a caller may see them; all that are queued."""
        prefix = caller.id_prefix
        cached = self._trainings.setdefault(prefix, CachedCall(lambda: self.trainings.overview(prefix)))
        return await cached()

    def waits_of(self, caller: Key) -> list[str]:
        """The ids of the requests that this caller waits for here, the oldest first."""
        return [id for name, id in self.waiters if name == caller.name]

    async def interrupt(self, caller: Key) -> None:
        """Cancel what this caller waits for here, except what another caller waits for too."""
        for id in self.waits_of(caller):
            if self.waiting[id] <= self.waiters[caller.name, id]:
                with suppress(UnknownRequest):  # a message in a queue that no worker has read yet
                    await self.client.cancel(id)

    async def _wait_with(
        self, ticket: Ticket, wait: float, gone: Callable[[], Awaitable[object]], *, cancel: bool
    ) -> Result:
        """Wait for a result or for the caller to disconnect.

        Args:
            cancel: cancel the request when its last caller here disconnects.
        """
        result = asyncio.ensure_future(self.client.wait(ticket, wait))
        disconnect = asyncio.ensure_future(gone())
        began = time.monotonic()
        self.waiting[ticket.id] += 1
        try:
            await asyncio.wait({result, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if result.done():  # asked first: a result that came together with the disconnect is not canceled
                self._finish_times.append(time.monotonic())
                return result.result()
            if cancel and self.waiting[ticket.id] == 1:
                await self.client.cancel(ticket)
            raise CallerGone(f"the caller of {ticket.id} has disconnected")
        except StillWorking as error:
            raise WaitExpired(ticket.id, wait) from error
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            # The server shuts down: answer with the id, by which the caller can fetch the result elsewhere.
            raise WaitExpired(ticket.id, round(time.monotonic() - began, 1)) from None
        finally:
            self.waiting[ticket.id] -= 1  # before the next await, so that other callers see the right count
            self.waiting += Counter()  # drops zeros
            for task in (result, disconnect):
                task.cancel()
            await asyncio.gather(result, disconnect, return_exceptions=True)

    async def state(self, id: str) -> request_state.State:
        """How far a request is; simultaneous callers share one read. Raises `UnknownRequest`."""
        cached = self._states.setdefault(id, CachedCall(lambda: self.client.status(id), seconds=0.2))
        state = await cached()
        if state.over:
            self._states.pop(id, None)
        return state

    @contextmanager
    def _slot(self, caller: Key) -> Iterator[None]:
        """One of the caller's own concurrent calls. Raises `QueueFull` when it has as many as its key allows."""
        if caller.room and self.busy[caller.name] >= caller.room:
            raise QueueFull(self.busy[caller.name], self._retry_after(1))
        self.busy[caller.name] += 1
        try:
            yield
        finally:
            self.busy[caller.name] -= 1

    async def _check_room(self) -> None:
        """Count the requests in the lane, and those sent since it was last listed. Raises `QueueFull`."""
        listed = await self._listed()
        if self._sent and listed + self._sent + self._sending >= self.settings.room:
            self._listed.forget()  # workers may have taken some since
            listed = await self._listed()
        waiting = max(listed + self._sent + self._sending, self.waiting.total())
        if waiting >= self.settings.room:
            raise QueueFull(waiting, self._retry_after(waiting - self.settings.room + 1))

    def _retry_after(self, requests: int) -> int:
        """Seconds until so many requests have finished, at the current rate; 1 to 60."""
        if len(self._finish_times) < 2:
            return 5
        rate = len(self._finish_times) / max(0.1, time.monotonic() - self._finish_times[0])  # per second
        return round(min(60.0, max(1.0, requests / rate)))

    async def _count_lane(self) -> int:
        if self.settings.queues:
            return 0  # a queue cannot be listed; `_check_room` counts the callers that wait here
        self._sent = 0
        listing = request_state.first(self.client.store.list(EXPRESS), self.settings.room)
        return sum([is_request(info.key) async for info in listing])

    async def _workers(self) -> list[dict[str, Any]]:
        return await heartbeats(self.client.store, self._liveness.is_alive)
