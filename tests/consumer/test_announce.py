"""Announcements: at least once, after the commit, to every target by itself, and never in the way.

Targets here are in memory and go wrong on demand; real servers are in the two files beside this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from consumer.announce.announcer import Announcer, Memory
from consumer.announce.outbox import Gone, Patience, Target, Undelivered
from infra.claims.claims import Claims, Timing
from infra.stores.memory import MemoryStore
from schemas import layout
from schemas.completion import Completion
from schemas.errors import StoreUnavailable
from schemas.result import Frozen, Result

pytestmark = pytest.mark.anyio

FAST = Patience(tries=10, first=0.001, factor=1.5, longest=0.01, limit=2.0)


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
    """A target in memory. `troubles` are what the next deliveries end in; None: it arrives."""

    name: str = "mailbox"
    troubles: deque[Exception | None] = field(default_factory=deque)
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
            trouble = self.troubles.popleft() if self.troubles else self.always
            if trouble is not None:
                raise trouble
            self.got.append(event)
        finally:
            self.inside -= 1

    async def close(self) -> None: ...


class Desk:
    """Results, a clock that can be turned on, and announcers over both."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.trouble: Exception | None = None
        self.reads = 0
        self.ahead = 0.0  # seconds

    def clock(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead

    async def read(self, id: str) -> Result | None:
        self.reads += 1
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        return self.results.get(id)

    def announcer(self, *targets: Target, patience: Patience = FAST, session: str = "") -> Announcer:
        return Announcer(targets, self.read, self.clock, random.Random(1), patience=patience, session=session)

    def end(self, *ids: str) -> None:
        self.results.update({id: result(id) for id in ids})


@pytest.fixture
def desk() -> Desk:
    return Desk()


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


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to come true; a test that waits for ever ends by its time limit."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


async def test_an_ended_request_is_announced_and_then_forgotten(desk: Desk):
    """No while it is being told, yes afterwards; one event, whoever asks how often."""
    box = Mailbox()
    desk.end("a")
    async with running(desk.announcer(box)) as announcer:
        assert [announcer.may_forget("a") for _ in range(5)] == [False] * 5
        await until(lambda: announcer.may_forget("a"))
        assert announcer.may_forget("a")
    assert [event.subject for event in box.got] == ["a"]


async def test_the_worker_hears_at_once_that_it_may_forget(desk: Desk):
    """Once for each request, when it is true; no sweep has to find it out."""
    heard: list[tuple[str, bool]] = []

    def hear(id: str) -> None:
        heard.append((id, announcer.may_forget(id)))

    desk.end("a", "b")
    announcer = Announcer(
        [Mailbox(), Mailbox("other")], desk.read, desk.clock, random.Random(1), patience=FAST, when_told=hear
    )
    async with running(announcer):
        assert not announcer.may_forget("a")
        assert not announcer.may_forget("b")
        await until(lambda: announcer.owed == 0)
    assert sorted(heard) == [("a", True), ("b", True)]


async def test_without_targets_nothing_is_kept(desk: Desk):
    """Who announces nothing may forget at once."""
    assert desk.announcer().may_forget("a")


async def test_a_failed_delivery_is_repeated_as_the_same_event(desk: Desk):
    """A lost answer looks like a failure: the receiver tells the repeat by its id."""
    box = Mailbox(troubles=deque([Undelivered("500"), OSError("reset"), KeyError("a bug")]))
    desk.end("a")
    async with running(desk.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert box.tries == 4
    assert len(box.got) == 1


async def test_a_crash_repeats_the_announcement_with_the_same_id(desk: Desk):
    """Nobody knows whether the dead worker's announcement arrived: it is made again, told by its id."""
    box = Mailbox()
    desk.end("a")
    for _ in range(2):  # two lives, no memory shared but the store's
        async with running(desk.announcer(box)) as announcer:
            assert not announcer.may_forget("a")
            await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 2
    assert len({event.id for event in box.got}) == 1


async def test_what_never_arrives_is_given_up_and_said(desk: Desk, caplog: pytest.LogCaptureFixture):
    """After the last try the claims may go: an announcement must not fill the bucket for ever."""
    box = Mailbox(always=Undelivered("it answered 500"))
    desk.end("a")
    async with running(desk.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert box.tries == FAST.tries
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "an announcement is given up"
    ]


async def test_a_target_that_hangs_delays_no_other(desk: Desk):
    """Five hundred events pass by a target that never answers."""
    stuck, box = Mailbox("stuck", hangs=True), Mailbox()
    ids = [f"r{i}" for i in range(500)]
    desk.end(*ids)
    async with running(desk.announcer(stuck, box)) as announcer:
        assert not any([announcer.may_forget(id) for id in ids])
        await until(lambda: len(box.got) == 500)
        assert not any([announcer.may_forget(id) for id in ids])  # one target does not have them
    assert stuck.most_inside == FAST.abreast


async def test_one_targets_troubles_repeat_nothing_to_another(desk: Desk):
    """Each target hears each event once, however often the other is tried."""
    bad, good = Mailbox("bad", troubles=deque([Undelivered("503")] * 5)), Mailbox("good")
    desk.end("a")
    async with running(desk.announcer(bad, good)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert (len(bad.got), len(good.got)) == (1, 1)


async def test_deliveries_in_flight_are_bounded(desk: Desk):
    """A thousand results at once are no thousand connections."""
    box = Mailbox()
    ids = [f"r{i}" for i in range(1000)]
    desk.end(*ids)
    async with running(desk.announcer(box)) as announcer:
        for id in ids:
            announcer.may_forget(id)
        await until(lambda: announcer.owed == 0)
    assert box.most_inside <= FAST.abreast
    assert Counter(event.subject for event in box.got) == Counter(ids)


async def test_what_a_target_asks_for_holds_for_all_that_wait(desk: Desk):
    """Retry-After closes the target, not only the event that heard it."""
    box = Mailbox(troubles=deque([Undelivered("429", retry_after=60.0)]))
    desk.end("a", "b", "c")
    async with running(desk.announcer(box, patience=Patience(abreast=1))) as announcer:
        for id in "abc":
            announcer.may_forget(id)
        await until(lambda: box.tries == 1)
        await asyncio.sleep(0.05)
        assert box.tries == 1
        desk.ahead += 70.0
        desk.end("d")
        announcer.may_forget("d")  # new work makes it look at the clock again
        await until(lambda: {e.subject for e in box.got} == {"a", "b", "c", "d"})


async def test_a_target_that_is_gone_is_left_alone(desk: Desk, caplog: pytest.LogCaptureFixture):
    """After "gone" nothing more is sent, nothing is owed, and it is said once."""
    box = Mailbox(always=Gone("410"))
    desk.end("a", "b")
    async with running(desk.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
        await until(lambda: announcer.may_forget("b"))
    assert box.tries == 1
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


async def test_a_result_made_anew_is_announced_anew(desk: Desk):
    """Somebody removed a failed result and asked again: that is news; the same result is none."""
    box = Mailbox()
    desk.end("a")
    async with running(desk.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
        desk.ahead += 60.0
        assert not announcer.may_forget("a")  # it is looked at
        await until(lambda: announcer.may_forget("a"))
        assert len(box.got) == 1
        desk.ahead += 60.0
        desk.results["a"] = result("a", finished_at="2026-01-31T13:00:00Z")
        assert not announcer.may_forget("a")
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 2
    assert box.got[0].id != box.got[1].id


async def test_another_workers_result_is_left_to_it_for_a_while(desk: Desk):
    """Every worker sees a refused request in the inbox; the one that refused it speaks first."""
    box = Mailbox()
    desk.end("a")  # by w1
    async with running(desk.announcer(box, session="w2")) as announcer:
        for _ in range(3):
            assert not announcer.may_forget("a")
            await until(lambda: announcer.owed == 0)
        assert box.tries == 0
        desk.ahead += 31.0  # w1 must be dead: its request is still there
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


async def test_a_worker_announces_its_own_result_at_once(desk: Desk):
    """Nothing is waited for in the usual case."""
    box = Mailbox()
    desk.end("a")
    async with running(desk.announcer(box, session="w1")) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


@pytest.mark.parametrize("trouble", [StoreUnavailable("no answer"), RuntimeError("a bug")])
async def test_a_store_that_does_not_answer_is_asked_again(desk: Desk, trouble: Exception):
    """The next sweep begins anew; the announcer lives."""
    box = Mailbox()
    desk.end("a")
    desk.trouble = trouble
    async with running(desk.announcer(box)) as announcer:
        assert not announcer.may_forget("a")
        await until(lambda: announcer.owed == 0)
        desk.trouble = None
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


async def test_a_result_that_nobody_can_read_is_forgotten(desk: Desk, caplog: pytest.LogCaptureFixture):
    """There is nothing to say of it, and asking for ever helps nobody."""
    desk.trouble = ValueError("not a result")
    async with running(desk.announcer(Mailbox())) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert "cannot be read" in caplog.text


async def test_a_result_that_is_not_there_is_not_announced(desk: Desk):
    """Nothing to say is not a reason to forget."""
    box = Mailbox()
    async with running(desk.announcer(box)) as announcer:
        for _ in range(3):
            assert not announcer.may_forget("a")
            await until(lambda: announcer.owed == 0)
    assert box.tries == 0


async def test_a_drain_delivers_what_is_owed(desk: Desk):
    """With the background loop running, and without it."""
    for background in (True, False):
        box = Mailbox()
        ids = [f"{background}{i}" for i in range(100)]
        desk.end(*ids)
        announcer = desk.announcer(box)
        for id in ids:
            announcer.may_forget(id)
        async with running(announcer) if background else contextlib.nullcontext():
            await announcer.drain(10.0)
        assert {event.subject for event in box.got} == set(ids)
        assert announcer.owed == 0


async def test_a_drain_waits_for_no_second_chance(desk: Desk):
    """What is to be tried in an hour is tried now, once; then it is left to another worker."""
    box = Mailbox(always=Undelivered("500"))
    desk.end("a", "b")
    async with running(desk.announcer(box, patience=Patience(first=3600.0, longest=3600.0))) as announcer:
        announcer.may_forget("a")
        announcer.may_forget("b")
        await until(lambda: box.tries == 2)
        box.troubles.append(None)
        await announcer.drain(60.0)  # ends by itself: the test's time limit says so
        assert len(box.got) == 1
        assert box.tries == 4
        assert announcer.owed == 1
        assert [announcer.may_forget(e.subject) for e in box.got] == [True]


async def test_a_worker_that_goes_on_after_a_drain_delivers_the_rest(desk: Desk):
    """What the drain could not deliver has its turn again."""
    box = Mailbox(always=Undelivered("500"))
    desk.end("a")
    async with running(desk.announcer(box, patience=Patience(first=0.01, longest=0.01))) as announcer:
        announcer.may_forget("a")
        await announcer.drain(10.0)
        assert announcer.owed == 1
        box.always = None
        await until(lambda: announcer.may_forget("a"))


async def test_a_drain_is_bounded(desk: Desk):
    """A target that hangs does not keep a worker from stopping; its event stays owed."""
    desk.end("a")
    announcer = desk.announcer(Mailbox(hangs=True))
    announcer.may_forget("a")
    await announcer.drain(0.05)
    assert announcer.owed == 1
    assert not announcer.may_forget("a")


@pytest.mark.parametrize("seed", range(20))
async def test_stopping_at_any_moment_loses_no_announcement(desk: Desk, seed: int):
    """Cancelled again and again in the middle of everything: in the end each target has each event."""
    rng = random.Random(seed)
    boxes = [Mailbox("one"), Mailbox("two", troubles=deque([Undelivered("500")] * 20))]
    ids = [f"r{i}" for i in range(40)]
    desk.end(*ids)
    announcer = desk.announcer(*boxes)
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


def test_a_memory_keeps_the_newest():
    """What is remembered is bounded."""
    memory: Memory[int] = Memory(3)
    for number in range(10):
        memory.keep(str(number), number)
        memory.keep("0", 0)
    assert list(memory) == ["8", "9", "0"]


def test_patience_lasts_about_an_hour():
    """Ten tries whose waits grow and scatter: 60 minutes in the mean, never more than two hours."""
    patience = Patience()
    totals = []
    for seed in range(300):
        rng = random.Random(seed)
        totals.append(sum(patience.wait(tries, rng) for tries in range(1, patience.tries)))
    assert 50 * 60 < sum(totals) / len(totals) < 70 * 60
    assert max(totals) <= 7220


class Bucket:
    """The real protocol over a store in memory, by a clock of our own."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now = 0.0

    def worker(self, name: str, *targets: Target) -> tuple[Claims, Announcer]:
        announcer = Announcer(
            targets, self.read, lambda: self.now, random.Random(name), session=name, patience=FAST
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
