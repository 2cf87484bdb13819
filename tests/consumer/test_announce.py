"""Announcements: at least once, to every target by itself, tried again and given up.

Targets here are in memory and fail on demand; real servers are in test_announce_targets and test_announce_webhook.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque

import pytest

from consumer.announce.announcer import Announcer, Newest
from consumer.announce.outbox import Gone, RetryPolicy, Undelivered
from schemas.errors import StoreUnavailable
from tests.mailboxes import FAST, Mailbox, Results, result, running, until

pytestmark = pytest.mark.anyio


async def test_an_ended_request_is_announced_and_then_forgotten(results: Results):
    """No while it is being told, yes afterwards; one event, whoever asks how often."""
    box = Mailbox()
    results.end("a")
    async with running(results.announcer(box)) as announcer:
        assert [announcer.may_forget("a") for _ in range(5)] == [False] * 5
        await until(lambda: announcer.may_forget("a"))
        assert announcer.may_forget("a")
    assert [event.subject for event in box.got] == ["a"]


async def test_the_worker_hears_at_once_that_it_may_forget(results: Results):
    """Once for each request, when it is true; no sweep has to find it out."""
    heard: list[tuple[str, bool]] = []

    def hear(id: str) -> None:
        heard.append((id, announcer.may_forget(id)))

    results.end("a", "b")
    announcer = Announcer(
        [Mailbox(), Mailbox("other")],
        results.read,
        results.clock,
        random.Random(1),
        policy=FAST,
        on_announced=hear,
    )
    async with running(announcer):
        assert not announcer.may_forget("a")
        assert not announcer.may_forget("b")
        await until(lambda: announcer.owed == 0)
    assert sorted(heard) == [("a", True), ("b", True)]


async def test_without_targets_nothing_is_kept(results: Results):
    """Who announces nothing may forget at once."""
    assert results.announcer().may_forget("a")


async def test_a_failed_delivery_is_repeated_as_the_same_event(results: Results):
    """A lost answer looks like a failure: the receiver tells the repeat by its id."""
    box = Mailbox(failures=deque([Undelivered("500"), OSError("reset"), KeyError("a bug")]))
    results.end("a")
    async with running(results.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert box.tries == 4
    assert len(box.got) == 1


async def test_a_crash_repeats_the_announcement_with_the_same_id(results: Results):
    """Nobody knows whether the dead worker's announcement arrived: it is made again, told by its id."""
    box = Mailbox()
    results.end("a")
    for _ in range(2):  # two lives, no memory shared but the store's
        async with running(results.announcer(box)) as announcer:
            assert not announcer.may_forget("a")
            await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 2
    assert len({event.id for event in box.got}) == 1


async def test_what_never_arrives_is_given_up_and_said(results: Results, caplog: pytest.LogCaptureFixture):
    """After the last try the claims may go: an announcement must not fill the bucket for ever."""
    box = Mailbox(always=Undelivered("it answered 500"))
    results.end("a")
    async with running(results.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert box.tries == FAST.tries
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == [
        "an announcement is given up"
    ]


async def test_a_target_that_hangs_delays_no_other(results: Results):
    """Five hundred events pass by a target that never answers."""
    stuck, box = Mailbox("stuck", hangs=True), Mailbox()
    ids = [f"r{i}" for i in range(500)]
    results.end(*ids)
    async with running(results.announcer(stuck, box)) as announcer:
        assert not any([announcer.may_forget(id) for id in ids])
        await until(lambda: len(box.got) == 500)
        assert not any([announcer.may_forget(id) for id in ids])  # one target does not have them
    assert stuck.most_inside == FAST.concurrency


async def test_one_targets_troubles_repeat_nothing_to_another(results: Results):
    """Each target hears each event once, however often the other is tried."""
    bad, good = Mailbox("bad", failures=deque([Undelivered("503")] * 5)), Mailbox("good")
    results.end("a")
    async with running(results.announcer(bad, good)) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert (len(bad.got), len(good.got)) == (1, 1)


async def test_deliveries_in_flight_are_bounded(results: Results):
    """A thousand results at once are no thousand connections."""
    box = Mailbox()
    ids = [f"r{i}" for i in range(1000)]
    results.end(*ids)
    async with running(results.announcer(box)) as announcer:
        for id in ids:
            announcer.may_forget(id)
        await until(lambda: announcer.owed == 0)
    assert box.most_inside <= FAST.concurrency
    assert Counter(event.subject for event in box.got) == Counter(ids)


async def test_what_a_target_asks_for_holds_for_all_that_wait(results: Results):
    """Retry-After closes the target, not only the event that heard it."""
    box = Mailbox(failures=deque([Undelivered("429", retry_after=60.0)]))
    results.end("a", "b", "c")
    async with running(results.announcer(box, policy=RetryPolicy(concurrency=1))) as announcer:
        for id in "abc":
            announcer.may_forget(id)
        await until(lambda: box.tries == 1)
        await asyncio.sleep(0.05)
        assert box.tries == 1
        results.ahead += 70.0
        results.end("d")
        announcer.may_forget("d")  # new work makes it look at the clock again
        await until(lambda: {e.subject for e in box.got} == {"a", "b", "c", "d"})


async def test_a_target_that_is_gone_is_left_alone(results: Results, caplog: pytest.LogCaptureFixture):
    """After "gone" nothing more is sent, nothing is owed, and it is said once."""
    box = Mailbox(always=Gone("410"))
    results.end("a", "b")
    async with running(results.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
        await until(lambda: announcer.may_forget("b"))
    assert box.tries == 1
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


async def test_a_result_made_anew_is_announced_anew(results: Results):
    """Somebody removed a failed result and asked again: that is news; the same result is none."""
    box = Mailbox()
    results.end("a")
    async with running(results.announcer(box)) as announcer:
        await until(lambda: announcer.may_forget("a"))
        results.ahead += 60.0
        assert not announcer.may_forget("a")  # it is looked at
        await until(lambda: announcer.may_forget("a"))
        assert len(box.got) == 1
        results.ahead += 60.0
        results.by_id["a"] = result("a", finished_at="2026-01-31T13:00:00Z")
        assert not announcer.may_forget("a")
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 2
    assert box.got[0].id != box.got[1].id


async def test_another_workers_result_is_left_to_it_for_a_while(results: Results):
    """Every worker sees a refused request in the inbox; the one that refused it speaks first."""
    box = Mailbox()
    results.end("a")  # by w1
    async with running(results.announcer(box, session="w2")) as announcer:
        for _ in range(3):
            assert not announcer.may_forget("a")
            await until(lambda: announcer.owed == 0)
        assert box.tries == 0
        results.ahead += 31.0  # w1 must be dead: its request is still there
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


async def test_a_worker_announces_its_own_result_at_once(results: Results):
    """Nothing is waited for in the usual case."""
    box = Mailbox()
    results.end("a")
    async with running(results.announcer(box, session="w1")) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


@pytest.mark.parametrize("failure", [StoreUnavailable("no answer"), RuntimeError("a bug")])
async def test_a_store_that_does_not_answer_is_asked_again(results: Results, failure: Exception):
    """The next sweep begins anew; the announcer lives."""
    box = Mailbox()
    results.end("a")
    results.failure = failure
    async with running(results.announcer(box)) as announcer:
        assert not announcer.may_forget("a")
        await until(lambda: announcer.owed == 0)
        results.failure = None
        await until(lambda: announcer.may_forget("a"))
    assert len(box.got) == 1


async def test_a_result_that_nobody_can_read_is_forgotten(results: Results, caplog: pytest.LogCaptureFixture):
    """There is nothing to say of it, and asking for ever helps nobody."""
    results.failure = ValueError("not a result")
    async with running(results.announcer(Mailbox())) as announcer:
        await until(lambda: announcer.may_forget("a"))
    assert "cannot be read" in caplog.text


async def test_a_result_that_is_not_there_is_not_announced(results: Results):
    """Nothing to say is not a reason to forget."""
    box = Mailbox()
    async with running(results.announcer(box)) as announcer:
        for _ in range(3):
            assert not announcer.may_forget("a")
            await until(lambda: announcer.owed == 0)
    assert box.tries == 0


def test_a_memory_keeps_the_newest():
    """What is remembered is bounded."""
    newest: Newest[int] = Newest(3)
    for number in range(10):
        newest.keep(str(number), number)
        newest.keep("0", 0)
    assert list(newest) == ["8", "9", "0"]


def test_patience_lasts_about_an_hour():
    """Ten tries whose waits grow and scatter: 60 minutes in the mean, never more than two hours."""
    policy = RetryPolicy()
    totals = []
    for seed in range(300):
        rng = random.Random(seed)
        totals.append(sum(policy.wait(tries, rng) for tries in range(1, policy.tries)))
    assert 50 * 60 < sum(totals) / len(totals) < 70 * 60
    assert max(totals) <= 7220
