"""The life of a request, and every place where it can break.

Read the first test for the life; the others are the rows of the crash table in docs/design.md.
"""

from __future__ import annotations

import hashlib

import pytest

from infra.stores.store import Store
from schemas.errors import StoreUnavailable
from schemas.result import Failure
from tests.infra.claims_bench import BODY, LEASE, Bench, Dies, Mortal, live, paint, success, work

pytestmark = pytest.mark.anyio


async def test_a_request_becomes_a_claim_and_then_a_result(store: Store) -> None:
    """Of request, claim, images and result, only images and result stay; the result repeats the request."""
    bench = Bench(store)
    claims = bench.session("w")
    held = await bench.must_take(claims)
    assert await bench.keys() == ["claims/cat/000001"]

    assert await work(claims, held)
    assert await bench.keys() == ["results/cat/0.png", "results/cat/1.png", "results/cat/result.json"]
    result = await bench.result()
    assert result.request.body() == BODY
    for image in result.images:
        assert hashlib.sha256((await store.get(image.key)).body).hexdigest() == image.sha256


async def test_a_dead_workers_claim_is_taken_over_whole(store: Store) -> None:
    """After a lease the next epoch has request and plan unchanged, runs alone, and adopts what is stored."""
    bench = Bench(store)
    dead, alive = bench.session("dead"), bench.session("alive")
    await dead.beat()
    old = await bench.must_take(dead)
    painted = await paint(dead, old, 0)

    [new] = await bench.sweep_after_lease(alive)
    assert (new.claim.frozen, new.claim.plan) == (old.claim.frozen, old.claim.plan)
    assert (new.claim.epoch, new.claim.attempt, new.claim.solo) == (2, 2, True)
    assert await alive.stored_image(new, 0, "png") == painted
    assert await work(alive, new)
    assert await bench.keys("claims/") == []


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_death_at_any_call_is_survived(how: str) -> None:
    """Whatever call a worker dies at, before or after its effect, one other worker ends the request."""
    deaths = 0
    for fatal in range(1, 40):
        bench = Bench()
        await bench.drop()
        try:
            await live(bench, bench.session("mortal", Mortal(bench.store, fatal, how)))
        except Dies:
            deaths += 1
        await live(bench, bench.session("heir"))
        await _assert_all_is_well(bench)
    assert deaths >= 10


@pytest.mark.parametrize("how", ["lost", "refused"])
async def test_a_store_that_fails_once_is_asked_again(how: str) -> None:
    """Whatever call gets no answer, the same worker goes on and ends the request, claim and all."""
    for fatal in range(1, 40):
        bench = Bench()
        await bench.drop()
        await live(bench, bench.session("w", Mortal(bench.store, fatal, how)))
        await _assert_all_is_well(bench)


async def test_a_commit_whose_answer_was_lost_is_still_ours() -> None:
    """Called again after StoreUnavailable, `commit` finds its own result and says True."""
    bench = Bench()
    held = await bench.must_take(bench.session("w"))
    claims = bench.session("w", Mortal(bench.store, 1, "lost"))
    with pytest.raises(StoreUnavailable):
        await claims.commit(held, success(held, []))
    assert await claims.commit(held, success(held, []))


async def test_a_zombie_loses_or_helps() -> None:
    """A worker that wakes up after its lease was taken: its images are adopted, one result stands."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    [new] = await bench.sweep_after_lease(heir)
    images = [await paint(zombie, old, 0), await paint(heir, new, 1)]
    assert [await paint(heir, new, 0), await paint(zombie, old, 1)] == images

    assert await heir.commit(new, success(new, images))
    assert not await zombie.commit(old, success(old, images))
    assert (await bench.result()).worker == "heir"
    assert await bench.keys("claims/") == []


async def test_a_zombie_that_commits_first_is_right() -> None:
    """Then the heir's commit says False, and its claim goes as well."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    [new] = await bench.sweep_after_lease(heir)
    assert await work(zombie, old)
    assert await heir.is_over("cat")
    assert not heir.holds("cat")
    assert not await heir.commit(new, success(new, []))
    assert await bench.keys("claims/") == []


async def test_a_zombie_learns_that_its_claim_is_lost() -> None:
    """Its own sweep sees the later epoch and lets go, so that it can be the heir of its heir."""
    bench = Bench()
    zombie, heir = bench.session("zombie"), bench.session("heir")
    old = await bench.must_take(zombie)
    await bench.sweep_after_lease(heir)
    assert await zombie.sweep() == []
    assert old.taken_over
    assert not zombie.holds("cat")
    [again] = await bench.sweep_after_lease(zombie)
    assert again.claim.epoch == 3


async def test_a_claim_that_lands_late_is_tidied() -> None:
    """A claim of a dead worker, written after the request had ended, goes after a lease."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    ghost = held.claim.model_copy(update={"session": "gone"})
    await work(claims, held)
    await bench.store.create("claims/cat/000001", ghost.body())
    assert await bench.sweep_after_lease(claims) == []
    assert await bench.keys("claims/") == []


async def test_an_own_claim_that_nobody_holds_is_found_again() -> None:
    """A first claim whose answer was lost, landing late, is worked on without waiting for a lease."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    again = bench.session("w")  # the same session, which never heard that it has the claim
    [found] = await again.sweep()
    assert found.claim == held.claim


async def test_a_beating_heart_keeps_its_claims() -> None:
    """However long the work takes, a heartbeat that changes within a lease keeps the claim."""
    bench = Bench()
    slow, other = bench.session("slow"), bench.session("other")
    await bench.must_take(slow)
    for _ in range(20):
        await slow.beat()
        assert await other.sweep() == []
        bench.now += LEASE - 1


@pytest.mark.parametrize("beats", [True, False])
async def test_death_is_judged_by_the_observers_own_clock(beats: bool) -> None:
    """A heartbeat, unchanged or missing, counts only from when this observer first saw it so."""
    bench = Bench()
    dead, late = bench.session("dead"), bench.session("late")
    if beats:
        await dead.beat()
    await bench.must_take(dead)
    bench.now += 10 * LEASE
    assert await late.sweep() == []
    bench.now += LEASE - 1
    assert await late.sweep() == []
    bench.now += 1
    assert len(await late.sweep()) == 1


async def test_a_drained_claim_is_taken_at_once_and_costs_no_attempt() -> None:
    """A worker that stops in order gives its work back: same attempt, no isolation."""
    bench = Bench()
    leaver, other = bench.session("leaver"), bench.session("other")
    held = await bench.must_take(leaver)
    await leaver.release(held, "drain")
    assert not leaver.holds("cat")
    [new] = await other.sweep()
    assert (new.claim.epoch, new.claim.attempt, new.claim.solo) == (2, 1, False)


async def test_a_retry_waits_and_counts() -> None:
    """After a retryable failure the next attempt waits from when the observer saw the marker."""
    bench = Bench()
    first, other = bench.session("first"), bench.session("other")
    await first.release(await bench.must_take(first), "retry")
    bench.now += 100
    assert await other.sweep() == []
    bench.now += 4.9  # seconds; the first wait is 5 and up to a quarter more
    assert await other.sweep() == []
    bench.now += 1.4
    [new] = await other.sweep()
    assert (new.claim.attempt, new.claim.solo) == (2, False)


async def test_isolation_outlives_a_drain() -> None:
    """A request that once took a worker with it stays alone, whoever gives it back in order later."""
    bench = Bench()
    await bench.must_take(bench.session("dead"))
    second = bench.session("second")
    [held] = await bench.sweep_after_lease(second)
    await second.release(held, "drain")
    [third] = await bench.session("third").sweep()
    assert third.claim.solo


async def test_a_request_that_kills_is_given_up() -> None:
    """After three workers died over it, the request ends as `failed`, in words for its author."""
    bench = Bench()
    await bench.must_take(bench.session("victim 1"))
    for attempt in (2, 3):
        [held] = await bench.sweep_after_lease(bench.session(f"victim {attempt}"))
        assert held.claim.attempt == attempt
    assert await bench.sweep_after_lease(bench.session("judge")) == []
    result = await bench.result()
    assert result.failure is not None
    assert (result.status, result.failure.code, result.attempts) == ("failed", "worker_crashed", 3)
    assert "3 attempts" in result.failure.message
    assert "stopped without a message" in result.failure.message
    assert result.metadata == {"order": 17}
    assert await bench.keys("claims/") == []


async def test_the_last_failure_is_told() -> None:
    """A request given up after retries says what went wrong in the last one, without another wait."""
    bench = Bench()
    claims = bench.session("w")
    held = await bench.must_take(claims)
    for _ in range(2):
        await claims.release(held, "retry", Failure(code="out_of_memory", message="the GPU is too small"))
        await claims.sweep()
        bench.now += 100
        [held] = await claims.sweep()
    await claims.release(held, "retry", Failure(code="out_of_memory", message="the GPU is too small"))
    assert await claims.sweep() == []
    failure = (await bench.result()).failure
    assert failure is not None
    assert (failure.code, failure.message) == (
        "out_of_memory",
        "the GPU is too small (given up after 3 attempts)",
    )


async def _assert_all_is_well(bench: Bench) -> None:
    assert await bench.keys("claims/", "requests/") == []
    result = await bench.result()
    assert (result.status, len(result.images)) == ("succeeded", 2)
    for image in result.images:
        assert hashlib.sha256((await bench.store.get(image.key)).body).hexdigest() == image.sha256
