"""What tests of announcements share: targets in memory that fail on demand, and results to announce."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from consumer.announce.announcer import Announcer
from consumer.announce.outbox import RetryPolicy, Target
from schemas import layout
from schemas.completion import Completion
from schemas.result import Frozen, Result

FAST = RetryPolicy(tries=10, first=0.001, factor=1.5, longest=0.01, limit=2.0)


def result(id: str, **facts: str) -> Result:
    body = f'{{"prompt": "{id}"}}'.encode()
    defaults: dict[str, object] = {
        "status": "succeeded",
        "worker": "w1",
        "finished_at": "2026-01-31T12:00:00Z",
        "fingerprint": layout.fingerprint(body),
        "request": Frozen.of(body),
    }
    return Result.model_validate({"id": id, **defaults, **facts})


@dataclass
class Mailbox:
    """A target in memory. `failures` are what the next deliveries raise; None: the event arrives."""

    name: str = "mailbox"
    failures: deque[Exception | None] = field(default_factory=deque)
    always: Exception | None = None
    hangs: bool = False
    got: list[Completion] = field(default_factory=list)
    tries: int = 0
    inside: int = 0
    most_inside: int = 0

    async def deliver(self, event: Completion) -> None:
        self.tries += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await asyncio.sleep(0.001)
            if self.hangs:
                await asyncio.Event().wait()
            failure = self.failures.popleft() if self.failures else self.always
            if failure is not None:
                raise failure
            self.got.append(event)
        finally:
            self.inside -= 1

    async def close(self) -> None: ...


class Results:
    """Results by id, a clock that tests can advance, and announcers over both."""

    def __init__(self) -> None:
        self.by_id: dict[str, Result] = {}
        self.failure: Exception | None = None
        self.reads = 0
        self.ahead = 0.0  # seconds

    def clock(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead

    async def read(self, id: str) -> Result | None:
        self.reads += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return self.by_id.get(id)

    def announcer(self, *targets: Target, policy: RetryPolicy = FAST, session: str = "") -> Announcer:
        return Announcer(targets, self.read, self.clock, random.Random(1), policy=policy, session=session)

    def end(self, *ids: str) -> None:
        self.by_id.update({id: result(id) for id in ids})


@contextlib.asynccontextmanager
async def running(announcer: Announcer) -> AsyncIterator[Announcer]:
    """Let it deliver in the background."""
    task = asyncio.create_task(announcer.run())
    try:
        yield announcer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. The limit only catches a hang."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.002)
