"""One target's outbox: when each announcement is tried, tried again, and given up.

Each target has an outbox of its own, with a few deliveries in flight at a time, so one that is slow or
gone delays no other. Between two tries of an announcement lies a random wait that grows; a
`Retry-After` of the target holds for everything that waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from schemas.completion import Completion
from schemas.errors import Unavailable

log = logging.getLogger(__name__)

#: Called when an announcement has ended for this target: delivered, given up, or without a result.
OnEnd = Callable[[str, "Outbox"], None]


class Undelivered(Unavailable):
    """The target did not accept the event this time."""

    def __init__(self, why: str, *, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after  # seconds that the target asked for


class Gone(Undelivered):
    """The target never wants another event."""


class Target(Protocol):
    """Where events go."""

    name: str  # for the log: no password, no token

    async def deliver(self, event: Completion) -> None:
        """Return when the target has the event. Raises `Undelivered`, `Gone`."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long an announcement is tried: by default ten times, over about an hour."""

    tries: int = 10
    first: float = 5.0  # seconds; the first wait is at most this, each next at most `factor` times the last
    factor: float = 3.0
    longest: float = 1800.0  # seconds
    limit: float = 10.0  # seconds that one try may take
    concurrency: int = 8  # tries in flight

    def wait(self, tries: int, rng: random.Random) -> float:
        """Seconds until the next try, after `tries` of them: full jitter."""
        return rng.uniform(0.0, min(self.longest, self.first * self.factor ** (tries - 1)))


@dataclass(order=True, slots=True)
class Delivery:
    """One announcement to one target."""

    due: float  # by the clock
    number: int  # first come, first served
    id: str = field(compare=False)
    tries: int = field(compare=False, default=0)


class Outbox:
    """The deliveries to one target; for one event loop."""

    def __init__(
        self,
        target: Target,
        event_of: Callable[[str], Awaitable[Completion | None]],
        on_end: OnEnd,
        clock: Callable[[], float],
        rng: random.Random,
        policy: RetryPolicy,
    ) -> None:
        self.target = target
        self.gone = False
        self.idle = asyncio.Event()  # nothing waits and nothing is in flight
        self.idle.set()
        self._event_of = event_of
        self._on_end = on_end
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._numbers = itertools.count()
        self._waiting: list[Delivery] = []  # a heap
        self._failed: list[Delivery] = []  # tried in a drain, in vain
        self._in_flight: dict[int, Delivery] = {}  # by number
        self._closed_until = 0.0  # by the clock: the target's `Retry-After`
        self._draining = False
        self._changed = asyncio.Event()

    def put(self, id: str) -> None:
        """Deliver the event of this id as soon as possible."""
        self._add(Delivery(self._clock(), next(self._numbers), id))

    async def run(self) -> None:
        """Deliver until cancelled; what was in flight then is tried again by the next `run`."""
        try:
            async with asyncio.TaskGroup() as tries:
                while True:
                    delivery = await self._next()
                    self._in_flight[delivery.number] = delivery
                    tries.create_task(self._process(delivery))
        finally:  # after the group has ended every try, so that none is in flight and waiting at once
            while self._in_flight:
                self._add(self._in_flight.popitem()[1])

    def begin_drain(self) -> None:
        """From now on do not wait between tries: each announcement has one more."""
        self._draining = True
        now = self._clock()
        for delivery in self._waiting:
            delivery.due = min(delivery.due, now)
        heapq.heapify(self._waiting)
        self._notify()

    def end_drain(self) -> None:
        """Wait between tries again; what could not be delivered in the drain stays in the outbox."""
        self._draining = False
        failed, self._failed = self._failed, []
        for delivery in failed:
            self._add(delivery)

    async def _next(self) -> Delivery:
        while True:
            self._changed.clear()  # before the look, or a change between look and wait would be missed
            wait = self._until_due()
            if wait is not None and wait <= 0:
                return heapq.heappop(self._waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _until_due(self) -> float | None:
        """Seconds until something may be tried; None: not before something changes."""
        if not self._waiting or len(self._in_flight) >= self._policy.concurrency:
            return None
        return max(self._waiting[0].due, 0.0 if self._draining else self._closed_until) - self._clock()

    async def _process(self, delivery: Delivery) -> None:
        if self.gone:
            self._on_end(delivery.id, self)
        elif self._draining and self._clock() < self._closed_until:
            self._failed.append(delivery)
        else:
            await self._try(delivery)
        del self._in_flight[
            delivery.number
        ]  # last, so that a cancelled try stays in flight, for `run` to add again
        self._notify()

    async def _try(self, delivery: Delivery) -> None:
        failure = await self._deliver(delivery.id)
        delivery.tries += 1
        facts = {"id": delivery.id, "target": self.target.name, "tries": delivery.tries}
        if failure is None:
            log.info("announced", extra=facts)
        elif isinstance(failure, Gone):
            self.gone = True
            log.error("the target wants no more announcements; none is sent until a restart", extra=facts)
        elif delivery.tries >= self._policy.tries:
            log.error("an announcement is given up", extra=facts | {"why": failure.why})
        else:
            self._retry(delivery, failure, facts)
            return
        self._on_end(delivery.id, self)

    async def _deliver(self, id: str) -> Undelivered | None:
        """One try. Every error is a failure of the target, never of the worker."""
        try:
            async with asyncio.timeout(self._policy.limit):
                event = await self._event_of(id)
                if event is not None:
                    await self.target.deliver(event)
        except Undelivered as failure:
            return failure
        except TimeoutError:
            return Undelivered(f"no answer within {self._policy.limit:g} s")
        except Exception as error:  # of a library: its text may hold an address or a token
            return Undelivered(f"it failed with {type(error).__name__}")
        return None

    def _retry(self, delivery: Delivery, failure: Undelivered, facts: dict[str, object]) -> None:
        now = self._clock()
        wait = self._policy.wait(delivery.tries, self._rng)
        if failure.retry_after > 0:
            closed = min(failure.retry_after, self._policy.longest)
            self._closed_until = max(self._closed_until, now + closed)
            wait += closed
        delivery.due = now + wait
        log.warning(
            "an announcement is tried again later",
            extra=facts | {"why": failure.why, "again_in": round(wait, 1)},
        )
        if self._draining:
            self._failed.append(delivery)
        else:
            self._add(delivery)

    def _add(self, delivery: Delivery) -> None:
        heapq.heappush(self._waiting, delivery)
        self._notify()

    def _notify(self) -> None:
        """Something has changed: look again at what is due."""
        if self._waiting or self._in_flight:
            self.idle.clear()
        else:
            self.idle.set()
        self._changed.set()
