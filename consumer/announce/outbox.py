"""One target's outbox: when each announcement is tried, tried again, and given up.

Each target has an outbox of its own, with a few tries in flight at a time, so one that is slow or
gone delays no other. Between two tries of an announcement lies a random wait that grows; what the
target itself asks for (`Retry-After`) holds for everything that waits for it.
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

#: Told when an announcement is over for this target: delivered, given up, or nothing left to say.
Over = Callable[[str, "Outbox"], None]


class Undelivered(Unavailable):
    """The target did not take the event just now."""

    def __init__(self, why: str, *, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after = retry_after  # seconds that the target asked for


class Gone(Undelivered):
    """The target wants no more events, ever."""


class Target(Protocol):
    """Where events go."""

    name: str  # for the log: no password, no token

    async def deliver(self, event: Completion) -> None:
        """Return when the target has the event. Raises `Undelivered`, `Gone`."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an announcement is tried: at the defaults ten times, over about an hour."""

    tries: int = 10
    first: float = 5.0  # seconds; the first wait is drawn below it, each next below `factor` times that
    factor: float = 3.0
    longest: float = 1800.0  # seconds
    limit: float = 10.0  # seconds that one try may take
    abreast: int = 8  # tries in flight

    def wait(self, tries: int, rng: random.Random) -> float:
        """Seconds until the next try, after `tries` of them: full jitter."""
        return rng.uniform(0.0, min(self.longest, self.first * self.factor ** (tries - 1)))


@dataclass(order=True, slots=True)
class Letter:
    """One announcement for one target."""

    due: float  # by the clock
    number: int  # first come, first served
    id: str = field(compare=False)
    tries: int = field(compare=False, default=0)


class Outbox:
    """What is to be delivered to one target; for one event loop."""

    def __init__(
        self,
        target: Target,
        event_of: Callable[[str], Awaitable[Completion | None]],
        over: Over,
        clock: Callable[[], float],
        rng: random.Random,
        patience: Patience,
    ) -> None:
        self.target = target
        self.gone = False
        self.quiet = asyncio.Event()  # nothing is due and nothing is under way
        self.quiet.set()
        self._event_of = event_of
        self._over = over
        self._clock = clock
        self._rng = rng
        self._patience = patience
        self._numbers = itertools.count()
        self._waiting: list[Letter] = []  # a heap
        self._left: list[Letter] = []  # tried in a hurry, in vain
        self._under_way: dict[int, Letter] = {}  # by number
        self._closed_until = 0.0  # by the clock: the target asked for it
        self._hurried = False
        self._wake = asyncio.Event()

    def put(self, id: str) -> None:
        """Deliver the event of this id, soon."""
        self._post(Letter(self._clock(), next(self._numbers), id))

    async def run(self) -> None:
        """Deliver until cancelled; what was under way then is still to be delivered."""
        try:
            async with asyncio.TaskGroup() as tries:
                while True:
                    letter = await self._next()
                    self._under_way[letter.number] = letter
                    tries.create_task(self._see_to(letter))
        finally:
            while self._under_way:
                self._post(self._under_way.popitem()[1])

    def hurry(self) -> None:
        """From now on nothing is waited for: each announcement has one more try."""
        self._hurried = True
        now = self._clock()
        for letter in self._waiting:
            letter.due = min(letter.due, now)
        heapq.heapify(self._waiting)
        self._stir()

    def relax(self) -> None:
        """The hurry is over: what could not be delivered waits for its turn again."""
        self._hurried = False
        left, self._left = self._left, []
        for letter in left:
            self._post(letter)

    async def _next(self) -> Letter:
        while True:
            self._wake.clear()
            wait = self._until_due()
            if wait is not None and wait <= 0:
                return heapq.heappop(self._waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _until_due(self) -> float | None:
        """Seconds until something may be tried; None: when something has changed."""
        if not self._waiting or len(self._under_way) >= self._patience.abreast:
            return None
        return max(self._waiting[0].due, 0.0 if self._hurried else self._closed_until) - self._clock()

    async def _see_to(self, letter: Letter) -> None:
        if self.gone:
            self._over(letter.id, self)
        elif self._hurried and self._clock() < self._closed_until:
            self._left.append(letter)
        else:
            await self._try(letter)
        del self._under_way[letter.number]  # not if cancelled: then it is still to be delivered
        self._stir()

    async def _try(self, letter: Letter) -> None:
        failure = await self._deliver(letter.id)
        letter.tries += 1
        facts = {"id": letter.id, "target": self.target.name, "tries": letter.tries}
        if failure is None:
            log.info("announced", extra=facts)
        elif isinstance(failure, Gone):
            self.gone = True
            log.error("the target wants no more announcements; none is sent until a restart", extra=facts)
        elif letter.tries >= self._patience.tries:
            log.error("an announcement is given up", extra=facts | {"why": failure.why})
        else:
            self._again(letter, failure, facts)
            return
        self._over(letter.id, self)

    async def _deliver(self, id: str) -> Undelivered | None:
        """One try. Whatever goes wrong is the target's trouble, never the worker's."""
        try:
            async with asyncio.timeout(self._patience.limit):
                event = await self._event_of(id)
                if event is not None:
                    await self.target.deliver(event)
        except Undelivered as failure:
            return failure
        except TimeoutError:
            return Undelivered(f"no answer within {self._patience.limit:g} s")
        except Exception as error:  # of a library: its text may hold an address or a token
            return Undelivered(f"it failed with {type(error).__name__}")
        return None

    def _again(self, letter: Letter, failure: Undelivered, facts: dict[str, object]) -> None:
        now = self._clock()
        wait = self._patience.wait(letter.tries, self._rng)
        if failure.retry_after > 0:
            asked = min(failure.retry_after, self._patience.longest)
            self._closed_until = max(self._closed_until, now + asked)
            wait += asked
        letter.due = now + wait
        log.warning(
            "an announcement is tried again later",
            extra=facts | {"why": failure.why, "again_in": round(wait, 1)},
        )
        if self._hurried:
            self._left.append(letter)
        else:
            self._post(letter)

    def _post(self, letter: Letter) -> None:
        heapq.heappush(self._waiting, letter)
        self._stir()

    def _stir(self) -> None:
        """Something has changed: look again at what is due."""
        if self._waiting or self._under_way:
            self.quiet.clear()
        else:
            self.quiet.set()
        self._wake.set()
