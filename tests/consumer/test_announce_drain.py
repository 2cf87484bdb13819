"""Announcements when a worker stops or dies: nothing that is owed gets lost, and nothing holds a worker up."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque

import pytest

from consumer.announce.announcer import Announcer
from consumer.announce.outbox import RetryPolicy, Target, Undelivered
from infra.claims.claims import Claims, Timing
from infra.stores.memory import MemoryStore
from schemas import layout
from schemas.result import Result
from tests.mailboxes import FAST, Mailbox, Results, result, running, until

pytestmark = pytest.mark.anyio


async def test_a_drain_delivers_what_is_owed(results: Results):
    """With the background loop running, and without it."""
    for background in (True, False):
        box = Mailbox()
        ids = [f"{background}{i}" for i in range(100)]
        results.end(*ids)
        announcer = results.announcer(box)
        for id in ids:
            announcer.may_forget(id)
        async with running(announcer) if background else contextlib.nullcontext():
            await announcer.drain(10.0)
        assert {event.subject for event in box.got} == set(ids)
        assert announcer.owed == 0


async def test_a_drain_waits_for_no_second_chance(results: Results):
    """What is to be tried in an hour is tried now, once; then it is left to another worker."""
    box = Mailbox(always=Undelivered("500"))
    results.end("a", "b")
    async with running(results.announcer(box, policy=RetryPolicy(first=3600.0, longest=3600.0))) as announcer:
        announcer.may_forget("a")
        announcer.may_forget("b")
        await until(lambda: box.tries == 2)
        box.failures.append(None)
        await announcer.drain(60.0)  # ends by itself: the test's time limit says so
        assert len(box.got) == 1
        assert box.tries == 4
        assert announcer.owed == 1
        assert [announcer.may_forget(e.subject) for e in box.got] == [True]


async def test_a_worker_that_goes_on_after_a_drain_delivers_the_rest(results: Results):
    """What the drain could not deliver has its turn again."""
    box = Mailbox(always=Undelivered("500"))
    results.end("a")
    async with running(results.announcer(box, policy=RetryPolicy(first=0.01, longest=0.01))) as announcer:
        announcer.may_forget("a")
        await announcer.drain(10.0)
        assert announcer.owed == 1
        box.always = None
        await until(lambda: announcer.may_forget("a"))


async def test_a_drain_is_bounded(results: Results):
    """A target that hangs does not keep a worker from stopping; its event stays owed."""
    results.end("a")
    announcer = results.announcer(Mailbox(hangs=True))
    announcer.may_forget("a")
    await announcer.drain(0.05)
    assert announcer.owed == 1
    assert not announcer.may_forget("a")


@pytest.mark.parametrize("seed", range(20))
async def test_stopping_at_any_moment_loses_no_announcement(results: Results, seed: int):
    """Cancelled again and again in the middle of everything: in the end each target has each event."""
    rng = random.Random(seed)
    boxes = [Mailbox("one"), Mailbox("two", failures=deque([Undelivered("500")] * 20))]
    ids = [f"r{i}" for i in range(40)]
    results.end(*ids)
    announcer = results.announcer(*boxes)
    for id in ids:
        announcer.may_forget(id)
    for _ in range(10):
        async with running(announcer):
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            await asyncio.sleep(rng.choice([0.0, 0.001, 0.003]))
    async with running(announcer):
        await until(lambda: announcer.owed == 0)
    for box in boxes:
        assert {event.subject for event in box.got} == set(ids)
    assert all(announcer.may_forget(id) for id in ids)


class Bucket:
    """The real protocol over a store in memory, by a clock of our own."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now = 0.0

    def worker(self, name: str, *targets: Target) -> tuple[Claims, Announcer]:
        announcer = Announcer(
            targets, self.read, lambda: self.now, random.Random(name), session=name, policy=FAST
        )
        claims = Claims(
            self.store,
            session=name,
            clock=lambda: self.now,
            rng=random.Random(name),
            timing=Timing(),
            may_forget=announcer.may_forget,
        )
        return claims, announcer

    async def read(self, id: str) -> Result | None:
        claims = Claims(self.store, session="reader", clock=lambda: self.now, rng=random.Random(0))
        return await claims.result(id)

    async def claims_left(self) -> int:
        return len([info async for info in self.store.list(layout.CLAIMS)])

    async def draw(self, claims: Claims, id: str) -> None:
        """Take a dropped request and commit its result."""
        key = layout.request_key(id)
        body = f'{{"prompt": "{id}"}}'.encode()
        await self.store.create(key, body)
        info = await self.store.head(key)
        assert info is not None
        held = await claims.take(info, body, id=id, plan={})
        assert held is not None
        assert await claims.commit(held, result(id, worker=claims.session))


async def test_claims_stand_until_the_announcement_is_made():
    """After the commit the claim waits for the announcement; the next sweep clears it away."""
    bucket, box = Bucket(), Mailbox()
    claims, announcer = bucket.worker("w1", box)
    async with running(announcer):
        await bucket.draw(claims, "a")
        assert await bucket.claims_left() == 1
        await until(lambda: announcer.owed == 0)
        assert await claims.sweep() == []
    assert await bucket.claims_left() == 0
    assert [event.subject for event in box.got] == ["a"]


async def test_another_worker_announces_for_one_that_crashed():
    """It died between the commit and the announcement: whoever sweeps says what it owed, once."""
    bucket, box = Bucket(), Mailbox()
    dead, _never_run = bucket.worker("dead", box)
    await dead.beat()
    await bucket.draw(dead, "a")
    claims, announcer = bucket.worker("heir", box)
    async with running(announcer):
        for _ in range(12):
            await claims.beat()
            assert await claims.sweep() == []  # the result stands: nothing is to be drawn again
            await asyncio.sleep(0.02)
            bucket.now += 15.0
    assert await bucket.claims_left() == 0
    assert [event.subject for event in box.got] == ["a"]
    stored = await bucket.read("a")
    assert stored is not None
    assert stored.worker == "dead"
