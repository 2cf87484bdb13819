"""Announcements: events that tell other systems that a request has ended, so that nobody has to poll.

An announcement is owed as long as the request's claims stand. The claim protocol asks
`may_forget` before it removes the last trace of an ended request. While the answer is no, the trace
stays and whoever sweeps asks again, here or, after a crash, in another worker. So an announcement
is made at least once, after the commit, and its failure never affects a result. Repeats carry the
same event id; a receiver discards them by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from consumer.announce.outbox import Outbox, RetryPolicy, Target
from schemas.completion import Completion, completion
from schemas.result import Result

__all__ = ["Announcer", "RetryPolicy", "Target"]

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_ANNOUNCED = 50_000  # announced requests whose event ids are kept in memory
MAX_OWED = 50_000  # announcements in progress; the others stay in the bucket until the next sweep
_MAX_EVENTS = 256  # events kept for the next target, or the next try
_READERS = 8  # results read at a time
_TIDYING = 2.0  # seconds in which one clean-up may ask several times
_OTHERS = (10.0, 30.0)  # seconds left to the worker that ended a request to announce it itself


class Newest(OrderedDict[str, T], Generic[T]):
    """A mapping that keeps its newest `size` entries."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def keep(self, key: str, value: T) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self._size:
            self.popitem(last=False)


@dataclass(slots=True)
class _Announced:
    """An announced result."""

    event: str  # its id
    since: float | None = None  # by the clock: when `may_forget` first said yes


@dataclass(slots=True)
class _Owed:
    """An announcement in progress."""

    missing: set[Outbox]
    event: str = ""  # its id, once it is known


class Announcer:
    """One worker's announcements; for one event loop."""

    def __init__(
        self,
        targets: Sequence[Target],
        read: Callable[[str], Awaitable[Result | None]],
        clock: Callable[[], float],
        rng: random.Random,
        *,
        source: str = "dreamdrop",
        session: str = "",
        on_announced: Callable[[str], None] = lambda _id: None,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
    ) -> None:
        """
        Args:
            read: a request's result; None when there is none. May raise `StoreUnavailable`, or
                `ValueError` for one that cannot be read.
            clock: monotonic seconds.
            source: names this deployment in every event: a URI reference, such as the bucket's URL.
            session: this worker's. What another worker ended is left to it for a while; "": nothing is.
            on_announced: called once for each id that may be forgotten from now on, so that no
                sweep has to find out. It must not raise.
        """
        self._read = read
        self._clock = clock
        self._rng = rng
        self._source = source
        self._session = session
        self._on_announced = on_announced
        self._outboxes = [
            Outbox(target, self._event_of, self._on_end, clock, rng, policy) for target in targets
        ]
        self._owed: dict[str, _Owed] = {}
        self._announced: Newest[_Announced] = Newest(MAX_ANNOUNCED)
        self._others: Newest[float] = Newest(MAX_ANNOUNCED)  # by the clock: when it is this worker's turn
        self._events: Newest[Completion] = Newest(_MAX_EVENTS)
        self._to_read: asyncio.Queue[str] = asyncio.Queue()
        self._running = False

    def may_forget(self, id: str) -> bool:
        """Whether the last trace of an ended request may be removed: it is announced, or given up.

        If not, the announcement is begun (once) and the caller asks again later. A request whose id
        was announced before is looked at again, because its result may have been removed and replaced.
        """
        if not self._outboxes:
            return True
        now = self._clock()
        announced = self._announced.get(id)
        if announced is not None and (announced.since is None or now - announced.since < _TIDYING):
            announced.since = now if announced.since is None else announced.since
            return True
        if id not in self._owed and len(self._owed) < MAX_OWED and now >= self._others.get(id, 0.0):
            self._owed[id] = _Owed(set(self._outboxes))
            self._to_read.put_nowait(id)
        return False

    async def run(self) -> None:
        """Deliver in the background, until cancelled."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                for outbox in self._outboxes:
                    group.create_task(outbox.run())
                for _ in range(_READERS):
                    group.create_task(self._read_results())
        finally:
            self._running = False

    async def drain(self, seconds: float) -> None:
        """Try what is owed once more, without waiting between tries; with or without `run`.

        What cannot be delivered stays owed: its claims stand, and another worker's sweep finds them.
        """
        runs = [] if self._running else [asyncio.create_task(self.run())]
        for outbox in self._outboxes:
            outbox.begin_drain()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._to_read.join()  # first: reading a result is what fills the outboxes
                    for outbox in self._outboxes:
                        await outbox.idle.wait()
        finally:
            for task in runs:
                task.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            for outbox in self._outboxes:
                outbox.end_drain()
        if self._owed:
            log.warning("announcements are left to other workers", extra={"count": len(self._owed)})

    async def close(self) -> None:
        """Close the targets' connections."""
        for outbox in self._outboxes:
            await outbox.target.close()

    @property
    def owed(self) -> int:
        """Announcements in progress."""
        return len(self._owed)

    async def _read_results(self) -> None:
        """Read the results that are to be announced, one after another."""
        while True:
            id = await self._to_read.get()
            try:
                await self._begin(id)
            except asyncio.CancelledError:
                self._to_read.put_nowait(id)  # before `task_done`, or `join` could see an empty queue
                raise
            finally:
                self._to_read.task_done()

    async def _begin(self, id: str) -> None:
        """Give the event to every outbox, if this worker should announce it now."""
        try:
            result = await self._read(id)
            event = completion(result, source=self._source) if result else None
        except ValueError:
            log.error("a result that cannot be read is not announced", extra={"id": id})
            self._settle(id, "unreadable")
            return
        except Exception as error:  # of the store, mostly
            log.warning("an announcement waits for the store", extra={"id": id, "why": str(error)})
            event = None
        if event is None or self._is_left_to_another(event):
            del self._owed[id]  # until `may_forget` is called again
            return
        announced = self._announced.get(id)
        if announced is not None and announced.event == event.id:
            self._settle(id, event.id)
            return
        self._owed[id].event = event.id
        self._events.keep(id, event)
        for outbox in self._outboxes:
            outbox.put(id)

    def _is_left_to_another(self, event: Completion) -> bool:
        """Whether the worker that ended the request should announce it first: most likely it is doing so."""
        if not self._session or event.data.worker in ("", self._session):
            return False
        now = self._clock()
        if event.subject not in self._others:
            self._others.keep(event.subject, now + self._rng.uniform(*_OTHERS))
        return now < self._others[event.subject]

    async def _event_of(self, id: str) -> Completion | None:
        """The event to send; None when the result was removed in the meantime."""
        if id not in self._events:
            result = await self._read(id)
            if result is None:
                return None
            self._events.keep(id, completion(result, source=self._source))
        return self._events[id]

    def _on_end(self, id: str, outbox: Outbox) -> None:
        """A target has the event, or will never have it."""
        owed = self._owed[id]
        owed.missing.discard(outbox)
        if not owed.missing:
            self._settle(id, owed.event)

    def _settle(self, id: str, event: str) -> None:
        """Nothing is owed any more; keep the id of what was announced."""
        del self._owed[id]
        self._events.pop(id, None)
        self._others.pop(id, None)
        self._announced.keep(id, _Announced(event))
        self._on_announced(id)  # last: its listener may call `may_forget`, and must hear yes
