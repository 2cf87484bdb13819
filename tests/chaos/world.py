"""A small world in one thread: a bucket, a clock, and a schedule that may do anything.

Workers run the real protocol. Each store call waits here until the schedule lets it happen,
lets it happen and loses the answer, refuses it, lets it happen much later (a *ghost*), or twice, now
and much later (an *echo*: a try that was given up arrives after the one that was heard of). After
every change of the bucket the *law* is checked (see law.py). Nothing is left to chance: the same
choices give the same history, line for line.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from infra.stores.memory import MemoryStore
from infra.stores.store import Info, Stored
from schemas.errors import DreamError, StoreUnavailable
from tests.chaos.law import Law
from tests.chaos.still import StillLoop

Outcome = Literal["done", "answer lost", "refused", "ghost", "echo"]
PAGE = 3  # keys per page of a listing: others write between two pages


class ContentTagged(MemoryStore):
    """A version is known by its bytes, as in S3: the same object made again is the same version."""

    def _write(self, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
        super()._write(key, body, metadata)
        stored = self._objects[key]
        tag = hashlib.sha256(body).hexdigest()
        self._objects[key] = Stored(replace(stored.info, etag=tag), stored.body)


@dataclass(eq=False)
class Call:
    """A store call that waits for the schedule, or a sleep that waits for its time."""

    owner: str  # session
    what: str
    act: Callable[[], Any] | None  # None for a sleep
    changes: bool
    answer: asyncio.Future[Any]
    at: float = 0.0  # a sleep's end, seconds


@dataclass
class World:
    """The bucket, the clock, and everything that waits."""

    store: MemoryStore = field(default_factory=ContentTagged)
    law: Law = field(default_factory=Law)
    now: float = 0.0  # seconds
    waiting: list[Call] = field(default_factory=list)
    ghosts: list[Call] = field(default_factory=list)
    paused: dict[str, float] = field(default_factory=dict)  # session to when it goes on, seconds
    dead: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None  # in which the world was last settled

    def clock(self) -> float:
        return self.now

    async def settle(self) -> None:
        """Let everybody run up to their next call."""
        loop = self.loop = asyncio.get_running_loop()
        assert isinstance(loop, StillLoop)
        loop.clock = self.clock
        await asyncio.sleep(0)
        while loop.is_busy:
            await asyncio.sleep(0)

    def ready(self) -> list[Call]:
        """What could happen next, in a fixed order."""
        return [c for c in self.waiting if self._ripe_at(c) <= self.now]

    def skip_to_next(self) -> None:
        """Nothing is ready: let time pass until something is."""
        timers = [self.loop.next_timer()] if isinstance(self.loop, StillLoop) else []
        soonest = min([*timers, *map(self._ripe_at, self.waiting)], default=math.inf)
        if soonest < math.inf:
            self.now = max(self.now, soonest)

    def _ripe_at(self, call: Call) -> float:
        return max(call.at, self.paused.get(call.owner, 0.0))

    def happen(self, call: Call, outcome: Outcome = "done") -> None:
        """Let a call happen in one of the ways."""
        self.waiting.remove(call)
        if call.act is None:
            call.answer.set_result(None)
            return
        self.note(f"{call.owner} {call.what}: {outcome}")
        if outcome in ("ghost", "echo") and call.changes:
            self.ghosts.append(call)
        if outcome in ("refused", "ghost"):
            call.answer.set_exception(StoreUnavailable(f"{call.what}: {outcome}"))
            return
        try:
            value = self._do(call)
        except DreamError as error:
            call.answer.set_exception(error)
            return
        if outcome == "answer lost":
            call.answer.set_exception(StoreUnavailable(f"{call.what}: {outcome}"))
        else:
            call.answer.set_result(value)

    def land(self, ghost: Call) -> None:
        """A try that was given up long ago reaches the bucket."""
        self.ghosts.remove(ghost)
        self.note(f"ghost of {ghost.owner} {ghost.what}")
        self._do(ghost)

    def client(self, what: str, act: Callable[[], Any]) -> Any:
        """Something that a client does, at once."""
        self.note(f"client {what}")
        return self._do(Call("client", what, act, True, asyncio.get_running_loop().create_future()))

    def kill(self, session: str) -> None:
        """The process is gone; what it had sent may still arrive as a ghost, nothing else will."""
        self.note(f"{session} dies")
        self.dead.add(session)
        self.waiting = [c for c in self.waiting if c.owner != session]

    def pause(self, session: str, seconds: float) -> None:
        """The process stands still, and will not know that it did."""
        self.note(f"{session} stands still for {seconds:.1f} s")
        self.paused[session] = self.now + seconds

    def note(self, line: str) -> None:
        self.log.append(f"{self.now:8.2f} {line}")

    async def wait(
        self, owner: str, what: str, act: Callable[[], Any] | None, changes: bool, at: float = 0
    ) -> Any:
        if owner in self.dead:
            raise asyncio.CancelledError
        call = Call(owner, what, act, changes, asyncio.get_running_loop().create_future(), at)
        self.waiting.append(call)
        return await call.answer

    def _do(self, call: Call) -> Any:
        assert call.act is not None
        before = dict(self.objects) if call.changes else {}
        value = call.act()
        if call.changes:
            self.law.check(before, self.objects, self.log)
        return value

    @property
    def objects(self) -> dict[str, Stored]:
        """Everything in the bucket, by key."""
        return self.store._objects


@dataclass
class Door:
    """One session's way into the bucket: a `Store`."""

    world: World
    session: str
    url: str = "chaos://"
    is_remote: bool = False

    async def get(self, key: str, *, max_bytes: int | None = None) -> Stored:
        return await self._call(f"get {key}", lambda: self.world.store.get(key, max_bytes=max_bytes))

    async def head(self, key: str) -> Info | None:
        return await self._call(f"head {key}", lambda: self.world.store.head(key))

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        store = self.world.store
        return await self._call(
            f"create {key}", lambda: store.create(key, body, metadata=metadata), changes=True
        )

    async def put(self, key: str, body: bytes, *, content_type: str = "") -> None:
        await self._call(f"put {key}", lambda: self.world.store.put(key, body), changes=True)

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._call(f"delete {key}", lambda: self.world.store.delete(key, etag=etag), changes=True)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Info]:
        while True:
            after = start_after
            page = await self._call(f"list {prefix}", lambda after=after: self._page(prefix, after))
            for info in page:
                yield info
            if len(page) < PAGE:
                return
            start_after = page[-1].key

    async def close(self) -> None:
        return None

    async def sleep(self, seconds: float) -> None:
        await self.world.wait(self.session, "sleep", None, False, self.world.now + seconds)

    async def _page(self, prefix: str, after: str) -> list[Info]:
        return [info async for info in self.world.store.list(prefix, start_after=after)][:PAGE]

    async def _call(
        self, what: str, make: Callable[[], Coroutine[Any, Any, Any]], changes: bool = False
    ) -> Any:
        return await self.world.wait(self.session, what, lambda: at_once(make()), changes)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory store waited")
