"""Workers that crash anywhere, a store and a target that fail at random: no request is forgotten unheard.

The real protocol and the real announcers over a store in memory. The store itself watches: the last
trace of an ended request may be deleted only when the target has its event.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from consumer.announce.announcer import Announcer
from consumer.announce.outbox import RetryPolicy, Undelivered
from infra.claims.claims import Claims, Timing
from infra.stores.memory import MemoryStore
from schemas import layout
from schemas.completion import Completion, event_id
from schemas.errors import StoreUnavailable
from schemas.result import Frozen, Result

pytestmark = pytest.mark.anyio

POLICY = RetryPolicy(tries=50, first=0.001, factor=1.2, longest=0.003)
REQUESTS = 12


@dataclass
class Target:
    """Hears an event, or fails; sometimes it hears and the answer is lost."""

    rng: random.Random
    name: str = "target"
    heard: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    async def deliver(self, event: Completion) -> None:
        await asyncio.sleep(0)
        fate = self.rng.random()
        if fate < 0.3:
            raise Undelivered("it answered 500")
        self.heard[event.subject].append(event.id)
        await asyncio.sleep(0)
        if fate < 0.4:
            raise Undelivered("the answer was lost")

    async def close(self) -> None: ...


class WatchedStore(MemoryStore):
    """Fails before or after doing it, now and then; and looks at what is deleted."""

    def __init__(self, rng: random.Random, target: Target) -> None:
        super().__init__()
        self.rng = rng
        self.target = target
        self.calm = False
        self.forgotten: list[str] = []

    async def _weather(self) -> None:
        await asyncio.sleep(0)
        if not self.calm and self.rng.random() < 0.03:
            raise StoreUnavailable("no answer")

    async def create(
        self, key: str, body: bytes, *, metadata: Mapping[str, str] | None = None, content_type: str = ""
    ) -> bool:
        await self._weather()
        made = await super().create(key, body, metadata=metadata, content_type=content_type)
        await self._weather()
        return made

    async def delete(self, key: str, *, etag: str | None = None) -> None:
        await self._weather()
        await super().delete(key, etag=etag)
        claim = layout.parse_claim(key)
        id = claim[0] if claim else layout.request_id(key)
        if key.startswith((layout.CLAIMS, layout.REQUESTS)) and not await self.is_known(id):
            self.forgotten.append(id)
        await self._weather()

    async def is_known(self, id: str) -> bool:
        """Whether a trace of it is left, or its event was heard, or it has not ended."""
        if self.target.heard[id] or await self.head(layout.result_key(id)) is None:
            return True
        if await self.head(layout.request_key(id)) is not None:
            return True
        return [info async for info in self.list(layout.claims_prefix(id))] != []


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.target = Target(random.Random(seed + 1))
        self.store = WatchedStore(random.Random(seed + 2), self.target)
        self.lives = 0

    async def read(self, id: str) -> Result | None:
        await self.store._weather()
        return await Claims(self.store, session="", clock=float, rng=self.rng).result(id)

    async def live(self) -> None:
        """One worker's life: take, commit, announce and sweep, until it is cancelled in the middle."""
        self.lives += 1
        name = f"w{self.lives}"
        announcer = Announcer(
            [self.target], self.read, lambda: self.now, random.Random(name), session=name, policy=POLICY
        )
        claims = Claims(
            self.store,
            session=name,
            clock=lambda: self.now,
            rng=random.Random(name),
            timing=Timing(max_attempts=1000),
            may_forget=announcer.may_forget,
        )
        runs = asyncio.create_task(announcer.run())
        try:
            while True:
                with contextlib.suppress(StoreUnavailable):
                    await claims.beat()
                    await self.turn(claims)
                self.now += 1.0
                await asyncio.sleep(0)
        finally:
            runs.cancel()
            await asyncio.gather(runs, return_exceptions=True)

    async def turn(self, claims: Claims) -> None:
        """Look into the inbox, then sweep; draw what was taken."""
        async for info in self.store.list(layout.REQUESTS):
            body = (await self.store.get(info.key)).body
            id = layout.request_id(info.key)
            held = await claims.take(info, body, id=id, plan={})
            if held is not None:
                await claims.commit(held, self.ended(id, body, claims.session))
        for held in await claims.sweep():
            body = held.claim.frozen.body()
            await claims.commit(held, self.ended(held.claim.id, body, claims.session))

    def ended(self, id: str, body: bytes, session: str = "") -> Result:
        status = "failed" if body == b"refused" else "succeeded"
        facts = {"id": id, "status": status, "worker": session, "finished_at": "2026-01-31T12:00:00Z"}
        return Result.model_validate(
            facts | {"fingerprint": layout.fingerprint(body), "request": Frozen.of(body)}
        )

    async def left(self) -> int:
        """Requests and claims that are still there."""
        requests = [info async for info in self.store.list(layout.REQUESTS)]
        return len(requests) + len([info async for info in self.store.list(layout.CLAIMS)])


@pytest.mark.parametrize("seed", range(15))
async def test_no_request_is_forgotten_before_its_end_was_heard(seed: int):
    """Crash after crash, each in the middle of something; then peace: everything heard, everything tidy."""
    world = World(seed)
    ids = [f"r{number}" for number in range(REQUESTS)]
    for id in ids:
        body = b"refused" if id in ("r3", "r4") else f'{{"prompt": "{id}"}}'.encode()
        await MemoryStore.create(world.store, layout.request_key(id), body)
        if id == "r5":  # its client thought better of it
            canceled = world.ended(id, body).model_copy(update={"status": "canceled"})
            await MemoryStore.create(world.store, layout.result_key(id), canceled.to_json())
    for _ in range(8):
        lives = [asyncio.create_task(world.live()) for _ in range(2)]
        for _ in range(world.rng.randrange(200)):
            await asyncio.sleep(0)
        for life in lives:
            life.cancel()
        ends = await asyncio.gather(*lives, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
        world.now += world.rng.choice([0.0, 40.0])  # past the lease, or not
    world.store.calm = True
    last = asyncio.create_task(world.live())
    async with asyncio.timeout(120):
        while await world.left():
            await asyncio.sleep(0.001)
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)

    assert world.store.forgotten == []
    results = {id: await world.read(id) for id in ids}
    for id, result in results.items():
        assert result is not None
        assert set(world.target.heard[id]) == {event_id(result)}
    assert set(world.target.heard) == set(ids)
