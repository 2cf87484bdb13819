"""Telling the world that a request is over, so that nobody has to poll.

The one idea: *an announcement is owed as long as the request's claims stand*. The protocol asks
`may_forget` before it removes the last trace of an ended request. While the answer is no, the trace
stays and whoever sweeps asks again, here or, after a crash, in another worker. So an announcement
is made at least once, after the commit, and no failure of it reaches a result. Repeats carry the
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

from consumer.announce.outbox import Outbox, Patience, Target
from schemas.completion import Completion, completion
from schemas.result import Result

__all__ = ["Announcer", "Patience", "Target"]

T = TypeVar("T")
log = logging.getLogger(__name__)

REMEMBERED = 50_000  # announced requests whose event ids are kept in memory
OWED = 50_000  # announcements under way; what is beyond stays in the bucket until the next sweep
_AT_HAND = 256  # events kept for the next target, or the next try
_READING = 8  # results read at a time
_TIDYING = 2.0  # seconds in which one clearing-up may ask several times
_OTHERS = (10.0, 30.0)  # seconds left to the worker that ended a request to announce it itself


class Memory(OrderedDict[str, T], Generic[T]):
    """The newest entries, at most `size` of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def keep(self, key: str, value: T) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self._size:
            self.popitem(last=False)


@dataclass(slots=True)
class _Told:
    """An announced result."""

    event: str  # its id
    since: float | None = None  # by the clock: when we first said that it may be forgotten


@dataclass(slots=True)
class _Owed:
    """An announcement that is being made."""

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
        when_told: Callable[[str], None] = lambda _id: None,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        """
        Args:
            read: a request's result; None when there is none. May raise `StoreUnavailable`, or
                `ValueError` for one that cannot be read.
            clock: monotonic seconds.
            source: names this deployment in every event: a URI reference, such as the bucket's URL.
            session: this worker's. What another worker ended is left to it for a while; "": nothing is.
            when_told: called once for each id that may be forgotten from now on, so that nobody has to
                wait for a sweep to find out. It must not raise.
        """
        self._read = read
        self._clock = clock
        self._rng = rng
        self._source = source
        self._session = session
        self._when_told = when_told
        self._outboxes = [
            Outbox(target, self._event_of, self._over, clock, rng, patience) for target in targets
        ]
        self._owed: dict[str, _Owed] = {}
        self._told: Memory[_Told] = Memory(REMEMBERED)
        self._others: Memory[float] = Memory(REMEMBERED)  # by the clock: when it is our turn
        self._at_hand: Memory[Completion] = Memory(_AT_HAND)
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self._running = False

    def may_forget(self, id: str) -> bool:
        """Whether the last trace of an ended request may go: it is announced, or given up.

        If not, the announcement is begun (once) and the caller asks again later. A request whose id
        was announced before is looked at again, for its result may have been removed and made anew.
        """
        if not self._outboxes:
            return True
        now = self._clock()
        told = self._told.get(id)
        if told is not None and (told.since is None or now - told.since < _TIDYING):
            told.since = now if told.since is None else told.since
            return True
        if id not in self._owed and len(self._owed) < OWED and now >= self._others.get(id, 0.0):
            self._owed[id] = _Owed(set(self._outboxes))
            self._asked.put_nowait(id)
        return False

    async def run(self) -> None:
        """Deliver in the background, until cancelled."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                for outbox in self._outboxes:
                    group.create_task(outbox.run())
                for _ in range(_READING):
                    group.create_task(self._look())
        finally:
            self._running = False

    async def drain(self, seconds: float) -> None:
        """Try what is owed once more, without waiting between tries; with or without `run`.

        What cannot be delivered stays owed: its claims stand, and another worker's sweep finds them.
        """
        runs = [] if self._running else [asyncio.create_task(self.run())]
        for outbox in self._outboxes:
            outbox.hurry()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._asked.join()
                    for outbox in self._outboxes:
                        await outbox.quiet.wait()
        finally:
            for task in runs:
                task.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            for outbox in self._outboxes:
                outbox.relax()
        if self._owed:
            log.warning("announcements are left to other workers", extra={"count": len(self._owed)})

    async def close(self) -> None:
        """Close the targets' connections."""
        for outbox in self._outboxes:
            await outbox.target.close()

    @property
    def owed(self) -> int:
        """Announcements under way."""
        return len(self._owed)

    async def _look(self) -> None:
        """Find out what there is to say of the requests that were asked for, one after another."""
        while True:
            id = await self._asked.get()
            try:
                await self._begin(id)
            except asyncio.CancelledError:
                self._asked.put_nowait(id)
                raise
            finally:
                self._asked.task_done()

    async def _begin(self, id: str) -> None:
        """Hand the event to every target, if there is one to be said now."""
        try:
            result = await self._read(id)
            event = completion(result, source=self._source) if result else None
        except ValueError:
            log.error("a result that cannot be read is not announced", extra={"id": id})
            self._settle(id, "unreadable")
            return
        except Exception as error:  # the store's, mostly
            log.warning("an announcement waits for the store", extra={"id": id, "why": str(error)})
            event = None
        if event is None or self._is_left_to(event):
            del self._owed[id]  # until we are asked again
            return
        told = self._told.get(id)
        if told is not None and told.event == event.id:
            self._settle(id, event.id)
            return
        self._owed[id].event = event.id
        self._at_hand.keep(id, event)
        for outbox in self._outboxes:
            outbox.put(id)

    def _is_left_to(self, event: Completion) -> bool:
        """Whether the worker that ended it has the first word: it is most likely announcing it now."""
        if not self._session or event.data.worker in ("", self._session):
            return False
        now = self._clock()
        if event.subject not in self._others:
            self._others.keep(event.subject, now + self._rng.uniform(*_OTHERS))
        return now < self._others[event.subject]

    async def _event_of(self, id: str) -> Completion | None:
        """The event to send; None when the result was removed meanwhile."""
        if id not in self._at_hand:
            result = await self._read(id)
            if result is None:
                return None
            self._at_hand.keep(id, completion(result, source=self._source))
        return self._at_hand[id]

    def _over(self, id: str, outbox: Outbox) -> None:
        """A target has it, or will never have it."""
        owed = self._owed[id]
        owed.missing.discard(outbox)
        if not owed.missing:
            self._settle(id, owed.event)

    def _settle(self, id: str, event: str) -> None:
        """Nothing is owed any more; remember what was said."""
        del self._owed[id]
        self._at_hand.pop(id, None)
        self._others.pop(id, None)
        self._told.keep(id, _Told(event))
        self._when_told(id)
